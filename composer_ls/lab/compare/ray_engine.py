"""Does runs as tasks of a Ray cluster, on any of its machines."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import math
import os
import shutil
import socket
import tarfile
import tempfile
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from composer_ls.errors import InputError, RunFolderBusyError
from composer_ls.lab.compare.execute import Ended, Engine, how_it_ended
from composer_ls.lab.compare.one_run import Order, Status, carry_out, check_recipes
from composer_ls.lab.compare.planned_runs import PlannedRun
from composer_ls.lab.run_folder.claim import claimant, claimed
from composer_ls.lab.run_folder.files import finite, told_if_unwritable

__all__ = ["RayEngine"]

RETRIES = 3
"""How often a run is tried again after its machine or its process has died."""
PATIENCE_SECONDS = 120.0
"""How long to wait for the lock of a run, which a machine that died holds until the file system notices."""
CONNECT_SECONDS = 5.0


class RayEngine(Engine):
    """Runs on the machines of a Ray cluster.

    A run whose folder is visible where it is done is done there, so that it resumes from its checkpoint if it is tried
    again. Elsewhere it is done in a temporary folder, whose files come back at its end.

    Args:
        out: The folder of all runs.
        address: The cluster's address; ``auto`` for the one on this machine; ``None`` to start one here, unless the
            environment variable ``RAY_ADDRESS`` names one.
        cpus: The cores that a run asks for, and the number of PyTorch's threads.
        gpus: The GPUs that a run asks for.
        jobs: How many runs to do at a time; ``None`` for as many as fit.

    Raises:
        InputError: There is no cluster at this address, or none of its machines is large enough. Raised on entering.

    """

    def __init__(self, out: Path, address: str | None, cpus: float, gpus: float, jobs: int | None) -> None:
        self._out, self._address, self._jobs = out.absolute(), address, jobs
        self._cpus, self._gpus = cpus, gpus
        self._active: dict[Any, PlannedRun] = {}
        self._mark = self._out / f".ray-{uuid.uuid4().hex}"

    def __enter__(self) -> RayEngine:
        """Connect to the cluster."""
        _connect(self._address)
        try:
            if not self._capacity():
                sizes = ", ".join(f"{cpu:g} CPUs and {gpu:g} GPUs" for cpu, gpu in _machines()) or "none"
                raise InputError(
                    f"no machine of the Ray cluster has --cpus {self._cpus:g} and --gpus {self._gpus:g} (they have: {sizes}): "
                    f"ask for less, or add a machine with `ray start`"
                )
            with told_if_unwritable(self._out):
                self._out.mkdir(parents=True, exist_ok=True)
                self._mark.touch()
            here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
            self._board = ray.remote(num_cpus=0)(_Board).options(scheduling_strategy=here).remote()
            needs = {"num_cpus": self._cpus, "num_gpus": self._gpus, "max_retries": RETRIES}
            self._do, self._check = ray.remote(**needs)(_do), ray.remote(**needs)(_check)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """Stop all runs, and leave the cluster. Their runs can be continued where the folder is shared."""
        for task in self._active:
            with contextlib.suppress(Exception):  # it is over, or the cluster is gone
                ray.cancel(task, force=True)
        ray.shutdown()
        self._mark.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # it is not empty
            self._out.rmdir()

    @property
    def free(self) -> bool:
        """Whether another run fits."""
        return len(self._active) < max(1, min(self._capacity(), self._jobs or 10**6))

    @property
    def busy(self) -> bool:
        """Whether any run is going on."""
        return bool(self._active)

    def check(self, runs: Sequence[PlannedRun]) -> None:
        """Check on one of the machines, where the data is."""
        try:
            problem = ray.get(self._check.remote([run.recipe.model_dump() for run in runs], os.getcwd()))
        except ray.exceptions.RayError as error:
            raise InputError(
                f"the Ray cluster cannot do runs ({_reason(error)}): composer_ls must be installed on each machine, in the "
                f"same version of Python"
            ) from error
        if problem is not None:
            raise InputError(problem)

    def start(self, run: PlannedRun) -> None:
        """Hand a run to Ray, which finds a machine for it."""
        order = replace(Order.of(run), folder=str(run.folder.absolute()))
        task = self._do.remote(order, max(1, int(self._cpus)), str(self._mark), os.getcwd(), self._board)
        self._active[task] = run

    def ended(self, seconds: float) -> Sequence[Ended]:
        """The runs whose tasks are over, with their files."""
        if not self._active:
            time.sleep(seconds)
            return []
        ray.wait(list(self._active), timeout=seconds)
        ready, _ = ray.wait(list(self._active), num_returns=len(self._active), timeout=0)
        over = []
        for task in ready:
            run = self._active.pop(task)
            try:
                status, files = ray.get(task)
                if files is not None:
                    _unpack(files, run.folder)
                    ray.get(self._board.release.remote(str(run.folder.absolute())))
                over.append(how_it_ended(run, status))
            except (ray.exceptions.RayError, OSError) as error:
                over.append(how_it_ended(run, Status.FAILED, _reason(error)))
        return over

    def _capacity(self) -> int:
        """How many runs fit on the machines that are there now."""
        return sum(int(min(cpu / self._cpus, gpu / self._gpus if self._gpus else math.inf)) for cpu, gpu in _machines())


def _connect(address: str | None) -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    existing = address or os.environ.get("RAY_ADDRESS")
    host, colon, port = (existing or "").rpartition(":")
    if colon and port.isdigit():
        try:
            socket.create_connection((host.rpartition("/")[2], int(port)), timeout=CONNECT_SECONDS).close()
        except OSError as error:
            raise InputError(
                f"there is no Ray at {existing} ({error.strerror or error}): start it with `ray start --head` there, or leave "
                f"--address out to use this machine only"
            ) from error
    try:
        ray.init(
            address=address,
            log_to_driver=False,
            logging_level=logging.ERROR,
            # what starts here is for this machine only
            **({} if existing else {"include_dashboard": False, "_node_ip_address": "127.0.0.1"}),
        )
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise InputError(
            f"there is no Ray at {existing} ({_reason(error)}): start it with `ray start --head`, or leave --address out to "
            f"use this machine only"
        ) from error


def _machines() -> list[tuple[float, float]]:
    """The CPUs and GPUs of each machine."""
    alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return [(resources.get("CPU", 0.0), resources.get("GPU", 0.0)) for resources in alive]


def _reason(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if isinstance(error, ray.exceptions.RayTaskError):
        return lines[-1] if lines else type(error).__name__
    return lines[0] if lines else type(error).__name__


def _unpack(files: bytes, folder: Path) -> None:
    """Put the files of a run into its folder, the result last, since it marks the run as finished."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as place:
        with tarfile.open(fileobj=io.BytesIO(files)) as archive:
            archive.extractall(place, filter="data")
        for path in sorted(Path(place).iterdir(), key=lambda path: path.name == "result.json"):
            there = folder / path.name
            if there.is_dir():
                shutil.rmtree(there)
            os.replace(path, there)


