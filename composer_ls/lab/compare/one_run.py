"""One run of a comparison, in the process that does it: its log, its training, and how it ended."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from enum import IntEnum
from pathlib import Path
from typing import Any, TextIO

from composer_ls.errors import InputError, RunFolderBusyError
from composer_ls.lab.compare.log import LOG, first_words
from composer_ls.lab.compare.planned_runs import PlannedRun
from composer_ls.lab.run_folder.folder import RunFolder

__all__ = ["Order", "Status", "carry_out", "check_recipes"]


class Status(IntEnum):
    """How a run ended; also the exit status of its process."""

    FINISHED = 0
    FAILED = 1
    REFUSED = 2
    BUSY = 3
    UNWRITABLE = 4
    STOPPED = 5


@dataclass(frozen=True)
class Order:
    """What a process needs to know to do a run. It can be pickled, which a recipe cannot.

    Attributes:
        recipe: The recipe's content.
        folder: The run folder.
        arguments: The arguments of ``composer-ls`` that do the same, for ``result.json``.
        watch: As in :class:`~composer_ls.lab.compare.planned_runs.PlannedRun`.

    """

    recipe: Mapping[str, Any]
    folder: str
    arguments: Sequence[str]
    watch: Callable[[Mapping[str, float]], bool] | None = None

    @classmethod
    def of(cls, run: PlannedRun) -> Order:
        """The order for a planned run."""
        return cls(run.recipe.model_dump(), str(run.folder), run.arguments, run.watch)


class _StoppedEarly(Exception):  # noqa: N818  (stopping early is not an error)
    """The watch said that the run is not worth finishing."""


def carry_out(order: Order, threads: int) -> Status:
    """Do a run, with everything that it prints in its log.

    Args:
        order: The run.
        threads: The number of threads that PyTorch may use.

    """
    try:
        Path(order.folder).mkdir(parents=True, exist_ok=True)
        log = (Path(order.folder) / LOG).open("a", encoding="utf-8", buffering=1)
    except OSError:
        return Status.UNWRITABLE
    with log, _output_to(log), _arguments(order.arguments):
        print(first_words(f"{datetime.now(timezone.utc):%Y-%m-%d %H:%M:%S}", " ".join(order.arguments)), flush=True)
        try:
            return _train(order, threads)
        except _StoppedEarly:
            shutil.rmtree(Path(order.folder) / "checkpoints", ignore_errors=True)
            print("composer-ls: it was stopped early, because other trials were better at this point", flush=True)
            return Status.STOPPED
        except RunFolderBusyError:
            return Status.BUSY
        except InputError as error:
            print(f"composer-ls: {error}", flush=True)
            return Status.REFUSED
        except Exception:
            traceback.print_exc()
            return Status.FAILED


def _train(order: Order, threads: int) -> Status:
    import torch

    from composer_ls.lab.recipe.recipe import recipe_schema
    from composer_ls.lab.training.stopping import StoppedInTraining
    from composer_ls.lab.training.train import train

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # importing Composer has set both
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    torch.set_num_threads(threads)

    def each_line(line: Mapping[str, float]) -> None:
        if order.watch is not None and order.watch(line):
            raise _StoppedEarly

    resolved = recipe_schema().model_validate(order.recipe)
    try:
        result = train(resolved, RunFolder(order.folder, resolved), progress=False, each_line=each_line)
    except StoppedInTraining as stopped:  # the run is to be continued, so its process ends as one that is killed
        print(f"composer-ls: {stopped}, by {stopped.signal.name}", flush=True)
        signal.signal(stopped.signal, signal.SIG_DFL)
        os.kill(os.getpid(), stopped.signal)
        raise
    if result["diverged"]:
        how = result.get("divergence") or "its numbers are not finite"
        print(
            f"composer-ls: it diverged: {how}; use a smaller optimizer.learning_rate, and then --overwrite", flush=True
        )
        return Status.FAILED
    return Status.FINISHED


@contextlib.contextmanager
def _output_to(log: TextIO) -> Iterator[None]:
    """Send the process's output to an open file, including what is not printed by Python."""
    saved = [os.dup(stream) for stream in (1, 2)]
    for stream in (1, 2):
        os.dup2(log.fileno(), stream)
    try:
        with contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
            yield
    finally:
        for stream, copy in zip((1, 2), saved, strict=True):
            os.dup2(copy, stream)
            os.close(copy)


@contextlib.contextmanager
def _arguments(arguments: Sequence[str]) -> Iterator[None]:
    before = sys.argv
    sys.argv = ["composer-ls", *arguments]  # which result.json keeps
    try:
        yield
    finally:
        sys.argv = before


def check_recipes(recipes: Sequence[Mapping[str, Any]]) -> str | None:
    """Open the data of recipes and build their algorithms; the message of the first error that a user can fix."""
    from composer_ls.lab.recipe.recipe import recipe_schema
    from composer_ls.lab.tasks.registry import open_task
    from composer_ls.lab.tasks.task import Task
    from composer_ls.lab.training.algorithms import build_algorithms
    from composer_ls.lab.training.teacher import check_teachers

    try:
        tasks: dict[str, Task] = {}
        seen = set()
        for recipe in map(recipe_schema().model_validate, recipes):
            opened = recipe.model_dump_json(include={"data", "microbatch_size", "diagnostics"})
            if opened not in tasks:
                tasks[opened] = open_task(recipe)
            if (key := opened + repr(recipe.algorithms)) not in seen:
                seen.add(key)
                task = tasks[opened]
                algorithms = build_algorithms(recipe.algorithms, task.num_classes, task.label_counts)
                task.check(algorithms)
                check_teachers(algorithms, task.facts)
    except InputError as error:
        return str(error)
    return None
