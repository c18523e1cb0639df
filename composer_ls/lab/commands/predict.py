"""``composer-ls predict``: the classes of images, by the network of a run."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, TextIO

import typer

from composer_ls.errors import InputError

__all__ = ["add_to"]


def add_to(app: typer.Typer) -> None:
    """Add ``predict`` to the command line."""
    app.command(epilog=EXAMPLES)(predict)


EXAMPLES = """
**Examples**

`composer-ls predict RUN photos/ more/one.jpg --out predictions.csv`

`composer-ls predict RUN 'photos/**/*.png' --calibrated --top 1 --format jsonl`

`find photos -name '*.jpg' | composer-ls predict RUN - > predictions.csv`
"""


def predict(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a finished run of classification.")],
    images: Annotated[
        list[str],
        typer.Argument(
            metavar="IMAGES...", help="Files, folders, patterns in quotes, or - for file names on standard input."
        ),
    ],
    top: Annotated[int, typer.Option(help="How many classes for each image.", min=1)] = 5,
    calibrated: Annotated[
        bool, typer.Option("--calibrated", help="Divide logits by the temperature that fits the run's held-out images.")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="A file, .csv or .jsonl, instead of standard output.")] = None,
    kind: Annotated[
        str | None, typer.Option("--format", metavar="csv|jsonl", help="Default: by the ending of --out, else csv.")
    ] = None,
    batch: Annotated[int, typer.Option(help="Images at once: time and memory only.", min=1)] = 64,
) -> None:
    """Write the most probable classes of images, with their probabilities, as CSV or JSON lines.

    The training data is not needed. An image that cannot be read is named on standard error and left out; the exit status is then 1.
    A run whose recipe has a `model.target` runs its code.
    """
    kind = kind or ("jsonl" if out is not None and out.suffix in (".jsonl", ".json") else "csv")
    if kind not in ("csv", "jsonl"):
        raise InputError(f"--format is {kind!r}, but must be csv or jsonl")

    import torch
    from rich.console import Console
    from rich.progress import track

    from composer_ls.lab.images.image_files import left_out
    from composer_ls.lab.inference.image_paths import image_paths
    from composer_ls.lab.inference.loaded_run import load_run
    from composer_ls.lab.inference.predictions import predict as predict_images
    from composer_ls.lab.inference.predictions import writer_of

    loaded = load_run(run, "cuda" if torch.cuda.is_available() else "cpu")
    temperature = loaded.calibrated_temperature() if calibrated else 1.0
    errors = Console(stderr=True, soft_wrap=True, highlight=False, markup=False)
    if calibrated:
        errors.print(f"temperature {temperature:.4g}, fitted on the {loaded.fitted_on} images of the run")
    for stream in (sys.stdin, sys.stdout):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="surrogateescape")  # a file's name may be any bytes
    unread: list[str] = []
    paths: Iterable[str] = image_paths(images, sys.stdin, unread.append)
    if "-" not in images:
        names = list(paths)  # so that a folder without images is told before anything is written
        paths = track(names, "predicting", console=errors, transient=True, disable=not sys.stderr.isatty())
    broken: list[str] = []

    def name_broken(message: str) -> None:
        broken.append(message)
        errors.print(f"composer-ls: {message}")

    try:
        with _stream(out) as stream:
            write = writer_of(kind, stream, min(top, len(loaded.classes)))
            for one in predict_images(loaded, paths, top=top, temperature=temperature, batch=batch, broken=name_broken):
                write(one)
            stream.flush()
    except BrokenPipeError:  # whoever reads wants no more, as head does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None
    for caution in left_out(unread):
        errors.print(caution)
    if broken:
        errors.print(
            f"{len(broken)} image{'' if len(broken) == 1 else 's'} could not be read and {'is' if len(broken) == 1 else 'are'} left out"
        )
        raise SystemExit(1)


def _can_be_replaced(out: Path) -> bool:
    """Whether a file can be written all or nothing: a new one, or one that has its name in a folder in which files can be made."""
    real = out.resolve()
    if not os.access(real.parent, os.W_OK):
        return False
    return not out.exists() or (
        out.is_file() and real.is_file() and real.samefile(out)
    )  # no folder, pipe or /dev/stdout


@contextlib.contextmanager
def _stream(out: Path | None) -> Iterator[TextIO]:
    if out is None:
        yield sys.stdout
        return
    from composer_ls.lab.run_folder.files import replacing

    out = out.expanduser()  # which a shell does not in --out=~/x.csv
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        writing = replacing(out.resolve()) if _can_be_replaced(out) else contextlib.nullcontext(out)
        with writing as place, place.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
            yield file
    except OSError as error:
        raise InputError(f"--out {out} cannot be written ({error.strerror or error}): choose another file") from error
