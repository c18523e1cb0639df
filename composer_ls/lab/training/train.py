"""Runs a recipe, from reading the data to the finished run folder."""

from __future__ import annotations

import contextlib
import os
import platform
import resource
import shlex
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime, timezone
from importlib.metadata import version
from typing import Any

import torch
from composer import Trainer
from composer.core import Evaluator, Precision
from composer.devices import Device, DeviceCPU, DeviceGPU
from composer.loggers import ProgressBarLogger
from composer.models import ComposerModel
from composer.optim import (
    ComposerScheduler,
    ConstantWithWarmupScheduler,
    CosineAnnealingWithWarmupScheduler,
    DecoupledSGDW,
    LinearWithWarmupScheduler,
    MultiStepWithWarmupScheduler,
)
from composer.utils import dist, reproducibility

from composer_ls.composition import describe
from composer_ls.errors import InputError, RecipeError
from composer_ls.lab.images.loaders import workers_errors_in_words
from composer_ls.lab.recipe.recipe import Recipe
from composer_ls.lab.recipe.sections import Optimizer, Schedule
from composer_ls.lab.run_folder.claim import claimed
from composer_ls.lab.run_folder.files import finite, told_if_disk_fails
from composer_ls.lab.run_folder.folder import RunFolder
from composer_ls.lab.tasks.registry import open_task
from composer_ls.lab.tasks.task import Measured, Task
from composer_ls.lab.training.algorithms import build_algorithms
from composer_ls.lab.training.callbacks_and_loggers import (
    build_callbacks,
    build_loggers,
    settings_of,
    stopping_cautions,
)
from composer_ls.lab.training.cautions import dropped_share, not_finite, training_cautions
from composer_ls.lab.training.divergence import Diverged, DivergenceWatch
from composer_ls.lab.training.metrics_file import MetricsFile
from composer_ls.lab.training.same_data import SameData
from composer_ls.lab.training.schedules import InverseSquareRootScheduler
from composer_ls.lab.training.stopping import StopOnInterrupt
from composer_ls.lab.training.teacher import check_teachers

__all__ = ["train"]


def train(
    recipe: Recipe,
    folder: RunFolder,
    *,
    overwrite: bool = False,
    progress: bool = True,
    each_line: Callable[[Mapping[str, float]], None] | None = None,
    debug: bool = False,
) -> dict[str, Any]:
    """Train a recipe and return the contents of ``result.json``.

    A finished run is not run again, and an interrupted one resumes from its last checkpoint. A run that diverges and was
    asked to stop then has no metrics and no predictions, and keeps its last good checkpoint.

    Args:
        recipe: The recipe.
        folder: The run folder.
        overwrite: Whether to discard the contents of the folder and start over.
        progress: Whether to show Composer's progress bar.
        each_line: Called with each line of ``metrics.jsonl`` when it is written, once per epoch.
        debug: Whether to show Composer's messages about things that a user cannot change.

    Raises:
        RecipeError: An algorithm does not exist or refuses its arguments, a batch size does not fit, or Composer
            refuses something else. The folder's contents are left as they are.
        DataNotFoundError: The data does not exist.
        RunFolderError: The folder cannot be written, now or later, or holds another recipe's run.
        RunFolderBusyError: Another process is doing this run.
        StoppedInTraining: The user pressed Ctrl-C, or the process got SIGTERM; a checkpoint was saved.

    """
    claim = claimed(folder.path) if dist.get_global_rank() == 0 else contextlib.nullcontext()
    quiet = contextlib.nullcontext() if debug else _without_noise()
    with claim, quiet, workers_errors_in_words(), told_if_disk_fails(folder.path):
        try:
            return _train(recipe, folder, overwrite, progress, each_line, debug)
        finally:
            with contextlib.suppress(OSError):  # it is not empty
                folder.checkpoint_folder.rmdir()


