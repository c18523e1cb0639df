"""Locks a run folder, so that no two processes do the same run, on one machine or on several that share the folder."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from composer_ls.errors import RunFolderBusyError
from composer_ls.lab.run_folder.files import told_if_unwritable

__all__ = ["claimant", "claimed"]


@contextlib.contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Hold a lock on a run folder, so that no other process does its run.

    The lock is on the file ``.lock``, whose text names the owner. The operating system releases it when the process
    ends, however that happens, so no lock outlives its owner. On a file system without locks, nothing is locked. A
    folder that was created for the lock and is still empty at the end is deleted.

    Raises:
        RunFolderBusyError: Another process holds the lock; the message says which.
        RunFolderError: The folder cannot be written.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from composer_ls.lab.run_folder.claim import claimed
        >>> with tempfile.TemporaryDirectory() as folder, claimed(Path(folder)):
        ...     print((Path(folder) / ".lock").read_text().split()[0])
        process

    """
    path = folder / ".lock"
    made = [place for place in (folder, *folder.parents) if not place.exists()]
    with told_if_unwritable(folder):
        folder.mkdir(parents=True, exist_ok=True)
        file = _locked(path)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # the folder or its disk may be gone by now
            path.unlink()
        os.close(file)
        with contextlib.suppress(OSError):  # stops at the first folder that is not empty
            for place in made:
                place.rmdir()


def claimant(folder: Path) -> str | None:
    """The other process that is doing the run in this folder, or ``None``. Do not call it within :func:`claimed`."""
    path = folder / ".lock"
    try:
        file = os.open(path, os.O_RDWR)
    except OSError:
        return None
    try:
        return None if _lock(file) else _words(path)
    finally:
        os.close(file)


def _locked(path: Path) -> int:
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)  # less the umask, so that a group can share a folder
        if not _lock(file):
            os.close(file)
            raise RunFolderBusyError(
                f"{path.parent} is in use by {_words(path)}. Wait for it, or choose another folder with --out DIR"
            )
        with contextlib.suppress(FileNotFoundError):
            if os.fstat(file).st_ino == path.stat().st_ino:  # otherwise its last owner has deleted it meanwhile
                os.ftruncate(file, 0)
                os.pwrite(file, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
                return file
        os.close(file)


def _lock(file: int) -> bool:
    """Try to lock an open file; False if another process has it. A file that cannot be locked counts as locked."""
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in (errno.EACCES, errno.EAGAIN)
    return True


def _words(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8") or "another process"
    except OSError:
        return "another process"
