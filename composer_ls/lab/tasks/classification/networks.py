"""The networks for classification recipes, without pretrained weights."""

from __future__ import annotations

import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from composer_ls.errors import RecipeError

__all__ = ["CifarResNet", "build_model"]


def build_model(name: str, image_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
    """A network from images ``(N, C, H, W)`` to logits ``(N, num_classes)``.

    Args:
        name: ``mlp``, ``cnn``, ``alexnet``, ``resnet9``, ``resnet20`` to ``resnet110`` (CIFAR), or ``resnet18`` to
            ``resnet152`` (torchvision).
        image_shape: (C, H, W).
        num_classes: K.

    Raises:
        RecipeError: The images do not have the three channels that torchvision's networks need, or are smaller than the 8
            pixels that resnet9 needs.

    Example:
        >>> import torch
        >>> from composer_ls.lab.tasks.classification.networks import build_model
        >>> build_model("resnet20", (3, 32, 32), 10)(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])

    """
    channels, height, width = image_shape
    if name == "mlp":
        return mlp(channels * height * width, num_classes)
    if name == "cnn":
        return cnn(channels, num_classes)
    if name == "alexnet":
        return cifar_alexnet((channels, height, width), num_classes)
    if name == "resnet9":
        if min(height, width) < 8:
            raise RecipeError(
                f"model.name=resnet9 halves images three times, so they need at least 8 pixels each way, but these have "
                f"{height}x{width}: use a larger data.image_size or another model.name"
            )
        return ResNet9(channels, num_classes)
    if name in CIFAR_DEPTHS:
        return CifarResNet(CIFAR_DEPTHS[name], channels, num_classes)
    if channels != 3:
        raise RecipeError(
            f"model.name={name} takes images of 3 channels, but these have {channels}: "
            f"use model.name=mlp, cnn, alexnet, resnet9, or one of {', '.join(CIFAR_DEPTHS)}"
        )
    return getattr(torchvision.models, name)(num_classes=num_classes)


CIFAR_DEPTHS = {f"resnet{depth}": depth for depth in (20, 32, 44, 56, 110)}


def mlp(inputs: int, num_classes: int, width: int = 256) -> nn.Module:
    """A network with two hidden layers, for small images."""
    hidden = [nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU()]
    return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(width, num_classes))


def cnn(channels: int, num_classes: int, width: int = 32) -> nn.Module:
    """A network with three convolutions and global average pooling, for small images."""
    layers: list[nn.Module] = []
    for inputs, outputs in ((channels, width), (width, 2 * width), (2 * width, 4 * width)):
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4 * width, num_classes))


def cifar_alexnet(image_shape: tuple[int, int, int], num_classes: int) -> nn.Sequential:
    """The small AlexNet for 32x32 images: two convolutions with response normalisation, two dense layers.

    The layers are those of TensorFlow's CIFAR-10 tutorial, after Krizhevsky's cuda-convnet. Müller et al., 2019, do not
    describe their network, but their training settings and accuracy (86.8 %) match that tutorial. The penultimate layer
    has 192 units.

    Args:
        image_shape: (C, H, W).
        num_classes: K.

    References:
        https://code.google.com/archive/p/cuda-convnet and https://arxiv.org/abs/1906.02629

    """
    channels, height, width = image_shape

    def normalised() -> nn.LocalResponseNorm:
        return nn.LocalResponseNorm(9, alpha=0.001, beta=0.75, k=1.0)

    def pooled() -> nn.MaxPool2d:
        return nn.MaxPool2d(3, stride=2, padding=1)

    convolutions = [
        *(nn.Conv2d(channels, 64, 5, padding=2), nn.ReLU(), pooled(), normalised()),
        *(nn.Conv2d(64, 64, 5, padding=2), nn.ReLU(), normalised(), pooled()),
    ]
    pixels = -(-height // 4) * -(-width // 4)  # each pooling halves the size and rounds up
    dense = [nn.Linear(64 * pixels, 384), nn.ReLU(), nn.Linear(384, 192), nn.ReLU(), nn.Linear(192, num_classes)]
    return nn.Sequential(*convolutions, nn.Flatten(), *dense).apply(_initialise)


class ResNet9(nn.Module):
    """The nine-layer residual network of Page's DAWNBench entry for CIFAR-10: 94 % accuracy in 24 epochs.

    Args:
        channels: Channels of the images.
        num_classes: K.

    References:
        https://github.com/davidcpage/cifar10-fast

    """

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            _convolved(channels, 64),
            *(_convolved(64, 128), nn.MaxPool2d(2), _Residual(128)),
            *(_convolved(128, 256), nn.MaxPool2d(2)),
            *(_convolved(256, 512), nn.MaxPool2d(2), _Residual(512)),
        )
        self.classifier = nn.Linear(512, num_classes, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``(N, num_classes)`` of images ``(N, channels, H, W)``."""
        return self.classifier(self.layers(images).amax((2, 3))) * 0.125


class _Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(_convolved(channels, channels), _convolved(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


def _convolved(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(_conv(inputs, outputs), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


class CifarResNet(nn.Module):
    """The residual network of He et al., 2016, section 4.2, for 32x32 images: three stages of n blocks, 6n + 2 layers.

    Shortcuts have no weights: they skip every other pixel and pad the new channels with zeros (option A in the paper).

    Args:
        depth: 20, 32, 44, 56 or 110.
        channels: Channels of the images.
        num_classes: K.

    References:
        https://arxiv.org/abs/1512.03385

    """

    def __init__(self, depth: int, channels: int, num_classes: int) -> None:
        super().__init__()
        blocks = (depth - 2) // 6
        self.stem = nn.Sequential(_conv(channels, 16), nn.BatchNorm2d(16), nn.ReLU())
        stages: list[nn.Module] = []
        for inputs, outputs in ((16, 16), (16, 32), (32, 64)):
            for index in range(blocks):
                stages.append(_Block(inputs if index == 0 else outputs, outputs))
        self.blocks = nn.Sequential(*stages)
        self.classifier = nn.Linear(64, num_classes)
        self.apply(_initialise)

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``(N, num_classes)`` of images ``(N, channels, 32, 32)``."""
        return self.classifier(self.blocks(self.stem(images)).mean((2, 3)))


class _Block(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.stride, self.padding = (1, 0) if inputs == outputs else (2, outputs - inputs)
        self.conv1, self.norm1 = _conv(inputs, outputs, self.stride), nn.BatchNorm2d(outputs)
        self.conv2, self.norm2 = _conv(outputs, outputs), nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.padding))
        return F.relu(self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x))))) + shortcut)


def _conv(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        torch.nn.init.kaiming_normal_(module.weight, mode="fan_out")
