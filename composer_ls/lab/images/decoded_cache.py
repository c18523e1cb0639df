"""Decodes image files once, on all cores, and caches them as bytes in the user's cache folder."""

from __future__ import annotations

import hashlib
import os
import sys
import warnings
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torchvision.transforms.v2 import functional as transforms

from composer_ls.errors import DataNotFoundError
from composer_ls.lab.images.image_files import read_image
from composer_ls.lab.run_folder.files import crc32, replacing

__all__ = ["cache_folder", "decoded"]

FORMAT = 3
CHUNK = 256


def cache_folder() -> Path:
    """The cache folder: ``$COMPOSER_LS_CACHE``, else ``composer_ls`` in ``$XDG_CACHE_HOME`` or ``~/.cache``."""
    if own := os.environ.get("COMPOSER_LS_CACHE"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "composer_ls"


def decoded(root: Path, files: Sequence[str], size: int) -> Tensor:
    """The images as bytes, uint8 ``(len(files), size, size, 3)``, from the cache if possible.

    The cache has one file per ``root`` and size. It is used if the names, sizes and times (of modification and of change) of
    all files are unchanged, and so are its own contents. A 32x32 image takes 3 kB. If the cache cannot be written, a warning
    is issued and nothing is cached.

    Args:
        root: The folder that contains the files.
        files: Their paths.
        size: The height and width to which images are resized, in pixels.

    Raises:
        DataNotFoundError: A file cannot be read as an image.

    """
    name = hashlib.sha256(str(root.resolve()).encode()).hexdigest()[:12]
    place = cache_folder() / f"{root.resolve().name[:40] or 'root'}-{size}px-{name}.safetensors"
    key = _key(root, files, size)
    images = _read(place, key)
    if images is not None:
        return images
    if len(files) > 10 * CHUNK:
        print(f"Decoding {len(files):,} images of {root} (only this once).", file=sys.stderr, flush=True)
    images = _decode_all(files, size)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with replacing(place) as temporary:
            save_file({"images": images}, temporary, {"key": key, "checksum": f"{crc32(images):08x}"})
    except (OSError, SafetensorError) as error:
        warnings.warn(
            f"the decoded images of {root} cannot be cached in {place.parent} ({error}), so every run will decode them; "
            f"set the environment variable COMPOSER_LS_CACHE to a writable folder",
            stacklevel=2,
        )
    return images


def _key(root: Path, files: Sequence[str], size: int) -> str:
    digest = hashlib.sha256(f"{FORMAT} {size}".encode())
    for file in files:
        try:
            status = os.stat(file)
        except OSError as error:
            raise DataNotFoundError(
                f"{file} cannot be read ({error.strerror}), or is a broken link: restore it or delete it"
            ) from error
        seen = f"{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}"
        digest.update(f"\n{file.removeprefix(str(root))} {seen}".encode())
    return digest.hexdigest()


def _read(place: Path, key: str) -> Tensor | None:
    try:
        with safe_open(place, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("key") != key:
                return None
            images = file.get_tensor("images")
        return images if metadata.get("checksum") == f"{crc32(images):08x}" else None
    except (OSError, SafetensorError):  # missing, truncated or not a safetensors file
        return None


def _decode_all(files: Sequence[str], size: int) -> Tensor:
    images = torch.empty(len(files), size, size, 3, dtype=torch.uint8)
    chunks = [files[start : start + CHUNK] for start in range(0, len(files), CHUNK)]
    processes = min(_cores(), len(chunks))
    pool = ProcessPoolExecutor(processes) if processes > 1 else None
    try:
        parts = (pool.map if pool else map)(_decode, chunks, [size] * len(chunks))
        for place, part in zip(images.split(CHUNK), parts, strict=True):
            place.copy_(torch.from_numpy(part))
    finally:
        if pool:
            pool.shutdown(cancel_futures=True)  # so that Ctrl-C does not wait for the rest
    return images


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _decode(files: Sequence[str], size: int) -> NDArray[np.uint8]:
    images = np.empty((len(files), size, size, 3), np.uint8)
    for index, file in enumerate(files):
        images[index] = np.asarray(transforms.resize(read_image(file), [size, size]))
    return images
