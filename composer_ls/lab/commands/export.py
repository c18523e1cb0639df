"""``composer-ls export``: the network of a run for other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

__all__ = ["add_to"]


def add_to(app: typer.Typer) -> None:
    """Add ``export`` to the command line."""
    app.command(epilog=EXAMPLES)(export)


EXAMPLES = """
**Examples**

`composer-ls export RUN --to model.onnx --calibrated`

`composer-ls export RUN --to model.pt2`, for `torch.export.load`

`composer-ls export RUN --to model.safetensors`, for `model.weights` of another recipe
"""


def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a finished run of classification.")],
    to: Annotated[Path, typer.Option(help="The file: .onnx (needs composer_ls[export]), .pt2 or .safetensors.")],
    calibrated: Annotated[
        bool, typer.Option("--calibrated", help="Divide logits by the temperature that fits the run's held-out images.")
    ] = False,
) -> None:
    """Write the network of a run as ONNX, as a program of torch.export, or as safetensors.

    It takes preprocessed images and gives logits. Class names and preprocessing are written into the file, which is read again and
    compared with the network. A run whose recipe has a `model.target` runs its code.
    """
    from composer_ls.lab.inference.exporting import export as write
    from composer_ls.lab.inference.loaded_run import load_run

    loaded = load_run(run)
    to = to.expanduser()  # which a shell does not in --to=~/model.onnx
    difference = write(loaded, to, calibrated=calibrated)
    shape = ", ".join(str(side) for side in loaded.result["image_shape"])
    scaled = f", logits divided by {loaded.calibrated_temperature():.4g}" if calibrated else ""
    size = to.stat().st_size / 1e6
    text = (
        f"{to}: images (N, {shape}) to logits (N, {len(loaded.classes)}){scaled}; {size:.1f} MB; equal to the network to "
        f"{max(difference, 1e-9):.1g}"
    )
    Console().print(Text(text), soft_wrap=True)
