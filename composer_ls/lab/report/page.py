"""What every page is made of: the templates, and figures as inline SVG that follow the reader's light or dark scheme."""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter

import composer_ls
from composer_ls.errors import InputError
from composer_ls.lab.run_folder.files import write_text

__all__ = [
    "BASELINE",
    "FEW",
    "GRID",
    "INK",
    "MUTED",
    "SERIES",
    "Look",
    "Panel",
    "axis_of_counts",
    "legend_below",
    "look",
    "render",
    "svg",
    "write",
]

INK, MUTED, GRID = "#000000", "#777777", "#dddddd"
SERIES = ("#0072b2", "#d55e00", "#009e73", "#a64d86", "#b07d00", "#3c93c8", "#6b5bb0")
"""Colours to draw with. On the page each becomes a CSS variable, which has one value for light and one for dark."""

_VARIABLES = {INK: "--ink", MUTED: "--muted", GRID: "--grid"} | {
    colour: f"--series-{index}" for index, colour in enumerate(SERIES)
}
_MARKERS, _DASHES = "osD^vPX", ("-", (0, (5, 1.5)), (0, (1, 1)), (0, (5, 1, 1, 1)), (0, (3, 1, 1, 1, 1, 1)))
_STYLE: dict[Any, Any] = {
    "font.size": 11,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "axes.titlesize": 12,
    "axes.labelsize": 11,
    "xtick.labelsize": 10.5,
    "ytick.labelsize": 10.5,
    "legend.fontsize": 10.5,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": MUTED,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "lines.linewidth": 1.6,
    "lines.markersize": 5.5,
    "svg.fonttype": "none",  # text stays text: small, and in the reader's font
    "svg.hashsalt": "composer_ls",
    "text.parse_math": False,  # a recipe's name may hold dollars
}
_SVG, _XLINK = "{http://www.w3.org/2000/svg}", "{http://www.w3.org/1999/xlink}"


@dataclass(frozen=True)
class Panel:
    """A figure of a page.

    Attributes:
        title: What it shows, as plain text.
        figure: From :func:`svg`; ``None`` if it cannot be drawn, and then the caption says why.
        caption: How to read it, as plain text.

    """

    title: str
    figure: Markup | None
    caption: str = ""


@dataclass(frozen=True)
class Look:
    """How a series is drawn: told apart by colour, marker and dashes, each of which is enough."""

    color: str
    marker: str
    linestyle: Any


FEW = 20
"""Predictions in a bin whose accuracy says little."""

BASELINE = Look(INK, "o", "--")
"""The look of what everything else is compared with."""


def look(index: int) -> Look:
    """The look of the series of this index; none is used twice among the first 35."""
    return Look(SERIES[index % len(SERIES)], _MARKERS[index % len(_MARKERS)], _DASHES[index % len(_DASHES)])


def axis_of_counts(axes: Axes, most: float, counted: str) -> None:
    """Make the vertical axis logarithmic, for up to ``most`` of what is counted in bins of confidence."""
    axes.set(xlim=(0, 1.02), xlabel="confidence", yscale="log", ylim=(0.7, 2 * most), ylabel=counted)
    axes.yaxis.set_major_locator(FixedLocator([1, 100, 10_000, 1_000_000, 100_000_000]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.minorticks_off()


def legend_below(figure: Figure, axes: Axes, columns: int = 1, title: str | None = None) -> None:
    """Name the series of one pair of axes below it."""
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, title=title)


def svg(draw: Callable[[Figure], None], label: str, *, width: int = 340, height: int = 250) -> Markup:
    """An inline ``<svg>`` of what ``draw`` does to a matplotlib figure.

    Draw in black or in the colours of this module: they become CSS variables, and so follow the reader's scheme. A figure of the
    default width is readable on a telephone; of wider ones, make several.

    Args:
        draw: Given an empty figure; makes its axes (``figure.subplots()``) and fills them.
        label: What a screen reader says instead of the picture.
        width: Of the picture at its natural size, CSS pixels, in which font sizes are given too.
        height: The same.

    Example:
        >>> from composer_ls.lab.report.page import svg
        >>> picture = svg(lambda figure: figure.subplots().plot([1, 2]), "a line")
        >>> picture.startswith("<svg"), 'aria-label="a line"' in picture
        (True, True)

    """
    with rc_context(_STYLE):
        figure = Figure(figsize=(width / 72, height / 72), dpi=72, layout="constrained")
        canvas = FigureCanvasSVG(figure)
        draw(figure)
        file = io.StringIO()
        canvas.print_svg(file, metadata={"Date": None})  # half the time of savefig, which draws twice
    return _for_a_page(file.getvalue(), label)


def render(template: str, **content: Any) -> str:
    """The HTML of a template of this package. What is not ``Markup`` is escaped."""
    return _templates().get_template(template).render(version=composer_ls.__version__, **content)


def write(path: Path, text: str) -> None:
    """Write a file whole or not at all.

    Raises:
        InputError: It cannot be written.

    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, text)
    except OSError as error:
        raise InputError(
            f"{path.absolute()} cannot be written ({error.strerror or error}): make room or change the folder's "
            f"permissions, then repeat the command; finished runs are kept"
        ) from error


@lru_cache
def _templates() -> Environment:
    loader = PackageLoader("composer_ls.lab.report")
    return Environment(autoescape=True, loader=loader, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)


def _for_a_page(document: str, label: str) -> Markup:
    """The SVG of matplotlib without what a page has no use for, with colours as variables and ids that no other figure has."""
    root = ElementTree.fromstring(document)
    viewbox = root.attrib["viewBox"]
    style = f"max-width: {viewbox.split()[2]}px"
    root.attrib = {"viewBox": viewbox, "style": style, "role": "img", "aria-label": label}
    for child in list(root):
        if child.tag == f"{_SVG}metadata" or child.find(f"{_SVG}style") is not None:  # it would hold for the whole page
            root.remove(child)
    used = set(re.findall(r"(?:url\(|href=\")#([^\")]+)", document))
    own = "s" + hashlib.sha256((label + document).encode()).hexdigest()[:6]
    for element in root.iter():
        if element.get("id") not in used:
            element.attrib.pop("id", None)
        if element.get("transform", "").startswith("rotate(-0 "):
            del element.attrib["transform"]
        for key, value in element.attrib.items():
            if key == "id":
                value = own + value
            elif key == f"{_XLINK}href":
                value = f"#{own}{value[1:]}"
            elif key in {"clip-path", "style"}:
                value = _restyled(value).replace("url(#", f"url(#{own}")
            elif key in {"d", "x", "y", "transform", "width", "height"}:
                value = re.sub(r"-?\d+\.\d+", lambda number: f"{float(number[0]):.2f}", value)
                value = value.replace("\n", "")
            element.set(key, value)
        if element.tag != f"{_SVG}text":
            element.text = None
        element.tail = None
    ElementTree.register_namespace("", _SVG[1:-1])
    ElementTree.register_namespace("xlink", _XLINK[1:-1])
    return Markup(ElementTree.tostring(root, encoding="unicode"))


def _restyled(style: str) -> str:
    style = re.sub(r"font-family: [^;]*(; )?", "", style)  # the page's
    for colour, variable in _VARIABLES.items():
        style = style.replace(colour, f"var({variable})")
    return style
