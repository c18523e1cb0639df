"""`soft_nll_loss`: linear in its scores, whatever they are, with the options and means of `nll_loss`."""

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from composer_ls import cross_entropy, smooth_labels
from composer_ls.losses.cross_entropy import soft_nll_loss

K = 7
SHAPES = {"rows": (6, K), "maps": (3, K, 4, 2), "channels last": (3, K, 4, 2), "one row": (K,)}


def scores_and_labels(shape, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    dim = 1 if len(shape) > 1 else 0
    scores = torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
    return scores, torch.randint(0, K, (*shape[:dim], *shape[dim + 1 :]), generator=generator)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("weighted", [False, True])
def test_one_hot_rows_are_labels(shape, reduction, weighted):
    scores, labels = scores_and_labels(SHAPES[shape])
    scores = scores.contiguous(memory_format=torch.channels_last) if shape == "channels last" else scores
    if labels.ndim:
        labels.view(-1)[1] = -100
    weight = torch.rand(K, generator=torch.Generator().manual_seed(1), dtype=torch.float64) if weighted else None
    hard = smooth_labels(scores, labels, 0.0)
    found, expected = (
        loss(scores, target, weight, reduction=reduction)
        for loss, target in ((soft_nll_loss, hard), (F.nll_loss, labels))
    )
    assert_close(found, expected)


@pytest.mark.parametrize("prior", [None, "row", "row per class"])
@pytest.mark.parametrize("shape", ["rows", "maps"])
def test_it_is_the_product_with_the_dense_rows(prior, shape):
    scores, labels = scores_and_labels(SHAPES[shape])
    rows = torch.rand(K, K, generator=torch.Generator().manual_seed(2), dtype=torch.float64).softmax(1)
    prior = {None: None, "row": rows[0], "row per class": rows}[prior]
    mix = 0.3 * smooth_labels(scores, labels, 0.2, prior=prior) + 0.7 * smooth_labels(
        scores, labels.flip(0), 0.2, prior=prior
    )
    dense = mix.to(torch.float64).dense()
    x, y = scores.clone().requires_grad_(), scores.clone().requires_grad_()
    found, expected = soft_nll_loss(x, mix), -(dense * y).sum(1).mean()
    assert_close(found, expected)
    assert_close(*(torch.autograd.grad(loss, of)[0] for loss, of in ((found, x), (expected, y))))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_of_log_probabilities_it_is_the_cross_entropy(dtype):
    scores, labels = scores_and_labels((64, K), dtype)
    target = smooth_labels(scores, labels, 0.1)
    found, expected = soft_nll_loss(scores.log_softmax(1), target), cross_entropy(scores, target)
    assert found.dtype == dtype
    assert_close(found, expected, rtol=1e-5 if dtype == torch.float32 else 2e-2, atol=0)


def test_ignored_rows_get_no_gradient_even_of_nan_scores():
    scores, labels = scores_and_labels((6, K))
    labels[2] = -100
    scores[2] = float("nan")
    x = scores.requires_grad_()
    soft_nll_loss(x, smooth_labels(x, labels, 0.1)).backward()
    assert not x.grad[2].any()
    assert x.grad[[0, 1, 3, 4, 5]].all()


def test_a_weight_of_zero_learns_from_the_loss_of_its_row():
    scores, labels = scores_and_labels((6, K))
    weights = torch.zeros(6, 1, dtype=torch.float64, requires_grad=True)
    loss = soft_nll_loss(scores, smooth_labels(scores, labels, 0.0) * weights, reduction="sum")
    expected = F.nll_loss(scores, labels, reduction="none")
    assert_close(torch.autograd.grad(loss, weights)[0].flatten(), expected)


def test_a_score_of_minus_infinity_without_mass_counts_nothing():
    scores, labels = scores_and_labels((6, K))
    labels.clamp_(max=K - 2)
    scores[:, K - 1] = -torch.inf
    prior = torch.ones(K, dtype=torch.float64)
    prior[K - 1] = 0
    found = soft_nll_loss(scores, smooth_labels(scores, labels, 0.1, prior=prior / prior.sum()))
    assert_close(found, soft_nll_loss(scores[:, :-1], smooth_labels(scores[:, :-1], labels, 0.1)))


def test_other_shapes_and_reductions_are_refused():
    scores, labels = scores_and_labels((6, K))
    target = smooth_labels(scores, labels, 0.1)
    with pytest.raises(ValueError, match=r"logits have shape \(6, 6\), but SoftTargets \(6, 7\)"):
        soft_nll_loss(scores[:, 1:], target)
    with pytest.raises(ValueError, match="reduction must be"):
        soft_nll_loss(scores, target, reduction="average")


@pytest.mark.filterwarnings("ignore:size_average")
def test_old_arguments_of_the_mean_are_understood():
    scores, labels = scores_and_labels((6, K))
    target = smooth_labels(scores, labels, 0.1)
    assert_close(soft_nll_loss(scores, target, size_average=False), soft_nll_loss(scores, target, reduction="sum"))
