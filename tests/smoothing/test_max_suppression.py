"""max_suppression against the MaxSup loss in float64, in value and gradient."""

import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import SPATIAL, Allocations, class_dim, generators
from torch.nn import functional as F
from torch.testing import assert_close

from composer_ls import SoftTargets, cross_entropy, linear_cross_entropy, smooth_labels
from composer_ls.kernels import VARIABLE
from composer_ls.smoothing import max_suppression
from composer_ls.smoothing.max_suppression import BLOCK, largest_class

STRENGTHS = st.sampled_from([0.0, 0.1, 0.2, 0.5, 0.9])


def shaped(spatial, num_classes):
    return ((num_classes,), ()) if spatial is None else ((3, num_classes, *spatial), (3, *spatial))


def one_hot(labels, num_classes):
    rows = F.one_hot(labels.clamp(0), num_classes).double() * (labels != -100).unsqueeze(-1)
    return rows if labels.ndim == 0 else rows.movedim(-1, 1)


def max_sup_loss(logits, rows, strength):
    """The published loss of every row: cross entropy, plus the penalty times the row's mass."""
    dim = class_dim(logits)
    penalty = logits.amax(dim) - logits.mean(dim)
    return -(rows * logits.log_softmax(dim)).sum(dim) + strength * rows.sum(dim) * penalty


def problem(generator, spatial, num_classes):
    shape, label_shape = shaped(spatial, num_classes)
    logits = (3 * torch.randn(shape, dtype=torch.float64, generator=generator)).requires_grad_()
    labels = torch.randint(num_classes, label_shape, generator=generator)
    return logits, labels.masked_fill(torch.rand(label_shape, generator=generator) < 0.25, -100)


@pytest.mark.parametrize("kernel", ["eager", "composite", "triton"])
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(generators(), st.sampled_from(SPATIAL), st.integers(2, 9), STRENGTHS, st.sampled_from([None, 0.0, 0.3]))
def test_loss_and_gradient_are_those_of_max_sup_mixed_or_not(kernel, generator, spatial, num_classes, strength, mixing):
    if kernel == "triton" and not torch.cuda.is_available():
        kernel = "eager"
    logits, labels = problem(generator, spatial, num_classes)
    target, rows = max_suppression(logits, labels, strength), one_hot(labels, num_classes)
    if mixing is not None and spatial is not None:
        second = max_suppression(logits, labels.flip(0), strength)
        target, rows = (1 - mixing) * target + mixing * second, (1 - mixing) * rows + mixing * rows.flip(0)
    assert isinstance(target, SoftTargets)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(VARIABLE, kernel)
        losses = cross_entropy(logits, target, reduction="none")
        (gradient,) = torch.autograd.grad(losses.sum(), logits)
        mean = cross_entropy(logits, target)
    expected = max_sup_loss(logits, rows, strength)
    assert_close(losses, expected)
    assert_close(gradient, torch.autograd.grad(expected.sum(), logits)[0])
    counted = rows.sum(class_dim(logits)) != 0
    assert_close(mean, expected.sum() / counted.sum().clamp(min=1))
    assert_close(target.dense().sum(class_dim(logits)), rows.sum(class_dim(logits)))


@settings(deadline=None)
@given(generators(), st.sampled_from(SPATIAL), st.integers(2, 9), STRENGTHS)
def test_dense_rows_and_soft_targets_get_the_target_of_their_labels(generator, spatial, num_classes, strength):
    logits, labels = problem(generator, spatial, num_classes)
    expected = max_suppression(logits, labels, strength).dense()
    assert_close(max_suppression(logits, one_hot(labels, num_classes), strength), expected)
    assert_close(max_suppression(logits, smooth_labels(logits, labels, 0.0), strength).dense(), expected)
    smoothed = smooth_labels(logits, labels, 0.2)
    penalty = expected - one_hot(labels, num_classes)
    assert_close(max_suppression(logits, smoothed, strength), smoothed.dense() + penalty)


@pytest.mark.parametrize("strength", [0.1, 0.4])
def test_where_the_network_is_right_it_is_label_smoothing(strength):
    logits = torch.randn(32, 7, dtype=torch.float64)
    labels = logits.argmax(1)
    expected = smooth_labels(logits, labels, strength).dense()
    assert_close(max_suppression(logits, labels, strength).dense(), expected)


