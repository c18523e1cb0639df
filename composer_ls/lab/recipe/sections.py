"""The sections of a recipe that all tasks share, and the types of values."""

from __future__ import annotations

import re
import typing
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, Strict, model_validator

__all__ = [
    "Checkpoints",
    "DataSection",
    "Duration",
    "Integer",
    "ModelSection",
    "NamedSection",
    "Number",
    "Optimizer",
    "Schedule",
    "Section",
    "Seed",
    "Truth",
    "WholeDuration",
    "number_in_words",
]


def number_in_words(value: Any) -> Any:
    """Convert text that is a number, such as one in quotes. Booleans are refused."""
    if isinstance(value, bool):
        raise ValueError("input should be a number")
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _truth_in_words(value: Any) -> Any:
    """Convert YAML 1.1's other words for true and false."""
    words = {"yes": True, "on": True, "no": False, "off": False}
    return words.get(value.lower(), value) if isinstance(value, str) else value


Number = Annotated[float, BeforeValidator(number_in_words), Field(allow_inf_nan=False)]
Integer = Annotated[int, Strict()]
Seed = Annotated[Integer, Field(ge=0, lt=2**32)]  # what NumPy's generators take
Truth = Annotated[bool, Strict(), BeforeValidator(_truth_in_words)]


def _length(value: Any, fraction: bool = True) -> Any:
    if not (isinstance(value, str) and re.fullmatch(r"[0-9]+(ep|ba|sp)|[0-9]+(\.[0-9]+)?dur", value)):
        number = isinstance(value, int) and not isinstance(value, bool)
        example = f"{value}ep" if number and value > 0 else "10ep"
        raise ValueError(
            f"a duration is a whole number followed by ep, ba or sp (epochs, steps, examples), such as {example}"
            f"{', or a fraction of the run, such as 0.5dur' if fraction else ''}"
        )
    if value.endswith("dur") and float(value.removesuffix("dur")) > 1:
        raise ValueError("a fraction of the run is at most 1dur")
    return value


def _more_than_none(value: str) -> str:
    if not re.search("[1-9]", value):
        raise ValueError("it must be more than 0")
    return value


def _not_of_itself(value: str) -> str:
    if value.endswith("dur"):
        raise ValueError("the run cannot be a fraction of itself: use ep, ba or sp, such as 10ep")
    return value


Warmup = Annotated[str, BeforeValidator(_length)]
Duration = Annotated[Warmup, AfterValidator(_more_than_none)]
WholeDuration = Annotated[
    str,
    BeforeValidator(lambda value: _length(value, fraction=False)),
    AfterValidator(_more_than_none),
    AfterValidator(_not_of_itself),
]


class Section(BaseModel):
    """A section of a recipe. Unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class NamedSection(Section):
    """A section whose ``name`` says which task it is of."""

    name: str

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """The values of ``name`` that are listed one by one."""
        return _literals(cls.model_fields["name"].annotation)

    @classmethod
    def claims(cls, content: Mapping[str, Any]) -> bool:
        """Whether a section with this content is of this kind."""
        return isinstance(content.get("name"), str) and content["name"] in cls.names()

    @property
    def called(self) -> str:
        """The name for people."""
        return self.name


def _literals(annotation: Any) -> tuple[str, ...]:
    if typing.get_origin(annotation) is Literal:
        return typing.get_args(annotation)
    return tuple(name for one in typing.get_args(annotation) if not isinstance(one, str) for name in _literals(one))


class DataSection(NamedSection):
    """The base of every task's data section."""


class ModelSection(NamedSection):
    """The base of every task's model section."""

    compile: Truth = Field(False, description="torch.compile: a minute of compiling for faster steps")


class Optimizer(Section):
    """The optimizer and its settings."""

    name: Literal["sgd", "adamw"] = "sgd"
    learning_rate: Number = Field(0.1, gt=0)
    momentum: Number = Field(0.9, ge=0, lt=1, description="for sgd")
    nesterov: Truth = Field(False, description="for sgd")
    weight_decay: Number = Field(0.0, ge=0)
    backbone_scale: Number = Field(
        1.0, gt=0, description="factor of the learning rate for everything but the last layer, for fine-tuning"
    )
    decoupled: Truth = Field(False, description="decoupled weight decay for sgd (adamw always decouples it)")


class Schedule(Section):
    """The schedule of the learning rate."""

    name: Literal["constant", "cosine", "linear", "multistep", "inverse_sqrt"] = Field(
        "cosine",
        description="cosine and linear fall to zero; inverse_sqrt falls as 1/sqrt(time) after its warmup",
    )
    warmup: Warmup = "0ba"
    milestones: list[Duration] = Field([], description="times at which multistep multiplies the rate by gamma")
    gamma: Number = Field(0.1, gt=0)

    @model_validator(mode="after")
    def _falls_from_somewhere(self) -> Schedule:
        if self.name == "inverse_sqrt" and not re.search("[1-9]", self.warmup):
            raise ValueError("schedule.name=inverse_sqrt needs a warmup, as schedule.warmup=1000ba or 0.1dur")
        if self.name == "multistep" and not self.milestones:
            raise ValueError("schedule.name=multistep needs milestones, as schedule.milestones='[0.5dur, 0.75dur]'")
        return self


class Checkpoints(Section):
    """Checkpoints, from which an interrupted run resumes."""

    interval: Duration = Field("1ep", description="how often to save")
    keep: Truth = Field(False, description="keep the last checkpoint when the run is finished")
    weights: Truth = Field(
        True, description="keep the weights of a trained classifier, for predict, export and model.weights"
    )
