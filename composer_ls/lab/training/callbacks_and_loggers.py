"""Builds Composer's callbacks and loggers from the `callbacks` and `loggers` mappings of a recipe."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from importlib import import_module
from typing import Any

from composer.core import Callback
from composer.loggers import LoggerDestination

from composer_ls.errors import MissingPackageError, RecipeError
from composer_ls.lab.recipe.composer_parts import Kind, part_mistakes, part_places
from composer_ls.lab.recipe.recipe import Recipe
from composer_ls.lab.run_folder.folder import RunFolder

__all__ = ["build_callbacks", "build_loggers", "settings_of", "stopping_cautions"]

Arguments = Mapping[str, Any]

STOPPERS = ("early_stopper", "threshold_stopper")
"""The callbacks that stop a run by a metric of the watched part of the data."""

EXTRAS = dict.fromkeys(("mlflow", "tensorboard", "wandb"), "composer_ls[loggers]") | {
    "cometml": "mosaicml[comet-ml]",
    "neptune": "mosaicml[neptune]",
    "slack": "mosaicml[slack]",
    "system_metrics_monitor": "mosaicml[system-metrics-monitor]",
}
"""The extra, with the versions that Composer supports, of each callback or logger that has one."""


def build_callbacks(mapping: Mapping[str, Arguments | None], watched: str, metrics: Collection[str]) -> list[Callback]:
    """One callback per entry that is not ``None``.

    A stopper gets what it needs to know about the run unless the recipe says so: the part of the data to watch, and that
    less is better for a cross entropy.

    Args:
        mapping: Arguments by the callback's name.
        watched: The part of the data that is evaluated during training.
        metrics: The names of the metrics that are computed on it.

    Raises:
        RecipeError: A name or an argument is unknown, a callback refuses a value, or a metric does not exist.
        MissingPackageError: A callback needs a package that is not installed.

    Example:
        >>> from composer_ls.lab.training.callbacks_and_loggers import build_callbacks
        >>> made = build_callbacks({"early_stopper": {"monitor": "CrossEntropy"}}, "validation", ["CrossEntropy"])
        >>> made[0].dataloader_label, made[0].comp_func.__name__
        ('validation', 'less')

    """
    built = []
    for name, arguments in _switched_on("callbacks", mapping):
        if name in STOPPERS:
            arguments = {"dataloader_label": watched} | _less_is_better(arguments) | dict(arguments)
            monitor, label = arguments.get("monitor"), arguments["dataloader_label"]
            if label != watched:
                raise RecipeError(
                    f"callbacks.{name}.dataloader_label is {label!r}, but this run evaluates {watched} only"
                )
            if monitor is not None and monitor not in metrics:
                raise RecipeError(
                    f"callbacks.{name}.monitor is {monitor!r}, but must be a metric of this run: {', '.join(metrics)}"
                )
        built.append(_made("callbacks", name, arguments))
    return built


def build_loggers(recipe: Recipe, folder: RunFolder) -> list[LoggerDestination]:
    """One logger per entry of ``recipe.loggers`` that is not ``None``.

    Unless the recipe says otherwise, TensorBoard's files go to the run folder, and the run has that folder's name in MLflow
    and Weights & Biases, where the runs of a comparison are then told apart.

    Raises:
        RecipeError: A name or an argument is unknown, or a logger refuses a value.
        MissingPackageError: A logger needs a package that is not installed.

    """
    name_of_run = folder.path.absolute().name
    defaults: dict[str, dict[str, Any]] = {
        "tensorboard": {"log_dir": str(folder.tensorboard_folder)},
        "mlflow": {"run_name": name_of_run},
        "wandb": {"name": name_of_run},
    }
    return [
        _made("loggers", name, defaults.get(name, {}) | dict(arguments))
        for name, arguments in _switched_on("loggers", recipe.loggers)
    ]


def settings_of(recipe: Recipe) -> dict[str, Any]:
    """The recipe as one mapping from dotted keys to values, for loggers."""
    return dict(_flat("", recipe.model_dump(exclude={"description", "needs", "loggers"})))


def stopping_cautions(callbacks: Mapping[str, Arguments | None], watched: str) -> list[str]:
    """A warning, as a sentence, if a run was stopped by the images on which it is then measured."""
    stoppers = [name for name in STOPPERS if callbacks.get(name) is not None]
    if not stoppers or watched != "test":
        return []
    return [
        f"{' and '.join(stoppers)} looked at the test examples, so the results on them are too good: hold out others with "
        f"data.validation."
    ]


def _flat(prefix: str, value: Any) -> list[tuple[str, Any]]:
    if not isinstance(value, Mapping) or not value:
        return [(prefix, value)]
    return [pair for key, inner in value.items() for pair in _flat(f"{prefix}.{key}" if prefix else str(key), inner)]


def _less_is_better(arguments: Arguments) -> dict[str, Any]:
    # Composer knows the direction from words in the name, and "entropy" is none of them.
    return {"comp": "less"} if "entropy" in str(arguments.get("monitor", "")).lower() else {}


def _switched_on(kind: Kind, mapping: Mapping[str, Arguments | None]) -> list[tuple[str, Arguments]]:
    for _, message in part_mistakes(kind, mapping):
        raise RecipeError(message)
    return [(name, arguments) for name, arguments in mapping.items() if arguments is not None]


def _made(kind: Kind, name: str, arguments: Arguments) -> Any:
    module, cls = part_places(kind)[name]
    try:
        return getattr(import_module(module), cls)(**arguments)
    except ImportError as error:
        cause = error.__cause__ if isinstance(error.__cause__, ImportError) else error
        package = f"'{EXTRAS[name]}'" if name in EXTRAS else (cause.name or name).partition(".")[0]
        raise MissingPackageError(
            f"{kind}.{name} needs a package that is not installed ({cause}): pip install {package}"
        ) from error
    except (TypeError, ValueError, AssertionError, RuntimeError) as error:
        raise RecipeError(f"{kind}.{name}: {' '.join(str(error).split())}") from error
