"""The translation task: batches, network and measurements of a recipe."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import composer.algorithms
import torch
from composer import Trainer
from composer.core import Algorithm, Callback, DataSpec, Evaluator, State
from composer.loggers import Logger
from composer.metrics import LanguageCrossEntropy, MaskedAccuracy
from composer.models import HuggingFaceModel
from composer.utils import dist
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data.distributed import DistributedSampler

from composer_ls.composition.mixers import mixers_among
from composer_ls.diagnostics.tokens import token_scores
from composer_ls.distillation import Distillation
from composer_ls.errors import RecipeError
from composer_ls.lab.images.epoch_sampler import EpochSampler
from composer_ls.lab.recipe.recipe import Recipe
from composer_ls.lab.run_folder.files import crc32
from composer_ls.lab.tasks.task import Measured, Task
from composer_ls.lab.tasks.translation.batches import IGNORED, Row, TokenBatches, collator, filled_up
from composer_ls.lab.tasks.translation.bleu import bleu, bleu_metric
from composer_ls.lab.tasks.translation.data import Pairs, doubts, read_pairs
from composer_ls.lab.tasks.translation.networks import language_doubts, make_network, make_tokenizer
from composer_ls.lab.tasks.translation.report import REPORT
from composer_ls.lab.tasks.translation.schema import MODEL_FOLDER, TranslationData, TranslationModel
from composer_ls.lab.tasks.translation.subwords import encode
from composer_ls.lab.tasks.translation.translator import Translator

__all__ = ["TASK", "Translation", "encode_pairs", "evaluation_logits"]

log = logging.getLogger(__name__)


class Translation(Task):
    """Parallel text, subwords, a network of transformers in Composer's ``HuggingFaceModel``, cross entropy over subwords.

    The predictions of a run are, for every subword of the test references, its ``log_probability`` (M,), the ``confidence`` in
    the most likely one (M,), and whether that was right, ``correct``. A run also leaves ``model/`` as ``save_pretrained``
    writes it, with the tokenizer, and ``translations.SPLIT.LANGUAGE`` with one line for each sentence.
    """

    def __init__(self, recipe: Recipe, device: torch.device | str) -> None:
        assert isinstance(recipe.data, TranslationData)
        assert isinstance(recipe.model, TranslationModel)
        if recipe.microbatch_size is not None:
            raise RecipeError(
                f"microbatch_size={recipe.microbatch_size} does not go with translation, whose batches are of tokens: use "
                f"microbatch_size=null, and a smaller data.batch_tokens if memory is short"
            )
        if recipe.model.compile:
            raise RecipeError(
                "model.compile=true does not go with translation: PyTorch cannot compile the backward pass of these networks for "
                "batches of many shapes; use model.compile=false"
            )
        if recipe.data.source == recipe.data.target:
            raise RecipeError(
                f"data.source and data.target are both {recipe.data.source}: set one of them to the other language"
            )
        self._recipe, self._data, self._model = recipe, recipe.data, recipe.model
        data = recipe.data
        bleu_metric(data.lowercase, data.target)  # now, so that a missing package is told before training
        train, *tests = (read_pairs(data.root, split, data.source, data.target) for split in ("train", *data.tests))
        train = train.first(data.examples)
        self._tests = dict(zip(data.tests, tests, strict=True))
        self._tokenizer = make_tokenizer(recipe.model, data, [*train.source, *train.target])
        self._network = make_network(recipe.model, data, self._tokenizer)  # now, so that errors come early
        self.num_classes = self._network.config.vocab_size
        self._warnings: list[str] = []
        for doubt in doubts(train, tests) + language_doubts(self._tokenizer, data):
            self._warn(doubt)
        self._train, *rows = (encode_pairs(pairs, self._tokenizer, data, self._warn) for pairs in (train, *tests))
        self._test_rows = dict(zip(data.tests, rows, strict=True))
        self.facts = {
            "languages": [data.source, data.target],
            "vocabulary": self.num_classes,
            "examples": {"train": len(train), "test": len(tests[0])},
        }

    def check(self, algorithms: Sequence[Algorithm]) -> None:
        """Raise a RecipeError if an algorithm is for images, or cannot read these batches."""
        unfit = [algorithm for algorithm, _ in mixers_among(algorithms)]
        unfit += [algorithm for algorithm in algorithms if isinstance(algorithm, Distillation)]
        if unfit:
            name = type(unfit[0]).__name__
            raise RecipeError(f"{name} is for images and does not go with translation: take it out of algorithms")
        if any(type(algorithm) is composer.algorithms.LabelSmoothing for algorithm in algorithms):
            raise RecipeError(
                "algorithms.label_smoothing.implementation=composer does not reach the loss of a Hugging Face network: "
                "use implementation=composer_ls"
            )

    def known_of_the_data(self) -> dict[str, Any]:
        """The numbers of sentences, and checksums of the subwords of the translations."""
        parts = {"train": self._train, **self._test_rows}
        subwords = {
            f"{name} text": crc32(torch.tensor([token for row in rows for token in row["labels"]]))
            for name, rows in parts.items()
        }
        return super().known_of_the_data() | subwords

    def label_counts(self) -> Tensor:
        """How often each subword occurs in the training translations, including end tokens, ``(K,)``."""
        labels = torch.tensor([token for row in self._train for token in row["labels"]])
        return torch.bincount(labels, minlength=self.num_classes)

    def model(self) -> HuggingFaceModel:
        """The network that the recipe describes, which computes its loss itself."""
        self._network = make_network(self._model, self._data, self._tokenizer)
        self._network.config.use_cache = False  # a cache of keys and values is of no use in training, and warns
        metrics = [LanguageCrossEntropy(ignore_index=IGNORED), MaskedAccuracy(ignore_index=IGNORED)]
        return HuggingFaceModel(self._network, self._tokenizer, use_logits=True, eval_metrics=metrics)

    def training_loader(self) -> DataSpec:
        """Batches of the training pairs."""
        seed = self._recipe.seed
        batches, processes = self._batches(self._train, seed), dist.get_world_size()
        if len(batches) < processes:
            raise RecipeError(
                f"data.batch_tokens={self._data.batch_tokens} gives {len(batches)} batches for {processes} processes: make it "
                f"smaller, or use fewer processes"
            )
        return _loader(EpochSampler(batches, seed))

    def evaluation_loader(self) -> DataSpec:
        """The first test set, teacher-forced. Every sentence counts once, in any number of processes."""
        world, rank = dist.get_world_size(), dist.get_global_rank()
        batches = filled_up(self._batches(self._test_rows[self._data.tests[0]], None), world)
        return _loader(DistributedSampler(batches, world, rank, shuffle=False))

    def _batches(self, rows: list[Row], seed: int | None) -> TokenBatches:
        return TokenBatches(rows, self._data.batch_tokens, seed, collator(self._tokenizer, self._network))

    def measure(self, trainer: Trainer) -> Measured:
        """BLEU, likelihood and calibration on every test set; those of the first become the run's metrics."""
        measuring = _Measuring(self)
        trainer.state.callbacks.append(measuring)
        trainer.eval(eval_dataloader=Evaluator(label="measuring", dataloader=self.evaluation_loader()))
        assert measuring.measured is not None
        return measuring.measured

    def measured(self) -> Measured:
        """The measurements of the current network on the test sets."""
        network, data = self._network.eval(), self._data
        translator = Translator(network, self._tokenizer, data.too_long)
        tests, files, scores, signature = {}, {}, {}, ""
        for name, pairs in self._tests.items():
            logits = evaluation_logits(translator, self._test_rows[name], data.batch_tokens)
            (scores[name],) = token_scores(logits, ignore_index=IGNORED)
            translations = translator.translate(pairs.source, name=f"the source of {name}", warn=self._warn)
            score, signature = bleu(translations, pairs.target, data.lowercase, data.target)
            tests[name] = REPORT.measure(scores[name]._asdict(), bleu=score)
            files[f"translations.{name}.{data.target}"] = "".join(f"{line}\n" for line in translations)
        weights = copy.deepcopy(network.state_dict())  # an algorithm such as EMA replaces them after evaluation

        def save(folder: Path) -> None:
            network.config.use_cache = True
            network.save_pretrained(folder, state_dict=weights)
            self._tokenizer.save_pretrained(folder)

        return Measured(
            metrics=tests[data.tests[0]],
            units=REPORT.units,
            predictions=scores[data.tests[0]]._asdict(),
            facts={"tests": tests, "bleu_signature": signature},
            files={MODEL_FOLDER: save, **files},
            warnings=[f"{text[0].upper()}{text[1:]}." for text in self._warnings],
        )

    def _warn(self, text: str) -> None:
        """Log a warning, once, and keep it for the result."""
        if text not in self._warnings:
            log.warning(text)
            self._warnings.append(text)