def test_a_wrong_answer_becomes_less_confident_where_smoothing_makes_it_more_so():
    logits = torch.tensor([[3.0, 0.0, 1.0, -2.0]])
    plain, smoothed, suppressed = (
        target.dense()[0] for target in (
            smooth_labels(logits, torch.tensor([2]), 0.0),
            smooth_labels(logits, torch.tensor([2]), 0.1),
            max_suppression(logits, torch.tensor([2]), 0.1),
        )
    )  # fmt: skip
    assert suppressed[0] < plain[0] < smoothed[0]  # the target of the largest logit, which is wrong
    assert smoothed[2] < plain[2] < suppressed[2]  # that of the label


@settings(deadline=None, max_examples=30)
@given(generators(), st.sampled_from([(), (4,)]), STRENGTHS)
def test_class_weights_weigh_the_row_as_pytorch_weighs_probabilities(generator, spatial, strength):
    logits, labels = problem(generator, spatial, 5)
    weight = torch.rand(5, dtype=torch.float64, generator=generator) + 0.1
    target = max_suppression(logits, labels, strength)
    rows = one_hot(labels, 5)
    rows = rows + strength * rows.sum(1, keepdim=True) * (1 / 5 - one_hot(logits.argmax(1), 5))
    expected = F.cross_entropy(logits, rows, weight, reduction="none")
    assert_close(cross_entropy(logits, target, weight, reduction="none"), expected)
    counted = labels != -100
    each = (weight[labels.clamp(0)] + strength * weight[logits.argmax(1)]) / (1 + strength)
    divisor = each[counted].sum()
    assert_close(cross_entropy(logits, target, weight), expected.sum() / divisor if counted.any() else divisor)


def test_an_ignored_position_gets_no_gradient_whatever_its_logits():
    logits = torch.tensor([[1.0, 2.0, 0.0], [math.nan, math.inf, 0.0]], requires_grad=True)
    cross_entropy(logits, max_suppression(logits, torch.tensor([0, -100]), 0.2)).backward()
    assert torch.equal(logits.grad[1], torch.zeros(3))
    assert logits.grad[0].abs().min() > 0


def test_bfloat16_logits_agree_to_their_rounding():
    generator = torch.Generator().manual_seed(0)
    logits, labels = 3 * torch.randn(64, 50, generator=generator), torch.randint(50, (64,), generator=generator)
    logits = logits.scatter(1, logits.argmax(1, keepdim=True), 16.0).bfloat16().requires_grad_()  # without ties
    exact = logits.detach().double().requires_grad_()
    loss, expected = (
        cross_entropy(logits, max_suppression(logits, labels, 0.1)),
        max_sup_loss(exact, one_hot(labels, 50), 0.1),
    )
    loss.backward()
    expected.mean().backward()
    assert_close(loss.double(), expected.mean(), rtol=2**-7, atol=0)
    assert_close(logits.grad.double(), exact.grad, rtol=2**-7, atol=1e-4)


@pytest.mark.parametrize("classes", [3, 8 * BLOCK, 8 * BLOCK + 1, 10 * BLOCK + 77])
def test_the_largest_class_is_found_at_every_number_of_classes(classes):
    logits = torch.randn(200, classes)
    assert torch.equal(largest_class(logits), logits.argmax(1))
    logits[torch.arange(200), torch.randint(classes, (200,))] = 50.0
    logits[:100, -1] = 100.0
    assert torch.equal(largest_class(logits), logits.argmax(1))


def test_nothing_as_large_as_the_logits_is_made_beside_them_and_the_gradient():
    logits = torch.randn(64, 4000, requires_grad=True)
    labels = torch.randint(4000, (64,))
    with Allocations(logits.nbytes, (logits,)) as made:
        cross_entropy(logits, max_suppression(logits, labels, 0.1)).backward()
    assert made.count == 1


def test_torch_compile_gives_the_same_loss():
    logits, labels = torch.randn(8, 5, requires_grad=True), torch.randint(5, (8,))

    def loss(logits, labels):
        return cross_entropy(logits, max_suppression(logits, labels, 0.1))

    compiled = torch.compile(loss, backend="aot_eager")
    assert_close(compiled(logits, labels), loss(logits, labels))
    ours, theirs = (torch.autograd.grad(f(logits, labels), logits)[0] for f in (compiled, loss))
    assert_close(ours, theirs)


