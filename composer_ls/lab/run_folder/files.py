"""Atomic writing of files."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import re
import shutil
import stat
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from composer_ls.errors import InputError, RunFolderError

__all__ = [
    "crc32",
    "disk_error",
    "finite",
    "read_tensors",
    "replacing",
    "told_if_disk_fails",
    "told_if_unwritable",
    "walked",
    "write_folder",
    "write_tensors",
    "write_text",
]

CHECKSUM = "composer_ls.crc32"
"""The name, in the metadata of a safetensors file, of the checksum of its tensors and of the other metadata."""


def finite(content: Any) -> Any:
    """The same mappings, lists and values for JSON, with ``None`` in place of numbers that are not finite.

    Example:
        >>> from composer_ls.lab.run_folder.files import finite
        >>> finite({"nll": float("nan"), "steps": [1, 2.5]})
        {'nll': None, 'steps': [1, 2.5]}

    """
    if isinstance(content, Mapping):
        return {key: finite(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file atomically, with a checksum in its metadata."""
    whole = {name: tensor.contiguous() for name, tensor in tensors.items()}
    with replacing(path) as temporary:
        save_file(whole, temporary, {**(metadata or {}), CHECKSUM: _checksum(whole, metadata or {})})


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file. Their checksum is compared, if :func:`write_tensors` wrote the file.

    Raises:
        OSError: It cannot be read.
        SafetensorError: It is damaged.

    """
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        metadata = dict(file.metadata() or {})
    written = metadata.pop(CHECKSUM, None)
    if written is not None and written != _checksum(tensors, metadata):
        raise SafetensorError(f"the checksum of {path.name} is wrong: it was damaged or edited after it was written")
    return tensors


def _checksum(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    value = zlib.crc32(json.dumps(sorted(metadata.items())).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        value = zlib.crc32(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode(), value)
        value = crc32(tensor, value)
    return f"{value:08x}"


def crc32(tensor: Tensor, value: int = 0) -> int:
    """The checksum of a tensor's bytes, continued from ``value``."""
    return zlib.crc32(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().data, value)  # 1 GB a second and more


def walked(
    root: str | Path, onerror: Callable[[OSError], Any] | None = None
) -> Iterator[tuple[str, list[str], list[str]]]:
    """As :func:`os.walk`, but through links to folders too, and into each folder once."""
    seen: set[tuple[int, int]] = set()
    for place, folders, files in os.walk(root, onerror=onerror, followlinks=True):
        with contextlib.suppress(OSError):
            found = os.stat(place)
            if (found.st_dev, found.st_ino) in seen:
                folders.clear()
                continue
            seen.add((found.st_dev, found.st_ino))
        yield place, folders, files


def write_folder(path: Path, write: Callable[[Path], None]) -> None:
    """Let a function write a folder of files, which replaces ``path`` at the end, or is deleted if an error is raised."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.mkdir()
    try:
        write(temporary)
        (temporary / ".mode").touch()  # that of a new file, whatever the writer set
        mode = (temporary / ".mode").stat().st_mode
        (temporary / ".mode").unlink()
        for file in temporary.iterdir():
            file.chmod(mode)
        shutil.rmtree(path, ignore_errors=True)
        os.replace(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary file next to ``path``, which replaces it at the end, or is deleted if an error is raised.

    It gets the permissions of the old file, or of a new one, whatever the writer set: safetensors makes files readable by the
    owner only. A mount point, as a file given to a container, cannot be replaced, and is written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.touch()
        mode = stat.S_IMODE((path if path.exists() else temporary).stat().st_mode)
        yield temporary
        with open(temporary, "rb+") as file:
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        try:
            os.replace(temporary, path)
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            shutil.copyfile(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def told_if_unwritable(folder: Path) -> Iterator[None]:
    """Turn an OSError while writing to a run folder into a RunFolderError."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise RunFolderError(
            f"the run folder {folder.absolute()} cannot be written ({reason}): choose another with --out DIR"
        ) from error


@contextlib.contextmanager
def told_if_disk_fails(folder: Path) -> Iterator[None]:
    """Turn what is raised when a disk becomes full or read-only, or a run folder vanishes, into a RunFolderError."""
    was_there = folder.is_dir()  # on another machine it may not be
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        reason = disk_error(error)
        if reason is None and was_there and not folder.is_dir():
            reason = "it has disappeared"
        if reason is None:
            raise
        raise RunFolderError(
            f"the run folder {folder.absolute()} cannot be written any more ({reason}): make room or bring the folder back, and "
            f"repeat the command, which continues from the last checkpoint"
        ) from error


_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE, errno.ENODEV, errno.EFBIG)


def disk_error(error: BaseException | None) -> str | None:
    """What the disk said, if an error or its cause is one of a disk: full, read-only or broken.

    PyTorch and safetensors raise errors of their own, in which the system's is a cause or a number in the text.

    Example:
        >>> from composer_ls.lab.run_folder.files import disk_error
        >>> disk_error(OSError(28, "No space left on device", "/runs/a"))
        'No space left on device: /runs/a'
        >>> disk_error(ValueError("unknown key"))

    """
    while error is not None:
        if isinstance(error, OSError) and error.errno in _DISK_ERRORS:
            return os.strerror(error.errno) + (f": {error.filename}" if error.filename else "")
        if isinstance(error, SafetensorError) and (code := re.search(r"\b(?:code:|os error) (\d+)", str(error))):
            return os.strerror(int(code[1]))
        error = error.__cause__ or error.__context__
    return None
