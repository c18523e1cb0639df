"""Reads real-world image files: 16 bits, transparent, rotated by EXIF, broken, or among hidden files."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageOps, TiffImagePlugin
from torchvision.datasets import ImageFolder
from torchvision.datasets.folder import IMG_EXTENSIONS

from composer_ls.errors import DataNotFoundError

__all__ = [
    "ENDINGS",
    "UNREAD",
    "ImageTree",
    "as_seen",
    "is_hidden",
    "is_turned",
    "left_out",
    "read_image",
]

ENDINGS = (*IMG_EXTENSIONS, ".apng", ".dib", ".gif", ".jfif", ".jpe", ".pbm", ".pnm")
"""The endings of files that are read as images."""
UNREAD = (
    ".arw", ".avif", ".cr2", ".cr3", ".dng", ".heic", ".heif", ".j2k", ".jp2", ".jxl", ".nef", ".orf", ".psd", ".raf", ".rw2", ".svg",
    ".tga", ".avi", ".m4v", ".mkv", ".mov", ".mp4", ".webm",
)  # fmt: skip
"""The endings of images and videos that are not read, because Pillow cannot, or not in every installation."""

SIXTEEN_BITS = ("I;16", "I;16L", "I;16B", "I;16N")
BITS, PHOTOMETRY = TiffImagePlugin.BITSPERSAMPLE, TiffImagePlugin.PHOTOMETRIC_INTERPRETATION
WHITE_IS_ZERO = 0
KIND_OF_PAGE, SMALLER, MASK = 254, 1, 4  # a TIFF's tag, and bits of its value
UNBOUNDED = {"I": "32-bit integers", "F": "floating point numbers"}


def read_image(file: str | Path) -> Image.Image:
    """The image in a file :func:`as_seen`; of an animation, the first one.

    Args:
        file: The path of the image.

    Raises:
        DataNotFoundError: The file cannot be read, exceeds Pillow's limit of pixels, is a TIFF of several pages, or its
            pixels have no known range to scale to 8 bits; the message names the file.

    """
    try:
        with Image.open(file) as opened:
            if isinstance(opened, TiffImagePlugin.TiffImageFile) and _has_pages(opened):
                raise DataNotFoundError(
                    f"{file} has several pages, which are images of their own: save those that you mean as files, and delete it"
                )
            return as_seen(opened)
    except DataNotFoundError:
        raise
    except Image.DecompressionBombError as error:
        raise DataNotFoundError(f"{file} is too large ({error}): scale it down or delete it") from error
    except FileNotFoundError as error:
        raise DataNotFoundError(f"{file} is missing, or is a broken link: restore it or delete it") from error
    except Exception as error:  # for broken files, Pillow's readers raise almost anything
        raise DataNotFoundError(f"{file} cannot be read as an image ({error}): restore it or delete it") from error


def _has_pages(image: TiffImagePlugin.TiffImageFile) -> bool:
    """Whether there is a second page that is no smaller version of the first and no mask."""
    kinds = []
    for page in range(1, image.n_frames):
        image.seek(page)
        kinds.append(image.tag_v2.get(KIND_OF_PAGE, 0))
    image.seek(0)
    return any(not kind & (SMALLER | MASK) for kind in kinds)


def as_seen(image: Image.Image) -> Image.Image:
    """The image as a viewer shows it: upright, in mode RGB with 8 bits.

    16-bit grey is scaled to 8 bits, transparency is shown on white, and the EXIF rotation is applied.

    Raises:
        DataNotFoundError: Its pixels have no known range to scale to 8 bits.

    """
    tags = getattr(image, "tag_v2", {})  # of a TIFF; exif_transpose() loses them
    return _eight_bits(_upright(image), getattr(image, "filename", "") or "the image", image.format, tags)


def _upright(image: Image.Image) -> Image.Image:
    image.load()
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # ignore EXIF data that cannot be read
        return image


def _eight_bits(image: Image.Image, file: str, kind: str | None, tags: Any) -> Image.Image:
    if image.mode in SIXTEEN_BITS or (image.mode == "I" and kind == "PNG"):  # a PNG has at most 16 bits
        return _deep_grey(image, tags)
    if image.mode in UNBOUNDED:
        raise DataNotFoundError(
            f"the pixels of {file} are {UNBOUNDED[image.mode]} (mode {image.mode}), whose range from black to white is not "
            f"known: save it with 8 or 16 bits"
        )
    if image.has_transparency_data:
        seen = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", seen.size, "white"), seen).convert("RGB")
    return image.convert("RGB")


def _deep_grey(image: Image.Image, tags: Any) -> Image.Image:
    """An image of more than 8 bits of grey, scaled to 8 bits. Pillow leaves such pixels as they are in the file."""
    pixels = np.asarray(image).astype(np.float32)
    largest = 2 ** (tags[BITS][0] if BITS in tags else 16) - 1
    grey = pixels * (255 / largest)
    if tags.get(PHOTOMETRY) == WHITE_IS_ZERO:
        grey = 255 - grey
    clear = image.info.get("transparency")
    if isinstance(clear, int):
        grey[pixels == clear] = 255
    return Image.fromarray(grey.round().clip(0, 255).astype(np.uint8)).convert("RGB")


def is_turned(file: str | Path) -> bool:
    """Whether EXIF says that the image must be rotated or flipped."""
    try:
        with Image.open(file) as image:
            return image.getexif().get(ExifTags.Base.Orientation, 1) not in (0, 1)
    except Exception:  # the error is reported when the image is read
        return False


def is_hidden(path: str | Path) -> bool:
    """Whether a file or folder is hidden or made by the system: ``.ipynb_checkpoints``, ``._cat.png``, ``__MACOSX``."""
    name = os.path.basename(path)
    return name.startswith(".") or name == "__MACOSX"


def left_out(files: Sequence[str]) -> list[str]:
    """A caution about files that are of a kind in ``UNREAD``; none if there are no such files.

    Example:
        >>> from composer_ls.lab.images.image_files import left_out
        >>> left_out(["photos/1.heic", "photos/2.HEIC", "photos/3.mov"])
        ['3 images or videos are left out, because such files are not read (2 .heic, 1 .mov): save images as .png or .jpg.']

    """
    counts = Counter(os.path.splitext(file)[1].lower() for file in files)
    kinds = ", ".join(f"{count} {ending}" for ending, count in counts.most_common())
    many = "1 image or video is" if len(files) == 1 else f"{len(files)} images or videos are"
    return (
        [f"{many} left out, because such files are not read ({kinds}): save images as .png or .jpg."] if files else []
    )


class ImageTree(ImageFolder):
    """Images in one folder per class, at any depth, without hidden files and folders.

    Args:
        root: The folder that contains the class folders.
        transform: The transform of each image.

    Attributes:
        unread: Files in the class folders that are images or videos of a kind that is not read.

    """

    def __init__(self, root: str | Path, transform: Any) -> None:
        self.unread: list[str] = []
        super().__init__(str(root), transform, loader=read_image, is_valid_file=self._is_shown_image)

    def find_classes(self, directory: str | Path) -> tuple[list[str], dict[str, int]]:
        """The names of the class folders, sorted, and their numbers.

        Raises:
            DataNotFoundError: Two names differ in nothing but capitals, so that one class has two folders.

        """
        names = sorted(entry.name for entry in os.scandir(directory) if entry.is_dir() and not is_hidden(entry.name))
        by_lower: dict[str, str] = {}
        for name in names:
            other = by_lower.setdefault(name.casefold(), name)
            if other != name:
                raise DataNotFoundError(
                    f"{directory} has the class folders {other} and {name}, whose names differ in nothing but capitals: put "
                    f"the images of one class into one folder, or rename one of them"
                )
        return names, {name: number for number, name in enumerate(names)}

    def _is_shown_image(self, path: str) -> bool:
        if any(map(is_hidden, os.path.relpath(path, self.root).split(os.sep))):
            return False
        if path.lower().endswith(UNREAD):
            self.unread.append(path)
        return path.lower().endswith(ENDINGS)
