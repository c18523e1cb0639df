"""Every derivative is right or an error: forward mode, transforms, fields, masks, aliasing."""

import gc
import weakref
from functools import partial

import pytest
import torch
from support import SPATIAL, dense_reference
from torch.nn import functional as F
from torch.testing import assert_close

from composer_ls import SoftTargets, cross_entropy, smooth_labels
from composer_ls.kernels import VARIABLE

SIZES = [(4, 5), (2, 5, 3), (40, 1000), (4, 6, 50, 40), (70, 16_000)]
"""Below and above the sizes from which the kernels work in another way."""


def problem(shape, dtype=torch.float64, ignored=True):
    """Logits, labels and the function of the logits that PyTorch computes."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, dtype=dtype, generator=generator)
    labels = torch.randint(shape[1], (shape[0], *shape[2:]), generator=generator)
    if ignored:
        labels[0] = -100
    return x, labels


@pytest.mark.parametrize("shape", SIZES)
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_forward_mode_has_the_tangent_of_pytorch(shape, reduction):
    x, labels = problem(shape)
    target = smooth_labels(x, labels, 0.1)
    tangent = torch.randn_like(x)
    ours = torch.func.jvp(lambda z: cross_entropy(z, target, reduction=reduction), (x,), (tangent,))
    theirs = torch.func.jvp(
        lambda z: F.cross_entropy(z, labels, label_smoothing=0.1, reduction=reduction), (x,), (tangent,)
    )
    assert_close(ours, theirs)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, tangent)
        for function in (cross_entropy, F.cross_entropy):
            loss = function(dual, target, reduction=reduction)
            assert_close(torch.autograd.forward_ad.unpack_dual(loss).tangent, theirs[1])


@pytest.mark.parametrize("mixed", [False, True])
def test_transforms_of_torch_func_equal_the_dense_formula(mixed):
    x, labels = problem((4, 5))

    def target_of(labels):
        target = smooth_labels(torch.zeros(len(labels), 5, dtype=torch.float64), labels, 0.1)
        return 0.7 * target + 0.3 * target.flip(0) if mixed else target

    target = target_of(labels)
    rows = target.dense()
    counted = (rows.amax(1) > 0).sum()

    def ours(z):
        return cross_entropy(z, target)

    def dense(z):
        return -(rows * z.log_softmax(1)).sum() / counted

    for transform in (torch.func.grad, torch.func.jacrev, torch.func.jacfwd, torch.func.hessian):
        assert_close(transform(ours)(x), transform(dense)(x))
    assert_close(
        torch.func.vjp(ours, x)[1](torch.tensor(2.0).double()), torch.func.vjp(dense, x)[1](torch.tensor(2.0).double())
    )
    assert_close(
        torch.func.grad(lambda z: (torch.func.grad(ours)(z) ** 2).sum())(x),
        torch.func.grad(lambda z: (torch.func.grad(dense)(z) ** 2).sum())(x),
    )


def test_vmap_over_examples_and_over_models():
    x, labels = problem((4, 5))

    def loss_of_one(logits, label):
        return cross_entropy(logits[None], smooth_labels(logits[None], label[None], 0.1), reduction="sum")

    expected = F.cross_entropy(x, labels, label_smoothing=0.1, reduction="none")
    assert_close(torch.vmap(loss_of_one)(x, labels), expected)
    models = torch.stack([x, 2 * x, -x])
    target = smooth_labels(x, labels, 0.1)
    assert_close(
        torch.vmap(lambda z: cross_entropy(z, target))(models),
        torch.stack([F.cross_entropy(z, labels, label_smoothing=0.1) for z in models]),
    )
    per_example = torch.vmap(torch.func.grad(loss_of_one))(x, labels)
    reference = x.clone().requires_grad_()
    F.cross_entropy(reference, labels, label_smoothing=0.1, reduction="sum").backward()
    assert_close(per_example, reference.grad)


@pytest.mark.parametrize("shape", SIZES[:4])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_a_batch_of_upstream_gradients_gives_one_gradient_for_each(shape, reduction):
    x, labels = problem(shape)
    x.requires_grad_()
    loss = cross_entropy(x, smooth_labels(x, labels, 0.1), reduction=reduction)
    upstream = torch.randn(3, *loss.shape, dtype=x.dtype)
    (together,) = torch.autograd.grad(loss, x, upstream, is_grads_batched=True, retain_graph=True)
    each = [torch.autograd.grad(loss, x, one, retain_graph=True)[0] for one in upstream]
    assert_close(together, torch.stack(each))


def test_meta_and_fake_tensors_go_through():
    from torch._subclasses.fake_tensor import FakeTensorMode

    with torch.device("meta"):
        logits, labels = torch.empty(3, 5, requires_grad=True), torch.empty(3, dtype=torch.long)
    loss = cross_entropy(logits, smooth_labels(logits, labels, 0.1))
    loss.backward()
    assert loss.device.type == logits.grad.device.type == "meta"
    with FakeTensorMode():
        logits, labels = torch.randn(3, 5, requires_grad=True), torch.zeros(3, dtype=torch.long)
        target = smooth_labels(logits, labels, 0.1)
        mixed = 0.7 * target + 0.3 * target.flip(0)
        cross_entropy(logits, mixed).backward()
        assert logits.grad.shape == (3, 5)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
def test_a_traced_loss_is_the_loss_and_leaves_nothing_behind():
    x, labels = problem((4, 5), ignored=False)

    def loss(x, labels):
        return cross_entropy(x, smooth_labels(x, labels, 0.1))

    traced = torch.jit.trace(loss, (x, labels), check_trace=False)
    assert_close(traced(2 * x, labels.flip(0)), loss(2 * x, labels.flip(0)))
    assert type(loss(x, labels)) is torch.Tensor


# ---------------------------------------------------------------------------------------------------------------------
# What asks for a gradient gets it.


@pytest.mark.parametrize("kernel", ["eager", "composite", "triton", None])
@pytest.mark.parametrize("shape", SIZES[:4])
@pytest.mark.parametrize("logits_learn", [True, False])
def test_fields_and_class_weights_that_learn_get_their_gradients(kernel, shape, logits_learn, monkeypatch):
    if kernel:
        monkeypatch.setenv(VARIABLE, kernel)
    x, labels = problem(shape, ignored=False)
    x.requires_grad_(logits_learn)
    K = shape[1]

    def leaves():
        generator = torch.Generator().manual_seed(1)
        smoothing = torch.tensor(0.1, dtype=torch.float64, requires_grad=True)
        share = torch.rand((shape[0], 1, *shape[2:]), dtype=torch.float64, generator=generator).requires_grad_()
        prior = torch.randn(K, dtype=torch.float64, generator=generator).softmax(0).requires_grad_()
        weight = (torch.rand(K, dtype=torch.float64, generator=generator) + 0.1).requires_grad_()
        return smoothing, share, prior, weight

    smoothing, share, prior, weight = ours = leaves()
    target = SoftTargets(labels.unsqueeze(1), K, share, smoothing, prior, dtype=torch.float64)
    loss = cross_entropy(x, target, weight, reduction="sum")
    smoothing, share, prior, weight = theirs = leaves()
    onehot = F.one_hot(labels, K).movedim(-1, 1).double()
    view = (1, K, *[1] * (len(shape) - 2))
    rows = share * ((1 - smoothing) * onehot + smoothing * prior.view(view))
    expected = -(rows * weight.view(view) * x.log_softmax(1)).sum()
    assert_close(loss, expected)
    inputs = [x] if logits_learn else []
    assert_close(torch.autograd.grad(loss, [*ours, *inputs]), torch.autograd.grad(expected, [*theirs, *inputs]))


def reweighted(kind, x, labels):
    """Functions of one weight per row: the loss, and the same loss written out over the rows that count."""
    target = smooth_labels(x, labels, 0.1)
    target = 0.7 * target + 0.3 * target.flip(0) if kind == "mixed" else target
    target = target.dense() if kind == "dense" else target
    rows = target.dense() if isinstance(target, SoftTargets) else target
    each = -(rows * x.log_softmax(1)).sum(1, keepdim=True)
    return lambda weights, **options: cross_entropy(x, target * weights, **options), lambda weights: each * weights


@pytest.mark.parametrize("kind", ["labels", "mixed", "dense"])
@pytest.mark.parametrize("shape", [(4, 5), (2, 5, 3), (40, 1000)])
@pytest.mark.parametrize("start", ["all zero", "some zero"])
@pytest.mark.parametrize("ignore_index", [-100, 2])
def test_a_weight_of_zero_learns_from_the_loss_of_its_row(kind, shape, start, ignore_index):
    x, labels = problem(shape, ignored=False)
    loss, each = reweighted(kind, x, labels.clamp_min(3) if ignore_index == 2 else labels)
    weights = torch.zeros(shape[0], 1, *shape[2:], dtype=torch.float64)
    if start == "some zero":
        weights[::2] = 0.5
    counted = int((weights != 0).sum())
    weights.requires_grad_()
    for reduction, divisor in (("sum", 1), ("none", 1), ("mean", counted)):
        if divisor:
            found = loss(weights, reduction=reduction, ignore_index=ignore_index).sum()
            wanted = each(weights).sum() / divisor
            assert_close(found, wanted)
            assert_close(*(torch.autograd.grad(one, weights)[0] for one in (found, wanted)))


@pytest.mark.parametrize("kind", ["labels", "mixed", "dense"])
def test_a_weight_of_zero_learns_inside_transforms_and_in_forward_mode(kind):
    x, labels = problem((4, 5), ignored=False)
    loss, each = reweighted(kind, x, labels)
    loss, each = partial(loss, reduction="sum"), lambda weights, each=each: each(weights).sum()
    zero = torch.zeros(4, 1, dtype=torch.float64)
    for transform in (torch.func.grad, torch.func.jacfwd, torch.func.jacrev):
        assert_close(transform(loss)(zero), transform(each)(zero))
    several = torch.zeros(3, 4, 1, dtype=torch.float64)
    for per_model in (
        lambda f: torch.vmap(torch.func.grad(f)),
        lambda f: torch.func.grad(lambda w: torch.vmap(f)(w).sum()),
    ):
        assert_close(per_model(loss)(several), per_model(each)(several))
    assert_close(torch.func.jvp(loss, (zero,), (zero + 1,)), torch.func.jvp(each, (zero,), (zero + 1,)))


@pytest.mark.parametrize("loss", [cross_entropy, F.cross_entropy])
@pytest.mark.parametrize("dense", [False, True])
def test_examples_are_reweighted_by_what_a_step_on_them_does_to_another_loss(loss, dense):
    """Ren et al., 2018, "Learning to Reweight Examples", https://arxiv.org/abs/1803.09050."""
    x, labels = problem((4, 5), ignored=False)
    layer = torch.randn(5, 5, dtype=torch.float64, requires_grad=True)

    def gradient_by_weights(loss, target):
        weights = torch.zeros(4, 1, dtype=torch.float64, requires_grad=True)
        inner = loss(x @ layer, target * weights, reduction="sum")
        (step,) = torch.autograd.grad(inner, layer, create_graph=True)
        return torch.autograd.grad(F.cross_entropy(x @ (layer - step), labels), weights)[0]

    target = smooth_labels(x, labels, 0.1)
    found = gradient_by_weights(loss, target.dense() if dense else target)
    assert_close(found, gradient_by_weights(F.cross_entropy, target.dense()))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("kind", ["labels", "mixed", "dense"])