def _train(
    recipe: Recipe,
    folder: RunFolder,
    overwrite: bool,
    progress: bool,
    each_line: Callable[[Mapping[str, float]], None] | None,
    debug: bool,
) -> dict[str, Any]:
    device = _device(recipe.device)
    if isinstance(device, DeviceCPU) and recipe.precision.startswith("amp"):
        raise RecipeError(
            f"precision={recipe.precision} does not work with device={recipe.device}, which is the CPU here: "
            f"use precision=auto or fp32, or device=gpu if there is one"
        )
    precision = _precision(recipe.precision, device)
    dist.initialize_dist(device)  # does nothing for one process
    if dist.get_global_rank() == 0:
        folder.check(overwrite=overwrite)
        if not overwrite:
            folder.sweep()
            for warning in folder.mend_checkpoints():
                print(warning, file=sys.stderr, flush=True)
    dist.barrier()
    earlier = [None if overwrite or dist.get_global_rank() != 0 else folder.result()]
    dist.broadcast_object_list(earlier)  # another machine may not have the folder
    if earlier[0] is not None:
        return earlier[0]

    started = datetime.now(timezone.utc)
    reproducibility.seed_all(recipe.seed)
    task = open_task(recipe, device.tensor_to_device(torch.empty(0)).device)
    algorithms = build_algorithms(recipe.algorithms, task.num_classes, task.label_counts)
    task.check(algorithms)
    of_teachers = check_teachers(algorithms, task.facts)
    reproducibility.seed_all(recipe.seed)  # again, so that initial weights do not depend on data and algorithms
    model = task.model()
    chosen = build_callbacks(recipe.callbacks, task.watched, model.get_metrics(is_train=False))
    loggers = build_loggers(recipe, folder)
    metrics_file = MetricsFile(folder.metrics_file, each_line)
    # Without a checkpoint here, Composer would ask the loggers for one, which may be that of another run of this name. When
    # overwriting, the old checkpoints still exist at this point.
    resumes = not overwrite and dist.all_gather_object((folder.checkpoint_folder / "latest-rank0.pt").exists())[0]
    stale = [*folder.tensorboard_folder.rglob("events.*")] if overwrite else []
    training_loader, stopper = task.training_loader(), StopOnInterrupt()
    divergence = DivergenceWatch(stop=recipe.on_divergence == "stop")
    try:
        trainer = Trainer(
            model=model,
            train_dataloader=training_loader,
            eval_dataloader=Evaluator(label=task.watched, dataloader=task.evaluation_loader()),
            eval_interval=recipe.eval_interval,
            max_duration=recipe.duration,
            optimizers=_optimizer(recipe.optimizer, model, task),
            schedulers=_scheduler(recipe.schedule),
            algorithms=algorithms,
            callbacks=[
                SameData(task.known_of_the_data()),
                *task.callbacks(),
                *chosen,
                divergence,
                metrics_file.line_an_epoch,
                stopper,
            ],
            loggers=[metrics_file, *loggers],
            precision=precision,
            compile_config={} if recipe.model.compile else None,
            device=device,
            device_train_microbatch_size=recipe.microbatch_size,
            seed=recipe.seed,
            run_name=recipe.name,
            progress_bar=progress,
            save_folder=str(folder.checkpoint_folder),
            save_interval=divergence.checkpoint_interval(recipe.checkpoints.interval),
            save_num_checkpoints_to_keep=1,
            autoresume=resumes,
        )
    except InputError:
        raise
    except (TypeError, ValueError) as error:
        raise RecipeError(f"Composer refuses the recipe {recipe.name}: {' '.join(str(error).split())}") from error

    def save() -> None:
        if divergence.allows_checkpoint(trainer.state):
            trainer.save_checkpoint_to_save_folder()

    stopper.save = save
    for destination in trainer.logger.destinations:
        if isinstance(destination, ProgressBarLogger) and not debug:
            destination.hparams_already_logged_to_console = True  # suppresses a dump of settings
    try:
        dist.barrier()  # all processes accepted the recipe, so the old run can be deleted
        if dist.get_global_rank() == 0:
            if overwrite:
                folder.clear()
                for file in stale:
                    file.unlink(missing_ok=True)
                folder.checkpoint_folder.mkdir(exist_ok=True)  # Composer created it earlier and relies on it
            folder.write_recipe()
        dist.barrier()
        if loggers:
            trainer.logger.log_hyperparameters(settings_of(recipe))
        stopped = False
        if trainer.state.timestamp < recipe.duration:  # false if it was stopped between its last step and its result
            try:
                _fit(trainer, recipe)
            except Diverged:
                stopped = True
            metrics_file.finish(trainer.state)
        measured = Measured({}, {}, {}) if stopped else task.measure(trainer)
        steps = int(trainer.state.timestamp.batch)
        result: dict[str, Any] = {
            "name": recipe.name,
            "task": recipe.task,
            "smoothing": recipe.smoothing,
            "plan": describe(trainer),
            "metrics": dict(measured.metrics),
            "units": dict(measured.units),
            "seed": recipe.seed,
            **task.facts,
            "epochs": int(trainer.state.timestamp.epoch),
            "steps": steps,
            "training": {"steps": steps, "dropped_share": dropped_share(training_loader)},
            "diverged": bool(divergence.found or not_finite(measured.metrics)),
            "divergence": divergence.found,
            "warnings": [
                *training_cautions(steps, measured.metrics, divergence.found),
                *([_kept(folder)] if stopped else []),
                *measured.warnings,
                *of_teachers,
                *stopping_cautions(recipe.callbacks, task.watched),
            ],
            "precision": precision.value,
            "train_seconds": trainer.state.timestamp.total_wct.total_seconds(),
            "started": started.isoformat(timespec="seconds"),
            "finished": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "peak_memory_bytes": _peak_memory(),
            "versions": {name: version(name) for name in ("composer_ls", "mosaicml", "torch", "torchvision")}
            | {"python": platform.python_version()},
            "hardware": _hardware(),
            "command": _command(),
            **measured.facts,
        }
    finally:
        trainer.close()
    if dist.get_global_rank() == 0:
        if not stopped:
            folder.write_predictions(measured.predictions)
        if measured.features is not None:
            folder.write_features(measured.features)
        if measured.weights is not None and recipe.checkpoints.weights:
            folder.write_weights(measured.weights, measured.weights_metadata)
        folder.write_files(measured.files)
        folder.write_result(result)
    dist.barrier()
    return dict(finite(result))


