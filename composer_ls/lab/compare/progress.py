"""Progress of a comparison: a live display on a terminal, one line per event elsewhere."""

from __future__ import annotations

import contextlib
import json
import re
import time
from collections.abc import Callable, Iterator, Mapping

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.text import Text

from composer_ls.lab.compare.execute import Display, Ended
from composer_ls.lab.compare.one_run import Status
from composer_ls.lab.compare.planned_runs import PlannedRun
from composer_ls.lab.recipe.recipe import Recipe
from composer_ls.lab.run_folder.folder import RunFolder

__all__ = ["LiveDisplay", "PlainDisplay", "display_on", "progress_of", "time_left"]

NARROW = 60
"""The live display needs at least this many columns for its numbers."""


@contextlib.contextmanager
def display_on(console: Console, total: int, found: int) -> Iterator[Display]:
    """The display that suits a console.

    Args:
        console: Where to show it.
        total: The number of runs to do.
        found: The number of runs that were already finished.

    """
    if not console.is_terminal or console.width < NARROW:
        yield PlainDisplay(console, total, found)
    else:
        with LiveDisplay(console, total, found) as display:
            yield display


def progress_of(run: PlannedRun) -> float:
    """The fraction of a run that is done, from the last line of its ``metrics.jsonl``."""
    try:
        lines = RunFolder(run.folder, run.recipe).metrics_file.read_text(encoding="utf-8").splitlines()
        return min(1.0, _part(run.recipe, json.loads(lines[-1])))
    except (OSError, ValueError, LookupError):
        return 0.0


def _part(recipe: Recipe, line: Mapping[str, float]) -> float:
    match = re.fullmatch(r"(\d+)(ep|ba)", recipe.duration)
    if match is None:
        return 0.0
    return line["epoch" if match[2] == "ep" else "batch"] / int(match[1])


def time_left(done: float, total: float, seconds: float) -> str:
    """The time left in words, from the work done in some seconds; "" if nothing is done yet.

    Example:
        >>> from composer_ls.lab.compare.progress import time_left
        >>> time_left(2.5, 10, 100), time_left(0, 10, 100), time_left(1, 100, 3600)
        ('about 5 min left', '', 'about 99 h left')

    """
    if done <= 0:
        return ""
    left = (total - done) * seconds / done
    if left < 100:
        return f"about {max(1, round(left))} s left"
    if left < 100 * 60:
        return f"about {round(left / 60)} min left"
    return f"about {round(left / 3600)} h left"


class _Tally:
    """Counts finished and failed runs, and estimates the time left."""

    def __init__(self, total: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.total, self.done, self.failed = total, 0, 0
        self.clock, self.began = clock, clock()

    def count(self, ended: Ended) -> None:
        """Count a run that is over."""
        if ended.failed:
            self.failed += 1
        else:
            self.done += 1

    @property
    def over(self) -> int:
        """The number of runs that have finished or failed."""
        return self.done + self.failed

    def left(self, active: float = 0.0) -> str:
        """The time left in words. ``active`` is the sum of the active runs' progress."""
        return time_left(self.over + active, self.total, self.clock() - self.began)


_WORDS = {Status.FINISHED: "finished", Status.STOPPED: "stopped early"}


class PlainDisplay(Display):
    """One line per event, for files and terminals without live display."""

    def __init__(self, console: Console, total: int, found: int) -> None:
        self.console, self.tally = console, _Tally(total)
        self._say(f"{total} runs to do" + (f", {found} already finished" if found else ""))

    def started(self, run: PlannedRun) -> None:
        """Print nothing: only the end of a run is reported."""

    def ended(self, ended: Ended) -> None:
        """Print how it ended, with the time left."""
        self.tally.count(ended)
        words = f"{_WORDS.get(ended.status, 'failed')}: {ended.run.name}"
        if ended.failed:
            words += f": {ended.reason} ({ended.log})"
        left = "" if self.tally.over == self.tally.total else self.tally.left()
        self._say(f"[{self.tally.over}/{self.tally.total}] {words}" + (f"; {left}" if left else ""))

    def tick(self) -> None:
        """Do nothing."""

    def _say(self, words: str) -> None:
        self.console.print(Text(words), soft_wrap=True)


class LiveDisplay(Display):
    """A progress bar for all runs and one for each active run. A context manager that restores the terminal."""

    def __init__(self, console: Console, total: int, found: int) -> None:
        self.console, self.tally = console, _Tally(total)
        self.bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[words]}"),
            console=console,
            transient=True,
        )
        if found:
            console.print(Text(f"{found} of {total + found} runs are already finished"))
        self.all = self.bars.add_task("all runs", total=total, words="starting")
        self.tasks: dict[str, tuple[TaskID, PlannedRun]] = {}

    def __enter__(self) -> LiveDisplay:
        self.bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bars.stop()

    def started(self, run: PlannedRun) -> None:
        """Add a bar for the run."""
        self.tasks[run.name] = self.bars.add_task(f"  {run.name}", total=1.0, words=""), run

    def ended(self, ended: Ended) -> None:
        """Remove the run's bar, and print a failure above the bars."""
        self.tally.count(ended)
        self._remove(ended.run)
        if ended.failed:
            words = Text(f"failed: {ended.run.name}: {ended.reason}", style="red")
            self.console.print(words, Text(f"  {ended.log}"), sep="\n", soft_wrap=True)

    def tick(self) -> None:
        """Update the bars."""
        active = 0.0
        for task, run in self.tasks.values():
            part = progress_of(run)
            active += part
            self.bars.update(task, completed=part, words=f"{part:.0%}")
        failed = f", {self.tally.failed} failed" if self.tally.failed else ""
        words = ", ".join(filter(None, [f"{self.tally.over} of {self.tally.total}{failed}", self.tally.left(active)]))
        self.bars.update(self.all, completed=self.tally.over + active, words=words)

    def _remove(self, run: PlannedRun) -> None:
        if run.name in self.tasks:
            task, _ = self.tasks.pop(run.name)
            self.bars.remove_task(task)
