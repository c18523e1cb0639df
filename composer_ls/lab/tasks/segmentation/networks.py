"""The network for segmentation recipes, without pretrained weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["UNet"]


class UNet(nn.Module):
    """The U-Net of Ronneberger et al., 2015, with batch normalisation, padded convolutions and three downsamplings.

    For speed, all of it runs at half the images' resolution or below: the first convolution has stride 2, and the
    logits are upsampled by 2 at the end.

    Args:
        channels: Channels of the images.
        num_classes: K.
        width: Channels at half resolution; each downsampling doubles them.

    Example:
        >>> import torch
        >>> from composer_ls.lab.tasks.segmentation.networks import UNet
        >>> UNet(3, 11, width=4)(torch.zeros(2, 3, 30, 41)).shape
        torch.Size([2, 11, 30, 41])

    References:
        https://arxiv.org/abs/1505.04597

    """

    def __init__(self, channels: int, num_classes: int, width: int = 32) -> None:
        super().__init__()
        widths = [width * 2**level for level in range(4)]
        self.stem = _convolved(channels, width, stride=2)
        self.down = nn.ModuleList(_convolved_twice(max(width, wide // 2), wide) for wide in widths)
        self.up = nn.ModuleList(_convolved_twice(3 * narrow, narrow) for narrow in reversed(widths[:-1]))
        self.classifier = nn.Conv2d(width, num_classes, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``(N, num_classes, H, W)`` of images ``(N, channels, H, W)``, with H and W of 16 or more."""
        x = self.stem(images)
        levels: list[Tensor] = []
        for down in self.down:
            x = down(F.max_pool2d(x, 2) if levels else x)
            levels.append(x)
        for up, level in zip(self.up, reversed(levels[:-1]), strict=True):
            x = up(torch.cat([F.interpolate(x, size=level.shape[2:]), level], 1))
        return F.interpolate(self.classifier(x), size=images.shape[2:], mode="bilinear")


def _convolved_twice(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(_convolved(inputs, outputs), _convolved(outputs, outputs))


def _convolved(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))
