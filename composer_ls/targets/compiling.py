"""Functions that torch.compile calls as a whole instead of tracing their code."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

__all__ = ["in_graph", "know_in_graph"]

F = TypeVar("F", bound=Callable[..., Any])

_FUNCTIONS: list[Callable[..., Any]] = []


def in_graph(function: F) -> F:
    """Let :func:`torch.compile` run this function on fake tensors instead of tracing its Python code.

    The PyTorch operations that it calls, also on the fields of SoftTargets, are traced at a lower level.
    """
    _FUNCTIONS.append(function)
    return function


def know_in_graph() -> None:
    """Register these functions with Dynamo. Called only while compiling, because importing Dynamo takes seconds."""
    from torch._dynamo import allow_in_graph

    for function in _FUNCTIONS:
        allow_in_graph(function)


know_in_graph._dynamo_marked_constant = True  # type: ignore[attr-defined]  # what assume_constant_result() sets: run, not read
