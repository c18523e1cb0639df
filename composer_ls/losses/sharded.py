"""Cross entropy of logits that several processes hold parts of: a DTensor sharded over classes, over the batch, or both.

Over classes, each row's maximum is reduced first. Then two numbers per row are summed: the sum of exponentials, and what
the labels and the prior take of the logits. Logits never leave their process, and the backward pass communicates nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from composer_ls.kernels import RowTargets
from composer_ls.losses.fused import save, saved
from composer_ls.losses.row_targets import inverse, row_targets
from composer_ls.losses.soft_losses import fields_learn
from composer_ls.targets import SoftTargets
from composer_ls.targets.fields import class_dim, is_sharded, wide_dtype
from composer_ls.targets.soft_targets import make

try:
    from torch.distributed.tensor import DTensor, Replicate, Shard
except ImportError:  # PyTorch before 2.5
    from torch.distributed._tensor import DTensor, Replicate, Shard  # type: ignore[attr-defined]

__all__ = ["sharded_losses"]


def sharded_losses(
    logits: Any, target: SoftTargets, weight: Tensor | None, ignore_index: int, reduction: str
) -> DTensor:
    """The loss in the compute dtype: replicated, or with ``reduction="none"`` ``(N, *spatial)``, sharded as the batch is.

    Raises:
        ValueError: The logits are sharded over a spatial dimension or hold partial sums; a shard has another size than
            PyTorch gives it; the target is on another mesh; the target or class weights need a gradient.

    """
    shards = _Shards.of(logits)
    if fields_learn(target, weight):
        raise ValueError("the target or class weights need a gradient, which sharded logits do not give: detach() them")
    weight = None if weight is None else shards.whole(weight, "weight")
    local = shards.part_of(target)
    x = logits.to_local()
    rows, _, divisor = row_targets(local, weight, ignore_index, wide_dtype(x.dtype), read=False)
    sound = ((local.classes >= 0) & (local.classes < shards.classes)).all(class_dim(x), keepdim=True)
    losses = _Losses.apply(x, rows, shards).masked_fill(~sound, torch.nan)
    dim = class_dim(x)
    if reduction == "none":
        shape = torch.Size((*logits.shape[:dim], *logits.shape[dim + 1 :]))
        stride = torch.empty(shape, device="meta").stride()
        losses = losses.squeeze(dim)
        return DTensor.from_local(losses, shards.mesh, shards.by_batch, run_check=False, shape=shape, stride=stride)
    loss = losses.sum()
    if reduction == "mean":
        divisor = torch.as_tensor(divisor, dtype=loss.dtype, device=loss.device).clone()
        loss = loss * inverse(shards.sum_over_batch(divisor))
    total = _Total.apply(loss, shards)
    return DTensor.from_local(total, shards.mesh, [Replicate()] * shards.mesh.ndim, run_check=False)


class _Shards(NamedTuple):
    """Which rows and classes this process holds.

    Attributes:
        mesh: The mesh of the logits.
        classes: K.
        held_classes: The classes here.
        held_rows: The rows here.
        over_classes: The dimensions of the mesh that classes are sharded over.
        over_batch: The dimensions of the mesh that the batch is sharded over.

    """

    mesh: Any
    classes: int
    held_classes: slice
    held_rows: slice
    over_classes: tuple[int, ...]
    over_batch: tuple[int, ...]

    @classmethod
    def of(cls, logits: Any) -> _Shards:
        dim, mesh = class_dim(logits), logits.device_mesh
        batched = logits.ndim > 1
        over: dict[int, list[int]] = {0: [], 1: []}
        for axis, placement in enumerate(logits.placements):
            if type(placement) is Replicate:
                continue
            if type(placement) is not Shard or placement.dim not in ((0, 1) if batched else (0,)):
                raise ValueError(
                    f"logits of shape {tuple(logits.shape)} have placements {logits.placements}, but must be replicated or "
                    f"sharded over the batch (0) or the classes ({dim}): call logits.redistribute(placements=...)"
                )
            over[placement.dim if batched else 1].append(axis)
        held_classes = _held(logits.shape[dim], mesh, over[1])
        held_rows = _held(logits.shape[0], mesh, over[0]) if batched else slice(None)
        local = tuple(logits._local_tensor.shape)
        promised = [*logits.shape]
        promised[dim] = held_classes.stop - held_classes.start
        if batched:
            promised[0] = held_rows.stop - held_rows.start
        if local != tuple(promised):
            raise ValueError(
                f"the shard of this process has shape {local}, but that of logits {tuple(logits.shape)} with placements "
                f"{logits.placements} has {tuple(promised)}: make them with distribute_tensor, or a shape for from_local"
            )
        return cls(mesh, logits.shape[dim], held_classes, held_rows, tuple(over[1]), tuple(over[0]))

    @property
    def by_batch(self) -> list[Any]:
        """Placements of what has a row for each row of the logits."""
        return [Shard(0) if axis in self.over_batch else Replicate() for axis in range(self.mesh.ndim)]

    def whole(self, tensor: Tensor, name: str) -> Tensor:
        """All of a tensor of classes."""
        return self._placed(tensor, name, [Replicate()] * self.mesh.ndim)

    def part_of(self, target: SoftTargets) -> SoftTargets:
        """The rows of the target that belong to the logits here."""

        def rows_of(field: Tensor, name: str) -> Tensor:
            if is_sharded(field):
                return self._placed(field, name, self.by_batch)
            return field[self.held_rows] if field.ndim and len(field) == len(target.classes) > 1 else field

        classes, weights, smoothing = (rows_of(getattr(target, f), f) for f in ("classes", "weights", "smoothing"))
        prior = None if target.prior is None else self.whole(target.prior, "prior")
        return make(classes, target.num_classes, weights, smoothing, prior, target.dtype)

    def _placed(self, tensor: Any, name: str, placements: Sequence[Any]) -> Tensor:
        if not is_sharded(tensor):
            return tensor
        if tensor.device_mesh != self.mesh:
            raise ValueError(
                f"logits are on {self.mesh}, but the target's {name} on {tensor.device_mesh}: give both the same mesh"
            )
        return tensor.redistribute(placements=placements).to_local()

    def reduce_over_classes(self, tensor: Tensor, maximum: bool = False) -> Tensor:
        """Sum, or maximise, in place, over the processes that hold other classes of the same rows."""
        return self._reduce(tensor, self.over_classes, dist.ReduceOp.MAX if maximum else dist.ReduceOp.SUM)

    def sum_over_batch(self, tensor: Tensor) -> Tensor:
        """Sum, in place, over the processes that hold other rows."""
        return self._reduce(tensor, self.over_batch, dist.ReduceOp.SUM)

    def _reduce(self, tensor: Tensor, axes: Sequence[int], operation: Any) -> Tensor:
        for axis in axes:
            dist.all_reduce(tensor, operation, self.mesh.get_group(axis))
        return tensor


def _held(size: int, mesh: Any, axes: Sequence[int]) -> slice:
    """What this process holds of a dimension that is sharded over these axes of the mesh, as PyTorch cuts it."""
    start, length = 0, size
    for axis in axes:
        step = -(-length // mesh.size(axis))
        first = min(step * mesh.get_local_rank(axis), length)
        start, length = start + first, min(step, length - first)
    return slice(start, start + length)


class _Total(torch.autograd.Function):
    """The sum over the processes that hold other rows, each of which gets the gradient of the sum."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, shards: _Shards) -> Tensor:
        return shards.sum_over_batch(loss.clone())

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        return grad_output, None


