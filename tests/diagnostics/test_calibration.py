"""Calibration metrics against computations by hand."""

import numpy as np
import pytest
import torch

from composer_ls.diagnostics.calibration import (
    accuracy,
    brier_decomposition,
    brier_score,
    classwise_calibration_error,
    expected_calibration_error,
    negative_log_likelihood,
)
from composer_ls.errors import DiagnosticsError


@pytest.fixture
def predictions():
    generator = torch.Generator().manual_seed(0)
    return 2 * torch.randn(500, 4, generator=generator), torch.randint(0, 4, (500,), generator=generator)


def test_ece_equals_a_computation_by_hand(predictions):
    logits, labels = predictions
    probabilities = logits.double().softmax(1).numpy()
    confidence, right = probabilities.max(1), probabilities.argmax(1) == labels.numpy()
    bins = np.ceil(confidence * 15)
    gaps = [(bins == b).sum() * abs(right[bins == b].mean() - confidence[bins == b].mean()) for b in np.unique(bins)]
    assert expected_calibration_error(logits, labels) == pytest.approx(sum(gaps) / 500, abs=1e-6)


def test_nll_and_brier_equal_a_computation_by_hand(predictions):
    logits, labels = predictions
    probabilities = logits.double().softmax(1).numpy()
    rows = np.arange(500)
    assert negative_log_likelihood(logits, labels) == pytest.approx(-np.log(probabilities[rows, labels]).mean())
    assert brier_score(logits, labels) == pytest.approx(((probabilities - np.eye(4)[labels]) ** 2).sum(1).mean())


def test_a_perfect_and_certain_classifier_scores_best():
    labels = torch.arange(4)
    logits = 1e3 * torch.eye(4)
    assert accuracy(logits, labels) == 1
    assert negative_log_likelihood(logits, labels) == brier_score(logits, labels) == 0
    assert expected_calibration_error(logits, labels) == pytest.approx(0, abs=1e-15)


def test_the_last_bin_includes_confidence_one():
    certain, nearly = torch.tensor([0.0, -100.0]), torch.tensor([0.95, 0.05]).log()
    logits = torch.stack([certain, certain, nearly, nearly]).double()
    labels = torch.tensor([0, 1, 0, 0])  # right for 3 of the 4, all of which belong to the bin from 14/15 to 1
    assert expected_calibration_error(logits, labels) == pytest.approx(abs(0.75 - (2 + 2 * 0.95) / 4))


def test_empty_bins_count_nothing():
    logits = torch.tensor([[0.6, 0.4]] * 5).log()
    assert expected_calibration_error(logits, torch.zeros(5).long(), bins=1000) == pytest.approx(0.4)


def test_nan_logits_give_nan_or_an_error_never_a_number():
    logits, labels = torch.full((4, 3), torch.nan), torch.zeros(4).long()
    assert np.isnan(expected_calibration_error(logits, labels))
    for function in (classwise_calibration_error, brier_decomposition):
        with pytest.raises(DiagnosticsError, match="12 of the 12 logits are NaN or infinite"):
            function(logits, labels)


def test_classwise_error_equals_a_computation_by_hand(predictions):
    logits, labels = predictions
    probabilities = logits.double().softmax(1).numpy()
    errors = []
    for k in range(4):
        bins = np.floor(probabilities[:, k] * 15)
        happened = labels.numpy() == k
        gaps = [
            (bins == b).sum() * abs(happened[bins == b].mean() - probabilities[bins == b, k].mean())
            for b in np.unique(bins)
        ]
        errors.append(sum(gaps) / 500)
    assert classwise_calibration_error(logits, labels) == pytest.approx(np.mean(errors))


@pytest.mark.parametrize("bins", [1, 2, 15, 400])
@pytest.mark.parametrize("scale", [0.1, 1.0, 1e3])
def test_the_parts_of_the_brier_score_add_up_to_it(predictions, bins, scale):
    logits, labels = predictions
    parts = brier_decomposition(scale * logits, labels, bins)
    total = parts.reliability - parts.resolution + parts.uncertainty
    assert total == pytest.approx(brier_score(scale * logits, labels), abs=1e-12)
    assert parts.reliability >= 0


def test_only_the_resolution_tells_a_perfect_classifier_from_one_that_foretells_frequencies():
    labels = torch.arange(100) % 4
    perfect = brier_decomposition(1e3 * torch.eye(4)[labels], labels)
    ignorant = brier_decomposition(torch.zeros(100, 4), labels)
    assert perfect == pytest.approx((0, 0.75, 0.75))
    assert ignorant == pytest.approx((0, 0, 0.75))


def test_labels_outside_of_the_classes_are_refused():
    with pytest.raises(DiagnosticsError, match=r"labels lie from 0 to 3, but logits of shape \(4, 3\)"):
        classwise_calibration_error(torch.zeros(4, 3), torch.arange(4))
