"""smooth_by_class against its definition on dense rows in float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import SPATIAL, class_dim, generators, random_prior
from torch.nn import functional as F
from torch.testing import assert_close

from composer_ls import SoftTargets, cross_entropy, smooth_labels
from composer_ls.kernels import VARIABLE
from composer_ls.smoothing import smooth_by_class


def shaped(spatial, num_classes):
    return ((num_classes,), ()) if spatial is None else ((3, num_classes, *spatial), (3, *spatial))


def one_hot(labels, num_classes, counted):
    rows = F.one_hot(labels, num_classes).double() * counted.unsqueeze(-1)
    return rows if labels.ndim == 0 else rows.movedim(-1, 1)


def by_definition(rows, factors, prior):
    """Σ_c y_c [(1-α_c) onehot(c) + α_c q(c)], with classes along dimension 1 (or 0)."""
    dim, classes = class_dim(rows), len(factors)
    last = rows.double().movedim(dim, -1)
    q = torch.full((classes, classes), 1 / classes, dtype=torch.float64) if prior is None else prior.double()
    q = q.expand(classes, classes)
    each = (1 - factors.double()).diag() + factors.double().unsqueeze(1) * q
    return (last @ each).movedim(-1, dim)


@settings(deadline=None)
@given(generators(), st.sampled_from(SPATIAL), st.integers(2, 5), st.integers(0, 2))
def test_every_kind_of_target_follows_the_definition(generator, spatial, num_classes, prior_ndim):
    shape, label_shape = shaped(spatial, num_classes)
    logits = torch.randn(shape, dtype=torch.float64, generator=generator)
    labels = torch.randint(num_classes, label_shape, generator=generator)
    counted = torch.rand(label_shape, generator=generator) < 0.7
    factors = torch.rand(num_classes, dtype=torch.float64, generator=generator)
    prior = random_prior(num_classes, prior_ndim, generator)
    rows = one_hot(labels, num_classes, counted)
    given_labels = labels.masked_fill(~counted, -100)
    soft = smooth_by_class(logits, given_labels, factors, prior=prior)
    assert isinstance(soft, SoftTargets)
    expected = by_definition(rows, factors, prior)
    assert_close(soft.dense(), expected)
    assert_close(smooth_by_class(logits, rows, factors, prior=prior), expected)
    hard = smooth_labels(logits, given_labels, 0.0)
    assert_close(smooth_by_class(logits, hard, factors, prior=prior).dense(), expected)
    once = smooth_labels(logits, given_labels, 0.3)
    twice = smooth_by_class(logits, once, factors, prior=prior)
    assert_close(
        twice.dense() if isinstance(twice, SoftTargets) else twice, by_definition(once.dense(), factors, prior)
    )


@settings(deadline=None)
@given(generators(), st.sampled_from(SPATIAL[1:]), st.floats(0, 1))
def test_mixing_and_smoothing_by_class_commute_and_the_loss_is_exact(generator, spatial, mixing):
    shape, label_shape = shaped(spatial, 4)
    logits = torch.randn(shape, dtype=torch.float64, generator=generator).requires_grad_()
    labels = torch.randint(4, label_shape, generator=generator)
    counted = torch.rand(label_shape, generator=generator) < 0.7
    factors = torch.rand(4, generator=generator)
    soft = smooth_by_class(logits, labels.masked_fill(~counted, -100), factors)
    mixed = (1 - mixing) * soft + mixing * soft.flip(0)
    assert isinstance(mixed, SoftTargets)
    rows = one_hot(labels, 4, counted)
    expected = by_definition((1 - mixing) * rows + mixing * rows.flip(0), factors.double(), None)
    assert_close(mixed.dense(), expected)
    for kernel in ("eager", "composite"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv(VARIABLE, kernel)
            (gradient,) = torch.autograd.grad(cross_entropy(logits, mixed, reduction="sum"), logits)
        reference = -(expected * logits.log_softmax(1)).sum()
        assert_close(gradient, torch.autograd.grad(reference, logits)[0])


def test_one_factor_for_all_classes_is_label_smoothing():
    logits, labels = torch.randn(6, 4), torch.tensor([0, 1, 2, 3, -100, 0])
    for spread in ("all", "others"):
        expected = smooth_labels(logits, labels, 0.1, spread=spread).dense()
        assert_close(smooth_by_class(logits, labels, [0.1] * 4, spread=spread).dense(), expected)
    rows = torch.rand(6, 4).round()
    expected = smooth_labels(logits, rows, 0.1, kind="binary")
    assert_close(smooth_by_class(logits, rows, [0.1] * 4, kind="binary"), expected)


@pytest.mark.parametrize("form", ["labels", "targets", "dense", "binary"])
@pytest.mark.parametrize("spread", ["all", "others"])
def test_factors_learn_as_the_factors_of_each_example_do(form, spread):
    logits, labels = torch.randn(6, 4, dtype=torch.float64), torch.tensor([0, 1, 2, 3, 1, 0])
    factors = torch.tensor([0.1, 0.0, 0.3, 0.2], dtype=torch.float64, requires_grad=True)
    rows = F.one_hot(labels, 4).double()
    if form == "binary":
        found = smooth_by_class(logits, rows, factors, kind="binary").square().sum()
        expected = ((1 - factors) * rows + factors / 2).square().sum()
    else:
        target = {"labels": labels, "targets": smooth_labels(logits, labels, 0.0), "dense": rows}[form]
        found = cross_entropy(logits, smooth_by_class(logits, target, factors, spread=spread))
        expected = cross_entropy(logits, smooth_labels(logits, labels, factors[labels], spread=spread))
    assert_close(*(torch.autograd.grad(one, factors)[0] for one in (found, expected)))


def test_each_binary_label_moves_by_its_own_factor():
    rows = torch.tensor([[1.0, 0.0, 1.0]])
    smoothed = smooth_by_class(torch.zeros(1, 3), rows, [0.0, 0.2, 0.4], kind="binary")
    assert_close(smoothed, torch.tensor([[1.0, 0.1, 0.8]]))


@pytest.mark.parametrize(
    ("factors", "message"),
    [
        ([0.1, 0.2], r"smoothing has shape \(2,\), but must be a number or have shape \(3,\) for 3 classes"),
        ([0.1, -0.2, 0.1], r"smoothing\[1\] must be in \[0, 1\], but is -0.2"),
        ([0.1, 0.2, float("nan")], r"smoothing\[2\] must be in \[0, 1\], but is nan"),
    ],
)
def test_wrong_factors_are_refused(factors, message):
    with pytest.raises(ValueError, match=message):
        smooth_by_class(torch.zeros(2, 3), torch.tensor([0, 1]), factors)