@pytest.mark.parametrize("where", [slice(None), slice(1)])
def test_bad_logits_of_ignored_rows_spoil_no_weight_that_learns(bad, kind, where):
    x, labels = problem((4, 5), ignored=False)
    labels[[0, 3]] = -100  # mixed with one another
    x[[0, 3], where] = bad
    x.requires_grad_()
    weights = torch.ones(4, 1, dtype=torch.float64, requires_grad=True)
    loss, _ = reweighted(kind, x, labels)
    by_logits, by_weights = torch.autograd.grad(loss(weights), (x, weights))
    assert not by_logits[[0, 3]].any()
    assert not by_weights[[0, 3]].any()
    assert by_logits[[1, 2]].all()
    assert by_weights[[1, 2]].all()


def test_masked_classes_do_not_keep_a_weight_of_zero_from_learning():
    x, labels = problem((4, 5), ignored=False)
    x[:, 0] = float("-inf")
    target = smooth_labels(x, labels.clamp_min(1), 0.0)
    weights = torch.zeros(4, 1, dtype=torch.float64, requires_grad=True)
    loss = cross_entropy(x, target * weights, reduction="sum")
    expected = F.cross_entropy(x, labels.clamp_min(1), reduction="none")
    assert_close(torch.autograd.grad(loss, weights)[0].flatten(), expected)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_ignored_rows_get_a_gradient_of_zero_while_smoothing_and_prior_learn(reduction):
    x, labels = problem((4, 5))
    x.requires_grad_()
    smoothing, prior = (torch.full(shape, 0.2, dtype=torch.float64, requires_grad=True) for shape in ((), (5,)))
    loss = cross_entropy(x, smooth_labels(x, labels, smoothing, prior=prior), reduction=reduction)
    upstream = torch.full_like(loss, float("nan"))
    assert not torch.autograd.grad(loss, x, upstream)[0][0].any()


