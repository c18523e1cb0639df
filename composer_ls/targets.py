"""SoftTargets: a dense ``(N, K, *spatial)`` target that stores only its labels, weights and smoothing."""

from __future__ import annotations

import copy
import numbers
import operator
from collections.abc import Callable, Sequence
from inspect import signature
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["SoftTargets"]


class SoftTargets(torch.Tensor):
    r"""A mixture of smoothed labels that behaves as the dense tensor it stands for.

    Row ``n`` is :math:`y_n = \sum_j w_{nj}\,[(1-\alpha_{nj})\,\mathrm{onehot}(c_{nj}) + \alpha_{nj}\,q(c_{nj})]`.
    There is one component (J = 1) for plain labels and one more for every mix (MixUp, CutMix). An ignored row has
    weight 0.

    Adding two of them, multiplying by a number or by per-row weights, indexing, ``roll``, ``flip``, ``cat``,
    ``split``, ``to``, ``float``, ``clone`` and ``detach`` stay in this form.
    :func:`torch.nn.functional.cross_entropy` reads it without building the dense tensor. Every other operation
    works on :meth:`dense`. In-place operations change the object itself.

    Args:
        classes: Labels c, integer, shape ``(N, J, *spatial)``, or ``(J,)`` for a single unbatched row. Every entry
            lies in ``[0, num_classes)``; an ignored position holds any valid class with weight 0.
        num_classes: K, the size of the class dimension.
        weights: w, a number or a float tensor broadcastable to ``classes``.
        smoothing: α, a number or a float tensor broadcastable to ``classes``.
        prior: q. ``None`` for the uniform ``1/K``, one row ``(K,)``, or one row per class ``(K, K)``.
        dtype: The floating dtype of the dense tensor. Default: float32.

    Raises:
        TypeError: ``classes`` is not an integer tensor or ``dtype`` is not floating.
        ValueError: A shape does not fit.

    Example:
        >>> import torch
        >>> from composer_ls import SoftTargets
        >>> target = SoftTargets(torch.tensor([[0], [2]]), num_classes=4, smoothing=0.2)
        >>> target
        SoftTargets(shape=(2, 4), components=1, smoothing=0.2, prior=uniform, dtype=float32, device=cpu)
        >>> target.dense()
        tensor([[0.8500, 0.0500, 0.0500, 0.0500],
                [0.0500, 0.0500, 0.8500, 0.0500]])
        >>> 0.7 * target + 0.3 * target.flip(0)
        SoftTargets(shape=(2, 4), components=2, smoothing=0.2, prior=uniform, dtype=float32, device=cpu)

    References:
        Szegedy et al., 2016, https://arxiv.org/abs/1512.00567; Müller et al., 2019, https://arxiv.org/abs/1906.02629.

    """

    classes: Tensor
    num_classes: int
    weights: Tensor
    smoothing: Tensor
    prior: Tensor | None

    @staticmethod
    def __new__(  # noqa: D102  (the class says it)
        cls,
        classes: Tensor,
        num_classes: int,
        weights: float | Tensor = 1.0,
        smoothing: float | Tensor = 0.0,
        prior: Tensor | None = None,
        *,
        dtype: torch.dtype = torch.float32,
    ) -> SoftTargets:
        if classes.dtype == torch.bool or classes.is_floating_point() or classes.is_complex():
            raise TypeError(f"classes must be an integer tensor, but its dtype is {classes.dtype}")
        if not dtype.is_floating_point:
            raise TypeError(f"dtype must be floating, but is {dtype}")
        if classes.ndim == 0:
            raise ValueError("classes must have a component dimension: (N, J, *spatial), or (J,) for one row")
        if prior is not None and tuple(prior.shape) not in {(num_classes,), (num_classes, num_classes)}:
            raise ValueError(
                f"prior has shape {tuple(prior.shape)}, but must be ({num_classes},) or ({num_classes}, {num_classes}) "
                f"for num_classes={num_classes}"
            )
        weights, smoothing = _field(weights, classes, "weights"), _field(smoothing, classes, "smoothing")
        prior = None if prior is None else prior.to(classes.device)
        return cls._of(classes.long(), num_classes, weights, smoothing, prior, dtype)

    @classmethod
    def _of(
        cls,
        classes: Tensor,
        num_classes: int,
        weights: Tensor,
        smoothing: Tensor,
        prior: Tensor | None,
        dtype: torch.dtype,
    ) -> SoftTargets:
        """One of fields that need no check any more."""
        shape = list(classes.shape)
        shape[_class_dim(classes)] = num_classes
        self = torch.Tensor._make_wrapper_subclass(cls, shape, dtype=dtype, device=classes.device)  # type: ignore[attr-defined]
        self.classes, self.num_classes, self.weights, self.smoothing, self.prior = (
            classes, num_classes, weights, smoothing, prior,
        )  # fmt: skip
        return self

    @classmethod
    def from_dense(cls, rows: Tensor) -> SoftTargets:
        """Any dense ``(N, K, *spatial)`` tensor as a mixture of its K classes, so that in-place results have a form."""
        dim = _class_dim(rows)
        num_classes = rows.shape[dim]
        shape = [1] * rows.ndim
        shape[dim] = num_classes
        classes = torch.arange(num_classes, device=rows.device).view(shape).expand(rows.shape)
        return cls(classes, num_classes, rows, dtype=rows.dtype)

    def dense(self) -> Tensor:
        """The plain ``(N, K, *spatial)`` tensor that this stands for, in this object's dtype."""
        dim, compute = _class_dim(self.classes), _wide(self.dtype)
        weights, smoothing = (
            _expand(field, self.classes.shape, self.classes.device, compute) for field in (self.weights, self.smoothing)
        )
        shape = list(self.classes.shape)
        shape[dim] = self.num_classes
        rows = torch.zeros(shape, dtype=compute, device=self.classes.device)
        rows.scatter_add_(dim, self.classes, weights * (1 - smoothing))
        moved = weights * smoothing
        if self.prior is None:
            rows += moved.sum(dim, keepdim=True) / self.num_classes
        elif self.prior.ndim == 1:
            per_class = [1] * rows.ndim
            per_class[dim] = self.num_classes
            rows += moved.sum(dim, keepdim=True) * self.prior.to(compute).view(per_class)
        else:
            rows += (moved.unsqueeze(-1) * self.prior.to(compute)[self.classes]).sum(dim).movedim(-1, dim)
        return rows.to(self.dtype)

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        smoothing = f"{self.smoothing.item():g}" if self.smoothing.ndim == 0 else f"{tuple(self.smoothing.shape)}"
        prior = {None: "uniform", 1: "row", 2: "row per class"}[None if self.prior is None else self.prior.ndim]
        return (
            f"SoftTargets(shape={tuple(self.shape)}, components={self.classes.shape[_class_dim(self.classes)]}, "
            f"smoothing={smoothing}, prior={prior}, dtype={str(self.dtype).removeprefix('torch.')}, "
            f"device={self.device})"
        )

    def __format__(self, spec: str) -> str:
        return format(repr(self), spec)

    def __deepcopy__(self, memo: dict[int, Any]) -> SoftTargets:
        if id(self) not in memo:
            memo[id(self)] = self._with(
                *(field.clone() for field in (self.classes, self.weights, self.smoothing)),
                prior=copy.deepcopy(self.prior, memo),
            )
        return memo[id(self)]

    def __reduce_ex__(self, protocol: object) -> tuple[Any, ...]:
        fields = (self.classes, self.num_classes, self.weights, self.smoothing, self.prior, self.dtype)
        return _rebuild, fields

    def _with(
        self, classes: Tensor, weights: Tensor, smoothing: Tensor, *, prior: Any = ..., dtype: Any = None
    ) -> SoftTargets:
        """A new SoftTargets over the same classes, with these fields."""
        prior = self.prior if prior is ... else prior
        return SoftTargets._of(classes, self.num_classes, weights, smoothing, prior, dtype or self.dtype)

    def _become(self, other: SoftTargets) -> SoftTargets:
        """Take over the content of ``other``, of the same shape: the end of every in-place operation."""
        self.classes, self.weights, self.smoothing, self.prior = (
            other.classes,
            other.weights,
            other.smoothing,
            other.prior,
        )
        return self

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        result = _compact(func, args, kwargs)
        if result is not NotImplemented:
            return result
        if _reads_only_metadata(func):
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **kwargs)
        return _through_dense(func, args, kwargs)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        # What reaches a kernel without passing __torch_function__ (C++ callers) sees the dense tensor.
        if func is torch.ops.aten.detach.default:
            return args[0]._with(args[0].classes, args[0].weights, args[0].smoothing)
        return _through_dense(func, args, kwargs or {})


