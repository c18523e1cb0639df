"""cross_entropy against PyTorch's own and against dense float64 references, in value and gradient."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import (
    SPATIAL,
    Allocations,
    generators,
    random_prior,
    random_soft_targets,
    reference_loss,
)
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

from composer_ls import CrossEntropyLoss, SoftTargets, cross_entropy, smooth_labels
from composer_ls.kernels import eager

DTYPES = [torch.float32, torch.float64, torch.bfloat16]
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10, torch.bfloat16: 2.0**-7}
REDUCTIONS = ["mean", "sum", "none"]


def value_and_gradient(loss, logits):
    """The loss, and its gradient under upstream factors that differ by row but round nowhere."""
    upstream = torch.tensor([1.0, 0.5, 2.0, -1.0]).repeat(loss.numel())[: loss.numel()].view(loss.shape)
    (gradient,) = torch.autograd.grad(loss, logits, upstream.to(loss.dtype))
    return loss.detach(), gradient


def assert_same_loss(actual, expected, dtype):
    """Both the value and the gradient agree, to the rounding of ``dtype``, with those of a float64 reference."""
    rtol = TOLERANCE[dtype]
    for ours, theirs in zip(actual, expected, strict=True):
        assert_close(ours.double(), theirs, rtol=rtol, atol=min(rtol, 1e-6))


def leaf(shape, dtype, generator):
    """Logits in ``dtype``, and the same numbers in float64."""
    logits = (3 * torch.randn(shape, generator=generator)).to(dtype).requires_grad_()
    return logits, logits.detach().double().requires_grad_()


def shaped(spatial, num_classes):
    return ((num_classes,), ()) if spatial is None else ((3, num_classes, *spatial), (3, *spatial))


# ---------------------------------------------------------------------------------------------------------------------
# Rules 1 and 2: for labels, PyTorch's own.


@given(
    generator=generators(),
    spatial=st.sampled_from(SPATIAL),
    num_classes=st.integers(1, 5),
    dtype=st.sampled_from(DTYPES),
    weighted=st.booleans(),
    ignore_index=st.sampled_from([-100, 255, "a class", "a class, in the loss only"]),
    reduction=st.sampled_from(REDUCTIONS),
    smoothing=st.sampled_from([0.0, 1e-4, 0.1, 0.9, 1.0]),
    through_torch=st.booleans(),
)
def test_smoothed_labels_have_the_loss_and_gradient_of_label_smoothing_in_pytorch(
    generator, spatial, num_classes, dtype, weighted, ignore_index, reduction, smoothing, through_torch
):
    shape, label_shape = shaped(spatial, num_classes)
    logits, reference = leaf(shape, dtype, generator)
    labels = torch.randint(num_classes, label_shape, generator=generator)
    weight = torch.rand(num_classes, generator=generator) + 0.1 if weighted else None
    index = ignore_index if isinstance(ignore_index, int) else num_classes - 1
    if isinstance(ignore_index, int):
        labels = labels.masked_fill(torch.rand(label_shape, generator=generator) < 0.3, index)
    to_smooth = -100 if ignore_index == "a class, in the loss only" else index
    target = smooth_labels(logits, labels, smoothing, ignore_index=to_smooth)

    function = F.cross_entropy if through_torch else cross_entropy
    actual = function(logits, target, weight, ignore_index=index, reduction=reduction)
    expected = F.cross_entropy(
        reference,
        labels,
        None if weight is None else weight.double(),
        ignore_index=index,
        reduction=reduction,
        label_smoothing=smoothing,
    )
    if bool((labels == index).all()) and reduction == "mean":
        assert expected.isnan()  # PyTorch divides nothing by nothing; ours is documented to be 0
        expected = reference.sum() * 0
    assert actual.dtype == dtype
    assert_same_loss(value_and_gradient(actual, logits), value_and_gradient(expected, reference), dtype)


# ---------------------------------------------------------------------------------------------------------------------
# Mixtures, priors, dense rows: the dense float64 reference. Rule 8: the mean is over the rows that count.


@given(
    generator=generators(),
    spatial=st.sampled_from(SPATIAL),
    components=st.integers(1, 3),
    prior_ndim=st.integers(0, 2),
    dtype=st.sampled_from(DTYPES),
    weighted=st.booleans(),
    reduction=st.sampled_from(REDUCTIONS),
)
def test_mixtures_agree_with_their_dense_rows(generator, spatial, components, prior_ndim, dtype, weighted, reduction):
    shape, _ = shaped(spatial, 4)
    logits, reference = leaf(shape, dtype, generator)
    prior = random_prior(4, prior_ndim, generator)
    target, rows = random_soft_targets(shape, components, prior, generator)
    weight = torch.rand(4, dtype=torch.float64, generator=generator) + 0.1 if weighted else None
    actual = cross_entropy(logits, target, weight, reduction=reduction)
    expected = reference_loss(reference, rows, target.weights, target.classes, weight, reduction)
    assert_same_loss(value_and_gradient(actual, logits), value_and_gradient(expected, reference), dtype)
    if reduction != "mean":
        torch_loss = F.cross_entropy(reference, rows, weight, reduction=reduction)
        assert_close(torch_loss, expected)


@given(
    generators(),
    st.sampled_from(SPATIAL[1:]),
    st.sampled_from(DTYPES),
    st.booleans(),
    st.sampled_from(["sum", "none", "mean"]),
    st.sampled_from([0.0, 0.1]),
)
def test_dense_rows_have_the_loss_and_gradient_of_pytorch(generator, spatial, dtype, weighted, reduction, smoothing):
    shape, _ = shaped(spatial, 4)
    logits, reference = leaf(shape, dtype, generator)
    rows = torch.randn(shape, generator=generator, dtype=torch.float64).softmax(1).to(dtype)
    weight = torch.rand(4, generator=generator) + 0.1 if weighted else None
    actual = cross_entropy(
        logits,
        rows,
        None if weight is None else weight.to(dtype),
        reduction=reduction,
        label_smoothing=smoothing,
    )
    double_weight = None if weight is None else weight.to(dtype).double()
    expected = F.cross_entropy(reference, rows.double(), double_weight, reduction=reduction, label_smoothing=smoothing)
    actual, expected = value_and_gradient(actual, logits), value_and_gradient(expected, reference)
    if dtype == torch.bfloat16:  # PyTorch's own kernel, which rounds every step
        for ours, theirs in zip(actual, expected, strict=True):
            assert_close(ours.double(), theirs, rtol=0.05, atol=0.05)
    else:
        assert_same_loss(actual, expected, dtype)


def test_integer_rows_and_labels_pass_through_to_pytorch():
    logits, labels = torch.randn(3, 4), torch.tensor([0, 3, -100])
    assert_close(
        cross_entropy(logits, labels, label_smoothing=0.1), F.cross_entropy(logits, labels, label_smoothing=0.1)
    )
    assert_close(cross_entropy(logits[:2], F.one_hot(labels[:2], 4)), F.cross_entropy(logits[:2], labels[:2]))


def test_empty_rows_of_a_dense_target_do_not_count_in_the_mean():
    logits = torch.randn(3, 4)
    rows = smooth_labels(logits, torch.tensor([1, -100, 2]), 0.1).dense()
    assert_close(cross_entropy(logits, rows), F.cross_entropy(logits[[0, 2]], rows[[0, 2]]))
    assert cross_entropy(logits, torch.zeros(3, 4)) == 0


@given(generators(), st.booleans(), st.sampled_from([None, 1, 2]))
def test_the_mean_does_not_jump_when_smoothing_begins(generator, weighted, ignore_index):
    logits = torch.randn(6, 3, dtype=torch.float64, generator=generator)
    weight = torch.tensor([0.01, 1.0, 30.0], dtype=torch.float64) if weighted else None
    labels = torch.tensor([0, 0, 1, 2, 1, 0])
    options = {"weight": weight, "ignore_index": -100 if ignore_index is None else ignore_index}
    prior = random_prior(3, 2, generator)
    hard, soft = (cross_entropy(logits, smooth_labels(logits, labels, a, prior=prior), **options) for a in (0.0, 1e-4))
    assert_close(hard, F.cross_entropy(logits, labels, **options))
    assert abs(soft - hard) < 1e-4 * 30 * 20


def test_the_mean_of_fully_smoothed_labels_is_still_over_the_weight_of_the_labels():
    logits, labels = torch.randn(4, 3), torch.tensor([0, 1, 2, 2])
    weight = torch.tensor([0.5, 1.0, 4.0])
    expected = F.cross_entropy(logits, labels, weight, label_smoothing=1.0)
    assert_close(cross_entropy(logits, smooth_labels(logits, labels, 1.0), weight), expected)


def test_smoothing_by_the_loss_comes_on_top_of_the_targets_own():
    logits, labels = torch.randn(4, 3), torch.tensor([0, 1, 2, -100])
    target = smooth_labels(logits, labels, 0.1)
    expected = F.cross_entropy(logits, labels, label_smoothing=0.28)
    for actual in (
        F.cross_entropy(logits, target, label_smoothing=0.2),
        cross_entropy(logits, target, label_smoothing=0.2),
        nn.CrossEntropyLoss(label_smoothing=0.2)(logits, target),
        CrossEntropyLoss(label_smoothing=0.2)(logits, target),
    ):
        assert_close(actual, expected)


def inner_cross_entropy(x, target, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0):
    module = nn.CrossEntropyLoss(
        weight, ignore_index=ignore_index, reduction=reduction, label_smoothing=label_smoothing
    )
    return module(x, target)


@pytest.mark.parametrize("loss", [cross_entropy, F.cross_entropy, inner_cross_entropy])
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("ignore_index", [-100, 2])
@pytest.mark.parametrize("prior_ndim", [1, 2])
@pytest.mark.parametrize("amount", [0.1, 1.0])
def test_smoothing_by_the_loss_has_its_own_prior(loss, reduction, weighted, ignore_index, prior_ndim, amount):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(7, 4, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(4, (7, 3), generator=generator)
    labels[0, 0] = -100
    weight = torch.tensor([1.0, 5.0, 2.0, 0.5], dtype=torch.float64) if weighted else None
    target = smooth_labels(x, labels, 0.3, prior=random_prior(4, prior_ndim, generator))
    options = {"weight": weight, "ignore_index": ignore_index, "reduction": reduction}
    found = loss(x, target, label_smoothing=amount, **options)
    counted = (labels != ignore_index) & (labels != -100)
    rows = target.dense() * counted.unsqueeze(1)
    rows = (1 - amount) * rows + amount * rows.sum(1, keepdim=True) / 4
    each = torch.ones(4, dtype=torch.float64) if weight is None else weight
    expected = -(rows * each.view(1, 4, 1) * x.log_softmax(1)).sum(1)
    if reduction != "none":
        expected = expected.sum() / (each[labels.clamp(0)][counted].sum() if reduction == "mean" else 1)
    assert_close(found, expected)
    (ours,), (wanted,) = torch.autograd.grad(found.sum(), x), torch.autograd.grad(expected.sum(), x)
    assert_close(ours, wanted)
    if amount < 1:
        assert_close(loss(x, target, label_smoothing=1e-7, **options), loss(x, target, **options), rtol=1e-5, atol=1e-6)


def test_smoothing_by_the_loss_after_another_prior_can_be_compiled_and_differentiated_by_the_prior():
    x, labels = torch.randn(5, 4), torch.tensor([0, 1, 2, 3, 1])
    prior = torch.tensor([0.7, 0.1, 0.1, 0.1], requires_grad=True)

    def loss(x, prior):
        return cross_entropy(x, smooth_labels(x, labels, 0.2, prior=prior), label_smoothing=0.1)

    rows = smooth_labels(x, labels, 0.2, prior=prior).dense()
    expected = F.cross_entropy(x, rows, label_smoothing=0.1)
    assert_close(loss(x, prior), expected)
    assert_close(torch.autograd.grad(loss(x, prior), prior), torch.autograd.grad(expected, prior))
    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    assert_close(compiled(x, prior.detach()), expected.detach())


@pytest.mark.parametrize("size_average", [None, True, False])
@pytest.mark.parametrize("reduce", [None, True, False])
@pytest.mark.filterwarnings("ignore:size_average:UserWarning")
def test_the_old_names_of_reductions_mean_what_they_did(size_average, reduce):
    logits, labels = torch.randn(4, 3), torch.tensor([0, 1, 2, -100])
    expected = F.cross_entropy(logits, labels, None, size_average, -100, reduce, label_smoothing=0.1)
    target = smooth_labels(logits, labels, 0.1)
    assert_close(cross_entropy(logits, target, None, size_average, -100, reduce), expected)
    assert_close(F.cross_entropy(logits, target, None, size_average, -100, reduce), expected)
    module = CrossEntropyLoss(size_average=size_average, reduce=reduce)
    assert_close(module(logits, target), expected)


# ---------------------------------------------------------------------------------------------------------------------
# Rule 5 and the edges of the numbers.

BAD = [math.inf, -math.inf, math.nan]


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("prior_ndim", [0, 1, 2])
def test_ignored_positions_get_no_gradient_whatever_their_logits(bad, reduction, dtype, prior_ndim):
    generator = torch.Generator().manual_seed(0)
    logits, _ = leaf((3, 4, 5), dtype, generator)
    labels = torch.randint(4, (3, 5), generator=generator)
    labels[0, 1], labels[2] = -100, -100
    ignored = labels == -100
    with torch.no_grad():
        logits[0, :, 1], logits[2, 0] = bad, bad
    reference = logits.detach().double().masked_fill(ignored.unsqueeze(1), 0).requires_grad_()
    prior = random_prior(4, prior_ndim, generator)
    target = smooth_labels(logits, labels, 0.1, prior=prior)
    mixed = 0.25 * target + 0.75 * smooth_labels(logits, labels, 0.3, prior=prior)
    for soft in (target, mixed):
        actual = value_and_gradient(cross_entropy(logits, soft, reduction=reduction), logits)
        assert actual[1].movedim(1, -1)[ignored].eq(0).all()
        rows = soft.dense().double() if dtype == torch.float64 else soft.double().dense()
        expected = reference_loss(reference, rows, soft.weights, soft.classes, reduction=reduction)
        assert_same_loss(actual, value_and_gradient(expected, reference), dtype)


@given(generators(), st.sampled_from(SPATIAL[1:]), st.sampled_from([-100, 255, 2]), st.sampled_from(REDUCTIONS))
def test_ignored_positions_get_no_gradient_in_any_shape(generator, spatial, ignore_index, reduction):
    shape, label_shape = shaped(spatial, 3)
    logits = torch.randn(shape, generator=generator, requires_grad=True)
    labels = torch.randint(2, label_shape, generator=generator)
    ignored = torch.rand(label_shape, generator=generator) < 0.4
    labels = labels.masked_fill(ignored, ignore_index)
    target = smooth_labels(logits, labels, 0.2, ignore_index=ignore_index)
    _, gradient = value_and_gradient(cross_entropy(logits, target, reduction=reduction), logits)
    assert gradient.movedim(1, -1)[ignored].eq(0).all()
    assert gradient.movedim(1, -1)[~ignored].ne(0).any() == bool((~ignored).any())


@pytest.mark.parametrize("shape", [(3,), (2, 3), (2, 3, 4)])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_mean_of_nothing_is_zero_with_zero_gradient(shape, smoothing):
    logits = torch.randn(shape, requires_grad=True)
    labels = torch.full(shape[:1] * (len(shape) > 1) + shape[2:], -100)
    assert F.cross_entropy(logits, labels).isnan()
    loss = cross_entropy(logits, smooth_labels(logits, labels, smoothing))
    loss.backward()
    assert loss == 0
    assert torch.equal(logits.grad, torch.zeros(shape))


def test_no_examples_cost_nothing():
    logits = torch.zeros(0, 3, requires_grad=True)
    target = smooth_labels(logits, torch.zeros(0).long())
    cross_entropy(logits, target).backward()
    assert logits.grad.shape == (0, 3)
    assert cross_entropy(logits, target, reduction="none").shape == (0,)


@pytest.mark.parametrize("scale", [1e4, -1e4, 1e30])
@pytest.mark.parametrize("shift", [0.0, 1e4, -1e4])
@pytest.mark.parametrize("prior_ndim", [0, 1, 2])
def test_huge_logits_lose_no_digits(scale, shift, prior_ndim):
    generator = torch.Generator().manual_seed(1)
    raw = torch.randn(8, 5, generator=generator)
    raw[::2] *= scale
    logits = (raw + shift).requires_grad_()
    reference = logits.detach().double().requires_grad_()
    labels = torch.randint(5, (8,), generator=generator)
    prior = random_prior(5, prior_ndim, generator)
    rows = smooth_labels(reference, labels, 0.1, prior=prior).dense()
    for reduction in REDUCTIONS:
        actual = cross_entropy(logits, smooth_labels(logits, labels, 0.1, prior=prior), reduction=reduction)
        expected = F.cross_entropy(reference, rows, reduction=reduction)
        assert_same_loss(value_and_gradient(actual, logits), value_and_gradient(expected, reference), torch.float32)


def test_masked_classes_have_the_loss_and_gradient_of_pytorch():
    labels = torch.tensor([0, 1])
    logits = torch.randn(2, 4)
    logits[:, 3] = -math.inf
    for smoothing in (0.0, 0.1):
        ours, theirs = logits.clone().requires_grad_(), logits.clone().requires_grad_()
        actual = value_and_gradient(cross_entropy(ours, smooth_labels(ours, labels, smoothing)), ours)
        expected = value_and_gradient(F.cross_entropy(theirs, labels, label_smoothing=smoothing), theirs)
        assert_close(actual[0], expected[0])  # infinite where mass is on a class that cannot be
        assert_close(actual[1], expected[1])


def test_a_prior_that_spares_the_masked_classes_keeps_the_loss_finite():
    prior = torch.tensor([0.5, 0.25, 0.25, 0.0])
    logits = torch.randn(2, 4)
    logits[:, 3] = -math.inf
    labels = torch.tensor([0, 1])
    for q in (prior, prior.expand(4, 4).contiguous()):
        masked, seen = logits.clone().requires_grad_(), logits[:, :3].clone().requires_grad_()
        loss = cross_entropy(masked, smooth_labels(masked, labels, 0.2, prior=q))
        expected = cross_entropy(seen, smooth_labels(seen, labels, 0.2, prior=prior[:3]))
        assert_close(loss, expected)
        (gradient,), (expected_gradient,) = torch.autograd.grad(loss, masked), torch.autograd.grad(expected, seen)
        assert_close(gradient, F.pad(expected_gradient, (0, 1)))


def test_one_class_costs_nothing():
    logits = torch.tensor([[3.0], [-1e4]], requires_grad=True)
    loss = cross_entropy(logits, smooth_labels(logits, torch.tensor([0, 0]), 0.3))
    loss.backward()
    assert loss == 0
    assert torch.equal(logits.grad, torch.zeros(2, 1))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_nan_logits_give_a_nan_loss(bad, reduction, smoothing):
    logits, labels = torch.randn(3, 4), torch.tensor([0, 1, 2])
    logits[1, 3] = bad
    actual = cross_entropy(logits, smooth_labels(logits, labels, smoothing), reduction=reduction)
    expected = F.cross_entropy(logits, labels, reduction=reduction, label_smoothing=smoothing)
    assert_close(actual, expected, equal_nan=True)
    assert actual.isnan().any()


def test_a_class_of_no_weight_costs_what_it_does_in_pytorch():
    logits, labels, weight = torch.randn(3, 3), torch.tensor([0, 1, 2]), torch.tensor([0.0, 1.0, 2.0])
    for smoothing in (0.0, 0.1):
        ours, theirs = logits.clone().requires_grad_(), logits.clone().requires_grad_()
        actual = value_and_gradient(cross_entropy(ours, smooth_labels(ours, labels, smoothing), weight), ours)
        expected = value_and_gradient(F.cross_entropy(theirs, labels, weight, label_smoothing=smoothing), theirs)
        assert_close(actual, expected)


# ---------------------------------------------------------------------------------------------------------------------
# Autograd.


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize(("prior_ndim", "shape"), [(0, (2, 3)), (1, (3,)), (2, (1, 3, 2))])
def test_first_and_second_derivatives_are_right(reduction, prior_ndim, shape):
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(shape, dtype=torch.float64, generator=generator, requires_grad=True)
    prior = random_prior(3, prior_ndim, generator)
    target, _ = random_soft_targets(shape, 2, prior, generator)
    weight = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)

    def loss(x):
        return cross_entropy(x, target, weight, reduction=reduction)

    assert torch.autograd.gradcheck(loss, logits)
    assert torch.autograd.gradgradcheck(loss, logits)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_a_retained_graph_gives_the_same_gradient_every_time(reduction):
    logits = torch.randn(3, 4, requires_grad=True)
    labels = torch.tensor([0, 3, -100])
    hard_loss = F.cross_entropy(logits, labels, label_smoothing=0.1, reduction=reduction).sum()
    (expected,) = torch.autograd.grad(hard_loss, logits)
    loss = cross_entropy(logits, smooth_labels(logits, labels, 0.1), reduction=reduction).sum()
    for times in (1, 2, 3, 4):
        loss.backward(retain_graph=True)
        assert_close(logits.grad, times * expected)
    (gradient,) = torch.autograd.grad(loss, logits, retain_graph=True)
    gradient.zero_()  # clipping does such things
    logits.grad.zero_()
    (again,) = torch.autograd.grad(3 * loss, logits, retain_graph=True)
    assert_close(again, 3 * expected)
    (last,) = torch.autograd.grad(loss, logits)
    assert_close(last, expected)


def test_two_losses_on_one_tensor_of_logits_add_their_gradients():
    features = torch.randn(3, 4, requires_grad=True)
    labels = torch.tensor([0, 3, 1])
    logits = features * 2
    target = smooth_labels(logits, labels, 0.1)
    (0.3 * cross_entropy(logits, target) + cross_entropy(logits, target.flip(0))).backward()
    expected = features.detach().clone().requires_grad_()
    both = [F.cross_entropy(expected * 2, y, label_smoothing=0.1) for y in (labels, labels.flip(0))]
    (0.3 * both[0] + both[1]).backward()
    assert_close(features.grad, expected.grad)


def test_the_logits_are_left_as_they_are():
    logits = torch.randn(3, 4, requires_grad=True)
    before = logits.detach().clone()
    for reduction in REDUCTIONS:
        cross_entropy(logits, smooth_labels(logits, torch.tensor([0, 1, 2])), reduction=reduction).sum().backward()
    assert torch.equal(logits.detach(), before)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_without_gradients_the_loss_is_the_same_and_nothing_is_made_for_one(reduction):
    logits = torch.randn(64, 40_000, requires_grad=True)
    target = smooth_labels(logits, torch.randint(40_000, (64,)), 0.1)
    expected = cross_entropy(logits, target, reduction=reduction).detach()
    for mode in (torch.no_grad, torch.inference_mode):
        with mode(), Allocations(nbytes=logits.nbytes, known=(logits,)) as made:
            loss = cross_entropy(logits, target, reduction=reduction)
        assert made.count == 0
        assert not loss.requires_grad
        assert_close(loss, expected)


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_gradient_checkpointing_changes_nothing(use_reentrant, reduction):
    head, labels = torch.randn(6, 4), torch.tensor([0, 3, 1])
    features = torch.randn(3, 6, requires_grad=True)

    def loss(x):
        logits = x @ head
        return cross_entropy(logits, smooth_labels(logits, labels, 0.1), reduction=reduction).sum()

    (expected,) = torch.autograd.grad(loss(features), features)
    checkpoint(loss, features, use_reentrant=use_reentrant).backward()
    assert_close(features.grad, expected)


@pytest.mark.parametrize("scale", [2.0**16, 1 / 3, 0.0])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_scaled_loss_has_a_scaled_gradient(scale, dtype):
    logits, reference = leaf((8, 5), dtype, torch.Generator().manual_seed(4))
    labels = torch.arange(8) % 5
    actual = cross_entropy(logits, smooth_labels(logits, labels, 0.1)) * scale
    expected = F.cross_entropy(reference, labels, label_smoothing=0.1) * scale
    rtol = TOLERANCE[dtype] * 2
    (gradient,), (expected_gradient,) = torch.autograd.grad(actual, logits), torch.autograd.grad(expected, reference)
    assert_close(gradient.double(), expected_gradient, rtol=rtol, atol=1e-6 * max(scale, 1))


def test_a_gradient_scaler_rescues_small_gradients_in_float16():
    logits = torch.randn(64, 1000, generator=torch.Generator().manual_seed(5)).half().requires_grad_()
    reference = logits.detach().double().requires_grad_()
    labels = torch.arange(64)
    with torch.autocast("cpu", dtype=torch.float16):
        loss = cross_entropy(logits, smooth_labels(logits, labels, 0.1))
    assert loss.dtype == torch.float32
    (loss * 2**16).backward()
    (F.cross_entropy(reference, labels, label_smoothing=0.1) * 2**16).backward()
    assert_close(logits.grad.double(), reference.grad, rtol=2**-10, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_autocast_computes_the_loss_in_float32_as_pytorch_does(dtype):
    layer, x, labels = nn.Linear(6, 4), torch.randn(3, 6), torch.tensor([0, 3, -100])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = layer(x).to(dtype)
        actual = cross_entropy(logits, smooth_labels(logits, labels, 0.1))
        through_torch = F.cross_entropy(logits, smooth_labels(logits, labels, 0.1))
        expected = F.cross_entropy(logits, labels, label_smoothing=0.1)
    assert actual.dtype == through_torch.dtype == expected.dtype == torch.float32
    assert_close(actual, expected)
    assert_close(through_torch, expected)
    (gradient,), (expected_gradient,) = (
        torch.autograd.grad(a, layer.weight, retain_graph=True) for a in (actual, expected)
    )
    assert_close(gradient, expected_gradient, rtol=2**-6, atol=1e-3)


# ---------------------------------------------------------------------------------------------------------------------
# Memory layout, and what is allocated.


def layouts():
    return {
        "channels last": lambda x: x.contiguous(memory_format=torch.channels_last),
        "transposed": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
        "classes last": lambda x: x.movedim(1, -1).contiguous().movedim(-1, 1),
        "strided": lambda x: x.repeat_interleave(2, 3)[..., ::2],
        "expanded": lambda x: x[:1].expand(3, -1, -1, -1),
    }


@pytest.mark.parametrize("name", layouts())
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_strides_of_the_logits_do_not_matter(name, reduction, dtype):
    base = torch.randn(3, 4, 2, 6).to(dtype)
    labels = torch.randint(4, (3, 2, 6))
    labels[1, 0] = -100
    gradients = []
    for double in (False, True):
        leaf_logits = (base.double() if double else base.clone()).requires_grad_()
        logits = layouts()[name](leaf_logits)
        if double:
            loss = F.cross_entropy(logits, labels, label_smoothing=0.1, reduction=reduction)
        else:
            loss = cross_entropy(logits, smooth_labels(logits, labels, 0.1), reduction=reduction)
        gradients.append(value_and_gradient(loss, leaf_logits))
    if name == "expanded" and dtype == torch.bfloat16:  # the sum over copies rounds too
        assert_close(gradients[0][1].double(), gradients[1][1], rtol=0.05, atol=0.05)
    else:
        assert_same_loss(*gradients, dtype)


def test_channels_last_logits_get_a_channels_last_gradient():
    logits = torch.randn(2, 4, 3, 5).contiguous(memory_format=torch.channels_last).requires_grad_()
    cross_entropy(logits, smooth_labels(logits, torch.randint(4, (2, 3, 5)), 0.1)).backward()
    assert logits.grad.stride() == logits.stride()


@pytest.mark.parametrize("shape", [(64, 16_000), (2, 50, 80, 100), (3, 250_000)])
@pytest.mark.parametrize(
    "loss",
    [
        F.cross_entropy,
        nn.CrossEntropyLoss(),
        nn.CrossEntropyLoss(label_smoothing=0.1),
        cross_entropy,
        CrossEntropyLoss(),
    ],
    ids=["F.cross_entropy", "nn.CrossEntropyLoss", "nn.CrossEntropyLoss(label_smoothing)", "cross_entropy", "module"],
)
def test_only_the_gradient_is_as_large_as_the_logits(shape, loss):
    logits = torch.randn(shape, requires_grad=True)
    target = smooth_labels(logits, torch.randint(shape[1], (shape[0], *shape[2:])), 0.1)
    mixed = 0.7 * target + 0.3 * target.flip(0)
    with Allocations(nbytes=logits.nbytes // 2, known=(logits,)) as made:
        loss(logits, mixed).backward()
    assert made.count == 1


def test_the_count_of_large_tensors_sees_a_dense_target():
    logits = torch.randn(64, 16_000, requires_grad=True)
    target = smooth_labels(logits, torch.randint(16_000, (64,)), 0.1)
    with Allocations(nbytes=logits.nbytes // 2, known=(logits,)) as made:
        F.cross_entropy(logits, target.dense()).backward()
    assert made.count > 2


def test_rows_that_do_not_fit_one_chunk_are_still_whole(monkeypatch):
    monkeypatch.setattr(eager, "CHUNK", 1 << 14)
    for shape in ((40, 3, 300), (2, 30_000), (1, 60, 1000), (1, 7, 5000)):
        logits = torch.randn(shape, requires_grad=True)
        labels = torch.randint(shape[1], (shape[0], *shape[2:]))
        labels.view(-1)[::3] = -100
        expected = F.cross_entropy(logits, labels, label_smoothing=0.1)
        (expected_gradient,) = torch.autograd.grad(expected, logits)
        for prior in (None, torch.full((shape[1],), 1 / shape[1])):  # a prior needs memory aside, and so chunks
            loss = cross_entropy(logits, smooth_labels(logits, labels, 0.1, prior=prior))
            assert_close(loss, expected)
            assert_close(torch.autograd.grad(loss, logits)[0], expected_gradient)


# ---------------------------------------------------------------------------------------------------------------------
# The module, and what is refused.


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_the_module_delegates_with_all_its_settings(reduction):
    logits, labels, weight = torch.randn(4, 3), torch.tensor([0, 1, 2, 255]), torch.tensor([0.5, 1.0, 2.0])
    settings = {"weight": weight, "ignore_index": 255, "reduction": reduction, "label_smoothing": 0.1}
    ours, theirs = CrossEntropyLoss(**settings), nn.CrossEntropyLoss(**settings)
    assert_close(ours(logits, labels), theirs(logits, labels))
    hard = smooth_labels(logits, labels, 0.0, ignore_index=255)
    assert_close(ours(logits, hard), theirs(logits, labels))
    assert_close(theirs(logits, hard), theirs(logits, labels))  # nn.CrossEntropyLoss reads SoftTargets as well
    valid = CrossEntropyLoss(ignore_index=1, reduction=reduction)
    assert_close(
        valid(logits[:3], hard[:3]), F.cross_entropy(logits[:3], labels[:3], ignore_index=1, reduction=reduction)
    )


def test_the_module_carries_its_weight_and_shows_its_settings():
    module = CrossEntropyLoss(torch.ones(3), ignore_index=7, reduction="sum", label_smoothing=0.25)
    assert module.double().weight.dtype == torch.float64
    assert "weight" in module.state_dict()
    assert repr(module) == "CrossEntropyLoss(ignore_index=7, reduction='sum', label_smoothing=0.25)"


@pytest.mark.parametrize("loss", [cross_entropy, F.cross_entropy])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"reduction": "avg"}, "reduction must be 'mean', 'sum' or 'none', but is 'avg'"),
        ({"weight": torch.ones(4)}, r"weight has shape \(4,\), but must be \(3,\)"),
        ({"weight": torch.ones(1, 3)}, r"weight has shape \(1, 3\)"),
        ({"input": torch.zeros(2, 4)}, r"logits have shape \(2, 4\), but SoftTargets \(2, 3\)"),
        ({"input": torch.zeros(3)}, r"logits have shape \(3,\)"),
        ({"label_smoothing": 1.5}, r"smoothing must be in \[0, 1\], but is 1\.5"),
        ({"label_smoothing": math.nan}, r"smoothing must be in \[0, 1\], but is nan"),
    ],
)
def test_arguments_that_do_not_fit_are_refused_with_the_reason(loss, arguments, message):
    target = SoftTargets(torch.tensor([[0], [1]]), 3)
    with pytest.raises(ValueError, match=message):
        loss(**{"input": torch.zeros(2, 3), "target": target, **arguments})
