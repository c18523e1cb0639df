"""The values among which a search chooses: ranges of numbers, and lists."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from composer_ls.errors import InputError, RecipeError
from composer_ls.lab.compare.settings import is_place, value_at
from composer_ls.lab.recipe.algorithm_arguments import takes_whole_numbers
from composer_ls.lab.recipe.methods import amount_key
from composer_ls.lab.recipe.recipe import Recipe
from composer_ls.lab.recipe.yaml_text import parse_yaml

if TYPE_CHECKING:
    from optuna.trial import Trial

__all__ = ["Choice", "Dimension", "Range", "parse_dimension", "search_space"]


@dataclass(frozen=True)
class Range:
    """The numbers from ``low`` to ``high``, which is the larger one.

    Attributes:
        key: The recipe's key.
        low: The smallest value.
        high: The largest value.
        whole: Whether only whole numbers are meant.

    """

    key: str
    low: float
    high: float
    whole: bool = False

    @property
    def logarithmic(self) -> bool:
        """Whether values are spread evenly by their logarithm: if the range covers a factor of 10 and no 0."""
        return 0 < 10 * self.low <= self.high

    @property
    def ends(self) -> tuple[str, str]:
        """The smallest and the largest value as YAML."""
        return self._text(self.low), self._text(self.high)

    def holds(self, value: Any) -> bool:
        """Whether a value of the recipe is in the range."""
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        return self.low <= value <= self.high and (not self.whole or value == int(value))

    def fixed(self, value: Any) -> Any:
        """A value of the recipe, for Optuna."""
        return int(value) if self.whole else float(value)

    def suggest(self, trial: Trial, own: Any = None) -> str:
        """The value of a trial as YAML: to three digits, unless it is the recipe's own."""
        if self.whole:
            return str(trial.suggest_int(self.key, int(self.low), int(self.high), log=self.logarithmic))
        value = trial.suggest_float(self.key, self.low, self.high, log=self.logarithmic)
        if own is not None:
            return self._text(own)
        return self._text(min(max(float(f"{value:.3g}"), self.low), self.high))

    def _text(self, value: float) -> str:
        return str(int(value)) if self.whole else np.format_float_positional(value, trim="-")

    def __str__(self) -> str:
        return f"{self.key}={self.ends[0]}..{self.ends[1]}"


@dataclass(frozen=True)
class Choice:
    """Some values, each as JSON, of which Optuna only knows whether two are equal."""

    key: str
    values: tuple[str, ...]

    @property
    def ends(self) -> tuple[str, ...]:
        """All values, since each may be wrong."""
        return self.values

    def holds(self, value: Any) -> bool:
        """Whether a value of the recipe is among them."""
        return self._among(value) is not None

    def fixed(self, value: Any) -> str:
        """A value of the recipe, for Optuna."""
        found = self._among(value)
        assert found is not None
        return found

    def _among(self, value: Any) -> str | None:
        """The text of an equal value: 0 and 0.0 are equal, 0 and false are not."""
        text = json.dumps(value, sort_keys=True, default=str)
        if text in self.values:
            return text
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        parsed = ((one, json.loads(one)) for one in self.values)
        return next(
            (one for one, other in parsed if is_number and type(other) in (int, float) and other == value), None
        )

    def suggest(self, trial: Trial, own: Any = None) -> str:
        """The value of a trial as YAML."""
        return str(trial.suggest_categorical(self.key, self.values))

    def __str__(self) -> str:
        return f"{self.key}=[{', '.join(self.values)}]"


Dimension = Range | Choice

_AMOUNT = 0.0, 0.3
_ALPHA = 0.1, 2.0


