"""The options that say where the runs of ``compare`` and ``tune`` are done."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from composer_ls.errors import InputError, MissingPackageError

if TYPE_CHECKING:
    from composer_ls.lab.compare.execute import Engine

__all__ = ["Address", "Cpus", "EngineName", "Gpus", "Jobs", "Where"]

Jobs = Annotated[
    int | None,
    typer.Option(
        help="Runs at a time. Default: one per GPU, or one per core, up to 8; with Ray, as many as fit.",
        show_default=False,
    ),
]
EngineName = Annotated[
    str,
    typer.Option(
        "--engine", metavar="local|ray", help="Where runs are done: on this machine, or on those of a Ray cluster."
    ),
]
Address = Annotated[
    str | None,
    typer.Option(
        help="For Ray: the cluster's address; auto for the one that this machine is in. Default: start Ray here.",
        show_default=False,
    ),
]
Cpus = Annotated[
    float | None, typer.Option(help="For Ray: the cores that a run asks for. Default: 1.", show_default=False)
]
Gpus = Annotated[
    float | None, typer.Option(help="For Ray: the GPUs that a run asks for. Default: 0.", show_default=False)
]


@dataclass(frozen=True)
class Where:
    """The values of the options.

    Raises:
        InputError: A value is impossible, or two do not fit together.

    """

    engine: str
    address: str | None
    cpus: float | None
    gpus: float | None
    jobs: int | None

    def __post_init__(self) -> None:
        if self.engine not in {"local", "ray"}:
            raise InputError(f"--engine is {self.engine!r}, but must be local or ray")
        if self.jobs is not None and self.jobs < 1:
            raise InputError(f"--jobs is {self.jobs}, but must be at least 1")
        given = {"--address": self.address, "--cpus": self.cpus, "--gpus": self.gpus}
        for option, value in given.items():
            if value is not None and self.engine != "ray":
                raise InputError(f"{option} {value} is for Ray: add --engine ray")
        if self.cpus is not None and not self.cpus > 0:
            raise InputError(f"--cpus is {self.cpus:g}, but must be more than 0")
        if self.gpus is not None and not self.gpus >= 0:
            raise InputError(f"--gpus is {self.gpus:g}, but must be at least 0")
        if self.engine == "ray" and find_spec("ray") is None:
            raise MissingPackageError("--engine ray needs Ray: pip install 'composer_ls[ray]'")

    def make(self, out: Path, device: str, runs: int, preload: Sequence[str] = ()) -> Engine:
        """The engine.

        Args:
            out: The folder of all runs.
            device: The recipe's ``device``.
            runs: How many runs there are.
            preload: Modules that runs import, besides those for training.

        """
        if self.engine == "ray":
            if device == "gpu" and not self.gpus:
                raise InputError("device is gpu, but runs ask Ray for no GPU: add --gpus 1")
            from composer_ls.lab.compare.ray_engine import RayEngine

            return RayEngine(out, self.address, self.cpus or 1, self.gpus or 0, self.jobs)
        from composer_ls.lab.compare.local_engine import LocalEngine, default_jobs

        return LocalEngine(self.jobs or default_jobs(device, runs), device, preload)
