"""Where kernels break: long rows, many rows, shifted and masked logits, far strides, memory, second derivatives."""

import mmap
import os

import pytest
import torch
from support import Allocations, random_prior, random_soft_targets
from torch.nn import functional as F
from torch.testing import assert_close

from composer_ls import cross_entropy, smooth_labels
from composer_ls.kernels import VARIABLE, RowTargets, choose, eager

CUDA = torch.cuda.is_available()
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


@pytest.fixture(params=["eager", "composite", "triton"])
def kernel(request, monkeypatch):
    """Every kernel, forced."""
    monkeypatch.setenv(VARIABLE, request.param)
    return request.param


@pytest.fixture
def device(kernel):
    """Where it runs."""
    return "cuda" if kernel == "triton" and CUDA else "cpu"


@pytest.mark.parametrize("prior_ndim", [0, 1])
@pytest.mark.parametrize("shape", [(3, 20_000), (1, 40_000), (1501, 300), (2, 70, 130)])
def test_rows_beyond_one_block_or_chunk_are_still_whole(kernel, device, shape, prior_ndim, monkeypatch):
    monkeypatch.setattr(eager, "CHUNK", 1 << 16)
    if kernel == "triton" and INTERPRETED:
        shape = (min(shape[0], 37), *shape[1:])
    generator = torch.Generator().manual_seed(0)
    prior = random_prior(shape[1], prior_ndim, generator)
    target, dense = random_soft_targets(shape, 2, prior, generator)
    x = torch.randn(shape, generator=generator).to(device).requires_grad_()
    reference = x.detach().cpu().double().requires_grad_()
    losses = cross_entropy(x, target.float().to(device), reduction="none")
    expected = -(dense * reference.log_softmax(1)).sum(1)
    upstream = torch.linspace(0.5, 1.5, losses.numel()).view(losses.shape)
    losses.backward(upstream.to(device))
    expected.backward(upstream.double())
    assert_close(losses.detach().cpu().double(), expected.detach(), rtol=1e-5, atol=1e-5)
    assert_close(x.grad.cpu().double(), reference.grad, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_bad_logit_spoils_its_row_only_and_is_not_hidden(kernel, device, bad):
    x = torch.randn(4, 50, device=device)
    x[1, 40] = bad
    labels = torch.tensor([3, 7, 9, -100], device=x.device)
    losses = cross_entropy(x.requires_grad_(), smooth_labels(x, labels, 0.1), reduction="none")
    losses.sum().backward()
    assert losses.isnan().tolist() == [False, True, False, False]
    assert x.grad.isnan().any(1).tolist() == [False, True, False, False]


@pytest.mark.parametrize("shape", [(20, 1000), (3, 12, 70, 90)])
@pytest.mark.parametrize("below", [50.0, 300.0, float("inf")])
def test_a_label_far_below_the_others_costs_what_it_does_in_pytorch(kernel, device, below, shape):
    if kernel == "triton" and INTERPRETED:
        shape = (2, *shape[1:2], *(3 for _ in shape[2:]))
    x = torch.randn(shape, device=device)
    x[:, 5] = -below
    x.requires_grad_()
    labels = torch.full((shape[0], *shape[2:]), 5, device=device)
    losses = cross_entropy(x, smooth_labels(x, labels, 0.0), reduction="none")
    expected = F.cross_entropy(x, labels, reduction="none")
    assert_close(losses, expected)
    assert_close(torch.autograd.grad(losses.sum(), x)[0], torch.autograd.grad(expected.sum(), x)[0])
    total, expected_total = (
        cross_entropy(x, smooth_labels(x, labels, 0.1)),
        F.cross_entropy(x, labels, label_smoothing=0.1),
    )
    assert_close(total, expected_total)
    assert_close(torch.autograd.grad(total, x)[0], torch.autograd.grad(expected_total, x)[0])


@pytest.mark.parametrize("mask", [torch.finfo(torch.float32).min, -1e30, -1e31])
@pytest.mark.parametrize("prior_ndim", [0, 1, 2])
def test_a_label_that_a_finite_mask_hides_costs_what_it_does_in_pytorch(kernel, device, mask, prior_ndim):
    x = torch.tensor([[1.0, 2.0, mask, 0.5], [0.0, 1.0, mask, 3.0]], device=device, requires_grad=True)
    labels = torch.tensor([2, 1], device=x.device)
    prior = random_prior(4, prior_ndim, torch.Generator().manual_seed(0))
    target = smooth_labels(x, labels, 0.1, prior=None if prior is None else prior.float())
    losses = cross_entropy(x, target, reduction="none")
    reference = x.detach().double().requires_grad_()
    expected = -(target.dense().double() * reference.log_softmax(1)).sum(1)
    assert_close(losses.double(), expected, rtol=1e-5, atol=1e-5)
    (ours,), (wanted,) = torch.autograd.grad(losses.sum(), x), torch.autograd.grad(expected.sum(), reference)
    assert_close(ours.double(), wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("masked", [slice(0, 20), slice(100, 4000)])
def test_masked_classes_cost_what_they_do_in_pytorch(kernel, device, masked):
    x = torch.randn(3, 4099, device=device)
    x[:, masked] = float("-inf")
    x.requires_grad_()
    labels = torch.tensor([50, 60, 4050], device=x.device)
    loss, expected = cross_entropy(x, smooth_labels(x, labels, 0.0)), F.cross_entropy(x, labels)
    (gradient_of_ours,), (wanted) = torch.autograd.grad(loss, x), torch.autograd.grad(expected, x)[0]
    assert_close(loss, expected)
    assert_close(gradient_of_ours, wanted)
    assert not gradient_of_ours[:, masked].any()


@pytest.mark.parametrize("shift", [-1e4, 1e4])
def test_a_shift_of_all_logits_costs_no_digits(kernel, device, shift):
    x = (torch.randn(8, 1000).mul(8).round() / 8 + shift).to(device).requires_grad_()
    labels = torch.randint(1000, (8,), device=x.device)
    loss = cross_entropy(x, smooth_labels(x, labels, 0.1))
    assert_close(loss.double(), F.cross_entropy(x.double(), labels, label_smoothing=0.1), rtol=1e-5, atol=0)


def far_apart(device):
    """Five rows of 64 numbers, the last of which begin beyond 2^31 numbers: the memory in between is reserved but not used."""
    step = 2**31 // 3 + 1
    if device == "cuda":
        return torch.empty(4 * step + 64, dtype=torch.bfloat16, device=device).as_strided((5, 64), (step, 1))
    reserved = mmap.mmap(-1, 2 * (4 * step + 64))
    return torch.frombuffer(reserved, dtype=torch.bfloat16).as_strided((5, 64), (step, 1))


@pytest.mark.parametrize("spatial", [False, True])
def test_offsets_beyond_32_bits_reach_the_right_logits_and_gradients(kernel, device, spatial):
    x, grad = far_apart(device), far_apart(device)
    x.copy_(torch.randn(5, 64))
    labels = torch.arange(5, device=x.device)
    reference = x.float().requires_grad_()
    expected = F.cross_entropy(reference, labels, label_smoothing=0.1, reduction="none")
    expected.sum().backward()
    target = RowTargets(labels.unsqueeze(1), 0.9, 0.1, None, 1.0, None)
    if spatial:  # the same as one example at five positions
        x, grad = x.t().unsqueeze(0), grad.t().unsqueeze(0)
        target = target.map(lambda field: field.t().unsqueeze(0))
    losses = choose(x)(x, target, grad, 1.0)
    assert_close(losses.flatten(), expected.detach())
    written = grad.squeeze(0).t() if spatial else grad
    assert_close(written.float(), reference.grad, rtol=2**-7, atol=1e-6)


def test_no_memory_is_needed_besides_the_gradient(kernel, device):
    if kernel == "composite":
        pytest.skip("the composite formula is dense")
    shapes = [(7, 1000)] if kernel == "triton" and INTERPRETED else [(64, 40_000), (2, 12, 500, 400)]
    for shape in shapes:
        x = torch.randn(shape, device=device).requires_grad_()
        labels = torch.randint(shape[1], (shape[0], *shape[2:]), device=x.device)
        target = 0.7 * smooth_labels(x, labels, 0.1) + 0.3 * smooth_labels(x, labels.flip(0), 0.1)
        with Allocations(nbytes=x.nbytes // 2, known=(x,)) as made:
            (cross_entropy(x, target) * 3).backward()
        assert made.count == 1


def test_a_gradient_that_was_given_away_is_made_again(kernel, device):
    x = torch.randn(6, 9, device=device).requires_grad_()
    loss = cross_entropy(x, smooth_labels(x, torch.arange(6, device=x.device), 0.1))
    (first,) = torch.autograd.grad(loss, x, torch.tensor(0.25, device=x.device), retain_graph=True)
    kept = first.clone()
    first.zero_()
    (second,) = torch.autograd.grad(loss, x, torch.tensor(0.5, device=x.device))
    assert_close(second, 2 * kept)


def test_the_second_derivative_is_that_of_the_formula(kernel, device):
    x = torch.randn(3, 4, dtype=torch.float64, device=device).requires_grad_()
    target = smooth_labels(x, torch.tensor([0, 3, -100], device=x.device), 0.1)
    assert torch.autograd.gradgradcheck(lambda logits: cross_entropy(logits, target), (x,))


@pytest.mark.parametrize("factor", [1.0, 3.0])
def test_scaling_touches_every_number_once(factor):
    from composer_ls.kernels.triton import scale_unless_one

    device, shape = ("cuda", (1234, 5677)) if CUDA else ("cpu", (123, 77))
    values = torch.randn(shape, device=device).t()
    expected = values * factor
    scale_unless_one(values, torch.tensor(factor, device=device))
    assert torch.equal(values, expected)


@pytest.mark.skipif(not CUDA, reason="no CUDA device")
def test_training_never_makes_the_host_wait():
    layer = torch.nn.Linear(20, 1000, device="cuda")
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    x, labels = torch.randn(64, 20, device="cuda"), torch.randint(1000, (64,), device="cuda")
    for mode in ("default", "error"):
        torch.cuda.set_sync_debug_mode(mode)
        try:
            for dtype in (torch.float32, torch.bfloat16, torch.float16):
                with torch.autocast("cuda", dtype=dtype, enabled=dtype != torch.float32):
                    logits = layer(x)
                    target = 0.7 * smooth_labels(logits, labels, 0.1) + 0.3 * smooth_labels(logits, labels.flip(0), 0.1)
                    loss = cross_entropy(logits, target)
                (loss * 2.0).backward()
                optimizer.step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert loss.isfinite()  # in the mode "error", waiting has raised


@pytest.mark.parametrize("wrong", [44.0, 60.0, 76.0, 84.0, 88.0])
@pytest.mark.parametrize("flush", [False, True])
def test_one_pixel_with_a_large_wrong_logit_keeps_its_gradient(wrong, flush):
    x = torch.randn(2, 3, 160, 160, generator=torch.Generator().manual_seed(0))
    x[0, 1, 0, 0], x[0, 2, 0, 0] = wrong, wrong - 1
    labels = torch.zeros(2, 160, 160, dtype=torch.long)
    torch.set_flush_denormal(flush)
    try:
        ours = gradient_by(x, lambda logits: cross_entropy(logits, smooth_labels(logits, labels, 0.1)))
    finally:
        torch.set_flush_denormal(False)
    wanted = gradient_by(x.double(), lambda logits: F.cross_entropy(logits, labels, label_smoothing=0.1))
    assert_close(ours.double(), wanted, rtol=1e-5, atol=1e-6 * wanted.abs().max().item())


def gradient_by(x, loss):
    x = x.clone().requires_grad_()
    return torch.autograd.grad(loss(x), x)[0]


@pytest.mark.parametrize("top", [-20.0, 10.0, 30.0])
@pytest.mark.parametrize("shape", [(2, 8, 96, 96), (9000, 8)])
def test_small_losses_are_as_precise_as_those_of_pytorch(top, shape):
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(8, (shape[0], *shape[2:]), generator=generator)
    x = 0.3 * torch.randn(shape, generator=generator) + top - 12
    x.scatter_(1, labels.unsqueeze(1), top)
    expected = F.cross_entropy(x.double(), labels, reduction="none")
    losses = cross_entropy(x, smooth_labels(x, labels, 0.0), reduction="none")
    theirs = F.cross_entropy(x, labels, reduction="none")
    assert (losses >= 0).all()
    assert (losses - expected).abs().max() <= 1.5 * (theirs - expected).abs().max()
