"""The translation sections of a recipe: its data, its network, and how the test sets are translated."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from composer_ls.lab.recipe.recipe import TaskSchema
from composer_ls.lab.recipe.sections import DataSection, Integer, ModelSection, Number, Truth

__all__ = ["MODEL_FOLDER", "PREFIX", "SCHEMA", "TranslationData", "TranslationModel"]

LANGUAGE = r"^[A-Za-z][A-Za-z0-9_-]*$"
PREFIX = "transformers/"
Family = Literal[
    "transformers/bart", "transformers/blenderbot", "transformers/blenderbot-small", "transformers/led",
    "transformers/longt5", "transformers/m2m_100", "transformers/marian", "transformers/mbart", "transformers/mt5",
    "transformers/mvp", "transformers/pegasus", "transformers/pegasus_x", "transformers/plbart",
    "transformers/switch_transformers", "transformers/t5", "transformers/umt5",
]  # fmt: skip


class TranslationData(DataSection):
    """Which sentences to translate, and from which language to which."""

    name: Literal["parallel_text"] = Field(description="parallel text: two files that match line by line")
    root: str = Field(
        "data", description="folder with files SPLIT.LANGUAGE or SPLIT.LANGUAGE.gz; the split train is for training"
    )
    source: str = Field("en", pattern=LANGUAGE, description="the language to translate from: the file extension")
    target: str = Field("de", pattern=LANGUAGE, description="the language to translate to")
    tests: list[str] = Field(
        ["test_2016_flickr", "test_2017_flickr"],
        min_length=1,
        description="splits to test on; the run's metrics are those of the first",
    )
    examples: Integer | None = Field(None, ge=1, description="train on the first pairs only, this many; null: all")
    vocabulary: Integer = Field(
        8000,
        ge=300,
        description="subwords of both languages, learnt from the training pairs; not used with model.weights",
    )
    lowercase: Truth = Field(
        False, description="make all text lower case: translations have no capitals, and BLEU ignores case"
    )
    longest: Integer = Field(128, ge=2, description="maximum subwords in a sentence, including its end token")
    too_long: Literal["cut", "refuse"] = Field("cut", description="what happens to a sentence that is longer")
    batch_tokens: Integer = Field(
        4096,
        ge=2,
        description="maximum subwords in one optimizer step of each process, per language, including padding",
    )


class TranslationModel(ModelSection):
    """Which network of transformers to train, and how the test sets are translated."""

    name: Family = Field(description="a sequence-to-sequence model_type of transformers, after transformers/")
    arguments: dict[str, Any] = Field(
        {}, description="keys of the model type's configuration, such as d_model; the others keep their defaults"
    )
    weights: str | None = Field(
        None, description="folder of a pretrained network of this type, with its tokenizer; null: new weights"
    )
    beam: Integer = Field(4, ge=1, description="hypotheses that beam search keeps; 1 is greedy")
    length_penalty: Number = Field(1.0, ge=0, description="0 favors short translations, 1 compares means per subword")


MODEL_FOLDER = "model"

SCHEMA = TaskSchema("translation", TranslationData, TranslationModel, files=(MODEL_FOLDER, "translations.*"))
