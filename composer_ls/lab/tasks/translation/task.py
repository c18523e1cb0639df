"""Translation: from a recipe to batches, a network and what to measure of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from composer import Trainer
from composer.core import Algorithm, Callback, DataSpec, Evaluator, State
from composer.loggers import Logger
from composer.models import ComposerClassifier
from composer.utils import dist
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Sampler
from torch.utils.data.distributed import DistributedSampler
from torchmetrics import Metric, MetricCollection

from composer_ls.composition.mixers import mixers_among
from composer_ls.diagnostics.tokens import token_scores
from composer_ls.distillation import Distillation
from composer_ls.errors import RecipeError
from composer_ls.lab.images.epoch_sampler import EpochSampler
from composer_ls.lab.recipe.recipe import Recipe
from composer_ls.lab.tasks.task import Measured, Task
from composer_ls.lab.tasks.translation.batches import IGNORED, Batch, EncodedPairs, TokenBatches, encode_pairs
from composer_ls.lab.tasks.translation.bleu import bleu, require_sacrebleu
from composer_ls.lab.tasks.translation.data import Pairs, read_pairs
from composer_ls.lab.tasks.translation.networks import Transformer
from composer_ls.lab.tasks.translation.report import REPORT
from composer_ls.lab.tasks.translation.schema import SUBWORDS_FILE, WEIGHTS_FILE, TranslationData, TranslationModel
from composer_ls.lab.tasks.translation.subwords import Subwords
from composer_ls.lab.tasks.translation.translator import make_network, make_translator
from composer_ls.losses import cross_entropy

__all__ = ["TASK", "Translation", "evaluation_logits"]


class Translation(Task):
    """Parallel text, subwords learnt from its training pairs, a Transformer, cross entropy over subwords.

    The predictions of a run are, for every subword of the test references, its ``log_probability`` (M,), the ``confidence`` in
    the most likely one (M,), and whether that was right, ``correct``. A run also leaves ``subwords.json`` and
    ``model.safetensors``, all that ``composer-ls translate`` needs, and ``translations.SPLIT.LANGUAGE`` with one line for each
    sentence.
    """

    def __init__(self, recipe: Recipe, device: torch.device | str) -> None:
        assert isinstance(recipe.data, TranslationData)
        assert isinstance(recipe.model, TranslationModel)
        if recipe.microbatch_size is not None:
            raise RecipeError(
                f"microbatch_size={recipe.microbatch_size} does not go with translation, whose batches are of tokens: use "
                f"microbatch_size=null, and a smaller data.batch_tokens if memory is short"
            )
        self._recipe, self._data, self._model, self._device = recipe, recipe.data, recipe.model, device
        data = recipe.data
        require_sacrebleu()  # now, and not after hours of training
        train = self._read("train")
        if data.examples is not None:
            train = train.first(data.examples)
        self._tests = {name: self._read(name) for name in data.tests}
        self._subwords = Subwords.learn([*train.source, *train.target], data.vocabulary, data.lowercase)
        self._train = self._encoded(train)
        self._encoded_tests = {name: self._encoded(pairs) for name, pairs in self._tests.items()}
        self._network: Transformer | None = None
        self.num_classes = len(self._subwords)
        self.facts = {
            "languages": [data.source, data.target],
            "vocabulary": self.num_classes,
            "examples": {"train": len(train), "test": len(self._tests[data.tests[0]])},
        }

    def _read(self, split: str) -> Pairs:
        return read_pairs(self._data.root, split, self._data.source, self._data.target)

    def _encoded(self, pairs: Pairs) -> EncodedPairs:
        return encode_pairs(pairs, self._subwords, self._data.longest, self._data.too_long)

    def check(self, algorithms: Sequence[Algorithm]) -> None:
        """Raise a RecipeError if an algorithm is for images."""
        unfit = [algorithm for algorithm, _ in mixers_among(algorithms)]
        unfit += [algorithm for algorithm in algorithms if isinstance(algorithm, Distillation)]
        if unfit:
            name = type(unfit[0]).__name__
            raise RecipeError(f"{name} is for images and does not go with translation: take it out of algorithms")

    def label_counts(self) -> Tensor:
        """How often each subword stands in the training translations, ends included, ``(K,)``."""
        labels = torch.tensor([token for row in self._train.target for token in row])
        return torch.bincount(labels, minlength=self.num_classes)

    def model(self) -> ComposerClassifier:
        """The Transformer that the recipe describes, and cross entropy over subwords."""
        self._network = make_network(self._recipe, self.num_classes)
        return ComposerClassifier(
            self._network,
            num_classes=self.num_classes,
            loss_fn=cross_entropy,
            train_metrics=MetricCollection([]),
            val_metrics=MetricCollection({"CrossEntropy": _TokenMean("loss"), "TokenAccuracy": _TokenMean("accuracy")}),
        )

    def training_loader(self) -> DataSpec:
        """Batches of tokens."""
        batches = TokenBatches(self._train, self._data.batch_tokens, self._recipe.seed)
        return _loader(batches, EpochSampler(batches, self._recipe.seed))

    def evaluation_loader(self) -> DataSpec:
        """The first test set, teacher-forced."""
        batches = TokenBatches(self._encoded_tests[self._data.tests[0]], self._data.batch_tokens, None)
        order: DistributedSampler[Batch] = DistributedSampler(
            batches, dist.get_world_size(), dist.get_global_rank(), shuffle=False
        )
        return _loader(batches, order)

    def measure(self, trainer: Trainer) -> Measured:
        """BLEU, likelihood and calibration on every test set; those of the first are the run's metrics."""
        measuring = _Measuring(self)
        trainer.state.callbacks.append(measuring)
        trainer.eval(eval_dataloader=Evaluator(label="measuring", dataloader=self.evaluation_loader()))
        assert measuring.measured is not None
        return measuring.measured

    def measured(self) -> Measured:
        """What the network as it is now does on the test sets."""
        assert self._network is not None
        network, data = self._network.eval(), self._data
        translator = make_translator(self._recipe, network, self._subwords)
        tests, files, scores, signature = {}, {}, {}, ""
        for name, pairs in self._tests.items():
            logits = evaluation_logits(network, self._encoded_tests[name], data.batch_tokens)
            (scores[name],) = token_scores(logits, ignore_index=IGNORED)
            translations = translator.translate(pairs.source)
            score, signature = bleu(translations, pairs.target, data.lowercase)
            tests[name] = REPORT.measure(scores[name]._asdict(), bleu=score)
            files[f"translations.{name}.{data.target}"] = "".join(f"{line}\n" for line in translations)
        weights = {name: tensor.detach().cpu() for name, tensor in network.state_dict().items()}
        return Measured(
            metrics=tests[data.tests[0]],
            units=REPORT.units,
            predictions=scores[data.tests[0]]._asdict(),
            facts={"tests": tests, "bleu_signature": signature},
            files={SUBWORDS_FILE: self._subwords.to_json(), WEIGHTS_FILE: weights, **files},
        )


