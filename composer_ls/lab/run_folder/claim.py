"""Claiming a run folder, so that no two processes do the same run, on one machine or on several that share the folder."""

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
    """Keep every other process from doing the run in this folder.

    The claim is a lock on its file ``.lock``, which says whose it is. The system drops the lock with the process, however that
    ends, so no claim outlives who made it. Where the file system knows no locks, there is no claim. A folder that is made for
    the claim and still empty at its end goes with it.

    Raises:
        RunFolderBusyError: Another process has it; the message says which.
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
        path.unlink(missing_ok=True)
        os.close(file)
        with contextlib.suppress(OSError):  # something is in it, and so in those around it
            for place in made:
                place.rmdir()


def claimant(folder: Path) -> str | None:
    """Which other process does the run in this folder, ``None`` if there is none. Not to be asked within :func:`claimed`."""
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
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        if not _lock(file):
            os.close(file)
            raise RunFolderBusyError(
                f"{path.parent} is in use: {_words(path)} is doing its run. Wait for it, or choose another with --out DIR"
            )
        with contextlib.suppress(FileNotFoundError):
            if os.fstat(file).st_ino == path.stat().st_ino:  # else who had it has deleted it since
                os.ftruncate(file, 0)
                os.pwrite(file, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
                return file
        os.close(file)


def _lock(file: int) -> bool:
    """Lock an open file for this process, unless another has it; one that cannot be locked counts as locked."""
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
