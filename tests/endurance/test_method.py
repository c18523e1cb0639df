"""Ten thousand generated cases of the method's functions against dense formulas in float64, a million with --long.

A failure names its case: ``pytest tests/endurance -k loss --case 1234`` repeats it.
"""

import random
from dataclasses import dataclass

import pytest
import torch
from support import dense_reference
from torch.nn import functional as F

from composer_ls import SoftTargets, cross_entropy, dice_loss, linear_cross_entropy, smooth_labels
from composer_ls.kernels import VARIABLE
from composer_ls.smoothing import unigram_prior

pytestmark = pytest.mark.slow

TOLERANCE = {torch.float32: 2e-5, torch.float64: 1e-9, torch.bfloat16: 2e-2, torch.float16: 4e-3}


@dataclass
class Problem:
    """Logits and a target, with the dense rows that it stands for, and which rows count."""

    logits: torch.Tensor
    labels: torch.Tensor
    target: SoftTargets
    rows: torch.Tensor
    counts: torch.Tensor
    weight: torch.Tensor | None
    label_weight: torch.Tensor
    reduction: str
    words: str


def draw(number, dtypes=(torch.float32, torch.float64, torch.bfloat16)):
    """The problem of this number: shape, dtype, layout, smoothing, prior, mixing, weights and ignored labels."""
    choose = random.Random(number)
    generator = torch.Generator().manual_seed(number)
    spatial = choose.choice([(), (), (), (3,), (2, 3), (17, 11)])
    N, K = choose.choice([1, 2, 5, 33]), choose.choice([2, 3, 10, 33, 257, 1000])
    if N * K * torch.Size(spatial).numel() > 60_000:
        N, spatial = 2, ()
    dtype = choose.choice(dtypes)
    x = (choose.choice([0.1, 3.0, 30.0]) * torch.randn((N, K, *spatial), generator=generator)).to(dtype)
    x = x + choose.choice([0.0, 0.0, 100.0])
    layout = choose.choice(["contiguous", "classes last", "sliced"])
    if layout == "classes last":
        x = x.movedim(1, -1).contiguous().movedim(-1, 1)
    elif layout == "sliced":
        x = torch.stack([x, x], -1)[..., 0]
    label_shape = (N, *spatial)
    labels = torch.randint(K, label_shape, generator=generator)
    ignore_index = choose.choice([-100, -100, 255 if K <= 255 else -1, K - 1])
    if choose.random() < 0.5:
        labels[torch.rand(label_shape, generator=generator) < choose.choice([0.1, 0.9])] = ignore_index
    kind = choose.choice(["number", "number", "each", "others"])
    smoothing = {
        "number": choose.choice([0.0, 1e-4, 0.1, 1.0]), "each": torch.rand(label_shape, generator=generator, dtype=torch.float64), "others": 0.1
    }[kind]  # fmt: skip
    prior_ndim = 0 if kind == "others" else choose.choice([0, 0, 1, 2 if K <= 33 else 1])
    prior = torch.rand((K,) * prior_ndim, generator=generator, dtype=torch.float64).softmax(-1) if prior_ndim else None
    target = smooth_labels(
        x, labels.to(choose.choice([torch.int64, torch.int32, torch.int16])), smoothing, prior=prior,
        ignore_index=ignore_index, spread="others" if kind == "others" else "all",
    )  # fmt: skip
    # The same, from the formula.
    alpha = torch.as_tensor(smoothing, dtype=torch.float64).expand(label_shape)
    alpha = alpha * K / (K - 1) if kind == "others" else alpha
    counted = (labels != ignore_index).double().unsqueeze(1)
    classes = labels.where(labels != ignore_index, 0).unsqueeze(1)
    rows = dense_reference(classes, K, counted, alpha.unsqueeze(1), prior)
    share = counted
    weight = torch.rand(K, generator=generator) + 0.05 if choose.random() < 0.4 else None
    each = torch.ones_like(share) if weight is None else weight.double()[classes]
    label_weight = each * share
    mixes = choose.choice([0, 0, 1, 2])
    for _ in range(mixes):
        lam, shift = choose.choice([0.0, 0.3, 1.0]), choose.randint(0, N)
        target = (1 - lam) * target + lam * target.roll(shift, 0)
        rows = (1 - lam) * rows + lam * rows.roll(shift, 0)
        label_weight = (1 - lam) * label_weight + lam * label_weight.roll(shift, 0)
        share = (1 - lam) * share + lam * share.roll(shift, 0)
    if choose.random() < 0.2:
        factor = torch.rand((N, 1, *[1] * len(spatial)), generator=generator) + 0.1
        target, rows = target * factor, rows * factor.double()
    reduction = choose.choice(["mean", "sum", "none"])
    words = (
        f"logits {tuple(x.shape)} {dtype} {layout}, smoothing {kind}, prior {prior_ndim}, ignore {ignore_index}, {mixes} mixes, "
        f"{'class weights, ' if weight is not None else ''}{reduction}"
    )
    divisors = torch.where(share > 0, label_weight / share.clamp_min(1e-300), 0)
    return Problem(x, labels, target, rows, share.squeeze(1) > 0, weight, divisors.squeeze(1), reduction, words)


