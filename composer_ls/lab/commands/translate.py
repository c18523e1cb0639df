"""composer-ls translate: lines in, translations out."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Annotated, BinaryIO

import typer

__all__ = ["add_to"]

BATCHES_AT_ONCE = 16
"""Lines of this many batches are read before they are translated, so that lines of similar length share a batch. With
batches of 1, each line is translated as it comes."""


def add_to(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command(
        epilog="""
**Examples**

`composer-ls translate RUN < in.txt > out.txt`

`echo "a man rides a horse" | composer-ls translate RUN --beam 1`

`composer-ls translate FOLDER --batch 1`, with a folder that `save_pretrained` wrote, to type sentences and read translations
"""
    )(translate)


def translate(
    run: Annotated[
        Path,
        typer.Argument(
            metavar="RUN", help="Folder of a finished run of a translation recipe, or of a Hugging Face network."
        ),
    ],
    beam: Annotated[
        int | None,
        typer.Option(
            help="Hypotheses kept by beam search; 1 is greedy. Default: the recipe's model.beam, or the network's own."
        ),
    ] = None,
    length_penalty: Annotated[
        float | None,
        typer.Option(
            help="0 favours short translations, 1 compares means per subword. Default: the recipe's, or the network's own."
        ),
    ] = None,
    temperature: Annotated[float, typer.Option(help="Of the softmax; above 1 is flatter.")] = 1.0,
    batch: Annotated[
        int,
        typer.Option(
            help="Sentences translated at once; affects only time and memory. With 1, each line is answered immediately."
        ),
    ] = 64,
) -> None:
    """Translate standard input to standard output, line by line.

    The text is UTF-8 with one sentence per line; an empty line stays empty. Translations are in lower case if the run was
    trained with `data.lowercase=true`.
    """
    import torch

    from composer_ls.lab.tasks.translation.translator import Translator

    translator = Translator.load(run, "cuda" if torch.cuda.is_available() else "cpu")
    try:
        at_once = 1 if batch == 1 or sys.stdin.isatty() else batch * BATCHES_AT_ONCE
        for first, lines in _portions(sys.stdin.buffer, at_once):
            found = translator.translate(
                lines,
                beam=beam,
                length_penalty=length_penalty,
                temperature=temperature,
                batch=batch,
                name="standard input",
                first=first,
            )
            _write(sys.stdout.buffer, found)
    except BrokenPipeError:  # the reader has stopped, as head does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None


def _portions(stream: Iterable[bytes], size: int) -> Iterator[tuple[int, list[str]]]:
    """Portions of lines, each with the number of its first line."""
    from composer_ls.lab.tasks.translation.data import decoded_lines

    lines, first = decoded_lines(stream, "standard input"), 1
    while portion := list(islice(lines, max(1, size))):
        yield first, portion
        first += len(portion)


def _write(stream: BinaryIO, lines: Iterable[str]) -> None:
    stream.write("".join(f"{line}\n" for line in lines).encode())
    stream.flush()
