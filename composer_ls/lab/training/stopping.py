"""Handles Ctrl-C and SIGTERM during training: saves a checkpoint, then stops."""

from __future__ import annotations

import os
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
    """The run was stopped by Ctrl-C or SIGTERM and has saved a checkpoint.

    Attributes:
        epoch: The number of complete epochs.
        step: The number of steps.
        signal: The signal, ``SIGINT`` or ``SIGTERM``.

    """

    def __init__(self, epoch: int, step: int, signal: signal.Signals) -> None:
        super().__init__(f"stopped in epoch {epoch + 1}, after step {step}")
        self.epoch, self.step, self.signal = epoch, step, signal


class StopOnInterrupt(Callback):
    """After the first Ctrl-C or SIGTERM, finish the step, save a checkpoint and raise :class:`StoppedInTraining`.

    SIGTERM is what Slurm and other schedulers send before they kill. A second signal ends the process at once. With several
    processes, signals are left to their launcher. A signal that the process ignores stays ignored.

    Attributes:
        save: Writes a checkpoint of the trainer. Set it before training.

    """

    def __init__(self) -> None:
        self.save: Callable[[], None] | None = None
        self._asked: signal.Signals | None = None
        self._before: dict[signal.Signals, Any] = {}

    def fit_start(self, state: State, logger: Logger) -> None:
        """Install the handler."""
        if threading.current_thread() is not threading.main_thread() or dist.get_world_size() > 1:
            return
        for one in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(one) != signal.SIG_IGN:
                self._before[one] = signal.signal(one, self._handle)

    def batch_checkpoint(self, state: State, logger: Logger) -> None:
        """Stop after a step, unless it is the last one of an epoch, whose evaluation comes first."""
        if state.dataloader_len is None or int(state.timestamp.batch_in_epoch) < int(state.dataloader_len):
            self._stop_if_asked(state)

    def epoch_checkpoint(self, state: State, logger: Logger) -> None:
        """Stop after an epoch."""
        self._stop_if_asked(state)

    def close(self, state: State, logger: Logger) -> None:
        """Restore the previous handlers."""
        for one, handler in self._before.items():
            signal.signal(one, handler)
        self._before = {}

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._asked is not None:
            signal.signal(number, self._before.get(signal.Signals(number), signal.SIG_DFL))
            os.kill(os.getpid(), number)
            return
        self._asked = signal.Signals(number)
        again = "Press Ctrl-C again" if self._asked == signal.SIGINT else "Send SIGTERM again"
        print(f"\nStopping after this step. {again} to stop at once.", file=sys.stderr, flush=True)

    def _stop_if_asked(self, state: State) -> None:
        over = state.max_duration is not None and state.timestamp >= state.max_duration
        if self._asked is not None and not over:
            assert self.save is not None
            self.save()
            raise StoppedInTraining(int(state.timestamp.epoch), int(state.timestamp.batch), self._asked)