def reference(problem, x):
    """The loss from the dense rows: ignored rows cost nothing, and a row counts the class weight of its labels."""
    shape = (1, -1, *[1] * (x.ndim - 2))
    weight = 1.0 if problem.weight is None else problem.weight.double().view(shape)
    terms = torch.where(problem.rows == 0, 0, problem.rows * weight * x.log_softmax(1))
    losses = torch.where(problem.counts, -terms.sum(1), 0)
    if problem.reduction == "none":
        return losses
    divisor = problem.label_weight.sum() if problem.reduction == "mean" else 1.0
    return losses.sum() / divisor if divisor else losses.sum() * 0


def assert_near(found, wanted, tolerance, words, least=1e-2):
    """To the tolerance, of the largest number that is wanted or of ``least``."""
    scale = max(wanted.abs().max().item(), least) if wanted.numel() else 1.0
    worst = (found.detach().double() - wanted).abs().max().item() if wanted.numel() else 0.0
    assert worst <= tolerance * scale, f"{words}: off by {worst:g} of {scale:g}"


def each_case(numbers, check):
    """Check every case; a failure names its number."""
    for number in numbers:
        try:
            check(number)
        except Exception as error:
            raise AssertionError(f"case {number} (repeat it with --case {number}): {error}") from error


@pytest.mark.parametrize("kernel", ["chosen", "composite", "triton"])
def test_loss_and_gradient_of_any_target(cases, kernel, monkeypatch):
    if kernel != "chosen":
        monkeypatch.setenv(VARIABLE, kernel)

    def check(number):
        problem = draw(number)
        if kernel == "triton" and not torch.cuda.is_available() and problem.logits.numel() > 3_000:
            return  # the interpreter takes seconds for more
        device = "cuda" if kernel == "triton" and torch.cuda.is_available() else "cpu"
        x = problem.logits.to(device).detach().requires_grad_()
        weight = None if problem.weight is None else problem.weight.to(device)
        loss = cross_entropy(x, problem.target.to(device), weight, reduction=problem.reduction)
        exact = problem.logits.detach().double().requires_grad_()
        wanted = reference(problem, exact)
        upstream = torch.linspace(0.5, 2.0, wanted.numel(), dtype=torch.float64).view(wanted.shape)
        (gradient,) = torch.autograd.grad(loss, x, upstream.to(device, loss.dtype))
        (wanted_gradient,) = torch.autograd.grad(wanted, exact, upstream)
        tolerance = TOLERANCE[x.dtype]
        assert_near(loss.cpu(), wanted.detach(), tolerance, problem.words)
        assert_near(gradient.cpu(), wanted_gradient, 2 * tolerance, f"gradient of {problem.words}")
        ignored = ~problem.counts
        assert not gradient.cpu().movedim(1, -1)[ignored].any(), f"ignored rows have a gradient: {problem.words}"

    each_case(cases({"chosen": 4500, "composite": 1500, "triton": 60}[kernel]), check)


