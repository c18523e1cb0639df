"""What a classifier's report says of runs that leave little to measure."""

import warnings

import torch

from composer_ls.lab.tasks.classification.report import METRICS, REPORT


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
