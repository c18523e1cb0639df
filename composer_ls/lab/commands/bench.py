"""``composer-ls bench``: measure the loss and the training step."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from composer_ls.errors import InputError

__all__ = ["add_to"]

PEERS = ("composer_ls", "Composer", "torch.compile", "timm", "Liger-Kernel")
DTYPES = ("float32", "float64", "bfloat16", "float16")


def add_to(app: typer.Typer) -> None:
    """Add ``bench`` to the command line."""
    bench = typer.Typer(
        help="Benchmark against other implementations.", no_args_is_help=True, rich_markup_mode="markdown"
    )
    bench.command("loss", epilog=EXAMPLES)(loss)
    bench.command("step")(step)
    app.add_typer(bench, name="bench")


EXAMPLES = """
**Examples**

`composer-ls bench loss`

`composer-ls bench loss --shapes 2048x1000,2048x8000,2048x32000 --cases smoothed,mixed --json loss.json --plot loss.png`

`composer-ls bench loss --shapes 8x12x180x240 --ignored 0.05 --cases smoothed`

`composer-ls bench loss --shapes 2048x50257 --width 256`

`composer-ls bench loss --device cuda --dtype bfloat16 --shapes 8192x32000,8192x128256`
"""


def loss(
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    shapes: Annotated[
        str, typer.Option(help="Shapes of the logits, NxK or NxKxHxW, separated by commas.")
    ] = "512x10,256x1000,2048x32000",
    dtype: Annotated[str, typer.Option(help=f"Dtype of the logits: {', '.join(DTYPES)}.")] = "float32",
    cases: Annotated[
        str, typer.Option(help="Targets: hard, smoothed, mixed, by_class, max_sup, online.")
    ] = "hard,smoothed,mixed",
    ignored: Annotated[float, typer.Option(help="The fraction of labels to ignore.")] = 0.0,
    peers: Annotated[
        str, typer.Option(help=f"Implementations besides PyTorch's, from {', '.join(PEERS)}. Default: all.")
    ] = "",
    seconds: Annotated[float, typer.Option(help="How long to repeat each shape, at least five times.")] = 20.0,
    memory: Annotated[bool, typer.Option(help="Measure memory too, in a separate process each.")] = True,
    width: Annotated[int | None, typer.Option(help="Include a linear layer of this width before the loss.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write all numbers to this file.")] = None,
    plot_file: Annotated[Path | None, typer.Option("--plot", help="Plot time and memory over K to this file.")] = None,
) -> None:
    """Measure time and memory of the loss, forward and backward, for every installed implementation.

    Each implementation goes from labels to the gradient of the logits, so smoothing and mixing count. Times are in ms,
    with half the distance between their quartiles, from repeats that alternate in one process. /hard and /smooth are
    ratios to `F.cross_entropy` with labels, without and with `label_smoothing=`; /copy is the ratio to a copy of the
    logits, the lower bound. Memory is the peak beyond the logits, divided by their size. With `--width`, each
    implementation goes from hidden states and a weight to their gradients, memory is the peak beyond these, and
    `linear_cross_entropy`, which never holds all logits, takes part.
    """
    parsed = _shapes(shapes)
    chosen = _cases(cases)
    if dtype not in DTYPES:
        raise InputError(f"--dtype is {dtype!r}, but must be one of {', '.join(DTYPES)}")
    if not 0 <= ignored < 1:
        raise InputError(f"--ignored is {ignored}, but must be in [0, 1): 0.05 ignores a twentieth")
    json_file, plot_file = (None if file is None else file.expanduser() for file in (json_file, plot_file))
    for option, file in (("--json", json_file), ("--plot", plot_file)):
        _check_file(option, file)
    if plot_file is not None and plot_file.suffix not in (".png", ".pdf", ".svg"):
        raise InputError(f"--plot is {plot_file}, but must end in .png, .pdf or .svg")
    if width is not None:
        _check_width(width, parsed, ignored)
    _check_device(device)
    names = tuple(name.strip() for name in peers.split(",")) if peers else ()
    for name in names:
        if name not in PEERS:
            raise InputError(f"--peers has {name!r}, but a peer is one of {', '.join(PEERS)}; separate peers by commas")

    from rich.console import Console
    from rich.text import Text

    from composer_ls.lab.bench.measure import Settings, how_long, machine, measure
    from composer_ls.lab.bench.results import plot, table
    from composer_ls.lab.report.fitted import fitted

    settings = Settings(parsed, dtype, device, chosen, ignored, seconds, memory, names, width)
    console, errors = Console(), Console(stderr=True)
    errors.print(Text(how_long(settings)), soft_wrap=True)
    with errors.status("starting") as status:
        results = measure(settings, status.update)
    where = machine(device)
    for shape in parsed:
        console.print(fitted(table(results, shape), console))
        console.print()
    if json_file is not None:
        json_file.write_text(_record(settings, where, results), encoding="utf-8")
    if plot_file is not None:
        hardware = where.get("gpu") or f"{where['processor']}, {where['threads']} threads"
        plot(results, plot_file, f"{dtype}, N = {', '.join(sorted({str(s[0]) for s in parsed}))}; {hardware}")


def step(
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    batch_size: Annotated[int, typer.Option(help="Images per step.")] = 128,
    seconds: Annotated[float, typer.Option(help="How long to repeat, at least five times.")] = 60.0,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write all numbers to this file.")] = None,
) -> None:
    """Measure what LabelSmoothing adds to a training step: ResNet-20, 32x32 images, CutMix, Composer's Trainer.

    Two trainers, with and without it, alternate in one process.
    """
    if batch_size < 2:
        raise InputError(f"--batch-size is {batch_size}, but CutMix needs at least 2 images")
    _check_file("--json", json_file)
    _check_device(device)

    from dataclasses import asdict

    from composer_ls.lab.bench.measure import machine
    from composer_ls.lab.bench.step import measure_step

    times = measure_step(device, batch_size, seconds)
    low, high = times.spread
    print(f"without LabelSmoothing  {times.plain * 1e3:.1f} ms per step")
    print(f"with it                 {times.smoothed * 1e3:.1f} ms per step")
    print(f"ratio                   {times.ratio:.3f} (quartiles {low:.3f} to {high:.3f}, {times.blocks} pairs)")
    if json_file is not None:
        record = {"machine": machine(device), "batch_size": batch_size, "result": asdict(times)}
        json_file.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def _check_file(option: str, file: Path | None) -> None:
    if file is not None and not file.absolute().parent.is_dir():
        raise InputError(f"{option} is {file}, but the folder {file.absolute().parent} does not exist")


def _record(settings: Any, where: dict[str, Any], results: list[Any]) -> str:
    from dataclasses import asdict

    record = {"settings": asdict(settings), "machine": where, "results": [asdict(result) for result in results]}
    return json.dumps(record, indent=1) + "\n"


def _shapes(text: str) -> tuple[tuple[int, ...], ...]:
    shapes = []
    for part in text.split(","):
        sizes = part.strip().lower().split("x")
        if len(sizes) < 2 or not all(size.isdecimal() and int(size) > 0 for size in sizes):
            raise InputError(
                f"--shapes has {part.strip()!r}, but a shape is NxK, such as 256x1000, or NxKxHxW; separate shapes by commas"
            )
        shapes.append(tuple(map(int, sizes)))
    return tuple(shapes)


def _cases(text: str) -> tuple[str, ...]:
    known = ("hard", "smoothed", "mixed", "by_class", "max_sup", "online")
    chosen = tuple(part.strip() for part in text.split(","))
    for case in chosen:
        if case not in known:
            raise InputError(f"--cases has {case!r}, but a case is one of {', '.join(known)}; separate cases by commas")
    return chosen


def _check_device(device: str) -> None:
    if device not in ("cpu", "cuda"):
        raise InputError(f"--device is {device!r}, but must be cpu or cuda")
    if device == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise InputError("--device is cuda, but PyTorch sees no CUDA device; use --device cpu")


def _check_width(width: int, shapes: tuple[tuple[int, ...], ...], ignored: float) -> None:
    if width < 1:
        raise InputError(f"--width is {width}, but must be at least 1: 256 is that of a small language model")
    for shape in shapes:
        if len(shape) != 2:
            given = "x".join(map(str, shape))
            raise InputError(f"--shapes has {given}, but with --width a shape is NxK, such as 2048x50257")
    if ignored:
        raise InputError(f"--ignored is {ignored}, but the losses that --width compares are of labels that all count")
