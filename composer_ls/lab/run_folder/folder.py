"""The files that a run writes, all in one folder and each written atomically."""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from composer_ls.errors import RecipeError, RunFolderError
from composer_ls.lab.recipe.mistakes import place_of
from composer_ls.lab.recipe.recipe import Recipe, differing_keys, order_of, recipe_schema
from composer_ls.lab.recipe.yaml_text import parse_yaml
from composer_ls.lab.run_folder.files import finite, told_if_unwritable, write_folder, write_tensors, write_text

__all__ = ["OF_A_RUN", "RunFolder", "read_recipe"]

OF_A_RUN = frozenset({"checkpoints", "tensorboard", "model"})
"""The folders that a run writes inside its own."""


class RunFolder:
    """The folder of one run.

    Args:
        path: Its path; ``~`` is the home folder. ``None``: ``runs/<recipe>-<fingerprint>`` below the current folder.
        recipe: The run's recipe.

    Attributes:
        recipe_file: ``recipe.yaml``, resolved: enough to repeat the run.
        result_file: ``result.json``, which exists only if the run is finished.
        metrics_file: ``metrics.jsonl``, one line per epoch.
        predictions_file: ``predictions.safetensors``, from which the metrics can be computed again. Its contents depend
            on the task and are documented in the task's class.
        features_file: ``features.safetensors``, if the recipe has ``diagnostics``: for the sets ``train`` and ``test``,
            penultimate ``<set>.features`` (M, D), ``<set>.logits`` (M, K) and ``<set>.labels`` (M,); the last layer's
            ``weight`` (K, D) and ``bias`` (K,), if it has one; ``mutual_information`` (steps and nats, (S, 2)), if it was measured.
        weights_file: ``weights.safetensors``, the network's weights with which the predictions were made, if the task and
            the recipe keep them. Its metadata has what is needed to use them.
        tensorboard_folder: What TensorBoard shows, if the recipe has that logger and names no other folder.
        checkpoint_folder: Composer's checkpoints. Deleted when the run is finished, unless the recipe keeps them or the run
            diverged.

    """

    def __init__(self, path: str | Path | None, recipe: Recipe) -> None:
        self.path = (
            Path(path).expanduser() if path is not None else Path("runs") / f"{recipe.name}-{recipe.fingerprint()}"
        )
        self.recipe = recipe
        self.recipe_file = self.path / "recipe.yaml"
        self.result_file = self.path / "result.json"
        self.metrics_file = self.path / "metrics.jsonl"
        self.predictions_file = self.path / "predictions.safetensors"
        self.features_file = self.path / "features.safetensors"
        self.weights_file = self.path / "weights.safetensors"
        self.tensorboard_folder = self.path / "tensorboard"
        self.checkpoint_folder = self.path / "checkpoints"

    def result(self) -> dict[str, Any] | None:
        """The result, if the run is finished.

        Raises:
            RunFolderError: It cannot be read.

        """
        try:
            result = json.loads(self.result_file.read_text(encoding="utf-8"))
            if not (isinstance(result, dict) and isinstance(result.get("metrics"), dict)):
                raise ValueError("it has no metrics")
            return result
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise RunFolderError(
                f"{self.result_file} cannot be read ({error}): add --overwrite to run again"
            ) from error

    def trained_result(self) -> dict[str, Any] | None:
        """The result of a run whose network is to be used; ``None`` if the run is not finished.

        Raises:
            RunFolderError: The run diverged, or the result cannot be read.

        """
        result = self.result()
        if result is not None and result.get("diverged"):
            how = result.get("divergence") or "its numbers are not finite"
            raise RunFolderError(
                f"the run in {self.path} diverged ({how}), so its network is of no use: train again with a smaller "
                f"optimizer.learning_rate, or give another run"
            )
        return result

    def check(self, *, overwrite: bool = False) -> None:
        """Check that the run can use this folder.

        Raises:
            RunFolderError: The folder cannot be written, or it holds checkpoints that are not from a run of
                composer-ls, or a run of another recipe while ``overwrite`` is False.

        """
        with told_if_unwritable(self.path):
            place = next(place for place in (self.path, *self.path.absolute().parents) if place.exists())
            with tempfile.TemporaryFile(
                dir=place
            ):  # the folder is made by the run, so that none is left if it is refused
                pass
        there = self._recipe_there()
        if not _is_resolved(there) and _holds_something(self.checkpoint_folder):
            raise RunFolderError(
                f"{self.checkpoint_folder} is not from a run of composer-ls: choose another run folder with --out DIR"
            )
        left = self.result_file.exists() or self.metrics_file.exists() or _holds_something(self.checkpoint_folder)
        if overwrite or there is None or not left:
            return
        try:
            old = recipe_schema().model_validate(there)  # keys that are newer than the run get their defaults
            if old.identity() == self.recipe.identity():
                return
            there = old.model_dump()
            if (order := order_of(old.algorithms)) != order_of(self.recipe.algorithms):
                there["order of algorithms"] = order  # which keys do not show
        except ValidationError:
            pass
        differing = differing_keys(there, self.recipe.model_dump())
        if differing:
            raise RunFolderError(
                f"the run folder {self.path} holds a run of another recipe (they differ in {', '.join(differing)}): "
                f"choose another with --out DIR, or add --overwrite to delete that run"
            )

    def sweep(self) -> None:
        """Delete the temporary files that a run leaves if it is killed while it writes. Call it while the folder is claimed."""
        for place in self.path.iterdir():
            if re.fullmatch(r"\..+\.\d+", place.name):
                shutil.rmtree(place) if place.is_dir() else place.unlink()

    def mend_checkpoints(self) -> list[str]:
        """Keep only the newest complete checkpoint, as the latest.

        Incomplete ones are left by a run that is killed while saving, or by a damaged disk, and Composer refuses to
        resume if there is a later checkpoint than the one to resume from.

        Returns:
            Sentences that say which damaged checkpoints were deleted, and where the run continues.

        """
        found = [
            (re.fullmatch(r"ep\d+-ba(\d+)-rank0\.pt", file.name), file) for file in self.checkpoint_folder.glob("*")
        ]
        newest_first = sorted(((int(name[1]), file) for name, file in found if name), reverse=True)
        damaged = []
        whole = None
        for _, file in newest_first:
            if whole is None and _is_whole(file):
                whole = file
                continue
            if whole is None:
                damaged.append(file)
            file.unlink()
        if newest_first:
            latest = self.checkpoint_folder / "latest-rank0.pt"
            latest.unlink(missing_ok=True)
            if whole is not None:
                latest.symlink_to(whole.name)
        now = f"continues from {whole.name}" if whole else "starts from the beginning"
        return [f"{file} was damaged or incomplete, and is deleted: the run {now}" for file in damaged]

    def clear(self) -> None:
        """Delete the files of a run, and nothing else. The recipe stays until the next one replaces it."""
        written = (self.metrics_file, self.predictions_file, self.features_file, self.weights_file)
        for file in (self.result_file, *written):
            file.unlink(missing_ok=True)
        for task in recipe_schema().tasks.values():  # all tasks, since the old run may be of another one
            for pattern in task.files:
                for file in self.path.glob(pattern):
                    if file.is_dir():
                        shutil.rmtree(file)
                    else:
                        file.unlink()
        if _is_resolved(self._recipe_there()):
            shutil.rmtree(self.checkpoint_folder, ignore_errors=True)

    def write_recipe(self) -> None:
        """Write ``recipe.yaml``. If a user's file of that name is there, it is kept as ``recipe.yaml.orig``."""
        there = self._recipe_there()
        if there is not None and not _is_resolved(there):
            os.replace(self.recipe_file, self.recipe_file.with_name("recipe.yaml.orig"))
        write_text(self.recipe_file, self.recipe.to_yaml())

    def _recipe_there(self) -> dict[str, Any] | None:
        """The contents of ``recipe.yaml``: empty if it cannot be read, ``None`` if it does not exist."""
        if not self.recipe_file.is_file():
            return None
        try:
            there = parse_yaml(self.recipe_file.read_text(encoding="utf-8"), str(self.recipe_file))
        except (OSError, UnicodeDecodeError, RecipeError):
            there = None
        return there if isinstance(there, dict) else {}

    def write_predictions(self, tensors: Mapping[str, Tensor]) -> None:
        """Write ``predictions.safetensors``."""
        write_tensors(self.predictions_file, tensors)

    def write_features(self, tensors: Mapping[str, Tensor]) -> None:
        """Write ``features.safetensors``."""
        write_tensors(self.features_file, tensors)

    def write_weights(self, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
        """Write ``weights.safetensors``."""
        write_tensors(self.weights_file, tensors, metadata)

    def write_files(self, files: Mapping[str, str | Callable[[Path], None]]) -> None:
        """Write the additional files of a task: text, or folders written by a function that is given the path."""
        for name, content in files.items():
            if isinstance(content, str):
                write_text(self.path / name, content)
            else:
                write_folder(self.path / name, content)

    def write_result(self, result: Mapping[str, Any]) -> None:
        """Write ``result.json``, which marks the run as finished, and delete checkpoints that need not be kept.

        JSON has no NaN and no infinities: they become ``null``. A run that diverged keeps its last good checkpoint.
        """
        write_text(self.result_file, json.dumps(finite(result), indent=2, allow_nan=False) + "\n")
        if not (self.recipe.checkpoints.keep or result.get("diverged")):
            shutil.rmtree(self.checkpoint_folder, ignore_errors=True)


def read_recipe(folder: Path) -> Recipe | None:
    """The recipe of the run in this folder, or ``None`` if no run was started there.

    Raises:
        RunFolderError: The recipe cannot be read.

    """
    file = folder / "recipe.yaml"
    try:
        content = parse_yaml(file.read_text(encoding="utf-8"), file.name)
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError, RecipeError) as error:
        raise RunFolderError(f"{file} cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict) or not _is_resolved(content):
        return None
    try:
        return recipe_schema().model_validate(content)
    except ValidationError as error:
        places = [place_of(problem["loc"])[0] for problem in error.errors()]
        keys = ", ".join(".".join(place) or "combination of keys" for place in places)
        raise RunFolderError(f"{file} is not a recipe of this version of composer_ls: see its {keys}") from error


_ALWAYS_WRITTEN = frozenset(
    [
        "name",
        "description",
        "needs",
        "seed",
        "duration",
        "precision",
        "device",
        "microbatch_size",
        "eval_interval",
        "data",
        "model",
        "optimizer",
        "schedule",
        "algorithms",
        "checkpoints",
    ]
)


def _is_resolved(recipe: Mapping[str, Any] | None) -> bool:
    """Whether a recipe was written by a run, of any version: unlike a person, a run writes out every default."""
    return recipe is not None and recipe.keys() >= _ALWAYS_WRITTEN


def _is_whole(checkpoint: Path) -> bool:
    """Whether a file of torch.save can be read and all its checksums are right."""
    try:
        torch._C.PyTorchFileReader(str(checkpoint))  # reads the directory only, more strictly than zipfile
        with zipfile.ZipFile(checkpoint) as file:
            return any(name.endswith("data.pkl") for name in file.namelist()) and file.testzip() is None
    except (OSError, zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError):
        return False


def _holds_something(folder: Path) -> bool:
    return folder.is_dir() and any(folder.iterdir())
