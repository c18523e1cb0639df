"""The recipe sections of classification: data, networks, and diagnostics during training."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from composer_ls.lab.recipe.recipe import TaskSchema
from composer_ls.lab.recipe.sections import (
    DataSection,
    Integer,
    ModelSection,
    Number,
    Section,
    Seed,
    Truth,
    WholeDuration,
    number_in_words,
)

__all__ = ["SCHEMA", "ClassificationData", "ClassificationModel", "Diagnostics", "LabelNoise", "MutualInformation"]


def _count_or_fraction(value: Any) -> Any:
    value = number_in_words(value)
    if (isinstance(value, int) and value >= 1) or (isinstance(value, float) and 0 < value < 1):
        return value
    raise ValueError("it must be a whole number of images, such as 500, or a fraction of them, such as 0.1")


HeldOut = Annotated[int | float, BeforeValidator(_count_or_fraction)]
ModelName = Literal[
    "mlp", "cnn", "alexnet", "resnet9",
    "resnet20", "resnet32", "resnet44", "resnet56", "resnet110",
    "resnet18", "resnet34", "resnet50", "resnet101", "resnet152",
    "target",
]  # fmt: skip
LIBRARY_NAME = r"(torchvision|timm)/[A-Za-z0-9][A-Za-z0-9_.-]*"
LibraryName = Annotated[str, Field(pattern=f"^{LIBRARY_NAME}$")]


def _module_and_function(value: str) -> str:
    module, colon, function = value.partition(":")
    if not colon or not all(part.isidentifier() for part in (*module.split("."), *function.split("."))):
        raise ValueError("a target is a module and a function in it, such as my_package.nets:make")
    return value


Target = Annotated[str, AfterValidator(_module_and_function)]
OF_EVERY_TARGET = frozenset({"name", "target", "arguments", "batch_size", "workers"})


def _is_target(content: Mapping[str, Any]) -> bool:
    return content.get("name") is None and content.get("target") is not None


def _named_target(content: Any) -> Any:
    """Let ``target`` stand for ``name: target`` too."""
    if not isinstance(content, Mapping) or content.get("target") is None:
        return content
    if content.get("name") not in (None, "target"):
        raise ValueError(f"it has both name: {content['name']} and target: {content['target']}: leave one of them out")
    return {**content, "name": "target"}


class LabelNoise(Section):
    """Training labels that are changed at random on purpose."""

    rate: Number = Field(ge=0, le=1, description="probability that a label is changed")
    pairs: dict[Integer, Integer] | None = Field(
        None,
        description="which class replaces which, as class: class; null: any other class. Class numbers count the sorted folders "
        "from 0",
    )
    seed: Seed = Field(0, description="seed of the choice, independent of the run's seed")


class ClassificationData(DataSection):
    """The images to train and test on."""

    name: Literal["digits", "cifar10", "cifar100", "imagefolder", "target"] = Field(
        description="where the images come from"
    )
    root: str = Field("data", description="folder of the data; not needed for digits")
    download: Truth = Field(False, description="download cifar10 or cifar100 to root if it is missing")
    batch_size: Integer = Field(128, ge=1, description="examples per optimizer step, over all processes")
    image_size: Integer | None = Field(
        None,
        ge=1,
        description="height and width in pixels, except for digits; null: 32 for CIFAR, what pretrained weights expect, or "
        "32 or 224 by the augmentation",
    )
    augmentation: Literal["none", "crop_flip", "resized_crop"] = Field(
        "none", description="crop_flip: shifts by up to 4 pixels and flips (CIFAR); resized_crop: as for ImageNet"
    )
    validation: HeldOut | None = Field(
        None,
        description="training images to hold out: a number, or a fraction; the same fraction of each class",
    )
    examples: Integer | None = Field(
        None,
        ge=1,
        description="number of the other training images to train on, the same number of each class; null: all",
    )
    split_seed: Seed = Field(0, description="seed of these two choices, independent of the run's seed")
    label_noise: LabelNoise | None = Field(None, description="change some training labels at random")
    in_memory: Literal["auto", True, False] = Field(
        "auto", description="decode all images once and make batches on the device; auto: if they take at most 2 GiB"
    )
    workers: Integer = Field(0, ge=0, description="processes that load images not in memory, per training process")
    target: Target | None = Field(
        None, description="your own function, as my_package.data:loaders; the recipe then runs its code"
    )
    arguments: dict[str, Any] = Field({}, description="of the target")

    _named_target = model_validator(mode="before")(_named_target)

    @classmethod
    def claims(cls, content: Mapping[str, Any]) -> bool:
        """Names of this task, and a target without a name."""
        return _is_target(content) or super().claims(content)

    @model_validator(mode="after")
    def _is_whole(self) -> ClassificationData:
        if self.name == "target" and self.target is None:
            raise ValueError("name: target needs a target, as target: my_package.data:loaders")
        if self.name != "target" and self.arguments:
            raise ValueError("arguments are for a target: leave them out")
        fields = type(self).model_fields
        set_ = [key for key in fields if key not in OF_EVERY_TARGET and getattr(self, key) != fields[key].default]
        if self.name == "target" and set_:
            raise ValueError(
                f"{', '.join(set_)} {'is' if len(set_) == 1 else 'are'} for images that composer_ls reads: leave "
                f"{'it' if len(set_) == 1 else 'them'} out, and do it in {self.target}"
            )
        return self

    @property
    def called(self) -> str:
        """The name for people."""
        return self.target or self.name


class ClassificationModel(ModelSection):
    """The network to train."""

    name: ModelName | LibraryName = Field(
        description="mlp and cnn for digits; alexnet, resnet9 and resnet20 to 110 for CIFAR; resnet18 to 152 for "
        "ImageNet; torchvision/NAME; timm/NAME"
    )
    target: Target | None = Field(
        None, description="your own function, as my_package.nets:make; the recipe then runs its code"
    )
    arguments: dict[str, Any] = Field({}, description="of the target, or of the function in torchvision or timm")
    weights: str | None = Field(
        None,
        description="weights to begin with: a .safetensors or .pt file; default: those of torchvision or timm, "
        "downloaded; null: new ones",
    )
    freeze: Literal["backbone"] | None = Field(None, description="backbone: train the last layer only")
    channels_last: Truth = Field(False, description="use PyTorch's channels_last memory format, which is often faster")

    _named_target = model_validator(mode="before")(_named_target)

    @classmethod
    def claims(cls, content: Mapping[str, Any]) -> bool:
        """Names of this task, the networks of torchvision and timm, and a target without a name."""
        name = content.get("name")
        library = isinstance(name, str) and re.fullmatch(LIBRARY_NAME, name) is not None
        return library or _is_target(content) or super().claims(content)

    @model_validator(mode="after")
    def _is_whole(self) -> ClassificationModel:
        library = "/" in self.name
        if self.name == "target" and self.target is None:
            raise ValueError("name: target needs a target, as target: my_package.nets:make")
        if self.arguments and self.name != "target" and not library:
            raise ValueError(
                f"{self.name} takes no arguments: leave them out, or use a target, torchvision/NAME or timm/NAME"
            )
        if self.weights == "default" and not library:
            raise ValueError(
                f"weights=default are those of torchvision and timm, and {self.called} has none: use torchvision/NAME or "
                f"timm/NAME, or the file of your weights"
            )
        return self

    @property
    def called(self) -> str:
        """The name for people."""
        return self.target or self.name


class MutualInformation(Section):
    """Whether the logits still tell single training examples apart (Müller et al., 2019, section 4)."""

    classes: list[Integer] = Field(
        [0, 1],
        min_length=2,
        max_length=2,
        description="the two classes whose difference of logits is measured; class numbers count the sorted folders from 0",
    )
    examples: Integer = Field(600, ge=2, description="training examples, half of each class")
    draws: Integer = Field(6, ge=2, description="augmentations per example: one draw, and the others for its mean")
    shift: Integer | None = Field(None, ge=0, description="largest shift in pixels; null: an eighth of the height")
    mirror: Truth | None = Field(None, description="whether to flip at random; null: yes, except for digits")


class Diagnostics(Section):
    """Measurements during training, kept for composer-ls diagnose."""

    interval: WholeDuration | None = Field(None, description="how often; null: after each evaluation")
    examples: Integer = Field(1000, ge=1, description="at most this many training images and as many test images")
    classes: list[Integer] = Field(
        [0, 1, 2],
        min_length=2,
        max_length=3,
        description="the three classes to project, or two; the images include up to 100 of each; class "
        "numbers count the sorted folders from 0",
    )
    layer: str | None = Field(
        None, description="name of the layer that computes the logits; null: the last linear layer"
    )
    mutual_information: MutualInformation | None = Field(None, description="measure it too; needs images in memory")

    def classes_of(self, num_classes: int) -> list[int]:
        """The classes to project of so many; of two, the default means both."""
        return self.classes[:2] if num_classes == 2 and self.classes == [0, 1, 2] else self.classes


SCHEMA = TaskSchema("classification", ClassificationData, ClassificationModel, diagnostics=Diagnostics)
