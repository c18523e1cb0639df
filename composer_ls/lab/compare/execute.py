"""Executes runs in parallel, each in its own process, forked from one that has already imported everything."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from multiprocessing import forkserver
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Protocol

from composer_ls.errors import InputError, RunFolderBusyError
from composer_ls.lab.compare.log import LOG, first_words, last_words
from composer_ls.lab.compare.planned_runs import PlannedRun
from composer_ls.lab.run_folder.claim import claimant, claimed
from composer_ls.lab.run_folder.folder import RunFolder

__all__ = ["Display", "Failure", "check", "default_jobs", "execute", "forget"]

BUSY, UNWRITABLE = 3, 4  # exit statuses of a run's process
POLL_SECONDS = 0.5
PATIENCE_SECONDS = 10.0
"""How long to wait for a process to end before it is killed."""


@dataclass(frozen=True)
class Failure:
    """A failed run, and the reason in a sentence."""

    run: PlannedRun
    reason: str

    @property
    def log(self) -> Path:
        """The file with everything that the run printed."""
        return self.run.folder / LOG


class Display(Protocol):
    """Receives the events of an execution."""

    def started(self, run: PlannedRun) -> None:
        """A run has started."""

    def finished(self, run: PlannedRun) -> None:
        """A run has finished."""

    def failed(self, failure: Failure) -> None:
        """A run has failed."""

    def waiting(self, run: PlannedRun, whom: str) -> None:
        """Another process, ``whom``, is doing a run."""

    def tick(self) -> None:
        """Called about twice a second."""


def default_jobs(device: str, runs: int) -> int:
    """The default number of parallel runs: one per GPU, or on the CPU one per core, up to 8."""
    return min(_gpus(device) or min(_cores(), 8), runs)


def execute(runs: Sequence[PlannedRun], jobs: int, device: str, display: Display) -> list[Failure]:
    """Execute runs that are not finished, and wait for those that another process is doing.

    Args:
        runs: The runs, in order.
        jobs: How many to run in parallel. They share the cores, and the GPUs if there are several.
        device: The recipes' ``device``.
        display: Receives all events.

    Returns:
        The failed runs. All others are finished.

    """
    work = _Work(list(runs), max(1, _cores() // jobs), _gpus(device), display)
    try:
        while work.todo or work.active or work.elsewhere:
            while work.todo and len(work.active) < jobs:
                work.start(work.todo.pop(0))
            wait([process.sentinel for process, _ in work.active.values()], POLL_SECONDS)
            work.reap()
            work.look_elsewhere()
            display.tick()
    finally:
        _stop([process for process, _ in work.active.values()])
    return work.failures


def check(runs: Sequence[PlannedRun]) -> None:
    """Check data and algorithms before any run starts, and raise the InputError with which a run would fail.

    Data is prepared here too (downloaded, decoded), so that this happens only once.
    """
    receiver, sender = multiprocessing.Pipe(duplex=False)
    process = _context().Process(target=_check, args=([run.recipe.model_dump() for run in runs], sender))
    with _started(process):
        sender.close()
        with contextlib.suppress(EOFError):  # the check crashed: the runs will crash too, and write logs
            problem = receiver.recv()
            if problem is not None:
                raise InputError(problem)


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


@dataclass
class _Work:
    """The state of :func:`execute`. Each run is in one of the four collections, or finished."""

    todo: list[PlannedRun]
    threads: int
    gpus: int
    display: Display
    active: dict[int, tuple[BaseProcess, PlannedRun]] = field(default_factory=dict)  # by slot
    elsewhere: list[PlannedRun] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    _looked: float = 0.0

    def start(self, run: PlannedRun) -> None:
        if run.finished:  # by another process, since the plan was made
            self.display.finished(run)
            return
        slot = next(number for number in range(len(self.active) + 1) if number not in self.active)
        gpu = str(slot % self.gpus) if self.gpus > 1 else None
        process = _context().Process(
            target=_run, args=(run.recipe.model_dump(), str(run.folder), run.arguments, self.threads, gpu)
        )
        _start(process)
        self.active[slot] = process, run
        self.display.started(run)

    def reap(self) -> None:
        for slot, (process, run) in list(self.active.items()):
            if process.is_alive():
                continue
            process.join()
            del self.active[slot]
            if process.exitcode == 0:
                self.display.finished(run)
            elif process.exitcode == BUSY:
                self.elsewhere.append(run)
                self.display.waiting(run, claimant(run.folder) or "another process")
            else:
                failure = Failure(run, _reason(run.folder, process.exitcode or 0))
                self.failures.append(failure)
                self.display.failed(failure)

    def look_elsewhere(self) -> None:
        """Queue again the runs that another process has finished or given up."""
        if not self.elsewhere or time.monotonic() - self._looked < 2:
            return
        self._looked = time.monotonic()
        for run in [run for run in self.elsewhere if claimant(run.folder) is None]:
            self.elsewhere.remove(run)
            self.todo.append(run)


def _reason(folder: Path, status: int) -> str:
    if status < 0:
        return f"it was killed by {signal.Signals(-status).name}" + (
            ", perhaps for lack of memory: try fewer --jobs" if -status == signal.SIGKILL else ""
        )
    if status == UNWRITABLE:
        return f"{folder.absolute()} cannot be written"
    return last_words(folder) or f"it ended with status {status}"


def _context() -> multiprocessing.context.ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["composer_ls.lab.compare.execute", "composer_ls.lab.training.train"])
    return context


def _start(process: BaseProcess) -> None:
    """Start a process. The first call also starts the server from which all are forked, with its output discarded."""
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")  # a plain check would break CUDA in forked processes
    saved = [os.dup(stream) for stream in (1, 2)]
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        for stream in (1, 2):
            os.dup2(nowhere, stream)
        forkserver.ensure_running()
    finally:
        for stream, copy in zip((1, 2), saved, strict=True):
            os.dup2(copy, stream)
            os.close(copy)
        os.close(nowhere)
    process.start()


@contextlib.contextmanager
def _started(process: BaseProcess) -> Iterator[None]:
    _start(process)
    try:
        yield
    finally:
        _stop([process])


def _stop(processes: Sequence[BaseProcess]) -> None:
    for process in processes:
        process.terminate()
    deadline = time.monotonic() + PATIENCE_SECONDS
    for process in processes:
        process.join(max(0.0, deadline - time.monotonic()))
        if process.is_alive():
            process.kill()
            process.join()


def _gpus(device: str) -> int:
    if device == "cpu":
        return 0
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


# The functions below run in the child processes.


def _run(recipe: dict[str, Any], folder: str, arguments: Sequence[str], threads: int, gpu: str | None) -> None:
    _end_with_the_parent()
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        log = os.open(Path(folder) / LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    except OSError:
        sys.exit(UNWRITABLE)
    os.dup2(log, 1)
    os.dup2(log, 2)
    sys.argv = ["composer-ls", *arguments]  # which result.json keeps
    print(first_words(f"{datetime.now(timezone.utc):%Y-%m-%d %H:%M:%S}", " ".join(arguments)), flush=True)
    if gpu is not None:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        os.environ["CUDA_VISIBLE_DEVICES"] = visible.split(",")[int(gpu)] if visible else gpu
    _guarded(lambda: _train(recipe, folder, threads))


def _train(recipe: dict[str, Any], folder: str, threads: int) -> None:
    import torch

    from composer_ls.lab.recipe.recipe import recipe_schema
    from composer_ls.lab.training.train import train

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # importing Composer has set it
    torch.set_num_threads(threads)
    resolved = recipe_schema().model_validate(recipe)
    if train(resolved, RunFolder(folder, resolved), progress=False)["diverged"]:
        print("composer-ls: it diverged: use a smaller optimizer.learning_rate, and then --overwrite", flush=True)
        sys.exit(1)


def _guarded(action: Callable[[], None]) -> None:
    """Run an action, and end the process with an exit status for its error, if any."""
    try:
        action()
    except RunFolderBusyError:
        sys.exit(BUSY)
    except InputError as error:
        print(f"composer-ls: {error}", flush=True)
        sys.exit(2)
    except Exception:
        traceback.print_exc()
        sys.exit(1)


def _check(recipes: Sequence[dict[str, Any]], answer: Connection) -> None:
    _end_with_the_parent()
    from composer_ls.lab.recipe.recipe import recipe_schema
    from composer_ls.lab.tasks.registry import open_task
    from composer_ls.lab.tasks.task import Task
    from composer_ls.lab.training.algorithms import build_algorithms
    from composer_ls.lab.training.teacher import check_teachers

    problem = None
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
        problem = str(error)
    answer.send(problem)


def _end_with_the_parent() -> None:
    """Ignore Ctrl-C, which the parent handles, and end with the parent, even if that is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()
