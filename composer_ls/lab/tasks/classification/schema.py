"""Classification's part of a recipe: its data, its networks, and what can be watched while training."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

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
]  # fmt: skip


class LabelNoise(Section):
    """Training labels that are wrong on purpose."""

    rate: Number = Field(ge=0, le=1, description="probability that a label is changed")
    pairs: dict[Integer, Integer] | None = Field(
        None, description="from classes to those that they are mistaken for; null: any class for any other"
    )
    seed: Seed = Field(0, description="of the choice, whatever the run's seed")


class ClassificationData(DataSection):
    """Which images to train and test on."""

    name: Literal["digits", "cifar10", "cifar100", "imagefolder"] = Field(description="where the images come from")
    root: str = Field("data", description="folder of the data; digits needs none")
    download: Truth = Field(False, description="fetch cifar10 or cifar100 into root if they are not there")
    batch_size: Integer = Field(128, ge=1, description="examples in one optimizer step, over all processes")
    image_size: Integer | None = Field(None, ge=1, description="height and width for imagefolder, pixels")
    augmentation: Literal["none", "crop_flip", "resized_crop"] = Field(
        "none", description="crop_flip: shifts of 4 pixels and mirroring (CIFAR); resized_crop: as for ImageNet"
    )
    validation: HeldOut | None = Field(
        None,
        description="training images to hold out: how many, or a fraction of them; the same fraction of each class",
    )
    examples: Integer | None = Field(
        None,
        ge=1,
        description="how many of the other training images to train on, equally many of each class; null: all",
    )
    split_seed: Seed = Field(0, description="of these two choices, whatever the run's seed")
    label_noise: LabelNoise | None = Field(None, description="change some training labels at random")
    in_memory: Literal["auto", True, False] = Field(
        "auto", description="decode all images once and make batches on the device; auto: if they take at most 2 GiB"
    )
    workers: Integer = Field(
        0, ge=0, description="processes that load what is not in memory, for each training process"
    )


class ClassificationModel(ModelSection):
    """Which network to train, from scratch."""

    name: ModelName = Field(
        description="mlp and cnn for digits; alexnet, resnet9 and resnet20 to 110 for CIFAR; resnet18 to 152 for ImageNet"
    )
    channels_last: Truth = Field(False, description="keep the channels of a pixel together in memory: often faster")


class MutualInformation(Section):
    """Whether the logits still tell single training examples apart (Müller et al., 2019, section 4)."""

    classes: list[Integer] = Field(
        [0, 1], min_length=2, max_length=2, description="the two whose logits' difference is looked at"
    )
    examples: Integer = Field(600, ge=2, description="training examples, half of each class")
    draws: Integer = Field(6, ge=2, description="augmentations of each: one draw, and the others for its mean")
    shift: Integer | None = Field(None, ge=0, description="largest shift, pixels; null: an eighth of the height")
    mirror: Truth | None = Field(None, description="whether to mirror at random; null: unless the images are digits")


class Diagnostics(Section):
    """What is watched while training, and kept for composer-ls diagnose."""

    interval: WholeDuration | None = Field(None, description="how often; null: after each evaluation")
    examples: Integer = Field(1000, ge=1, description="of the training images, and of the test images, at most")
    classes: list[Integer] = Field(
        [0, 1, 2],
        min_length=3,
        max_length=3,
        description="the three that are projected; 100 examples of each are among those looked at",
    )
    layer: str | None = Field(
        None, description="the name of the layer that makes the logits; null: the last linear one"
    )
    mutual_information: MutualInformation | None = Field(None, description="measure it too, where images are in memory")


SCHEMA = TaskSchema("classification", ClassificationData, ClassificationModel, diagnostics=Diagnostics)
