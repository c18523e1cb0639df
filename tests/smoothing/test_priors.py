"""Priors: what is accepted, what is refused, and the frequencies of labels."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import generators, random_prior

from composer_ls import smooth_labels
from composer_ls.smoothing import as_prior, priors, unigram_prior


def test_no_prior_stays_none():
    assert as_prior(None, 4) is None


@given(generators(), st.integers(1, 5), st.sampled_from([1, 2]))
def test_every_distribution_is_accepted_unchanged(generator, num_classes, ndim):
    rows = random_prior(num_classes, ndim, generator)
    assert torch.equal(as_prior(rows, num_classes), rows)
    assert torch.equal(as_prior(rows), rows)


def test_lists_and_integers_become_float_tensors():
    assert as_prior([0.25, 0.75]).tolist() == [0.25, 0.75]
    one_hot = as_prior([[1, 0], [0, 1]])
    assert one_hot.dtype == torch.float32
    assert one_hot.tolist() == [[1, 0], [0, 1]]


@pytest.mark.parametrize(
    ("prior", "num_classes", "message"),
    [
        ([0.5, 0.5], 3, r"shape \(2,\), but the logits have K = 3 classes"),
        (torch.full((2, 3), 1 / 3), None, r"shape \(2, 3\), but must be a row \(K,\) or one row per class \(K, K\)"),
        (torch.tensor(1.0), None, r"shape \(\)"),
        (torch.full((1, 2, 2), 0.5), 2, r"shape \(1, 2, 2\)"),
        ([1.5, -0.5], 2, r"entry -0\.5, but a probability is never negative"),
        ([float("nan"), 1.0], 2, r"entry nan, but a probability is never negative or NaN"),
        ([float("inf"), 1.0], 2, r"sums to inf, but must sum to 1"),
        ([0.5, 0.4], 2, r"prior sums to 0\.9, but must sum to 1: divide it by its sum"),
        ([3, 1], 2, r"sums to 4"),
        ([[0.5, 0.5], [0.5, 0.6]], 2, r"row 1 of prior sums to 1\.1"),
    ],
)
def test_what_is_no_distribution_is_refused_with_the_reason(prior, num_classes, message):
    with pytest.raises(ValueError, match=message):
        as_prior(prior, num_classes)


@given(st.lists(st.integers(0, 4), min_size=1, max_size=20), st.integers(0, 5))
def test_unigram_prior_is_the_frequency_of_each_label_that_is_not_ignored(labels, ignored):
    prior = unigram_prior(torch.tensor(labels + [-100] * ignored), num_classes=5)
    assert prior.shape == (5,)
    torch.testing.assert_close(prior, torch.tensor([labels.count(c) / len(labels) for c in range(5)]))
    as_prior(prior, 5)


def test_unigram_prior_counts_label_maps_of_bytes():
    labels = torch.tensor([[156, 156], [2, 255]], dtype=torch.uint8)
    prior = unigram_prior(labels, num_classes=157, ignore_index=255)
    assert prior[156].item() == pytest.approx(2 / 3)
    assert unigram_prior(labels, num_classes=256)[156].item() == 0.5  # -100 is no byte, so nothing is ignored


def test_unigram_prior_keeps_the_ignored_class_empty():
    assert unigram_prior(torch.tensor([0, 0, 1]), num_classes=2, ignore_index=0).tolist() == [0, 1]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([-100, -100], r"nothing to count: all 2 .*ignore_index=-100"),
        ([], r"nothing to count"),
        ([0, 5], r"labels hold 5, but num_classes=3 allows 0 to 2"),
        ([0, -1], r"labels hold -1, but num_classes=3 allows 0 to 2"),
    ],
)
def test_unigram_prior_refuses_what_it_cannot_count(labels, message):
    with pytest.raises(ValueError, match=message):
        unigram_prior(torch.tensor(labels, dtype=torch.long), num_classes=3)


def test_unigram_prior_does_not_round_rows_to_labels():
    with pytest.raises(TypeError, match="labels must be integers, but their dtype is torch.float32"):
        unigram_prior(torch.tensor([[0.9, 0.1], [0.2, 0.8]]), num_classes=2)


def test_a_prior_for_each_class_is_read_once_but_for_a_row_and_again_when_it_was_changed(monkeypatch):
    rows = torch.full((4, 4), 0.25)
    prior, reads = rows.clone(), []
    read = priors._check_values
    monkeypatch.setattr(priors, "_check_values", lambda prior: reads.append(len(prior)) or read(prior))
    logits, labels = torch.zeros(2, 4), torch.tensor([1, 2])
    for _ in range(3):
        smooth_labels(logits, labels, prior=prior)
    prior[3] = -1
    for _ in range(2):
        with pytest.raises(ValueError, match="prior has an entry -1"):
            smooth_labels(logits, labels, prior=prior)
    smooth_labels(logits, labels, prior=rows.clone())
    assert reads == [4, 1, 1, 4, 4, 4]


@pytest.mark.parametrize("shape", [(4,), (4, 4)])
@pytest.mark.parametrize(
    "change",
    [
        lambda prior: prior.mul_(5),
        lambda prior: prior.data.mul_(5),
        lambda prior: setattr(prior, "data", 5 * prior),
        lambda prior: prior.numpy().__imul__(5),
        lambda prior: prior.detach()[0].mul_(5),
    ],
)
def test_a_prior_that_was_changed_is_checked_again(shape, change):
    prior = torch.full(shape, 0.25)
    logits, labels = torch.zeros(2, 4), torch.tensor([1, 2])
    for _ in range(2):
        smooth_labels(logits, labels, prior=prior)
    change(prior)
    with pytest.raises(ValueError, match=r"prior sums to|row \d of prior sums to"):
        smooth_labels(logits, labels, prior=prior)


def test_a_prior_made_in_inference_mode_is_checked():
    with torch.inference_mode():
        prior = torch.tensor([0.5, 0.6])
        with pytest.raises(ValueError, match=r"sums to 1\.1"):
            smooth_labels(torch.zeros(1, 2), torch.tensor([1]), prior=prior)
