"""``composer-ls train``: one run."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from composer_ls.lab.run_folder.folder import RunFolder
    from composer_ls.lab.tasks.task_report import TaskReport

__all__ = ["add_to", "next_commands"]


def add_to(app: typer.Typer) -> None:
    """Add ``train`` to the command line."""
    app.command(epilog=EXAMPLES)(train)


EXAMPLES = """
**Examples**

`composer-ls train digits-mlp`

`composer-ls train digits-mlp algorithms.label_smoothing.smoothing=0 seed=3`

`composer-ls train cifar10-resnet20 data.download=true algorithms.mixup='{alpha: 0.2}'`

`composer-ls train cifar10-resnet20 data.name=imagefolder data.root=DIR duration=1ep`

`composer -n 2 -m composer_ls train digits-mlp` (two processes)
"""


def train(
    context: typer.Context,
    recipe: Annotated[
        str, typer.Argument(help="A shipped recipe's name (see `composer-ls recipes`) or a path to one.")
    ],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Changes to the recipe, as `key.path=value`; values are YAML.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The run folder. Default: runs/RECIPE-FINGERPRINT.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Start afresh, losing what the folder holds.")] = False,
) -> None:
    """Train as a recipe says, and leave a run folder.

    A run that was killed goes on from its last checkpoint; a finished one is not run again.
    """
    from composer_ls.lab.recipe.reading import load_recipe
    from composer_ls.lab.run_folder.folder import RunFolder
    from composer_ls.lab.tasks.registry import task_report

    resolved = load_recipe(recipe, overrides or [])
    folder = RunFolder(out, resolved)
    if not overwrite:
        folder.check()
    result = None if overwrite else folder.result()
    was_finished = result is not None
    if result is None:
        from composer_ls.lab.training.train import train as run  # imports Composer, which takes seconds

        result = run(resolved, folder, overwrite=overwrite, debug=bool(context.obj))
    if os.environ.get("RANK", "0") != "0":
        return
    console = Console()
    console.print(_result_table(result, task_report(resolved.task), folder.path))
    if was_finished:
        note = f"This run was finished at {result['finished']} and was not run again; --overwrite does that."
        console.print(note, soft_wrap=True)
    for purpose, command in next_commands(recipe, overrides or [], resolved.smoothing, folder):
        console.print(Text(f"\n{purpose}:\n  {command}"), soft_wrap=True)


def next_commands(
    recipe: str, overrides: Sequence[str], smoothing: float, folder: RunFolder
) -> tuple[tuple[str, str], tuple[str, str]]:
    """The two commands that a user would type next, each after what it is for.

    Args:
        recipe: What the run was given.
        overrides: Likewise.
        smoothing: Of the run.
        folder: Of the run.

    """
    from composer_ls.lab.compare.settings import SMOOTHING
    from composer_ls.lab.tasks.registry import task_report

    others = [override for override in overrides if override.partition("=")[0].strip() != SMOOTHING]
    factors = [] if smoothing in (0, 0.1) else ["--smoothing", f"0,{smoothing:g}"]
    compare = "Whether smoothing helps, over 5 seeds", ["compare", recipe, *others, *factors]
    made_for = task_report(folder.recipe.task).next_command
    if made_for is not None:
        return _shown(*compare), ("To use the network", made_for.format(run=shlex.quote(str(folder.path))))
    if folder.features_file.is_file():
        return _shown(*compare), _shown("What happened inside the network", ["diagnose", str(folder.path)])
    other = 0.1 if smoothing == 0 else 0
    same = f"The same run with{'' if other else 'out'} smoothing"
    return _shown(*compare), _shown(same, ["train", recipe, *others, f"{SMOOTHING}={other:g}"])


def _shown(purpose: str, words: Sequence[str]) -> tuple[str, str]:
    return purpose, shlex.join(["composer-ls", *words])


def _result_table(result: Mapping[str, Any], report: TaskReport, folder: Path) -> Table:
    metrics = {metric.key: metric for metric in report.in_result}
    rows = [
        *(
            (f"{metrics[key].name} ({metrics[key].result_unit})", f"{value:.4f}")
            for key, value in result["metrics"].items()
        ),
        ("what was trained", result["plan"]),
        ("seconds of training", f"{result['train_seconds']:.1f}"),
        ("run folder", str(folder)),
    ]
    table = Table(box=None, show_header=False, pad_edge=False, title=result["name"], title_justify="left")
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(name, Text(value))
    return table
