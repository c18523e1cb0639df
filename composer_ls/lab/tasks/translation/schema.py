"""Translation's part of a recipe: its data, its network, and how the test sets are translated."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from composer_ls.lab.recipe.recipe import TaskSchema
from composer_ls.lab.recipe.sections import DataSection, Integer, ModelSection, Number, Truth

__all__ = ["SCHEMA", "SUBWORDS_FILE", "WEIGHTS_FILE", "TranslationData", "TranslationModel"]

LANGUAGE = r"^[A-Za-z][A-Za-z0-9_-]*$"


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
    vocabulary: Integer = Field(8000, ge=300, description="subwords of both languages, learnt from the training pairs")
    lowercase: Truth = Field(
        True, description="make all text lower case: translations have no capitals, and BLEU ignores case"
    )
    longest: Integer = Field(128, ge=2, description="subwords of a sentence at most, its end counted")
    too_long: Literal["cut", "refuse"] = Field("cut", description="what happens to a sentence that is longer")
    batch_tokens: Integer = Field(
        4096, ge=2, description="subwords in one optimizer step of each process, of each language, padding counted"
    )


class TranslationModel(ModelSection):
    """Which network of sentences to train, from scratch, and how the test sets are translated."""

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


SUBWORDS_FILE, WEIGHTS_FILE = "subwords.json", "model.safetensors"

SCHEMA = TaskSchema(
    "translation", TranslationData, TranslationModel, files=(SUBWORDS_FILE, WEIGHTS_FILE, "translations.*")
)