def test_a_weight_of_zero_learns_in_a_compiled_graph():
    x, labels = problem((4, 5), ignored=False)
    weights = torch.zeros(4, 1, dtype=torch.float64, requires_grad=True)

    def loss(weights):
        return cross_entropy(x, smooth_labels(x, labels, 0.1) * weights, reduction="sum")

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    expected = F.cross_entropy(x, labels, label_smoothing=0.1, reduction="none")
    assert_close(torch.autograd.grad(compiled(weights), weights)[0].flatten(), expected)


def test_a_smoothing_factor_learns_from_zero_and_through_a_mix():
    x, labels = problem((6, 5), ignored=False)
    x.requires_grad_()
    for start in (0.0, 0.1, 1.0):
        ours, theirs = (torch.tensor(start, dtype=torch.float64, requires_grad=True) for _ in range(2))
        target = smooth_labels(x, labels, ours)
        loss = F.cross_entropy(x, 0.7 * target + 0.3 * target.flip(0))
        onehot = F.one_hot(labels, 5).double()
        rows = (1 - theirs) * onehot + theirs / 5
        expected = F.cross_entropy(x, 0.7 * rows + 0.3 * rows.flip(0))
        assert_close(torch.autograd.grad(loss, (ours, x)), torch.autograd.grad(expected, (theirs, x)))