@contextlib.contextmanager
def _without_noise() -> Iterator[None]:
    """Hide warnings that a user cannot act on and that disturb the progress bar.

    Composer warns that the last, smaller evaluation batch is not split, and some diagnostics that there are two classes.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"\s*The warmup duration is 0", UserWarning)  # at most a step was asked for
        warnings.filterwarnings("ignore", r"diagnostics/\S+ is left out: .*at least 3", UserWarning)
        warnings.filterwarnings("ignore", r"Cannot split (tensor|list) of length", UserWarning)
        yield


def _device(name: str) -> Device:
    if name == "gpu" and not torch.cuda.is_available():
        raise RecipeError("device is gpu, but PyTorch sees none here: use device=auto or device=cpu")
    return DeviceGPU() if name == "gpu" or (name == "auto" and torch.cuda.is_available()) else DeviceCPU()


def _fit(trainer: Trainer, recipe: Recipe) -> None:
    try:
        trainer.fit()
    except ValueError as error:
        if "Expected more than 1 value per channel" not in str(error):
            raise
        raise RecipeError(
            f"batch normalisation in {recipe.model.called} needs more than one value of each channel, but an image is one "
            f"pixel there: use a larger data.image_size, or two images or more in data.batch_size and microbatch_size"
        ) from error
    except RuntimeError as error:
        if not (recipe.model.compile and type(error).__module__.startswith(("torch._dynamo", "torch._inductor"))):
            raise
        raise RecipeError(
            f"model.compile=true: PyTorch cannot compile {recipe.model.called} here ({str(error).splitlines()[0]}): "
            f"use model.compile=false"
        ) from error


def _kept(folder: RunFolder) -> str:
    latest = folder.checkpoint_folder / "latest-rank0.pt"
    if not latest.exists():
        return "It was stopped there, before its first checkpoint (on_divergence=continue goes on)."
    return f"It was stopped there, and its last good checkpoint, {latest.resolve().name}, is kept (on_divergence=continue goes on)."


def _precision(name: str, device: Device) -> Precision:
    if name != "auto":
        return Precision(name)
    has_bf16 = isinstance(device, DeviceGPU) and torch.cuda.is_bf16_supported(including_emulation=False)
    return Precision.AMP_BF16 if has_bf16 else Precision.FP32


def _command() -> str:
    processes, in_all = dist.get_local_world_size(), dist.get_world_size()
    nodes = ["--world_size", str(in_all), "--node_rank", "0"] if in_all > processes else []
    launcher = ["composer", "-n", str(processes), *nodes, "-m", "composer_ls"]
    if in_all == processes == 1:
        launcher = ["composer-ls"]
    return shlex.join([*launcher, *sys.argv[1:]])


def _optimizer(settings: Optimizer, model: ComposerModel, task: Task) -> torch.optim.Optimizer:
    rate, decay = settings.learning_rate, settings.weight_decay
    parameters: list[Any] = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if settings.backbone_scale != 1:
        backbone = {id(parameter) for parameter in task.backbone(model)}
        parts = (
            [one for one in parameters if id(one) in backbone],
            [one for one in parameters if id(one) not in backbone],
        )
        if not all(parts):
            raise RecipeError(
                f"optimizer.backbone_scale={settings.backbone_scale:g} needs a backbone and a last layer that are both "
                f"trained: leave it out, or use model.freeze=null"
            )
        parameters = [{"params": parts[0], "lr": rate * settings.backbone_scale}, {"params": parts[1]}]
    if settings.name == "adamw":
        # PyTorch multiplies the decay by the learning rate, as people expect when they tune it; Composer does not.
        return torch.optim.AdamW(parameters, rate, weight_decay=decay)
    sgd = DecoupledSGDW if settings.decoupled else torch.optim.SGD
    return sgd(parameters, rate, momentum=settings.momentum, weight_decay=decay, nesterov=settings.nesterov)


def _scheduler(settings: Schedule) -> ComposerScheduler:
    if settings.name == "multistep":
        return MultiStepWithWarmupScheduler(settings.warmup, list(settings.milestones), settings.gamma)
    if settings.name == "cosine":
        return CosineAnnealingWithWarmupScheduler(settings.warmup)
    if settings.name == "linear":
        return LinearWithWarmupScheduler(settings.warmup, alpha_f=0.0)
    if settings.name == "inverse_sqrt":
        return InverseSquareRootScheduler(settings.warmup)
    return ConstantWithWarmupScheduler(settings.warmup)


def _peak_memory() -> dict[str, int]:
    scale = 1 if sys.platform == "darwin" else 1024
    peak = {"host": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale}
    if torch.cuda.is_available():
        peak["device"] = torch.cuda.max_memory_allocated()
    return peak


def _hardware() -> dict[str, Any]:
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "gpu": gpu,
        "processes": dist.get_world_size(),
    }
