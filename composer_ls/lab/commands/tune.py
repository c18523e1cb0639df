"""``composer-ls tune``: search for the smoothing, and other values, that suit a recipe best."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from composer_ls.errors import MissingPackageError, RunFolderBusyError
from composer_ls.lab.commands.compare import show_failures
from composer_ls.lab.commands.engines import Address, Cpus, EngineName, Gpus, Jobs, Where
from composer_ls.lab.commands.report import Purpose
from composer_ls.lab.report.fitted import fitted

if TYPE_CHECKING:
    from composer_ls.lab.compare.execute import Ended, Engine
    from composer_ls.lab.compare.planned_runs import PlannedRun
    from composer_ls.lab.tune.plan import TunePlan
    from composer_ls.lab.tune.study import Search
    from composer_ls.lab.tune.verdict import Verdict

__all__ = ["add_to"]


def add_to(app: typer.Typer) -> None:
    """Add ``tune`` to the command line."""
    app.command(epilog=EXAMPLES)(tune)


SHOWN = 5
"""How many of the best trials are printed."""

EXAMPLES = """
**Examples**

`composer-ls tune digits-mlp --for nll`

`composer-ls tune cifar10-resnet20-fast data.validation=0.1 --trials 40 --vary algorithms.mixup.alpha=0.1..1`

`composer-ls tune digits-mlp --engine ray --address auto`

