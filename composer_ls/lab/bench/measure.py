"""Measures time by interleaved repeats in one process, and memory in a separate process per contestant."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import random
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch

from composer_ls.kernels import VARIABLE
from composer_ls.lab.bench.contestants import GROUPS, HARD, SMOOTHED, USUAL, Contestant, Problem, contestants

__all__ = ["Result", "Settings", "how_long", "machine", "measure"]


@dataclass(frozen=True)
class Settings:
    """What to measure.

    Attributes:
        shapes: ``(N, K, *spatial)`` of the logits.
        dtype: The dtype of the logits, a name such as ``"float32"``.
        device: ``"cpu"`` or ``"cuda"``.
        cases: A subset of :data:`~composer_ls.lab.bench.contestants.CASES`.
        ignored: The fraction of labels that are ignored.
        seconds: The approximate time for each shape, in seconds.
        memory: Whether to measure memory too, which starts one process per contestant.
        peers: The :data:`~composer_ls.lab.bench.contestants.GROUPS` to compare, besides PyTorch. Empty: all.
        width: The width of a linear layer that makes the logits and is measured with the loss. ``None``: logits are given.

    """

    shapes: tuple[tuple[int, ...], ...]
    dtype: str = "float32"
    device: str = "cpu"
    cases: tuple[str, ...] = USUAL
    ignored: float = 0.0
    seconds: float = 20.0
    memory: bool = True
    peers: tuple[str, ...] = ()
    width: int | None = None


@dataclass(frozen=True)
class Result:
    """The measurements of one contestant for one case and shape. Times are of a forward and backward pass, in seconds.

    Attributes:
        shape: The shape of the logits.
        case: One of :data:`~composer_ls.lab.bench.contestants.CASES`.
        name: The contestant.
        loss: The value of the loss, which shows whether all contestants compute the same.
        seconds: The median time.
        spread: The quartiles of the time.
        repeats: The number of measurements.
        gigabytes_per_second: The logits' bytes, read once and written once, divided by the median time.
        floor: The time to copy a tensor of the logits' size, divided by the median time; 1 is as fast as a copy.
        over_hard: The median time divided by that of ``F.cross_entropy`` with labels.
        over_smoothed: The median time divided by that of ``F.cross_entropy(label_smoothing=)``.
        extra: Peak memory beyond the inputs, divided by the size of the logits. ``None``: not measured.

    """

    shape: tuple[int, ...]
    case: str
    name: str
    loss: float
    seconds: float
    spread: tuple[float, float]
    repeats: int
    gigabytes_per_second: float
    floor: float
    over_hard: float
    over_smoothed: float
    extra: float | None


def measure(settings: Settings, progress: Callable[[str], None] = lambda text: None) -> list[Result]:
    """The results of all contestants, shape by shape."""
    results: list[Result] = []
    for shape in settings.shapes:
        progress(f"{'x'.join(map(str, shape))}: time")
        results += _measure_shape(settings, shape, progress)
    return results


PROCESS_SECONDS = 8
"""The approximate time of a process that measures memory, most of which is importing PyTorch."""


def how_long(settings: Settings) -> str:
    """A sentence that says about how long :func:`measure` will take, and which options make it shorter."""
    shapes, seconds = len(settings.shapes), settings.seconds * len(settings.shapes)
    words = f"{shapes} shape{'' if shapes == 1 else 's'} of about {settings.seconds:g} s each"
    shorter = "--seconds"
    if settings.memory:
        processes = sum(one.case in settings.cases for shape in settings.shapes for one in _chosen(settings, shape))
        seconds += PROCESS_SECONDS * processes
        words += f", then {processes} processes of about {PROCESS_SECONDS} s to measure memory"
        shorter += " and --no-memory make"
    else:
        shorter += " makes"
    total = f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} minutes"
    return f"This will take about {total}: {words}. {shorter} it shorter."


def _chosen(settings: Settings, shape: tuple[int, ...]) -> list[Contestant]:
    peers = {GROUPS[1], *settings.peers} if settings.peers else ()
    dtype = getattr(torch, settings.dtype)
    everyone = contestants(shape, dtype, settings.device, settings.ignored, tuple(peers), settings.width)
    return [one for one in everyone if one.name in (HARD, SMOOTHED) or one.case in settings.cases]


def _measure_shape(settings: Settings, shape: tuple[int, ...], progress: Callable[[str], None]) -> Iterator[Result]:
    dtype = getattr(torch, settings.dtype)
    problem = Problem.make(shape, dtype, settings.device, settings.ignored, settings.width)
    chosen = _chosen(settings, shape)
    steps: dict[tuple[str, ...], Callable[[], float]] = {
        _key(contestant): _step(contestant, problem) for contestant in chosen
    }
    losses = {key: step() for key, step in steps.items()}
    source, copy = problem.logits.detach(), torch.empty_like(problem.logits)
    steps["copy",] = lambda: float(copy.copy_(source).shape[0])
    kernels: dict[tuple[str, ...], str | None] = {_key(contestant): contestant.kernel for contestant in chosen}
    times = _interleaved(steps, kernels, settings)
    middle = {key: median(values) for key, values in times.items()}
    moved = 2 * problem.logits.nbytes
    for contestant in chosen:
        if contestant.case not in settings.cases:
            continue
        key = _key(contestant)
        extra = None
        if settings.memory:
            progress(f"{'x'.join(map(str, shape))}: memory of {contestant.name}, {contestant.case}")
            extra = _memory(settings, shape, contestant)
        quarters = quantiles(times[key], n=4, method="inclusive")
        yield Result(
            shape,
            contestant.case,
            contestant.name,
            losses[key],
            middle[key],
            (quarters[0], quarters[2]),
            len(times[key]),
            moved / middle[key] / 1e9,
            middle["copy",] / middle[key],
            middle[key] / middle[HARD, "hard"],
            middle[key] / middle[SMOOTHED, "smoothed"],
            None if extra is None else extra / problem.logits.nbytes,
        )


def _key(contestant: Contestant) -> tuple[str, ...]:
    return contestant.name, contestant.case


def _step(contestant: Contestant, problem: Problem) -> Callable[[], float]:
    if contestant.consumes:
        problem = Problem(problem.logits.detach().clone().requires_grad_(), problem.labels)

    def step() -> float:
        for leaf in problem.leaves:
            leaf.grad = None
        loss = contestant.loss(problem)
        loss.backward()
        return float(loss.detach()) if problem.logits.device.type == "cpu" else 0.0

    return step


def _interleaved(
    steps: dict[tuple[str, ...], Callable[[], Any]], kernels: dict[tuple[str, ...], str | None], settings: Settings
) -> dict[tuple[str, ...], list[float]]:
    """Times of all steps, measured in turn, so that other load on the machine affects all of them alike.

    Each measured step follows an unmeasured one of the same contestant: in training, too, a loss finds caches and
    memory as it left them itself.
    """
    times: dict[tuple[str, ...], list[float]] = {key: [] for key in steps}
    clock = _cuda_seconds if settings.device == "cuda" else _seconds
    began, order = time.perf_counter(), random.Random(0)
    rounds = 0
    while rounds < 5 or (rounds < 2000 and time.perf_counter() - began < settings.seconds):
        for key, step in order.sample(list(steps.items()), len(steps)):
            with forced(kernels.get(key)):
                step()
                times[key].append(clock(step))
        rounds += 1
    return {key: values[1:] for key, values in times.items()}


def _seconds(step: Callable[[], Any]) -> float:
    began = time.perf_counter()
    step()
    return time.perf_counter() - began


def _cuda_seconds(step: Callable[[], Any]) -> float:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    begin.record()
    step()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end) / 1e3


@contextlib.contextmanager
def forced(kernel: str | None) -> Iterator[None]:
    """Make `composer_ls` use this kernel."""
    before = os.environ.get(VARIABLE)
    if kernel is not None:
        os.environ[VARIABLE] = kernel
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(VARIABLE, None)
        else:
            os.environ[VARIABLE] = before


# ---------------------------------------------------------------------------------------------------------------------
# Memory.


def _memory(settings: Settings, shape: tuple[int, ...], contestant: Contestant) -> int | None:
    """The peak memory in bytes that one step allocates, measured in a separate process."""
    group = next(group for group in GROUPS if contestant.name.startswith(group))
    only = replace(settings, peers=(group,))
    question = {"settings": asdict(only), "shape": shape, "name": contestant.name, "case": contestant.case}
    command = [sys.executable, "-m", "composer_ls.lab.bench.measure", json.dumps(question)]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    last = answer.stdout.strip().splitlines()[-1:] or [""]
    return int(last[0]) if last[0].isdigit() else None


def _answer(question: dict[str, Any]) -> int:
    settings, shape = Settings(**question["settings"]), tuple(question["shape"])
    wanted = (question["name"], question["case"])
    contestant = next(one for one in _chosen(settings, shape) if _key(one) == wanted)
    dtype = getattr(torch, settings.dtype)
    with forced(contestant.kernel):
        small = Problem.make((2, *shape[1:2], *(1 for _ in shape[2:])), dtype, settings.device, 0.0, settings.width)
        _step(contestant, small)()  # warm-up: loading and compiling do not count
        problem = Problem.make(shape, dtype, settings.device, settings.ignored, settings.width)
        if settings.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            _step(contestant, problem)()
            return torch.cuda.max_memory_allocated() - before
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # reset the peak
        before = _resident("VmRSS")
        _step(contestant, problem)()
        return max(0, _resident("VmHWM") - before)


def _resident(field: str) -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(field):
            return 1024 * int(line.split()[1])
    raise OSError(f"/proc/self/status has no {field}")


# ---------------------------------------------------------------------------------------------------------------------
# The machine.


def machine(device: str) -> dict[str, Any]:
    """The hardware and package versions, to store with results."""
    found: dict[str, Any] = {
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "versions": {},
    }
    if device == "cuda":
        found["gpu"] = torch.cuda.get_device_name()
    for package in ("composer_ls", "torch", "mosaicml", "timm", "triton", "liger_kernel"):
        with contextlib.suppress(PackageNotFoundError):
            found["versions"][package] = version(package)
    return found


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def main(arguments: Sequence[str]) -> None:
    """Measure the memory of one contestant and print it; see :func:`_memory`."""
    warnings.simplefilter("ignore")
    print(_answer(json.loads(arguments[0])))


if __name__ == "__main__":
    main(sys.argv[1:])
