"""The operations on SoftTargets that give SoftTargets: those that target transforms use.

Each handler returns NotImplemented if the result has no compact form.
"""

from __future__ import annotations

import numbers
import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from composer_ls.targets.dispatch import implements
from composer_ls.targets.fields import class_dim, expand_field, host_number, same_number, transformed, wide_dtype
from composer_ls.targets.soft_targets import SoftTargets, part_of, replace

__all__: list[str] = []


def _named(*names: str) -> list[Any]:
    """The functions of ``torch`` and the methods of ``torch.Tensor`` with these names."""
    owners = [(owner, name) for name in names for owner in (torch, torch.Tensor)]
    found = [getattr(owner, name, None) for owner, name in owners]
    return [function for function in found if callable(function)]


@implements(*_named("mul", "multiply", "__mul__", "__rmul__"))
def _multiply(input: Any, other: Any) -> Any:
    target, factor = (input, other) if isinstance(input, SoftTargets) else (other, input)
    return _scale(operator.mul, target, factor)


@implements(*_named("div", "divide", "true_divide", "__truediv__"))
def _divide(input: Any, other: Any, *, rounding_mode: str | None = None) -> Any:
    if rounding_mode is not None or not isinstance(input, SoftTargets):
        return NotImplemented
    return NotImplemented if _is_number(other) and other == 0 else _scale(operator.truediv, input, other)


def _scale(operation: Callable[[Any, Any], Any], target: SoftTargets, factor: Any) -> Any:
    """``target`` with its weights multiplied or divided by a number, or by one factor per row."""
    dtype = target.dtype
    if isinstance(factor, Tensor):
        if isinstance(factor, SoftTargets) or factor.is_complex():
            return NotImplemented
        per_row = factor.ndim == target.ndim and factor.shape[class_dim(target)] == 1
        if factor.ndim and not (per_row and _broadcasts(factor, target)):
            return NotImplemented
        dtype = torch.result_type(torch.empty((1,) * target.ndim, dtype=dtype, device="meta"), factor)
        factor = factor.to(wide_dtype(dtype))
    elif not _is_number(factor):
        return NotImplemented
    return replace(target, target.classes, operation(target.weights, factor), target.smoothing, dtype=dtype)


def _is_number(value: Any) -> bool:
    return type(value) in (float, int) or isinstance(value, numbers.Real)


def _broadcasts(factor: Tensor, target: Tensor) -> bool:
    return all(size in (1, full) for size, full in zip(factor.shape, target.shape, strict=True))


@implements(*_named("add", "__add__", "__radd__"))
def _add(input: Any, other: Any, *, alpha: float = 1) -> Any:
    if not isinstance(input, SoftTargets) or not isinstance(other, SoftTargets):
        target, number = (input, other) if isinstance(input, SoftTargets) else (other, input)
        is_zero = _is_number(number) and number == 0  # sum([...]) starts from 0
        if not is_zero:
            return NotImplemented
        return _clone(target) if alpha == 1 or target is input else _multiply(target, alpha)
    with torch._C.DisableTorchFunctionSubclass():  # __torch_function__ would cost more than the addition
        alike = input.shape == other.shape and input.device == other.device
    if not alike or not _same_prior(input, other):
        return NotImplemented
    return _join([input, other if alpha == 1 else _multiply(other, alpha)], class_dim(input))


@implements(*_named("sub", "subtract", "__sub__"))
def _subtract(input: Any, other: Any, *, alpha: float = 1) -> Any:
    if not isinstance(input, SoftTargets) or not isinstance(other, SoftTargets):
        return NotImplemented
    return _add(input, other, alpha=-alpha)


@implements(*_named("neg", "negative", "__neg__"))
def _negate(input: SoftTargets) -> SoftTargets:
    return _multiply(input, -1.0)


def _compact_index(target: SoftTargets, index: Any) -> tuple[Any, ...] | None:
    """``index`` with one entry per dimension, if the class dimension is kept whole and stays in place; else None."""
    index = index if isinstance(index, tuple) else (index,)
    dots = [at for at, entry in enumerate(index) if entry is Ellipsis] or [len(index)]
    given = len(index) - (dots[0] < len(index))
    if len(dots) > 1 or given > target.ndim:
        return None
    whole = (slice(None),) * (target.ndim - given)
    entries = [_compact_entry(entry) for entry in (*index[: dots[0]], *whole, *index[dots[0] + 1 :])]
    examples, classes, elsewhere = entries[0], entries[class_dim(target)], entries[1:]
    if any(entry is None or isinstance(entry, Tensor) for entry in elsewhere) or examples is None:
        return None
    if not isinstance(classes, slice) or (classes.start, classes.stop, classes.step) != (None, None, None):
        return None
    if isinstance(examples, int) and target.ndim > 2:  # the class dimension would move to the front
        return None
    return tuple(entries)


