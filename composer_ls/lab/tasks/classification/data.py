"""Loads the images and labels for classification recipes."""

from __future__ import annotations

import functools
import pickle
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from composer.utils import dist
from numpy.typing import NDArray
from PIL import Image
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as transforms

from composer_ls.errors import DataNotFoundError, RecipeError
from composer_ls.lab.images.decoded_cache import decoded
from composer_ls.lab.images.image_files import ENDINGS, ImageTree, is_hidden, left_out
from composer_ls.lab.images.label_noise import noisy_labels, relabel
from composer_ls.lab.images.loaders import IMAGENET_MEAN, IMAGENET_STD, Splits, labels_of, unaugmented
from composer_ls.lab.images.memory_images import MemoryImages
from composer_ls.lab.images.preprocessing import Preprocessing
from composer_ls.lab.images.subsets import divide, subset
from composer_ls.lab.tasks.classification.own_data import own_splits
from composer_ls.lab.tasks.classification.schema import ClassificationData, LabelNoise

__all__ = ["load_splits"]

MEMORY_LIMIT = 2 * 1024**3  # bytes; above this, data.in_memory=auto reads the files again in every epoch


def load_splits(
    data: ClassificationData, device: torch.device | str = "cpu", pretrained: Preprocessing | None = None
) -> Splits:
    """Open the data of a recipe.

    Args:
        data: The data section of the recipe.
        device: The device for images that are held in memory.
        pretrained: What pretrained weights expect: mean and standard deviation of images of three channels, and the size of
            a folder of images whose recipe has no ``image_size``. Data with another normalisation of its own gets a caution.

    Raises:
        DataNotFoundError: The data is not at ``data.root``; the message says where we looked and what to change.
        RecipeError: ``data.in_memory``, ``data.validation`` or ``data.examples`` asks for something impossible, or the weights
            are for images that are not square and there is no ``data.image_size``.

    """
    if data.name == "target":
        splits = own_splits(data)
    elif data.name == "digits":
        splits = _digits(data, device)
    else:
        splits = (_image_folder if data.name == "imagefolder" else _cifar)(data, device, pretrained)
    if data.validation is not None or data.examples is not None:
        splits = _divided(splits, data)
    if data.label_noise is not None:
        splits = _with_noise(splits, data.label_noise)
    more = [*_normalisation_cautions(data, splits, pretrained), *_number_cautions(data, splits.classes)]
    return replace(splits, cautions=(*splits.cautions, *more))


def _normalisation_cautions(data: ClassificationData, splits: Splits, pretrained: Preprocessing | None) -> list[str]:
    """A caution if the images are not known to be normalised as pretrained weights expect; none for grey images of colour weights."""
    if pretrained is None or len(pretrained.mean) != splits.image_shape[0]:
        return []
    if splits.preprocessing is None:
        return [
            f"It is not known whether the images of {data.called} are normalised as model.weights expects "
            f'({pretrained.normalisation_in_words}): let the function return "preprocessing" too.'
        ]
    if splits.preprocessing.is_normalised_as(pretrained):
        return []
    return [
        f"The images of {data.called} are not normalised as model.weights expects: by "
        f"{splits.preprocessing.normalisation_in_words} instead of {pretrained.normalisation_in_words}."
    ]


def _number_cautions(data: ClassificationData, classes: Sequence[str]) -> list[str]:
    """A caution if classes have whole numbers as names that are out of order, or that pairs of label noise may be confused with."""
    numbers = [int(name) for name in classes if name.isdecimal()]
    in_use = data.label_noise is not None and data.label_noise.pairs
    if len(numbers) < len(classes) or numbers == (list(range(len(numbers))) if in_use else sorted(numbers)):
        return []
    one = next(number for number, own in enumerate(numbers) if number != own)
    return [
        f"The classes are named by numbers, but not by their own: class number {one} is {classes[one]}, because classes "
        f"count from 0, and folders are sorted as text. data.label_noise.pairs and the classes of diagnostics are class numbers."
    ]


def _divided(splits: Splits, data: ClassificationData) -> Splits:
    """Hold out the validation part, and keep as many of the other training examples as the recipe asks for."""
    held_out, kept = divide(
        labels_of(splits.train), splits.num_classes, data.validation, data.examples, data.split_seed
    )
    train = subset(splits.train, kept)
    if data.validation is None:
        return replace(splits, train=train)
    return replace(splits, train=train, validation=subset(unaugmented(splits.train, splits.test), held_out))


