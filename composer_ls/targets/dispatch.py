"""How PyTorch's calls on SoftTargets are handled.

A call that writes is done in compact form or refused. For other calls, a compact handler of `algebra` or
`composer_ls.losses` takes the call if there is one; metadata is answered directly; a call that would read class ids is
refused; everything else sees the dense tensor.
"""

from __future__ import annotations

import numbers
from collections.abc import Callable, Sequence
from functools import lru_cache
from importlib import import_module
from inspect import signature
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from composer_ls.errors import TargetError

__all__ = ["call", "implements", "out_of_place", "through_dense"]

Handler = Callable[..., Any]

_HANDLERS: dict[Any, Handler] = {}
_READERS: set[Any] = set()
"""The functions with a handler that do not write to their arguments, unless one is given as ``out``."""
_LOADED_ON_FIRST_USE = {F.cross_entropy: "composer_ls.losses"}
"""Handlers defined in packages above this one, which register themselves when they are imported."""


def implements(*functions: Any) -> Callable[[Handler], Handler]:
    """Register a handler for these PyTorch functions. It returns NotImplemented if the result has no compact form."""

    def register(handler: Handler) -> Handler:
        _HANDLERS.update(dict.fromkeys(functions, handler))
        _READERS.update(function for function in functions if out_of_place(_name(function)) is None)
        return handler

    return register


def call(kind: type[Tensor], func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """The result of a call with at least one argument of type ``kind``, which is SoftTargets."""
    if func not in _READERS or "out" in kwargs:  # finding out what is written costs more than mixing two small targets
        name = _name(func)
        if name == "__set__":
            return _set_property(func, args)
        base = out_of_place(name)
        receiver = kwargs.get("out") if base is None else args[0]
        if isinstance(receiver, kind):
            return _write(kind, func, base, receiver, args, kwargs)
        written = receiver if isinstance(receiver, (list, tuple)) else args[:1] if kwargs.get("inplace") else ()
        if any(isinstance(one, kind) for one in written):  # as in torch._foreach_mul_([target], 0.5)
            raise _cannot_hold(name)
    result = _compact(func, args, kwargs)
    if result is not NotImplemented:
        return result
    name = _name(func)
    if _reads_only_metadata(func, name) and (name != "type" or len(args) == 1):
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **kwargs)
    return through_dense(kind, func, args, kwargs)


def through_dense(kind: type[Tensor], func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """The result of a call with each SoftTargets replaced by its dense tensor."""
    _refuse_labels(kind, _name(func), args, kwargs)
    made: dict[int, Tensor] = {}
    result = func(*_dense_in(kind, list(args), made), **_dense_in(kind, kwargs, made))
    return result if torch.compiler.is_compiling() else _guarded(result, list(made.values()))


# ---------------------------------------------------------------------------------------------------------------------
# Compact handlers and metadata.

_METADATA = {
    "size", "dim", "ndimension", "numel", "nelement", "element_size", "is_floating_point", "is_complex", "is_signed",
    "is_inference", "get_device", "type", "__len__", "__hash__", "__dir__", "has_names", "is_same_size", "is_pinned",
    "is_conj", "is_neg", "_is_view", "retain_grad", "stride", "storage_offset", "is_contiguous", "_is_zerotensor",
}  # fmt: skip
_TENSOR_PROPERTIES = {"T", "mT", "H", "mH", "real", "imag"}


def _name(func: Any) -> str:
    return getattr(func, "__name__", "").split(".")[0]


def _reads_only_metadata(func: Any, name: str) -> bool:
    if name == "__get__":
        return getattr(getattr(func, "__self__", None), "__name__", "") not in _TENSOR_PROPERTIES
    if name == "untyped_storage":  # torch.compile checks which tensors share a storage
        return torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.FAKE) is not None
    return name in _METADATA


