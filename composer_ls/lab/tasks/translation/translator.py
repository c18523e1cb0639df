"""A trained run as something that translates lines."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from composer_ls.errors import InputError, RunFolderError
from composer_ls.lab.recipe.recipe import Recipe
from composer_ls.lab.run_folder.folder import read_recipe
from composer_ls.lab.tasks.translation.batches import encode_lines, padded
from composer_ls.lab.tasks.translation.beam_search import beam_search, check_search
from composer_ls.lab.tasks.translation.networks import StepByStep, Transformer
from composer_ls.lab.tasks.translation.schema import SUBWORDS_FILE, WEIGHTS_FILE, TranslationData, TranslationModel
from composer_ls.lab.tasks.translation.subwords import BEGIN, END, PAD, Subwords

__all__ = ["Translator"]


class Translator:
    """A network with its subwords.

    Args:
        network: On the device to use.
        subwords: Of both languages.
        too_long: What happens to a sentence that is too long for the network: ``"cut"`` or ``"refuse"``.
        beam: How many hypotheses are followed, unless :meth:`translate` is told otherwise; 1 is greedy.
        length_penalty: Likewise; see :func:`~composer_ls.lab.tasks.translation.beam_search.beam_search`.

    """

    def __init__(
        self,
        network: Transformer,
        subwords: Subwords,
        too_long: str = "cut",
        beam: int = 4,
        length_penalty: float = 1.0,
    ) -> None:
        self.network, self.subwords, self.too_long = network, subwords, too_long
        self.beam, self.length_penalty = beam, length_penalty

    @classmethod
    def load(cls, run: str | Path, device: torch.device | str = "cpu") -> Translator:
        """The network that a finished run left.

        Raises:
            RunFolderError: The folder is not that of a finished run of a translation recipe.

        """
        folder = Path(run)
        recipe = read_recipe(folder) if folder.is_dir() else None
        if recipe is None:
            raise RunFolderError(
                f"there is no run in {folder.absolute()}: give the run folder that composer-ls train left"
            )
        if recipe.task != "translation":
            raise RunFolderError(
                f"{folder} is a run of the recipe {recipe.name}, which does not translate: give the run of a recipe such as "
                f"multi30k-transformer"
            )
        if not (folder / "result.json").is_file():
            raise RunFolderError(
                f"the run in {folder} is not finished: give the same composer-ls train command to go on"
            )
        subwords = Subwords.load(folder / SUBWORDS_FILE)
        network = make_network(recipe, len(subwords))
        try:
            network.load_state_dict(load_file(folder / WEIGHTS_FILE))
        except (OSError, SafetensorError, RuntimeError) as error:
            reason = str(error).splitlines()[0]
            raise RunFolderError(
                f"the weights in {folder / WEIGHTS_FILE} cannot be read ({reason}): train the run again with --overwrite"
            ) from error
        return make_translator(recipe, network.to(device).eval(), subwords)

    def translate(
        self,
        lines: Sequence[str],
        *,
        beam: int | None = None,
        length_penalty: float | None = None,
        temperature: float = 1.0,
        batch: int = 64,
        name: str = "the input",
        first: int = 1,
    ) -> list[str]:
        """A translation of each line, in order; blank lines give empty ones.

        Args:
            lines: Sentences.
            beam: Instead of the translator's.
            length_penalty: Instead of the translator's.
            temperature: Of the softmax.
            batch: How many sentences are translated at once: it changes time and memory only.
            name: Where the lines are from, for messages.
            first: The number of the first line, for messages.

        Raises:
            InputError: An option is out of range.
            TextError: A sentence is longer than the network allows, and the recipe says to refuse it.

        """
        beam = self.beam if beam is None else beam
        length_penalty = self.length_penalty if length_penalty is None else length_penalty
        check_search(beam, length_penalty, temperature)
        if batch < 1:
            raise InputError(f"batch is {batch}, but must be at least 1: the sentences that are translated at once")
        options: dict[str, Any] = {"beam": beam, "length_penalty": length_penalty, "temperature": temperature}
        rows = encode_lines(lines, self.subwords, self.network.longest, self.too_long, name, first)
        places = sorted((place for place, line in enumerate(lines) if line.strip()), key=lambda place: len(rows[place]))
        found: list[list[int]] = [[] for _ in lines]
        for start in range(0, len(places), batch):
            chosen = places[start : start + batch]
            for place, tokens in zip(chosen, self._search([rows[place] for place in chosen], options), strict=True):
                found[place] = tokens
        return self.subwords.decode(found)

    @torch.no_grad()
    def _search(self, rows: list[list[int]], options: dict[str, Any]) -> list[list[int]]:
        source = padded(rows).to(self.network.embeddings.weight.device)
        limits = length_limits((source != PAD).sum(1), self.network.longest)
        found, _ = beam_search(
            StepByStep(self.network, source), limits, begin=BEGIN, end=END, forbidden=(PAD,), **options
        )
        return found


def length_limits(lengths: Tensor, longest: int) -> Tensor:
    """How many subwords a translation may have: half as many again as its source, and ten."""
    return (lengths * 3 // 2 + 10).clamp(max=longest - 1)


def make_network(recipe: Recipe, vocabulary: int) -> Transformer:
    """The network of a translation recipe, with new weights."""
    model, data = recipe.model, recipe.data
    assert isinstance(model, TranslationModel)
    assert isinstance(data, TranslationData)
    sizes = (model.width, model.heads, model.layers, model.feedforward)
    return Transformer(vocabulary, *sizes, model.dropout, data.longest)


def make_translator(recipe: Recipe, network: Transformer, subwords: Subwords) -> Translator:
    """A translator that searches as a translation recipe says."""
    model, data = recipe.model, recipe.data
    assert isinstance(model, TranslationModel)
    assert isinstance(data, TranslationData)
    return Translator(network, subwords, data.too_long, model.beam, model.length_penalty)