def _with_noise(splits: Splits, noise: LabelNoise) -> Splits:
    labels = labels_of(splits.train)
    wrong = noisy_labels(labels, splits.num_classes, noise.rate, noise.pairs, noise.seed)
    relabel(splits.train, wrong)
    return replace(splits, wrong_labels=(wrong != labels).double().mean().item())


def _held_in_memory(data: ClassificationData, images: int, size: int) -> bool:
    """Whether to decode all images at the start and hold them as bytes of three channels."""
    if data.augmentation == "resized_crop":
        if data.in_memory is True:
            raise RecipeError(
                "data.in_memory=true does not work with data.augmentation=resized_crop, which takes its crops from the "
                "original images: use data.in_memory=auto, or data.augmentation=crop_flip"
            )
        return False
    return images * size * size * 3 <= MEMORY_LIMIT if data.in_memory == "auto" else data.in_memory


def _digits(data: ClassificationData, device: torch.device | str) -> Splits:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    if data.in_memory is False or data.augmentation == "resized_crop":
        key = "data.in_memory=false" if data.in_memory is False else "data.augmentation=resized_crop"
        raise RecipeError(f"{key} does not work with data.name=digits, which is always in memory: leave it out")
    images, labels = load_digits(return_X_y=True)
    parts = train_test_split(images, labels, test_size=360, random_state=0, stratify=labels)
    train_images, test_images = (torch.tensor(part, dtype=torch.uint8).view(-1, 8, 8, 1) for part in parts[:2])
    train_labels, test_labels = (torch.tensor(part, dtype=torch.int64) for part in parts[2:])
    pixels = train_images.float() / 16
    preprocessing = Preprocessing((8, 8), (pixels.mean().item(),), (pixels.std().item(),))
    make = functools.partial(MemoryImages, mean=preprocessing.mean, std=preprocessing.std, white=16, device=device)
    train, test = make(train_images, train_labels), make(test_images, test_labels)
    return Splits(train, test, 10, (1, 8, 8), tuple(str(digit) for digit in range(10)), preprocessing=preprocessing)


CIFAR_MEAN, CIFAR_STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


def _cifar(data: ClassificationData, device: torch.device | str, pretrained: Preprocessing | None) -> Splits:
    source, folder, num_classes = {
        "cifar10": (torchvision.datasets.CIFAR10, "cifar-10-batches-py", 10),
        "cifar100": (torchvision.datasets.CIFAR100, "cifar-100-python", 100),
    }[data.name]
    place = Path(data.root).expanduser() / folder
    if not place.is_dir() and not data.download:
        raise DataNotFoundError(
            f"{data.name} is not at {place.absolute()}: add data.download=true to download it (170 MB), "
            f"data.root=DIR if it is elsewhere, or data.name=imagefolder data.root=DIR for images in train/<class> "
            f"and test/<class>"
        )
    size = data.image_size or 32
    mean, std = (pretrained.mean, pretrained.std) if pretrained else (CIFAR_MEAN, CIFAR_STD)
    preprocessing = Preprocessing((size, size), mean, std, crop=data.augmentation == "resized_crop")
    train_transform, test_transform = _transforms(data, preprocessing)
    root = Path(data.root).expanduser()
    with dist.run_local_rank_zero_first():
        download = data.download and dist.get_local_rank() == 0  # the others find it there
        try:
            train = source(root, train=True, transform=train_transform, download=download)
            test = source(root, train=False, transform=test_transform, download=download)
        except (RuntimeError, OSError, EOFError, pickle.UnpicklingError) as error:
            reason, remedy = (
                (f"could not be downloaded to {place.absolute()}", "download it by hand")
                if data.download
                else (f"at {place.absolute()} is not complete", "add data.download=true to download it again (170 MB)")
            )
            raise DataNotFoundError(
                f"{data.name} {reason} ({error}): {remedy}, or set data.root=DIR if it is elsewhere"
            ) from error
    classes = tuple(train.classes)
    if _held_in_memory(data, 60_000, size):
        train, test = (
            MemoryImages(_at_size(split.data, size), torch.tensor(split.targets), mean=mean, std=std, device=device)
            for split in (train, test)
        )
    return Splits(train, test, num_classes, (3, size, size), classes, preprocessing=preprocessing)


