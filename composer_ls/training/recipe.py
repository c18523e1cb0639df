"""The recipe: its schema, and reading one from YAML with overrides."""

from __future__ import annotations

import difflib
import hashlib
import json
import re
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    Strict,
    ValidationError,
    model_validator,
)

from composer_ls.errors import RecipeError

__all__ = ["Recipe", "load_recipe", "place_of", "recipe_path", "shipped_recipes"]


def _number_in_words(value: Any) -> Any:
    """YAML 1.1 reads ``1e-3`` as a string; take it as the number that it looks like. ``true`` looks like none."""
    if isinstance(value, bool):
        raise ValueError("input should be a number")
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


Number = Annotated[float, BeforeValidator(_number_in_words), Field(allow_inf_nan=False)]
Integer = Annotated[int, Strict()]


def _count_or_fraction(value: Any) -> Any:
    value = _number_in_words(value)
    if (isinstance(value, int) and value >= 1) or (isinstance(value, float) and 0 < value < 1):
        return value
    raise ValueError("it must be a whole number of images, such as 500, or a fraction of them, such as 0.1")


HeldOut = Annotated[int | float, BeforeValidator(_count_or_fraction)]
Truth = Annotated[bool, Strict()]


def _length(value: Any) -> Any:
    if not (isinstance(value, str) and re.fullmatch(r"[0-9]+(ep|ba|sp)|[0-9]+(\.[0-9]+)?dur", value)):
        raise ValueError(
            "a duration is a whole number with ep, ba or sp behind it, such as 10ep or 500ba, "
            "or a fraction of the run, such as 0.5dur"
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
        raise ValueError("the run cannot be a fraction of itself: give it in ep, ba or sp, such as 10ep")
    return value


Warmup = Annotated[str, BeforeValidator(_length)]
Duration = Annotated[Warmup, AfterValidator(_more_than_none)]
WholeDuration = Annotated[Duration, AfterValidator(_not_of_itself)]
ModelName = Literal[
    "mlp", "cnn", "alexnet", "resnet9",
    "resnet20", "resnet32", "resnet44", "resnet56", "resnet110",
    "resnet18", "resnet34", "resnet50", "resnet101", "resnet152",
]  # fmt: skip
LANGUAGE = r"^[A-Za-z][A-Za-z0-9_-]*$"


class Section(BaseModel):
    """A part of a recipe. Unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class LabelNoise(Section):
    """Training labels that are wrong on purpose."""

    rate: Number = Field(ge=0, le=1, description="probability that a label is changed")
    pairs: dict[Integer, Integer] | None = Field(
        None, description="from classes to those that they are mistaken for; null: any class for any other"
    )
    seed: Integer = Field(0, ge=0, description="of the choice, whatever the run's seed")


class Data(Section):
    """Which images to train and test on."""

    task: ClassVar[str] = "classification"
    name: Literal["digits", "cifar10", "cifar100", "imagefolder"] = Field(description="where the images come from")
    root: str = Field("data", description="folder of the data; digits needs none")
    download: Truth = Field(False, description="fetch cifar10 or cifar100 into root if they are not there")
    batch_size: Integer = Field(128, ge=1, description="examples in one optimizer step, over all processes")
    image_size: Integer | None = Field(None, ge=1, description="height and width for imagefolder, pixels")
    augmentation: Literal["none", "crop_flip", "resized_crop"] = Field(
        "none", description="crop_flip: shifts of 4 pixels and mirroring (CIFAR); resized_crop: as for ImageNet"
    )
    validation: HeldOut | None = Field(
        None,
        description="training images to hold out: how many, or a fraction of them; the same fraction of each class",
    )
    examples: Integer | None = Field(
        None,
        ge=1,
        description="how many of the other training images to train on, equally many of each class; null: all",
    )
    split_seed: Integer = Field(0, ge=0, description="of these two choices, whatever the run's seed")
    label_noise: LabelNoise | None = Field(None, description="change some training labels at random")
    in_memory: Literal["auto", True, False] = Field(
        "auto", description="decode all images once and make batches on the device; auto: if they take at most 2 GiB"
    )
    workers: Integer = Field(
        0, ge=0, description="processes that load what is not in memory, for each training process"
    )


class SegmentationData(Section):
    """Which images and label maps to train and test on."""

    task: ClassVar[str] = "segmentation"
    name: Literal["camvid"] = Field(description="where they come from")
    root: str = Field("data", description="folder with train and test, each with images and masks")
    batch_size: Integer = Field(8, ge=1, description="images in one optimizer step, over all processes")
    augmentation: Literal["none", "crop_flip"] = Field(
        "none", description="crop_flip: shifts of an eighth of the height and mirroring"
    )


class TranslationData(Section):
    """Which sentences to translate, and into what."""

    task: ClassVar[str] = "translation"
    name: Literal["parallel_text"] = Field(description="files of sentences that translate one another line by line")
    root: str = Field("data", description="folder of SPLIT.LANGUAGE, or with .gz behind; the split train is trained on")
    source: str = Field("en", pattern=LANGUAGE, description="the language to translate from: an ending of files")
    target: str = Field("de", pattern=LANGUAGE, description="the language to translate to")
    tests: list[str] = Field(
        ["test_2016_flickr", "test_2017_flickr"], min_length=1, description="splits to test on; the first is the run's"
    )
    examples: Integer | None = Field(None, ge=1, description="the first so many training pairs; null: all")
    vocabulary: Integer = Field(8000, ge=300, description="subwords of both languages, learnt from the training pairs")
    lowercase: Truth = Field(
        True, description="make all text lower case: translations have no capitals, and BLEU ignores case"
    )
    longest: Integer = Field(128, ge=2, description="subwords of a sentence at most, its end counted")
    too_long: Literal["cut", "refuse"] = Field("cut", description="what happens to a sentence that is longer")
    batch_tokens: Integer = Field(
        4096, ge=2, description="subwords in one optimizer step of each process, of each language, padding counted"
    )


class Model(Section):
    """Which network to train, from scratch."""

    task: ClassVar[str] = "classification"
    name: ModelName = Field(
        description="mlp and cnn for digits; alexnet, resnet9 and resnet20 to 110 for CIFAR; resnet18 to 152 for ImageNet"
    )
    channels_last: Truth = Field(False, description="keep the channels of a pixel together in memory: often faster")
    compile: Truth = Field(False, description="torch.compile: a minute of compiling for faster steps")


class SegmentationModel(Section):
    """Which network of images and label maps to train, from scratch."""

    task: ClassVar[str] = "segmentation"
    name: Literal["unet"] = Field(description="unet: for images of 16 pixels or more")
    width: Integer = Field(32, ge=1, description="channels at half resolution; each of three halvings doubles them")
    channels_last: Truth = Field(False, description="keep the channels of a pixel together in memory: often faster")
    compile: Truth = Field(False, description="torch.compile: a minute of compiling for faster steps")


class TranslationModel(Section):
    """Which network of sentences to train, from scratch, and how the test sets are translated."""

    task: ClassVar[str] = "translation"
    name: Literal["transformer"] = Field(description="normalisation first, one table of embeddings")
    width: Integer = Field(256, ge=2, multiple_of=2, description="of embeddings and layers")
    heads: Integer = Field(4, ge=1, description="of each attention; they divide the width")
    layers: Integer = Field(3, ge=1, description="of the encoder, and of the decoder")
    feedforward: Integer = Field(1024, ge=1, description="width within each layer")
    dropout: Number = Field(0.1, ge=0, lt=1)
    compile: Truth = Field(False, description="torch.compile: minutes of compiling for faster steps")
    beam: Integer = Field(4, ge=1, description="hypotheses that a search follows; 1 is greedy")
    length_penalty: Number = Field(1.0, ge=0, description="0 prefers short translations, 1 compares means a subword")

    @model_validator(mode="after")
    def _heads_divide_the_width(self) -> TranslationModel:
        if self.width % self.heads:
            raise ValueError(f"model.heads={self.heads} does not divide model.width={self.width}: make it a divisor")
        return self


class Optimizer(Section):
    """How the weights change."""

    name: Literal["sgd", "adamw"] = "sgd"
    learning_rate: Number = Field(0.1, gt=0)
    momentum: Number = Field(0.9, ge=0, lt=1, description="for sgd")
    nesterov: Truth = Field(False, description="for sgd")
    weight_decay: Number = Field(0.0, ge=0)
    decoupled: Truth = Field(False, description="weight decay apart from the gradient (adamw always does)")


class Schedule(Section):
    """How the learning rate changes over the run."""

    name: Literal["constant", "cosine", "linear", "multistep", "inverse_sqrt"] = Field(
        "cosine",
        description="cosine and linear fall to zero; inverse_sqrt with the square root of time, from the end of its warmup",
    )
    warmup: Warmup = "0ba"
    milestones: list[Duration] = Field([], description="when multistep multiplies the rate by gamma")
    gamma: Number = Field(0.1, gt=0)

    @model_validator(mode="after")
    def _falls_from_somewhere(self) -> Schedule:
        if self.name == "inverse_sqrt" and not re.search("[1-9]", self.warmup):
            raise ValueError("schedule.name=inverse_sqrt needs a warmup, as schedule.warmup=1000ba or 0.1dur")
        return self


class Checkpoints(Section):
    """What is saved on the way, so that a killed run can go on."""

    interval: Duration = Field("1ep", description="how often to save")
    keep: Truth = Field(False, description="keep the last checkpoint when the run is finished")


class MutualInformation(Section):
    """Whether the logits still tell single training examples apart (Müller et al., 2019, section 4)."""

    classes: list[Integer] = Field(
        [0, 1], min_length=2, max_length=2, description="the two whose logits' difference is looked at"
    )
    examples: Integer = Field(600, ge=2, description="training examples, half of each class")
    draws: Integer = Field(6, ge=2, description="augmentations of each: one draw, and the others for its mean")
    shift: Integer | None = Field(None, ge=0, description="largest shift, pixels; null: an eighth of the height")
    mirror: Truth | None = Field(None, description="whether to mirror at random; null: unless the images are digits")


class Diagnostics(Section):
    """What is watched while training, and kept for composer-ls diagnose."""

    interval: WholeDuration | None = Field(None, description="how often; null: after each evaluation")
    examples: Integer = Field(1000, ge=1, description="of the training images, and of the test images, at most")
    classes: list[Integer] = Field(
        [0, 1, 2],
        min_length=3,
        max_length=3,
        description="the three that are projected; 100 examples of each are among those looked at",
    )
    layer: str | None = Field(
        None, description="the name of the layer that makes the logits; null: the last linear one"
    )
    mutual_information: MutualInformation | None = Field(None, description="measure it too, where images are in memory")


# One section a task; its name tells which it is, so that a mistake in it is told against that task's keys.
AnyData = Annotated[Data | SegmentationData | TranslationData, Field(discriminator="name")]
AnyModel = Annotated[Model | SegmentationModel | TranslationModel, Field(discriminator="name")]


class Recipe(Section):
    """Everything that decides a run."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    description: str = Field("", description="one line on what it is")
    needs: str = Field("", description="one line on what it needs")
    seed: Integer = Field(17, ge=0)
    duration: WholeDuration
    precision: Literal["auto", "fp32", "amp_bf16", "amp_fp16"] = Field(
        "fp32", description="auto: amp_bf16 on a GPU that has it, else fp32"
    )
    device: Literal["auto", "cpu", "gpu"] = "auto"
    microbatch_size: Integer | None = Field(None, ge=1, description="examples in one forward pass of one process")
    eval_interval: Duration = "1ep"
    data: AnyData
    model: AnyModel
    loss: Literal["cross_entropy", "dice", "cross_entropy+dice"] = Field(
        "cross_entropy", description="what is minimised; dice is for segmentation"
    )
    optimizer: Optimizer = Optimizer()
    schedule: Schedule = Schedule()
    algorithms: dict[str, dict[str, Any] | None] = Field(
        {}, description="label_smoothing, mixup, cutmix and Composer's other algorithms, each with its arguments"
    )
    diagnostics: Diagnostics | None = Field(None, description="{} watches training with the defaults; null does not")
    checkpoints: Checkpoints = Checkpoints()

    @model_validator(mode="after")
    def _of_one_task(self) -> Recipe:
        if self.model.task != self.data.task:
            raise ValueError(
                f"model.name={self.model.name} is for {self.model.task} and data.name={self.data.name} for "
                f"{self.data.task}: use data and a model of one task"
            )
        if self.task != "segmentation" and self.loss != "cross_entropy":
            raise ValueError(f"loss={self.loss} is for segmentation: use loss=cross_entropy for {self.task}")
        if self.task != "classification" and self.diagnostics is not None:
            raise ValueError(f"diagnostics look at classification only: use diagnostics=null for {self.task}")
        return self

    @property
    def task(self) -> str:
        """The kind of problem, which follows from the data: see :func:`composer_ls.training.tasks.open_task`."""
        return self.data.task

    def to_yaml(self) -> str:
        """The resolved recipe as YAML, with every default written out."""
        return yaml.safe_dump(self.model_dump(), sort_keys=False, allow_unicode=True)

    def identity(self) -> dict[str, Any]:
        """What decides the run: every key that is not at its default. Two recipes with equal ones are the same run.

        The words about it do not count, nor do algorithms that are switched off, which a smoothing of 0 is too.
        """
        content = self.model_dump(exclude={"description", "needs"}, exclude_defaults=True)
        on = {name: arguments for name, arguments in self.algorithms.items() if arguments is not None}
        if (on.get("label_smoothing") or {}).get("smoothing") == 0:
            del on["label_smoothing"]
        return content | {"algorithms": on}

    def fingerprint(self) -> str:
        """Eight characters that change when anything that decides the run changes."""
        return hashlib.sha256(json.dumps(self.identity(), sort_keys=True).encode()).hexdigest()[:8]

    @property
    def smoothing(self) -> float:
        """The smoothing of this recipe, 0 if it has none."""
        arguments = self.algorithms.get("label_smoothing", None)
        if "label_smoothing" not in self.algorithms or arguments is None:
            return 0.0
        return float(arguments.get("smoothing", 0.1))


def recipe_folder() -> Path:
    """Where the shipped recipes are: inside the installed package, or at the top of a checkout."""
    package = Path(__file__).resolve().parent.parent
    inside = package / "recipes"
    return inside if inside.is_dir() else package.parent / "recipes"


def shipped_recipes() -> dict[str, Path]:
    """The path of every shipped recipe by its name."""
    return {path.stem: path for path in sorted(recipe_folder().glob("*.yaml"), key=lambda path: path.stem)}


def recipe_path(name: str | Path) -> Path:
    """The file of a recipe given as a shipped name or as a path.

    Raises:
        RecipeError: There is no such recipe; near matches are named.

    """
    shipped = shipped_recipes()
    if str(name) in shipped:
        return shipped[str(name)]
    path = Path(name)
    if path.is_file():
        return path
    if path.suffix in {".yaml", ".yml"} or len(path.parts) > 1:
        raise RecipeError(f"there is no recipe file {path}; `composer-ls recipes` lists the shipped ones")
    near = difflib.get_close_matches(str(name), shipped, n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    raise RecipeError(f"there is no recipe {str(name)!r}: {hint}the shipped ones are {', '.join(shipped)}")


def load_recipe(name: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe and apply overrides such as ``optimizer.learning_rate=0.2``, whose values are YAML.

    Raises:
        RecipeError: No such recipe, broken YAML, an unknown key or a wrong value; the message names file, line or key.

    Example:
        >>> from composer_ls.training.recipe import load_recipe
        >>> load_recipe("digits-mlp", ["algorithms.label_smoothing.smoothing=0.2"]).smoothing
        0.2

    """
    path = recipe_path(name)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"the recipe {path} cannot be read: {error}") from error
    content = _parse_yaml(text, str(path))
    if not isinstance(content, dict):
        raise RecipeError(f"{path} holds {type(content).__name__}, but a recipe is a mapping from keys to values")
    for override in overrides:
        _apply_override(content, override)
    return _validated(content, str(path))


def _parse_yaml(text: str, where: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise RecipeError(f"{where}{place}: not valid YAML: {getattr(error, 'problem', None) or error}") from error


def _apply_override(content: dict[str, Any], override: str) -> None:
    path, equals, text = override.partition("=")
    keys = path.strip().split(".")
    if not equals or not all(keys):
        raise RecipeError(f"the override {override!r} is not key.path=value, as in optimizer.learning_rate=0.2")
    value = _parse_yaml(text, f"the override {override!r}")
    place = content
    for depth, key in enumerate(keys[:-1], 1):
        if place.get(key) is None:
            place[key] = {}
        place = place[key]
        if not isinstance(place, dict):
            raise RecipeError(
                f"the override {override!r} goes into {'.'.join(keys[:depth])}, which is a value, not a mapping"
            )
    place[keys[-1]] = value


def _validated(content: dict[str, Any], where: str) -> Recipe:
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        lines = [_explain(problem) for problem in error.errors()]
        raise RecipeError(f"{where}: " + "; ".join(lines)) from error


def _explain(problem: Mapping[str, Any]) -> str:
    keys, section = place_of(problem["loc"])
    path = ".".join(keys)
    if problem["type"] == "extra_forbidden":
        allowed = list(section.model_fields)
        near = difflib.get_close_matches(keys[-1], allowed, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        return f"unknown key {path}: {hint}allowed are {', '.join(allowed)}"
    if problem["type"] == "missing":
        return f"the key {path} is missing"
    if problem["type"] == "union_tag_not_found":
        return f"the key {path}.name is missing"
    if problem["type"] == "union_tag_invalid":
        expected = " or ".join(problem["ctx"]["expected_tags"].rsplit(", ", 1))
        return f"{path}.name is {problem['input']['name']!r}: input should be {expected}"
    message = problem["msg"].removeprefix("Value error, ")
    return f"{path} is {problem['input']!r}: {message[:1].lower()}{message[1:]}" if path else message


def place_of(loc: Sequence[str | int]) -> tuple[list[str], type[BaseModel]]:
    """The keys that lead to a mistake, and the section that it is in, or that section around it that has a schema.

    Where a section is one of several, pydantic puts the ``name`` that has told which between the keys.
    """
    section: type[BaseModel] = Recipe
    keys, rest = [], [str(part) for part in loc]
    while rest:
        keys.append(rest.pop(0))
        field = section.model_fields.get(keys[-1])
        if field is None:
            break
        choices = [one for one in (field.annotation, *typing.get_args(field.annotation)) if _is_section(one)]
        if field.discriminator and rest:
            name = rest.pop(0)
            choices = [one for one in choices if name in typing.get_args(one.model_fields["name"].annotation)]
        if not choices or not rest:
            break
        section = choices[0]
    return keys + rest, section


def _is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)
