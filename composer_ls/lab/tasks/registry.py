"""The registry of all tasks."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

from composer_ls.errors import InputError
from composer_ls.lab.recipe.recipe import Recipe, TaskSchema, use_tasks

if TYPE_CHECKING:
    import torch

    from composer_ls.lab.tasks.task import Task
    from composer_ls.lab.tasks.task_report import TaskReport

__all__ = ["BUILT_IN", "open_task", "task_class", "task_report"]

BUILT_IN = (
    "composer_ls.lab.tasks.classification",
    "composer_ls.lab.tasks.segmentation",
    "composer_ls.lab.tasks.translation",
)
"""The packages of the built-in tasks. Each has three modules: ``schema`` with ``SCHEMA``, a
:class:`~composer_ls.lab.recipe.recipe.TaskSchema`; ``task`` with ``TASK``, a subclass of
:class:`~composer_ls.lab.tasks.task.Task`; and ``report`` with ``REPORT``, a
:class:`~composer_ls.lab.tasks.task_report.TaskReport`.
"""

ENTRY_POINTS = "composer_ls.tasks"
"""The entry point group in which other distributions register such packages."""


@functools.cache
def _packages() -> dict[str, str]:
    """The package of each task, by the task's name."""
    packages: dict[str, str] = {}
    names: dict[tuple[str, str], str] = {}
    for package in (*BUILT_IN, *sorted({point.value for point in entry_points(group=ENTRY_POINTS)})):
        schema = _load(package, "schema", "SCHEMA")
        taken = [("task", schema.task)]
        for section, of_task in (("data.name", schema.data), ("model.name", schema.model)):
            taken += [(section, name) for name in of_task.names()]
        for key in taken:
            if key in names:
                raise InputError(
                    f"the tasks in {names[key]} and {package} both have {key[0]} {key[1]}: rename one of them"
                )
            names[key] = package
        packages[schema.task] = package
    return packages


def _load(package: str, module: str, name: str) -> Any:
    try:
        return getattr(import_module(f"{package}.{module}"), name)
    except (ImportError, AttributeError) as error:
        if package in BUILT_IN:
            raise
        raise InputError(
            f"the task in {package} cannot be used, because {package}.{module}.{name} cannot be loaded ({error}): fix "
            f"the package that registers it as an entry point of {ENTRY_POINTS}, or uninstall it"
        ) from error


def _schemas() -> Sequence[TaskSchema]:
    return [_load(package, "schema", "SCHEMA") for package in _packages().values()]


use_tasks(_schemas)


def task_class(name: str) -> type[Task]:
    """The class of the task with this name."""
    loaded: type[Task] = _load(_packages()[name], "task", "TASK")
    return loaded


def task_report(name: str) -> TaskReport:
    """The report definition of the task with this name."""
    loaded: TaskReport = _load(_packages()[name], "report", "REPORT")
    return loaded


def open_task(recipe: Recipe, device: torch.device | str = "cpu") -> Task:
    """Open the data of a recipe for its task.

    Args:
        recipe: The recipe of the run.
        device: The device for data that is held in memory.

    Raises:
        DataNotFoundError: The data does not exist.
        RecipeError: The recipe asks for something that the data or the task does not have.

    """
    return task_class(recipe.task)(recipe, device)
