"""The search itself: Optuna's study in a journal file, from which it resumes and which several processes share."""

from __future__ import annotations

import functools
import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import optuna
from optuna.pruners import MedianPruner
from optuna.samplers import PartialFixedSampler, TPESampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from composer_ls.errors import InputError
from composer_ls.lab.compare.execute import Ended
from composer_ls.lab.compare.measured_runs import LeftOut, Run, Scores, read_run
from composer_ls.lab.compare.one_run import Status
from composer_ls.lab.compare.planned_runs import PlannedRun
from composer_ls.lab.compare.settings import value_at
from composer_ls.lab.recipe.recipe import differing_keys
from composer_ls.lab.run_folder.claim import claimant
from composer_ls.lab.tune.plan import TunePlan

__all__ = ["JOURNAL", "Search", "Watch"]

JOURNAL = "journal.log"
"""The name of Optuna's journal in the folder of a search."""

UNNAMED = 60
"""After so many seconds without values, which come right after it was begun, a trial is of a process that was killed."""

_STUDY = "composer-ls tune"
_OURS, _CHANGES = "composer_ls", "overrides"  # the names of Optuna's user attributes

optuna.logging.set_verbosity(optuna.logging.ERROR)


class Search:
    """The trials of a plan. Trial 0 is the recipe as it is, if its values are within the ranges.

    Each trial's sampler is seeded with its number, so that processes which share the journal do not repeat each other.

    Args:
        plan: What to do.

    Attributes:
        file: Optuna's journal.
        starts_from_the_recipe: Whether trial 0 is the recipe as it is.

    Raises:
        InputError: The journal in the plan's folder is of another search, or it cannot be read or written.

    """

    def __init__(self, plan: TunePlan) -> None:
        self.plan = plan
        self.file = plan.out / JOURNAL
        try:
            plan.out.mkdir(parents=True, exist_ok=True)
            self._study = self._open()
        except OSError as error:
            raise InputError(
                f"{self.file.absolute()} cannot be used ({error.strerror or error}): choose another folder with --out DIR"
            ) from error
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise InputError(
                f"{self.file.absolute()} is not a journal of Optuna, or is damaged ({' '.join(str(error).split())}): choose "
                f"another folder with --out DIR, or delete that file"
            ) from error
        self._active: set[int] = set()
        content = plan.recipe.model_dump()
        own = {one: value_at(content, one.key) for one in plan.space}
        self.starts_from_the_recipe = all(one.holds(value) for one, value in own.items())
        self._own = {one.key: one.fixed(value) for one, value in own.items()} if self.starts_from_the_recipe else {}

    def _open(self) -> optuna.Study:
        plan, storage = self.plan, _storage(str(self.file))
        others = [name for name in optuna.get_all_study_names(storage) if name != _STUDY]
        if others:
            raise InputError(
                f"{self.file.absolute()} holds a study that is not of composer-ls tune ({others[0]}): choose another folder "
                f"with --out DIR"
            )
        study = optuna.create_study(
            storage=storage,
            study_name=_STUDY,
            direction="maximize" if plan.purpose.higher_is_better else "minimize",
            load_if_exists=True,
        )
        theirs = study.user_attrs.get(_OURS)
        if theirs is None:
            study.set_user_attr(_OURS, plan.identity)
        elif theirs != plan.identity:
            differing = differing_keys(theirs["recipe"], plan.identity["recipe"])
            how = f"of another recipe (they differ in {', '.join(differing)})" if differing else ""
            for option in ("for", "vary"):
                if not how and theirs[option] != plan.identity[option]:
                    there = theirs[option] if option == "for" else ", ".join(theirs[option])
                    how = f"with --{option} {there}"
            raise InputError(
                f"{self.file.absolute()} is the journal of a search {how}: choose another folder with --out DIR, or repeat "
                f"that search's arguments to continue it"
            )
        return study

    @property
    def trials(self) -> list[FrozenTrial]:
        """The trials so far, at most as many as were asked for."""
        return [one for one in self._study.get_trials(deepcopy=False) if one.number < self.plan.trials]

    @property
    def ranking(self) -> list[FrozenTrial]:
        """The finished trials, the best one first; of equal ones the first."""
        sign = -1 if self.plan.purpose.higher_is_better else 1
        done = [one for one in self.trials if one.state == TrialState.COMPLETE]
        return sorted(done, key=lambda one: (sign * float(one.value or 0), one.number))

    @property
    def left(self) -> int:
        """How many trials are not over."""
        return self.plan.trials - sum(one.state.is_finished() for one in self.trials)

    @property
    def in_words(self) -> str:
        """How many trials ended in which way."""
        states = [one.state for one in self.trials]
        names = {TrialState.COMPLETE: "finished", TrialState.PRUNED: "stopped early", TrialState.FAIL: "failed"}
        counts = [f"{states.count(state)} {name}" for state, name in names.items() if state in states]
        return f"{len(states)} trials: {', '.join(counts)}"

    def runs(self) -> Iterator[PlannedRun | None]:
        """The runs that are left to do: new trials, then those that a process has left behind unfinished.

        ``None`` means that another process is still doing some. Ends when every trial is over.
        """
        while True:
            if len(self._study.get_trials(deepcopy=False)) < self.plan.trials:
                trial = self._study.ask()
                if trial.number >= self.plan.trials:  # another process was faster
                    self._study.tell(trial, state=TrialState.FAIL)
                    continue
                yield self._new(trial)
                continue
            running = [one for one in self.trials if one.state in (TrialState.RUNNING, TrialState.WAITING)]
            if not running:
                return
            others = [one for one in running if one.number not in self._active]
            unnamed = next((one for one in others if _CHANGES not in one.user_attrs and _seconds(one) > UNNAMED), None)
            if unnamed is not None:
                yield self._new(optuna.Trial(self._study, unnamed._trial_id))
                continue
            left = [one for one in others if _CHANGES in one.user_attrs]
            found = next((one for one in left if claimant(self._folder(one.number)) is None), None)
            yield None if found is None else self._run(found.number, found.user_attrs[_CHANGES])

    def tell(self, ended: Ended) -> None:
        """Tell Optuna how a trial ended. One that another process is doing is left to that process.

        Raises:
            InputError: The data has no validation part, which is known only now if a function of the user's returns it.

        """
        number = int(re.sub(r"\D", "", ended.run.folder.name))
        self._active.discard(number)
        if ended.status == Status.BUSY:
            return
        state, value = TrialState.FAIL, None
        if ended.status == Status.STOPPED:
            state = TrialState.PRUNED
        elif ended.status == Status.FINISHED:
            try:
                run = read_run(ended.run.folder, ended.run.recipe)
                value = float(_validation(run).values[self.plan.purpose.key])
                state = TrialState.COMPLETE
            except LeftOut:
                pass
        self._study.tell(number, value, state, skip_if_finished=True)

    def changes(self, trial: FrozenTrial) -> list[str]:
        """The overrides that a trial added to the recipe."""
        return list(trial.user_attrs[_CHANGES])

    def _new(self, trial: optuna.Trial) -> PlannedRun:
        fixed = self._own if trial.number == 0 else {}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            sampler = TPESampler(seed=self.plan.recipe.seed + trial.number, constant_liar=True)
            self._study.sampler = PartialFixedSampler(fixed, sampler)
        changes = [f"{one.key}={one.suggest(trial, fixed.get(one.key))}" for one in self.plan.space]
        trial.set_user_attr(_CHANGES, changes)
        return self._run(trial.number, changes)

    def _run(self, number: int, changes: list[str]) -> PlannedRun:
        self._active.add(number)
        key = self.plan.progress_key
        watch = None
        if key is not None:
            epochs = re.fullmatch(r"(\d+)ep", self.plan.recipe.duration)
            watch = Watch(str(self.file.absolute()), number, key, int(epochs[1]) if epochs else None)
        name = f"trial {number}, {', '.join(map(in_short, changes))}"
        return self.plan.run(name, changes, self.plan.recipe.seed, self._folder(number), watch)

    def _folder(self, number: int) -> Path:
        return self.plan.out / "trials" / f"trial-{number}"