def test_loss_of_a_linear_layer(cases):
    def check(number):
        problem = draw(number, (torch.float32, torch.float64))
        generator = torch.Generator().manual_seed(number)
        K, dtype = problem.logits.shape[1], problem.logits.dtype
        hidden = torch.randn((*problem.labels.shape, 5), generator=generator).to(dtype)
        layer, bias = (torch.randn(shape, generator=generator).to(dtype) for shape in ((K, 5), (K,)))
        ours = [part.clone().requires_grad_() for part in (hidden, layer, bias)]
        exact = [part.double().requires_grad_() for part in (hidden, layer, bias)]
        loss = linear_cross_entropy(
            ours[0], ours[1], problem.target, ours[2], class_weight=problem.weight, reduction=problem.reduction,
            memory_budget=random.Random(number).choice([None, 1, 1000]),
        )  # fmt: skip
        wanted = reference(problem, F.linear(*exact).movedim(-1, 1))
        upstream = torch.linspace(0.5, 2.0, wanted.numel(), dtype=torch.float64).view(wanted.shape)
        found = torch.autograd.grad(loss, ours, upstream.to(dtype))
        expected = torch.autograd.grad(wanted, exact, upstream)
        assert_near(loss, wanted.detach(), 2 * TOLERANCE[dtype], problem.words)
        for name, one, other in zip(("hidden", "weight", "bias"), found, expected, strict=True):
            summed = 0.1 * problem.labels.numel() ** 0.5  # rows that cancel one another leave their rounding
            assert_near(one, other, 5 * TOLERANCE[dtype], f"gradient of {name}: {problem.words}", summed)

    each_case(cases(1500), check)


def test_dense_tensor_of_any_target_and_its_loss(cases):
    def check(number):
        problem = draw(number, (torch.float32, torch.float64))
        dense = problem.target.dense()
        assert_near(dense, problem.rows, TOLERANCE[dense.dtype], problem.words)
        if problem.weight is None:
            x = problem.logits.detach()
            ours = cross_entropy(x, dense, reduction=problem.reduction)
            assert_near(
                ours, reference(problem, x.double()), 2 * TOLERANCE[dense.dtype], f"dense rows: {problem.words}"
            )
        again = smooth_labels(problem.logits, problem.target, 0.25, validate=False)
        mass = problem.rows.sum(1, keepdim=True)
        K = problem.logits.shape[1]
        again = again.dense() if isinstance(again, SoftTargets) else again
        expected = 0.75 * problem.rows + 0.25 * mass / K
        assert_near(again, expected, 2 * TOLERANCE[dense.dtype], f"smoothed again: {problem.words}")

    each_case(cases(1500), check)


def test_dice_loss(cases):
    def check(number):
        problem = draw(number, (torch.float32, torch.float64))
        if problem.logits.abs().max() > 50 or (problem.rows.sum(1) > 1 + 1e-6).any():
            return
        x = problem.logits.detach().requires_grad_()
        exact = problem.logits.detach().double().requires_grad_()
        others = [axis for axis in range(x.ndim) if axis != 1]
        mass = problem.rows.sum(1, keepdim=True)
        p = torch.where(mass > 0, exact, 0).softmax(1) * mass
        size = p.sum(others) + problem.rows.sum(others)
        wanted = torch.where(
            size > 0, 1 - 2 * torch.minimum(p, problem.rows).sum(others) / size.clamp_min(1e-300), 0
        ).mean()
        loss = dice_loss(x, problem.target)
        assert_near(loss, wanted.detach(), 20 * TOLERANCE[x.dtype], problem.words)

    each_case(cases(900), check)


def test_unigram_prior(cases):
    def check(number):
        problem = draw(number)
        K = problem.logits.shape[1]
        labels = problem.labels.where((problem.labels >= 0) & (problem.labels < K), -100)
        counted = labels[labels != -100]
        if counted.numel():
            wanted = torch.stack([(counted == k).double().mean() for k in range(K)])
            assert_near(unigram_prior(labels.int(), K), wanted, 1e-6, problem.words)

    each_case(cases(100), check)
