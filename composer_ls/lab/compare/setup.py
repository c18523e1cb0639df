"""Descriptions of runs in words: network, data, size of the training, and warnings."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from composer_ls.lab.compare.measured_runs import LeftOut
from composer_ls.lab.recipe.recipe import Recipe

__all__ = ["cautions", "count_of", "failures", "name_of_setup", "setup_in_words"]

_NUMBER = re.compile(r"\d[\d,.]*\b")
MOST_CAUTIONS = 5
"""The maximum number of warnings that are listed."""

_LAYOUTS = {"imagefolder": "images", "parallel_text": "sentences"}
"""What a folder holds, by the values of ``data.name`` that name its layout. The data itself is then named by the folder."""


def name_of_setup(recipe: Recipe) -> str:
    """The network and the data in words, for a title.

    Example:
        >>> from composer_ls.lab.compare.setup import name_of_setup
        >>> from composer_ls.lab.recipe.reading import load_recipe
        >>> name_of_setup(load_recipe("digits-mlp"))
        'mlp on digits'
        >>> name_of_setup(load_recipe("cifar10-resnet20", ["data.name=imagefolder", "data.root=my/shapes"]))
        'resnet20 on shapes'

    """
    data = recipe.data.called
    if data in _LAYOUTS:
        data = Path(getattr(recipe.data, "root", data)).absolute().name or data
    return f"{recipe.model.called} on {data}"


def setup_in_words(recipe: Recipe, result: Mapping[str, Any]) -> str:
    """A sentence with network, data and its folder, classes, examples, epochs and steps.

    Example:
        >>> from composer_ls.lab.compare.setup import setup_in_words
        >>> from composer_ls.lab.recipe.reading import load_recipe
        >>> result = {"classes": list("0123456789"), "image_shape": [1, 8, 8], "examples": {"train": 1437, "test": 360}, "steps": 660}
        >>> setup_in_words(load_recipe("digits-mlp"), result | {"epochs": 30})
        'mlp on digits: 10 classes, 1,437 training and 360 test images, 30 epochs of 22 steps.'
        >>> setup_in_words(load_recipe("cifar10-resnet20", ["data.name=imagefolder", "data.root=my/shapes"]), {"steps": 10})
        'resnet20 on images in my/shapes: 10 steps.'

    """
    where = getattr(recipe.data, "root", None)
    place = f" in {where}" if where is not None and recipe.data.name not in {"digits", "target"} else ""
    parts = [_classes(result), _examples(result), _length(result)]
    data = _LAYOUTS.get(recipe.data.name, recipe.data.called)
    return f"{recipe.model.called} on {data}{place}: {', '.join(filter(None, parts))}."


def _classes(result: Mapping[str, Any]) -> str:
    return f"{len(result['classes']):,} classes" if result.get("classes") else ""


def _examples(result: Mapping[str, Any]) -> str:
    sizes = result.get("examples") or {}
    names = {"train": "training", "validation": "validation", "test": "test"}
    parts = [f"{sizes[key]:,} {name}" for key, name in names.items() if key in sizes]
    return f"{', '.join(parts[:-1])} and {parts[-1]} {_kind(result)}" if len(parts) > 1 else ""


def count_of(result: Mapping[str, Any], part: str) -> str:
    """The number of examples in a part of the data, in words; "" if unknown.

    Example:
        >>> from composer_ls.lab.compare.setup import count_of
        >>> count_of({"image_shape": [1, 8, 8], "examples": {"train": 1437, "test": 360}}, "test")
        '360 test images'

    """
    sizes = result.get("examples") or {}
    return f"{sizes[part]:,} {part} {_kind(result)}" if part in sizes else ""


def _kind(result: Mapping[str, Any]) -> str:
    return "images" if "image_shape" in result else "sentences" if "languages" in result else "examples"


def _length(result: Mapping[str, Any]) -> str:
    training = result.get("training") or {}
    steps, epochs = int(training.get("steps") or result.get("steps") or 0), int(result.get("epochs") or 0)
    if not steps:
        return ""
    words = f"{steps:,} step{'' if steps == 1 else 's'}"
    if epochs == 1:
        words = f"1 epoch of {words}"
    elif epochs > 1 and steps % epochs == 0:
        each = steps // epochs
        words = f"{epochs:,} epochs of {each:,} step{'' if each == 1 else 's'}"
    elif epochs > 1:
        words = f"{epochs:,} epochs, {words} in all"
    dropped = float(training.get("dropped_share") or 0)
    return words + (f" (each epoch leaves out {dropped:.0%} of the training set)" if dropped >= 0.005 else "")


def cautions(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """The warnings of finished runs as sentences, each once, with the number of runs that gave it.

    Warnings that differ only in their numbers count as one, for which the first stands.

    Example:
        >>> from composer_ls.lab.compare.setup import cautions
        >>> cautions([{"warnings": ["It took 10 steps in all."]}, {"warnings": ["It took 10 steps in all."]}, {}])
        ['2 of 3 runs: It took 10 steps in all.']

    """
    kinds: dict[str, list[str]] = {}
    for result in results:
        of_run = {_NUMBER.sub("0", warning): warning for warning in result.get("warnings") or ()}
        for kind, warning in of_run.items():
            kinds.setdefault(kind, []).append(warning)
    texts = _unlike(results)
    for warnings in sorted(kinds.values(), key=len, reverse=True):
        runs = "all runs" if len(warnings) == len(results) else f"{len(warnings)} of {len(results)} runs"
        texts.append(f"{runs}{', for example' if len(set(warnings)) > 1 else ''}: {warnings[0]}")
    return texts if len(texts) <= MOST_CAUTIONS else [*texts[:MOST_CAUTIONS], f"and {len(texts) - MOST_CAUTIONS} more"]


def _unlike(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """What runs were made with that is not the same for all and may make a difference by itself, in a sentence."""
    made_with: dict[str, set[str]] = {}
    for result in results:
        versions, hardware = result.get("versions") or {}, result.get("hardware") or {}
        known = [(name, versions.get(name)) for name in ("composer_ls", "mosaicml", "torch")]
        known += [("precision", result.get("precision")), ("processes", hardware.get("processes"))]
        for name, value in known:
            if value is not None:
                made_with.setdefault(name, set()).add(str(value))
    unlike = [f"{name} ({', '.join(sorted(values))})" for name, values in made_with.items() if len(values) > 1]
    return [f"the runs differ in {', '.join(unlike)}, which may make a difference by itself."] if unlike else []


def failures(left_out: Sequence[LeftOut]) -> str:
    """A sentence about the runs that are left out; "" if there are none.

    Example:
        >>> from pathlib import Path
        >>> from composer_ls.lab.compare.measured_runs import LeftOut
        >>> from composer_ls.lab.compare.setup import failures
        >>> failures([LeftOut(Path("runs/a"), "it diverged")])
        '1 run is left out: runs/a (it diverged)'

    """
    if not left_out:
        return ""
    told = [f"{one.folder} ({one.reason})" for one in left_out[:3]]
    more = len(left_out) - len(told)
    number = f"{len(left_out)} run{' is' if len(left_out) == 1 else 's are'} left out"
    return f"{number}: {'; '.join(told)}" + (f"; and {more} more, named at the end" if more else "")
