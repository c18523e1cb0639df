"""What a classifier's report says of runs that leave little to measure."""

import warnings

import torch

from composer_ls.diagnostics.calibration import fit_temperature
from composer_ls.lab.tasks.classification.report import METRICS, REPORT, best_temperature


def test_a_network_that_is_always_right_has_no_best_temperature():
    labels = torch.arange(60) % 3
    right = {"logits": 2.0 * torch.nn.functional.one_hot(labels, 3).double(), "labels": labels}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert REPORT.temperature(right) is None
        measured = {metric.key: metric.compute(right) for metric in METRICS}
    assert measured["accuracy"] == 1
    assert measured["ece_scaled"] < 1e-6
    wrong = {**right, "labels": torch.where(torch.arange(60) < 6, (labels + 1) % 3, labels)}
    assert 0.5 < REPORT.temperature(wrong) < 2


def test_a_network_that_masks_a_class_has_a_best_temperature():
    logits, labels = torch.randn(60, 4, generator=torch.Generator().manual_seed(0)), torch.arange(60) % 3
    logits[range(60), labels] += 2
    logits[:, 3] = -torch.inf
    assert best_temperature(logits, labels) == fit_temperature(logits, labels)
    assert best_temperature(logits, labels + 1) is None
    assert best_temperature(logits.fill_(torch.nan), labels) is None
