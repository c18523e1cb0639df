"""linear_cross_entropy equals the loss of the full logits, in value and in every gradient."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import Allocations, generators, random_prior, random_soft_targets
from torch.nn import functional as F
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

from composer_ls import LinearCrossEntropyLoss, cross_entropy, linear_cross_entropy, smooth_labels
from composer_ls.kernels import VARIABLE

N, D, K = 12, 6, 11
REDUCTIONS = ["mean", "sum", "none"]
TINY = 3 * K * 8
"""A budget for three rows of logits in float64, so that a dozen take several chunks."""


def layer(positions=(), dtype=torch.float64, bias=True, seed=0, scale=1.0):
    """Hidden states, weight and bias, each a leaf."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [(N, *positions, D), (K, D), (K,)] if bias else [(N, *positions, D), (K, D)]
    return [
        (scale * torch.randn(shape, dtype=torch.float64, generator=generator)).to(dtype).requires_grad_()
        for shape in shapes
    ]


def labels_for(positions=(), ignored=True, seed=0):
    labels = torch.randint(K, (N, *positions), generator=torch.Generator().manual_seed(seed))
    if ignored:
        labels[1:4] = -100
    return labels


def like_logits(hidden):
    return hidden.new_empty(()).expand(hidden.shape[0], K, *hidden.shape[1:-1])


def ours(leaves, target, **arguments):
    hidden, weight, *bias = leaves
    return linear_cross_entropy(hidden, weight, target, *bias, **{"memory_budget": TINY, **arguments})


def through_logits(leaves, target, class_weight=None, loss=cross_entropy, **arguments):
    hidden, weight, *bias = leaves
    return loss(F.linear(hidden, weight, *bias).movedim(-1, 1), target, class_weight, **arguments)


def value_and_gradients(loss, leaves):
    upstream = torch.tensor([1.0, 0.5, 2.0, -1.0], dtype=loss.dtype).repeat(loss.numel())[: loss.numel()]
    return loss.detach(), *torch.autograd.grad(loss, leaves, upstream.view(loss.shape))


def assert_same(leaves, target, **arguments):
    assert_close(
        value_and_gradients(ours(leaves, target, **arguments), leaves),
        value_and_gradients(through_logits(leaves, target, **arguments), leaves),
    )


@pytest.mark.parametrize("positions", [(), (3,), (2, 2)])
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("ignored", [False, True])
def test_labels_have_the_loss_and_gradients_of_pytorch(positions, reduction, weighted, smoothing, ignored):
    leaves, labels = layer(positions), labels_for(positions, ignored)
    arguments = {"reduction": reduction, "label_smoothing": smoothing}
    class_weight = torch.rand(K, dtype=torch.float64) if weighted else None
    assert_close(
        value_and_gradients(ours(leaves, labels, class_weight=class_weight, **arguments), leaves),
        value_and_gradients(through_logits(leaves, labels, class_weight, F.cross_entropy, **arguments), leaves),
    )


@given(
    generator=generators(),
    positions=st.sampled_from([(), (3,)]),
    components=st.integers(1, 3),
    prior_ndim=st.integers(0, 2),
    weighted=st.booleans(),
    bias=st.booleans(),
    reduction=st.sampled_from(REDUCTIONS),
    ignore_index=st.sampled_from([-100, 3]),
)
def test_mixtures_have_the_loss_and_gradients_that_they_have_with_logits(
    generator, positions, components, prior_ndim, weighted, bias, reduction, ignore_index
):
    leaves = layer(positions, bias=bias)
    target, _ = random_soft_targets((N, K, *positions), components, random_prior(K, prior_ndim, generator), generator)
    class_weight = torch.rand(K, dtype=torch.float64, generator=generator) if weighted else None
    assert_same(leaves, target, class_weight=class_weight, reduction=reduction, ignore_index=ignore_index)


