"""Scores of tokens, kept batch by batch, give what the diagnostics of classifiers give at once."""

import math

import pytest
import torch

from composer_ls.diagnostics.calibration import (
    accuracy,
    expected_calibration_error,
    negative_log_likelihood,
    reliability_bins,
)
from composer_ls.diagnostics.tokens import (
    perplexity,
    token_accuracy,
    token_bins,
    token_calibration_error,
    token_nll,
    token_scores,
)


def test_metrics_of_tokens_are_those_of_the_diagnostics_at_each_temperature():
    torch.manual_seed(0)
    batches = []
    for places in (5, 9, 3):
        labels = torch.randint(11, (4, places))
        labels[0, places // 2 :] = -100
        batches.append((torch.randn(4, 11, places) * 2, labels))
    flat = torch.cat([logits.movedim(1, -1)[labels != -100] for logits, labels in batches])
    labels = torch.cat([labels[labels != -100] for _, labels in batches])
    for temperature, found in zip((1.0, 2.5), token_scores(iter(batches), (1.0, 2.5)), strict=True):
        scaled = flat / temperature
        assert len(found.correct) == len(labels)
        assert token_nll(found) == pytest.approx(negative_log_likelihood(scaled, labels), rel=1e-6)
        assert perplexity(found) == pytest.approx(math.exp(token_nll(found)))
        assert token_calibration_error(found) == pytest.approx(expected_calibration_error(scaled, labels), abs=1e-6)
        assert token_accuracy(found) == accuracy(flat, labels)
        for mine, theirs in zip(token_bins(found), reliability_bins(scaled, labels), strict=True):
            assert torch.allclose(mine, theirs, atol=1e-6, equal_nan=True)


def test_a_network_that_has_diverged_has_no_calibration_and_is_no_reason_to_fail():
    (scores,) = token_scores([(torch.full((1, 4, 2), math.nan), torch.tensor([[1, 2]]))])
    metrics = (token_nll, perplexity, token_calibration_error, token_accuracy)
    assert all(math.isnan(metric(scores)) for metric in metrics)
    (scores,) = token_scores([(torch.tensor([[[0.0], [1e4]]]), torch.tensor([[0]]))])
    assert perplexity(scores) == math.inf


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_masked_token_and_half_precision_leave_the_scores_of_the_others(dtype):
    logits, labels = torch.randn(3, 6, 5).to(dtype), torch.randint(6, (3, 5), dtype=torch.int32)
    masked = torch.cat([logits, torch.full((3, 1, 5), -math.inf, dtype=dtype)], 1)
    for mine, theirs in zip(
        token_scores([(masked, labels)], (1, 3)), token_scores([(logits.float(), labels)], (1, 3)), strict=True
    ):
        for one, other in zip(mine, theirs, strict=True):
            torch.testing.assert_close(one, other)


@pytest.mark.parametrize("batches", [[], [(torch.zeros(1, 4, 2), torch.full((1, 2), -100))]])
def test_nothing_but_padding_is_refused(batches):
    with pytest.raises(ValueError, match="no tokens to score: give at least one whose label is not -100"):
        token_scores(batches)
