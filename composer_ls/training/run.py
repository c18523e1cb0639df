"""A whole training run: from a recipe to a finished run folder."""

from __future__ import annotations

import contextlib
import os
import platform
import resource
import shlex
import sys
from datetime import datetime, timezone
from importlib.metadata import version
from typing import Any

import torch
from composer import Trainer
from composer.core import Evaluator, Precision
from composer.devices import Device, DeviceCPU, DeviceGPU
from composer.models import ComposerClassifier
from composer.optim import (
    ComposerScheduler,
    ConstantWithWarmupScheduler,
    CosineAnnealingWithWarmupScheduler,
    DecoupledSGDW,
    MultiStepWithWarmupScheduler,
)
from composer.utils import dist, reproducibility

from composer_ls.composition import describe
from composer_ls.diagnostics.calibration import (
    accuracy,
    brier_score,
    expected_calibration_error,
    negative_log_likelihood,
)
from composer_ls.errors import RecipeError
from composer_ls.losses import cross_entropy
from composer_ls.training.algorithms import build_algorithms
from composer_ls.training.callbacks import MetricsFile, PredictionCollector
from composer_ls.training.claim import claimed
from composer_ls.training.data import evaluation_loader, load_splits, training_loader
from composer_ls.training.models import build_model
from composer_ls.training.recipe import Optimizer, Recipe, Schedule
from composer_ls.training.run_folder import RunFolder

__all__ = ["train"]


def train(recipe: Recipe, folder: RunFolder, *, overwrite: bool = False, progress: bool = True) -> dict[str, Any]:
    """Train as the recipe says and return what ``result.json`` holds.

    A finished run is not run again, and one that was killed goes on from its last checkpoint.

    Args:
        recipe: What to do.
        folder: Where to leave it.
        overwrite: Forget what the folder holds and start afresh.
        progress: Show Composer's progress bar.

    Raises:
        RecipeError: An algorithm that does not exist or refuses its arguments, a batch size that does not fit, or
            anything else that Composer refuses. What the folder holds is left as it is.
        DataNotFoundError: The data is not there.
        RunFolderError: The folder cannot be written or holds another recipe's run.
        RunFolderBusyError: Another process is doing this run.

    """
    with claimed(folder.path) if dist.get_global_rank() == 0 else contextlib.nullcontext():
        return _train(recipe, folder, overwrite, progress)


