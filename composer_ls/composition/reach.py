"""What a callable can reach without being run: what it wraps, holds, closes over or names."""

from __future__ import annotations

import functools
import types
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn

__all__ = ["reachable"]

LIBRARIES = {"torch", "torchvision", "torchmetrics", "composer", "composer_ls", "numpy", "PIL"}
"""Packages whose functions are not looked into: they smooth only if a caller says so."""
MOST_OBJECTS = 2_000
MOST_ITEMS = 32
"""How many entries of a container are looked at: lists of transforms are short, lists of samples are not."""


def reachable(root: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Objects that ``root`` can reach, each once and with a path to it; ``root`` comes first.

    Followed are ``functools.partial``, bound methods, functions (closures, defaults and the globals that they name),
    callable objects' attributes, wrapped dataloaders, and short lists, tuples and dicts.
    """
    seen: set[int] = set()
    queue = [(path, root)]
    while queue and len(seen) < MOST_OBJECTS:
        path, thing = queue.pop(0)
        if id(thing) in seen or isinstance(thing, (str, bytes, int, float, type(None), Tensor, types.ModuleType)):
            continue
        seen.add(id(thing))
        yield path, thing
        queue += _neighbours(path, thing)


def _neighbours(path: str, thing: Any) -> list[tuple[str, Any]]:
    if isinstance(thing, functools.partial):
        return [(f"{path}.func", thing.func), *_items(f"{path}.args", thing.args), *_items(path, thing.keywords)]
    if isinstance(thing, types.MethodType):
        return [(path, thing.__self__), (path, thing.__func__)]
    if isinstance(thing, types.FunctionType):
        return _of_function(path, thing)
    if isinstance(thing, (list, tuple, dict)):
        return _items(path, thing)
    if isinstance(thing, (type, types.BuiltinFunctionType)):
        return []
    found = [(f"{path}.{name}", value) for name, value in getattr(thing, "__dict__", {}).items() if _leads_on(value)]
    if isinstance(thing, nn.Module):
        found += [(f"{path}.{name}", module) for name, module in thing.named_children()]
    call = type(thing).__call__ if callable(thing) else None
    if isinstance(call, types.FunctionType) and not isinstance(thing, nn.Module):
        found.append((path, call))
    return found


def _of_function(path: str, function: types.FunctionType) -> list[tuple[str, Any]]:
    if (function.__module__ or "").partition(".")[0] in LIBRARIES:
        return []
    named = {name: function.__globals__[name] for name in function.__code__.co_names if name in function.__globals__}
    cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
    for name, cell in cells:
        try:
            named[name] = cell.cell_contents
        except ValueError:  # not assigned yet
            continue
    found = [(f"{path}, which uses {name}", value) for name, value in named.items() if _leads_on(value)]
    return [*found, *_items(path, function.__defaults__ or ()), *_items(path, function.__kwdefaults__ or {})]


def _items(path: str, container: Any) -> list[tuple[str, Any]]:
    if isinstance(container, Mapping):
        return [(f"{path}[{key!r}]", value) for key, value in list(container.items())[:MOST_ITEMS] if _leads_on(value)]
    return [(f"{path}[{index}]", value) for index, value in enumerate(container[:MOST_ITEMS]) if _leads_on(value)]


def _leads_on(value: Any) -> bool:
    """Whether something that changes targets may be behind a value: what can be called, or holds such things."""
    if isinstance(value, type):
        return False
    return callable(value) or isinstance(value, (list, tuple, dict)) or hasattr(value, "collate_fn")