def _compact_entry(entry: Any) -> slice | int | Tensor | None:
    """One entry of an index as a slice, an int or a 1-dim tensor; None for anything else."""
    if isinstance(entry, list) and all(isinstance(item, int) for item in entry):
        entry = torch.tensor(entry, dtype=None if entry else torch.long)
    if isinstance(entry, slice) or (isinstance(entry, Tensor) and entry.ndim == 1):
        return None if isinstance(entry, SoftTargets) else entry
    if isinstance(entry, bool) or (isinstance(entry, Tensor) and (entry.ndim > 0 or entry.dtype == torch.bool)):
        return None
    try:
        return operator.index(entry)
    except TypeError:
        return None


def _take(field: Tensor, index: tuple[Any, ...], shape: Sequence[int]) -> Tensor:
    """``field.expand(shape)[index]`` without expanding the broadcast dimensions."""
    if field.ndim == 0:
        return field
    entries = []
    for size, full, entry in zip(field.shape, shape, index, strict=True):
        broadcast = size != full
        entries.append((0 if isinstance(entry, int) else slice(None)) if broadcast else entry)
    return field[tuple(entries)]


@implements(*_named("__getitem__"))
def _getitem(target: Any, index: Any) -> Any:
    entries = _compact_index(target, index) if isinstance(target, SoftTargets) else None
    if entries is None:
        return NotImplemented
    shape = target.classes.shape
    classes = target.classes[entries]
    weights, smoothing = (_take(field, entries, shape) for field in (target.weights, target.smoothing))
    if any(isinstance(entry, Tensor) for entry in entries):
        return replace(target, classes, weights, smoothing)
    return part_of(target, classes, weights, smoothing)


@implements(*_named("unbind"), torch.Tensor.__iter__)
def _unbind(target: Any, dim: int = 0) -> Any:
    if target.ndim != 2 or dim != 0:
        return NotImplemented
    return tuple(_getitem(target, index) for index in range(len(target)))


@implements(*_named("__setitem__"))
def _setitem(target: Any, index: Any, value: Any) -> Any:
    if not (isinstance(target, SoftTargets) and isinstance(value, SoftTargets)):
        return NotImplemented
    entries = _compact_index(target, index)
    if entries is None or value.num_classes != target.num_classes or not _same_prior(target, value):
        return NotImplemented
    if value.ndim != target.ndim - sum(isinstance(entry, int) for entry in entries):
        return NotImplemented
    dim = class_dim(target.classes)
    components = max(target.classes.shape[dim], value.classes.shape[class_dim(value)])
    value = _pad_components(value, components)
    new = _pad_components(target, components)
    classes = new.classes.clone(memory_format=torch.contiguous_format)
    classes[entries] = value.classes
    fields = []
    for name in ("weights", "smoothing"):
        ours, theirs = getattr(new, name), getattr(value, name)
        if not (ours.ndim == 0 and same_number(ours, theirs)):
            dtype = _common_dtype([target, value], [ours, theirs])
            ours = expand_field(ours, classes.shape, target.device, dtype).clone(memory_format=torch.contiguous_format)
            ours[entries] = expand_field(theirs, value.classes.shape, target.device, dtype)
        fields.append(ours)
    for name, field in zip(("classes", "weights", "smoothing"), (classes, *fields), strict=True):
        setattr(target, name, field)
    return None


def _axis(target: Tensor, dim: int) -> int:
    """``dim`` counted from the front."""
    if not -target.ndim <= dim < target.ndim:
        raise IndexError(f"dimension {dim} is out of range for a target of {target.ndim} dimensions")
    return dim + target.ndim if dim < 0 else dim


def _axes(target: SoftTargets, dims: Any) -> tuple[int, ...]:
    return tuple(_axis(target, dim) for dim in ((dims,) if isinstance(dims, int) else dims))


