"""Images held in memory as bytes, and whole batches of them, cropped and flipped by tensor operations."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset

__all__ = ["CropFlip", "InMemory", "MemoryImages", "MemoryLabelMaps", "crop_flip"]

Batch = tuple[Tensor, Tensor]


class InMemory(Dataset[Batch], ABC):
    """Images as bytes on one device, of which whole batches are made at once.

    Args:
        images: uint8 ``(N, H, W, C)``; channels after those that ``mean`` names go along and are no part of the pixels.
        mean: Of each channel, where pixels run from 0 to 1.
        std: Likewise.
        white: The byte that counts as 1.
        device: Where to hold them, and so where batches are made.

    """

    def __init__(
        self,
        images: Tensor,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        white: int = 255,
        device: torch.device | str = "cpu",
    ) -> None:
        self.images = images.to(device)
        self.white = white
        self._mean = torch.tensor(mean, device=device).view(-1, 1, 1)
        self._std = torch.tensor(std, device=device).view(-1, 1, 1)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Batch:
        images, labels = self.__getitems__([index])
        return images[0], labels[0]

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        """The examples as one batch: float32 ``(B, C, H, W)`` and int64 labels."""
        at = self.positions(indices)
        return self.finished(self.images[at], at)

    def positions(self, indices: Sequence[int]) -> Tensor:
        """The indices on the device, which nobody waits for."""
        if not self.images.is_cuda:
            return torch.tensor(indices)
        return torch.tensor(indices, pin_memory=True).to(self.images.device, non_blocking=True)

    def normalised(self, images: Tensor) -> Tensor:
        """Floats ``(B, C, H, W)`` of bytes ``(B, H, W, C)``."""
        pixels = images[..., : len(self._mean)].permute(0, 3, 1, 2)
        pixels = pixels.to(torch.float32, memory_format=torch.contiguous_format)
        return pixels.mul_(1 / self.white).sub_(self._mean).div_(self._std)

    @abstractmethod
    def finished(self, images: Tensor, at: Tensor) -> Batch:
        """The batch of some bytes, cut and mirrored or not, which stand at these positions."""


class MemoryImages(InMemory):
    """Images and a label each.

    Args:
        images: uint8 ``(N, H, W, C)``.
        labels: int64 ``(N,)``.
        mean: Of each channel, where pixels run from 0 to 1.
        std: Likewise.
        white: The byte that counts as 1.
        device: Where to hold them, and so where batches are made.

    Example:
        >>> import torch
        >>> from composer_ls.lab.images.memory_images import MemoryImages
        >>> images = MemoryImages(torch.full((4, 2, 2, 3), 255), torch.arange(4), mean=(0.5,) * 3, std=(0.5,) * 3)
        >>> pixels, labels = images.__getitems__([3, 1])  # as a DataLoader does
        >>> pixels.shape, pixels.unique().item(), labels.tolist()
        (torch.Size([2, 3, 2, 2]), 1.0, [3, 1])

    """

    def __init__(self, images: Tensor, labels: Tensor, **options: Any) -> None:
        super().__init__(images, **options)
        self.labels = labels.to(self.images.device)

    def finished(self, images: Tensor, at: Tensor) -> Batch:
        """Pixels ``(B, C, H, W)`` and labels ``(B,)``."""
        return self.normalised(images), self.labels[at]


class MemoryLabelMaps(InMemory):
    """Images and a label for each of their pixels, which are cut and mirrored with them.

    Args:
        images: uint8 ``(N, H, W, C)``.
        maps: uint8 ``(N, H, W)``, classes.
        void: The value in ``maps`` of pixels that have no class. In batches they have label -100, which losses ignore, and
            so has what a crop brings in.
        mean: Of each channel, where pixels run from 0 to 1.
        std: Likewise.
        device: Where to hold them, and so where batches are made.

    Example:
        >>> import torch
        >>> from composer_ls.lab.images.memory_images import MemoryLabelMaps
        >>> maps = torch.tensor([[[0, 1, 11]]], dtype=torch.uint8)
        >>> images = MemoryLabelMaps(torch.zeros(1, 1, 3, 3), maps, 11, mean=(0.5,) * 3, std=(0.5,) * 3)
        >>> pixels, labels = images.__getitems__([0])
        >>> pixels.shape, labels.tolist()
        (torch.Size([1, 3, 1, 3]), [[[0, 1, -100]]])

    """

    def __init__(self, images: Tensor, maps: Tensor, void: int, **options: Any) -> None:
        # The map is one more channel, one up, so that it is cut with the pixels and what comes in, 0, is no class.
        raised = torch.where(maps == void, 0, maps + 1).unsqueeze(-1)
        super().__init__(torch.cat([images.to(torch.uint8), raised], -1), **options)

    def label_counts(self, num_classes: int) -> Tensor:
        """How many pixels are of each class, ``(num_classes,)``."""
        raised = self.images[..., -1].flatten()
        return torch.bincount(raised, minlength=num_classes + 1)[1:].cpu()

    def finished(self, images: Tensor, at: Tensor) -> Batch:
        """Pixels ``(B, C, H, W)`` and labels ``(B, H, W)``."""
        labels = images[..., -1].long() - 1
        return self.normalised(images), labels.masked_fill_(labels < 0, -100)


class CropFlip(Dataset[Batch]):
    """Images in memory, each shifted and every second one mirrored, anew in every epoch.

    What happens to an image follows from the seed, the epoch and its index, and from nothing else: not from the
    batch that it is in, nor from the number of processes, nor from any other use of random numbers.

    Args:
        images: The images.
        padding: The largest shift, pixels; what comes in is black.
        seed: Of the shifts and mirrorings.

    """

    def __init__(self, images: InMemory, padding: int, seed: int) -> None:
        self.images, self.padding, self.seed = images, padding, seed
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Draw the shifts and mirrorings of an epoch."""
        generator = np.random.default_rng([self.seed, epoch])
        device = self.images.images.device
        corners = generator.integers(0, 2 * self.padding + 1, (2, len(self)))
        self.tops, self.lefts = torch.from_numpy(corners).to(device)
        self.flips = torch.from_numpy(generator.random(len(self)) < 0.5).to(device)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Batch:
        images, labels = self.__getitems__([index])
        return images[0], labels[0]

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        """The examples as one batch: float32 ``(B, C, H, W)`` and int64 labels."""
        at = self.images.positions(indices)
        pixels = crop_flip(self.images.images[at], self.tops[at], self.lefts[at], self.flips[at], self.padding)
        return self.images.finished(pixels, at)


