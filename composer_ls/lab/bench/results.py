"""Presents results: a table for the terminal, and a plot of time and memory over K."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.table import Table
from rich.text import Text

from composer_ls.lab.bench.contestants import CASES, HARD, SMOOTHED
from composer_ls.lab.bench.measure import Result

__all__ = ["plot", "table"]

# Okabe and Ito's colours, which are safe for colour blindness; markers distinguish the rest.
_LOOKS = {
    "composer_ls": ("#0072B2", "o"),
    "composer_ls, triton": ("#0072B2", "o"),
    "composer_ls, eager": ("#56B4E9", "s"),
    "composer_ls, without logits": ("#0072B2", "o"),
    "composer_ls, with logits": ("#56B4E9", "s"),
    HARD: ("#000000", "D"),
    SMOOTHED: ("#E69F00", "^"),
    "F.cross_entropy, dense": ("#D55E00", "v"),
    "Composer": ("#CC79A7", "P"),
    "timm": ("#009E73", "X"),
    "torch.compile": ("#8C8C8C", "<"),
    "Liger-Kernel": ("#B8A800", ">"),
}


def table(results: Sequence[Result], shape: tuple[int, ...]) -> Table:
    """A table of the results for one shape, fastest first within each case."""
    made = Table(
        title=" x ".join(map(str, shape)), title_justify="left", box=None, pad_edge=False, padding=(0, 1, 0, 0)
    )
    made.add_column("case", style="dim", no_wrap=True)
    made.add_column("loss", no_wrap=True)
    for heading in ("ms", "±", "/hard", "/smooth", "GB/s", "/copy", "memory"):
        made.add_column(heading, justify="right", no_wrap=True)
    for case in CASES:
        shown = sorted((r for r in results if r.shape == shape and r.case == case), key=lambda r: r.seconds)
        for place, result in enumerate(shown):
            low, high = result.spread
            made.add_row(
                case if place == 0 else "",
                Text(result.name, style="bold" if result.name.startswith("composer_ls") else ""),
                f"{result.seconds * 1e3:.3g}",
                f"{(high - low) / 2 / result.seconds:.0%}",
                f"{result.over_hard:.2f}",
                f"{result.over_smoothed:.2f}",
                f"{result.gigabytes_per_second:.2g}",
                f"{1 / result.floor:.1f}",
                "" if result.extra is None else f"{result.extra:.2f}",
            )
    return made


def plot(results: Sequence[Result], path: Path, subtitle: str) -> None:
    """Save a plot of time (left) and memory (right) over K, with one row per case."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import StrMethodFormatter

    cases = [case for case in CASES if any(result.case == case for result in results)]
    names = [name for name in _LOOKS if any(result.name == name for result in results)]
    with_memory = any(result.extra is not None for result in results)
    columns = 2 if with_memory else 1
    figure = Figure(figsize=(5.2 * columns, 1.5 + 3.0 * len(cases)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(cases), columns, squeeze=False, sharex=True)
    for row, case in enumerate(cases):
        for column, axis in enumerate(axes[row]):
            for name in names:
                shown = sorted((r for r in results if (r.case, r.name) == (case, name)), key=lambda r: r.shape[1])
                shown = [r for r in shown if column == 0 or r.extra is not None]
                if not shown:
                    continue
                xs = [r.shape[1] for r in shown]
                color, marker = _LOOKS[name]
                ours = name.startswith("composer_ls")
                ys = [r.seconds * 1e3 if column == 0 else r.extra or 0.0 for r in shown]
                axis.plot(
                    xs, ys, color=color, marker=marker, markersize=6, linewidth=2.4 if ours else 1.3,
                    linestyle="--" if name.endswith("eager") else "-", zorder=3 if ours else 2, label=name,
                )  # fmt: skip
                if column == 0:
                    axis.fill_between(
                        xs, [r.spread[0] * 1e3 for r in shown], [r.spread[1] * 1e3 for r in shown],
                        color=color, alpha=0.15, linewidth=0,
                    )  # fmt: skip
            axis.set(xscale="log", yscale="log" if column == 0 else "linear")
            axis.set_ylabel("time (ms)" if column == 0 else "memory beyond the logits\n(× their size)")
            axis.grid(visible=True, which="major", color="#E5E5E5", linewidth=0.8)
            axis.spines[["top", "right"]].set_visible(False)
            axis.set_title(f"{case}: {CASES[case]}" if column == 0 else "", loc="left", fontsize=9)
            ks = sorted({r.shape[1] for r in results})
            axis.set_xticks(ks, [f"{k:,}" for k in ks])
            axis.minorticks_off()
            if column == 0:
                axis.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
            else:
                axis.set_ylim(bottom=0)
    for axis in axes[-1]:
        axis.set_xlabel("classes, K")
    figure.suptitle(f"Cross entropy, forward and backward\n{subtitle}", x=0.01, ha="left", fontsize=11)
    handles = {text: line for axis in axes.flat for line, text in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(
        [handles[name] for name in names], names, loc="outside lower left", ncols=columns + 1, frameon=False, fontsize=9
    )
    figure.savefig(path, dpi=150)
