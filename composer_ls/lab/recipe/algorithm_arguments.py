"""The algorithms that a recipe can name and their arguments, found without importing Composer, which takes seconds."""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from composer_ls.errors import RecipeError
from composer_ls.lab.recipe.composer_parts import arguments_in, composers_folder, near, truths_in
from composer_ls.lab.recipe.methods import METHODS, is_amount

__all__ = ["algorithm_mistakes", "algorithm_names", "arguments_of", "check_algorithms", "takes_whole_numbers"]

OURS = {
    "distillation": ("training/teacher.py", "DistillationFromRun"),
    "label_smoothing": ("../algorithm.py", "LabelSmoothing"),
    "max_sup": ("../max_sup.py", "MaxSup"),
    "online_label_smoothing": ("../online_label_smoothing.py", "OnlineLabelSmoothing"),
}
"""Our own algorithms: the file, relative to the lab's folder, and the class."""

BATCH_FORM = frozenset({"input_key", "target_key", "output_key"})
"""Arguments that describe the form of batches and outputs, which is fixed in a recipe."""

IMPLEMENTATIONS = ("composer_ls", "composer")
"""The values of ``label_smoothing.implementation``: ours, or Composer's for comparison."""


def check_algorithms(mapping: Mapping[str, Any]) -> None:
    """Raise a RecipeError, which lists what is allowed, for an unknown algorithm or an argument that it does not take.

    Example:
        >>> from composer_ls.lab.recipe.algorithm_arguments import check_algorithms
        >>> check_algorithms({"mixup": {"alpha": 0.2}, "label_smoothing": None})

    """
    for _, message in algorithm_mistakes(mapping):
        raise RecipeError(message)


def algorithm_mistakes(mapping: Mapping[str, Any]) -> Iterator[tuple[tuple[str, ...], str]]:
    """The mistakes in a recipe's ``algorithms``, each as a path of keys and a message."""
    known = algorithm_names()
    for name, arguments in mapping.items():
        if name not in known:
            message = f"unknown key algorithms.{name}: {near(name, known)}allowed are {', '.join(known)}"
            yield ("algorithms", name), message
        elif arguments is not None:
            for key, message in _wrong_arguments(name, arguments):
                yield ("algorithms", name, key), message


def _wrong_arguments(name: str, arguments: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    composers_own = name == "label_smoothing" and arguments.get("implementation") == "composer"
    allowed = arguments_of(name, composers_own=composers_own)
    settable = [argument for argument in allowed if argument not in BATCH_FORM]
    for key, value in arguments.items():
        path = f"algorithms.{name}.{key}"
        if name == "label_smoothing" and key == "implementation":
            if value not in IMPLEMENTATIONS:
                yield key, f"{path} is {value!r}, but must be {' or '.join(IMPLEMENTATIONS)}"
        elif key in BATCH_FORM and key in allowed:
            yield (
                key,
                f"{path} cannot be set in a recipe, whose batches are always (images, labels) and whose outputs are "
                f"logits: leave it out",
            )
        elif key not in settable:
            yield key, f"unknown key {path}: {near(key, settable)}allowed are {', '.join(settable) or 'none'}"
        elif isinstance(value, str) and key in truths_in(_source_of(name, composers_own)):
            yield key, f"{path} is {value!r}, but must be true or false"
        elif name in {"mixup", "cutmix"} and key == "alpha" and not _is_positive(value):
            yield key, f"{path} is {value!r}, but must be a number above 0"
        elif name in METHODS and key == METHODS[name][0] and not is_amount(name, value):
            schedule = "{schedule: cosine, start: 0.2, end: 0.0}"
            top = "up to, but not including, 1" if name == "max_sup" else "to 1"
            yield (
                key,
                f"{path} is {value!r}, but must be a number from 0 {top}, such as 0.1, or a schedule such as {schedule}",
            )
        elif composers_own and key == "smoothing" and not isinstance(value, (int, float)):
            yield (
                key,
                f"{path} is {value!r}, but Composer's own LabelSmoothing takes one number: give one, or leave out "
                f"implementation: composer",
            )


def _is_positive(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < float("inf")


@functools.cache
def algorithm_names() -> tuple[str, ...]:
    """The sorted names of Composer's algorithms, taken from their folders, and of our own."""
    folder = _composers_folder()
    names = {place.name for place in folder.iterdir() if (place / f"{place.name}.py").is_file()}
    return tuple(sorted(names | set(OURS)))


@functools.cache
def arguments_of(name: str, *, composers_own: bool = False) -> tuple[str, ...]:
    """The arguments of an algorithm, read from its source.

    Args:
        name: One of :func:`algorithm_names`.
        composers_own: Whether to use Composer's algorithm if ours has the same name.

    """
    return arguments_in(_source_of(name, composers_own))


def takes_whole_numbers(name: str, argument: str) -> bool:
    """Whether an algorithm's argument is annotated as an integer, and not as a real number too.

    Example:
        >>> from composer_ls.lab.recipe.algorithm_arguments import takes_whole_numbers
        >>> takes_whole_numbers("sam", "interval"), takes_whole_numbers("mixup", "alpha")
        (True, False)

    """
    found = {
        one.arg: ast.unparse(one.annotation)
        for statement in _source_of(name).body
        if isinstance(statement, ast.FunctionDef) and statement.name == "__init__"
        for one in (*statement.args.args, *statement.args.kwonlyargs)
        if one.annotation is not None
    }
    kinds = set(re.findall(r"\w+", found.get(argument, "")))
    return "int" in kinds and "float" not in kinds


@functools.cache
def _source_of(name: str, composers_own: bool = False) -> ast.ClassDef:
    if name in OURS and not composers_own:
        place, cls = OURS[name]
        source = _class_in(Path(__file__).resolve().parents[1] / place, cls)
    else:
        source = _class_in(_composers_folder() / name / f"{name}.py")
    assert source is not None, f"{name} is no algorithm"
    return source


def _composers_folder() -> Path:
    return composers_folder() / "algorithms"


def _class_in(file: Path, name: str | None = None) -> ast.ClassDef | None:
    """The class with this name, or without a name the one that derives from ``Algorithm``."""
    classes = [one for one in ast.parse(file.read_text(encoding="utf-8")).body if isinstance(one, ast.ClassDef)]
    for one in classes:
        bases = [base.attr if isinstance(base, ast.Attribute) else getattr(base, "id", "") for base in one.bases]
        if one.name == name or (name is None and "Algorithm" in bases):
            return one
    return None
