"""Reads images with one label per pixel from files."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from composer_ls.errors import DataNotFoundError
from composer_ls.lab.images.image_files import is_hidden, is_turned, read_image
from composer_ls.lab.images.loaders import IMAGENET_MEAN, IMAGENET_STD, Splits
from composer_ls.lab.images.memory_images import MemoryLabelMaps
from composer_ls.lab.tasks.segmentation.schema import SegmentationData

__all__ = ["CAMVID_CLASSES", "load_label_maps"]

CAMVID_CLASSES = (
    *("sky", "building", "pole", "road", "pavement", "tree"),
    *("sign", "fence", "car", "pedestrian", "bicyclist"),
)
SUFFIXES = {".jpg", ".jpeg", ".png"}
SMALLEST = 16  # pixels; in smaller images the network's downsampling leaves nothing

SAVE_MASKS = "save all masks as grey PNGs whose values are the classes, or all with one palette of colours"

Palette = dict[int, tuple[tuple[int, ...], Path]]
"""The colour of each value of the masks read so far, and the first mask that has it."""


def load_label_maps(data: SegmentationData, device: torch.device | str = "cpu") -> Splits:
    """Read all images and label maps into memory. This takes seconds for the few hundred images of CamVid.

    Files are ``root/{train,test}/images/<name>.jpg`` (or .jpeg, .png) and ``root/{train,test}/masks/<name>.png``. A
    mask has one channel of 8 bits (grey or palette): the classes 0 to 10 in the order of ``CAMVID_CLASSES``, and 11 for
    void. Of a palette the indices count, which must have the same colours in all masks.

    Args:
        data: The data section of the recipe.
        device: The device for images and label maps.

    Raises:
        DataNotFoundError: A folder or file is missing or cannot be read, sizes do not match, a mask holds an invalid
            value, or the palettes do not say which class an index is; the message names the file and what to do.

    References:
        Brostow, Fauqueur, Cipolla, 2009, "Semantic object classes in video: a high-definition ground truth database",
        Pattern Recognition Letters 30; the eleven classes are those of Badrinarayanan et al., 2017,
        https://arxiv.org/abs/1511.00561.

    """
    root = Path(data.root).expanduser()
    parts = [_pairs(root, split) for split in ("train", "test")]
    images, maps = _read_all([pair for part in parts for pair in part], len(CAMVID_CLASSES))
    sizes = [len(part) for part in parts]
    for split, masks in zip(("train", "test"), maps.split(sizes), strict=True):
        if (masks == len(CAMVID_CLASSES)).all():
            raise DataNotFoundError(
                f"all pixels of the masks in {root.absolute() / split / 'masks'} are {len(CAMVID_CLASSES)}, which is void: give "
                f"masks with classes from 0 to {len(CAMVID_CLASSES) - 1}"
            )
    train, test = (
        MemoryLabelMaps(*some, len(CAMVID_CLASSES), mean=IMAGENET_MEAN, std=IMAGENET_STD, device=device)
        for some in zip(images.split(sizes), maps.split(sizes), strict=True)
    )
    return Splits(train, test, len(CAMVID_CLASSES), (3, *images.shape[1:3]), CAMVID_CLASSES)


def _pairs(root: Path, split: str) -> list[tuple[Path, Path]]:
    """Every image of a split with its mask, in the order of their names."""
    images, masks = (root / split / kind for kind in ("images", "masks"))
    for folder in (images, masks):
        if not folder.is_dir():
            raise DataNotFoundError(
                f"there is no folder {folder.absolute()}: camvid expects images in data.root/{split}/images/ and masks "
                f"in data.root/{split}/masks/; set data.root=DIR to the folder that holds train and test"
            )
    image_of, mask_of = (_by_stem(folder, suffixes) for folder, suffixes in ((images, SUFFIXES), (masks, {".png"})))
    if not image_of:
        raise DataNotFoundError(
            f"there are no images in {images.absolute()}: put them there, or set data.root=DIR to another folder"
        )
    for one, other, kind, place in ((image_of, mask_of, "mask", masks), (mask_of, image_of, "image", images)):
        alone = [name for name in one if name not in other]
        if alone:
            more = f" (and {len(alone) - 1} more lack theirs)" if len(alone) > 1 else ""
            raise DataNotFoundError(
                f"{one[alone[0]]} has no {kind} of the same name in {place}{more}: put it there or delete the file"
            )
    return [(image_of[name], mask_of[name]) for name in image_of]


def _by_stem(folder: Path, suffixes: Collection[str]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for file in sorted(folder.iterdir()):
        if file.suffix.lower() in suffixes and not is_hidden(file):
            other = found.setdefault(file.stem, file)
            if other != file:
                raise DataNotFoundError(
                    f"{other} and {file} have one name, so it is not known which of them the mask {file.stem}.png belongs to: "
                    f"delete or rename one"
                )
    return found


def _read_all(pairs: list[tuple[Path, Path]], num_classes: int) -> tuple[Tensor, Tensor]:
    """Images ``(N, H, W, 3)`` and maps ``(N, H, W)``, both uint8."""
    images: list[NDArray[np.uint8]] = []
    maps: list[NDArray[np.uint8]] = []
    seen: Palette = {}
    for image_file, mask_file in pairs:
        for file, other in ((image_file, "mask"), (mask_file, "image")):
            if is_turned(file):
                raise DataNotFoundError(
                    f"EXIF says to turn {file}, and whether its {other} is turned likewise is not known: save it the way up that "
                    f"the {other} is, without EXIF"
                )
        images.append(np.asarray(read_image(image_file)))
        maps.append(_read_mask(mask_file, seen))
        _check_sizes(image_file, mask_file, images[0], images[-1], maps[-1])
        _check_values(mask_file, maps[-1], num_classes)
    _check_not_grey(seen)
    return torch.from_numpy(np.stack(images)), torch.from_numpy(np.stack(maps))


def _read_mask(file: Path, seen: Palette) -> NDArray[np.uint8]:
    """The mask ``(H, W)``. Adds the colours of its values to ``seen`` if it has a palette."""
    try:
        with Image.open(file) as image:
            if image.format == "JPEG":
                raise DataNotFoundError(
                    f"the mask {file} is a JPEG, whose compression changes classes: save the original mask as a PNG"
                )
            if image.mode not in {"L", "P"}:
                raise DataNotFoundError(
                    f"the mask {file} has mode {image.mode}, but must have one channel of 8 bits with one class per "
                    f"pixel: save it as a grey or palette PNG whose values are the classes"
                )
            mask = np.asarray(image, np.uint8)
            if image.mode == "P":
                _check_palette(file, mask, image.getpalette() or [], seen)
            return mask
    except DataNotFoundError:
        raise
    except Exception as error:  # of a broken file, Pillow's readers raise almost anything
        raise DataNotFoundError(f"{file} cannot be read as an image ({error}): restore it or delete it") from error


def _check_palette(file: Path, mask: NDArray[np.uint8], palette: list[int], seen: Palette) -> None:
    for value in np.unique(mask).tolist():
        colour = tuple(palette[3 * value : 3 * value + 3])
        before, other = seen.setdefault(value, (colour, file))
        if colour != before:
            raise DataNotFoundError(
                f"{value} is the colour {colour} in the palette of the mask {file}, but {before} in {other}, so it is not one "
                f"class: {SAVE_MASKS}"
            )


def _check_not_grey(seen: Palette) -> None:
    """Refuse palettes of greys only, of which it is not known whether the class is the index or the grey value."""
    if all(len(set(colour)) == 1 for colour, _ in seen.values()):
        for value, (colour, file) in seen.items():
            if colour[0] != value:
                raise DataNotFoundError(
                    f"the palette of the mask {file} shows {value} as the grey value {colour[0]}, so it is not known which of "
                    f"the two is the class: {SAVE_MASKS}"
                )


def _check_sizes(
    image_file: Path, mask_file: Path, first: NDArray[np.uint8], image: NDArray[np.uint8], mask: NDArray[np.uint8]
) -> None:
    if mask.shape != image.shape[:2]:
        raise DataNotFoundError(
            f"the mask {mask_file} is {_size(mask)}, but its image {image_file} is {_size(image)}: resize one to the "
            f"other, masks without interpolation"
        )
    if image.shape != first.shape:
        raise DataNotFoundError(
            f"{image_file} is {_size(image)}, but the images before it are {_size(first)}: resize all to one size"
        )
    if min(mask.shape) < SMALLEST:
        raise DataNotFoundError(f"{image_file} is {_size(image)}, but must have at least {SMALLEST} pixels each way")


def _size(pixels: NDArray[np.uint8]) -> str:
    return f"{pixels.shape[1]}x{pixels.shape[0]}"


def _check_values(mask_file: Path, mask: NDArray[np.uint8], num_classes: int) -> None:
    wrong = np.flatnonzero(np.bincount(mask.ravel(), minlength=256)[num_classes + 1 :]) + num_classes + 1
    if len(wrong):
        raise DataNotFoundError(
            f"the mask {mask_file} contains {', '.join(map(str, wrong[:5]))}{', ...' if len(wrong) > 5 else ''}, but "
            f"its values must be classes from 0 to {num_classes - 1}, or {num_classes} for void: map others to "
            f"{num_classes}"
        )
