"""Calibration metrics against computations by hand."""

import numpy as np
import pytest
import torch

from composer_ls.diagnostics.calibration import (
    accuracy,
    brier_score,
    expected_calibration_error,
    negative_log_likelihood,
)


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
    assert expected_calibration_error(logits, labels) == 0
