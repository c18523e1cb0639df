"""Notices a run whose loss or weights are no longer finite numbers, and protects its last good checkpoint."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

from composer.core import Callback, Event, State
from composer.loggers import Logger
from composer.utils import create_interval_scheduler, dist
from torch import Tensor

__all__ = ["Diverged", "DivergenceWatch"]


class Diverged(Exception):  # noqa: N818  (what the recipe asks for is not an error)
    """The run diverged, and its recipe says to stop then."""


class DivergenceWatch(Callback):
    """Looks at the training loss after each step, and at the weights before each checkpoint.

    The loss is a number that Composer has already read and summed over processes, so no device waits for the check, and all
    processes see the same.

    Args:
        stop: Whether to raise :class:`Diverged`. If not, training goes on.

    Attributes:
        found: When and how the run diverged first, in words such as ``after step 34 its training loss was nan``; "" if it
            has not.

    """

    def __init__(self, stop: bool) -> None:
        self.found = ""
        self._stop = stop

    def batch_end(self, state: State, logger: Logger) -> None:
        """Look at the loss of the step that has just been made."""
        loss = state.total_loss_dict.get("loss/train/total", 0.0)
        if not math.isfinite(loss):
            self._diverged(f"at step {int(state.timestamp.batch)} its training loss was {loss}")

    def allows_checkpoint(self, state: State) -> bool:
        """Whether the weights and the optimizer's state are finite, so that a checkpoint of them is worth having.

        All processes must call this together.

        Raises:
            Diverged: They are not, and the recipe says to stop then.

        """
        if all(dist.all_gather_object(_is_finite(state))):
            return True
        self._diverged(f"after step {int(state.timestamp.batch)} its weights were not finite")
        return False

    def checkpoint_interval(self, interval: str) -> Callable[[State, Event], bool]:
        """When to save: at the interval and at the end, but never weights that are not finite."""
        due = create_interval_scheduler(interval)
        return lambda state, event: due(state, event) and self.allows_checkpoint(state)

    def state_dict(self) -> dict[str, Any]:
        """What a run that is resumed must know."""
        return {"found": self.found}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore it."""
        self.found = state["found"]

    def _diverged(self, words: str) -> None:
        self.found = self.found or words
        if self._stop:
            raise Diverged(self.found)


def _is_finite(state: State) -> bool:
    if any(bool(buffer.isnan().any()) for buffer in state.model.buffers()):  # a mask may hold -inf
        return False
    return all(bool(tensor.isfinite().all()) for tensor in _trained(state))


def _trained(state: State) -> Iterator[Tensor]:
    yield from state.model.parameters()
    for optimizer in state.optimizers:
        for values in optimizer.state.values():
            yield from (value for value in values.values() if isinstance(value, Tensor))
