"""``composer-ls compare``: train with several smoothing factors and seeds, and report whether smoothing helps."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.text import Text

from composer_ls.lab.commands.engines import Address, Cpus, EngineName, Gpus, Jobs, Where
from composer_ls.lab.commands.report import Purpose, show_report

if TYPE_CHECKING:
    from composer_ls.lab.compare.execute import Ended
    from composer_ls.lab.compare.planned_runs import Plan

__all__ = ["add_to", "show_failures"]


def add_to(app: typer.Typer) -> None:
    """Add ``compare`` to the command line."""
    app.command(epilog=EXAMPLES)(compare)


EXAMPLES = """
**Examples**

`composer-ls compare digits-mlp`

`composer-ls compare cifar10-resnet20 --smoothing 0,0.05,0.1,0.2 --seeds 5 --vary 'algorithms.cutmix=[null, {alpha: 1.0}]'`

`composer-ls compare digits-mlp --methods none,label_smoothing,max_sup,online_label_smoothing --smoothing 0.1 --seeds 10`

`composer-ls compare digits-mlp duration=10ep --jobs 2 --out runs/mine`

`composer-ls compare digits-mlp --engine ray --address auto`

`composer-ls compare digits-mlp --out runs/mine --list | parallel -j 2` and then `composer-ls report runs/mine`
"""


def compare(
    recipe: Annotated[
        str, typer.Argument(help="A shipped recipe's name (see `composer-ls recipes`) or a path to one.")
    ],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Changes to the recipe, as `key.path=value`; values are YAML.")
    ] = None,
    smoothing: Annotated[
        str, typer.Option(help="Smoothing factors, separated by commas; 0 is the baseline.")
    ] = "0,0.1",
    methods: Annotated[
        str | None,
        typer.Option(
            help="What smooths, separated by commas: none, label_smoothing, max_sup, online_label_smoothing. Default: the "
            "recipe's own."
        ),
    ] = None,
    seeds: Annotated[int, typer.Option(help="How many seeds: the recipe's own and those after it.")] = 5,
    vary: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=[V1, V2]", help="Another key to vary, with a YAML list of values. Can be repeated."),
    ] = None,
    jobs: Jobs = None,
    engine: EngineName = "local",
    address: Address = None,
    cpus: Cpus = None,
    gpus: Gpus = None,
    out: Annotated[
        Path | None, typer.Option(help="The folder for all runs. Default: runs/compare-RECIPE-FINGERPRINT.")
    ] = None,
    purpose: Purpose = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Run everything in this comparison again, discarding earlier results.")
    ] = False,
    list_only: Annotated[bool, typer.Option("--list", help="Print one command per run, and run nothing.")] = False,
) -> None:
    """Find out whether smoothing helps: train with several factors over several seeds, and write a report.

    The report ends with advice: the factor to use, or that no factor is shown to help. If the recipe has
    data.validation, runs are judged on the held-out images, and the test images play no part in the choice.

    Seeds are paired: runs with the same seed share initial weights, data order and augmentation, whatever the
    smoothing. Finished runs are skipped and interrupted ones continue, so the same command resumes a comparison, and
    no run is done twice at the same time. If a run fails, its log is kept and the other runs continue; the exit status
    is then 1.
    """
    from composer_ls.lab.compare.planned_runs import make_plan
    from composer_ls.lab.tasks.registry import task_report

    where = Where(engine, address, cpus, gpus, jobs)
    plan = make_plan(recipe, overrides or [], smoothing, seeds, vary or [], out, methods)
    task_report(plan.recipe.task).metric(purpose)
    console, errors = Console(), Console(stderr=True)
    for note in plan.notes:
        errors.print(Text(f"composer-ls: {note}"), soft_wrap=True)
    if list_only:
        from composer_ls.lab.training.algorithms import build_algorithms  # imports Composer, which takes seconds

        for run in plan.runs:
            build_algorithms(run.recipe.algorithms)
        for run in plan.runs:
            print(run.command)
        return
    words = [recipe, *(overrides or []), "--smoothing", smoothing, "--seeds", str(seeds)]
    words += [] if methods is None else ["--methods", methods]
    words += [word for axis in vary or [] for word in ("--vary", axis)]
    words += [] if jobs is None else ["--jobs", str(jobs)]
    words += [] if out is None else ["--out", str(out)]
    words += [] if purpose is None else ["--for", purpose]
    failures = _do(plan, where, shlex.join(["composer-ls", "compare", *words]), overwrite, errors)
    if len(failures) < len(plan.runs):
        show_report(plan.out, console, purpose)
    if failures:
        show_failures(failures, len(plan.runs), errors)
        raise typer.Exit(1)


def show_failures(failures: Sequence[Ended], total: int, errors: Console) -> None:
    """Print each reason for failures once, with the logs of a few of the runs."""
    reasons: dict[str, list[Ended]] = {}
    for failure in failures:
        reasons.setdefault(failure.reason, []).append(failure)
    for reason, some in reasons.items():
        logs = ", ".join(str(failure.log) for failure in some[:3]) + (", ..." if len(some) > 3 else "")
        errors.print(
            Text(f"\n{len(some)} of {total} runs failed: {reason}\nsee {logs}", style="red"),
            soft_wrap=True,
        )


def _do(plan: Plan, where: Where, command: str, overwrite: bool, errors: Console) -> list[Ended]:
    """Run what is not finished (with ``overwrite``, everything), and return the failures."""
    todo = [run for run in plan.runs if overwrite or not run.finished]
    if not todo:
        errors.print("all runs are already finished")
        return []
    from composer_ls.lab.compare.execute import execute, forget
    from composer_ls.lab.compare.progress import display_on
    from composer_ls.lab.report.comparison_page import COMMANDS
    from composer_ls.lab.report.page import write

    try:
        with where.make(plan.out, plan.recipe.device, len(plan.runs)) as engine:
            with errors.status("checking the data and starting"):
                engine.check(todo)
            if overwrite:
                forget(todo)  # only after the check; if interrupted later, it can be resumed without --overwrite
            commands = plan.out / COMMANDS
            known = commands.read_text(encoding="utf-8").splitlines() if commands.is_file() else []
            if command not in known:
                write(commands, "\n".join([*known, command]) + "\n")
            with display_on(errors, len(todo), len(plan.runs) - len(todo)) as display:
                return [ended for ended in execute(todo, engine, display) if ended.failed]
    except KeyboardInterrupt:
        without = " without --overwrite" if overwrite else ""
        errors.print(f"stopped; run the same command{without} to continue")
        raise typer.Exit(130) from None
