"""The recipe, which determines a run completely: its schema combines sections of all tasks with those of each task."""

from __future__ import annotations

import functools
import hashlib
import json
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Discriminator, Field, Tag, create_model, model_validator

from composer_ls.lab.recipe.methods import METHODS, amount_of, method_of
from composer_ls.lab.recipe.sections import (
    Checkpoints,
    DataSection,
    Duration,
    Integer,
    ModelSection,
    NamedSection,
    Optimizer,
    Schedule,
    Section,
    Seed,
    WholeDuration,
)
from composer_ls.lab.recipe.yaml_text import dump_yaml

__all__ = ["UNKNOWN_SECTION", "Recipe", "TaskSchema", "differing_keys", "recipe_schema", "use_tasks"]


@dataclass(frozen=True)
class TaskSchema:
    """A task's part of the recipe schema.

    Attributes:
        task: The task's name.
        data: Its ``data`` section. No other task uses the same values of ``name``, which identify the section, unless it
            overrides :meth:`~composer_ls.lab.recipe.sections.NamedSection.claims`.
        model: Its ``model`` section, likewise.
        losses: The allowed values of ``loss``.
        diagnostics: Its ``diagnostics`` section, or ``None``.
        files: Glob patterns of the additional files of its runs.

    """

    task: str
    data: type[DataSection]
    model: type[ModelSection]
    losses: tuple[str, ...] = ("cross_entropy",)
    diagnostics: type[Section] | None = None
    files: tuple[str, ...] = ()


class Recipe(Section):
    """The complete description of a run."""

    tasks: ClassVar[Mapping[str, TaskSchema]] = {}
    """The tasks by name; empty until :func:`recipe_schema` adds them."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    description: str = Field("", description="what it is, in one line")
    needs: str = Field("", description="what it needs, in one line")
    seed: Seed = 17
    duration: WholeDuration
    precision: Literal["auto", "fp32", "amp_bf16", "amp_fp16"] = Field(
        "fp32", description="auto: amp_bf16 on a GPU that supports it, else fp32"
    )
    device: Literal["auto", "cpu", "gpu"] = "auto"
    microbatch_size: Integer | None = Field(None, ge=1, description="examples per forward pass of one process")
    eval_interval: Duration = "1ep"
    on_divergence: Literal["stop", "continue"] = Field(
        "stop", description="what to do when the training loss or the weights are not finite numbers any more"
    )
    data: DataSection
    model: ModelSection
    loss: str = Field(
        "cross_entropy", description="the training loss; dice and cross_entropy+dice are for segmentation"
    )
    optimizer: Optimizer = Optimizer()
    schedule: Schedule = Schedule()
    algorithms: dict[str, dict[str, Any] | None] = Field(
        {},
        description="label_smoothing, max_sup, online_label_smoothing, mixup, cutmix and Composer's other algorithms, each with its arguments",
    )
    callbacks: dict[str, dict[str, Any] | None] = Field(
        {}, description="Composer's callbacks, such as early_stopper and speed_monitor, each with its arguments"
    )
    loggers: dict[str, dict[str, Any] | None] = Field(
        {}, description="Composer's loggers, such as tensorboard, wandb and mlflow, each with its arguments"
    )
    diagnostics: Section | None = Field(None, description="{}: measure during training with the defaults; null: do not")
    checkpoints: Checkpoints = Checkpoints()

    @model_validator(mode="after")
    def _of_one_task(self) -> Recipe:
        other = next(task.task for task in self.tasks.values() if type(self.model) is task.model)
        if other != self.task:
            raise ValueError(
                f"model.name={self.model.called} is for {other} and data.name={self.data.called} for {self.task}: use data and "
                f"a model of one task"
            )
        schema = self.tasks[self.task]
        if self.loss not in schema.losses:
            having = [task.task for task in self.tasks.values() if self.loss in task.losses]
            raise ValueError(
                f"loss={self.loss} is for {' and '.join(having)}: use loss={' or '.join(schema.losses)} for {self.task}"
            )
        if self.diagnostics is not None and type(self.diagnostics) is not schema.diagnostics:
            having = [task.task for task in self.tasks.values() if task.diagnostics is type(self.diagnostics)]
            raise ValueError(f"diagnostics are for {' and '.join(having)} only: use diagnostics=null for {self.task}")
        return self

    @property
    def task(self) -> str:
        """The name of the task, which follows from the data section."""
        return next(task.task for task in self.tasks.values() if type(self.data) is task.data)

    def to_yaml(self) -> str:
        """The resolved recipe as YAML, with every default written out."""
        return dump_yaml(self.model_dump())

    def identity(self) -> dict[str, Any]:
        """The keys that determine the run and are not at their default. Recipes with equal identities are the same run.

        The description and the loggers do not count, nor do algorithms and callbacks that are switched off, including a
        smoothing of 0.
        """
        content = self.model_dump(exclude={"description", "needs", "loggers", "callbacks"}, exclude_defaults=True)
        if calling := {name: arguments for name, arguments in self.callbacks.items() if arguments is not None}:
            content["callbacks"] = calling
        on = {name: arguments for name, arguments in self.algorithms.items() if arguments is not None}
        on = {name: one for name, one in on.items() if name not in METHODS or one.get(METHODS[name][0]) != 0}
        order = order_of(on)
        return content | {"algorithms": on} | ({"order": order} if order != sorted(order) else {})

    def fingerprint(self) -> str:
        """Eight characters that change with the recipe's identity."""
        return hashlib.sha256(json.dumps(self.identity(), sort_keys=True).encode()).hexdigest()[:8]

    @property
    def method(self) -> str | None:
        """The algorithm that smooths, one of :data:`~composer_ls.lab.recipe.methods.METHODS`; ``None`` if none does."""
        return method_of(self.algorithms)

    @property
    def smoothing(self) -> float:
        """How much the recipe's method smooths, 0 if it has none; the largest factor if it varies."""
        method = self.method
        return 0.0 if method is None else amount_of(method, self.algorithms[method] or {})