`composer-ls tune mine.yaml --vary optimizer.learning_rate=0.001..0.1 --vary 'schedule.name=[cosine, linear]'`
"""


def tune(
    recipe: Annotated[
        str, typer.Argument(help="A shipped recipe's name (see `composer-ls recipes`) or a path to one.")
    ],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Changes to the recipe, as `key.path=value`; values are YAML.")
    ] = None,
    purpose: Purpose = None,
    trials: Annotated[int, typer.Option(help="How many trials in all, including earlier ones.")] = 20,
    vary: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=LOW..HIGH",
            help="A key to vary besides the smoothing factor, with a range, or a YAML list of values. Can be repeated. "
            "Default: the alpha of MixUp and CutMix, if the recipe has them.",
            show_default=False,
        ),
    ] = None,
    seeds: Annotated[int, typer.Option(help="How many fresh seeds to compare the best trial on at the end.")] = 5,
    jobs: Jobs = None,
    engine: EngineName = "local",
    address: Address = None,
    cpus: Cpus = None,
    gpus: Gpus = None,
    out: Annotated[
        Path | None, typer.Option(help="The folder for everything. Default: runs/tune-RECIPE-FINGERPRINT.")
    ] = None,
) -> None:
    """Search for the smoothing factor that suits a recipe best, alone or together with other values.

    Trials are chosen by Optuna and judged on the validation part (if the recipe holds out none, a tenth of the training
    data is held out), and hopeless ones are stopped early. At the end the best trial is compared with the recipe as it
    was over fresh seeds, and you are told whether its gain holds. The test part plays no part in any choice.

    The same command continues an interrupted search, and several processes may run it at the same time.
    """
    if find_spec("optuna") is None:
        raise MissingPackageError("composer-ls tune needs Optuna: pip install 'composer_ls[tune]'")
    from composer_ls.lab.run_folder.claim import claimant, claimed
    from composer_ls.lab.tune.plan import make_tune_plan
    from composer_ls.lab.tune.study import Search
    from composer_ls.lab.tune.verdict import judge, write_verdict

    where = Where(engine, address, cpus, gpus, jobs)
    plan = make_tune_plan(recipe, overrides or [], purpose, trials, vary or [], seeds, out)
    console, errors = Console(), Console(stderr=True)
    for note in plan.notes:
        errors.print(Text(f"composer-ls: {note}"), soft_wrap=True)
    search = Search(plan)
    try:
        with where.make(plan.out, plan.recipe.device, trials, ["composer_ls.lab.tune.study"]) as runner:
            failed = _do_trials(plan, search, runner, errors)
            with claimed(plan.out / "comparison"):
                runs, more = _compare(plan, search, runner, errors)
                verdict = judge(plan, search, runs)
                write_verdict(verdict)
    except RunFolderBusyError:
        by = claimant(plan.out / "comparison") or "another process"
        errors.print(Text(f"all trials are over, and {by} compares the best one with the recipe"), soft_wrap=True)
        return
    except KeyboardInterrupt:
        errors.print("stopped; run the same command to continue")
        raise typer.Exit(130) from None
    _show(verdict, console)
    if failed + more:
        show_failures(failed + more, trials + len(runs), errors)
        raise typer.Exit(1)


def _do_trials(plan: TunePlan, search: Search, engine: Engine, errors: Console) -> list[Ended]:
    """Do the trials that are left, and return those that failed."""
    from composer_ls.lab.compare.execute import execute
    from composer_ls.lab.compare.one_run import Status
    from composer_ls.lab.compare.progress import display_on

    if not search.left:
        errors.print(f"all {plan.trials} trials are already over")
        return []
    with errors.status("checking the data and starting"):
        engine.check(plan.extremes())
    if plan.progress_key is None:
        errors.print(f"no trial is stopped early, since epochs do not measure {plan.purpose.name}")
    failed = []
    with display_on(errors, search.left, plan.trials - search.left) as display:
        for ended in execute(search.runs(), engine, display):
            search.tell(ended)
            if ended.failed and ended.status != Status.BUSY:  # then another process has it in hand
                failed.append(ended)
    return failed


def _compare(
    plan: TunePlan, search: Search, engine: Engine, errors: Console
) -> tuple[Sequence[PlannedRun], list[Ended]]:
    """Do the runs over fresh seeds that are left, and return all of them, and those that failed."""
    from composer_ls.lab.compare.execute import execute
    from composer_ls.lab.compare.progress import display_on
    from composer_ls.lab.tune.verdict import comparison_runs

    runs = comparison_runs(plan, search)
    todo = [run for run in runs if not run.finished]
    if not todo:
        return runs, []
    errors.print(f"comparing the best trial with the recipe as it was, over {plan.seeds} fresh seeds")
    with display_on(errors, len(todo), len(runs) - len(todo)) as display:
        return runs, [ended for ended in execute(todo, engine, display) if ended.failed]


def _show(verdict: Verdict, console: Console) -> None:
    """Print the best trials, the comparison over fresh seeds, and what to do."""
    from composer_ls.lab.tune.verdict import BEST, SUMMARY

    plan, search = verdict.plan, verdict.search
    console.print(Text(search.in_words, style="bold"))
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("trial", no_wrap=True)
    table.add_column(f"validation {plan.purpose.heading}", justify="right", no_wrap=True)
    for one in plan.space:
        table.add_column(one.key.removeprefix("algorithms."), justify="right", no_wrap=True)
    for trial in search.ranking[:SHOWN]:
        value = plan.purpose.shown(float(trial.value or 0) * plan.purpose.scale)
        note = " (the recipe as it was)" if trial.number == 0 and search.starts_from_the_recipe else ""
        table.add_row(f"{trial.number}{note}", value, *(text.partition("=")[2] for text in search.changes(trial)))
    console.print(fitted(table, console))
    if verdict.comparison is not None:
        (best, *_) = search.ranking
        console.print()
        console.print(Text(f"Trial {best.number} against the recipe as it was", style="bold"))
        for line in verdict.comparison.verdicts(""):
            console.print(Text(line.sentence), soft_wrap=True)
    elif verdict.left_out:
        console.print()
    for left in verdict.left_out:
        console.print(Text(f"left out: {left.folder}: {left.reason}", style="yellow"), soft_wrap=True)
    console.print()
    console.print(Text("What to do", style="bold"))
    for sentence in (verdict.headline, *verdict.remarks):
        console.print(Text(f"{sentence}."), soft_wrap=True)
    console.print()
    for name in (SUMMARY, BEST):
        console.print(Text(str(plan.out / name)), soft_wrap=True)
