"""OnlineLabelSmoothing, a Composer Algorithm: LabelSmoothing whose prior is what the network predicted in the last epoch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar
from weakref import WeakKeyDictionary, ref

import torch
from composer.core import Event, State
from composer.loggers import Logger
from composer.utils import dist
from torch import Tensor

from composer_ls.algorithm import LabelSmoothing
from composer_ls.composition.batches import DEFAULT_KEY, as_tensor
from composer_ls.composition.mixers import mixers_among
from composer_ls.composition.targets_in_batch import TargetsInBatch
from composer_ls.errors import InputError
from composer_ls.smoothing import online_prior, right_predictions
from composer_ls.target_smoothing import log

__all__ = ["BYTES", "OnlineLabelSmoothing", "free_memory"]

LARGE = 4096
"""The number of classes from which the log says what the prior costs."""
BYTES = 12
"""What the prior, in float32, and its sums, in float64, take for each pair of classes."""


class OnlineLabelSmoothing(LabelSmoothing):
    """Label smoothing whose mass goes to the classes that the network takes for similar, learnt during training.

    The prior of each class is the mean prediction of the training examples of that class that the network had right in
    the last epoch. In the first epoch, and for a class without any, it is uniform. With several processes the
    predictions of all of them count. Evaluation is never counted, nor is the second pass of algorithms such as SAM. A
    new Trainer starts without a prior, also with an object that another Trainer has used, and goes on with its own.

    It composes with other algorithms, restores the targets and reports conflicts as :class:`~composer_ls.LabelSmoothing`
    does. A mixed example is right if the prediction is one of its labels, and counts for that one.

    Args:
        smoothing: α in [0, 1], or a schedule or factors per class, as for LabelSmoothing. The authors use 0.5.
        target_key: Where the targets are in the batch, as for LabelSmoothing.
        ignore_index: A label that gets no mass and no gradient; ``None`` to ignore no label.
        on_conflict: What to do if something else smooths the targets too: ``"raise"`` or ``"warn"``.
        output_key: Where the logits are in the model's output, as for LabelSmoothing.

    Raises:
        InputError: On the first microbatch: the prior and its sums, ``12 K²`` bytes, are more than the free memory.
        ValueError: As for LabelSmoothing.

    Note:
        The prior and the sums of the current epoch are in Composer's checkpoints, so a run that resumes in the middle of an
        epoch ends with the same weights. With several processes, saving a checkpoint adds up their sums, so all of them
        must take part, as they do in Composer. Several of them, for several targets, resume if they have the target_key
        and output_key that they had, in any order; those with equal keys, or with getters, if they have the same order.

        The factor in use is logged at every step as ``online_label_smoothing/smoothing``.

    Example:
        >>> from composer_ls import OnlineLabelSmoothing
        >>> algorithms = [OnlineLabelSmoothing(smoothing=0.5)]  # for Trainer(algorithms=...)

    References:
        Zhang et al., 2021, https://arxiv.org/abs/2011.12562.

    """

    reads_logits = True
    has_one_table = True
    METRIC: ClassVar[str] = "online_label_smoothing/smoothing"

    def __init__(
        self,
        smoothing: float | Mapping[str, Any] | Callable[[State], float] | Tensor | Sequence[float] = 0.5,
        target_key: Any = DEFAULT_KEY,
        ignore_index: int | None = -100,
        on_conflict: str = "raise",
        output_key: str | int | Callable[..., Any] | None = None,
    ) -> None:
        super().__init__(smoothing, target_key, None, ignore_index, "all", on_conflict, output_key)
        self._sums: Tensor | None = None
        self._state: ref[State] | None = None  # of the Trainer that this was last in
        self._elsewhere: WeakKeyDictionary[State, tuple[Any, Any]] | None = None  # learnt in other Trainers
        self._siblings: list[OnlineLabelSmoothing] = []  # those of this class in the Trainer, this one included
        self._counted = self._passed = 0  # examples of this batch: in any pass, and in this one
        self._let_go()

    def __repr__(self) -> str:
        """The constructor call, which Composer stores in checkpoints."""
        return (
            f"OnlineLabelSmoothing(smoothing={self.smoothing!r}, target_key={self.target_key!r}, "
            f"ignore_index={self.ignore_index!r}, on_conflict={self.on_conflict!r}, output_key={self.output_key!r})"
        )

    def smoothed(self, logits: Tensor, target: Any, ignore_index: int | None = None) -> Tensor:
        """The smoothed targets. Where the loss is intercepted, the predictions are counted here."""
        target = as_tensor(target, logits.device)
        smoothed = super().smoothed(logits, target, ignore_index)
        if not isinstance(self.way, TargetsInBatch):
            self._see(logits, smoothed if smoothed.shape != target.shape else target)
        return smoothed

    def _settle(self, state: State, logger: Logger) -> None:
        self._enter(state)  # A Trainer loads its checkpoint, if it has one, after this.
        super()._settle(state, logger)
        name = type(self).__qualname__  # the name under which Composer stores their states
        siblings = [one for one in state.algorithms if type(one).__qualname__ == name]
        for one in siblings:
            one._siblings = siblings  # one order for all of them, although each may still move

    def _start(self, state: State, logger: Logger) -> None:
        if self._state is not None:  # another Trainer may have been made, or trained, since
            self._enter(state)
        super()._start(state, logger)

    def _enter(self, state: State) -> None:
        """Go on with the prior and sums that were learnt in this Trainer: none in a new one."""
        before = self._state and self._state()
        if before is state:
            return
        self._elsewhere = self._elsewhere or WeakKeyDictionary()
        if before is not None:
            self._elsewhere[before] = self.prior, self._sums
        self.prior, self._sums = self._elsewhere.pop(state, (None, None))
        self._state = ref(state)

    def _before_loss(self, state: State, logger: Logger) -> None:
        self._holds = any(mixer.interpolates(algorithm) for algorithm, mixer in mixers_among(state.algorithms))
        super()._before_loss(state, logger)

    def _after_loss(self, state: State, logger: Logger) -> None:
        if isinstance(self.way, TargetsInBatch):  # by now the labels are mixed
            seen = self.way.seen(state)
            if seen is not None:
                self._count(*seen)
        self._ended = True
        super()._after_loss(state, logger)

    def _after_backward(self, state: State, logger: Logger) -> None:
        super()._after_backward(state, logger)
        for seen in self._held:
            self._count(*seen)
        self._let_go()

    def _before_step(self, state: State, logger: Logger) -> None:
        super()._before_step(state, logger)
        self._counted = 0

    def _before_pass(self, state: State, logger: Logger) -> None:
        self._passed = 0
        self._let_go()  # in case an earlier pass was interrupted

    _STEPS: ClassVar[dict[Event, Callable[[Any, State, Logger], None]]] = LabelSmoothing._STEPS | {
        Event.BEFORE_TRAIN_BATCH: lambda self, *event: self._before_pass(*event)
    }

    def _see(self, logits: Tensor, target: Tensor) -> None:
        """Count the predictions of a loss that is computed, when mixers have computed it for the second labels too.

        They call ``loss()`` again, whose losses come in the order of the first time.
        """
        if not self._holds:
            self._count(logits, [target])
        elif not self._ended:
            self._held.append((logits.detach(), [target]))
        elif self._held:
            self._held[self._repeated % len(self._held)][1].append(target)
            self._repeated += 1

    def _let_go(self) -> None:
        self._held: list[tuple[Tensor, list[Tensor]]] = []  # what the losses of loss() saw
        self._holds = self._ended = False  # whether mixers repeat them, and whether the first time is over
        self._repeated = 0  # losses

    def _count(self, logits: Tensor, targets: Sequence[Tensor]) -> None:
        """Count predictions, but not again those of a second pass, as of SAM or after automatic microbatching ran out of memory."""
        if not self.smooths:
            return
        examples = len(logits) if logits.ndim > 1 else 1
        known = max(0, self._counted - self._passed)
        self._passed += examples
        if known >= examples:
            return
        self._counted = self._passed
        if known:
            logits, targets = logits[known:], [target[known:] for target in targets]
        if self._sums is None:
            self._sums = self._room_for(logits)
        self._sums = right_predictions(
            logits, targets, ignore_index=self.ignore_index, into=self._sums.to(logits.device)
        )

    def _end_epoch(self, state: State, logger: Logger) -> None:
        if self._sums is None:
            return
        if dist.get_world_size() > 1:
            dist.all_reduce(self._sums)
        self.prior = None  # frees it first
        self.prior = online_prior(self._sums)
        self._sums.zero_()

    def _of_all_processes(self) -> Tensor | None:
        """The sums over all processes; every process must call this."""
        if self._sums is None or dist.get_world_size() == 1:
            return self._sums
        sums = self._sums.clone()
        dist.all_reduce(sums)
        return sums

    def state_dict(self) -> dict[str, Any]:
        """The prior, and the sums of the current epoch over all processes.

        With several of this class, for several targets, those of all: Composer loads the state of the last into each.
        """
        if len(self._siblings) < 2:
            return super().state_dict() | self._learnt()
        return super().state_dict() | {"each": [{"where": one._where, **one._learnt()} for one in self._siblings]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore them. The first process gets the sums of all.

        Raises:
            InputError: There are several of this class, here or in the checkpoint, and it is not clear which is this.

        """
        saved = self._own_part(state)
        self.prior, sums = saved.get("prior"), saved.get("sums")
        first = dist.get_global_rank() == 0
        # The sums are added to in place, and the state may be that of another object.
        self._sums = None if sums is None else sums.clone() if first else torch.zeros_like(sums)

    def __getstate__(self) -> dict[str, Any]:
        """For copies and pickles, which get no siblings until they are in a Trainer."""
        return vars(self) | {"_siblings": [], "_state": None, "_elsewhere": None}

    def _learnt(self) -> dict[str, Any]:
        return {"prior": self.prior, "sums": self._of_all_processes()}

    @property
    def _where(self) -> str:
        """Which targets and logits these are, in words that are the same in every process."""
        keys = {"target_key": self.target_key, "output_key": self.output_key}
        return ", ".join(f"{name}={_in_words(key)}" for name, key in keys.items())

    def _own_part(self, state: dict[str, Any]) -> dict[str, Any]:
        """The part of a state that is of this one: it has the same keys, and the same place among those that have them."""
        siblings = self._siblings or [self]
        each = state.get("each", [])
        if not each and len(siblings) == 1:
            return state
        same = [saved for saved in each if saved["where"] == self._where]
        rivals = [one for one in siblings if one._where == self._where]
        if len(same) != len(rivals):
            there = "; ".join(saved["where"] for saved in each) or "only one, or was written before it told them apart"
            here = "; ".join(one._where for one in siblings)
            raise InputError(
                f"the checkpoint does not have the priors of these OnlineLabelSmoothing algorithms: it has {there}, but the "
                f"Trainer has {here}: give them the target_key and output_key of the run that wrote it, or load only the "
                f"weights with load_weights_only=True"
            )
        return same[next(place for place, one in enumerate(rivals) if one is self)]

    def _room_for(self, logits: Tensor) -> Tensor:
        """Zeros for the sums.

        Raises:
            InputError: They do not fit.

        """
        classes = logits.shape[1]
        needed, free = BYTES * classes**2, free_memory(logits.device)
        words = f"the prior of OnlineLabelSmoothing has a row for each of {classes:,} classes and takes {needed / 1e9:.1f} GB"
        if free is not None and needed > free:
            raise InputError(
                f"{words} with its sums, but only {free / 1e9:.1f} GB are free on {logits.device}: use LabelSmoothing or "
                f"MaxSup, which need no such table"
            )
        if classes > LARGE:
            log.warning("%s with its sums; each step reads one row of it per example", words)
        return logits.new_zeros((classes, classes), dtype=torch.float64)

    def in_words_over(self, classes: int | None, of: str) -> str:
        """What is done to the targets, for :func:`composer_ls.composition.describe`."""
        words = super().in_words_over(classes, of).split(", ")[0]
        return f"{words}, to what the network predicts for each class"


def _in_words(key: Any) -> str:
    """A key without the addresses of functions, which differ from process to process."""
    if isinstance(key, (list, tuple)):
        return f"({', '.join(map(_in_words, key))})"
    return f"<{getattr(key, '__name__', type(key).__name__)}>" if callable(key) else repr(key)


def free_memory(device: torch.device) -> int | None:
    """Free bytes, if they are known."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    meminfo = Path("/proc/meminfo")
    lines = meminfo.read_text().splitlines() if device.type == "cpu" and meminfo.is_file() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)
