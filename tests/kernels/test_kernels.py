"""All kernels agree on loss and gradient."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import SPATIAL, generators, random_prior, random_soft_targets

from composer_ls import cross_entropy, smooth_labels
from composer_ls.kernels import KERNELS, VARIABLE, choose

EVERY_KERNEL = ["eager", "composite", "triton"]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def loss_and_gradient(kernel, logits, target, **options):
    """Of the loss, scaled as a mean over microbatches is."""
    device = DEVICE if kernel == "triton" else "cpu"
    x = logits.to(device).detach().requires_grad_()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(VARIABLE, kernel)
        loss = cross_entropy(x, target.to(device), **options)
        loss.backward(torch.full_like(loss, 0.5))
    return loss.detach().cpu(), x.grad.cpu()


def reference(logits, target, **options):
    """The composite formula in float64."""
    return loss_and_gradient("composite", logits.double(), target.double(), **options)


def assert_agrees(kernel, logits, target, rtol, **options):
    expected = reference(logits, target, **options)
    for found, wanted in zip(loss_and_gradient(kernel, logits, target, **options), expected, strict=True):
        assert found.dtype == logits.dtype
        scale = wanted.abs().max().clamp(min=1e-3).item()
        torch.testing.assert_close(found.double(), wanted, rtol=rtol, atol=rtol * scale)


@pytest.mark.parametrize("kernel", EVERY_KERNEL)
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    generator=generators(),
    spatial=st.sampled_from(SPATIAL[1:]),
    num_classes=st.integers(1, 9),
    components=st.integers(1, 3),
    prior=st.integers(0, 2),
    weighted=st.booleans(),
    reduction=st.sampled_from(["mean", "sum", "none"]),
)
def test_every_kernel_agrees_with_float64(
    kernel, generator, spatial, num_classes, components, prior, weighted, reduction
):
    shape = (3, num_classes, *spatial)
    soft, _ = random_soft_targets(shape, components, random_prior(num_classes, prior, generator), generator)
    logits = 3 * torch.randn(shape, generator=generator)
    weight = (
        torch.rand(num_classes, generator=generator).to(DEVICE if kernel == "triton" else "cpu") if weighted else None
    )
    options = {"reduction": reduction}
    expected = reference(logits, soft, weight=None if weight is None else weight.cpu().double(), **options)
    found = loss_and_gradient(kernel, logits, soft.float(), weight=weight, **options)
    for ours, wanted in zip(found, expected, strict=True):
        scale = wanted.abs().max().clamp(min=1e-2).item() if wanted.numel() else 1
        torch.testing.assert_close(ours.double(), wanted, rtol=1e-5, atol=1e-5 * scale)


@pytest.mark.parametrize("kernel", EVERY_KERNEL)
@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float32, 1e-5), (torch.float64, 1e-11), (torch.bfloat16, 8e-3)])
@pytest.mark.parametrize("num_classes", [1, 2, 33, 1000, 4099])
def test_every_kernel_takes_odd_numbers_of_classes_in_every_precision(kernel, dtype, rtol, num_classes):
    generator = torch.Generator().manual_seed(num_classes)
    logits = (3 * torch.randn(4, num_classes, generator=generator, dtype=torch.float64)).to(dtype)
    labels = torch.randint(0, num_classes, (4,), generator=generator)
    labels[1] = -100
    target = smooth_labels(logits, labels, 0.1)
    assert_agrees(kernel, logits, 0.7 * target + 0.3 * target.flip(0), rtol)


@pytest.mark.parametrize("kernel", EVERY_KERNEL)
def test_every_kernel_reads_strides_as_they_are(kernel):
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 5, (2, 3, 4), generator=generator)
    plain = torch.randn(2, 5, 3, 4, generator=generator)
    wide = torch.randn(4, 10, 3, 8, generator=generator)
    layouts = [
        plain.contiguous(memory_format=torch.channels_last),
        wide[::2, ::2, :, ::2],
        plain.movedim(1, -1).movedim(-1, 1),
    ]
    for logits in layouts:
        assert_agrees(kernel, logits, smooth_labels(logits, labels, 0.1), 1e-5)


@pytest.mark.parametrize("kernel", EVERY_KERNEL)
def test_every_kernel_takes_offsets_beyond_32_bits(kernel):
    memory = torch.empty(2**31 + 200, dtype=torch.bfloat16)  # of which a few pages are ever touched
    logits = memory.as_strided((2, 33), (2**31 + 100, 1))
    logits.copy_(torch.randn(2, 33, generator=torch.Generator().manual_seed(0)))
    target = smooth_labels(logits, torch.tensor([3, 32]), 0.1)
    x = logits if kernel != "triton" or DEVICE == "cpu" else None
    if x is None:
        pytest.skip("the strides of a view are not kept on the way to the GPU")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(VARIABLE, kernel)
        losses = cross_entropy(logits, target, reduction="none")
    expected = torch.nn.functional.cross_entropy(logits.double(), target.double().dense(), reduction="none")
    torch.testing.assert_close(losses.double(), expected, rtol=8e-3, atol=1e-3)


@pytest.mark.parametrize("kernel", EVERY_KERNEL)
def test_every_kernel_keeps_ignored_rows_out_whatever_their_logits(kernel):
    logits = torch.randn(4, 7, generator=torch.Generator().manual_seed(0))
    logits[1], logits[2, 3] = float("nan"), float("inf")
    target = smooth_labels(logits, torch.tensor([0, -100, -100, 6]), 0.1)
    loss, grad = loss_and_gradient(kernel, logits, target)
    assert loss.isfinite()
    assert torch.equal(grad[1:3], torch.zeros(2, 7))
    kept = target[torch.tensor([0, 3])]
    expected, expected_grad = loss_and_gradient(kernel, logits[[0, 3]], kept)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(grad[[0, 3]], expected_grad)


@pytest.mark.parametrize("kernel", EVERY_KERNEL)
def test_every_kernel_handles_masks_large_logits_and_nan(kernel):
    labels = torch.tensor([0, 1])
    masked = torch.tensor([[1.0, -float("inf"), 2.0], [0.0, 3.0, -float("inf")]])
    loss, grad = loss_and_gradient(kernel, masked, smooth_labels(masked, labels, 0.0))
    torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(masked, labels))
    assert grad.isfinite().all()
    large = torch.tensor([[1e4, -1e4, 0.0], [-1e4, 1e4, 1e4]])
    assert_agrees(kernel, large, smooth_labels(large, labels, 0.1), 1e-5)
    broken = torch.tensor([[float("nan"), 0.0, 1.0], [0.0, 1.0, 2.0]])
    assert loss_and_gradient(kernel, broken, smooth_labels(broken, labels, 0.1))[0].isnan()


def test_a_kernel_that_does_not_exist_or_cannot_run_is_refused(monkeypatch):
    logits = torch.zeros(2, 3)
    with pytest.raises(ValueError, match=f"no kernel 'fast': {VARIABLE} is one of eager, triton, composite"):
        choose(logits, kernel="fast")
    monkeypatch.setenv(VARIABLE, "fast")
    with pytest.raises(ValueError, match="no kernel 'fast'"):
        choose(logits)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(RuntimeError, match="needs logits on a CUDA device, but these are on cpu"):
        choose(logits, kernel="triton")


def test_the_table_of_kernels_is_whole():
    assert set(KERNELS) == {"eager", "triton", "composite"}


@pytest.mark.skipif(DEVICE == "cpu", reason="there is no CUDA device here")
def test_nothing_on_cuda_waits_for_the_host():
    logits = torch.randn(64, 100, device="cuda", requires_grad=True)
    labels = torch.randint(0, 100, (64,), device="cuda")
    permutation = torch.randperm(64, device="cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        target = smooth_labels(logits, labels, 0.1)
        cross_entropy(logits, 0.7 * target + 0.3 * target[permutation]).backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert logits.grad.isfinite().all()
