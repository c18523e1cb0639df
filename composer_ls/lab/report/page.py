"""Common parts of all pages: templates, and figures as inline SVG that follow the reader's light or dark scheme."""

from __future__ import annotations

import base64
import hashlib
import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
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
"""Colours for figures. On the page each becomes a CSS variable with a value for light and one for dark."""

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
    "svg.fonttype": "none",  # text stays text, which is small and uses the reader's font
    "svg.hashsalt": "composer_ls",
    "text.parse_math": False,  # a recipe's name may contain dollar signs
}
_SVG, _XLINK = "{http://www.w3.org/2000/svg}", "{http://www.w3.org/1999/xlink}"


@dataclass(frozen=True)
class Panel:
    """A figure of a page.

    Attributes:
        title: The title, as plain text.
        figure: The result of :func:`svg`; ``None`` if it cannot be drawn, and the caption says why.
        caption: The caption, as plain text.

    """

    title: str
    figure: Markup | None
    caption: str = ""


@dataclass(frozen=True)
class Look:
    """How a series is drawn. Colour, marker and dashes each distinguish it from the others."""

    color: str
    marker: str
    linestyle: Any


FEW = 20
"""With fewer predictions than this, the accuracy of a bin is unreliable."""

BASELINE = Look(INK, "o", "--")
"""The look of the baseline."""


def look(index: int) -> Look:
    """The look of the series with this index. The first 35 are all different."""
    return Look(SERIES[index % len(SERIES)], _MARKERS[index % len(_MARKERS)], _DASHES[index % len(_DASHES)])


def axis_of_counts(axes: Axes, most: float, counted: str) -> None:
    """Format axes for a histogram of confidence with a logarithmic count of up to ``most``."""
    axes.set(xlim=(0, 1.02), xlabel="confidence", yscale="log", ylim=(0.7, 2 * most), ylabel=counted)
    axes.yaxis.set_major_locator(FixedLocator([1, 100, 10_000, 1_000_000, 100_000_000]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.minorticks_off()


def legend_below(figure: Figure, axes: Axes, columns: int = 1, title: str | None = None) -> None:
    """Add a legend for the series of ``axes`` below the figure."""
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, title=title)


def svg(draw: Callable[[Figure], None], label: str, *, width: int = 340, height: int = 250) -> Markup:
    """An inline ``<svg>`` of a matplotlib figure.

    Use black and the colours of this module, which become CSS variables and follow the reader's scheme. A figure of the
    default width is readable on a phone; instead of a wider figure, make several.

    Args:
        draw: Receives an empty figure, creates its axes (``figure.subplots()``) and draws.
        label: The description for screen readers.
        width: The natural width in CSS pixels, the unit of font sizes too.
        height: The natural height, likewise.

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
    """The HTML of a template of this package. Values are escaped unless they are ``Markup``.

    The page's Content Security Policy allows its one style sheet, by its hash, and nothing else: no script, no request.
    """
    style = resources.files(__package__).joinpath("templates/style.css").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    return (
        _templates()
        .get_template(template)
        .render(version=composer_ls.__version__, style=Markup(style), style_hash=f"sha256-{digest}", **content)
    )


def write(path: Path, text: str) -> None:
    """Write a file atomically.

    Raises:
        InputError: The file cannot be written.

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
    """Matplotlib's SVG, reduced to what a page needs, with CSS variables for colours and ids unique to the page."""
    root = ElementTree.fromstring(document)
    viewbox = root.attrib["viewBox"]
    root.attrib = {"viewBox": viewbox, "width": viewbox.split()[2], "role": "img", "aria-label": label}
    for child in list(root):
        if child.tag == f"{_SVG}metadata" or child.find(f"{_SVG}style") is not None:  # would apply to the whole page
            root.remove(child)
    used = set(re.findall(r"(?:url\(|href=\")#([^\")]+)", document))
    own = "s" + hashlib.sha256((label + document).encode()).hexdigest()[:6]
    for element in root.iter():
        element.attrib |= _attributes(element.attrib.pop("style", ""))  # a page's policy allows no style in an element
        if element.get("id") not in used:
            element.attrib.pop("id", None)
        if element.get("transform", "").startswith("rotate(-0 "):
            del element.attrib["transform"]
        for key, value in element.attrib.items():
            if key == "id":
                value = own + value
            elif key == f"{_XLINK}href":
                value = f"#{own}{value[1:]}"
            elif key == "clip-path":
                value = value.replace("url(#", f"url(#{own}")
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


def _attributes(style: str) -> dict[str, str]:
    """The declarations of a style as attributes, in the page's font and colours."""
    declared = dict(one.strip().split(": ", 1) for one in style.split(";") if one.strip())
    declared.pop("font-family", None)
    return {name: f"var({_VARIABLES[value]})" if value in _VARIABLES else value for name, value in declared.items()}