class _Losses(torch.autograd.Function):
    """The loss of each row here, of logits ``(n, k, *spatial)``: ``(n, 1, *spatial)``, in the compute dtype."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, target: RowTargets, shards: _Shards) -> Tensor:
        dim = class_dim(logits)
        x = logits.to(wide_dtype(logits.dtype))
        if target.ignored is not None:
            x = torch.where(target.ignored, 0, x)
        shape = [*x.shape]
        shape[dim] = 1
        peak = x.new_full(shape, -torch.inf) if not x.shape[dim] else x.amax(dim, keepdim=True)
        peak = shards.reduce_over_classes(peak, maximum=True)
        x = x - peak
        local = _Local.of(target, shards, dim)
        sums = torch.stack([x.exp().sum(dim, keepdim=True), local.taken(x)])
        total, taken = shards.reduce_over_classes(sums)
        save(ctx, logits, peak, total, *target, *local)
        losses = target.mass * total.log() - taken
        return losses if target.ignored is None else torch.where(target.ignored, 0, losses)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        logits, peak, total, *fields = saved(ctx)
        split = len(RowTargets._fields)
        target, local, factor = RowTargets(*fields[:split]), _Local(*fields[split:]), grad_output
        if target.ignored is not None:
            factor = torch.where(target.ignored, 0, factor)
        gradient = (logits.to(peak.dtype) - peak).exp_().mul_(target.mass * factor / total)
        local.subtract(gradient, factor)
        if target.ignored is not None:
            gradient.masked_fill_(target.ignored, 0)
        return gradient.to(logits.dtype), None, None


class _Local(NamedTuple):
    """What labels and prior give the classes held here."""

    classes: Tensor
    hard: Tensor
    soft: Tensor | None
    prior: Tensor | None
    dim: int

    @classmethod
    def of(cls, target: RowTargets, shards: _Shards, dim: int) -> _Local:
        held = shards.held_classes
        here = (target.classes >= held.start) & (target.classes < held.stop)
        classes = torch.where(here, target.classes - held.start, 0)
        hard = torch.where(here, target.hard, 0)
        if target.soft is None:
            return cls(classes, hard, None, None, dim)
        soft = torch.as_tensor(target.soft, dtype=hard.dtype, device=hard.device)
        width = held.stop - held.start
        if target.prior is None:
            prior = hard.new_full((width,), 1 / shards.classes)
        else:
            prior = target.prior[..., held].to(hard.dtype)
        if prior.ndim == 2:  # the mix of the labels' rows
            known = target.classes.clamp(0, shards.classes - 1)
            prior = (soft.unsqueeze(-1) * prior[known]).sum(dim).movedim(-1, dim)
            return cls(classes, hard, None, prior, dim)
        view = [1] * hard.ndim
        view[dim] = width
        return cls(classes, hard, soft, prior.view(view), dim)

    def taken(self, x: Tensor) -> Tensor:
        """``Σ_j hard_j · x[c_j] + soft · <q, x>`` over the classes here."""
        result = x.new_zeros([1 if axis == self.dim else size for axis, size in enumerate(x.shape)])
        if not x.shape[self.dim]:
            return result
        result += _times(self.hard, x.gather(self.dim, self.classes)).sum(self.dim, keepdim=True)
        if self.prior is not None:
            both = _times(self.prior, x).sum(self.dim, keepdim=True)
            result += both if self.soft is None else _times(self.soft, both)
        return result

    def subtract(self, gradient: Tensor, factor: Tensor) -> None:
        """``gradient - factor · target``, in place."""
        if not gradient.shape[self.dim]:
            return
        if self.prior is not None:
            gradient.sub_(self.prior * (factor if self.soft is None else self.soft * factor))
        gradient.scatter_add_(self.dim, self.classes, (-self.hard * factor).expand(self.classes.shape))


def _times(weight: Tensor, value: Tensor) -> Tensor:
    """``weight · value`` in which nothing weighs nothing, even infinity."""
    return torch.where(weight == 0, 0, weight * value)
