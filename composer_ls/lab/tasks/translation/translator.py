"""Translates lines with a finished run, or with any sequence-to-sequence model folder of Hugging Face."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from composer_ls.errors import InputError, RunFolderError
from composer_ls.lab.run_folder.folder import RunFolder, read_recipe
from composer_ls.lab.tasks.translation.batches import collator
from composer_ls.lab.tasks.translation.data import line_numbers
from composer_ls.lab.tasks.translation.networks import load_network, load_tokenizer, positions
from composer_ls.lab.tasks.translation.packages import transformers
from composer_ls.lab.tasks.translation.schema import MODEL_FOLDER, TranslationData
from composer_ls.lab.tasks.translation.subwords import decode, encode

__all__ = ["Temperature", "Translator"]

log = logging.getLogger(__name__)

LONGEST = 512
"""Maximum subwords in a sentence if neither the network nor its tokenizer has a limit."""


class Translator:
    """A network with its tokenizer.

    Args:
        network: Of transformers, on the device to use, in evaluation mode. Its ``generation_config`` has the search settings.
        tokenizer: Its tokenizer.
        too_long: What happens to a sentence that is too long for the network: ``"cut"`` or ``"refuse"``.

    """

    def __init__(self, network: Any, tokenizer: Any, too_long: str = "cut") -> None:
        self.network, self.tokenizer, self.too_long = network, tokenizer, too_long
        self.longest = int(min(positions(network.config) or LONGEST, tokenizer.model_max_length))
        self._collate = collator(tokenizer, network)

    @classmethod
    def load(cls, folder: str | Path, device: torch.device | str = "cpu") -> Translator:
        """The network that a finished run left, or that ``save_pretrained`` wrote to a folder.

        Raises:
            RunFolderError: The folder is neither.

        """
        folder, too_long = Path(folder), "cut"
        recipe = read_recipe(folder) if folder.is_dir() else None
        if recipe is None and not (folder / "config.json").is_file():
            raise RunFolderError(
                f"there is no run in {folder.absolute()}, and no config.json: give the run folder that composer-ls train left, "
                f"or a folder that save_pretrained of transformers wrote"
            )
        if recipe is not None:
            if not isinstance(recipe.data, TranslationData):
                raise RunFolderError(
                    f"{folder} is a run of the recipe {recipe.name}, which does not translate: give the run of a recipe such "
                    f"as multi30k-transformer"
                )
            if RunFolder(folder, recipe).trained_result() is None:
                raise RunFolderError(
                    f"the run in {folder} is not finished: give the same composer-ls train command to go on"
                )
            folder, too_long = folder / MODEL_FOLDER, recipe.data.too_long

        def refusal(reason: str) -> RunFolderError:
            return RunFolderError(f"{folder}: {reason}")

        tokenizer = load_tokenizer(folder, refusal)
        return cls(load_network(folder, tokenizer, refusal).to(device), tokenizer, too_long)

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
        warn: Callable[[str], object] = log.warning,
    ) -> list[str]:
        """A translation of each line, in order; blank lines give empty ones.

        Args:
            lines: Sentences.
            beam: How many hypotheses are kept, 1 is greedy; ``None`` for the network's ``generation_config``.
            length_penalty: 0 favors short translations, 1 compares means per subword; ``None`` likewise.
            temperature: Of the softmax.
            batch: How many sentences are translated at once. It affects only time and memory.
            name: Where the lines come from, for messages.
            first: The number of the first line, for messages.
            warn: Receives warnings about sentences that were cut, and translations that may be.

        Raises:
            InputError: An option is out of range.
            TextError: A sentence is longer than the network allows, with ``too_long="refuse"``.

        """
        options = self._options(beam, length_penalty, temperature)
        if batch < 1:
            raise InputError(f"batch is {batch}, but must be at least 1: the sentences that are translated at once")
        rows = encode(self.tokenizer, lines, self.longest, self.too_long, name, first, warn=warn)
        places = sorted((place for place, line in enumerate(lines) if line.strip()), key=lambda place: len(rows[place]))
        found, unfinished = [""] * len(lines), []
        for start in range(0, len(places), batch):
            chosen = places[start : start + batch]
            inputs = self._collate([{"input_ids": rows[place]} for place in chosen])
            inputs = {key: tensor.to(self.network.device) for key, tensor in inputs.items()}
            with torch.no_grad():
                tokens = self.network.generate(**inputs, **options)
            for place, text, full in zip(chosen, decode(self.tokenizer, tokens), self._full(tokens), strict=True):
                found[place] = text
                unfinished += [place] * full
        if unfinished:
            warn(
                f"{name}: {len(unfinished)} of {len(lines):,} translations reach the maximum of {self.longest} subwords, so their "
                f"ends may be missing ({line_numbers(sorted(unfinished), first)})"
            )
        return found

    def _full(self, tokens: Tensor) -> list[bool]:
        """Whether each row goes on to the last place, where the search puts an end by force."""
        if tokens.shape[1] < self.longest:
            return [False] * len(tokens)
        ends = torch.tensor([self.tokenizer.pad_token_id, self.tokenizer.eos_token_id], device=tokens.device)
        return (~torch.isin(tokens[:, -2], ends)).tolist()

    def _options(self, beam: int | None, length_penalty: float | None, temperature: float) -> dict[str, Any]:
        beam = self.network.generation_config.num_beams if beam is None else beam
        if beam < 1:
            raise InputError(f"beam is {beam}, but must be at least 1, which is greedy decoding; 4 is usual")
        if length_penalty is not None and not 0 <= length_penalty < float("inf"):
            raise InputError(f"length_penalty is {length_penalty}, but must be at least 0; 0.6 to 1 is usual")
        if not 0 < temperature < float("inf"):
            raise InputError(
                f"temperature is {temperature}, but must be more than 0; 1 leaves the probabilities as they are"
            )
        options: dict[str, Any] = {"num_beams": beam, "max_length": self.longest, "do_sample": False}
        if beam == 1:
            options["length_penalty"] = 1.0  # transformers warns of any other value, which has no effect
        elif length_penalty is not None:
            options["length_penalty"] = length_penalty
        if temperature != 1:
            options["logits_processor"] = [Temperature(temperature)]
        return options


class Temperature(transformers.LogitsProcessor):
    r"""Log probabilities of :math:`\mathrm{softmax}(x/T)`, which beam search can add up.

    Dividing log probabilities by T without normalizing again would change nothing: every sum keeps its rank in the search.

    Args:
        temperature: T, above 0.

    Example:
        >>> import torch
        >>> from composer_ls.lab.tasks.translation.translator import Temperature
        >>> logits = torch.tensor([[2.0, 0.0]])
        >>> torch.allclose(Temperature(2.0)(None, logits.log_softmax(-1)), (logits / 2).log_softmax(-1))
        True

    """

    def __init__(self, temperature: float) -> None:
        self.temperature = temperature

    def __call__(self, input_ids: Any, scores: Tensor) -> Tensor:
        """The log probabilities (N, K), from logits or log probabilities (N, K)."""
        return (scores / self.temperature).log_softmax(-1)
