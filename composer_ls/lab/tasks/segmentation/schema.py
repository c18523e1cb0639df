"""The recipe sections of segmentation: data and network."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from composer_ls.lab.recipe.recipe import TaskSchema
from composer_ls.lab.recipe.sections import DataSection, Integer, ModelSection, Truth

__all__ = ["SCHEMA", "SegmentationData", "SegmentationModel"]


class SegmentationData(DataSection):
    """The images and label maps to train and test on."""

    name: Literal["camvid"] = Field(description="where they come from")
    root: str = Field("data", description="folder with train and test, each with images and masks")
    batch_size: Integer = Field(8, ge=1, description="images per optimizer step, over all processes")
    augmentation: Literal["none", "crop_flip"] = Field(
        "none", description="crop_flip: shifts by up to an eighth of the height, and flips"
    )


class SegmentationModel(ModelSection):
    """The segmentation network to train, from scratch."""

    name: Literal["unet"] = Field(description="unet: for images of 16x16 pixels or more")
    width: Integer = Field(32, ge=1, description="channels at half resolution; each of 3 downsamplings doubles them")
    channels_last: Truth = Field(False, description="use PyTorch's channels_last memory format, which is often faster")


SCHEMA = TaskSchema(
    "segmentation", SegmentationData, SegmentationModel, losses=("cross_entropy", "dice", "cross_entropy+dice")
)
