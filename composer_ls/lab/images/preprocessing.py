"""What is done to an image before a network sees it, apart from augmentation: kept with a run, to use its network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from composer_ls.lab.images.image_files import as_seen, read_image

__all__ = ["Preprocessing"]


@dataclass(frozen=True)
class Preprocessing:
    """Resizing and normalisation. Called with the path of an image, it returns a float32 tensor ``(C, H, W)``.

    An image of Pillow is taken too, as ``Image.open`` returns it: ``convert("RGB")`` would drop transparency and clip 16 bits.

    Attributes:
        size: Height and width in pixels.
        mean: The mean of each channel, for pixels in [0, 1]. One channel means that images are grey.
        std: The standard deviation of each channel, likewise.
        crop: Whether the image is resized, in its own shape, until it just covers 8/7 of the size, and the centre cropped,
            as is usual for ImageNet. If not, the image is resized to the size, whatever its shape.

    Example:
        >>> from PIL import Image
        >>> from composer_ls.lab.images.preprocessing import Preprocessing
        >>> Preprocessing((2, 3), mean=(0.5,), std=(0.5,))(Image.new("RGB", (8, 8), "white")).tolist()
        [[[1.0, 1.0, 1.0], [1.0, 1.0, 1.0]]]

    """

    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop: bool = False

    def __call__(self, image: Image.Image | str | Path) -> Tensor:
        """The image, read as in training, as the network's input ``(C, H, W)``."""
        image = as_seen(image) if isinstance(image, Image.Image) else read_image(image)
        if len(self.mean) == 1:
            image = image.convert("L")
        transformed: Tensor = v2.Compose([*self.geometry(), *self.normalisation()])(image)
        return transformed.as_subclass(Tensor)

    def geometry(self) -> Sequence[v2.Transform]:
        """The transforms that give an image its size."""
        height, width = self.size
        if self.crop and height == width:
            return [v2.Resize(round(height * 8 / 7)), v2.CenterCrop(self.size)]
        if self.crop:
            return [_Cover((round(height * 8 / 7), round(width * 8 / 7))), v2.CenterCrop(self.size)]
        return [v2.Resize(self.size)]

    def normalisation(self) -> Sequence[v2.Transform]:
        """The transforms that make an image a normalised tensor."""
        return [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(self.mean, self.std)]

    def is_normalised_as(self, other: Preprocessing) -> bool:
        """Whether mean and standard deviation are another's, to three digits."""
        own, theirs = (*self.mean, *self.std), (*other.mean, *other.std)
        return len(own) == len(theirs) and all(abs(a - b) < 1e-3 for a, b in zip(own, theirs, strict=True))

    @property
    def normalisation_in_words(self) -> str:
        """Mean and standard deviation, for messages."""
        mean, std = (", ".join(f"{number:.3g}" for number in numbers) for numbers in (self.mean, self.std))
        return f"mean {mean} and standard deviation {std}"

    def as_dict(self) -> dict[str, Any]:
        """The same for JSON."""
        return {"size": list(self.size), "mean": list(self.mean), "std": list(self.std), "crop": self.crop}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Preprocessing:
        """The inverse of :meth:`as_dict`.

        Raises:
            ValueError: A key is missing or has another form.

        """
        try:
            height, width = (int(side) for side in content["size"])
            mean, std = (tuple(float(number) for number in content[key]) for key in ("mean", "std"))
            crop = bool(content.get("crop", False))
        except (KeyError, TypeError) as error:
            raise ValueError(f"{dict(content)!r} is no preprocessing: it needs size, mean and std") from error
        if len(mean) != len(std) or len(mean) not in (1, 3) or min(height, width) < 1:
            raise ValueError(
                f"{dict(content)!r} is no preprocessing: size is [height, width], and mean and std have one number for each "
                f"channel, 1 or 3"
            )
        return cls((height, width), mean, std, crop)


class _Cover(v2.Transform):
    """Resizes an image, in its own shape, to the smallest size that covers a height and width."""

    def __init__(self, size: tuple[int, int]) -> None:
        super().__init__()
        self.size = size

    def forward(self, image: Any) -> Any:
        height, width = F.get_size(image)
        scale = max(self.size[0] / height, self.size[1] / width)
        return F.resize(image, [max(self.size[0], round(height * scale)), max(self.size[1], round(width * scale))])