def _permuted(function: Callable[..., Tensor]) -> Callable[..., Any]:
    """Handler for an operation that moves entries along some dimensions and keeps the shape."""

    def handler(target: Any, *args: Any, **kwargs: Any) -> Any:
        if function is torch.roll:
            shifts, dims = (*args, *(kwargs[name] for name in ("shifts", "dims") if name in kwargs), ())[:2]
            shifts = (shifts,) if isinstance(shifts, int) else tuple(shifts)
        else:
            dims = kwargs["dims"] if "dims" in kwargs else args[0] if len(args) == 1 else args
            shifts = ()
        dims = _axes(target, dims)
        if not dims or class_dim(target) in dims or (shifts and len(shifts) != len(dims)):
            return NotImplemented

        def move(field: Tensor) -> Tensor:
            kept = [i for i, dim in enumerate(dims) if field.ndim and field.shape[dim] > 1]
            if not kept:
                return field
            where = [dims[i] for i in kept]
            return torch.roll(field, [shifts[i] for i in kept], where) if shifts else torch.flip(field, where)

        return replace(target, move(target.classes), move(target.weights), move(target.smoothing))

    return handler


implements(*_named("roll"))(_permuted(torch.roll))
implements(*_named("flip"))(_permuted(torch.flip))


@implements(*_named("cat", "concat", "concatenate"))
def _cat(tensors: Any, dim: int = 0, *, out: Any = None, **names: Any) -> Any:
    tensors = list(tensors)
    if out is not None or names or not all(isinstance(tensor, SoftTargets) for tensor in tensors):
        return NotImplemented
    first, dim = tensors[0], _axis(tensors[0], dim)
    if dim == class_dim(first) or any(
        tensor.ndim != first.ndim or tensor.num_classes != first.num_classes or not _same_prior(tensor, first)
        for tensor in tensors
    ):
        return NotImplemented
    return _join(tensors, dim)


@implements(*_named("split"))
def _split(target: Any, split_size_or_sections: Any, dim: int = 0) -> Any:
    dim = _axis(target, dim)
    if dim == class_dim(target):
        return NotImplemented
    length, sizes = target.shape[dim], split_size_or_sections
    if isinstance(sizes, int):
        sizes = [min(sizes, length - start) for start in range(0, length, sizes)] or [0]
    elif sum(sizes) != length:
        return NotImplemented
    pieces, start = [], 0
    for size in sizes:
        pieces.append(_getitem(target, (slice(None),) * dim + (slice(start, start + size),)))
        start += size
    return tuple(pieces)


