"""What a callable can reach without being run: what it wraps, holds, closes over or names."""

from __future__ import annotations

import contextlib
import functools
import types
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn

__all__ = ["names_of", "reachable"]

LIBRARIES = {"torch", "torchvision", "torchmetrics", "composer", "composer_ls", "numpy", "PIL"}
"""Packages whose functions are not looked into: they smooth only if a caller says so."""
MOST_OBJECTS = 2_000
MOST_ITEMS = 32
"""How many entries of a container are looked at: lists of transforms are short, lists of samples are not."""


def reachable(root: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Objects that ``root`` can reach, each once and with a path to it; ``root`` comes first.

    Followed are ``functools.partial``, functions (closures, defaults and the globals that they name), methods (what of
    their object they name), callable objects' attributes, modules' children, and short lists, tuples and dicts.
    """
    seen: dict[Any, Any] = {}  # keeps what it has seen alive, so that no identity is used twice
    queue = [(path, root)]
    while queue and len(seen) < MOST_OBJECTS:
        path, thing = queue.pop(0)
        bound = isinstance(thing, types.MethodType)
        identity = (id(thing.__self__), id(thing.__func__)) if bound else id(thing)
        if identity in seen or isinstance(thing, (str, bytes, int, float, type(None), Tensor, types.ModuleType)):
            continue
        seen[identity] = thing
        yield path, thing
        queue += _neighbours(path, thing)


def names_of(thing: Any) -> list[str]:
    """What a function is called and what its code names, unless it is a library's; of another object, its class."""
    function = getattr(thing, "__func__", thing)
    code = getattr(function, "__code__", None)
    inside = _names(code) if code is not None and not _is_library(function) else []
    return [getattr(function, "__name__", type(thing).__name__), *inside]


def _neighbours(path: str, thing: Any) -> list[tuple[str, Any]]:
    if isinstance(thing, functools.partial):
        return [(f"{path}.func", thing.func), *_items(f"{path}.args", thing.args), *_items(path, thing.keywords)]
    if isinstance(thing, types.MethodType):
        return [*_of_function(path, thing.__func__), *_named_of(path, thing)]
    if isinstance(thing, types.FunctionType):
        return _of_function(path, thing)
    if isinstance(thing, (list, tuple, dict)):
        return _items(path, thing)
    if isinstance(thing, (type, types.BuiltinFunctionType)):
        return []
    found = [(f"{path}.{name}", value) for name, value in getattr(thing, "__dict__", {}).items() if _leads_on(value)]
    if isinstance(thing, nn.Module):
        found += [(f"{path}.{name}", module) for name, module in thing.named_children()]
    call = type(thing).forward if isinstance(thing, nn.Module) else type(thing).__call__ if callable(thing) else None
    if isinstance(call, types.FunctionType) and not _is_library(call):
        found.append((path, types.MethodType(call, thing)))
    return found


def _named_of(path: str, method: types.MethodType) -> list[tuple[str, Any]]:
    """What a method names of its object: attributes, and methods of the object's class and of the classes above."""
    owner = method.__self__
    found: list[tuple[str, Any]] = []
    if not isinstance(owner, nn.Module):  # small enough to be looked at whole; and self() names nothing
        return [(path, owner)]
    place = path.rpartition(".")[0] or path
    for name in _names(method.__code__):
        for cls in type(owner).__mro__:
            if isinstance(vars(cls).get(name), types.FunctionType):
                found.append((f"{place}.{name}", types.MethodType(vars(cls)[name], owner)))
        value = getattr(owner, name, None)
        if not isinstance(value, types.MethodType) and _leads_on(value):
            found.append((f"{place}.{name}", value))
    return found


def _of_function(path: str, function: Any) -> list[tuple[str, Any]]:
    if _is_library(function):
        return []
    named = {name: function.__globals__[name] for name in _names(function.__code__) if name in function.__globals__}
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        with contextlib.suppress(ValueError):  # not assigned yet
            named[name] = cell.cell_contents
    found = [(f"{path}, which uses {name}", value) for name, value in named.items() if _leads_on(value)]
    return [*found, *_items(path, function.__defaults__ or ()), *_items(path, function.__kwdefaults__ or {})]


def _names(code: types.CodeType) -> list[str]:
    """The names that a function's code uses, with those of the functions inside it."""
    inner = [name for constant in code.co_consts if isinstance(constant, types.CodeType) for name in _names(constant)]
    return [*code.co_names, *inner]


def _is_library(function: Any) -> bool:
    return (function.__module__ or "").partition(".")[0] in LIBRARIES


def _items(path: str, container: Any) -> list[tuple[str, Any]]:
    if isinstance(container, Mapping):
        return [(f"{path}[{key!r}]", value) for key, value in list(container.items())[:MOST_ITEMS] if _leads_on(value)]
    return [(f"{path}[{index}]", value) for index, value in enumerate(container[:MOST_ITEMS]) if _leads_on(value)]


def _leads_on(value: Any) -> bool:
    """Whether something that changes targets may be behind a value: what can be called, or holds such things."""
    if isinstance(value, type):
        return False
    return callable(value) or isinstance(value, (list, tuple, dict)) or hasattr(value, "collate_fn")
