"""Small logits on the CPU: the same loss and gradient as the kernels, in fewer operations."""

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from composer_ls import cross_entropy, smooth_labels
from composer_ls.kernels import VARIABLE, small

SHAPES = [
    (1, 1),
    (4, 2),
    (2, 200),
    (512, 10),
    (33, small.VECTOR - 1),
    (33, small.VECTOR),
    (64, 1000),
    (2, 5, 7, 3),
    (3, 40, 6),
]
TARGETS = ["hard", "smoothed", "mixed", "hard and mixed", "halved", "prior", "prior mixed", "priors", "priors mixed"]
TARGETS += ["factors", "factors mixed", "prior, factors", "priors, factors mixed"]


def made(kind, logits, labels):
    smoothing, classes = 0.0 if kind.startswith("hard") else 0.1, logits.shape[1]
    prior = torch.arange(1.0, classes + 1) if kind.startswith("prior") else None
    if kind.startswith("priors"):  # one for each class
        prior = torch.stack([prior.roll(by) for by in range(classes)])
    if "factors" in kind:
        smoothing = torch.linspace(0.1, 0.3, labels.numel()).view(labels.shape)
    target = smooth_labels(
        logits, labels, smoothing, prior=None if prior is None else prior / prior.sum(-1, keepdim=True)
    )
    if "mixed" in kind:
        return 0.7 * target + 0.3 * target.flip(0)
    return 0.5 * target if kind == "halved" else target


def problem(shape, dtype=torch.float32):
    generator = torch.Generator().manual_seed(sum(shape))
    logits = 3 * torch.randn(shape, generator=generator, dtype=torch.float64)
    labels = torch.randint(shape[1], (shape[0], *shape[2:]), generator=generator)
    return logits.to(dtype).requires_grad_(), labels


@pytest.fixture
def count(monkeypatch):
    """How often the small form is used."""
    calls = []
    monkeypatch.setattr(
        small, "small_loss", lambda *args, f=small.small_loss, **named: calls.append(1) or f(*args, **named)
    )
    return calls


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("kind", TARGETS)
@pytest.mark.parametrize("shape", SHAPES)
def test_loss_and_gradient_are_those_of_the_kernel_in_float64(shape, kind, reduction, count, monkeypatch):
    logits, labels = problem(shape)
    loss = cross_entropy(logits, made(kind, logits, labels), reduction=reduction)
    (gradient,) = torch.autograd.grad(loss, logits, torch.full_like(loss, 0.5))
    used = 0 if kind.startswith("priors") and shape[1] ** 2 > small.LIMIT else 1
    assert len(count) == used
    monkeypatch.setenv(VARIABLE, "eager")
    exact = logits.detach().double().requires_grad_()
    expected = cross_entropy(exact, made(kind, exact, labels), reduction=reduction)
    assert_close(loss, expected.float(), rtol=1e-6, atol=1e-6)
    expected_gradient = torch.autograd.grad(expected, exact, torch.full_like(expected, 0.5))[0].float()
    assert_close(gradient, expected_gradient, rtol=1e-5, atol=2e-7)  # of numbers up to 1, in float32
    assert len(count) == used


@pytest.mark.parametrize("columns", [10, 100])
def test_it_ends_at_its_limit(columns, count):
    rows = small.LIMIT // columns
    for shape, expected in (((rows, columns), 1), ((rows + 1, columns), 0)):
        logits, labels = problem(shape)
        loss = cross_entropy(logits, smooth_labels(logits, labels, 0.1))
        assert_close(loss, F.cross_entropy(logits, labels, label_smoothing=0.1))
        assert len(count) == expected
        count.clear()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes_are_computed_in_wide_ones(dtype, count):
    logits, labels = problem((64, 10), dtype)
    loss = cross_entropy(logits, made("mixed", logits, labels))
    (gradient,) = torch.autograd.grad(loss, logits)
    exact = logits.detach().double().requires_grad_()
    expected = F.cross_entropy(exact, made("mixed", exact, labels).dense())
    assert (loss.dtype, gradient.dtype, len(count)) == (dtype, dtype, 1)
    assert_close(loss, expected.to(dtype))
    assert_close(gradient, torch.autograd.grad(expected, exact)[0].to(dtype))


def test_a_label_of_weight_0_at_an_impossible_class_costs_nothing(count):
    logits = torch.tensor([[0.0, 1.0, -torch.inf]], requires_grad=True)
    target = 1.0 * smooth_labels(logits, torch.tensor([1]), 0.0) + 0.0 * smooth_labels(logits, torch.tensor([2]), 0.0)
    loss = cross_entropy(logits, target)
    assert_close(loss, F.cross_entropy(logits, torch.tensor([1])))
    assert torch.autograd.grad(loss, logits)[0].isfinite().all()
    assert not count


def test_hard_labels_beside_an_impossible_class_are_as_in_pytorch(count):
    logits = torch.tensor([[0.0, 1.0, -torch.inf], [0.0, 2.0, -torch.inf]], requires_grad=True)
    labels = torch.tensor([1, 0])
    hard = smooth_labels(logits, labels, 0.0)
    for target, expected in ((hard, labels), (0.7 * hard + 0.3 * hard, labels)):
        loss = cross_entropy(logits, target)
        assert_close(loss, F.cross_entropy(logits, expected))
        assert torch.autograd.grad(loss, logits)[0].isfinite().all()
    assert len(count) == 2


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("label", [-100, -1, 4])
def test_a_class_out_of_range_is_an_error(count, label, smoothing):
    logits = torch.zeros(2, 4)
    target = smooth_labels(logits, torch.tensor([label, 1]), smoothing, ignore_index=None, validate=False)
    with pytest.raises((IndexError, RuntimeError), match="out of bounds"):
        cross_entropy(logits, target)
    assert count


def test_second_derivatives_exist(count):
    logits, labels = problem((5, 4), torch.float64)
    assert torch.autograd.gradgradcheck(lambda x: cross_entropy(x, made("mixed", x, labels)), logits)
    assert count


@pytest.mark.parametrize("rows", [1, 3])
def test_a_prior_of_0_at_an_impossible_class_costs_nothing(count, rows):
    logits = torch.tensor([[0.0, 1.0, -torch.inf]], requires_grad=True)
    prior = torch.tensor([0.5, 0.5, 0.0])
    target = smooth_labels(logits, torch.tensor([1]), 0.2, prior=prior if rows == 1 else prior.expand(3, 3))
    loss = cross_entropy(logits, target)
    assert_close(loss, F.cross_entropy(logits[:, :2], torch.tensor([1]), label_smoothing=0.2))
    assert torch.autograd.grad(loss, logits)[0].isfinite().all()
    assert not count


def test_large_logits_lose_no_digits(count):
    logits, labels = problem((64, 10))
    shifted = (logits.detach() + 1e4).requires_grad_()
    loss = cross_entropy(shifted, smooth_labels(shifted, labels, 0.1))
    expected = F.cross_entropy(shifted.double(), labels, label_smoothing=0.1)
    assert_close(loss, expected.float(), rtol=1e-6, atol=0)
    assert count


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("kind", TARGETS)
@pytest.mark.parametrize("shape", [(0, 5), (0, 5, 3), (3, 5, 0), (0, 200)])
def test_a_batch_without_examples_has_no_loss(shape, kind, reduction):
    logits, labels = problem(shape)
    loss = cross_entropy(logits, made(kind, logits, labels), reduction=reduction)
    assert loss.sum() == 0
    assert loss.shape == (labels.shape if reduction == "none" else ())
    loss.sum().backward()
    assert logits.grad.shape == logits.shape
