"""The fused cross entropy on the CPU in C++ (``rows.cpp``), built by the machine's own compiler while training goes on.

Nothing waits for the compiler: the build starts in a process of its own once enough logits have passed for it to
repay, and the eager kernel serves until it is done. A short job never starts it. What is built is loaded from a
temporary folder that is gone at once; no cache, no extension, no setting is left behind.
"""

from __future__ import annotations

import atexit
import ctypes
import logging
import os
import platform
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from composer_ls.kernels import RowTargets, compute_dtype

__all__ = ["loss_rows", "ready", "require"]

REPAYS = 1 << 30
"""Logits to have seen before building: about two seconds of work, as long as the build itself takes."""
GRAIN = 1 << 17
"""Logits that are worth a thread."""

_FUNCTIONS = {torch.float32: "rows_float32", torch.float64: "rows_float64", torch.bfloat16: "rows_bfloat16"}
_log = logging.getLogger(__name__)


def loss_rows(logits: Tensor, target: RowTargets, grad: Tensor | None, scale: Tensor | float | None) -> Tensor:
    """A :data:`composer_ls.kernels.Kernel`. The library must be there: see :func:`ready` and :func:`require`."""
    shape = (logits.shape[0], 1, *logits.shape[2:])
    losses = logits.new_empty(shape, dtype=compute_dtype(logits.dtype))
    task, kept = _task(logits, target, grad, 1.0 if scale is None else scale, losses)
    function = getattr(_builder.library, _FUNCTIONS[logits.dtype])
    # Threads over rows, none of which waits for another: unlike OpenMP's they lose little to others on the same cores.
    parts = max(1, min(torch.get_num_threads(), losses.numel(), logits.numel() // GRAIN))
    ends = [losses.numel() * part // parts for part in range(parts + 1)]
    others = [
        threading.Thread(target=function, args=(ctypes.byref(task), first, last)) for first, last in pairwise(ends[1:])
    ]
    for thread in others:
        thread.start()
    function(ctypes.byref(task), 0, ends[1])
    for thread in others:
        thread.join()
    del kept  # lived as long as their addresses were in use
    return losses


def ready(logits: Tensor) -> bool:
    """Whether to use this kernel now. Counts the logits as seen, and starts the build when it repays."""
    if logits.dtype not in _FUNCTIONS or logits.stride(1) != 1 or torch.are_deterministic_algorithms_enabled():
        return False  # rows across strides are vectors to the eager kernel; changing kernels changes the last digits
    return _builder.after(logits.numel())


def require(logits: Tensor) -> None:
    """Wait for the library.

    Raises:
        RuntimeError: There is no compiler, it fails, or these logits are not for this kernel.

    """
    if logits.device.type != "cpu" or logits.dtype not in _FUNCTIONS:
        raise RuntimeError(
            f"the compiled kernel takes float32, float64 or bfloat16 logits on the CPU, not {logits.dtype} on "
            f"{logits.device}"
        )
    _builder.wait()


# ---------------------------------------------------------------------------------------------------------------------
# The structures of rows.cpp.


class _Field(ctypes.Structure):
    _fields_ = [("data", ctypes.c_void_p), *((name, ctypes.c_int64) for name in ("example", "component", "position"))]


class _Task(ctypes.Structure):
    _fields_ = [
        *(
            (name, _Field)
            for name in ["logits", "grad", "losses", "classes", "hard", "soft", "mass", "scale", "ignored"]
        ),
        ("prior", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("prior_rows", "K", "J", "S")),
    ]


def _task(
    logits: Tensor, target: RowTargets, grad: Tensor | None, scale: Tensor | float, losses: Tensor
) -> tuple[_Task, list[Any]]:
    """The structure, and what must live as long as it."""
    dtype, kept = losses.dtype, list[Any]()
    components = target.classes.shape[1]

    def field(value: Tensor | float | None, dim: int = 1) -> _Field:
        if value is None:
            return _Field(None, 0, 0, 0)
        if not isinstance(value, Tensor):
            number = (ctypes.c_double if dtype == torch.float64 else ctypes.c_float)(value)
            kept.append(number)
            return _Field(ctypes.addressof(number), 0, 0, 0)
        if value.is_floating_point():
            value = value.to(dtype)
        value = value.expand(losses.shape[0], dim, *losses.shape[2:])
        kept.append(value)
        return _Field(value.data_ptr(), *value.stride(), *[0] * (3 - value.ndim))

    rows = target.prior is not None and target.prior.ndim == 2
    task = _Task(
        _whole(logits), _Field(None, 0, 0, 0) if grad is None else _whole(grad), field(losses),
        field(target.classes, components), field(target.hard, components), field(target.soft, components if rows else 1),
        field(target.mass), field(scale), field(target.ignored),
    )  # fmt: skip
    if target.prior is not None:
        prior = target.prior.contiguous()
        kept.append(prior)
        task.prior, task.prior_rows = prior.data_ptr(), len(prior) if rows else 1
    task.K, task.J, task.S = logits.shape[1], components, logits.shape[2:].numel()
    return task, kept


def _whole(values: Tensor) -> _Field:
    return _Field(values.data_ptr(), *values.stride(), *[0] * (3 - values.ndim))


# ---------------------------------------------------------------------------------------------------------------------
# The build.


class _Builder:
    """Builds and loads ``rows.cpp`` once a process, and never again after a failure."""

    def __init__(self) -> None:
        self.library: ctypes.CDLL | None = None
        self._seen = 0
        self._failure: str | None = None
        self._process: subprocess.Popen[str] | None = None
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._lock = threading.Lock()

    def after(self, logits: int) -> bool:
        """Whether the library is there, once ``logits`` more have been seen."""
        if self.library is None and self._failure is None:
            with self._lock:
                self._seen += logits
                if self._process is None and self._seen >= REPAYS:
                    self._start()
                elif self._process is not None and self._process.poll() is not None:
                    self._load()
        return self.library is not None

    def wait(self) -> None:
        with self._lock:
            if self.library is None and self._failure is None:
                if self._process is None:
                    self._start()
                if self._process is not None:
                    self._load()
        if self.library is None:
            raise RuntimeError(f"the compiled kernel cannot be had: {self._failure}")

    def _start(self) -> None:
        names = (os.environ.get("CXX", ""), "c++", "g++", "clang++")
        compiler = next((path for name in names if (path := shutil.which(name))), None)
        if compiler is None or platform.system() == "Windows":
            self._failure = "no C++ compiler (c++, g++ or clang++) is on the PATH"
            return
        self._folder = tempfile.TemporaryDirectory(prefix="composer_ls_")
        source, target = Path(__file__).with_name("rows.cpp"), Path(self._folder.name, "rows.so")
        machine = "-march=native" if platform.machine() in ("x86_64", "AMD64") else "-mcpu=native"
        command = [
            compiler,
            "-std=c++17",
            "-O2",
            "-ftree-vectorize",
            machine,
            "-fno-math-errno",
            "-fno-trapping-math",
            "-shared",
            "-fPIC",
        ]
        gentle = [nice, "-n", "10"] if (nice := shutil.which("nice")) else []
        self._process = subprocess.Popen(
            [*gentle, *command, str(source), "-o", str(target)],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        atexit.register(self._process.kill)

    def _load(self) -> None:
        assert self._process is not None
        assert self._folder is not None
        _, complaint = self._process.communicate()
        atexit.unregister(self._process.kill)
        try:
            if self._process.returncode:
                raise OSError(f"{self._process.args!r} failed: {complaint.strip()}")
            library = ctypes.CDLL(str(Path(self._folder.name, "rows.so")))
            for name in _FUNCTIONS.values():
                function: Callable[..., None] = getattr(library, name)
                function.argtypes = (ctypes.POINTER(_Task), ctypes.c_int64, ctypes.c_int64)  # type: ignore[attr-defined]
                function.restype = None  # type: ignore[attr-defined]
            self.library = library
        except OSError as error:
            self._failure = str(error)
            _log.info("The loss stays with its eager kernel: %s", error)
        finally:
            self._folder.cleanup()


_builder = _Builder()
