"""A page in headless Chromium: screenshots, the sizes of its figures, console messages and requests."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on the PATH: apt-get install chromium")

# Measures every figure and what sticks out of the page; the numbers come back in the title of the dumped document.
_PROBE = """<script>addEventListener("load", () => {
  const box = element => { const b = element.getBoundingClientRect(); return [b.width, b.height]; };
  document.title = JSON.stringify({
    figures: [...document.querySelectorAll("figure")].map(box),
    pictures: [...document.querySelectorAll("figure svg")].map(box),
    requests: performance.getEntriesByType("resource").map(entry => entry.name),
    width: document.documentElement.scrollWidth,
    viewport: document.documentElement.clientWidth,
    ink: getComputedStyle(document.body).color,
    strokes: [...new Set([...document.querySelectorAll("figure svg path")].map(p => getComputedStyle(p).stroke))],
    duplicates: [...document.querySelectorAll("[id]")].length
      - new Set([...document.querySelectorAll("[id]")].map(e => e.id)).size,
  });
});</script>"""


def chromium(page: Path, *options: str, width: int = 1280, height: int = 900, dark: bool = False) -> tuple[str, str]:
    """What Chromium prints when it opens a page: (stdout, stderr)."""
    assert CHROMIUM is not None
    command = [
        CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars",
        "--disable-background-networking", "--disable-component-update", "--no-first-run", "--enable-logging=stderr",
        f"--user-data-dir={page.parent / 'chromium'}", f"--window-size={width},{height}",
        f"--blink-settings=preferredColorScheme={0 if dark else 1}", *options, page.absolute().as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout, done.stderr


def screenshot(page: Path, picture: Path, *, width: int = 1280, height: int = 900, dark: bool = False) -> None:
    """A PNG of the page's top ``height`` pixels."""
    # Chromium makes no window narrower than 500 pixels, so a narrower page is shown in a frame.
    if width < 500:
        page = _framed(page, width, height)
    chromium(page, f"--screenshot={picture}", width=max(width, 500), height=height, dark=dark)


def measured(page: Path, *, width: int = 1280, dark: bool = False) -> dict:
    """Sizes (CSS pixels) and colours that the page has in the browser."""
    probed = page.with_name(f"probed-{page.name}")
    text = page.read_text(encoding="utf-8").replace(
        "default-src 'none'", "default-src 'none'; script-src 'unsafe-inline'"
    )
    probed.write_text(text.replace("</head>", _PROBE + "</head>"), encoding="utf-8")
    return json.loads(title(probed, width=width, dark=dark))


def title(page: Path, *, width: int = 1280, dark: bool = False) -> str:
    """The document's title once the page has loaded, which a script on the page may have changed."""
    document, _ = chromium(page, "--dump-dom", width=width, dark=dark)
    found = re.search("<title>(.*?)</title>", document, re.S)
    assert found is not None
    return html.unescape(found[1])


def complaints(page: Path) -> list[str]:
    """The console's messages; a request that the page's policy forbids is one."""
    _, errors = chromium(page, "--dump-dom")
    return [line for line in errors.splitlines() if "CONSOLE" in line]


def _framed(page: Path, width: int, height: int) -> Path:
    frame = page.with_name(f"frame-{page.name}")
    frame.write_text(
        f'<body style="margin:0;background:gray"><iframe src="{page.name}" style="border:0" width="{width}" height="{height}">',
        encoding="utf-8",
    )
    return frame