TASK = Translation


def _loader(sampler: DistributedSampler[Any]) -> DataSpec:
    loader = DataLoader(sampler.dataset, batch_size=1, sampler=sampler, collate_fn=lambda one: one[0])
    return DataSpec(
        loader,
        split_batch=lambda batch, size: [batch],  # data.batch_tokens already limits its size
        get_num_samples_in_batch=lambda batch: len(batch["labels"]),
    )


def encode_pairs(
    pairs: Pairs, tokenizer: Any, data: TranslationData, warn: Callable[[str], object] = log.warning
) -> list[Row]:
    """The ids of sentences and their translations; see :func:`~composer_ls.lab.tasks.translation.subwords.encode`."""
    limits = (data.longest, data.too_long)
    source = encode(tokenizer, pairs.source, *limits, f"the source of {pairs.name}", warn=warn)
    target = encode(tokenizer, pairs.target, *limits, f"the target of {pairs.name}", target=True, warn=warn)
    return [{"input_ids": left, "labels": right} for left, right in zip(source, target, strict=True)]


def evaluation_logits(translator: Translator, rows: list[Row], batch_tokens: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Logits ``(N, K, T)`` and labels ``(N, T)`` of every batch, with the references before each subword as input."""
    network = translator.network
    for batch in TokenBatches(rows, batch_tokens, None, collator(translator.tokenizer, network)):
        on_device = {key: tensor.to(network.device) for key, tensor in batch.items()}
        labels = on_device.pop("labels")
        with torch.no_grad():
            yield network(**on_device, use_cache=False).logits.movedim(-1, 1), labels


class _Measuring(Callback):
    """Measures while algorithms that evaluate with other weights, such as EMA, have put them in place."""

    def __init__(self, task: Translation) -> None:
        self._task = task
        self.measured: Measured | None = None

    def eval_start(self, state: State, logger: Logger) -> None:
        """Measure."""
        self.measured = self._task.measured()
