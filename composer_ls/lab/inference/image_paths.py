"""Finds the images that a user names: files, folders, patterns, and lines of standard input."""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from composer_ls.errors import DataNotFoundError
from composer_ls.lab.images.image_files import ENDINGS, UNREAD, is_hidden
from composer_ls.lab.run_folder.files import walked

__all__ = ["image_paths"]


def image_paths(
    names: Sequence[str], lines: Iterable[str] = (), unread: Callable[[str], None] = lambda path: None
) -> Iterator[str]:
    """The paths of images, one at a time.

    Args:
        names: Files; folders, of which all images at any depth are taken, except hidden ones; patterns such as
            ``'photos/*.jpg'`` or ``'**/*.png'``; or ``-`` for ``lines``.
        lines: Paths of files, one per line.
        unread: Called with each file in a folder that is an image or a video of a kind that is not read.

    Raises:
        DataNotFoundError: A folder or a pattern has no images.

    """
    for name in names:
        if name == "-":
            yield from (line.rstrip("\r\n") for line in lines if line.strip())
        elif os.path.isdir(name):
            yield from _some(
                _in_folder(Path(name), unread), f"the folder {name} holds no images ({', '.join(ENDINGS)})"
            )
        elif glob.has_magic(name) and not os.path.exists(name):
            found = (path for path in sorted(glob.glob(name, recursive=True)) if os.path.isfile(path))
            yield from _some(found, f"no file matches {name}")
        else:
            yield name


def _in_folder(folder: Path, unread: Callable[[str], None]) -> Iterator[str]:
    for place, folders, files in walked(folder):
        folders[:] = sorted(name for name in folders if not is_hidden(name))
        for name in sorted(name for name in files if not is_hidden(name)):
            if name.lower().endswith(ENDINGS):
                yield os.path.join(place, name)
            elif name.lower().endswith(UNREAD):
                unread(os.path.join(place, name))


def _some(paths: Iterator[str], complaint: str) -> Iterator[str]:
    first = next(paths, None)
    if first is None:
        raise DataNotFoundError(f"{complaint}: give image files, or a folder or pattern with some")
    yield first
    yield from paths
