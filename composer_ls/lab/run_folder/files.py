"""Writing files whole or not at all."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from composer_ls.errors import RunFolderError

__all__ = ["replacing", "told_if_unwritable", "write_tensors", "write_text"]


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a file of safetensors whole or not at all."""
    with replacing(path) as temporary:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary file beside ``path`` that takes its place at the end, whole and flushed, or disappears."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def told_if_unwritable(folder: Path) -> Iterator[None]:
    """Turn what goes wrong in writing to a run folder into a RunFolderError."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise RunFolderError(
            f"the run folder {folder.absolute()} cannot be written ({reason}): choose another with --out DIR"
        ) from error
