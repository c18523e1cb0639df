"""Calibration metrics against computations by hand."""

import warnings

import numpy as np
import pytest
import torch

from composer_ls.diagnostics.calibration import (
    accuracy,
    brier_score,
    cross_fit_temperature,
    expected_calibration_error,
    fit_temperature,
    negative_log_likelihood,
    reliability_bins,
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


def certain(rows):
    """Logits that give the wanted probabilities."""
    return torch.tensor(rows, dtype=torch.float64).log().clamp(min=-1e4)


def test_the_last_bin_holds_a_confidence_of_one():
    logits = certain([[1.0, 0.0], [1.0, 0.0], [0.95, 0.05], [0.95, 0.05]])
    labels = torch.tensor([0, 0, 1, 1])
    bins = reliability_bins(logits, labels)
    assert bins.counts.tolist() == [0.0] * 14 + [4.0]
    assert bins.confidence[14].item() == pytest.approx(0.975)
    assert bins.accuracy[14].item() == 0.5
    assert expected_calibration_error(logits, labels) == pytest.approx(0.475, abs=1e-6)


def test_bins_sum_to_the_calibration_error_and_empty_ones_are_nan(predictions):
    logits, labels = predictions
    bins = reliability_bins(logits, labels)
    full = bins.counts > 0
    assert full.tolist() == bins.confidence.isfinite().tolist() == bins.accuracy.isfinite().tolist()
    assert not full.all()
    assert bins.counts.sum() == 500
    error = (bins.counts * (bins.confidence - bins.accuracy).abs())[full].sum().item() / 500
    assert error == pytest.approx(expected_calibration_error(logits, labels), abs=1e-6)


def test_the_calibration_error_is_that_of_torchmetrics_where_no_confidence_is_one(predictions):
    logits, labels = predictions
    peer = pytest.importorskip("torchmetrics.functional.classification")
    theirs = peer.multiclass_calibration_error(logits.double().softmax(1), labels, 4, n_bins=15, norm="l1").item()
    assert expected_calibration_error(logits, labels) == pytest.approx(theirs, abs=1e-6)
    assert np.isnan(expected_calibration_error(logits * torch.nan, labels))


def test_an_edge_belongs_to_the_bin_above_it():
    assert reliability_bins(torch.zeros(1, 2), torch.tensor([0]), bins=4).counts.tolist() == [0, 0, 1, 0]
    assert reliability_bins(torch.zeros(1, 4), torch.tensor([0]), bins=4).counts.tolist() == [0, 1, 0, 0]


@pytest.mark.parametrize("temperature", [0.05, 0.3, 1.0, 2.5, 30.0])
def test_logits_drawn_with_a_known_temperature_give_it_back(temperature):
    generator = torch.Generator().manual_seed(1)
    calibrated = 2 * torch.randn(40_000, 5, generator=generator, dtype=torch.float64)
    labels = torch.multinomial(calibrated.softmax(1), 1, generator=generator)[:, 0]
    assert fit_temperature(calibrated * temperature, labels) == pytest.approx(temperature, rel=0.02)


def test_the_temperature_is_exact_where_it_is_known_in_closed_form():
    # Two classes, a gap of g, right in a fraction r: the best temperature is g / log(r / (1 - r)).
    for gap, right in ((3.0, 7), (0.1, 9), (40.0, 6)):
        logits = torch.tensor([[gap, 0.0]], dtype=torch.float64).repeat(10, 1)
        labels = (torch.arange(10) >= right).long()
        expected = gap / np.log(right / (10 - right))
        assert fit_temperature(logits, labels) == pytest.approx(expected, rel=1e-6)


def test_the_temperature_minimises_the_likelihood(predictions):
    logits, labels = predictions
    labels = torch.where(torch.arange(500) % 3 == 0, labels, logits.argmax(1))
    best = fit_temperature(logits, labels)
    losses = [negative_log_likelihood(logits / (best * factor), labels) for factor in (0.99, 1.0, 1.01)]
    assert min(losses) == losses[1]


def test_a_temperature_that_runs_away_stops_at_its_bound():
    logits = torch.tensor([[2.0, 0.0], [0.0, 5.0]])
    right, wrong = torch.tensor([0, 1]), torch.tensor([1, 0])
    with pytest.warns(
        UserWarning, match="beyond the bound 0.01, which is returned instead: every example, or nearly, is right"
    ):
        assert fit_temperature(logits, right) == 0.01
    with pytest.warns(UserWarning, match="beyond the bound 100, which is returned instead: the logits say nothing"):
        assert fit_temperature(logits, wrong) == 100
    with pytest.warns(UserWarning, match="beyond the bound 2, .*bounds= changes it"):
        assert fit_temperature(logits, wrong, bounds=(0.5, 2)) == 2
    with pytest.warns(UserWarning, match="beyond the bound 0.01"):
        assert fit_temperature(1e30 * logits, right) == 0.01
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert fit_temperature(torch.zeros(3, 4), torch.tensor([0, 1, 2])) == 1  # every temperature is as good
        assert 0.5 < fit_temperature(torch.tensor([[1.0, 0.0]] * 4), torch.tensor([0, 0, 0, 1])) < 2
    with pytest.raises(ValueError, match=r"bounds must be two temperatures, the lower first, but are \(2, 1\)"):
        fit_temperature(logits, torch.tensor([0, 1]), bounds=(2, 1))


def test_no_example_is_scaled_by_a_temperature_that_saw_its_label(predictions):
    logits, labels = predictions
    scaled, (odd, even) = cross_fit_temperature(logits, labels)
    assert odd == fit_temperature(logits[1::2], labels[1::2])
    assert even == fit_temperature(logits[0::2], labels[0::2])
    torch.testing.assert_close(scaled[0::2] * odd, logits[0::2].double())
    torch.testing.assert_close(scaled[1::2] * even, logits[1::2].double())
    with pytest.raises(ValueError, match="at least two examples"):
        cross_fit_temperature(logits[:1], labels[:1])


def test_scaling_mends_over_confidence():
    generator = torch.Generator().manual_seed(1)
    calibrated = 2 * torch.randn(4000, 5, generator=generator)
    labels = torch.multinomial(calibrated.softmax(1), 1, generator=generator)[:, 0]
    sure = 3 * calibrated
    assert expected_calibration_error(sure, labels) > 0.1
    assert expected_calibration_error(cross_fit_temperature(sure, labels).logits, labels) < 0.03


@pytest.mark.parametrize("function", [reliability_bins, fit_temperature, cross_fit_temperature])
def test_what_cannot_be_measured_is_refused(function):
    logits, labels = torch.zeros(3, 2), torch.zeros(3, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"logits of 1 of 3 examples are not finite"):
        function(logits.index_fill(0, torch.tensor([1]), torch.nan), labels)
    with pytest.raises(
        ValueError, match=r"labels must be in \[0, 2\) for logits of shape \(3, 2\), but go from 0 to 2"
    ):
        function(logits, torch.tensor([0, 1, 2]))
    with pytest.raises(ValueError, match=r"but are \(3, 2\) and \(2,\)"):
        function(logits, labels[:2])
    with pytest.raises(ValueError, match=r"N of at least 1"):
        function(logits[:0], labels[:0])


def test_a_label_whose_class_is_masked_has_no_temperature_and_an_infinite_likelihood():
    logits, labels = torch.tensor([[1.0, -torch.inf, 0.0], [0.0, 1.0, 0.5]]), torch.tensor([1, 1])
    assert negative_log_likelihood(logits, labels) == np.inf
    assert accuracy(logits, labels) == 0.5
    with pytest.raises(ValueError, match="1 of 2 labels are of a class that is masked by -inf"):
        fit_temperature(logits, labels)


@pytest.mark.parametrize("row", [[torch.nan, 0.0], [torch.nan, torch.nan], [-torch.inf, -torch.inf]])
def test_logits_that_predict_nothing_have_no_accuracy_and_no_calibration_error(row):
    logits, labels = torch.tensor([[1.0, 0.0], row]), torch.tensor([0, 0])
    for function in (accuracy, negative_log_likelihood, brier_score, expected_calibration_error):
        assert np.isnan(function(logits, labels))
        assert np.isfinite(function(logits, torch.tensor([0, -100])))  # unless the row does not count