def _rebuild(
    classes: Tensor, num_classes: int, weights: Tensor, smoothing: Tensor, prior: Tensor | None, dtype: torch.dtype
) -> SoftTargets:
    return SoftTargets(classes, num_classes, weights, smoothing, prior, dtype=dtype)


# ---------------------------------------------------------------------------------------------------------------------
# Fields. A number is kept as a 0-dim float64 tensor on the CPU: it broadcasts against any device without a copy, and
# keeps its precision whatever the dtype of the logits.


def _class_dim(tensor: Tensor) -> int:
    return 1 if tensor.ndim > 1 else 0


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _field(value: float | Tensor, classes: Tensor, name: str) -> Tensor:
    if not isinstance(value, Tensor):
        return torch.scalar_tensor(value, dtype=torch.float64)
    value = value.to(_wide(value.dtype))  # products of bfloat16 weights would be rounded once more than dense rows are
    if value.ndim == 0:
        return value
    sizes = zip(reversed(value.shape), reversed(classes.shape), strict=False)
    fits = value.ndim <= classes.ndim and all(size in (1, full) for size, full in sizes)
    if not fits:
        raise ValueError(
            f"{name} has shape {tuple(value.shape)}, which does not broadcast to classes {tuple(classes.shape)}"
        )
    value = value.to(classes.device)
    return value[(None,) * (classes.ndim - value.ndim)]


