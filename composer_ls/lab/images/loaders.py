"""Data loaders for images: shuffled for training, in order for evaluation, split over processes."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from composer.utils import dist
from torch.utils.data import DataLoader, Dataset
from torch.utils.data.distributed import DistributedSampler

from composer_ls.errors import DataNotFoundError, RecipeError
from composer_ls.lab.images.epoch_sampler import EpochSampler
from composer_ls.lab.images.memory_images import CropFlip, InMemory, MemoryImages
from composer_ls.lab.images.preprocessing import Preprocessing

__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "Batches",
    "Splits",
    "evaluation_loader",
    "labels_of",
    "training_loader",
    "unaugmented",
    "workers_errors_in_words",
]

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

MOST_LEFT_OUT = 0.1
"""The largest fraction of training examples that an epoch may drop because they do not fill a batch."""


class Batches(Protocol):
    """The fields of a recipe's data section that loaders need. If images may be on disk, it also has ``workers``."""

    @property
    def batch_size(self) -> int:
        """The number of examples per optimizer step, over all processes."""

    @property
    def augmentation(self) -> str:
        """``"crop_flip"`` is applied by the loader to images in memory."""


@dataclass(frozen=True)
class Splits:
    """Training and test examples, each an image ``(C, H, W)`` with an integer label or a label map ``(H, W)``.

    ``validation`` is a held-out part of the training examples, without augmentation, if there is one.
    """

    train: Dataset[Any]
    test: Dataset[Any]
    num_classes: int
    image_shape: tuple[int, ...]
    classes: tuple[str, ...]
    wrong_labels: float = 0.0
    """The fraction of training labels that were changed on purpose."""
    validation: Dataset[Any] | None = None
    preprocessing: Preprocessing | None = None
    """How an image file becomes such an image, if that is known."""
    cautions: tuple[str, ...] = ()
    """What to be careful about in this data, in sentences."""


@contextlib.contextmanager
def workers_errors_in_words() -> Iterator[None]:
    """Remove the traceback that a loader's worker adds to the message of a DataNotFoundError."""
    try:
        yield
    except DataNotFoundError as error:
        _, worker, words = str(error).rpartition(f"{DataNotFoundError.__name__}: ")
        if not worker:
            raise
        raise DataNotFoundError(words.strip()) from error


def unaugmented(train: Dataset[Any], test: Dataset[Any]) -> Dataset[Any]:
    """The training images with the transform of the test images, without augmentation."""
    if isinstance(train, MemoryImages) or not hasattr(train, "transform"):
        return train  # the loader augments the former, and of data of the user's nothing is known
    plain = copy.copy(train)
    plain.transform = test.transform  # type: ignore[attr-defined]
    return plain


def labels_of(split: Dataset[Any]) -> torch.Tensor:
    """The labels of a split, int64 ``(N,)``, without opening any image."""
    return split.labels.cpu() if isinstance(split, MemoryImages) else torch.as_tensor(split.targets)  # type: ignore[attr-defined]


def training_loader(splits: Splits, batches: Batches, seed: int) -> DataLoader[Any]:
    """Shuffled batches of this process's share of the training examples.

    The order, and the crops and flips of images in memory, depend on the seed and the epoch only. An incomplete last batch
    is dropped, unless that would lose more than a tenth of the examples.
    """
    world = dist.get_world_size()
    if batches.batch_size % world:
        raise RecipeError(
            f"data.batch_size={batches.batch_size} cannot be split over {world} processes: make it a multiple of {world}"
        )
    examples = len(splits.train)  # type: ignore[arg-type]
    if batches.batch_size > examples:
        raise RecipeError(
            f"data.batch_size={batches.batch_size} exceeds the {examples} training examples: make it smaller"
        )
    train = splits.train
    if isinstance(train, InMemory) and batches.augmentation == "crop_flip":
        train = CropFlip(train, splits.image_shape[1] // 8, seed)
    sampler, batch_size = EpochSampler(train, seed), batches.batch_size // world
    rest = len(sampler) % batch_size
    few = rest <= MOST_LEFT_OUT * len(sampler) or rest == 1  # batch normalisation needs two
    return _loader(train, batches, batch_size, sampler, drop_last=few)


def evaluation_loader(
    splits: Splits, batches: Batches, part: Literal["test", "validation"] = "test"
) -> DataLoader[Any]:
    """Batches of all examples of a part, in order; process r of R gets examples r, r + R, r + 2R, ..."""
    world = dist.get_world_size()
    examples = splits.test if part == "test" else splits.validation
    assert examples is not None
    sampler: DistributedSampler[Any] = DistributedSampler(examples, world, dist.get_global_rank(), shuffle=False)
    return _loader(examples, batches, max(1, batches.batch_size // world), sampler, drop_last=False)


def _loader(dataset: Dataset[Any], batches: Batches, batch_size: int, sampler: Any, drop_last: bool) -> DataLoader[Any]:
    if isinstance(dataset, (InMemory, CropFlip)):
        return DataLoader(dataset, batch_size, sampler=sampler, drop_last=drop_last, collate_fn=_whole_batch)
    workers = getattr(batches, "workers", 0)
    changes = getattr(dataset, "changes_with_the_epoch", False)  # then workers must start again to learn of the epoch
    return DataLoader(
        dataset,
        batch_size=batch_size,
        sampler=sampler,
        drop_last=drop_last,
        num_workers=workers,
        collate_fn=getattr(dataset, "collate", None),
        persistent_workers=workers > 0 and not changes,
        pin_memory=torch.cuda.is_available(),
    )


def _whole_batch(batch: Any) -> Any:
    return batch  # there is nothing to collate
