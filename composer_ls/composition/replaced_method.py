"""A model's method that is replaced for a part of a step."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from torch import nn

__all__ = ["ReplacedMethod"]


class ReplacedMethod:
    """A replacement for a model's method, until it is put back or raises.

    Args:
        model: The model.
        name: The method's name.
        call: Called in its place with the method itself and then its arguments.

    """

    def __init__(self, model: nn.Module, name: str, call: Callable[..., Any]) -> None:
        self.model, self.name, self.active = model, name, True
        self.before = vars(model).get(name)  # set by another smoother, or by torch.compile
        method = getattr(model, name)

        @functools.wraps(method)
        def replacement(*args: Any, **options: Any) -> Any:
            if not self.active:
                return method(*args, **options)
            try:
                return call(method, *args, **options)
            except BaseException:
                self.put_back()
                raise

        self.method = replacement
        replacement.belongs_to = self  # type: ignore[attr-defined]
        vars(model)[name] = replacement

    def put_back(self) -> None:
        """Restore what was there, unless another smoother has replaced it since; that one restores what it found."""
        self.active = False
        if vars(self.model).get(self.name) is not self.method:
            return
        before = self.before
        while before is not None and not getattr(getattr(before, "belongs_to", None), "active", True):
            before = before.belongs_to.before
        if before is None:
            del vars(self.model)[self.name]
        else:
            vars(self.model)[self.name] = before
