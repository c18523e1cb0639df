"""Handles Ctrl-C during training: saves a checkpoint, then stops."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

from composer.core import Callback, State
from composer.loggers import Logger
from composer.utils import dist

__all__ = ["StopOnInterrupt", "StoppedInTraining"]


class StoppedInTraining(KeyboardInterrupt):
    """The run was stopped by Ctrl-C and has saved a checkpoint.

    Attributes:
        epoch: The number of complete epochs.
        step: The number of steps.

    """

    def __init__(self, epoch: int, step: int) -> None:
        super().__init__(f"stopped in epoch {epoch + 1}, after step {step}")
        self.epoch, self.step = epoch, step


class StopOnInterrupt(Callback):
    """After the first Ctrl-C, finish the step, save a checkpoint and raise :class:`StoppedInTraining`.

    A second Ctrl-C ends the process at once. With several processes, Ctrl-C is left to their launcher. If the process
    ignores SIGINT, it still does.

    Attributes:
        save: Writes a checkpoint of the trainer. Set it before training.

    """

    def __init__(self) -> None:
        self.save: Callable[[], None] | None = None
        self._asked = False
        self._before: Any = None

    def fit_start(self, state: State, logger: Logger) -> None:
        """Install the handler for Ctrl-C."""
        here = threading.current_thread() is threading.main_thread()
        if here and dist.get_world_size() == 1 and signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
            self._before = signal.signal(signal.SIGINT, self._handle)

    def batch_checkpoint(self, state: State, logger: Logger) -> None:
        """Stop after a step, unless it is the last one of an epoch, whose evaluation comes first."""
        if state.dataloader_len is None or int(state.timestamp.batch_in_epoch) < int(state.dataloader_len):
            self._stop_if_asked(state)

    def epoch_checkpoint(self, state: State, logger: Logger) -> None:
        """Stop after an epoch."""
        self._stop_if_asked(state)

    def close(self, state: State, logger: Logger) -> None:
        """Restore the previous handler."""
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)
            self._before = None

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._asked and callable(self._before):
            self._before(number, frame)
        self._asked = True
        print("\nStopping after this step. Press Ctrl-C again to stop at once.", file=sys.stderr, flush=True)

    def _stop_if_asked(self, state: State) -> None:
        over = state.max_duration is not None and state.timestamp >= state.max_duration
        if self._asked and not over:
            assert self.save is not None
            self.save()
            raise StoppedInTraining(int(state.timestamp.epoch), int(state.timestamp.batch))
