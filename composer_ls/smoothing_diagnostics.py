"""SmoothingDiagnostics, a Callback that measures what smoothing does to a network during training."""

from __future__ import annotations

import contextlib
import random
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from composer.core import Callback, Event, State, ensure_data_spec, get_precision_context
from composer.loggers import Logger
from composer.utils import batch_get, create_interval_scheduler
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, RandomSampler, SequentialSampler, Subset
from torch.utils.data.distributed import DistributedSampler

from composer_ls.batch_copy import copied
from composer_ls.diagnostics.checks import IGNORED, as_tensor, whole
from composer_ls.diagnostics.information import logit_mutual_information
from composer_ls.diagnostics.inspection import Penultimate, evaluating, last_linear, penultimate_features
from composer_ls.diagnostics.summary import summarise
from composer_ls.errors import DiagnosticsError

__all__ = ["SmoothingDiagnostics"]

Draws = Callable[[Callable[[Tensor], Tensor]], Tensor]


class SmoothingDiagnostics(Callback):
    """Logs calibration, the geometry of the penultimate layer and more, for a limited number of examples.

    Measurements use separate forward passes in evaluation mode and change no gradient, normalisation statistic or
    random state, so training with and without this callback gives exactly the same weights. Results go to every
    Composer logger as ``diagnostics/<set>/<name>``, with the names of
    :func:`~composer_ls.diagnostics.summary.summarise`, and ``diagnostics/mutual_information``.

    Args:
        interval: How often to measure, such as ``"1ep"`` or ``"500ba"``. ``None``: after each evaluation.
        data: The sets to measure, by name: dataloaders, or lists of batches. ``None``: the Trainer's
            ``eval_dataloader``, under its label, or the one given to ``Trainer.eval``. Examples are drawn when training
            starts and for each evaluation outside of training, and kept in between.
        examples: The number of examples per set, if it has as many. They are spread evenly over the data set if the
            dataloader goes through all of it; otherwise, as with a custom sampler, they are its first batches, as many
            as are needed for this number.
        layer: The name of the linear layer that computes the logits. ``None``: the network's last linear layer.
        target_key: Where the labels are in the batch: an index or a key.
        output_key: Where the logits are in the model's output, if that is not a tensor. ``None``: the output is the logits.
        draws: Maps the network, as a function from images to logits, to draws of a difference of logits ``(N, L)``:
            :func:`~composer_ls.diagnostics.information.draw_logit_differences` with its other arguments bound.
            ``None``: no mutual information.
        ignore_index: The label of examples that do not count.

    Attributes:
        numbers: The latest numbers, by the names under which they are logged.
        taken: The features, logits and labels of each set from which they were computed.
        mutual_information: The (step, nats) pairs measured under this Trainer; stored in checkpoints.

    Raises:
        DiagnosticsError: ``examples`` is below 1. When the Trainer is created: the network has no linear layer. When
            training starts: there are no sets to measure, one is empty, or its labels or logits are not found.

    Note:
        A diagnostic that cannot be computed, such as the spread of examples of a single class, is skipped, and a
        warning says why, once. Batches are copied first, so that transforms and networks may work in place.

        Beside Composer's EMA these numbers are of the weights that are trained; those of an evaluation's metrics are
        of their average.

    Example:
        >>> from composer_ls import SmoothingDiagnostics
        >>> callbacks = [SmoothingDiagnostics(examples=500)]  # for Trainer(callbacks=..., eval_dataloader=...)

    References:
        Müller et al., 2019, https://arxiv.org/abs/1906.02629.

    """

    def __init__(
        self,
        interval: str | None = None,
        data: Mapping[str, Iterable[Any]] | None = None,
        examples: int = 1000,
        layer: str | None = None,
        target_key: str | int = 1,
        output_key: str | int | Callable[..., Any] | None = None,
        draws: Draws | None = None,
        ignore_index: int = IGNORED,
    ) -> None:
        if examples < 1:
            raise DiagnosticsError(f"examples must be at least 1, but is {examples}; 1000 is the default")
        self.interval = interval
        self.data = data
        self.examples = examples
        self.layer = layer
        self.target_key = target_key
        self.output_key = output_key
        self.draws = draws
        self.ignore_index = ignore_index
        self.numbers: dict[str, float] = {}
        self.taken: dict[str, Penultimate] = {}
        self._siblings: list[SmoothingDiagnostics] = []  # those of this class in the Trainer, this one included
        self._begin()

    def _begin(self) -> None:
        """Reset everything that belongs to another Trainer: examples, measurements and warnings."""
        self.mutual_information: list[tuple[int, float]] = []
        self._is_due = (
            None if self.interval is None else create_interval_scheduler(self.interval, False, checkpoint_events=False)
        )
        self._held: dict[str, _Held] = {}
        self._evaluated: dict[str, Any] | None = None  # the sets of an evaluation outside of training
        self._told: set[tuple[str, str]] = set()

    def run_event(self, event: Event, state: State, logger: Logger) -> None:
        """Measure when due. Check the network when the Trainer is created, and draw examples when training starts."""
        if event == Event.INIT:
            last_linear(_unwrapped(state), self.layer)
            name = type(self).__qualname__  # the name under which Composer stores their states
            siblings: list[Any] = [one for one in state.callbacks if type(one).__qualname__ == name]
            self._siblings = siblings if self in siblings else [self]
            self._begin()
        elif event == Event.FIT_START:
            self._evaluated = None
            self._hold(state, anew=True)
            # What cannot be looked at is told before training, not after its first epoch.
            self._look(state, {name: held._replace(batches=held.batches[:1]) for name, held in self._held.items()})
        elif self._is_due is None:
            self._follow_evaluation(event, state, logger)
        elif event in (Event.BATCH_END, Event.EPOCH_END, Event.ITERATION_END) and self._is_due(state, event):
            self.measure(state, logger)

    def _follow_evaluation(self, event: Event, state: State, logger: Logger) -> None:
        """Measure after an evaluation. The sets of ``Trainer.eval`` are noted, because the state loses them at its end."""
        if event == Event.EVAL_STANDALONE_START:
            self._evaluated = {}
        elif event == Event.EVAL_START and self._evaluated is not None:
            loaders = [e.dataloader for e in state.evaluators if e.dataloader.dataloader is state.dataloader]
            self._evaluated[str(state.dataloader_label)] = loaders[-1]
        elif event == Event.EVAL_AFTER_ALL:
            self.measure(state, logger)
        elif event == Event.EVAL_STANDALONE_END:
            try:
                self._hold(state, anew=True)
                self.measure(state, logger)
            finally:
                self._evaluated = None

    def measure(self, state: State, logger: Logger) -> dict[str, float]:
        """Measure now, log and return the numbers."""
        weight: Tensor | DiagnosticsError
        try:
            weight, bias = self.head(state)
        except DiagnosticsError as error:  # most diagnostics do not need the weight
            weight, bias = error, None
        numbers: dict[str, float] = {}
        self.taken = self.collect(state)
        for name, taken in self.taken.items():
            computed, reasons = summarise(taken, weight, bias, self.ignore_index)
            numbers |= {f"diagnostics/{name}/{key}": value for key, value in computed.items()}
            for key, reason in reasons.items():
                self._tell(name, key, reason)
        if self.draws is not None:
            numbers |= self._inform(state, self.draws)
        logger.log_metrics(numbers)
        self.numbers = numbers
        self._tell_of_shared_names()
        return numbers

    def head(self, state: State) -> tuple[Tensor, Tensor | None]:
        """Copies on the CPU of the last linear layer's weight ``(K, D)`` and bias ``(K,)``, gathered if they are
        sharded.

        Raises:
            DiagnosticsError: They are not available, for example because FSDP 1 has flattened them.

        """
        layer = last_linear(_unwrapped(state), self.layer)
        shape = (layer.out_features, layer.in_features)
        if not hasattr(layer.weight, "full_tensor") and layer.weight.shape != shape:
            raise DiagnosticsError(
                f"the weight of {layer} has shape {tuple(layer.weight.shape)} outside of the forward pass, because it "
                f"is sharded in a way that cannot be gathered here: use FSDP 2, or compute diagnostics that need the "
                f"weight from a checkpoint"
            )
        bias = None if layer.bias is None else whole(layer.bias.detach()).cpu().clone()
        return whole(layer.weight.detach()).cpu().clone(), bias

    def collect(self, state: State) -> dict[str, Penultimate]:
        """The penultimate features, logits and labels of every set, for the network's current weights."""
        self._hold(state)
        return self._look(state, self._held)

    def _look(self, state: State, sets: Mapping[str, _Held]) -> dict[str, Penultimate]:
        def batches(held: _Held) -> Iterator[tuple[Any, Tensor]]:
            for batch in held.batches:
                placed = held.transform(state.device.batch_to_device(copied(batch)))
                yield placed, self._labels(placed)

        with _untouched_random_numbers(), torch.compiler.set_stance("force_eager"):  # compiled code would skip hooks
            return {
                name: penultimate_features(_unwrapped(state), batches(held), self.layer, self._forward(state))
                for name, held in sets.items()
            }

    def state_dict(self) -> dict[str, Any]:
        """The measurements to store in checkpoints.

        With several of this class, those of all: Composer stores the state of the last one only.
        """
        return {
            "mutual_information": self.mutual_information,
            "each": [one.mutual_information for one in self._siblings or [self]],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the measurements of :meth:`state_dict`, from the same place in the list of callbacks."""
        siblings = self._siblings or [self]
        each = state.get("each", [state["mutual_information"]])
        if len(each) == len(siblings):
            self.mutual_information = [(int(step), float(value)) for step, value in each[siblings.index(self)]]
        elif any(each):
            warnings.warn(
                f"the checkpoint has the mutual information of {len(each)} SmoothingDiagnostics, but the Trainer has "
                f"{len(siblings)}, so none of them continues it: give the Trainer those of the run that wrote it",
                stacklevel=2,
            )

    def __getstate__(self) -> dict[str, Any]:
        """For copies and pickles, which get no siblings until they are in a Trainer."""
        return vars(self) | {"_siblings": []}

    def _hold(self, state: State, anew: bool = False) -> None:
        """Draw examples of every set that has none yet, or of all sets. An iterator is read only once."""
        sets = self.data
        if sets is None:
            sets = self._evaluated
        if sets is None:
            sets = {str(evaluator.label): evaluator.dataloader for evaluator in state.evaluators}
        if not sets:
            raise DiagnosticsError(
                "SmoothingDiagnostics has no examples to measure: give the Trainer an eval_dataloader, or give "
                "SmoothingDiagnostics data={'train': DATALOADER}"
            )
        held: dict[str, _Held] = {}
        with _untouched_random_numbers():
            for name, source in sets.items():
                before = self._held.get(name)
                same = before is not None and before.source is _loader(source)
                if before is not None and same and (not anew or isinstance(before.source, Iterator)):
                    held[name] = before
                else:
                    held[name] = _taken(source, self.examples)
        self._held = held

    def _labels(self, batch: Any) -> Tensor:
        try:
            labels = batch_get(batch, self.target_key)
        except (AttributeError, IndexError, KeyError, TypeError) as error:
            raise DiagnosticsError(
                f"there are no labels at target_key={self.target_key!r} in a batch that is a {type(batch).__name__}: give "
                f"SmoothingDiagnostics a target_key, such as target_key='labels'"
            ) from error
        return as_tensor("labels", labels)

    def _forward(self, state: State) -> Callable[[Any], Tensor]:
        model = _unwrapped(state)

        def forward(batch: Any) -> Tensor:
            with get_precision_context(state.precision, state.precision_config):
                outputs = model(batch)
            logits = outputs
            if self.output_key is not None and (callable(self.output_key) or not isinstance(outputs, Tensor)):
                try:
                    logits = batch_get(outputs, self.output_key)
                except (AttributeError, IndexError, KeyError, TypeError):
                    logits = None
            if not isinstance(logits, Tensor):
                raise DiagnosticsError(
                    f"the model's output is {type(outputs).__name__} and output_key is {self.output_key!r}, which gives no tensor "
                    f"of logits: give SmoothingDiagnostics another output_key, such as output_key='logits'"
                )
            return logits

        return forward

    def _inform(self, state: State, draws: Draws) -> dict[str, float]:
        forward, step = self._forward(state), int(state.timestamp.batch)
        with _untouched_random_numbers(), evaluating(_unwrapped(state)), torch.compiler.set_stance("force_eager"):
            drawn = draws(lambda images: forward((state.device.batch_to_device(images), None)))
        try:
            value = logit_mutual_information(drawn)
        except DiagnosticsError as error:
            self._tell("draws", "mutual_information", str(error))
            return {}
        self.mutual_information = [*(pair for pair in self.mutual_information if pair[0] < step), (step, value)]
        return {"diagnostics/mutual_information": value}

    def _tell_of_shared_names(self) -> None:
        before = self._siblings[: self._siblings.index(self)] if self._siblings else []
        shared = sorted(self.numbers.keys() & {name for one in before for name in one.numbers})
        if shared and ("", "") not in self._told:
            self._told.add(("", ""))
            warnings.warn(
                f"several SmoothingDiagnostics log under the same names, such as {shared[0]}: give their sets different names "
                f"in data, and read mutual information from the attribute of each",
                stacklevel=2,
            )

    def _tell(self, name: str, key: str, reason: str) -> None:
        if (name, key) not in self._told:
            self._told.add((name, key))
            warnings.warn(f"diagnostics/{name}/{key} is left out: {reason}", stacklevel=2)


def _unwrapped(state: State) -> nn.Module:
    model = state.model
    return model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model


class _Held(NamedTuple):
    """The examples of a set, their source, and the transform that its DataSpec applies on the device."""

    source: Any
    batches: list[Any]
    transform: Callable[[Any], Any]


def _loader(source: Any) -> Any:
    """The dataloader in a DataSpec, or ``source`` itself."""
    return ensure_data_spec(source).dataloader


def _taken(source: Any, examples: int) -> _Held:
    """About ``examples`` examples in batches: spread evenly over a map-style data set, else the first ones."""
    spec = ensure_data_spec(source)
    loader = spec.dataloader
    if isinstance(loader, DataLoader) and _goes_through_all(loader):
        count = len(loader.dataset)  # type: ignore[arg-type]
        wanted = min(examples, count)
        spread = Subset(loader.dataset, [index * count // wanted for index in range(wanted)])
        loader = DataLoader(spread, min(loader.batch_size or 128, wanted or 1), collate_fn=loader.collate_fn)
    held: list[Any] = []
    left = examples
    for batch in loader:
        left -= spec.get_num_samples_in_batch(batch)
        held.append(spec.batch_transforms(copied(batch)))  # copied, to leave the caller's batches unchanged
        if left <= 0:
            break
    if not held:
        raise DiagnosticsError("a set for SmoothingDiagnostics has no examples: leave it out of data")
    return _Held(_loader(source), held, spec.microbatch_transforms)


def _goes_through_all(loader: DataLoader[Any]) -> bool:
    """Whether a dataloader builds its batches from single examples and goes through its whole data set."""
    if isinstance(loader.dataset, IterableDataset) or type(loader.batch_sampler) is not BatchSampler:
        return False
    sampler = loader.batch_sampler.sampler
    if type(sampler) is RandomSampler:
        return not sampler.replacement and sampler.num_samples >= len(loader.dataset)  # type: ignore[arg-type]
    whole_set = getattr(sampler, "data_source", getattr(sampler, "dataset", None)) is loader.dataset
    return type(sampler) in (SequentialSampler, DistributedSampler) and whole_set


@contextlib.contextmanager
def _untouched_random_numbers() -> Iterator[None]:
    """Restores the random states of Python, NumPy and PyTorch afterwards."""
    states = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng([torch.cuda.current_device()] if torch.cuda.is_available() else []):
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
