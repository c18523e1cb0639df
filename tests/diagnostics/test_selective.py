"""Risk and coverage against closed forms, and against all orders of ties."""

import itertools

import pytest
import torch

from composer_ls.diagnostics.selective import aurc, log_odds, risk_coverage


def mean_risk(right):
    """The mean risk over all coverages when the examples are accepted in this order."""
    wrong = torch.tensor([not one for one in right]).double().cumsum(0)
    return (wrong / torch.arange(1, len(right) + 1)).mean().item()


def test_all_right_is_no_risk_and_all_wrong_is_all_risk():
    scores = torch.rand(20)
    assert aurc(scores, torch.ones(20, dtype=torch.bool)) == 0
    assert aurc(scores, torch.zeros(20, dtype=torch.bool)) == 1


def test_a_perfect_ranking_has_the_closed_form():
    scores, right = torch.arange(100.0).flip(0), torch.arange(100) < 80
    assert aurc(scores, right) == pytest.approx(sum((j - 80) / j for j in range(81, 101)) / 100)
    curve = risk_coverage(scores, right)
    assert curve.risk[79] == 0
    assert (curve.coverage[-1], curve.risk[-1]) == (1, 0.2)


def test_a_score_that_says_nothing_has_the_error_rate():
    right = torch.rand(50, generator=torch.Generator().manual_seed(0)) < 0.7
    assert aurc(torch.zeros(50), right) == pytest.approx(1 - right.double().mean().item())
    assert risk_coverage(torch.zeros(50), right).coverage.tolist() == [1]


def test_ties_count_as_the_mean_over_their_orders():
    scores = torch.tensor([3.0, 2.0, 2.0, 2.0, 1.0])
    right = [False, True, False, True, False]
    orders = [mean_risk([right[0], *middle, right[4]]) for middle in itertools.permutations(right[1:4])]
    assert aurc(scores, torch.tensor(right)) == pytest.approx(sum(orders) / len(orders))


def test_the_order_of_the_data_does_not_matter():
    generator = torch.Generator().manual_seed(3)
    scores = torch.randint(5, (200,), generator=generator).double()
    right = torch.rand(200, generator=generator) < 0.6
    order = torch.randperm(200, generator=generator)
    assert aurc(scores, right) == pytest.approx(aurc(scores[order], right[order]), rel=1e-12)
    for one, other in zip(risk_coverage(scores, right), risk_coverage(scores[order], right[order]), strict=True):
        assert torch.equal(one, other)


def test_log_odds_are_those_of_the_largest_probability():
    logits = torch.randn(50, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    largest = logits.softmax(1).amax(1)
    torch.testing.assert_close(log_odds(logits), (largest / (1 - largest)).log())


def test_confidence_that_rounds_to_one_still_ranks():
    logits = torch.tensor([[80.0, 0.0], [90.0, 0.0], [70.0, 0.0]])
    assert logits.double().softmax(1).amax(1).tolist() == [1, 1, 1]
    assert aurc(log_odds(logits), torch.tensor([True, True, False])) == pytest.approx(1 / 9)


@pytest.mark.parametrize("function", [risk_coverage, aurc])
def test_what_has_no_order_is_refused(function):
    with pytest.raises(ValueError, match="1 of 2 scores are NaN"):
        function(torch.tensor([1.0, torch.nan]), torch.tensor([True, False]))
    with pytest.raises(ValueError, match=r"but are \(2,\) and \(3,\)"):
        function(torch.ones(2), torch.ones(3))
    with pytest.raises(ValueError, match="N of at least 1"):
        function(torch.ones(0), torch.ones(0))