def test_a_prior_for_each_class_learns_beside_logits_that_do_not():
    x, labels = problem((6, 5), ignored=False)
    ours, theirs = (torch.full((5, 5), 0.2, dtype=torch.float64, requires_grad=True) for _ in range(2))
    cross_entropy(x, smooth_labels(x, labels, 0.1, prior=ours)).backward()
    rows = 0.9 * F.one_hot(labels, 5).double() + 0.1 * theirs[labels]
    F.cross_entropy(x, rows).backward()
    assert_close(ours.grad, theirs.grad)


# ---------------------------------------------------------------------------------------------------------------------
# A mask is a mask.


@pytest.mark.parametrize("kernel", ["eager", "composite", "triton"])
@pytest.mark.parametrize("shape", SIZES)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("mixed", [False, True])
def test_ignored_rows_get_a_gradient_of_zero_whatever_comes_down(kernel, shape, bad, mixed, monkeypatch):
    monkeypatch.setenv(VARIABLE, kernel)
    if kernel == "triton":
        shape = (min(shape[0], 4), min(shape[1], 300), *shape[2:3], *([2] if len(shape) > 3 else []))
    x, labels = problem(shape, torch.float32)
    labels[-1] = labels[0]
    ignored = labels == -100
    target = smooth_labels(x, labels, 0.1)
    target = 0.7 * target + 0.3 * target.flip(0) if mixed else target
    x.requires_grad_()
    losses = cross_entropy(x, target, reduction="none")
    upstream = torch.ones_like(losses).masked_fill(ignored, bad)
    (gradient,) = torch.autograd.grad(losses, x, upstream, retain_graph=True)
    (expected,) = torch.autograd.grad(losses, x, torch.ones_like(losses))
    assert torch.equal(gradient, expected)
    for times in (1, 2):  # the gradient of the forward pass, and one that is made again
        loss = cross_entropy(x, target)
        for _ in range(times):
            (gradient,) = torch.autograd.grad(loss, x, torch.tensor(bad), retain_graph=True)
        assert not gradient.movedim(1, -1)[ignored].any()
        assert not gradient.movedim(1, -1)[~ignored].isfinite().any()
    rows = target.dense()
    (gradient,) = torch.autograd.grad(cross_entropy(x, rows, reduction="none"), x, upstream)
    assert not gradient.movedim(1, -1)[ignored].any()


def test_the_mean_of_each_sequence_may_be_of_padding_only():
    x = torch.randn(4, 64, 200, requires_grad=True)
    labels = torch.randint(64, (4, 200))
    labels[2] = -100
    losses = cross_entropy(x, smooth_labels(x, labels, 0.1), reduction="none")
    means = losses.sum(1) / (labels != -100).sum(1)
    torch.where(means.isnan(), 0, means).sum().backward()
    assert x.grad.isfinite().all()
    assert not x.grad[2].any()


# ---------------------------------------------------------------------------------------------------------------------
# Aliasing.


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
@pytest.mark.parametrize("spatial", SPATIAL[1:])
@pytest.mark.parametrize("validate", [None, True, False])
def test_a_target_shares_no_memory_with_its_labels(dtype, spatial, validate):
    logits, labels = torch.randn(3, 4, *spatial), torch.ones((3, *spatial), dtype=dtype)
    smoothing = torch.full((3, *spatial), 0.1)
    for target in (
        smooth_labels(logits, labels, 0.1, validate=validate),
        smooth_labels(logits, labels, smoothing, validate=validate),
        SoftTargets(labels.unsqueeze(1), 4, smoothing=smoothing.unsqueeze(1)),
    ):
        before = target.dense()
        kept = labels.clone(), smoothing.clone()
        labels.fill_(3)
        smoothing.fill_(0.9)
        assert torch.equal(target.dense(), before)
        labels.copy_(kept[0])
        smoothing.copy_(kept[1])


