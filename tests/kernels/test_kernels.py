"""All kernels against a dense float64 reference, and what they may allocate, read and wait for.

The Triton kernel runs in Triton's interpreter where there is no CUDA device. That is settled when Triton is imported,
so its tests run in a process of their own, which is this module again: see the last test.
"""

import mmap
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import SPATIAL, Allocations, dense_reference, generators, random_prior, reference_loss
from torch.nn import functional as F
from torch.testing import assert_close

from composer_ls import SoftTargets, cross_entropy, smooth_labels
from composer_ls.kernels import KERNELS, VARIABLE, RowTargets, choose, compiled, composite, eager, gradient

CUDA = torch.cuda.is_available()
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cuda" if CUDA else "cpu"
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10, torch.bfloat16: 2.0**-7, torch.float16: 2.0**-10}


def has_compiler():
    if INTERPRETED:  # that process need not wait for it
        return False
    try:
        compiled.require(torch.empty(1, 1))
    except RuntimeError:
        return False
    return True


def runnable():
    if INTERPRETED:
        return ["triton"]
    kernels = ["eager", "composite"]
    if has_compiler():
        kernels.append("compiled")
    if CUDA:
        kernels.append("triton")
    return kernels


@pytest.fixture(params=runnable())
def kernel(request, monkeypatch):
    """Every kernel that this process can run, forced."""
    monkeypatch.setenv(VARIABLE, request.param)
    return request.param


def device_of(kernel):
    return "cpu" if kernel == "compiled" else DEVICE


def check(kernel, classes, num_classes, weights, smoothing, prior, weight, dtype, reduction, logits=None):
    """Loss and gradient agree with those of the dense float64 reference."""
    device, dim = device_of(kernel), 1
    shape = (classes.shape[0], num_classes, *classes.shape[2:])
    x = (torch.randn(shape) * 3 if logits is None else logits).to(dtype).to(device).requires_grad_()
    reference = x.detach().cpu().double().requires_grad_()
    fields = (field.to(device) if isinstance(field, torch.Tensor) else field for field in (weights, smoothing))
    placed = None if prior is None else prior.to(device)
    target = SoftTargets(classes.to(device), num_classes, *fields, placed)
    loss = cross_entropy(x, target, None if weight is None else weight.to(device), reduction=reduction)
    upstream = torch.linspace(0.5, 1.5, loss.numel()).view(loss.shape).to(loss.dtype)
    loss.backward(upstream.to(device))
    rows = dense_reference(classes, num_classes, weights, smoothing, prior)
    counted = dense_reference(classes, num_classes, weights)
    expected = reference_loss(reference, rows, counted, None if weight is None else weight.double(), reduction)
    expected.backward(upstream.double())
    ignored = (torch.as_tensor(weights).expand(classes.shape) == 0).all(dim, keepdim=True).expand(shape)
    assert not x.grad.cpu()[ignored].any()
    rtol = TOLERANCE[dtype]
    assert_close(loss.detach().cpu().double(), expected.detach(), rtol=rtol, atol=1e-6)
    assert_close(x.grad.cpu().double(), reference.grad, rtol=rtol, atol=max(1e-6, rtol * 1e-2))


@given(
    generator=generators(),
    spatial=st.sampled_from([shape for shape in SPATIAL if shape is not None]),
    num_classes=st.integers(1, 40),
    components=st.integers(1, 3),
    fields=st.sampled_from(["numbers", "a number a component", "a number a row"]),
    smoothing=st.sampled_from([0.0, 0.1, 1.0]),
    prior_ndim=st.integers(0, 2),
    ignored=st.booleans(),
    weighted=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
    reduction=st.sampled_from(["mean", "sum", "none"]),
)
@settings(max_examples=20 if INTERPRETED else 60)
@pytest.mark.parametrize("kernel_name", runnable())
def test_all_kernels_agree_with_the_dense_reference(
    kernel_name, generator, spatial, num_classes, components, fields, smoothing, prior_ndim, ignored, weighted, dtype, reduction
):  # fmt: skip
    shape = (3, components, *spatial)
    classes = torch.randint(num_classes, shape, generator=generator)
    if fields == "numbers":
        weights, amount = 1 / components, smoothing
    else:
        size = (1, components, *[1] * len(spatial)) if fields == "a number a component" else shape
        weights = torch.rand(size, generator=generator, dtype=torch.float64) + 0.1
        amount = smoothing * torch.rand(size, generator=generator, dtype=torch.float64)
    if ignored:
        alive = torch.rand((3, 1, *spatial), generator=generator) > 0.4
        weights = alive * (weights if isinstance(weights, torch.Tensor) else torch.tensor(weights).expand(shape))
    prior = random_prior(num_classes, prior_ndim, generator)
    weight = torch.rand(num_classes, generator=generator) + 0.1 if weighted else None
    logits = 3 * torch.randn((3, num_classes, *spatial), generator=generator)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(VARIABLE, kernel_name)
        check(kernel_name, classes, num_classes, weights, amount, prior, weight, dtype, reduction, logits)