def _at_size(images: NDArray[np.uint8], size: int) -> torch.Tensor:
    """Images ``(N, H, W, C)``, resized one by one, which is what reading them from disk does."""
    if images.shape[1] == size:
        return torch.from_numpy(images)
    resized = [np.asarray(transforms.resize(Image.fromarray(image), [size, size])) for image in images]
    return torch.from_numpy(np.stack(resized))


def _image_folder(data: ClassificationData, device: torch.device | str, pretrained: Preprocessing | None) -> Splits:
    root = Path(data.root).expanduser()
    if data.image_size is None and pretrained is not None and pretrained.size[0] != pretrained.size[1]:
        raise RecipeError(
            f"model.weights expects images of {pretrained.size[0]} by {pretrained.size[1]} pixels, but those in a folder become "
            f"square: choose a size with data.image_size={max(pretrained.size)}"
        )
    expected = pretrained.size[0] if pretrained else 224 if data.augmentation == "resized_crop" else 32
    size = data.image_size or expected
    usual = (IMAGENET_MEAN, IMAGENET_STD) if size > 64 else (CIFAR_MEAN, CIFAR_STD)
    mean, std = (pretrained.mean, pretrained.std) if pretrained else usual
    preprocessing = Preprocessing((size, size), mean, std, crop=data.augmentation == "resized_crop")
    folders = [_split_folder(root, names) for names in (("train",), ("test", "val"))]
    train: Any
    test: Any
    try:
        train, test = (
            ImageTree(folder, transform)
            for folder, transform in zip(folders, _transforms(data, preprocessing), strict=True)
        )
    except FileNotFoundError as error:
        raise DataNotFoundError(
            f"a class folder in {root.absolute()} holds no images ({error}): fill it with files that end in "
            f"{', '.join(ENDINGS)}, or delete it in both splits, or set data.root=DIR to another tree"
        ) from error
    if train.classes != test.classes:
        odd = sorted(set(train.classes) ^ set(test.classes))
        raise DataNotFoundError(
            f"{folders[0]} and {folders[1]} must hold the same classes, but {', '.join(odd[:5])} is in only one of them"
        )
    classes = tuple(train.classes)
    if len(classes) < 2:
        raise DataNotFoundError(
            f"{folders[0].absolute()} holds one class folder, {classes[0]}, but classification needs at least two: add "
            f"another, or set data.root=DIR to another tree"
        )
    cautions = tuple(left_out(train.unread + test.unread))
    if _held_in_memory(data, len(train) + len(test), size):
        with dist.run_local_rank_zero_first():  # the others find the images in the cache
            images = decoded(root, [file for file, _ in train.samples + test.samples], size)
        train, test = (
            MemoryImages(part, torch.tensor(split.targets), mean=mean, std=std, device=device)
            for part, split in zip(images.split([len(train), len(test)]), (train, test), strict=True)
        )
    shape = (3, size, size)
    return Splits(train, test, len(classes), shape, classes, preprocessing=preprocessing, cautions=cautions)


def _split_folder(root: Path, names: tuple[str, ...]) -> Path:
    for name in names:
        folder = root / name
        if folder.is_dir() and any(entry.is_dir() and not is_hidden(entry) for entry in folder.iterdir()):
            return folder
    raise DataNotFoundError(
        f"there are no class folders in {(root / names[0]).absolute()}: imagefolder expects images in "
        f"data.root/train/<class>/ and data.root/test/<class>/; set data.root=DIR to the folder that holds both"
    )


def _transforms(data: ClassificationData, preprocessing: Preprocessing) -> tuple[v2.Compose, v2.Compose]:
    """The transforms of training images and of test images."""
    size, finish = preprocessing.size[0], preprocessing.normalisation()
    if data.augmentation == "resized_crop":
        test = v2.Compose([*preprocessing.geometry(), *finish])
        return v2.Compose([v2.RandomResizedCrop(size), v2.RandomHorizontalFlip(), *finish]), test
    fit = [] if data.name.startswith("cifar") and size == 32 else preprocessing.geometry()
    vary = (
        [v2.RandomCrop(size, padding=size // 8), v2.RandomHorizontalFlip()] if data.augmentation == "crop_flip" else []
    )
    return v2.Compose([*fit, *vary, *finish]), v2.Compose([*fit, *finish])