@pytest.mark.parametrize(
    ("strength", "error", "message"),
    [
        (-0.1, ValueError, r"strength must be in \[0, 1\), but is -0.1"),
        (1.0, ValueError, "but is 1.0; 0.1 is usual"),
        (math.nan, ValueError, "but is nan"),
        ("0.1", TypeError, "must be a number .* but is '0.1'"),
        (True, TypeError, "but is True"),
    ],
)
def test_wrong_strengths_are_refused(strength, error, message):
    with pytest.raises(error, match=message):
        max_suppression(torch.zeros(1, 3), torch.tensor([0]), strength)


def through_a_layer(x, target, weight=None, ignore_index=-100, reduction="mean"):
    layer = torch.eye(x.shape[1], dtype=x.dtype)
    return linear_cross_entropy(x, layer, target, class_weight=weight, ignore_index=ignore_index, reduction=reduction)


@pytest.mark.parametrize("loss", [cross_entropy, F.cross_entropy, through_a_layer])
@pytest.mark.parametrize("weight", [None, torch.tensor([2.0, 1.0, 5.0])])
@pytest.mark.parametrize("ignored_before", [True, False])
def test_an_ignored_class_that_is_merely_the_largest_is_penalised(loss, weight, ignored_before):
    x = torch.tensor([[3.0, 1.0, 0.0], [0.0, 2.0, 1.0], [1.0, 0.0, 5.0]], requires_grad=True)
    labels = torch.tensor([1, 1, 0])
    target = max_suppression(x, labels, 0.2, ignore_index=0 if ignored_before else -100)
    found = loss(x, target, weight, ignore_index=0)
    expected = loss(x[:2], max_suppression(x[:2], labels[:2], 0.2), weight)
    assert_close(found, expected)
    if weight is None:
        assert found.item() == pytest.approx(1.5554, abs=1e-4)
        penalty = x[:2].amax(1) - x[:2].mean(1)
        assert_close(found, F.cross_entropy(x[:2], labels[:2]) + 0.2 * penalty.mean())
    (gradient,), (wanted,) = torch.autograd.grad(found, x), torch.autograd.grad(expected, x)
    assert_close(gradient, wanted)
    assert not gradient[2].any()
    assert loss(x, target, weight, ignore_index=0, reduction="none")[2] == 0
    assert loss(x[2:], target[2:], weight, ignore_index=0) == 0


def test_the_gradient_where_the_largest_class_is_ignored_is_that_by_hand():
    x = torch.tensor([[math.log(3), 0.0, 0.0]], dtype=torch.float64, requires_grad=True)
    target = max_suppression(x, torch.tensor([1]), 0.3, ignore_index=0)
    cross_entropy(x, target, ignore_index=0).backward()
    assert_close(x.grad, torch.tensor([[0.6 + 0.3 - 0.1, 0.2 - 1 - 0.1, 0.2 - 0.1]], dtype=torch.float64))


def test_the_penalty_of_a_mix_with_an_ignored_label_is_that_of_the_label_that_is_left():
    x = torch.tensor([[3.0, 1.0, 0.0], [0.0, 2.0, 1.0]])
    first, second = (max_suppression(x, torch.tensor(labels), 0.2) for labels in ([1, 2], [0, 0]))
    found = cross_entropy(x, 0.7 * first + 0.3 * second, ignore_index=0, reduction="none")
    assert_close(found, cross_entropy(x, 0.7 * first, reduction="none"))


@pytest.mark.parametrize("weights", [1.0, -1.0, 0.0])
def test_a_number_as_weight_goes_with_an_ignored_class(weights):
    x, classes = torch.tensor([[3.0, 1.0, 0.0], [0.0, 2.0, 1.0]]), torch.tensor([[0], [1]])
    losses = cross_entropy(x, SoftTargets(classes, 3, weights), ignore_index=0, reduction="none")
    assert_close(losses, weights * F.cross_entropy(x, classes[:, 0], ignore_index=0, reduction="none"))
    both = SoftTargets(torch.tensor([[0, 1], [0, 0]]), 3, weights)
    losses = cross_entropy(x, both, ignore_index=0, reduction="none")
    assert_close(losses, weights * F.cross_entropy(x, torch.tensor([1, 0]), ignore_index=0, reduction="none"))


def test_no_examples_and_an_ignored_class_cost_nothing():
    x = torch.zeros(0, 3, requires_grad=True)
    loss = cross_entropy(x, max_suppression(x, torch.zeros(0).long(), 0.2, ignore_index=0), ignore_index=0)
    loss.backward()
    assert loss == 0
