"""Lines of text from files, and parallel text: two files that match line by line."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from composer_ls.errors import DataNotFoundError, TextError

__all__ = ["Pairs", "decoded_lines", "doubts", "line_numbers", "read_lines", "read_pairs"]


@dataclass(frozen=True)
class Pairs:
    """Sentences and their translations, line by line.

    Attributes:
        source: N sentences.
        target: Their N translations.
        name: Where they come from, for messages.

    """

    source: list[str]
    target: list[str]
    name: str = "pairs"

    def __len__(self) -> int:
        return len(self.source)

    def first(self, count: int | None) -> Pairs:
        """The first ``count`` pairs; all of them if ``count`` is ``None``."""
        return Pairs(self.source[:count], self.target[:count], self.name)


def read_pairs(root: str | Path, split: str, source: str, target: str) -> Pairs:
    """Read ``ROOT/SPLIT.SOURCE`` and ``ROOT/SPLIT.TARGET``, or the same names with ``.gz``.

    Args:
        root: The folder.
        split: Such as ``train``.
        source: The file extension of the source language, such as ``en``.
        target: The file extension of the target language.

    Raises:
        DataNotFoundError: A file is missing.
        TextError: A file is empty or not UTF-8, or the two have different numbers of lines.

    """
    folder = Path(root).expanduser()
    files = [_find(folder, f"{split}.{language}") for language in (source, target)]
    left, right = (read_lines(file) for file in files)
    if len(left) != len(right):
        raise TextError(
            f"{files[0]} has {len(left):,} lines, but {files[1]} has {len(right):,}: line n of one must be the "
            f"translation of line n of the other"
        )
    return Pairs(left, right, split)


def _find(folder: Path, name: str) -> Path:
    for file in (folder / name, folder / f"{name}.gz"):
        if file.is_file():
            return file
    raise DataNotFoundError(
        f"there is neither {name} nor {name}.gz in {folder.absolute()}: set data.root=DIR to the folder with the parallel "
        f"text, one sentence per line (Multi30k: https://github.com/multi30k/dataset, task 1, raw)"
    )


def read_lines(path: Path) -> list[str]:
    """The lines of a UTF-8 file, which may be compressed by gzip, without line ends.

    Only a line feed ends a line. Python's ``splitlines`` also breaks at ten other characters, some of which occur in
    ordinary text, so two files would no longer match line by line.

    Raises:
        TextError: The file is empty, cannot be read, or is not UTF-8; the message has the line's number.

    """
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise TextError(f"{path} cannot be read ({error}): fetch or write it again") from error
    lines = list(decoded_lines(content.removesuffix(b"\n").split(b"\n"), str(path)))
    if not any(lines):
        raise TextError(f"{path} is empty: it must contain one sentence per line")
    return lines


def decoded_lines(lines: Iterable[bytes], name: str) -> Iterator[str]:
    r"""Decode lines one by one.

    Args:
        lines: The lines as bytes, with or without line ends.
        name: Where they are from, for the message.

    Raises:
        TextError: A line is not UTF-8; the message has its number, from 1.

    Example:
        >>> from composer_ls.lab.tasks.translation.data import decoded_lines
        >>> list(decoded_lines([b"Guten Tag\r\n", b""], "input"))
        ['Guten Tag', '']

    """
    for number, line in enumerate(lines, 1):
        try:
            text = line.decode("utf-8")
        except UnicodeDecodeError as error:
            raise TextError(
                f"{name}, line {number}: byte {error.start + 1} (0x{line[error.start]:02x}) is not UTF-8: convert the "
                f"text, as with iconv -f ISO-8859-1 -t UTF-8"
            ) from error
        yield text.removeprefix("\ufeff" if number == 1 else "").rstrip("\r\n")


def line_numbers(places: Sequence[int], first: int = 1) -> str:
    """The numbers of some lines for a message, at most five, of lines whose first has the number ``first``."""
    return f"line {', '.join(str(first + place) for place in places[:5])}{', ...' if len(places) > 5 else ''}"


def doubts(train: Pairs, tests: Sequence[Pairs]) -> list[str]:
    """What may be wrong with the text: pairs of which one side is empty, and pairs of a test that are in train too.

    Example:
        >>> from composer_ls.lab.tasks.translation.data import Pairs, doubts
        >>> doubts(Pairs(["a dog", "a cat"], ["ein Hund", ""], "train"), [Pairs(["a dog"], ["ein Hund"], "test")])
        ['train: 1 of 2 pairs have one empty side (line 2)', 'test: 1 of 1 pairs are in train too (line 1)']

    """
    learnt = set(zip(train.source, train.target, strict=True))
    found = []
    for pairs in (train, *tests):
        both = list(zip(pairs.source, pairs.target, strict=True))
        empty = [place for place, (left, right) in enumerate(both) if bool(left.strip()) != bool(right.strip())]
        known = [place for place, pair in enumerate(both) if pairs is not train and pair in learnt]
        for places, what in ((empty, "have one empty side"), (known, f"are in {train.name} too")):
            if places:
                found.append(f"{pairs.name}: {len(places)} of {len(both):,} pairs {what} ({line_numbers(places)})")
    return found