def search_space(recipe: Recipe, vary: Sequence[str]) -> tuple[Dimension, ...]:
    """What a search varies: the factor of the recipe's method, and ``vary``, or by default the alpha of MixUp and CutMix if they are on.

    Raises:
        InputError: An entry of ``vary`` is neither a range nor a list, or a key occurs twice.

    Example:
        >>> from composer_ls.lab.recipe.reading import load_recipe
        >>> from composer_ls.lab.tune.space import search_space
        >>> recipe = load_recipe("digits-mlp", ["algorithms.mixup={}"])
        >>> [str(one) for one in search_space(recipe, [])]
        ['algorithms.label_smoothing.smoothing=0..0.3', 'algorithms.mixup.alpha=0.1..2']
        >>> [str(one) for one in search_space(recipe, ["optimizer.learning_rate=0.0001..0.01"])][1:]
        ['optimizer.learning_rate=0.0001..0.01']

    """
    given = [parse_dimension(text, recipe) for text in vary]
    for index, one in enumerate(given):
        for other in given[:index]:
            if one.key == other.key or one.key.startswith(f"{other.key}.") or other.key.startswith(f"{one.key}."):
                raise InputError(f"--vary {other.key} and --vary {one.key} set the same key: leave one of them out")
    if not given:
        on = [name for name in ("mixup", "cutmix") if recipe.algorithms.get(name) is not None]
        given = [Range(f"algorithms.{name}.alpha", *_ALPHA) for name in on]
    amount = amount_key(recipe.method or "label_smoothing")
    covered = any(f"{amount}.".startswith(f"{one.key}.") for one in given)
    return (*(() if covered else (Range(amount, *_AMOUNT),)), *given)


def parse_dimension(text: str, recipe: Recipe) -> Dimension:
    """A range from ``KEY=LOW..HIGH``, or a choice from ``KEY=[V1, V2]``.

    A range holds whole numbers only if both ends are whole and so is the recipe's own value. An algorithm's argument that is a
    real number, such as a factor or the alpha of a mixer, stays one, however the recipe writes it.

    Raises:
        InputError: The text has neither form, or the key cannot be tuned.

    Example:
        >>> from composer_ls.lab.recipe.reading import load_recipe
        >>> from composer_ls.lab.tune.space import parse_dimension
        >>> parse_dimension("data.batch_size=16..256", load_recipe("digits-mlp"))
        Range(key='data.batch_size', low=16.0, high=256.0, whole=True)

    """
    key, _, values = (part.strip() for part in text.partition("="))
    if key in {"seed", "name", "description", "needs"} or key.startswith(("data.validation", "data.split_seed")):
        raise InputError(f"--vary {key}: this key cannot be tuned, since it does not make a network better")
    if is_place(key):
        raise InputError(
            f"--vary {key}: this key says where and on which files a run runs, so its trials would not be comparable"
        )
    ends = re.fullmatch(r"(.+?)\.\.(.+)", values)
    if key and ends is not None:
        try:
            low, high = float(ends[1]), float(ends[2])
        except ValueError:
            low = high = math.nan
        if math.isfinite(low) and math.isfinite(high):
            if low >= high:
                raise InputError(f"--vary {text!r}: the range is empty: its first number must be the smaller one")
            own = value_at(recipe.model_dump(), key)
            is_whole = isinstance(own, int) and not isinstance(own, bool) and not _is_real(key)
            return Range(key, low, high, is_whole and low == int(low) and high == int(high))
    try:
        parsed = parse_yaml(values, "--vary")
    except RecipeError:
        parsed = None
    if not key or not isinstance(parsed, list) or len(parsed) < 2:
        raise InputError(
            f"--vary {text!r} is neither KEY=LOW..HIGH, a key of the recipe with a range of numbers, such as "
            f"optimizer.learning_rate=0.001..0.1, nor KEY=[V1, V2], with a list of values"
        )
    once = dict.fromkeys(json.dumps(value, sort_keys=True, default=str) for value in parsed)
    return Choice(key, tuple(once))


def _is_real(key: str) -> bool:
    section, name, argument = (*key.split("."), "", "")[:3]
    return section == "algorithms" and not takes_whole_numbers(name, argument)
