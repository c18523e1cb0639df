"""The metrics and curves of segmentation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from composer_ls.diagnostics.pixels import (
    PixelCounts,
    mean_iou,
    pixel_accuracy,
    pixel_bins,
    pixel_calibration_error,
    pixel_nll,
)
from composer_ls.lab.tasks.metric import ACCURACY, ECE, NLL, Metric, Predictions
from composer_ls.lab.tasks.task_report import Curve, TaskReport

__all__ = ["METRICS", "REPORT"]


def _of_pixels(function: Callable[[PixelCounts], float]) -> Callable[[Predictions], float]:
    return lambda predictions: function(PixelCounts(**predictions))


METRICS = (
    Metric(
        key="mean_iou",
        name="mIoU",
        meaning="Intersection over union of each class over all test images, averaged over the classes that occur.",
        higher_is_better=True,
        worth=0.5,
        unit="points",
        scale=100,
        digits=2,
        highest=1,
        compute=_of_pixels(mean_iou),
        result_unit="fraction",
    ),
    replace(
        ACCURACY,
        meaning="The fraction of test pixels whose most probable class is the label.",
        compute=_of_pixels(pixel_accuracy),
        result_unit="fraction of pixels",
    ),
    replace(
        NLL,
        meaning="Mean negative log probability of the pixels' labels.",
        compute=_of_pixels(pixel_nll),
        result_unit="nats per pixel",
    ),
    replace(
        ECE,
        compute=_of_pixels(pixel_calibration_error),
    ),
)

REPORT = TaskReport(
    counted="pixels",
    metrics=METRICS,
    curves=(Curve("metrics/{part}/MulticlassJaccardIndex", "{part} mIoU"),),
    bins=lambda predictions: pixel_bins(PixelCounts(**predictions)),
    labels=lambda predictions: predictions["confusion"].sum(2),  # the number of pixels of each class in each image
)
