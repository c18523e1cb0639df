"""The online prior against a loop over examples in float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import SPATIAL, Allocations, generators
from torch.nn import functional as F
from torch.testing import assert_close

from composer_ls import cross_entropy, smooth_labels
from composer_ls.kernels import VARIABLE
from composer_ls.smoothing import online, online_prior, right_predictions


def by_loop(logits, labels):
    """The sums, example by example, from the definition."""
    classes = logits.shape[1]
    sums = torch.zeros(classes, classes, dtype=torch.float64)
    rows = logits.double().movedim(1, -1).reshape(-1, classes)
    for row, label in zip(rows, labels.reshape(-1).tolist(), strict=True):
        if label == row.argmax().item():
            sums[label] += row.softmax(0)
    return sums


def problem(generator, spatial, num_classes=4, examples=6):
    logits = torch.randn(examples, num_classes, *spatial, generator=generator)
    labels = torch.randint(num_classes, (examples, *spatial), generator=generator)
    right = torch.rand(labels.shape, generator=generator) < 0.5
    labels = torch.where(right, logits.argmax(1), labels)
    return logits, labels.masked_fill(torch.rand(labels.shape, generator=generator) < 0.2, -100)


@settings(deadline=None)
@given(generators(), st.sampled_from(SPATIAL[1:]), st.sampled_from([1 << 20, 8, 3]))
def test_sums_are_of_right_predictions_only_in_chunks_of_every_size(generator, spatial, chunk):
    logits, labels = problem(generator, spatial)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(online, "CHUNK", chunk)
        sums = right_predictions(logits, labels)
        assert_close(sums, by_loop(logits, labels), rtol=1e-6, atol=1e-6)
        assert_close(right_predictions(logits, labels, into=sums.clone()), 2 * sums)


@settings(deadline=None)
@given(generators(), st.sampled_from(SPATIAL[1:]))
def test_one_hot_rows_and_soft_targets_count_as_their_labels(generator, spatial):
    logits, labels = problem(generator, spatial)
    expected = right_predictions(logits, labels)
    rows = (F.one_hot(labels.clamp(0), 4) * (labels != -100).unsqueeze(-1)).movedim(-1, 1)
    assert torch.equal(right_predictions(logits, rows), expected)
    for smoothing in (0.0, 0.3):
        assert torch.equal(right_predictions(logits, smooth_labels(logits, labels, smoothing)), expected)


def test_a_mixed_example_counts_once_for_the_label_that_is_predicted():
    logits = torch.tensor([[2.0, 0.0, 0.0], [2.0, 0.0, 0.0], [0.0, 0.0, 2.0]])
    first, second = torch.tensor([0, 1, 1]), torch.tensor([0, 0, 0])
    expected = right_predictions(logits[:2], torch.tensor([0, 0]))
    assert torch.equal(right_predictions(logits, [first, second]), expected)
    mixed = 0.8 * smooth_labels(logits, first, 0.1) + 0.2 * smooth_labels(logits, second, 0.1)
    assert torch.equal(right_predictions(logits, mixed), expected)
    rows = 0.8 * F.one_hot(first, 3) + 0.2 * F.one_hot(second, 3)
    assert torch.equal(right_predictions(logits, rows), expected)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("classes", [2, 2000])
def test_logits_that_are_not_finite_are_never_right(value, classes):
    logits = torch.zeros(3, classes)
    logits[:2, 0], logits[2, 0] = value, 1.0
    right = right_predictions(logits[2:], torch.tensor([0]))
    assert_close(right_predictions(logits, torch.tensor([0, 1, 0])), right)
    logits[0, :] = -float("inf")
    assert_close(right_predictions(logits, torch.tensor([0, 1, 0])), right)


def test_nothing_is_right_without_targets():
    assert right_predictions(torch.ones(2, 3), []).tolist() == [[0.0] * 3] * 3


def test_the_prior_is_the_mean_and_uniform_without_any_right_prediction():
    sums = torch.tensor([[1.5, 0.5], [0.0, 0.0]], dtype=torch.float64)
    assert_close(online_prior(sums), torch.tensor([[0.75, 0.25], [0.5, 0.5]]))
    assert_close(online_prior(torch.eye(3)).sum(1), torch.ones(3))


@pytest.mark.parametrize("chunk", [1, 7, 1000])
def test_the_prior_is_computed_in_parts(chunk, monkeypatch):
    sums = torch.rand(7, 7, dtype=torch.float64)
    sums[3] = 0
    whole = online_prior(sums)
    monkeypatch.setattr(online, "CHUNK", chunk)
    torch.testing.assert_close(online_prior(sums), whole, rtol=0, atol=0)
    torch.testing.assert_close(whole.sum(1), torch.ones(7))
    assert whole[3].tolist() == [pytest.approx(1 / 7)] * 7


def test_an_ignored_label_among_the_classes_does_not_count():
    logits = torch.tensor([[2.0, 0.0], [2.0, 0.0]])
    assert right_predictions(logits, torch.tensor([0, 0]), ignore_index=0).sum() == 0
    assert right_predictions(logits, torch.tensor([0, 0]), ignore_index=None).sum() == pytest.approx(2)


@pytest.mark.parametrize("kernel", ["eager", "composite"])
def test_the_loss_is_the_papers_mean_of_a_hard_and_a_soft_one(kernel, monkeypatch):
    monkeypatch.setenv(VARIABLE, kernel)
    generator = torch.Generator().manual_seed(0)
    for spatial in SPATIAL[1:]:
        logits, labels = problem(generator, spatial, examples=20)
        prior = online_prior(right_predictions(logits, labels), torch.float64)
        x = logits.double().requires_grad_()
        loss = cross_entropy(x, smooth_labels(x, labels, 0.5, prior=prior))
        counted = labels != -100
        log = x.log_softmax(1).movedim(1, -1)[counted]
        soft = -(prior[labels[counted]] * log).sum(-1).mean()
        expected = 0.5 * F.nll_loss(log, labels[counted]) + 0.5 * soft
        assert_close(loss, expected)
        assert_close(*(torch.autograd.grad(one, x)[0] for one in (loss, expected)))


def test_counting_makes_nothing_as_large_as_the_logits():
    logits, labels = torch.randn(4096, 1024), torch.randint(1024, (4096,))
    sums = torch.zeros(1024, 1024, dtype=torch.float64)
    with Allocations(logits.nbytes, (logits, sums)) as made:
        right_predictions(logits, labels, into=sums)
    assert made.count == 0