@implements(*_named("chunk"))
def _chunk(target: Any, chunks: int, dim: int = 0) -> Any:
    length = target.shape[dim]
    return _split(target, max(1, -(-length // chunks)), dim) if length else NotImplemented


@implements(*_named("index_select"))
def _index_select(target: Any, dim: int, index: Tensor) -> Any:
    takes = dim == 0 and isinstance(index, Tensor) and index.ndim == 1 and index.dtype in (torch.int32, torch.int64)
    read = takes and index.device.type == "cpu" and not transformed(index)
    if not takes or (read and bool((index < 0).any())):  # PyTorch refuses negative indices here
        return NotImplemented
    return _getitem(target, index)


def _convert(method: str) -> Callable[..., Any]:
    """Handler for a conversion of dtype or device. PyTorch interprets the arguments, on an empty tensor."""

    def handler(target: Any, *args: Any, **kwargs: Any) -> Any:
        kwargs = {name: value for name, value in kwargs.items() if name != "memory_format"}
        if not isinstance(target, SoftTargets):  # plain.to(soft)
            like = torch.empty(0, dtype=args[0].dtype, device=args[0].device)
            return getattr(target, method)(like, *args[1:], **kwargs)
        args = tuple(torch.empty(0, dtype=a.dtype, device=a.device) if isinstance(a, SoftTargets) else a for a in args)
        probe = getattr(torch.empty(0, dtype=target.dtype, device=target.device), method)(*args, **kwargs)
        if not isinstance(probe, Tensor) or not probe.dtype.is_floating_point:
            return NotImplemented

        def move(field: Tensor) -> Tensor:
            stay = field.ndim == 0 and field.device.type == "cpu"
            device = field.device if stay else probe.device
            return field.to(device, non_blocking=kwargs.get("non_blocking", False), copy=kwargs.get("copy", False))

        if not kwargs.get("copy") and probe.dtype == target.dtype and probe.device == target.device:
            return target  # as PyTorch does
        prior = None if target.prior is None else move(target.prior)
        fields = (move(target.classes), move(target.weights), move(target.smoothing))
        return replace(target, *fields, prior=prior, dtype=probe.dtype)

    return handler


for _method in ("to", "type_as", "float", "double", "half", "bfloat16", "cpu", "cuda", "type"):
    implements(getattr(torch.Tensor, _method))(_convert(_method))


@implements(*_named("clone"))
def _clone(target: SoftTargets, **_: Any) -> SoftTargets:
    return replace(target, target.classes.clone(), target.weights.clone(), target.smoothing.clone())


@implements(*_named("detach"), torch.Tensor.data.__get__)  # type: ignore[attr-defined]
def _detach(target: SoftTargets, *_: Any) -> SoftTargets:
    part = part_of(target, target.classes, target.weights.detach(), target.smoothing.detach())
    part.prior = None if target.prior is None else target.prior.detach()
    return part


@implements(*_named("detach_"))
def _detach_(target: SoftTargets) -> SoftTargets:
    detached = _detach(target)
    target.weights, target.smoothing, target.prior = detached.weights, detached.smoothing, detached.prior
    return target


@implements(*_named("contiguous"))
def _itself(target: SoftTargets, **_: Any) -> SoftTargets:
    return target


@implements(*_named("requires_grad_"))
def _requires_grad_(target: Any, requires_grad: bool = True) -> Any:
    if requires_grad:
        raise TypeError(
            "SoftTargets as a whole cannot require a gradient: let their weights, smoothing or prior require it, or call "
            ".dense() for a tensor that can"
        )
    return target


# ---------------------------------------------------------------------------------------------------------------------
# Joining.


def _common_dtype(targets: Sequence[SoftTargets], fields: Sequence[Tensor]) -> torch.dtype:
    """The dtype for these fields: float64 if a target or a field is float64, else float32."""
    widths = [wide_dtype(target.dtype) for target in targets] + [field.dtype for field in fields if field.ndim]
    return torch.float64 if torch.float64 in widths else torch.float32


def _same_prior(a: SoftTargets, b: SoftTargets) -> bool:
    if a.prior is None or b.prior is None:
        return a.prior is b.prior
    p, q = a.prior, b.prior
    if p is q or p.requires_grad or q.requires_grad or transformed(p, q):
        return p is q
    return p.shape == q.shape and p.stride() == q.stride() and p.data_ptr() == q.data_ptr()


def _join(targets: Sequence[SoftTargets], dim: int) -> SoftTargets:
    """Concatenate along ``dim``. Along the component dimension this mixes; along any other it stacks examples."""
    component_dim = class_dim(targets[0].classes)
    if dim != component_dim:
        components = max(target.classes.shape[component_dim] for target in targets)
        targets = [_pad_components(target, components) for target in targets]
    classes = torch.cat([target.classes for target in targets], dim)
    weights = _join_fields(targets, [target.weights for target in targets], dim)
    smoothing = _join_fields(targets, [target.smoothing for target in targets], dim)
    return replace(targets[0], classes, weights, smoothing, dtype=_promoted(targets))


def _promoted(targets: Sequence[SoftTargets]) -> torch.dtype:
    dtype = targets[0].dtype
    for target in targets[1:]:
        if target.dtype != dtype:
            dtype = torch.promote_types(dtype, target.dtype)
    return dtype


def _join_fields(targets: Sequence[SoftTargets], parts: Sequence[Tensor], dim: int) -> Tensor:
    first, classes = parts[0], targets[0].classes
    if first.ndim == 0 and all(part is first for part in parts):
        return first
    known = [host_number(part) for part in parts]
    if None not in known and all(number == known[0] for number in known):
        return first
    shapes = [target.classes.shape for target in targets]
    across_components = dim == class_dim(classes)
    if across_components and None not in known and classes.is_cpu:  # one number for each component
        each = [number for number, shape in zip(known, shapes, strict=True) for _ in range(shape[dim])]
        field = torch.tensor(each, dtype=_common_dtype(targets, parts))
        return field.view([len(each) if axis == dim else 1 for axis in range(classes.ndim)])
    device = classes.device
    if across_components and all(part.ndim == 0 for part in parts):
        shapes = [torch.Size([size if i == dim else 1 for i, size in enumerate(shape)]) for shape in shapes]
    dtype = _common_dtype(targets, parts)
    return torch.cat([expand_field(part, shape, device, dtype) for part, shape in zip(parts, shapes, strict=True)], dim)


def _pad_components(target: SoftTargets, components: int) -> SoftTargets:
    dim = class_dim(target.classes)
    missing = components - target.classes.shape[dim]
    if missing == 0:
        return target
    shape = list(target.classes.shape)
    shape[dim] = missing
    nothing = torch.zeros((), dtype=torch.float64)
    differs = target.smoothing.ndim > 0 and target.smoothing.shape[dim] > 1
    smoothing = nothing if differs else target.smoothing
    return _join([target, replace(target, target.classes.new_zeros(shape), nothing, smoothing)], dim)