class _Board:
    """Lives where the command runs: locks the folders of runs that are done elsewhere, and follows them."""

    def __init__(self) -> None:
        self._claims: dict[str, contextlib.ExitStack] = {}

    def claim(self, folder: str) -> bool:
        """Lock a folder. False if another process has done so. Tried again, a run starts from the beginning."""
        if folder not in self._claims:
            stack = contextlib.ExitStack()
            try:
                stack.enter_context(claimed(Path(folder)))
            except RunFolderBusyError:
                return False
            self._claims[folder] = stack
        (Path(folder) / "metrics.jsonl").unlink(missing_ok=True)
        return True

    def release(self, folder: str) -> None:
        """Unlock a folder."""
        if folder in self._claims:
            self._claims.pop(folder).close()

    def line(
        self,
        folder: str,
        line: Mapping[str, float],
        watch: Callable[[Mapping[str, float]], bool] | None,
        text: str | None,
    ) -> bool:
        """Show a line of ``metrics.jsonl`` to the run's watch. ``text`` is added to the file, from which progress is read."""
        if text is not None:
            with (Path(folder) / "metrics.jsonl").open("a", encoding="utf-8") as file:
                file.write(text)
        return watch is not None and watch(line)


# The functions below run on the machines of the cluster.


def _do(order: Order, threads: int, mark: str, cwd: str, board: Any) -> tuple[int, bytes | None]:
    """Do a run, and return how it ended, and its files if its folder cannot be seen from the command."""
    _go_to(cwd)
    is_shared = Path(mark).is_file()
    told = order.watch

    def watch(line: Mapping[str, float]) -> bool:
        text = None if is_shared else json.dumps(finite(line)) + "\n"
        if told is None and text is None:
            return False
        return bool(ray.get(board.line.remote(order.folder, line, told, text)))

    if is_shared:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while claimant(Path(order.folder)) is not None and time.monotonic() < deadline:
            time.sleep(0.5)
        return carry_out(replace(order, watch=watch), threads), None
    if not ray.get(board.claim.remote(order.folder)):
        return Status.BUSY, None
    with tempfile.TemporaryDirectory() as place:
        status = carry_out(replace(order, watch=watch, folder=place), threads)
        return status, _packed(Path(place))


def _check(recipes: Sequence[Mapping[str, Any]], cwd: str) -> str | None:
    _go_to(cwd)
    return check_recipes(recipes)


def _go_to(cwd: str) -> None:
    """Paths in a recipe may be relative."""
    with contextlib.suppress(OSError):
        os.chdir(cwd)


def _packed(folder: Path) -> bytes:
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for path in sorted(folder.iterdir()):
            tar.add(path, path.name)
    return archive.getvalue()
