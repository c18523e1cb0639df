"""Does runs in parallel on this machine, each in a process forked from one that has already imported everything."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from multiprocessing import forkserver
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from composer_ls.errors import InputError
from composer_ls.lab.compare.execute import Ended, Engine, how_it_ended
from composer_ls.lab.compare.one_run import Order, carry_out, check_recipes
from composer_ls.lab.compare.planned_runs import PlannedRun

__all__ = ["LocalEngine", "cores", "default_jobs"]

PATIENCE_SECONDS = 10.0
"""How long to wait for a process to end before it is killed."""


def default_jobs(device: str, runs: int) -> int:
    """The default number of parallel runs: one per GPU, or on the CPU one per core, up to 8."""
    return min(_gpus(device) or min(cores(), 8), runs)


def cores() -> int:
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class LocalEngine(Engine):
    """Runs on this machine, which share its cores, and its GPUs if there are several.

    Args:
        jobs: How many to do in parallel.
        device: The recipes' ``device``.
        preload: Modules that runs import, besides those for training.

    """

    def __init__(self, jobs: int, device: str, preload: Sequence[str] = ()) -> None:
        self._jobs, self._gpus = jobs, _gpus(device)
        self._threads = max(1, cores() // jobs)
        self._preload = tuple(preload)
        self._active: dict[int, tuple[BaseProcess, PlannedRun]] = {}  # by slot
        self._before: Any = None

    def __enter__(self) -> LocalEngine:
        """Let SIGTERM, which schedulers send before they kill, stop everything as Ctrl-C does."""
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, _interrupt)
        return self

    def __exit__(self, *_: object) -> None:
        """End all processes. Those that train save a checkpoint first, from which their runs continue."""
        _stop([process for process, _ in self._active.values()])
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)

    @property
    def free(self) -> bool:
        """Whether fewer runs than ``jobs`` are going on."""
        return len(self._active) < self._jobs

    @property
    def busy(self) -> bool:
        """Whether any run is going on."""
        return bool(self._active)

    def check(self, runs: Sequence[PlannedRun]) -> None:
        """Check in a process of its own, since Composer must not be imported where others are forked from."""
        receiver, sender = multiprocessing.Pipe(duplex=False)
        process = self._context().Process(target=_check, args=([run.recipe.model_dump() for run in runs], sender))
        with _started(process):
            sender.close()
            with contextlib.suppress(EOFError):  # the check crashed: the runs will crash too, and write logs
                problem = receiver.recv()
                if problem is not None:
                    raise InputError(problem)

    def start(self, run: PlannedRun) -> None:
        """Start a run on the lowest free slot, which decides its GPU."""
        slot = next(number for number in range(len(self._active) + 1) if number not in self._active)
        gpu = str(slot % self._gpus) if self._gpus > 1 else None
        process = self._context().Process(target=_run, args=(Order.of(run), self._threads, gpu))
        _start(process)
        self._active[slot] = process, run

    def ended(self, seconds: float) -> Sequence[Ended]:
        """The runs whose processes have ended."""
        wait([process.sentinel for process, _ in self._active.values()], seconds)
        over = []
        for slot, (process, run) in list(self._active.items()):
            if process.is_alive():
                continue
            process.join()
            del self._active[slot]
            status = process.exitcode or 0
            over.append(how_it_ended(run, status, _killed(status) if status < 0 else ""))
        return over

    def _context(self) -> multiprocessing.context.ForkServerContext:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([__name__, "composer_ls.lab.training.train", *self._preload])
        return context


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _killed(status: int) -> str:
    memory = ", perhaps for lack of memory: try fewer --jobs" if -status == signal.SIGKILL else ""
    return f"it was killed by {signal.Signals(-status).name}{memory}"


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


# The functions below run in the child processes.


def _run(order: Order, threads: int, gpu: str | None) -> None:
    _end_with_the_parent()
    if gpu is not None:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        os.environ["CUDA_VISIBLE_DEVICES"] = visible.split(",")[int(gpu)] if visible else gpu
    sys.exit(carry_out(order, threads))


def _check(recipes: Sequence[Mapping[str, Any]], answer: Connection) -> None:
    _end_with_the_parent()
    answer.send(check_recipes(recipes))


def _end_with_the_parent() -> None:
    """Ignore Ctrl-C, which the parent handles, and end with the parent, even if that is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()
