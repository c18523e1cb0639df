"""What torch.compile puts into its graph as it is, instead of reading the code."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

__all__ = ["in_graph", "know_in_graph"]

F = TypeVar("F", bound=Callable[..., Any])

_FUNCTIONS: list[Callable[..., Any]] = []


def in_graph(function: F) -> F:
    """Let :func:`torch.compile` run this function of tensors on fake ones rather than read its code.

    What it makes, SoftTargets too, is traced further down, by what PyTorch calls on the fields.
    """
    _FUNCTIONS.append(function)
    return function


def know_in_graph() -> None:
    """Tell Dynamo of these functions. It is called where code is being compiled: importing Dynamo takes seconds."""
    from torch._dynamo import allow_in_graph

    for function in _FUNCTIONS:
        allow_in_graph(function)


know_in_graph._dynamo_marked_constant = True  # type: ignore[attr-defined]  # what assume_constant_result() sets: run, not read
