"""The log file of each run of a comparison."""

from __future__ import annotations

from pathlib import Path

__all__ = ["LOG", "first_words", "last_words"]

LOG = "log.txt"
"""The name of the log file."""

_START = "--- "


def first_words(time: str, arguments: str) -> str:
    """The first line of a run's log."""
    return f"{_START}{time} UTC: composer-ls {arguments}"


def last_words(folder: Path) -> str | None:
    r"""The last line of a run's log, which for a failed run is the reason; ``None`` if there is no such log.

    Example:
        >>> import tempfile
        >>> from composer_ls.lab.compare.log import LOG, first_words, last_words
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = (Path(folder) / LOG).write_text(first_words("2026-01-02", "train digits-mlp") + "\nno data\n")
        ...     print(last_words(Path(folder)))
        no data

    """
    try:
        lines = (folder / LOG).read_text(encoding="utf-8", errors="replace").split("\n")
    except OSError:
        return None
    if not lines[0].startswith(_START):
        return None
    last = next((line.strip() for line in reversed(lines[1:]) if line.strip()), "")
    return "" if last.startswith(_START) else last.removeprefix("composer-ls: ")
