"""Counts of pixels, and the metrics that follow, against torchmetrics and the metrics of rows."""

import math

import pytest
import torch

from composer_ls.diagnostics.calibration import accuracy, expected_calibration_error, negative_log_likelihood
from composer_ls.diagnostics.pixels import (
    PixelCounts,
    count_pixels,
    mean_iou,
    pixel_accuracy,
    pixel_calibration_error,
    pixel_nll,
)

K = 5
METRICS = [mean_iou, pixel_accuracy, pixel_nll, pixel_calibration_error]


@pytest.fixture
def maps():
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(6, K, 9, 7, generator=generator)
    labels = torch.randint(0, K - 1, (6, 9, 7), generator=generator)
    labels[torch.rand(6, 9, 7, generator=generator) < 0.2] = -100
    labels[2] = -100
    return logits, labels


def test_they_are_the_metrics_of_the_pixels_that_count(maps):
    logits, labels = maps
    counts = count_pixels(logits, labels)
    counted = labels >= 0
    rows, classes = logits.movedim(1, -1)[counted], labels[counted]
    assert pixel_accuracy(counts) == pytest.approx(accuracy(rows, classes))
    assert pixel_nll(counts) == pytest.approx(negative_log_likelihood(rows, classes), rel=1e-6)
    assert pixel_calibration_error(counts) == pytest.approx(expected_calibration_error(rows, classes), rel=1e-5)
    peer = pytest.importorskip("torchmetrics.functional.classification")
    theirs = peer.multiclass_jaccard_index(logits, labels, K, ignore_index=-100)
    assert mean_iou(counts) == pytest.approx(theirs.item(), rel=1e-6)


def test_a_class_that_never_occurs_does_not_count(maps):
    logits, labels = maps
    logits = torch.cat([logits, torch.full_like(logits[:, :1], -99.0)], 1)
    assert mean_iou(count_pixels(logits, labels)) == mean_iou(count_pixels(logits[:, :K], labels))


def test_counts_of_batches_are_those_of_the_whole(maps):
    logits, labels = maps
    whole, parts = (
        count_pixels(logits, labels),
        [count_pixels(*pair) for pair in zip(logits.split(4), labels.split(4), strict=True)],
    )
    for name in PixelCounts._fields:
        assert torch.equal(getattr(whole, name), torch.cat([getattr(part, name) for part in parts]))
    assert whole.confusion[2].sum() == 0


def test_logits_that_are_not_finite_show(maps):
    logits, labels = maps
    logits[2] = math.nan  # whose pixels are all ignored
    assert all(math.isfinite(metric(count_pixels(logits, labels))) for metric in METRICS)
    logits[0, 0, 0] = math.nan
    assert all(math.isnan(metric(count_pixels(logits, labels))) for metric in METRICS)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_logits_give_the_counts_of_the_same_numbers_in_float32(maps, dtype):
    logits, labels = maps
    counts, expected = (count_pixels(x, labels.int()) for x in (logits.to(dtype), logits.to(dtype).float()))
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(counts, expected, strict=True))


@pytest.mark.parametrize("scale", [1e-4, 1e-7])
def test_logits_that_differ_by_little_have_the_predictions_of_the_logits(scale):
    logits = torch.randn(2, 150, 16, 16, generator=torch.Generator().manual_seed(0)) * scale
    assert pixel_accuracy(count_pixels(logits, logits.argmax(1))) == 1


def test_counts_of_nothing_have_the_dtypes_of_any():
    some, none = (count_pixels(torch.randn(2, 3, 4), torch.full((2, 4), label)) for label in (1, -100))
    assert [part.dtype for part in some] == [part.dtype for part in none]