@pytest.mark.parametrize("num_classes", [1, 2, 33, 1000, 4099, 20_000])
@pytest.mark.parametrize("prior_ndim", [0, 1])
def test_rows_of_any_length_are_right(kernel, num_classes, prior_ndim):
    generator = torch.Generator().manual_seed(num_classes)
    classes = torch.randint(num_classes, (5, 2), generator=generator)
    prior = random_prior(num_classes, prior_ndim, generator)
    check(kernel, classes, num_classes, torch.tensor([[0.7, 0.3]]), 0.1, prior, None, torch.float32, "mean")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_many_rows_are_shared_out_and_none_is_lost(kernel, dtype):
    if kernel == "compiled" and dtype == torch.float16:
        pytest.skip("the compiled kernel has no float16")
    classes = torch.randint(300, (1501 if not INTERPRETED else 37, 1))
    check(kernel, classes, 300, (torch.rand(classes.shape) > 0.1).double(), 0.1, None, None, dtype, "mean")


@pytest.mark.parametrize("layout", ["rows", "columns", "every other row", "every other class", "classes last"])
def test_strides_are_followed(kernel, layout):
    base = torch.randn(6, 10, 8)
    x = {
        "rows": base[:, :, 0].contiguous(),
        "columns": base[:, :, 0].t().contiguous().t(),
        "every other row": base[::2, :, 0],
        "every other class": base[:, ::2],
        "classes last": base.transpose(1, 2).contiguous().transpose(1, 2),
    }[layout].to(device_of(kernel))
    x = x.detach().requires_grad_()
    labels = torch.randint(x.shape[1], (x.shape[0], *x.shape[2:]), device=x.device)
    cross_entropy(x, smooth_labels(x, labels, 0.1)).backward()
    reference = x.detach().double().requires_grad_()
    F.cross_entropy(reference, labels, label_smoothing=0.1).backward()
    assert_close(x.grad.double(), reference.grad, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_bad_logit_spoils_its_row_only_and_is_not_hidden(kernel, bad):
    x = torch.randn(4, 50, device=device_of(kernel))
    x[1, 40] = bad
    labels = torch.tensor([3, 7, 9, -100], device=x.device)
    losses = cross_entropy(x.requires_grad_(), smooth_labels(x, labels, 0.1), reduction="none")
    losses.sum().backward()
    assert losses.isnan().tolist() == [False, True, False, False]
    assert x.grad.isnan().any(1).tolist() == [False, True, False, False]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_ignored_rows_get_no_gradient_whatever_their_logits(kernel, bad):
    x = torch.randn(4, 50, device=device_of(kernel))
    x[1] = bad
    labels = torch.tensor([3, -100, 9, 1], device=x.device)
    loss = cross_entropy(x.requires_grad_(), smooth_labels(x, labels, 0.1))
    loss.backward()
    assert loss.isfinite()
    assert x.grad.isfinite().all()
    assert not x.grad[1].any()


@pytest.mark.parametrize("masked", [slice(0, 20), slice(100, 4000)])
def test_masked_classes_cost_what_they_do_in_pytorch(kernel, masked):
    x = torch.randn(3, 4099, device=device_of(kernel))
    x[:, masked] = float("-inf")
    x.requires_grad_()
    labels = torch.tensor([50, 60, 4050], device=x.device)
    loss, expected = cross_entropy(x, smooth_labels(x, labels, 0.0)), F.cross_entropy(x, labels)
    (gradient_of_ours,), (wanted) = torch.autograd.grad(loss, x), torch.autograd.grad(expected, x)[0]
    assert_close(loss, expected)
    assert_close(gradient_of_ours, wanted)
    assert not gradient_of_ours[:, masked].any()


@pytest.mark.parametrize("shift", [-1e4, 1e4])
def test_a_shift_of_all_logits_costs_no_digits(kernel, shift):
    x = (torch.randn(8, 1000).mul(8).round() / 8 + shift).to(device_of(kernel)).requires_grad_()
    labels = torch.randint(1000, (8,), device=x.device)
    loss = cross_entropy(x, smooth_labels(x, labels, 0.1))
    assert_close(loss.double(), F.cross_entropy(x.double(), labels, label_smoothing=0.1), rtol=1e-5, atol=0)


def far_apart(device):
    """Five rows of 64 numbers, the last of which begin beyond 2^31 numbers: memory that is reserved but not used."""
    step = 2**31 // 3 + 1
    if device == "cuda":
        return torch.empty(4 * step + 64, dtype=torch.bfloat16, device=device).as_strided((5, 64), (step, 1))
    reserved = mmap.mmap(-1, 2 * (4 * step + 64))
    return torch.frombuffer(reserved, dtype=torch.bfloat16).as_strided((5, 64), (step, 1))


@pytest.mark.parametrize("spatial", [False, True])
def test_offsets_beyond_32_bits_reach_the_right_logits(kernel, spatial):
    x, grad = far_apart(device_of(kernel)), far_apart(device_of(kernel))
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


def test_no_memory_is_needed_besides_the_gradient(kernel):
    if kernel == "composite":
        pytest.skip("the composite formula is dense")
    shapes = [(7, 1000)] if INTERPRETED else [(64, 40_000), (2, 12, 500, 400)]
    for shape in shapes:
        x = torch.randn(shape, device=device_of(kernel)).requires_grad_()
        labels = torch.randint(shape[1], (shape[0], *shape[2:]), device=x.device)
        target = 0.7 * smooth_labels(x, labels, 0.1) + 0.3 * smooth_labels(x, labels.flip(0), 0.1)
        with Allocations(nbytes=x.nbytes // 2, known=(x,)) as made:
            (cross_entropy(x, target) * 3).backward()
        assert made.count == 1


def test_a_gradient_that_was_given_away_is_made_again(kernel):
    x = torch.randn(6, 9, device=device_of(kernel)).requires_grad_()
    loss = cross_entropy(x, smooth_labels(x, torch.arange(6, device=x.device), 0.1))
    (first,) = torch.autograd.grad(loss, x, torch.tensor(0.25, device=x.device), retain_graph=True)
    kept = first.clone()
    first.zero_()
    (second,) = torch.autograd.grad(loss, x, torch.tensor(0.5, device=x.device))
    assert_close(second, 2 * kept)


def test_the_second_derivative_is_that_of_the_formula(kernel):
    x = torch.randn(3, 4, dtype=torch.float64, device=device_of(kernel)).requires_grad_()
    target = smooth_labels(x, torch.tensor([0, 3, -100], device=x.device), 0.1)
    assert torch.autograd.gradgradcheck(lambda logits: cross_entropy(logits, target), (x,))


# ---------------------------------------------------------------------------------------------------------------------
# Choosing.


def test_the_choice_can_be_forced_by_keyword_and_by_variable(monkeypatch):
    x = torch.randn(2, 3)
    assert choose(x, kernel="composite") is composite.loss_rows
    monkeypatch.setenv(VARIABLE, "composite")
    assert choose(x) is composite.loss_rows
    assert choose(x, kernel="eager") is eager.loss_rows


def test_an_unknown_kernel_is_refused_with_those_that_exist(monkeypatch):
    monkeypatch.setenv(VARIABLE, "cuda")
    with pytest.raises(ValueError, match=f"no kernel 'cuda': {VARIABLE} is one of {', '.join(KERNELS)}"):
        choose(torch.randn(2, 3))


@pytest.mark.skipif(INTERPRETED or CUDA, reason="here Triton can run")
def test_triton_is_refused_where_it_cannot_run():
    with pytest.raises(RuntimeError, match=r"needs logits on a CUDA device, but these are on cpu"):
        choose(torch.randn(2, 3), kernel="triton")


def test_the_compiled_kernel_is_refused_for_what_it_does_not_take():
    with pytest.raises(RuntimeError, match=r"takes float32, float64 or bfloat16 logits on the CPU, not torch.float16"):
        choose(torch.randn(2, 3).half(), kernel="compiled")


class Builder(compiled._Builder):
    """A builder that remembers whether it began."""

    began = False

    def _start(self):
        self.began = True
        super()._start()


@pytest.fixture
def builder(monkeypatch):
    fresh = Builder()
    monkeypatch.setattr(compiled, "_builder", fresh)
    monkeypatch.delenv(VARIABLE, raising=False)
    return fresh


def test_a_small_job_never_starts_the_compiler(builder):
    x = torch.randn(512, 10)
    for _ in range(100):
        assert choose(x) is eager.loss_rows
    assert not builder.began


@pytest.mark.skipif(not has_compiler(), reason="no C++ compiler")
def test_a_long_job_goes_on_with_the_eager_kernel_until_the_other_is_built(builder, monkeypatch):
    monkeypatch.setattr(compiled, "REPAYS", 10_000)
    x = torch.randn(512, 10)
    assert choose(x) is eager.loss_rows
    assert not builder.began
    assert choose(x) is eager.loss_rows  # the build begins, and this call does not wait for it
    assert builder.began
    folder = Path(builder._folder.name)
    builder._process.wait(60)
    assert choose(x) is compiled.loss_rows
    assert not folder.exists()
    assert choose(x.half()) is choose(x.t()) is eager.loss_rows
    assert choose(x, components=1000) is eager.loss_rows
    torch.use_deterministic_algorithms(True)
    try:
        assert choose(x) is eager.loss_rows  # or when the build ends would decide the last digits
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("compiler", ["", "/bin/false"])
def test_without_a_working_compiler_the_eager_kernel_goes_on(builder, monkeypatch, compiler):
    monkeypatch.setattr(compiled, "REPAYS", 1)
    monkeypatch.setattr(compiled.shutil, "which", lambda name: compiler or None)
    x = torch.randn(512, 10)
    assert choose(x) is eager.loss_rows
    if builder._process is not None:
        builder._process.wait(60)
    for _ in range(3):
        assert choose(x) is eager.loss_rows
    with pytest.raises(RuntimeError, match=r"cannot be had: (no C\+\+ compiler|.*/bin/false.* failed)"):
        choose(x, kernel="compiled")


@pytest.mark.skipif(not has_compiler(), reason="no C++ compiler")
def test_threads_share_the_rows(monkeypatch):
    started = []

    class Thread(threading.Thread):
        def start(self):
            started.append(self)
            super().start()

    monkeypatch.setenv(VARIABLE, "compiled")
    monkeypatch.setattr(compiled.threading, "Thread", Thread)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    x = torch.randn(7, 100_000)
    cross_entropy(x, smooth_labels(x, torch.arange(7), 0.1))
    assert len(started) == 2


def test_large_gradients_ask_for_huge_pages_and_small_ones_do_not(monkeypatch):
    asked = []
    monkeypatch.setattr(gradient, "_madvise", lambda: lambda start, length, advice: asked.append((start, length)) or 0)
    gradient.empty_gradient(torch.empty(1000, 1000))
    assert not asked
    made = gradient.empty_gradient(torch.empty(3000, 3000))
    ((start, length),) = asked
    assert start % 4096 == 0
    assert made.data_ptr() <= start
    assert start + length == made.data_ptr() + made.nbytes


# ---------------------------------------------------------------------------------------------------------------------
# CUDA, and Triton without it.


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


@pytest.mark.skipif(not CUDA, reason="no CUDA device")
@pytest.mark.parametrize("factor", [1.0, 3.0])
def test_scaling_touches_every_number_once(factor):
    from composer_ls.kernels.triton import scale_unless_one

    values = torch.randn(1234, 5677, device="cuda", dtype=torch.bfloat16)
    expected = (values.float() * factor).bfloat16()
    scale_unless_one(values, torch.tensor(factor, device="cuda"))
    assert torch.equal(values, expected)


@pytest.mark.skipif(not INTERPRETED, reason="runs in the process that the last test starts")
@pytest.mark.parametrize("factor", [1.0, 3.0])
def test_interpreted_scaling_touches_every_number_once(factor):
    from composer_ls.kernels.triton import scale_unless_one

    values = torch.randn(123, 77).t()
    expected = values * factor
    scale_unless_one(values, torch.tensor(factor))
    assert_close(values, expected)


@pytest.mark.skipif(INTERPRETED, reason="this is that process")
def test_the_triton_kernel_passes_in_the_interpreter():
    pytest.importorskip("triton")
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    arguments = ["-m", "pytest", "-p", "no:cacheprovider", "-W", "ignore", "-k", "triton or interpreted", __file__]
    run = subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-2000:]
    assert " passed" in run.stdout
