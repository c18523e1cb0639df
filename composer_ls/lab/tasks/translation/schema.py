"""Translation's part of a recipe: its data, its network, and how the test sets are translated."""

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
    """Which sentences to translate, and into what."""

    name: Literal["parallel_text"] = Field(description="files of sentences that translate one another line by line")
    root: str = Field("data", description="folder of SPLIT.LANGUAGE, or with .gz behind; the split train is trained on")
    source: str = Field("en", pattern=LANGUAGE, description="the language to translate from: an ending of files")
    target: str = Field("de", pattern=LANGUAGE, description="the language to translate to")
    tests: list[str] = Field(
        ["test_2016_flickr", "test_2017_flickr"], min_length=1, description="splits to test on; the first is the run's"
    )
    examples: Integer | None = Field(None, ge=1, description="the first so many training pairs; null: all")
    vocabulary: Integer = Field(
        8000,
        ge=300,
        description="subwords of both languages, learnt from the training pairs; not used with model.weights",
    )
    lowercase: Truth = Field(
        False, description="make all text lower case: translations have no capitals, and BLEU ignores case"
    )
    longest: Integer = Field(128, ge=2, description="subwords of a sentence at most, its end counted")
    too_long: Literal["cut", "refuse"] = Field("cut", description="what happens to a sentence that is longer")
    batch_tokens: Integer = Field(
        4096, ge=2, description="subwords in one optimizer step of each process, of each language, padding counted"
    )


class TranslationModel(ModelSection):
    """Which network of transformers to train, and how the test sets are translated."""

    name: Family = Field(description="a sequence-to-sequence model_type of transformers, after transformers/")
    arguments: dict[str, Any] = Field(
        {}, description="of the model type's configuration, such as d_model; the others have its defaults"
    )
    weights: str | None = Field(
        None, description="folder of a pretrained network of this type, with its tokenizer; null: new weights"
    )
    beam: Integer = Field(4, ge=1, description="hypotheses that a search follows; 1 is greedy")
    length_penalty: Number = Field(1.0, ge=0, description="0 prefers short translations, 1 compares means per subword")


MODEL_FOLDER = "model"

SCHEMA = TaskSchema("translation", TranslationData, TranslationModel, files=(MODEL_FOLDER, "translations.*"))