def _expand(field: Tensor, shape: Sequence[int], device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """``field`` as a tensor of this shape on this device, without a device-to-host wait."""
    if field.ndim == 0 and field.device != device:
        return torch.full((), field.item(), dtype=dtype or field.dtype, device=device).expand(shape)
    return field.to(dtype or field.dtype).expand(shape)


def _common_dtype(targets: Sequence[SoftTargets], fields: Sequence[Tensor]) -> torch.dtype:
    """A dtype that holds these fields as precisely as the dense rows of the targets need them."""
    widths = [_wide(target.dtype) for target in targets] + [field.dtype for field in fields if field.ndim]
    return torch.float64 if torch.float64 in widths else torch.float32


def _same_number(a: Tensor, b: Tensor) -> bool:
    return a is b or (a.ndim == b.ndim == 0 and a.device.type == b.device.type == "cpu" and a.item() == b.item())


def _same_prior(a: SoftTargets, b: SoftTargets) -> bool:
    if a.prior is None or b.prior is None:
        return a.prior is b.prior
    p, q = a.prior, b.prior
    return p is q or (p.shape == q.shape and p.stride() == q.stride() and p.data_ptr() == q.data_ptr())


def _join(targets: Sequence[SoftTargets], dim: int) -> SoftTargets:
    """Concatenate along ``dim``: the component dimension mixes, any other one stacks examples."""
    component_dim = _class_dim(targets[0].classes)
    if dim != component_dim:
        components = max(target.classes.shape[component_dim] for target in targets)
        targets = [_pad_components(target, components) for target in targets]
    classes = torch.cat([target.classes for target in targets], dim)
    weights = _join_fields(targets, [target.weights for target in targets], dim)
    smoothing = _join_fields(targets, [target.smoothing for target in targets], dim)
    return targets[0]._with(classes, weights, smoothing, dtype=_promoted(targets))


def _promoted(targets: Sequence[SoftTargets]) -> torch.dtype:
    dtype = targets[0].dtype
    for target in targets[1:]:
        if target.dtype != dtype:
            dtype = torch.promote_types(dtype, target.dtype)
    return dtype


def _join_fields(targets: Sequence[SoftTargets], parts: Sequence[Tensor], dim: int) -> Tensor:
    shapes = [target.classes.shape for target in targets]
    device = targets[0].classes.device
    if all(part.ndim == 0 and part.device.type == "cpu" for part in parts):
        numbers = [part.item() for part in parts]
        if all(number == numbers[0] for number in numbers):
            return parts[0]
        if dim == _class_dim(targets[0].classes) and device.type == "cpu":  # one number a component
            each = [number for number, shape in zip(numbers, shapes, strict=True) for _ in range(shape[dim])]
            view = [1] * len(shapes[0])
            view[dim] = len(each)
            return torch.tensor(each, dtype=_common_dtype(targets, parts)).view(view)
    if dim == _class_dim(targets[0].classes) and all(part.ndim == 0 for part in parts):
        shapes = [torch.Size([size if i == dim else 1 for i, size in enumerate(shape)]) for shape in shapes]
    dtype = _common_dtype(targets, parts)
    return torch.cat([_expand(part, shape, device, dtype) for part, shape in zip(parts, shapes, strict=True)], dim)


def _pad_components(target: SoftTargets, components: int) -> SoftTargets:
    dim = _class_dim(target.classes)
    missing = components - target.classes.shape[dim]
    if missing == 0:
        return target
    shape = list(target.classes.shape)
    shape[dim] = missing
    nothing = torch.zeros((), dtype=torch.float64)
    differs = target.smoothing.ndim > 0 and target.smoothing.shape[dim] > 1
    smoothing = nothing if differs else target.smoothing
    return _join([target, target._with(target.classes.new_zeros(shape), nothing, smoothing)], dim)


# ---------------------------------------------------------------------------------------------------------------------
# Operations. Each returns NotImplemented for the cases in which the result has no compact form.


def _multiply(input: Any, other: Any) -> Any:
    target, factor = (input, other) if isinstance(input, SoftTargets) else (other, input)
    return _scale(operator.mul, target, factor)


def _divide(input: Any, other: Any, *, rounding_mode: str | None = None) -> Any:
    if rounding_mode is not None or not isinstance(input, SoftTargets):
        return NotImplemented
    return NotImplemented if _is_number(other) and other == 0 else _scale(operator.truediv, input, other)


def _scale(operation: Callable[[Any, Any], Any], target: SoftTargets, factor: Any) -> Any:
    """The weights times, or divided by, a number or one factor a row."""
    dtype = target.dtype
    if isinstance(factor, Tensor):
        if isinstance(factor, SoftTargets) or factor.requires_grad or factor.is_complex():
            return NotImplemented
        per_row = factor.ndim == target.ndim and factor.shape[_class_dim(target)] == 1
        if factor.ndim and not (per_row and _broadcasts(factor, target)):
            return NotImplemented
        dtype = torch.result_type(torch.empty((1,) * target.ndim, dtype=dtype, device="meta"), factor)
        factor = factor.to(_wide(dtype))
    elif not _is_number(factor):
        return NotImplemented
    return target._with(target.classes, operation(target.weights, factor), target.smoothing, dtype=dtype)


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real)


