"""``composer-ls train``: train one recipe."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from composer_ls.lab.report.fitted import fitted

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

`composer -n 2 -m composer_ls train digits-mlp` (two processes; for several machines, see `composer --help`)
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
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Start over, discarding what the folder holds.")
    ] = False,
) -> None:
    """Train a recipe, and write a run folder.

    An interrupted run continues from its last checkpoint; a finished one is not run again.
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
    if result is None or os.environ.get("WORLD_SIZE", "1") != "1":  # the other processes may not have the folder
        with _signal_handlers_kept():
            from composer_ls.lab.training.stopping import StoppedInTraining
            from composer_ls.lab.training.train import train as run  # imports Composer, which takes seconds

        bar = sys.stderr.isatty()
        try:
            result = run(
                resolved,
                folder,
                overwrite=overwrite,
                progress=bar,
                each_line=None if bar else _print_line,
                debug=bool(context.obj),
            )
        except StoppedInTraining as stopped:
            again = shlex.join(["composer-ls", *(word for word in sys.argv[1:] if word != "--overwrite")])
            message = f"\ncomposer-ls: {stopped}; to continue from the last checkpoint:\n  {again}"
            print(message, file=sys.stderr)
            raise SystemExit(128 + stopped.signal) from None
    if os.environ.get("RANK", "0") != "0":
        return
    console = Console()
    _show_result(console, result, task_report(resolved.task), folder)
    if was_finished:
        note = f"This run was finished at {result['finished']} and was not run again; --overwrite does that."
        console.print(note, soft_wrap=True)
    if result.get("diverged"):
        print("composer-ls: the run diverged, so no comparison will count it", file=sys.stderr)
        raise SystemExit(1)
    for purpose, command in next_commands(recipe, overrides or [], resolved.smoothing, folder):
        console.print(Text(f"\n{purpose}:\n  {command}"), soft_wrap=True)


@contextlib.contextmanager
def _signal_handlers_kept() -> Iterator[None]:
    """Undo what importing Composer does to SIGINT and SIGTERM, unless a launcher started several processes.

    Composer's handler raises SystemExit, which Python drops if the signal comes in a destructor, and it also replaces the
    handler of a signal that is ignored.
    """
    alone = os.environ.get("WORLD_SIZE", "1") == "1" and threading.current_thread() is threading.main_thread()
    before = {one: signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)} if alone else {}
    yield
    for one, handler in before.items():
        signal.signal(one, handler)


def next_commands(
    recipe: str, overrides: Sequence[str], smoothing: float, folder: RunFolder
) -> tuple[tuple[str, str], tuple[str, str]]:
    """The two commands that a user is likely to run next, each with its purpose.

    Args:
        recipe: The recipe argument of the run.
        overrides: The override arguments of the run.
        smoothing: The run's smoothing.
        folder: The run's folder.

    """
    from composer_ls.lab.compare.settings import without_amounts
    from composer_ls.lab.recipe.methods import amount_key, given_amount
    from composer_ls.lab.tasks.registry import task_report

    others = [kept for override in overrides if (kept := without_amounts(override))]
    method = folder.recipe.method or "label_smoothing"
    is_number = isinstance(given_amount(method, folder.recipe.algorithms.get(method)), (int, float))
    factors = ["--smoothing", f"0,{smoothing:g}"] if is_number and smoothing not in (0, 0.1) else []
    compare = "Whether smoothing helps, over 5 seeds", ["compare", recipe, *others, *factors]
    made_for = task_report(folder.recipe.task).next_command
    if made_for is not None:
        return _shown(*compare), ("To use the network", made_for.format(run=shlex.quote(str(folder.path))))
    if folder.features_file.is_file():
        return _shown(*compare), _shown("What happened inside the network", ["diagnose", str(folder.path)])
    other = 0.1 if smoothing == 0 else 0
    same = f"The same run with{'' if other else 'out'} smoothing"
    return _shown(*compare), _shown(same, ["train", recipe, *others, f"{amount_key(method)}={other:g}"])


def _shown(purpose: str, words: Sequence[str]) -> tuple[str, str]:
    return purpose, shlex.join(["composer-ls", *words])


def _print_line(line: Mapping[str, float]) -> None:
    """Print the result of an epoch, for output without a progress bar."""
    loss = f": training loss {line['loss/train/total']:.4f}" if "loss/train/total" in line else ""
    print(f"epoch {line['epoch']}, step {line['batch']}{loss}", file=sys.stderr, flush=True)


def _show_result(console: Console, result: Mapping[str, Any], report: TaskReport, folder: RunFolder) -> None:
    """Print the metrics of a run, its warnings, and how its confidence compares with its accuracy."""
    from composer_ls.lab.compare.setup import setup_in_words

    metrics = {metric.key: metric for metric in report.in_result}

    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(style="dim")
    table.add_column(no_wrap=True)
    for key, value in result["metrics"].items():
        number = f"{value:.4f}" if isinstance(value, int | float) else "not finite"
        # A newer version may have metrics that this one does not know.
        table.add_row(f"{metrics[key].name} ({metrics[key].result_unit})" if key in metrics else key, number)
    table.add_row("seconds of training", f"{result['train_seconds']:.1f}")
    console.print(Text(result["name"], style="bold"))
    console.print(Text(setup_in_words(folder.recipe, result)), soft_wrap=True)
    console.print(fitted(table, console))
    for text in filter(None, [_calibration(report, folder), result["plan"], f"Run folder: {folder.path}"]):
        console.print(Text(text), soft_wrap=True)
    if result.get("warnings"):
        console.print(Text("\nBe careful", style="bold red"))
    for warning in result.get("warnings", ()):
        console.print(Text(warning), soft_wrap=True)


def _calibration(report: TaskReport, folder: RunFolder) -> str:
    """Whether the network is over- or under-confident, in a sentence; "" if its predictions cannot be read."""
    from safetensors import SafetensorError

    from composer_ls.lab.compare.measured_runs import HELD_OUT
    from composer_ls.lab.report.calibration_words import calibration_in_words
    from composer_ls.lab.run_folder.files import read_tensors

    try:
        predictions = read_tensors(folder.predictions_file)
        test = {name: tensor for name, tensor in predictions.items() if not name.startswith(HELD_OUT)}
        return calibration_in_words(report.bins(test), f"test {report.counted}")
    except (OSError, SafetensorError, ValueError, LookupError, TypeError):
        return ""