def _train(recipe: Recipe, folder: RunFolder, overwrite: bool, progress: bool) -> dict[str, Any]:
    device = _device(recipe.device)
    if isinstance(device, DeviceCPU) and recipe.precision != "fp32":
        raise RecipeError(
            f"precision={recipe.precision} does not go with device={recipe.device}, which is the CPU here: "
            f"use precision=fp32, or device=gpu where there is one"
        )
    dist.initialize_dist(device)  # does nothing for one process
    if dist.get_global_rank() == 0:
        folder.check(overwrite=overwrite)
        if not overwrite:
            folder.mend_checkpoints()
    dist.barrier()
    if not overwrite and (finished := folder.result()) is not None:
        return finished

    started = datetime.now(timezone.utc)
    reproducibility.seed_all(recipe.seed)
    splits = load_splits(recipe.data)
    algorithms = build_algorithms(recipe.algorithms, splits.num_classes)
    reproducibility.seed_all(recipe.seed)  # again: one seed gives the same weights, whatever data and algorithms drew
    model = ComposerClassifier(
        build_model(recipe.model.name, splits.image_shape, splits.num_classes),
        num_classes=splits.num_classes,
        loss_fn=cross_entropy,
    )
    training, test = training_loader(splits, recipe.data, recipe.seed), evaluation_loader(splits, recipe.data)
    metrics_file = MetricsFile(folder.metrics_file)
    try:
        trainer = Trainer(
            model=model,
            train_dataloader=training,
            eval_dataloader=Evaluator(label="test", dataloader=test),
            eval_interval=recipe.eval_interval,
            max_duration=recipe.duration,
            optimizers=_optimizer(recipe.optimizer, model),
            schedulers=_scheduler(recipe.schedule),
            algorithms=algorithms,
            loggers=metrics_file,
            precision=Precision(recipe.precision),
            device=device,
            device_train_microbatch_size=recipe.microbatch_size,
            seed=recipe.seed,
            run_name=recipe.name,
            progress_bar=progress,
            save_folder=str(folder.checkpoint_folder),
            save_interval=recipe.checkpoints.interval,
            save_num_checkpoints_to_keep=1,
            autoresume=not overwrite,  # what is to be overwritten is still there
        )
    except (TypeError, ValueError) as error:
        raise RecipeError(f"Composer refuses the recipe {recipe.name}: {' '.join(str(error).split())}") from error
    try:
        dist.barrier()  # every process has got here, so nothing of the recipe is wrong: the old run may go
        if dist.get_global_rank() == 0:
            if overwrite:
                folder.clear()
                folder.checkpoint_folder.mkdir(exist_ok=True)  # Composer made it and counts on it
            folder.write_recipe()
        dist.barrier()
        if trainer.state.timestamp < recipe.duration:  # else it was stopped between its last step and its result
            trainer.fit()
            metrics_file.finish(trainer.state)
        collector = PredictionCollector()
        trainer.state.callbacks.append(collector)
        fresh = evaluation_loader(splits, recipe.data)  # Composer refuses one whose workers live on
        trainer.eval(eval_dataloader=Evaluator(label="predictions", dataloader=fresh))
        logits, labels = collector.gathered(len(test.dataset))  # type: ignore[arg-type]
        result = {
            "name": recipe.name,
            "smoothing": recipe.smoothing,
            "plan": describe(trainer),
            "metrics": {
                "accuracy": accuracy(logits, labels),
                "nll": negative_log_likelihood(logits, labels),
                "ece": expected_calibration_error(logits, labels),
                "brier": brier_score(logits, labels),
            },
            "units": {"accuracy": "fraction", "nll": "nats", "ece": "fraction, 15 bins", "brier": "0 to 2"},
            "seed": recipe.seed,
            "classes": list(splits.classes),
            "examples": {"train": len(splits.train), "test": len(splits.test)},  # type: ignore[arg-type]
            "epochs": int(trainer.state.timestamp.epoch),
            "steps": int(trainer.state.timestamp.batch),
            "train_seconds": trainer.state.timestamp.total_wct.total_seconds(),
            "started": started.isoformat(timespec="seconds"),
            "finished": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "peak_memory_bytes": _peak_memory(),
            "versions": {name: version(name) for name in ("composer_ls", "mosaicml", "torch", "torchvision")}
            | {"python": platform.python_version()},
            "hardware": _hardware(),
            "command": _command(),
        }
    finally:
        trainer.close()
    if dist.get_global_rank() == 0:
        folder.write_predictions(logits, labels)
        folder.write_result(result)
    dist.barrier()
    return result


def _device(name: str) -> Device:
    if name == "gpu" and not torch.cuda.is_available():
        raise RecipeError("device is gpu, but PyTorch sees none here: use device=auto or device=cpu")
    return DeviceGPU() if name == "gpu" or (name == "auto" and torch.cuda.is_available()) else DeviceCPU()


def _command() -> str:
    processes = dist.get_local_world_size()
    launcher = ["composer-ls"] if processes == 1 else ["composer", "-n", str(processes), "-m", "composer_ls"]
    return shlex.join([*launcher, *sys.argv[1:]])


def _optimizer(settings: Optimizer, model: torch.nn.Module) -> torch.optim.Optimizer:
    rate, decay = settings.learning_rate, settings.weight_decay
    if settings.name == "adamw":
        # Composer's decay is not multiplied by the rate; PyTorch's is, which is what people tune.
        return torch.optim.AdamW(model.parameters(), rate, weight_decay=decay)
    sgd = DecoupledSGDW if settings.decoupled else torch.optim.SGD
    return sgd(model.parameters(), rate, momentum=settings.momentum, weight_decay=decay, nesterov=settings.nesterov)


def _scheduler(settings: Schedule) -> ComposerScheduler:
    if settings.name == "multistep":
        return MultiStepWithWarmupScheduler(settings.warmup, list(settings.milestones), settings.gamma)
    if settings.name == "cosine":
        return CosineAnnealingWithWarmupScheduler(settings.warmup)
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