def _compact(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """The result of ``func`` in compact form, or NotImplemented if it has none."""
    handler = _HANDLERS.get(func)
    if handler is None and func in _LOADED_ON_FIRST_USE:
        import_module(_LOADED_ON_FIRST_USE[func])
        handler = _HANDLERS[func]
    if handler is None or (kwargs and not _takes(handler, args, kwargs)):
        return NotImplemented
    if torch.compiler.is_compiling():
        return handler(*args, **kwargs)
    with torch._C.DisableTorchFunctionSubclass():  # handlers read many shapes, and each read would come through here
        return handler(*args, **kwargs)


def _takes(handler: Handler, args: Sequence[Any], kwargs: dict[str, Any]) -> bool:
    try:
        _signature(handler).bind(*args, **kwargs)
    except TypeError:
        return False
    return True


_signature = lru_cache(signature)


# ---------------------------------------------------------------------------------------------------------------------
# Writes.

_COMPACT_IN_PLACE = {"mul", "div", "add", "sub", "__mul__", "__truediv__", "__add__", "__sub__", "zero"}


def out_of_place(name: str) -> str | None:
    """``mul`` for ``mul_``, ``__mul__`` for ``__imul__``; None for an operation that does not write to its receiver."""
    if name == "__setitem__":
        return name
    if name.startswith("__i") and hasattr(torch.Tensor, f"__{name[3:]}"):
        return f"__{name[3:]}"
    return name[:-1] if name.endswith("_") and not name.endswith("__") else None


def _write(
    kind: type[Tensor], func: Any, base: str | None, receiver: Any, args: Sequence[Any], kwargs: dict[str, Any]
) -> Any:
    """A call that changes ``receiver``, done in compact form.

    Raises:
        TargetError: The result has no compact form, or ``receiver`` is a view, so the write would be lost.

    """
    name = _name(func)
    if base in ("requires_grad", "detach"):
        return _compact(func, args, kwargs)
    if receiver.is_part:
        raise TargetError(
            f"{name} would change a part, or an alias, of other SoftTargets, which would not see the change: assign to "
            f"the whole, as in target[0:2] = 0.5 * target[0:2], or clone() first"
        )
    if base == "__setitem__":
        result = _compact(func, args, kwargs)
        if result is not NotImplemented:
            return None
    elif base in _COMPACT_IN_PLACE:
        args = (*args, 0) if base == "zero" else args
        result = _compact(getattr(torch.Tensor, "mul" if base == "zero" else str(base)), args, kwargs)
        if result is not NotImplemented and result.shape == receiver.shape:
            for field in ("classes", "weights", "smoothing", "prior"):
                setattr(receiver, field, getattr(result, field))
            return receiver
    raise _cannot_hold("out=" if base is None else name)


def _cannot_hold(where: str) -> TargetError:
    return TargetError(
        f"SoftTargets cannot hold the result of {where} in place with these arguments: they store labels, weights and a "
        f"smoothing factor, not one number per class. Work on target.dense(), or assign other SoftTargets to some rows"
    )


def _set_property(func: Any, args: Sequence[Any]) -> Any:
    name = getattr(getattr(func, "__self__", None), "__name__", "")
    if name == "requires_grad":
        return torch.Tensor.requires_grad_(*args)
    if name in ("data", "real", "imag", "names"):
        raise TargetError(f"the {name} of SoftTargets cannot be replaced: make new ones with composer_ls.smooth_labels")
    with torch._C.DisableTorchFunctionSubclass():
        return func(*args)


class _PartOfDense(torch.Tensor):
    """A view of a temporary dense tensor. It refuses writes, which would be lost."""

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name, kwargs = _name(func), kwargs or {}
        receiver = args[0] if out_of_place(name) is not None else kwargs.get("out")
        if isinstance(receiver, cls) and name != "requires_grad_":
            raise TargetError(
                f"{name} would change a part of the dense tensor made from SoftTargets, and the change would not reach "
                f"them: call target.dense() once and work on that, or clone() the part first"
            )
        with torch._C.DisableTorchFunctionSubclass():
            result = func(*args, **kwargs)
            if name == "__get__":  # torch.compile also reads attributes without coming here, and refuses another type
                return result
            return _guarded(result, [part for part in (*args, *kwargs.values()) if isinstance(part, cls)])


def _guarded(result: Any, dense: Sequence[Tensor]) -> Any:
    """``result``, in which views of temporary dense tensors refuse writes."""
    if isinstance(result, (tuple, list)):
        guarded = [_guarded(item, dense) for item in result]
        if all(new is old for new, old in zip(guarded, result, strict=True)):
            return result
        return tuple(guarded) if type(result) is tuple else guarded
    if type(result) is not Tensor or torch._C._are_functorch_transforms_active() or result.device.type == "meta":
        return result
    if any(result is one for one in dense):  # to_dense() and the like
        return result
    storage = result.untyped_storage().data_ptr()
    if storage and any(storage == one.untyped_storage().data_ptr() for one in dense):
        return result.as_subclass(_PartOfDense)
    return result


# ---------------------------------------------------------------------------------------------------------------------
# Calls that read class ids.

_COMPARISONS = {
    "eq",
    "ne",
    "lt",
    "le",
    "gt",
    "ge",
    "greater",
    "greater_equal",
    "less",
    "less_equal",
    "not_equal",
    "isin",
}
_COMPARISONS |= {f"__{name}__" for name in ("eq", "ne", "lt", "le", "gt", "ge")}
_TO_INTEGERS = {"long", "int", "short", "char", "byte", "bool", "to", "type", "type_as"}
_FILLS = {
    "masked_fill": (2, "value"),
    "index_fill": (3, "value"),
    "masked_scatter": (2, "source"),
    "where": (1, "other"),
}
"""Functions that write some values into a tensor: where these begin among the arguments, and the keyword of the last."""
_LABELS_AT = {
    "nll_loss": (1, "target"), "multi_margin_loss": (1, "target"), "multilabel_margin_loss": (1, "target"),
    "one_hot": (0, "tensor"), "embedding": (0, "input"), "bincount": (0, "input"), "take": (1, "index"),
    "gather": (2, "index"), "scatter": (2, "index"), "scatter_add": (2, "index"), "index_select": (2, "index"),
    "take_along_dim": (1, "indices"),
}  # fmt: skip
"""Position and name of the argument in which these PyTorch functions take labels."""


def _refuse_labels(kind: type[Tensor], name: str, args: Sequence[Any], kwargs: dict[str, Any]) -> None:
    """Refuse calls that would read class ids from a distribution.

    Raises:
        TargetError: The call reads class ids.

    """
    what = None
    if name in _COMPARISONS and any(_is_integer(value) for value in (*args, *kwargs.values())):
        what = f"{name.strip('_')} with an integer compares class ids"
    elif name in _TO_INTEGERS and isinstance(args[0], kind) and _asks_for_integers(name, args[1:], kwargs):
        what = f"{name} asks for class ids"
    elif name == "__getitem__" and isinstance(args[0], kind) and _holds_mask(args[1]):
        what = "a mask of more than one dimension selects class ids"
    elif name in _FILLS and _fills_class_ids(kind, name, args, kwargs):
        what = f"{name} with an integer writes class ids (0.0 would be a number)"
    elif name == "roll" and len(args) < 3 and kwargs.get("dims") in (None, ()):
        what = "roll without dims=0 moves entries from class to class"
    elif name in _LABELS_AT:
        position, keyword = _LABELS_AT[name]
        value = args[position] if len(args) > position else kwargs.get(keyword)
        what = f"{name} takes class ids" if isinstance(value, kind) else None
    if what:
        raise TargetError(
            f"{what}, but this is SoftTargets, a distribution over classes in place of each label, as LabelSmoothing and "
            f"smooth_labels make them. The loss must take distributions, as torch.nn.functional.cross_entropy does (it "
            f"skips ignored labels by itself); target.dense() is the plain tensor"
        )


def _fills_class_ids(kind: type[Tensor], name: str, args: Sequence[Any], kwargs: dict[str, Any]) -> bool:
    """Whether integers are written, but for a 0 with a mask that has the class dimension, which cannot be one of labels."""
    first, keyword = _FILLS[name]
    values = (*args[first:], *(kwargs[key] for key in (keyword, "input", "self") if key in kwargs))
    things = [one for one in (*args, *kwargs.values()) if isinstance(one, Tensor)]
    dims = {one.ndim for one in things if isinstance(one, kind)}
    has_classes = any(one.dtype == torch.bool and one.ndim in dims for one in things)
    return any(_is_integer(value) and not (has_classes and _is_zero(value)) for value in values)


def _is_zero(value: Any) -> bool:
    return not isinstance(value, Tensor) and bool(value == 0)


def _is_integer(value: Any) -> bool:
    if isinstance(value, Tensor):
        return not (value.is_floating_point() or value.is_complex() or value.dtype == torch.bool)
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def _asks_for_integers(name: str, args: Sequence[Any], kwargs: dict[str, Any]) -> bool:
    if name not in ("to", "type", "type_as"):
        return True
    for value in (*args, *kwargs.values()):
        dtype = value.dtype if isinstance(value, Tensor) else value
        if name == "type" and not isinstance(dtype, torch.dtype):  # torch.LongTensor or its name, for example
            dtype = torch.empty(0).type(dtype).dtype
        if isinstance(dtype, torch.dtype) and not (dtype.is_floating_point or dtype.is_complex):
            return True
    return False


def _holds_mask(index: Any) -> bool:
    entries = index if isinstance(index, tuple) else (index,)
    return any(
        isinstance(entry, Tensor) and entry.dtype in (torch.bool, torch.uint8) and entry.ndim > 1 for entry in entries
    )


def _dense_in(kind: type[Tensor], value: Any, made: dict[int, Tensor]) -> Any:
    """``value`` with every SoftTargets in it replaced by its dense tensor, which ``made`` caches by object id."""
    if isinstance(value, kind):
        if id(value) not in made:
            made[id(value)] = value.dense()  # type: ignore[attr-defined]
        return made[id(value)]
    if isinstance(value, dict):
        return {key: _dense_in(kind, item, made) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        items = [_dense_in(kind, item, made) for item in value]
        return items if isinstance(value, list) else tuple(items)
    return value
