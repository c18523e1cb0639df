"""Writes the network of a run as ONNX, for torch.export.load, or as safetensors, and checks what was written."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from composer_ls.errors import InputError, MissingPackageError
from composer_ls.lab.inference.loaded_run import LoadedRun
from composer_ls.lab.tasks.classification.network import head_names

__all__ = ["KINDS", "export"]

TOLERANCE = 1e-4
"""The largest difference between a logit of the network and of what was written, relative to logits above 1."""

KINDS = (".onnx", ".pt2", ".safetensors")


def export(run: LoadedRun, file: Path, *, calibrated: bool = False) -> float:
    """Write the network of a run, which maps preprocessed images ``(N, C, H, W)`` of any N to logits ``(N, K)``.

    What is written is read again and compared with the network. Class names, preprocessing and temperature are written along
    as JSON: in ONNX's ``metadata_props``, as extra files of a .pt2 file, in the metadata of safetensors.

    Args:
        run: The network.
        file: The file, which ends in .onnx, .pt2 or .safetensors.
        calibrated: Whether logits are divided by the run's temperature. In a safetensors file, which holds weights only, the
            last layer is scaled.

    Returns:
        The largest difference that was seen, in logits.

    Raises:
        InputError: The file has another ending, cannot be written, or the network cannot be exported like this.
        MissingPackageError: onnx or onnxruntime is not installed.
        RunFolderError: The run has no temperature.

    """
    if file.suffix not in KINDS:
        raise InputError(f"--to is {file}, but must end in {', '.join(KINDS[:-1])} or {KINDS[-1]}")
    temperature = run.calibrated_temperature() if calibrated else 1.0
    write, read = {".onnx": (_write_onnx, _read_onnx), ".pt2": (_write_pt2, _read_pt2)}.get(
        file.suffix, (_write_safetensors, _read_safetensors)
    )
    exported = Scaled(run.network, temperature).eval() if temperature != 1 else run.network
    with _replacing(file) as temporary, _quietly():
        write(run, exported, temperature, temporary)
        differences = [_difference(exported, read(run, temporary), _images(run, count)) for count in (2, 5)]
        for difference in differences:  # one by one, as max() loses NaN
            if not difference <= TOLERANCE:
                raise InputError(
                    f"the network in {file.suffix} form gives logits that differ by up to {difference:.2g}, which is more than "
                    f"{TOLERANCE:g}, so {file} is not written: choose another kind of file"
                )
    return max(differences)


class Scaled(nn.Module):
    """A network whose logits are divided by a temperature."""

    def __init__(self, network: nn.Module, temperature: float) -> None:
        super().__init__()
        self.network, self.temperature = network, temperature

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``(N, K)``."""
        scaled: Tensor = self.network(images) / self.temperature
        return scaled


def _metadata(run: LoadedRun, temperature: float) -> dict[str, str]:
    content = {
        "classes": list(run.classes),
        "preprocessing": run.preprocessing.as_dict(),
        "temperature": None if run.temperature is None else run.temperature / temperature,
        "network": run.recipe.model.called,
    }
    return {name: json.dumps(value, ensure_ascii=False) for name, value in content.items()}


def _images(run: LoadedRun, count: int) -> Tensor:
    shape = tuple(run.result["image_shape"])
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(count))


def _difference(network: nn.Module, other: Callable[[Tensor], Tensor], images: Tensor) -> float:
    with torch.inference_mode():
        expected = network(images)
    found = other(images)
    return float(((found - expected).abs() / expected.abs().clamp(min=1)).max())


def _write_onnx(run: LoadedRun, network: nn.Module, temperature: float, file: Path) -> None:
    onnx = _needed("onnx")
    _needed("onnxruntime")  # before the work, as it checks the result
    try:
        torch.onnx.export(
            network,
            (_images(run, 2),),
            str(file),
            input_names=["images"],
            output_names=["logits"],
            dynamic_axes={"images": {0: "batch"}, "logits": {0: "batch"}},
            opset_version=17,
            dynamo=False,
        )
    except (RuntimeError, torch.onnx.errors.OnnxExporterError) as error:
        raise _cannot(run, "ONNX", error) from error
    model = onnx.load(str(file))
    onnx.helper.set_model_props(model, _metadata(run, temperature))
    onnx.checker.check_model(model)
    onnx.save(model, str(file))


def _read_onnx(run: LoadedRun, file: Path) -> Callable[[Tensor], Tensor]:
    session = _needed("onnxruntime").InferenceSession(str(file), providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])


def _write_pt2(run: LoadedRun, network: nn.Module, temperature: float, file: Path) -> None:
    batch = torch.export.Dim(
        "batch", max=2**20
    )  # many networks get a guard on the largest integer, which this excludes
    try:
        program = torch.export.export(network, (_images(run, 2),), dynamic_shapes=({0: batch},))
    except Exception as error:  # tracing runs the network's own code, which may raise anything
        raise _cannot(run, "torch.export's", error) from error
    extra: dict[str, Any] = {f"{name}.json": text for name, text in _metadata(run, temperature).items()}
    torch.export.save(program, file, extra_files=extra)


def _read_pt2(run: LoadedRun, file: Path) -> Callable[[Tensor], Tensor]:
    module = torch.export.load(file).module()

    def call(images: Tensor) -> Tensor:
        with torch.inference_mode():
            logits: Tensor = module(images)
        return logits

    return call


def _write_safetensors(run: LoadedRun, network: nn.Module, temperature: float, file: Path) -> None:
    weights = {name: tensor.clone().contiguous() for name, tensor in run.network.state_dict().items()}
    for name in head_names(run.network, len(run.classes)) if temperature != 1 else ():
        for key in weights:
            if key.startswith(f"{name}."):
                weights[key] /= temperature
    save_file(weights, file, _metadata(run, temperature))


def _read_safetensors(run: LoadedRun, file: Path) -> Callable[[Tensor], Tensor]:
    weights = load_file(file)

    def call(images: Tensor) -> Tensor:
        with torch.inference_mode():
            logits: Tensor = torch.func.functional_call(run.network, weights, (images,))
        return logits

    return call


def _cannot(run: LoadedRun, form: str, error: Exception) -> InputError:
    return InputError(
        f"PyTorch cannot bring {run.recipe.model.called} into {form} form ({type(error).__name__}: "
        f"{' '.join(str(error).split())[:300]}): choose another kind of file, of {', '.join(KINDS)}"
    )


def _needed(package: str) -> Any:
    try:
        return __import__(package)
    except ImportError as error:
        raise MissingPackageError(
            f"exporting to ONNX needs the package {package}, which is not installed: pip install 'composer_ls[export]'"
        ) from error


@contextlib.contextmanager
def _replacing(file: Path) -> Iterator[Path]:
    """A file of the same ending in a folder of its own beside ``file``, which it replaces at the end."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{file.stem}-", dir=file.parent) as folder:
            temporary = Path(folder) / f"model{file.suffix}"
            yield temporary
            mode = Path(folder, "mode")
            mode.touch()  # that of a new file: some writers make files that only the owner can read
            temporary.chmod(mode.stat().st_mode)
            os.replace(temporary, file)
    except OSError as error:
        raise InputError(
            f"{file.absolute()} cannot be written ({error.strerror or error}): choose another with --to FILE"
        ) from error


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Hide warnings of the exporters, which are about things that the user cannot change and that are checked here."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)  # an exporter that fails raises, too
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