def _broadcasts(factor: Tensor, target: Tensor) -> bool:
    return all(size in (1, full) for size, full in zip(factor.shape, target.shape, strict=True))


def _add(input: Any, other: Any, *, alpha: float = 1) -> Any:
    if not isinstance(input, SoftTargets) or not isinstance(other, SoftTargets):
        target, number = (input, other) if isinstance(input, SoftTargets) else (other, input)
        is_zero = _is_number(number) and number == 0  # sum([...]) starts from 0
        return _clone(target) if is_zero else NotImplemented
    with torch._C.DisableTorchFunctionSubclass():  # which would cost more than the addition
        alike = input.shape == other.shape and input.device == other.device
    if not alike or not _same_prior(input, other):
        return NotImplemented
    return _join([input, other if alpha == 1 else _multiply(other, alpha)], _class_dim(input))


def _subtract(input: Any, other: Any, *, alpha: float = 1) -> Any:
    if not isinstance(input, SoftTargets) or not isinstance(other, SoftTargets):
        return NotImplemented
    return _add(input, other, alpha=-alpha)


def _negate(input: SoftTargets) -> SoftTargets:
    return _multiply(input, -1.0)


def _compact_index(target: SoftTargets, index: Any) -> tuple[Any, ...] | None:
    """``index`` with one entry a dimension, if the class dimension is kept whole and stays where it is."""
    index = index if isinstance(index, tuple) else (index,)
    dots = [at for at, entry in enumerate(index) if entry is Ellipsis] or [len(index)]
    given = len(index) - (dots[0] < len(index))
    if len(dots) > 1 or given > target.ndim:
        return None
    whole = (slice(None),) * (target.ndim - given)
    entries = [_compact_entry(entry) for entry in (*index[: dots[0]], *whole, *index[dots[0] + 1 :])]
    examples, classes, elsewhere = entries[0], entries[_class_dim(target)], entries[1:]
    if any(entry is None or isinstance(entry, Tensor) for entry in elsewhere) or examples is None:
        return None
    if not isinstance(classes, slice) or (classes.start, classes.stop, classes.step) != (None, None, None):
        return None
    if isinstance(examples, int) and target.ndim > 2:  # the class dimension would move to the front
        return None
    return tuple(entries)


