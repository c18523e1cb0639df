"""Predicts the classes of image files, and writes them as CSV or JSON lines."""

from __future__ import annotations

import csv
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TextIO

import torch
from torch import Tensor

from composer_ls.errors import DataNotFoundError
from composer_ls.lab.inference.loaded_run import LoadedRun

__all__ = ["Prediction", "predict", "writer_of"]

READERS = 4
"""Threads that read images; decoding does not hold Python's lock."""


@dataclass(frozen=True)
class Prediction:
    """The most probable classes of one image, the most probable one first.

    Attributes:
        image: The path of the image.
        classes: Names of classes.
        probabilities: Their probabilities.

    """

    image: str
    classes: tuple[str, ...]
    probabilities: tuple[float, ...]


def predict(
    run: LoadedRun,
    paths: Iterable[str],
    *,
    top: int = 5,
    temperature: float = 1.0,
    batch: int = 64,
    broken: Callable[[str], None] = lambda message: None,
) -> Iterator[Prediction]:
    """Predict images, in their order. Only a batch of them is in memory.

    Args:
        run: The network.
        paths: The paths of the images.
        top: The number of classes to return for each image, at most all.
        temperature: Of the softmax.
        batch: Images at once.
        broken: Called with the error of each image that cannot be read; the image is left out.

    """
    top = min(top, len(run.classes))
    paths = iter(paths)
    with ThreadPoolExecutor(READERS) as readers:
        while names := list(itertools.islice(paths, batch)):
            kept: list[tuple[str, Tensor]] = []
            for name, read in zip(names, readers.map(_reading(run), names), strict=True):
                if isinstance(read, DataNotFoundError):
                    broken(str(read))
                else:
                    kept.append((name, read))
            if not kept:
                continue
            probabilities = run.probabilities(torch.stack([image for _, image in kept]), temperature)
            values, indices = probabilities.topk(top)
            for (name, _), row, classes in zip(kept, values.tolist(), indices.tolist(), strict=True):
                yield Prediction(name, tuple(run.classes[index] for index in classes), tuple(row))


def _reading(run: LoadedRun) -> Callable[[str], Tensor | DataNotFoundError]:
    def read(name: str) -> Tensor | DataNotFoundError:
        try:
            return run.preprocessing(name)
        except DataNotFoundError as error:
            return error

    return read


def writer_of(kind: str, stream: TextIO, top: int) -> Callable[[Prediction], None]:
    """A function that writes a prediction as a line of ``csv``, with a header before the first, or of ``jsonl``."""
    if kind == "jsonl":
        return lambda prediction: print(json.dumps(_as_dict(prediction), ensure_ascii=False), file=stream)
    rows = csv.writer(stream, lineterminator="\n")
    columns: Sequence[str] = [f"{what}_{place}" for place in range(1, top + 1) for what in ("class", "probability")]
    rows.writerow(["image", *columns])

    def write(prediction: Prediction) -> None:
        pairs = zip(prediction.classes, prediction.probabilities, strict=True)
        rows.writerow([prediction.image, *(cell for name, value in pairs for cell in (name, f"{value:.6f}"))])

    return write


def _as_dict(prediction: Prediction) -> dict[str, object]:
    pairs = zip(prediction.classes, prediction.probabilities, strict=True)
    return {
        "image": prediction.image,
        "predictions": [{"class": name, "probability": round(value, 6)} for name, value in pairs],
    }