@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_what_backward_needs_may_not_be_changed_in_between(reduction):
    x, labels = problem((4, 5))
    x.requires_grad_()
    target = smooth_labels(x, labels, 0.1)
    losses = cross_entropy(x, target, reduction=reduction)
    labels.fill_(0)  # its own memory
    (expected,) = torch.autograd.grad(losses.sum(), x, retain_graph=True)
    assert_close(expected, torch.autograd.grad(losses.sum(), x, retain_graph=True)[0])
    target.classes.fill_(0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        losses.sum().backward()


@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_a_loss_that_is_kept_frees_its_target_after_backward(reduction):
    x, labels = problem((4, 5))
    x.requires_grad_()
    target = smooth_labels(x, labels, 0.1)
    alive = weakref.ref(target.classes)
    loss = cross_entropy(x, target, reduction=reduction).sum()
    loss.backward()
    del target
    gc.collect()
    assert alive() is None
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()


def test_one_row_of_logits_takes_a_prior_for_each_class_and_a_class_to_ignore():
    for label, ignore_index in ((1, 1), (2, 1)):
        x = torch.randn(4, dtype=torch.float64, requires_grad=True)
        prior = torch.randn(4, 4, dtype=torch.float64).softmax(1)
        target = SoftTargets(torch.tensor([label]), 4, smoothing=0.1, prior=prior, dtype=torch.float64)
        loss = cross_entropy(x, target, ignore_index=ignore_index)
        (gradient,) = torch.autograd.grad(loss, x)
        rows = dense_reference(target.classes, 4, 1.0, 0.1, prior) * (label != ignore_index)
        assert_close(loss, -(rows * x.log_softmax(0)).sum())
        assert_close(gradient, rows.sum() * x.detach().softmax(0) - rows)


@pytest.mark.parametrize("kernel", ["eager", "composite"])
@pytest.mark.parametrize("label", [-1, 1000, 10**9])
def test_labels_that_are_no_classes_raise_even_without_a_check(kernel, label, monkeypatch):
    monkeypatch.setenv(VARIABLE, kernel)
    x = torch.randn(300, 1000, requires_grad=True)
    target = smooth_labels(x, torch.full((300,), label), 0.1, validate=False)
    with pytest.raises((IndexError, RuntimeError), match="index"):
        cross_entropy(x, target)


@pytest.mark.parametrize("label", [-1, 300, 10**9])
@pytest.mark.parametrize("prior", [None, 1])
def test_labels_that_are_no_classes_give_nan_in_triton_and_read_nothing_else(label, prior, monkeypatch):
    monkeypatch.setenv(VARIABLE, "triton")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    x = torch.randn(3, 300, device=device, requires_grad=True)
    q = None if prior is None else torch.full((300,) * prior, 1 / 300, device=device)
    labels = torch.tensor([5, label, 7], device=device)
    losses = cross_entropy(x, smooth_labels(x, labels, 0.1, prior=q, validate=False), reduction="none")
    (gradient,) = torch.autograd.grad(losses.sum(), x)
    assert losses.isnan().tolist() == [False, True, False]
    assert gradient.isnan().all(1).tolist() == [False, True, False]


@pytest.mark.parametrize("kernel", ["eager", "composite", "triton"])
def test_one_class_with_a_prior_for_each_class_mixed(kernel, monkeypatch):
    monkeypatch.setenv(VARIABLE, kernel)
    x = torch.randn(4, 1, requires_grad=True)
    target = smooth_labels(x, torch.zeros(4, dtype=torch.long), 0.3, prior=torch.ones(1, 1))
    loss = cross_entropy(x, 0.7 * target + 0.3 * target.flip(0), reduction="sum")
    assert_close(loss, torch.tensor(0.0))
    assert_close(torch.autograd.grad(loss, x)[0], torch.zeros(4, 1))


def test_integer_logits_are_refused():
    with pytest.raises(TypeError, match=r"logits must be floating, but their dtype is torch.int64: use input.float()"):
        cross_entropy(torch.ones(2, 3, dtype=torch.long), torch.tensor([0, 1]))
