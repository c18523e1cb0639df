"""The fused cross entropy on CUDA, in Triton. Memory traffic is little more than the logits and the gradient.

Each program handles one or a few rows. It reads the logits in blocks and keeps a running maximum and sum of
exponentials (Milakov and Gimelshein, 2018, https://arxiv.org/abs/1805.02867). Then it reads them again, while they are
still in the device's cache, and writes the gradient. It never synchronises with the host.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from composer_ls.kernels import RowTargets, compute_dtype

__all__ = ["loss_rows", "scale_unless_one", "tile"]

CLASSES = 16384
"""Largest block of classes that a program loads at once: enough loads in flight to keep the memory busy."""

_NO_PRIOR, _UNIFORM, _SHARED, _PER_CLASS = (tl.constexpr(kind) for kind in range(4))
_INF = tl.constexpr(float("inf"))
_MASKED = tl.constexpr(1e30)  # a label's logit of this size is a mask, and a row's sum relative to it would overflow


def loss_rows(logits: Tensor, target: RowTargets, grad: Tensor | None, scale: Tensor | float | None) -> Tensor:
    """The Triton :data:`composer_ls.kernels.Kernel`."""
    shape = (logits.shape[0], 1, *logits.shape[2:])
    losses = logits.new_empty(shape, dtype=compute_dtype(logits.dtype))
    if logits.ndim == 2:  # the examples of (N, K) are the positions of one example (1, K, N)
        logits, grad = logits.t().unsqueeze(0), None if grad is None else grad.t().unsqueeze(0)
        target = target.map(lambda field: field if field.ndim == 0 else field.t().unsqueeze(0))
        scale = scale.t().unsqueeze(0) if isinstance(scale, Tensor) and scale.ndim else scale
    if losses.numel():
        _launch(logits, target, grad, 1.0 if scale is None else scale, losses)
    return losses


def scale_unless_one(values: Tensor, factor: Tensor) -> None:
    """``values · factor`` in place, for dense ``values`` and a 0-dim factor that is read on the device only."""
    flat = values.as_strided((values.numel(),), (1,))
    with torch.cuda.device_of(values):
        _scale_kernel[(min(1024, triton.cdiv(max(1, flat.numel()), 4096)),)](flat, factor, flat.numel(), BLOCK=4096)


def _launch(x: Tensor, target: RowTargets, grad: Tensor | None, scale: Tensor | float, losses: Tensor) -> None:
    examples, classes, positions = x.shape
    components = target.classes.shape[1]
    prior = _NO_PRIOR if target.soft is None else [_UNIFORM, _SHARED, _PER_CLASS][_dims(target.prior)]

    def field(value: Tensor | float | None, components: int = 1) -> tuple[Tensor | None, float]:
        """A contiguous ``(N, J, S)`` tensor, or the number that stands for it."""
        if not isinstance(value, Tensor):
            if value is None or losses.dtype != torch.float64:  # Triton passes numbers in single precision
                return None, 0.0 if value is None else value
            value = torch.full((), value, dtype=losses.dtype, device=x.device)
        return value.expand(examples, components, positions).contiguous(), 0.0

    hard, soft = field(target.hard, components), field(target.soft, components if prior == _PER_CLASS else 1)
    mass = field(target.mass)
    one_scale = isinstance(scale, Tensor) and scale.ndim == 0
    factor = (scale, 0.0) if one_scale else field(scale)
    rows, block, warps = tile(classes, positions, positions > 1 and x.stride(2) == 1 and x.stride(1) != 1, prior)
    with torch.cuda.device_of(x):
        _row_kernel[(examples * triton.cdiv(positions, rows),)](
            x, *x.stride(), grad, *((0, 0, 0) if grad is None else grad.stride()), losses,
            target.classes.contiguous(), *hard, *soft, *mass, *factor, field(target.ignored)[0],
            None if target.prior is None else target.prior.contiguous(), classes, positions,
            ONE_SCALE=one_scale, J=components, PRIOR=prior, ROWS=rows, BLOCK=block,
            num_warps=warps,
        )  # fmt: skip


def tile(classes: int, positions: int, positions_adjacent: bool, prior: int) -> tuple[int, int, int]:
    """The rows and classes that a program holds at once, adjacent in memory, and its number of warps.

    These are sizes at which no register spills; a test compiles them for several GPUs.
    """
    if positions_adjacent:
        block = min(triton.next_power_of_2(classes), 32)
        rows = min(triton.next_power_of_2(positions), 2048 // block)
        return rows, block, max(4, rows * block // 128)
    block = min(triton.next_power_of_2(classes), CLASSES // 2 if prior in (_SHARED, _PER_CLASS) else CLASSES)
    rows = min(triton.next_power_of_2(positions), max(1, 512 // block))
    return rows, block, min(32, max(4, rows * block // 512))


def _dims(prior: Tensor | None) -> int:
    return 0 if prior is None else prior.ndim


@triton.jit
def _row_kernel(
    x, x_example, x_class, x_position,  # logits (N, K, S) and their strides
    grad, grad_example, grad_class, grad_position,  # the same; None: not wanted
    losses,  # (N, 1, S), contiguous, as everything below
    classes,  # (N, J, S)
    hard, hard_number, soft, soft_number, mass, mass_number, scale, scale_number,  # each a tensor, or None and a number
    ignored,  # None: every row counts
    prior,  # (K,) or (K, K)
    K, S,
    ONE_SCALE: tl.constexpr, J: tl.constexpr, PRIOR: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    real = losses.dtype.element_ty
    blocks = tl.cdiv(S, ROWS)
    n = (tl.program_id(0) // blocks).to(tl.int64)  # offsets pass 2^31
    s = (tl.program_id(0) % blocks).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    there = s < S
    x += n * x_example + s[:, None] * x_position
    row = n * S + s

    # Logits are taken relative to the first label's logit, which keeps the loss precise for logits of any size.
    label = tl.load(classes + n * J * S + s, mask=there, other=0)
    sound = there & (label >= 0) & (label < K)  # an invalid label reads no memory and gives NaN
    origin = tl.load(x + label[:, None] * x_class, mask=sound[:, None], other=0).to(real)
    origin = tl.where(tl.abs(origin) < _MASKED, origin, 0.0)  # [ROWS, 1]

    peak = tl.full([ROWS, 1], -_INF, real)
    total = tl.zeros([ROWS, 1], real)
    taken = tl.zeros([ROWS, 1], real)
    for first in range(0, K, BLOCK):
        k = first + tl.arange(0, BLOCK)[None, :]
        inside = there[:, None] & (k < K)
        logits = tl.load(x + k.to(tl.int64) * x_class, mask=inside, other=-_INF, eviction_policy="evict_last").to(real)
        new_peak = tl.maximum(peak, tl.max(logits, 1, keep_dims=True))
        anchor = tl.where(new_peak == -_INF, 0.0, new_peak)  # avoids -inf - -inf while every logit so far is -inf
        total = total * tl.exp(peak - anchor) + tl.sum(tl.exp(logits - anchor), 1, keep_dims=True)
        peak = new_peak
        logits = tl.where(inside, logits - origin, 0.0)
        taken += _prior_sum(logits, k, prior, classes, soft, soft_number, n, s, there, K, S, J, PRIOR)
    if PRIOR == _UNIFORM:
        taken /= K
    if (PRIOR == _UNIFORM) | (PRIOR == _SHARED):
        taken = _times(_field(soft, soft_number, row, there).to(real), taken)
    for j in tl.static_range(J):
        at = (n * J + j) * S + s
        label = tl.load(classes + at, mask=there, other=0)
        sound = sound & (label >= 0) & (label < K)
        logit = tl.load(x + label[:, None] * x_class, mask=sound[:, None], other=0).to(real)
        taken += _times(_field(hard, hard_number, at, there).to(real), logit - origin)

    weight = _field(mass, mass_number, row, there).to(real)
    loss = _times(weight, tl.log(total) + (peak - origin)) - taken
    counts = there[:, None]
    if ignored is not None:
        counts = counts & (tl.load(ignored + row, mask=there, other=1)[:, None] == 0)
    loss = tl.where(counts, tl.where(sound[:, None], loss, float("nan")), 0.0)
    tl.store(losses + row[:, None], loss, mask=there[:, None])

    if grad is not None:
        tl.debug_barrier()  # grad may share memory with x, so all warps must have read the labels' logits first
        grad += n * grad_example + s[:, None] * grad_position
        upstream = tl.load(scale).to(real) if ONE_SCALE else _field(scale, scale_number, row, there).to(real)
        factor = weight * upstream / total
        for first in range(0, K, BLOCK):
            k = first + tl.arange(0, BLOCK)[None, :]
            inside = there[:, None] & (k < K)
            wide = k.to(tl.int64)
            logits = tl.load(x + wide * x_class, mask=inside, other=0, eviction_policy="evict_first").to(real)
            slope = tl.exp(logits - peak) * factor
            if PRIOR == _UNIFORM:
                slope -= _field(soft, soft_number, row, there) * upstream / K
            if PRIOR == _SHARED:
                q = tl.load(prior + k, mask=k < K, other=0)
                slope -= _field(soft, soft_number, row, there) * upstream * q
            for j in tl.static_range(J):
                at = (n * J + j) * S + s
                column = tl.load(classes + at, mask=there, other=0)[:, None]
                if PRIOR == _PER_CLASS:
                    q = tl.load(prior + column * K + k, mask=inside & sound[:, None], other=0)
                    slope -= _field(soft, soft_number, at, there) * upstream * q
                slope -= tl.where(k == column, _field(hard, hard_number, at, there) * upstream, 0.0)
            slope = tl.where(counts, tl.where(sound[:, None], slope, float("nan")), 0.0)
            tl.store(grad + wide * grad_class, slope.to(grad.dtype.element_ty), mask=inside)


@triton.jit
def _field(data, number, at, there):
    """A field of the target for some rows, ``[ROWS, 1]``, or the number that all rows share."""
    if data is None:  # noqa: SIM108  (the assignment makes the number a tensor)
        value = number
    else:
        value = tl.load(data + at, mask=there, other=0)[:, None]
    return value


@triton.jit
def _times(weight, value):
    """``weight · value``, where 0 · inf counts as 0."""
    return tl.where(weight == 0, 0.0, weight * value)


@triton.jit
def _prior_sum(
    logits, k, prior, classes, soft, soft_number, n, s, there, K, S, J: tl.constexpr, PRIOR: tl.constexpr
):  # fmt: skip
    """A block's part of ``<q, x>``, times the soft weights if each class has its own prior row, else unweighted."""
    result = tl.zeros([logits.shape[0], 1], logits.dtype)
    if PRIOR == _UNIFORM:
        result = tl.sum(logits, 1, keep_dims=True)
    if PRIOR == _SHARED:
        q = tl.load(prior + k, mask=k < K, other=0)
        result = tl.sum(_times(q, logits), 1, keep_dims=True)
    if PRIOR == _PER_CLASS:
        for j in tl.static_range(J):
            at = (n * J + j) * S + s
            label = tl.load(classes + at, mask=there, other=0)[:, None]
            sound = there[:, None] & (label >= 0) & (label < K)
            q = tl.load(prior + label * K + k, mask=sound & (k < K), other=0)
            dot = tl.sum(_times(q, logits), 1, keep_dims=True)
            result += _times(_field(soft, soft_number, at, there).to(logits.dtype), dot)
    return result


@triton.jit
def _scale_kernel(values, factor, size, BLOCK: tl.constexpr):
    number = tl.load(factor)
    if number != 1:  # most losses are not scaled, and then nothing is read
        start = tl.program_id(0).to(tl.int64) * BLOCK
        for first in range(start, size, tl.num_programs(0) * BLOCK):
            at = first + tl.arange(0, BLOCK)
            value = tl.load(values + at, mask=at < size)
            scaled = tl.where(value == 0, 0.0, value * number)  # ignored rows stay 0, even if the factor is NaN
            tl.store(values + at, scaled.to(values.dtype.element_ty), mask=at < size)