def order_of(algorithms: Mapping[str, Mapping[str, Any] | None]) -> list[str]:
    """The algorithms that are on and whose place in the list may matter: Composer's, since ours find their own."""
    on = {name: arguments for name, arguments in algorithms.items() if arguments is not None}
    ours = {"distillation", *METHODS}
    return [name for name, one in on.items() if name not in ours or one.get("implementation") == "composer"]


_tasks: Callable[[], Sequence[TaskSchema]] | None = None


def use_tasks(tasks: Callable[[], Sequence[TaskSchema]]) -> None:
    """Set the function that returns the tasks' schemas. It is called when the first recipe is read."""
    global _tasks
    _tasks = tasks
    recipe_schema.cache_clear()


@functools.cache
def recipe_schema() -> type[Recipe]:
    """The schema of recipes: :class:`Recipe` with the sections of every task."""
    assert _tasks is not None, "importing composer_ls.lab loads the registry, which sets the tasks"
    tasks = _tasks()
    losses = tuple(dict.fromkeys(loss for task in tasks for loss in task.losses))
    diagnostics = [task.diagnostics for task in tasks if task.diagnostics is not None]
    fields: dict[str, Any] = {
        "data": _chosen({task.task: task.data for task in tasks}),
        "model": _chosen({task.task: task.model for task in tasks}),
        "loss": (Literal[losses], Recipe.model_fields["loss"]),
        "diagnostics": (_one_of([*diagnostics, None]), Recipe.model_fields["diagnostics"]),
    }
    made = create_model("Recipe", __base__=Recipe, __doc__=Recipe.__doc__, __module__=__name__, **fields)
    made.tasks = {task.task: task for task in tasks}
    return made


UNKNOWN_SECTION = "unknown_section"
"""The type of pydantic's error for a section that is of no task."""


def _chosen(sections: Mapping[str, type[NamedSection]]) -> tuple[Any, Any]:
    """The type of a section that is of one task, and its field. In the places of errors stands the task's name."""

    def task_of(content: Any) -> str | None:
        if isinstance(content, NamedSection):
            return next((task for task, section in sections.items() if type(content) is section), None)
        if not isinstance(content, Mapping):
            return None
        return next((task for task, section in sections.items() if section.claims(content)), None)

    discriminator = Discriminator(
        task_of,
        custom_error_type=UNKNOWN_SECTION,
        custom_error_message="input should be a valid dictionary with a name",
        custom_error_context={
            "names": ", ".join(repr(name) for one in sections.values() for name in one.names() if name != "target")
        },
    )
    choices = _one_of([Annotated[section, Tag(task)] for task, section in sections.items()])
    return choices, Field(discriminator=discriminator)


def _one_of(types: Sequence[Any]) -> Any:
    return functools.reduce(operator.or_, types)


def differing_keys(a: Mapping[str, Any], b: Mapping[str, Any], prefix: str = "") -> list[str]:
    """The dotted keys whose values differ between two recipes, not counting their descriptions."""
    keys: list[str] = []
    for key in [*a, *(key for key in b if key not in a)]:
        if not prefix and key in {"description", "needs"}:
            continue
        left, right = a.get(key), b.get(key)
        if isinstance(left, Mapping) and isinstance(right, Mapping):
            keys += differing_keys(left, right, f"{prefix}{key}.")
        elif left != right:
            keys.append(f"{prefix}{key}")
    return keys
