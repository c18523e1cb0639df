"""The calibration of each class's probability, and the parts of the Brier score."""

import numpy as np
import pytest
import torch

from composer_ls.diagnostics.calibration import brier_score
from composer_ls.diagnostics.classwise import brier_decomposition, classwise_calibration_error
from composer_ls.errors import DiagnosticsError


@pytest.fixture
def predictions():
    generator = torch.Generator().manual_seed(0)
    return 2 * torch.randn(500, 4, generator=generator), torch.randint(0, 4, (500,), generator=generator)


def test_a_probability_of_one_is_in_the_last_bin():
    logits = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.95, 0.05], [0.95, 0.05]]).double().log().clamp(min=-1e4)
    # Class 0: 0.975 for what is 0.5. Class 1: 0.025 for what is 0.5.
    assert classwise_calibration_error(logits, torch.tensor([0, 0, 1, 1])) == pytest.approx(0.475)


def test_nan_logits_are_refused():
    logits, labels = torch.full((4, 3), torch.nan), torch.zeros(4).long()
    for function in (classwise_calibration_error, brier_decomposition):
        with pytest.raises(DiagnosticsError, match="logits of 4 of 4 examples are not finite"):
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
    with pytest.raises(
        DiagnosticsError, match=r"labels must be in \[0, 3\) for logits of shape \(4, 3\), but go from 0 to 3"
    ):
        classwise_calibration_error(torch.zeros(4, 3), torch.arange(4))
