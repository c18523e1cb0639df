"""Finds the objects that a callable holds by inspection only: no code is run and no property is read."""

from __future__ import annotations

import contextlib
import functools
import types
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

__all__ = ["fields_of", "reachable"]

LIBRARIES = {"torch", "torchvision", "torchmetrics", "composer", "composer_ls", "numpy", "PIL"}
"""Packages whose functions are not inspected: they smooth only if the caller asks for it."""
MOST_OBJECTS = 2_000
MOST_ITEMS = 32
"""How many entries of a container are inspected. Lists of transforms are short; longer lists hold samples."""


def fields_of(thing: Any) -> dict[str, Any]:
    """An object's instance attributes, and a module's children."""
    try:
        fields = dict(object.__getattribute__(thing, "__dict__"))
    except (AttributeError, TypeError, ValueError):
        return {}
    return fields | dict(fields.get("_modules") or {}) if isinstance(thing, nn.Module) else fields


def reachable(root: Any, path: str) -> Iterator[tuple[str, Any]]:
    """The objects reachable from ``root``, each once, with a path to it. ``root`` itself comes first.

    The search follows ``functools.partial``, functions (closures, defaults and the globals that they name), the objects
    of bound methods, attributes, modules' children, and short lists, tuples and dicts.
    """
    seen: dict[Any, Any] = {}  # keeps the objects alive, so that no id is reused
    queue = [(path, root)]
    while queue and len(seen) < MOST_OBJECTS:
        path, thing = queue.pop(0)
        if id(thing) in seen or isinstance(thing, (str, bytes, int, float, type, type(None), Tensor, types.ModuleType)):
            continue
        seen[id(thing)] = thing
        yield path, thing
        queue += [(where, value) for where, value in _held_by(path, thing) if _leads_on(value)]


def _held_by(path: str, thing: Any) -> list[tuple[str, Any]]:
    if isinstance(thing, functools.partial):
        return [(f"{path}.func", thing.func), *_items(f"{path}.args", thing.args), *_items(path, thing.keywords)]
    if isinstance(thing, types.MethodType):
        return [(path, thing.__self__), *_named_by(path, thing.__func__)]
    if isinstance(thing, types.FunctionType):
        return _named_by(path, thing)
    if isinstance(thing, (list, tuple, dict)):
        return _items(path, thing)
    call = next((vars(cls)["__call__"] for cls in type(thing).__mro__ if "__call__" in vars(cls)), None)
    return [*((f"{path}.{name}", value) for name, value in fields_of(thing).items()), *_named_by(path, call)]


def _named_by(path: str, function: Any) -> list[tuple[str, Any]]:
    """A function's closure variables, defaults, and the module globals that it names."""
    if not isinstance(function, types.FunctionType) or (function.__module__ or "").partition(".")[0] in LIBRARIES:
        return []
    named = {name: function.__globals__[name] for name in _names(function.__code__) if name in function.__globals__}
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        with contextlib.suppress(ValueError):  # not assigned yet
            named[name] = cell.cell_contents
    found = [(f"{path}, which uses {name}", value) for name, value in named.items()]
    return [*found, *_items(path, function.__defaults__ or ()), *_items(path, function.__kwdefaults__ or {})]


def _names(code: types.CodeType) -> list[str]:
    """The names used in a function's code, including the functions nested in it."""
    inner = [name for constant in code.co_consts if isinstance(constant, types.CodeType) for name in _names(constant)]
    return [*code.co_names, *inner]


def _items(path: str, container: Any) -> list[tuple[str, Any]]:
    items = container.items() if isinstance(container, dict) else enumerate(container)
    return [(f"{path}[{key!r}]", value) for (key, value), _ in zip(items, range(MOST_ITEMS), strict=False)]


def _leads_on(value: Any) -> bool:
    """Whether a value can lead to something that changes targets: a callable, a container, or a dataloader."""
    return callable(value) or isinstance(value, (list, tuple, dict)) or "collate_fn" in fields_of(value)