def _compact_entry(entry: Any) -> slice | int | Tensor | None:
    """One entry of an index as a slice, an int or a 1-dim tensor; None if it is anything else."""
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


def _getitem(target: Any, index: Any) -> Any:
    entries = _compact_index(target, index) if isinstance(target, SoftTargets) else None
    if entries is None:
        return NotImplemented
    shape = target.classes.shape
    classes = target.classes[entries]
    weights, smoothing = (_take(field, entries, shape) for field in (target.weights, target.smoothing))
    return target._with(classes, weights, smoothing)


def _setitem(target: Any, index: Any, value: Any) -> Any:
    if not (isinstance(target, SoftTargets) and isinstance(value, SoftTargets)):
        return NotImplemented
    entries = _compact_index(target, index)
    if entries is None or value.num_classes != target.num_classes or not _same_prior(target, value):
        return NotImplemented
    if value.ndim != target.ndim - sum(isinstance(entry, int) for entry in entries):
        return NotImplemented
    dim = _class_dim(target.classes)
    components = max(target.classes.shape[dim], value.classes.shape[_class_dim(value)])
    value = _pad_components(value, components)
    new = _pad_components(target, components)
    classes = new.classes.clone(memory_format=torch.contiguous_format)
    classes[entries] = value.classes
    fields = []
    for name in ("weights", "smoothing"):
        ours, theirs = getattr(new, name), getattr(value, name)
        if not (ours.ndim == 0 and _same_number(ours, theirs)):
            dtype = _common_dtype([target, value], [ours, theirs])
            ours = _expand(ours, classes.shape, target.device, dtype).clone(memory_format=torch.contiguous_format)
            ours[entries] = _expand(theirs, value.classes.shape, target.device, dtype)
        fields.append(ours)
    target._become(target._with(classes, *fields))
    return None


def _dims(target: SoftTargets, dims: Any) -> tuple[int, ...]:
    dims = (dims,) if isinstance(dims, int) else tuple(dims)
    return tuple(range(target.ndim)[dim] for dim in dims)