@pytest.mark.parametrize("kernel", ["eager", "composite", "triton"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_every_kernel_writes_the_gradient_in_place_of_the_logits(kernel, dtype, reduction, monkeypatch):
    if kernel == "triton":
        pytest.importorskip("triton")
    monkeypatch.setenv(VARIABLE, kernel)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    leaves = layer(dtype=dtype)
    exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
    target = smooth_labels(like_logits(exact[0]), labels_for(), 0.1, prior=torch.arange(K).double().softmax(0))
    target = 0.7 * target + 0.3 * target.flip(0)
    monkeypatch.delenv(VARIABLE)
    expected = value_and_gradients(through_logits(exact, target, reduction=reduction), exact)
    monkeypatch.setenv(VARIABLE, kernel)
    actual = value_and_gradients(ours(leaves, target.to(dtype), reduction=reduction), leaves)
    for one, other in zip(actual, expected, strict=True):
        assert one.dtype == dtype
        tolerance = 1e-5 if dtype == torch.float32 else 2.0**-6
        assert_close(one.double(), other, rtol=tolerance, atol=tolerance * other.abs().max().item())


@pytest.mark.parametrize("positions", [(), (3,)])
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("prior", [None, torch.arange(K).double().softmax(0)])
def test_dense_rows_have_the_loss_and_gradients_that_they_have_with_logits(positions, reduction, weighted, prior):
    leaves = layer(positions)
    rows = torch.rand(N, K, *positions, dtype=torch.float64).softmax(1)
    rows[1:3] = 0  # ignored
    class_weight = torch.rand(K, dtype=torch.float64) if weighted else None
    assert_same(leaves, rows, class_weight=class_weight, reduction=reduction)
    smoothed = smooth_labels(like_logits(leaves[0]), rows, 0.1, prior=prior)
    assert_close(
        value_and_gradients(
            ours(leaves, rows, class_weight=class_weight, reduction=reduction, label_smoothing=0.1, prior=prior), leaves
        ),
        value_and_gradients(through_logits(leaves, smoothed, class_weight, reduction=reduction), leaves),
    )


@pytest.mark.parametrize("learning", [False, True])
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("ignore_index", [-100, 2])
def test_smoothing_with_another_prior_keeps_the_labels_of_the_target(reduction, ignore_index, learning):
    leaves, prior, class_weight = layer(), torch.arange(K).double().softmax(0), torch.linspace(1, 5, K).double()
    target = smooth_labels(like_logits(leaves[0]), labels_for(), 0.2)
    if learning:
        class_weight.requires_grad_()
    options = {"class_weight": class_weight, "ignore_index": ignore_index, "reduction": reduction}
    x = F.linear(*leaves)
    counted = (labels_for() != ignore_index) & (labels_for() != -100)
    rows = target.dense() * counted.unsqueeze(1)
    rows = 0.9 * rows + 0.1 * rows.sum(1, keepdim=True) * prior
    expected = -(rows * class_weight * x.log_softmax(1)).sum(1)
    if reduction != "none":
        expected = expected.sum() / (class_weight[labels_for().clamp(0)][counted].sum() if reduction == "mean" else 1)
    found = ours(leaves, target, label_smoothing=0.1, prior=prior, **options)
    assert_close(found, expected)
    for mine, wanted in zip(
        torch.autograd.grad(found.sum(), leaves), torch.autograd.grad(expected.sum(), leaves), strict=True
    ):
        assert_close(mine, wanted)
    begun = ours(leaves, target, label_smoothing=1e-7, prior=prior, **options)
    assert_close(begun, ours(leaves, target, **options), rtol=1e-5, atol=1e-6)


def test_a_prior_per_class_on_smoothed_targets_is_dense_and_refused_where_labels_are_needed():
    leaves, prior = layer(), random_prior(K, 2, torch.Generator().manual_seed(0))
    target = smooth_labels(like_logits(leaves[0]), labels_for(), 0.2)
    found = ours(leaves, target, label_smoothing=0.1, prior=prior)
    dense = smooth_labels(F.linear(*leaves), target.dense(), 0.1, prior=prior)
    assert_close(found, cross_entropy(F.linear(*leaves), dense))
    for options in ({"class_weight": torch.ones(K).double()}, {"ignore_index": 2}):
        with pytest.raises(
            ValueError, match="prior has one row per class and target is smoothed already.*label_smoothing=0"
        ):
            ours(leaves, target, label_smoothing=0.1, prior=prior, **options)


def test_smoothing_and_prior_of_the_loss_come_on_top_of_those_of_the_target():
    leaves, prior = layer(), torch.arange(K).double().softmax(0)
    like = like_logits(leaves[0])
    soft = smooth_labels(like, labels_for(), 0.2, prior=prior)
    both = smooth_labels(like, soft, 0.1, prior=prior)
    arguments = {"label_smoothing": 0.1, "prior": prior}
    assert_close(ours(leaves, soft, **arguments), through_logits(leaves, both))
    assert_close(
        ours(leaves, labels_for(), **arguments), ours(leaves, smooth_labels(like, labels_for(), **renamed(arguments)))
    )


def renamed(arguments):
    return {"smoothing": arguments["label_smoothing"], "prior": arguments["prior"]}


# ---------------------------------------------------------------------------------------------------------------------
# Precision.


@pytest.mark.parametrize("kind", ["labels", "dense"])
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_autocast_computes_the_layer_in_half_precision_and_sums_in_float32(kind, reduction, half):
    leaves, target = layer(dtype=torch.float32), labels_for()
    if kind == "dense":
        target = smooth_labels(like_logits(leaves[0]), target, 0.1).dense()
    exact = value_and_gradients(through_logits(leaves, target, reduction=reduction), leaves)
    with torch.autocast("cpu", half):
        loss = ours(leaves, target, reduction=reduction)
    assert loss.dtype == torch.float32
    for one, other in zip(value_and_gradients(loss, leaves), exact, strict=True):
        assert one.dtype == torch.float32
        assert_close(one, other, rtol=2.0**-5, atol=2.0**-6 * other.abs().max().item())


def test_sums_over_many_chunks_of_bfloat16_keep_their_digits():
    torch.manual_seed(0)
    hidden = torch.ones(4096, 2, dtype=torch.bfloat16)
    weight = torch.zeros(3, 2, dtype=torch.bfloat16, requires_grad=True)
    loss = linear_cross_entropy(
        hidden, weight, torch.zeros(4096, dtype=torch.long), reduction="sum", memory_budget=3 * 4
    )
    (gradient,) = torch.autograd.grad(loss, weight)
    expected = torch.tensor([[-2 / 3], [1 / 3], [1 / 3]]).expand(3, 2) * 4096
    assert_close(gradient.float(), expected, rtol=2.0**-7, atol=0)  # in bfloat16 a sum stops growing at 256 terms


def test_float16_keeps_what_the_mean_over_many_rows_divides():
    hidden = torch.randn(4000, D, dtype=torch.float16, requires_grad=True)
    weight = torch.randn(K, D, dtype=torch.float16, requires_grad=True)
    labels = torch.randint(K, (4000,))
    scale = 1024.0
    with torch.no_grad():
        exact = [hidden.double().requires_grad_(), weight.double().requires_grad_()]
    expected = torch.autograd.grad(scale * through_logits(exact, labels, ignore_index=-100), exact)
    loss = linear_cross_entropy(hidden, weight, labels)
    actual = torch.autograd.grad(loss.float() * scale, (hidden, weight))
    for one, other in zip(actual, expected, strict=True):
        assert_close(one.double(), other, rtol=2.0**-6, atol=2.0**-7 * other.abs().max().item())


@pytest.mark.parametrize(("rows", "classes"), [(8192, 1000), (20_000, 5)])
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("kind", ["labels", "dense"])
def test_float16_sums_over_many_rows_stay_finite(rows, classes, autocast, kind):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(rows, 16, generator=generator).half().float()
    hidden[:, 3] = 12.0
    weight = (0.02 * torch.randn(classes, 16, generator=generator)).half().float().requires_grad_()
    target = torch.zeros(rows, dtype=torch.long)
    target[::20] = torch.randint(classes, (len(target[::20]),), generator=generator)
    target = F.one_hot(target, classes).half() if kind == "dense" else target
    expected = gradient_of_layer(hidden.double(), weight.double(), target.double() if kind == "dense" else target)
    with torch.autocast("cpu", torch.float16, enabled=autocast):
        found = gradient_of_layer(*((hidden, weight) if autocast else (hidden.half(), weight.half())), target)
    assert_close(found.double(), expected, rtol=2.0**-9, atol=2.0**-10)


def gradient_of_layer(hidden, weight, target):
    weight = weight.detach().requires_grad_()
    return torch.autograd.grad(linear_cross_entropy(hidden, weight, target), weight)[0]


@pytest.mark.parametrize("shift", [0.0, -300.0, 1e4])
def test_labels_that_are_all_but_impossible_keep_their_loss(shift):
    leaves = layer(dtype=torch.float32)
    with torch.no_grad():
        leaves[2][:] = torch.linspace(-400, 400, K) + shift
    exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
    for smoothing in (0.0, 0.1):
        actual = value_and_gradients(ours(leaves, labels_for(), label_smoothing=smoothing), leaves)
        expected = value_and_gradients(
            through_logits(exact, labels_for(), loss=F.cross_entropy, label_smoothing=smoothing), exact
        )
        for one, other in zip(actual, expected, strict=True):
            assert_close(one.double(), other, rtol=1e-4, atol=1e-5)


def test_masked_classes_have_the_loss_and_gradients_of_logits():
    leaves = layer()
    with torch.no_grad():
        leaves[2][K - 1] = -torch.inf
    labels = labels_for().clamp(max=K - 2)
    spares = torch.ones(K, dtype=torch.float64)
    spares[K - 1] = 0
    for target in (labels, smooth_labels(like_logits(leaves[0]), labels, 0.1, prior=spares / spares.sum())):
        loss = ours(leaves, target)
        assert torch.isfinite(loss)
        assert_same(leaves, target)


# ---------------------------------------------------------------------------------------------------------------------
# What is ignored.


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("kind", ["labels", "weights", "dense"])
def test_ignored_rows_give_no_gradient_whatever_they_hold_and_whatever_comes_down(bad, reduction, kind):
    leaves, target = layer(), labels_for()
    with torch.no_grad():
        leaves[0][1:4] = bad
    if kind != "labels":
        target = smooth_labels(like_logits(leaves[0]), target, 0.1)
        target = target.dense() if kind == "dense" else 0.7 * target + 0.3 * target
    loss = ours(leaves, target, reduction=reduction)
    upstream = torch.ones_like(loss)
    if reduction == "none":
        assert loss[1:4].eq(0).all()
        upstream[1:4] = bad
    hidden, weight, bias = torch.autograd.grad(loss, leaves, upstream)
    assert hidden[1:4].eq(0).all()
    assert all(bool(gradient.isfinite().all()) for gradient in (loss, hidden, weight, bias))
    assert weight.abs().sum() > 0


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("positions", [(), (3,)])
def test_the_loss_of_nothing_is_zero_with_zero_gradients(reduction, positions):
    leaves = layer(positions)
    for target in (torch.full((N, *positions), -100), torch.zeros(N, K, *positions, dtype=torch.float64)):
        loss, *gradients = value_and_gradients(ours(leaves, target, reduction=reduction), leaves)
        assert loss.shape == ((N, *positions) if reduction == "none" else ())
        assert all(value.eq(0).all() for value in (loss, *gradients))


# ---------------------------------------------------------------------------------------------------------------------
# Autograd.


def test_an_embedding_that_is_the_head_too_gets_both_gradients():
    labels, weight = labels_for(), layer()[1]
    inputs = torch.randint(K, (N,))
    gradients = []
    for loss in (ours, through_logits):
        hidden = F.embedding(inputs, weight).tanh()
        total = loss([hidden, weight], labels) + 2 * loss([hidden.cos(), weight], labels)
        gradients.append(torch.autograd.grad(total, weight)[0])
    assert_close(*gradients)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_a_retained_graph_gives_the_same_gradients_every_time(reduction):
    leaves = layer()
    loss = ours(leaves, labels_for(), reduction=reduction).sum()
    once, twice = (torch.autograd.grad(loss, leaves, retain_graph=True) for _ in range(2))
    assert_close(once, twice)
    for gradient in once:
        gradient.fill_(torch.nan)  # theirs to change
    assert_close(torch.autograd.grad(loss, leaves), twice)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("changed", ["hidden", "weight", "bias", "classes", "rows"])
def test_what_backward_needs_may_not_be_changed_in_between(reduction, changed):
    leaves = layer()
    target = smooth_labels(like_logits(leaves[0]), labels_for(ignored=False), 0.1)
    target = target.dense() if changed == "rows" else target
    inputs = [leaf.clone() for leaf in leaves]
    loss = ours(inputs, target, reduction=reduction).sum()
    held = {**dict(zip(("hidden", "weight", "bias"), inputs, strict=True)), "rows": target}
    held.setdefault("classes", getattr(target, "classes", target))
    with torch.no_grad():
        held[changed].mul_(0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize(("changed", "dense"), [("prior", False), ("prior", True), ("smoothing", True)])
@pytest.mark.parametrize("use", ["first", "second"])
def test_what_smooths_may_not_be_changed_before_backward(reduction, changed, dense, use):
    leaves = layer()
    target = smooth_labels(like_logits(leaves[0]), labels_for(ignored=False), 0.0)
    held = {"prior": torch.arange(K).double().softmax(0), "smoothing": torch.tensor(0.1, dtype=torch.float64)}
    smoothing = held["smoothing"] if changed == "smoothing" else 0.1
    loss = ours(
        leaves, target.dense() if dense else target, reduction=reduction, label_smoothing=smoothing, prior=held["prior"]
    ).sum()
    if use == "second":
        torch.autograd.grad(loss, leaves, retain_graph=True)
    held[changed].mul_(0.5)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(loss, leaves)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("dense", [False, True])
def test_second_derivatives_are_those_of_the_logits(reduction, dense):
    leaves = layer()
    target = smooth_labels(like_logits(leaves[0]), labels_for(), 0.1)
    target = target.dense() if dense else target

    def second(loss):
        value = loss(leaves, target, reduction=reduction)
        gradients = torch.autograd.grad((value**2).sum(), leaves, create_graph=True)
        return torch.autograd.grad(sum((gradient**2).sum() for gradient in gradients), leaves)

    assert_close(second(ours), second(through_logits))


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_many_upstream_gradients_at_once_give_one_gradient_for_each(reduction):
    leaves = layer()
    upstream = torch.randn(3, *([N] if reduction == "none" else []), dtype=torch.float64)

    def batched(loss):
        return torch.autograd.grad(
            loss(leaves, labels_for(), reduction=reduction), leaves, upstream, is_grads_batched=True
        )

    assert_close(batched(ours), batched(lambda *a, **k: through_logits(*a, loss=F.cross_entropy, **k)))


def test_transforms_and_forward_mode_go_through_the_logits():
    leaves = [leaf.detach() for leaf in layer()]
    target = smooth_labels(like_logits(leaves[0]), labels_for(), 0.1)
    tangents = tuple(torch.randn_like(leaf) for leaf in leaves)
    for transform in (
        lambda f: torch.func.grad(f, argnums=(0, 1, 2))(*leaves),
        lambda f: torch.func.jvp(f, tuple(leaves), tangents),
        lambda f: torch.vmap(lambda h: f(h, *leaves[1:]))(torch.stack([leaves[0], -leaves[0]])),
    ):
        assert_close(transform(lambda *a: ours(a, target)), transform(lambda *a: through_logits(a, target)))


def test_class_weights_smoothing_and_dense_rows_that_learn_get_their_gradients():
    leaves = layer()
    amount = torch.full((), 0.1, dtype=torch.float64, requires_grad=True)
    class_weight = torch.rand(K, dtype=torch.float64, requires_grad=True)
    soft = smooth_labels(like_logits(leaves[0]), labels_for(), amount)
    learns = [*leaves, amount, class_weight]
    assert_close(
        torch.autograd.grad(ours(leaves, soft, class_weight=class_weight), learns),
        torch.autograd.grad(through_logits(leaves, soft, class_weight), learns),
    )
    rows = torch.rand(N, K, dtype=torch.float64).softmax(1).requires_grad_()
    assert_close(
        torch.autograd.grad(ours(leaves, rows), [*leaves, rows]),
        torch.autograd.grad(through_logits(leaves, rows), [*leaves, rows]),
    )


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("ndim", [1, 2])
def test_smoothing_and_prior_of_the_loss_learn_with_dense_rows_too(reduction, ndim):
    leaves, prior = layer(), torch.full((K,) * ndim, 1 / K, dtype=torch.float64, requires_grad=True)
    amount = torch.tensor(0.1, dtype=torch.float64, requires_grad=True)
    rows = smooth_labels(like_logits(leaves[0]), labels_for(), 0.0).dense()
    found = ours(leaves, rows, reduction=reduction, label_smoothing=amount, prior=prior)
    smoothed = smooth_labels(like_logits(leaves[0]), rows, amount, prior=prior)
    expected = through_logits(leaves, smoothed, reduction=reduction)
    learns = [*leaves, amount, prior]
    assert_close(torch.autograd.grad(found.sum(), learns), torch.autograd.grad(expected.sum(), learns))


@pytest.mark.parametrize("dense", [False, True])
def test_a_weight_of_zero_learns_from_the_loss_of_its_row(dense):
    leaves, weights = layer(), torch.zeros(N, 1, dtype=torch.float64, requires_grad=True)
    target = smooth_labels(like_logits(leaves[0]), labels_for(ignored=False), 0.1)
    target = target.dense() if dense else target
    loss = ours(leaves, target * weights, reduction="sum")
    expected = ours(leaves, target, reduction="none")
    assert_close(torch.autograd.grad(loss, weights)[0].flatten(), expected)


@pytest.mark.parametrize("learns", [[0], [1], [2], [0, 1], []])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_only_what_learns_gets_a_gradient(learns, reduction):
    leaves = [leaf.requires_grad_(i in learns) for i, leaf in enumerate(layer())]
    loss, expected = (
        ours(leaves, labels_for(), reduction=reduction),
        through_logits(leaves, labels_for(), loss=F.cross_entropy, reduction=reduction),
    )
    assert_close(loss, expected)
    assert loss.requires_grad == bool(learns)
    wanted = [leaves[i] for i in learns]
    if wanted:
        assert_close(torch.autograd.grad(loss.sum(), wanted), torch.autograd.grad(expected.sum(), wanted))


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_gradient_checkpointing_changes_nothing(use_reentrant):
    leaves = layer()
    loss = checkpoint(lambda *a: ours(a, labels_for()), *leaves, use_reentrant=use_reentrant)
    assert_close(
        torch.autograd.grad(loss, leaves) if not use_reentrant else backward(loss, leaves),
        torch.autograd.grad(through_logits(leaves, labels_for(), loss=F.cross_entropy), leaves),
    )


def backward(loss, leaves):
    loss.backward()
    return tuple(leaf.grad for leaf in leaves)


# ---------------------------------------------------------------------------------------------------------------------
# Memory.


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("kind", ["labels", "smoothed", "mixed", "per-class prior"])
def test_no_more_logits_than_the_budget_exist_at_any_time(reduction, kind):
    classes = 400
    hidden, weight = torch.randn(512, 4, requires_grad=True), torch.randn(classes, 4, requires_grad=True)
    like, labels = hidden.new_empty(()).expand(512, classes), torch.randint(classes, (512,))
    prior = torch.full((classes, classes), 1 / classes) if kind == "per-class prior" else None
    target = labels if kind == "labels" else smooth_labels(like, labels, 0.1, prior=prior)
    if kind == "mixed":
        target = 0.7 * target + 0.3 * target.flip(0)
    budget = 16 * classes * 4
    with Allocations(nbytes=2 * budget) as made:
        linear_cross_entropy(hidden, weight, target, reduction=reduction, memory_budget=budget).sum().backward()
    assert made.count == 0
    with Allocations(nbytes=512 * classes * 4) as made:
        cross_entropy(F.linear(hidden, weight), target, reduction=reduction).sum().backward()
    assert made.count >= 2  # the count sees logits


# ---------------------------------------------------------------------------------------------------------------------
# The module, and what is refused.


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_the_module_delegates_with_all_its_settings(reduction):
    settings = {
        "class_weight": torch.rand(K, dtype=torch.float64),
        "ignore_index": 3,
        "reduction": reduction,
        "label_smoothing": 0.2,
        "prior": torch.arange(K).double().softmax(0),
        "memory_budget": TINY,
    }
    hidden, weight, bias = layer((3,))
    labels = labels_for((3,), ignored=False)
    module = LinearCrossEntropyLoss(**settings)
    assert_close(module(hidden, weight, labels, bias), linear_cross_entropy(hidden, weight, labels, bias, **settings))
    assert set(module.state_dict()) == {"class_weight", "prior"}
    assert f"reduction={reduction!r}" in repr(module)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"hidden": torch.zeros(N, D + 1)}, ValueError, r"hidden has shape \(12, 7\) and weight \(11, 6\)"),
        ({"hidden": torch.zeros(N, D).long()}, TypeError, "hidden must be floating, but its dtype is torch.int64"),
        (
            {"hidden": torch.zeros(N, D).cfloat()},
            TypeError,
            "hidden must be floating, but its dtype is torch.complex64",
        ),
        ({"hidden": torch.zeros(N, D).bfloat16()}, TypeError, "hidden is torch.bfloat16, but weight torch.float32"),
        ({"weight": torch.zeros(K, D, device="meta")}, ValueError, "hidden is on cpu, but weight on meta"),
        ({"bias": torch.zeros(K + 1)}, ValueError, r"bias has shape \(12,\), but weight \(11, 6\) takes \(11,\)"),
        ({"class_weight": torch.ones(K + 1)}, ValueError, r"class_weight has shape \(12,\), but must be \(11,\)"),
        ({"reduction": "avg"}, ValueError, "reduction must be .*'avg'"),
        ({"memory_budget": 0}, ValueError, "memory_budget must be a positive number of bytes, but is 0"),
        ({"target": torch.full((N,), K)}, ValueError, r"target\[0\] is 11, but the logits have 11 classes"),
        ({"target": torch.zeros(N, K + 1)}, ValueError, r"target has shape \(12, 12\)"),
        (
            {"target": smooth_labels(torch.zeros(N, K + 1), torch.zeros(N).long())},
            ValueError,
            r"\(12, 12\).*\(12, 11\)",
        ),
    ],
)
def test_arguments_that_do_not_fit_are_refused_with_the_reason(change, error, message):
    arguments = {"hidden": torch.zeros(N, D), "weight": torch.zeros(K, D), "target": torch.zeros(N).long(), **change}
    with pytest.raises(error, match=message):
        linear_cross_entropy(**arguments)
