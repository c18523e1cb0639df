"""Converts SoftTargets to the form that cross-entropy kernels take, and computes the divisor of the mean."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import forward_ad

from composer_ls.kernels import FEW, RowTargets, sum_components
from composer_ls.targets import SoftTargets
from composer_ls.targets.fields import class_dim, host_number

__all__ = ["inverse", "masked_rows", "may_learn", "row_targets"]


def row_targets(
    target: SoftTargets, weight: Tensor | None, ignore_index: int, dtype: torch.dtype, read: bool
) -> tuple[RowTargets, Tensor | None, Tensor | float]:
    r"""The target for a kernel, a factor for each row's loss, and the divisor of the mean.

    The divisor is :math:`\sum_n \sum_j |w_{nj}|\,\mathrm{weight}[c_{nj}] / \sum_j |w_{nj}|` over the rows n with a
    non-zero weight. Without class weights this is the number of rows that are not ignored, whatever their mass, as in
    PyTorch's mean over dense rows. With class weights it is the sum of the labels' class weights, as in PyTorch's mean
    over labels.

    Args:
        target: SoftTargets with J labels per row.
        weight: A factor for each class, ``(K,)``.
        ignore_index: Labels with this value are ignored.
        dtype: The dtype in which the kernel computes.
        read: Whether values on the CPU may be read, so that a field that is the same for all rows becomes a number.

    Returns:
        The target, whose tensors have as many dimensions as ``target.classes``; the factors, or ``None`` if all are 1;
        and the divisor, a tensor if its value is not known on the host.

    """
    classes, prior, dim = target.classes, target.prior, class_dim(target.classes)
    in_range = 0 <= ignore_index < target.num_classes
    if read and weight is None and not in_range:
        alike = _alike_rows(target, dtype)
        if alike is not None:
            return alike[0], None, alike[1]
    counted, smoothing = (_number_or_rows(field, classes, dtype, read) for field in (target.weights, target.smoothing))
    if in_range:
        counted = _without(ignore_index, classes, counted, dim, dtype)
    elif not isinstance(counted, Tensor) and counted == 0:
        counted = torch.zeros([1] * classes.ndim, dtype=dtype, device=classes.device)
    ignored = _ignored(counted, dim, read) if isinstance(counted, Tensor) else None
    divisor = _divisor(counted, classes, None if weight is None else weight.to(dtype), ignored, dtype)
    factor = None
    if isinstance(counted, Tensor) and classes.shape[dim] == 1 and read:
        factor, counted = counted, 1.0  # one label per row: the weight becomes a factor and the fields stay numbers
    hard = counted * (1 - smoothing)
    soft = None if isinstance(smoothing, float) and smoothing == 0 else counted * smoothing
    mass = counted
    if weight is not None:
        weight = weight.to(dtype)
        hard = hard * weight[classes]
        prior = weight / target.num_classes if prior is None else prior * weight
        mass = hard
    if prior is not None and soft is not None:
        prior = prior.to(dtype)
        mass = hard + soft * _sums(prior, classes)
    if soft is not None and (prior is None or prior.ndim == 1):
        soft = _known(_sum_components(soft, classes), read)
    mass = _known(_sum_components(mass, classes), read)
    return RowTargets(classes, hard, soft, prior, mass, ignored), factor, divisor


def _without(ignore_index: int, classes: Tensor, weights: Tensor | float, dim: int, dtype: torch.dtype) -> Tensor:
    """The weights without those of one label.

    A negative weight beside positive ones is no label: MaxSup takes it from the largest class, in proportion to the mass
    of the row's labels. So it shrinks as much as they do, and stays if the ignored class is merely the largest.
    """
    counts = (classes != ignore_index).to(dtype)
    kept = counts * weights
    if not isinstance(weights, Tensor) or classes.shape[dim] == 1:
        return kept
    labels = weights.clamp_min(0).expand_as(classes)
    total = labels.sum(dim, keepdim=True)
    share = (counts * labels).sum(dim, keepdim=True) / torch.where(total == 0, 1, total)
    return torch.where((weights < 0) & (total > 0), weights * share, kept)


def inverse(divisor: Tensor | float) -> Tensor | float:
    """``1 / divisor``, or 0 if there is nothing to average."""
    if not isinstance(divisor, Tensor):
        return 1 / divisor if divisor else 0.0
    return torch.where(divisor == 0, 0, 1 / torch.where(divisor == 0, 1, divisor))


def masked_rows(ignored: Tensor, weights: Tensor, x: Tensor, dim: int = 1) -> Tensor:
    """The ignored rows, unless the weights may need a derivative: then those of them whose logits are not finite.

    A row's loss is its weight times a cross entropy, which is the derivative by the weight, also at 0.

    Args:
        ignored: True for rows without weight, with ``dim`` of size 1.
        weights: What the weights of the rows are part of.
        x: Logits. Single classes of -inf are fine.
        dim: The class dimension.

    """
    if not may_learn(weights):
        return ignored
    return ignored & ~x.detach().amax(dim, keepdim=True).isfinite()


def may_learn(field: Tensor) -> bool:
    """Whether a derivative by it is needed, or, in forward mode, may be needed."""
    if torch.compiler.is_compiling():
        return field.requires_grad
    if field.requires_grad or forward_ad._current_level >= 0:
        return True
    functorch = torch._C._functorch
    wrapped = functorch.is_gradtrackingtensor(field) or functorch.is_batchedtensor(field)
    return wrapped and may_learn(functorch.get_unwrapped(field))  # an outer transform may need it


def _alike_rows(target: SoftTargets, dtype: torch.dtype) -> tuple[RowTargets, float] | None:
    """The target and divisor, without tensor operations, if rows differ only in their classes (as in MixUp); else None."""
    classes, field, dim = target.classes, target.weights, class_dim(target.classes)
    components = classes.shape[dim]
    smoothing = host_number(target.smoothing)
    if smoothing is None or field.device.type != "cpu" or field.requires_grad:
        return None
    if field.ndim and (field.numel() > FEW or field.shape[dim] != field.numel()):
        return None
    weights = field.flatten().tolist() if field.ndim else [field.item()]
    if not any(weights):
        return None
    total = sum(weights) * components / len(weights)
    each = weights[0] if len(weights) == 1 else field.to(dtype)
    prior = target.prior if smoothing else None
    if prior is None:
        rows = RowTargets(classes, each * (1 - smoothing), total * smoothing if smoothing else None, None, total, None)
        return rows, classes.numel() / components
    prior = prior.to(dtype)
    moved = each * smoothing * _sums(prior, classes)
    mass = _known(_sum_components(moved, classes), True) + total * (1 - smoothing)
    soft = total * smoothing if prior.ndim == 1 else each * smoothing
    return RowTargets(classes, each * (1 - smoothing), soft, prior, mass, None), classes.numel() / components


def _sums(prior: Tensor, classes: Tensor) -> Tensor:
    """The sum of the prior of each label, with as many dimensions as ``classes``."""
    if prior.ndim == 1:
        return prior.sum().view([1] * classes.ndim)
    return prior[classes].sum(-1) if classes.numel() < len(prior) else prior.sum(1)[classes]


def _ignored(counted: Tensor, dim: int, read: bool) -> Tensor | None:
    """Which rows are ignored, or ``None`` if it is known that none is."""
    on_host = read and counted.device.type == "cpu"  # reading from another device would synchronise it
    if counted.shape[dim] > 1:
        counted = counted.detach().abs().amax(dim, keepdim=True)
    if on_host and bool(counted.all()):
        return None
    return counted == 0


def _divisor(
    counted: Tensor | float, classes: Tensor, weight: Tensor | None, ignored: Tensor | None, dtype: torch.dtype
) -> Tensor | float:
    """The divisor of the mean; see :func:`row_targets`."""
    dim = class_dim(classes)
    rows = classes.numel() // classes.shape[dim]
    if weight is None:
        if ignored is None:
            return float(rows)
        return (~ignored).sum().to(dtype) * (rows / max(1, ignored.numel()))
    each = weight[classes]
    if not isinstance(counted, Tensor):
        return each.mean(dim).sum()
    share = counted.abs().expand_as(each)
    total = share.sum(dim, keepdim=True)
    return (each * share / torch.where(total == 0, 1, total)).sum()


def _number_or_rows(field: Tensor, classes: Tensor, dtype: torch.dtype, read: bool) -> Tensor | float:
    """A field of SoftTargets as a number if the host knows its value, else with as many dimensions as ``classes``."""
    if field.ndim:
        return field.to(dtype)
    number = host_number(field) if read else None
    return field.to(classes.device, dtype).view([1] * classes.ndim) if number is None else number


def _known(value: Tensor | float, read: bool) -> Tensor | float:
    """A one-element tensor as a number if its value is known on the host; anything else as it is."""
    if not read or not isinstance(value, Tensor) or value.numel() != 1:
        return value
    number = host_number(value.view(()))
    return value if number is None else number


def _sum_components(field: Tensor | float, classes: Tensor) -> Tensor | float:
    dim = class_dim(classes)
    return sum_components(field, classes.shape[dim], dim)