def _permuted(function: Callable[..., Tensor]) -> Callable[..., Any]:
    """Handler for an operation that moves entries along some dimensions and leaves the shape as it is."""

    def handler(target: Any, *args: Any, **kwargs: Any) -> Any:
        if function is torch.roll:
            shifts, dims = (*args, *(kwargs[name] for name in ("shifts", "dims") if name in kwargs), ())[:2]
            shifts = (shifts,) if isinstance(shifts, int) else tuple(shifts)
        else:
            dims = kwargs["dims"] if "dims" in kwargs else args[0] if len(args) == 1 else args
            shifts = ()
        dims = _dims(target, dims)
        if not dims or _class_dim(target) in dims or (shifts and len(shifts) != len(dims)):
            return NotImplemented

        def move(field: Tensor) -> Tensor:
            kept = [i for i, dim in enumerate(dims) if field.ndim and field.shape[dim] > 1]
            if not kept:
                return field
            where = [dims[i] for i in kept]
            return torch.roll(field, [shifts[i] for i in kept], where) if shifts else torch.flip(field, where)

        return target._with(move(target.classes), move(target.weights), move(target.smoothing))

    return handler


def _cat(tensors: Any, dim: int = 0, *, out: Any = None, **names: Any) -> Any:
    tensors = list(tensors)
    if out is not None or names or not all(isinstance(tensor, SoftTargets) for tensor in tensors):
        return NotImplemented
    first, dim = tensors[0], range(tensors[0].ndim)[dim]
    if dim == _class_dim(first) or any(
        tensor.ndim != first.ndim or tensor.num_classes != first.num_classes or not _same_prior(tensor, first)
        for tensor in tensors
    ):
        return NotImplemented
    return _join(tensors, dim)


def _split(target: Any, split_size_or_sections: Any, dim: int = 0) -> Any:
    dim = range(target.ndim)[dim]
    if dim == _class_dim(target):
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


