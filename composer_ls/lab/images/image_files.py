"""Image files as people have them: 16 bits, transparent, turned by EXIF, broken, and hidden files between them."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageOps
from torchvision.datasets import ImageFolder
from torchvision.datasets.folder import IMG_EXTENSIONS, has_file_allowed_extension

from composer_ls.errors import DataNotFoundError

__all__ = ["ImageTree", "is_hidden", "is_turned", "read_image"]

SIXTEEN_BITS = ("I;16", "I;16L", "I;16B", "I;16N")
UNBOUNDED = {"I": "32-bit integers", "F": "floating point numbers"}


def read_image(file: str | Path) -> Image.Image:
    """The image in a file as a viewer shows it: mode RGB with 8 bits, upright.

    16 bits of grey are scaled to 8. What is transparent is white. The rotation that a camera notes in EXIF is applied.

    Args:
        file: Its path.

    Raises:
        DataNotFoundError: It cannot be read, is over Pillow's limit of pixels, or its pixels have no range that could be scaled
            to 8 bits; the message names the file.

    """
    try:
        with Image.open(file) as opened:
            return _eight_bits(_upright(opened), str(file), opened.format)
    except DataNotFoundError:
        raise
    except Image.DecompressionBombError as error:
        raise DataNotFoundError(f"{file} is too large ({error}): scale it down or delete it") from error
    except FileNotFoundError as error:
        raise DataNotFoundError(f"{file} is not there, or a link to nowhere: restore it or delete it") from error
    except Exception as error:  # of a broken file, Pillow's readers raise almost anything
        raise DataNotFoundError(f"{file} cannot be read as an image ({error}): restore it or delete it") from error


def _upright(image: Image.Image) -> Image.Image:
    image.load()
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # EXIF that cannot be read says nothing
        return image


def _eight_bits(image: Image.Image, file: str, kind: str | None) -> Image.Image:
    if image.mode in SIXTEEN_BITS or (image.mode == "I" and kind == "PNG"):  # a PNG has at most 16 bits
        pixels = np.asarray(image).astype(np.float32) / 257
        return Image.fromarray(pixels.round().astype(np.uint8)).convert("RGB")
    if image.mode in UNBOUNDED:
        raise DataNotFoundError(
            f"the pixels of {file} are {UNBOUNDED[image.mode]} (mode {image.mode}), whose range from black to white is not "
            f"known: save it with 8 or 16 bits"
        )
    if image.has_transparency_data:
        seen = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", seen.size, "white"), seen).convert("RGB")
    return image.convert("RGB")


def is_turned(file: str | Path) -> bool:
    """Whether EXIF says that the image is to be turned or mirrored."""
    try:
        with Image.open(file) as image:
            return image.getexif().get(ExifTags.Base.Orientation, 1) not in (0, 1)
    except Exception:  # reading it will say what is wrong
        return False


def is_hidden(path: str | Path) -> bool:
    """Whether a file or folder is none of the user's own: ``.ipynb_checkpoints``, ``._cat.png``, ``__MACOSX``."""
    name = os.path.basename(path)
    return name.startswith(".") or name == "__MACOSX"


class ImageTree(ImageFolder):
    """Images in a folder for each class, at any depth, without hidden files and folders.

    Args:
        root: Of the class folders.
        transform: Of each image.

    """

    def __init__(self, root: str | Path, transform: Any) -> None:
        super().__init__(
            str(root), transform, loader=read_image, is_valid_file=functools.partial(_is_shown_image, str(root))
        )

    def find_classes(self, directory: str | Path) -> tuple[list[str], dict[str, int]]:
        """The names of the class folders, sorted, and their numbers."""
        names = sorted(entry.name for entry in os.scandir(directory) if entry.is_dir() and not is_hidden(entry.name))
        return names, {name: number for number, name in enumerate(names)}


def _is_shown_image(root: str, path: str) -> bool:
    below = os.path.relpath(path, root).split(os.sep)
    return has_file_allowed_extension(path, IMG_EXTENSIONS) and not any(map(is_hidden, below))
