"""Images held in memory as bytes, from which whole batches are made, cropped and flipped by tensor operations."""

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
    """A data set of images as bytes on one device, which returns whole batches.

    Args:
        images: uint8 ``(N, H, W, C)``. Channels beyond those of ``mean`` are cropped along but are not pixels.
        mean: The mean of each channel, for pixels in [0, 1].
        std: The standard deviation of each channel, likewise.
        white: The byte value that stands for 1.
        device: The device of the images and the batches.

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
        """The indices as a tensor on the device, copied without synchronising."""
        if not self.images.is_cuda:
            return torch.tensor(indices)
        return torch.tensor(indices, pin_memory=True).to(self.images.device, non_blocking=True)

    def normalised(self, images: Tensor) -> Tensor:
        """Bytes ``(B, H, W, C)`` as normalised float32 pixels ``(B, C, H, W)``."""
        pixels = images[..., : len(self._mean)].permute(0, 3, 1, 2)
        pixels = pixels.to(torch.float32, memory_format=torch.contiguous_format)
        return pixels.mul_(1 / self.white).sub_(self._mean).div_(self._std)

    @abstractmethod
    def finished(self, images: Tensor, at: Tensor) -> Batch:
        """The batch made from some bytes, cropped and flipped or not, and from their positions in the data set."""


class MemoryImages(InMemory):
    """Images with one label each.

    Args:
        images: uint8 ``(N, H, W, C)``.
        labels: int64 ``(N,)``.
        mean: The mean of each channel, for pixels in [0, 1].
        std: The standard deviation of each channel, likewise.
        white: The byte value that stands for 1.
        device: The device of the images and the batches.

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
    """Images with one label per pixel. The label maps are cropped and flipped with the images.

    Args:
        images: uint8 ``(N, H, W, C)``.
        maps: uint8 ``(N, H, W)``, classes.
        void: The value in ``maps`` of pixels without a class. In batches these, and the padding of crops, have label
            -100, which losses ignore.
        mean: The mean of each channel, for pixels in [0, 1].
        std: The standard deviation of each channel, likewise.
        device: The device of the images and the batches.

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
        # The map becomes another channel, so that it is cropped with the pixels. Classes are raised by 1, because crops
        # pad with 0, which must mean no class.
        raised = torch.where(maps == void, 0, maps + 1).unsqueeze(-1)
        super().__init__(torch.cat([images.to(torch.uint8), raised], -1), **options)

    def label_counts(self, num_classes: int) -> Tensor:
        """The number of pixels of each class, ``(num_classes,)``."""
        raised = self.images[..., -1].flatten()
        return torch.bincount(raised, minlength=num_classes + 1)[1:].cpu()

    def finished(self, images: Tensor, at: Tensor) -> Batch:
        """Pixels ``(B, C, H, W)`` and labels ``(B, H, W)``."""
        labels = images[..., -1].long() - 1
        return self.normalised(images), labels.masked_fill_(labels < 0, -100)


class CropFlip(Dataset[Batch]):
    """Images in memory with random shifts and horizontal flips, drawn anew in every epoch.

    The augmentation of an image depends only on the seed, the epoch and the image's index: not on the batch, the number
    of processes, or any other use of random numbers.

    Args:
        images: The images.
        padding: The largest shift in pixels. The border is filled with black.
        seed: The seed of the shifts and flips.

    """

    def __init__(self, images: InMemory, padding: int, seed: int) -> None:
        self.images, self.padding, self.seed = images, padding, seed
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Draw the shifts and flips of an epoch."""
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
    """Pad each image with zeros, crop a window of the original size from it, and flip it where ``flips`` is true.

    Args:
        images: ``(B, H, W, C)``, of any dtype.
        tops: The first row of each window, int64 ``(B,)`` in ``[0, 2 * padding]``.
        lefts: The first column of each window, likewise.
        flips: Which images to flip horizontally, bool ``(B,)``.
        padding: Rows and columns of zeros on each side.

    Returns:
        ``(B, H, W, C)``, equal to ``torchvision.transforms.RandomCrop(padding=padding)`` followed by
        ``RandomHorizontalFlip`` with the same random choices.

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