def _chunk(target: Any, chunks: int, dim: int = 0) -> Any:
    length = target.shape[dim]
    return _split(target, max(1, -(-length // chunks)), dim) if length else NotImplemented


def _index_select(target: Any, dim: int, index: Tensor) -> Any:
    return _getitem(target, index) if dim == 0 else NotImplemented


def _convert(method: str) -> Callable[..., Any]:
    """Handler for a conversion of dtype or device: an empty tensor tells what the arguments mean."""

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

        prior = None if target.prior is None else move(target.prior)
        fields = (move(target.classes), move(target.weights), move(target.smoothing))
        return target._with(*fields, prior=prior, dtype=probe.dtype)

    return handler


def _clone(target: SoftTargets, **_: Any) -> SoftTargets:
    return target._with(target.classes.clone(), target.weights.clone(), target.smoothing.clone())


def _same(target: SoftTargets, *_: Any, **__: Any) -> SoftTargets:
    return target._with(target.classes, target.weights, target.smoothing)


def _itself(target: SoftTargets) -> SoftTargets:
    return target


def _requires_grad_(target: Any, requires_grad: bool = True) -> Any:
    if requires_grad:
        raise TypeError(
            "SoftTargets are constants of the loss and take no gradient; call .dense() for a tensor that can"
        )
    return target


def _cross_entropy(input: Any, target: Any, *args: Any, **kwargs: Any) -> Any:
    from composer_ls.losses import cross_entropy

    if isinstance(input, SoftTargets) or not isinstance(target, SoftTargets):
        return NotImplemented
    return cross_entropy(input, target, *args, **kwargs)


def _handlers() -> dict[Any, Callable[..., Any]]:
    by_name: dict[str, Callable[..., Any]] = {
        "mul": _multiply, "multiply": _multiply, "__mul__": _multiply, "__rmul__": _multiply,
        "div": _divide, "divide": _divide, "true_divide": _divide, "__truediv__": _divide,
        "add": _add, "__add__": _add, "__radd__": _add,
        "sub": _subtract, "subtract": _subtract, "__sub__": _subtract,
        "neg": _negate, "negative": _negate, "__neg__": _negate,
        "__getitem__": _getitem, "__setitem__": _setitem, "index_select": _index_select,
        "roll": _permuted(torch.roll), "flip": _permuted(torch.flip),
        "cat": _cat, "concat": _cat, "concatenate": _cat, "split": _split, "chunk": _chunk,
        "clone": _clone, "detach": _same, "detach_": _itself, "contiguous": _same, "requires_grad_": _requires_grad_,
    }  # fmt: skip
    for method in ("to", "type_as", "float", "double", "half", "bfloat16", "cpu", "cuda", "type"):
        by_name[method] = _convert(method)
    handlers: dict[Any, Callable[..., Any]] = {F.cross_entropy: _cross_entropy}
    for name, handler in by_name.items():
        for owner in (torch, torch.Tensor):
            if hasattr(owner, name) and (owner is torch.Tensor or callable(getattr(owner, name))):
                handlers[getattr(owner, name)] = handler
    handlers[torch.Tensor.data.__get__] = _same  # type: ignore[attr-defined]
    return handlers


_METADATA = {
    "size", "dim", "ndimension", "numel", "nelement", "element_size", "is_floating_point", "is_complex", "is_signed",
    "is_inference", "get_device", "type", "__len__", "__hash__", "__dir__", "has_names", "is_same_size", "is_pinned",
    "is_conj", "is_neg", "_is_view", "retain_grad", "stride", "storage_offset", "is_contiguous", "_is_zerotensor",
}  # fmt: skip
_TENSOR_PROPERTIES = {"T", "mT", "H", "mH", "real", "imag"}


def _reads_only_metadata(func: Callable[..., Any]) -> bool:
    name = getattr(func, "__name__", "")
    if name == "__get__":
        return getattr(getattr(func, "__self__", None), "__name__", "") not in _TENSOR_PROPERTIES
    return name in _METADATA or name == "__set__"


def _compact(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """The result of ``func`` in compact form, or NotImplemented if it has none."""
    handler = _HANDLERS.get(func)
    if handler is None or (kwargs and not _takes(handler, args, kwargs)):
        return NotImplemented
    if torch.compiler.is_compiling():
        return handler(*args, **kwargs)
    with torch._C.DisableTorchFunctionSubclass():  # a handler reads many shapes, and each would come through here
        return handler(*args, **kwargs)


def _takes(handler: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> bool:
    try:
        signature(handler).bind(*args, **kwargs)
    except TypeError:
        return False
    return True


def _through_dense(func: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    name = getattr(func, "__name__", "").split(".")[0]
    base = _out_of_place(name)
    receiver = kwargs.get("out") if base is None else args[0]
    if isinstance(receiver, SoftTargets) and base in _COMPACT_IN_PLACE:
        result = _compact(getattr(torch.Tensor, base), args, kwargs)
        if result is not NotImplemented and result.shape == receiver.shape:
            return receiver._become(result)
    made: dict[int, Tensor] = {}
    result = func(*_dense_in(list(args), made), **_dense_in(kwargs, made))
    if not isinstance(receiver, SoftTargets):
        return result
    if made[id(receiver)].shape != receiver.shape:
        raise RuntimeError(f"SoftTargets cannot change shape in place, as {name} does: call it on .dense()")
    receiver._become(SoftTargets.from_dense(made[id(receiver)]))
    return None if name == "__setitem__" else receiver


_COMPACT_IN_PLACE = {"mul", "div", "add", "sub", "__mul__", "__truediv__", "__add__", "__sub__"}


def _out_of_place(name: str) -> str | None:
    """``mul`` for ``mul_``, ``__mul__`` for ``__imul__``; None if this operation does not write to its receiver."""
    if name == "__setitem__":
        return name
    if name.startswith("__i") and hasattr(torch.Tensor, f"__{name[3:]}"):
        return f"__{name[3:]}"
    return name[:-1] if name.endswith("_") and not name.endswith("__") else None


def _dense_in(value: Any, made: dict[int, Tensor]) -> Any:
    """``value`` with every SoftTargets in it replaced by its dense tensor; ``made`` remembers them by identity."""
    if isinstance(value, SoftTargets):
        if id(value) not in made:
            made[id(value)] = value.dense()
        return made[id(value)]
    if isinstance(value, dict):
        return {key: _dense_in(item, made) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        items = [_dense_in(item, made) for item in value]
        return items if isinstance(value, list) else tuple(items)
    return value


_HANDLERS = _handlers()