def crop_flip(images: Tensor, tops: Tensor, lefts: Tensor, flips: Tensor, padding: int) -> Tensor:
    """Pad each image with zeros, cut its own window of the old size out of it, and mirror that where told.

    Args:
        images: ``(B, H, W, C)``, of any dtype.
        tops: The first row of each window, int64 ``(B,)`` in ``[0, 2 * padding]``.
        lefts: The first column, likewise.
        flips: Which images to mirror, bool ``(B,)``.
        padding: Rows and columns of zeros on each side.

    Returns:
        ``(B, H, W, C)``, what ``torchvision.transforms.RandomCrop(padding=padding)`` and then ``RandomHorizontalFlip``
        make with the same choices.

    Example:
        >>> import torch
        >>> from composer_ls.lab.images.memory_images import crop_flip
        >>> images = torch.tensor([[1, 2], [3, 4]]).view(1, 2, 2, 1)
        >>> crop_flip(images, torch.tensor([1]), torch.tensor([0]), torch.tensor([False]), padding=1).squeeze()
        tensor([[0, 1],
                [0, 3]])

    """
    batch, height, width, channels = images.shape
    padded = F.pad(images, (0, 0, padding, padding, padding, padding))
    image, row, column, channel = padded.stride()
    places = 2 * padding + 1
    windows = padded.as_strided(
        (batch, places, places, height, width, channels), (image, row, column, row, column, channel)
    )
    cropped = windows[torch.arange(batch, device=images.device), tops, lefts]
    return torch.where(flips.view(-1, 1, 1, 1), cropped.flip(2), cropped)
