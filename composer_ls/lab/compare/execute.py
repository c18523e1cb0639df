"""Executes many runs on an engine, which starts them here or elsewhere, and reports how each ended."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from composer_ls.lab.compare.log import LOG, last_words
from composer_ls.lab.compare.one_run import Status
from composer_ls.lab.compare.planned_runs import PlannedRun
from composer_ls.lab.run_folder.claim import claimant, claimed
from composer_ls.lab.run_folder.folder import RunFolder

__all__ = ["Display", "Ended", "Engine", "execute", "forget", "how_it_ended"]

POLL_SECONDS = 0.5


@dataclass(frozen=True)
class Ended:
    """A run that is over.

    Attributes:
        run: The run.
        status: How it ended.
        reason: Why it failed, in a sentence; "" if it did not.

    """

    run: PlannedRun
    status: Status = Status.FINISHED
    reason: str = ""

    @property
    def failed(self) -> bool:
        """Whether the run is neither finished nor stopped on purpose."""
        return self.status not in (Status.FINISHED, Status.STOPPED)

    @property
    def log(self) -> Path:
        """The file with everything that the run printed."""
        return self.run.folder / LOG


class Engine(Protocol):
    """Something that does runs in processes of their own. A context manager that stops what is going on at its end."""

    def __enter__(self) -> Engine:
        """Get ready."""

    def __exit__(self, *_: object) -> None:
        """Stop what is going on."""

    @property
    def free(self) -> bool:
        """Whether another run can be started now."""

    @property
    def busy(self) -> bool:
        """Whether any run is going on."""

    def check(self, runs: Sequence[PlannedRun]) -> None:
        """Check data and algorithms before any run starts, and raise the InputError with which a run would fail.

        Data is prepared here too (downloaded, decoded), so that this happens only once.
        """

    def start(self, run: PlannedRun) -> None:
        """Start a run."""

    def ended(self, seconds: float) -> Sequence[Ended]:
        """The runs that ended since the last call. Waits up to this long for one."""


class Display(Protocol):
    """Receives the events of an execution."""

    def started(self, run: PlannedRun) -> None:
        """A run has started."""

    def ended(self, ended: Ended) -> None:
        """A run is over."""

    def tick(self) -> None:
        """Called about twice a second."""


def execute(runs: Iterable[PlannedRun | None], engine: Engine, display: Display) -> Iterator[Ended]:
    """Execute runs, and yield each when it is over.

    Args:
        runs: The runs, in order. ``None`` means that there is none now, but perhaps later.
        engine: What does them.
        display: Receives all events.

    """
    queue, more = iter(runs), True
    while more or engine.busy:
        while more and engine.free:
            try:
                run = next(queue)
            except StopIteration:
                more = False
                break
            if run is None:
                break
            if run.finished:  # by another process, since it was planned
                display.ended(over := Ended(run))
                yield over
            else:
                engine.start(run)
                display.started(run)
        for over in engine.ended(POLL_SECONDS):
            display.ended(over)
            yield over
        display.tick()


def how_it_ended(run: PlannedRun, status: int, failure: str = "") -> Ended:
    """The end of a run by the status that its process left; ``failure`` is the reason if there is no such status."""
    if failure:
        return Ended(run, Status.FAILED, failure)
    reason = ""
    if status == Status.BUSY:
        by = claimant(run.folder) or "another process, which is over by now"
        reason = f"it is being done by {by}; run the same command again when that is over"
    elif status == Status.UNWRITABLE:
        reason = f"{run.folder.absolute()} cannot be written"
    elif status not in (Status.FINISHED, Status.STOPPED):
        reason = last_words(run.folder) or f"it ended with status {status}"
    return Ended(run, Status(status) if status in set(Status) else Status.FAILED, reason)


def forget(runs: Sequence[PlannedRun]) -> None:
    """Delete the results of runs, so that they are executed again.

    Raises:
        RunFolderBusyError: Another process is doing one of them.
        RunFolderError: A folder cannot be written.

    """
    for run in runs:
        if run.folder.is_dir():
            with claimed(run.folder):
                RunFolder(run.folder, run.recipe).clear()