def _seconds(trial: FrozenTrial) -> float:
    begun = trial.datetime_start
    return 0.0 if begun is None else (datetime.now(begun.tzinfo) - begun).total_seconds()


def _validation(run: Run) -> Scores:
    if "validation" not in run.parts:
        raise InputError(
            f"tune judges on a validation part, and {getattr(run.recipe.data, 'target', None) or 'the data'} returns none: "
            f'return "validation" too'
        )
    return run.parts["validation"]


def in_short(change: str) -> str:
    """An override in words.

    Example:
        >>> from composer_ls.lab.tune.study import in_short
        >>> in_short("algorithms.label_smoothing.smoothing=0.12"), in_short("algorithms.mixup.alpha=0.4")
        ('smoothing 0.12', 'mixup.alpha 0.4')

    """
    key, _, value = change.partition("=")
    parts = key.split(".")
    name = parts[-1] if parts[0] != "algorithms" or parts[1] == "label_smoothing" else ".".join(parts[1:])
    return f"{name} {value}"


@dataclass(frozen=True)
class Watch:
    """Reports a trial's metric to Optuna after each evaluation, and says when to stop.

    A trial stops if its best value is worse than the median of the other trials at the same epoch. It does not stop in the
    first third of its epochs, while fewer than five trials are finished, or when it is all but finished.

    Attributes:
        journal: Optuna's journal.
        number: The trial's number.
        key: The metric's key in ``metrics.jsonl``.
        epochs: The number of epochs in all; ``None`` if the recipe counts otherwise.

    """

    journal: str
    number: int
    key: str
    epochs: int | None

    def __call__(self, line: Mapping[str, float]) -> bool:
        """Report a line of ``metrics.jsonl``; True to stop."""
        epoch = int(line["epoch"])
        if self.key not in line or epoch == self.epochs:
            return False
        study = _study(self.journal, (self.epochs or 0) // 3)
        trial = optuna.Trial(study, study.get_trials(deepcopy=False)[self.number]._trial_id)
        trial.report(float(line[self.key]), epoch)
        return trial.should_prune()


@functools.cache
def _study(journal: str, warmup: int) -> optuna.Study:
    """The study as a run's process knows it, which reads the journal only once."""
    pruner = MedianPruner(n_startup_trials=5, n_warmup_steps=warmup)
    return optuna.load_study(study_name=_STUDY, storage=_storage(journal), pruner=pruner)


def _storage(journal: str) -> JournalStorage:
    return JournalStorage(JournalFileBackend(journal))
