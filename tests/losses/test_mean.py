"""The mean: SoftTargets and their dense tensor give the same number in every implementation, compiled or not."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import SPATIAL, generators, random_prior, random_soft_targets
from torch.nn import functional as F
from torch.testing import assert_close

from composer_ls import SoftTargets, cross_entropy, smooth_labels

SIZES = [(6, 5), (2, 5, 3), (40, 1000), (4, 6, 50, 40), (70, 16_000)]
"""Below and above the sizes from which the kernels work in another way."""


@given(generators(), st.sampled_from(SPATIAL), st.integers(1, 3), st.integers(0, 2), st.sampled_from([1.0, 0.5, 3.0]))
def test_soft_targets_and_their_dense_tensor_have_one_mean(generator, spatial, components, prior_ndim, scale):
    shape = (4,) if spatial is None else (3, 4, *spatial)
    target, _ = random_soft_targets(shape, components, random_prior(4, prior_ndim, generator), generator)
    target = scale * target
    logits = torch.randn(shape, dtype=torch.float64, generator=generator)
    ours = cross_entropy(logits, target)
    assert_close(F.cross_entropy(logits, target), ours)
    assert_close(cross_entropy(logits, target.dense()), ours)
    dim = 1 if len(shape) > 1 else 0
    if bool(target.dense().abs().amax(dim).all()):  # PyTorch's own function counts rows of zeros
        assert_close(F.cross_entropy(logits, target.dense()), ours)


@pytest.mark.parametrize("shape", SIZES)
@pytest.mark.parametrize("through", [cross_entropy, F.cross_entropy])
def test_rows_that_do_not_sum_to_one_count_as_rows(shape, through):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator)
    labels = torch.randint(shape[1], (shape[0], *shape[2:]), generator=generator)
    target = smooth_labels(x, labels, 0.1)
    six = SoftTargets(labels.unsqueeze(1), shape[1], smoothing=0.1, prior=torch.full((shape[1],), 6 / shape[1]))
    for unnormalised in (0.5 * target, 3 * target - target.flip(0), six):
        expected = F.cross_entropy(x.double(), unnormalised.double().dense())
        assert_close(through(x, unnormalised).double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", SIZES)
def test_ignored_labels_cost_nothing_and_a_mix_with_one_counts_as_a_row(shape):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, dtype=torch.float64, generator=generator)
    labels = torch.randint(shape[1], (shape[0], *shape[2:]), generator=generator)
    labels[::3] = -100
    target = smooth_labels(x, labels, 0.1)
    for function in (cross_entropy, F.cross_entropy):
        assert_close(function(x, target), F.cross_entropy(x, labels, label_smoothing=0.1))
    mixed = 0.7 * target + 0.3 * target.roll(1, 0)
    dense = mixed.dense()
    counts = dense.amax(1) > 0
    expected = F.cross_entropy(x, dense, reduction="sum") / counts.sum()
    for actual in (cross_entropy(x, mixed), F.cross_entropy(x, mixed), cross_entropy(x, dense)):
        assert_close(actual, expected)


def test_with_class_weights_labels_count_their_weight_and_dense_rows_one_as_in_pytorch():
    x, labels = torch.randn(6, 4, dtype=torch.float64), torch.tensor([0, 1, 2, 3, 0, -100])
    weight = torch.tensor([0.1, 1.0, 3.0, 8.0], dtype=torch.float64)
    target = smooth_labels(x, labels, 0.1)
    assert_close(cross_entropy(x, target, weight), F.cross_entropy(x, labels, weight, label_smoothing=0.1))
    assert_close(cross_entropy(x, 0.5 * target, weight), 0.5 * cross_entropy(x, target, weight))
    rows = target.dense()[:5]
    assert_close(cross_entropy(x[:5], rows, weight), F.cross_entropy(x[:5], rows, weight))
    ones = torch.ones(4, dtype=torch.float64)
    for soft in (target, 0.5 * target, 0.7 * target + 0.3 * target.flip(0)):
        assert_close(cross_entropy(x, soft, ones), cross_entropy(x, soft))


@pytest.mark.parametrize("shape", [(6, 5), (3, 5, 4)])
@pytest.mark.parametrize("weighted", [False, True])
def test_smoothing_of_dense_rows_by_the_loss_leaves_ignored_rows_alone(shape, weighted):
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(5, (shape[0], *shape[2:]))
    labels[1] = -100
    weight = torch.rand(5, dtype=torch.float64) if weighted else None
    rows = smooth_labels(x, labels, 0.0).dense()
    loss = cross_entropy(x, rows, weight, label_smoothing=0.1)
    kept = torch.arange(shape[0]) != 1
    assert_close(loss, F.cross_entropy(x[kept], rows[kept], weight, label_smoothing=0.1))
    (gradient,) = torch.autograd.grad(loss, x)
    assert not gradient[1].any()


@pytest.mark.filterwarnings("ignore::UserWarning:torch", "ignore::DeprecationWarning")
def test_what_is_mixed_inside_torch_compile_has_the_mean_that_it_has_outside():
    x, labels = torch.randn(6, 5), torch.tensor([0, 1, -100, 3, 4, 2])
    target = smooth_labels(x, labels, 0.1)

    def loss(x, target):
        return F.cross_entropy(x, 0.7 * target + 0.3 * target.flip(0))

    def from_labels(x, labels):
        target = smooth_labels(x, labels, 0.1)
        return F.cross_entropy(x, 0.7 * target + 0.3 * target.flip(0))

    for function, given_target in ((loss, target), (from_labels, labels), (loss, 0.5 * target)):
        torch._dynamo.reset()
        assert_close(torch.compile(function, backend="eager")(x, given_target), function(x, given_target))


def test_more_dense_rows_than_the_largest_number_of_float16_have_a_mean():
    logits = torch.tensor([[3.0, 0.0]]).half().repeat(70_000, 1).requires_grad_()
    rows = torch.tensor([[1.0, 0.0]]).half().repeat(70_000, 1)
    loss = cross_entropy(logits, rows)
    loss.backward()
    assert loss.dtype == torch.float16
    assert loss.item() == pytest.approx(0.0486, rel=1e-2)
    assert logits.grad.any()