TASK = Translation


def evaluation_logits(network: Transformer, pairs: EncodedPairs, batch_tokens: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Logits ``(N, K, T)`` and labels ``(N, T)`` of every batch, given the references up to each subword."""
    device = network.embeddings.weight.device
    batches = TokenBatches(pairs, batch_tokens, None)
    for index in range(len(batches)):
        (source, target), labels = batches[index]
        with torch.no_grad():
            yield network((source.to(device), target.to(device))), labels.to(device)


class _Measuring(Callback):
    """Measures while algorithms that evaluate with other weights, such as EMA, have put them in place."""

    def __init__(self, task: Translation) -> None:
        self._task = task
        self.measured: Measured | None = None

    def eval_start(self, state: State, logger: Logger) -> None:
        """Measure."""
        self.measured = self._task.measured()


class _TokenMean(Metric):
    """The mean over subwords of their cross entropy (nats) or of whether the most likely one is right (fraction)."""

    total: Tensor
    count: Tensor

    def __init__(self, what: str) -> None:
        super().__init__()
        self.what = what
        self.add_state("total", torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Add a batch: logits ``(N, K, T)``, labels ``(N, T)``."""
        if self.what == "loss":
            self.total += F.cross_entropy(logits, labels, reduction="sum", ignore_index=IGNORED)
        else:
            self.total += (logits.argmax(1) == labels).sum()
        self.count += (labels != IGNORED).sum()

    def compute(self) -> Tensor:
        """The mean so far."""
        return (self.total / self.count).float()


def _loader(batches: TokenBatches, order: Sampler[Any]) -> DataSpec:
    loader = DataLoader(batches, batch_size=1, sampler=order, collate_fn=_only)  # Composer reads batch_size
    return DataSpec(loader, split_batch=_undivided, get_num_samples_in_batch=_sentences)


def _only(batches: list[Batch]) -> Batch:
    return batches[0]


def _undivided(batch: Batch, microbatch_size: int | float | None) -> list[Batch]:
    return [batch]  # one that fits into memory, as batch_tokens says


def _sentences(batch: Batch) -> int:
    return len(batch[1])
