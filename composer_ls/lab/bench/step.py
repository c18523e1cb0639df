"""Measures what LabelSmoothing adds to a training step of ResNet-20 with CutMix in Composer's Trainer."""

from __future__ import annotations

import time
from dataclasses import dataclass
from statistics import median, quantiles

import torch
from composer import Trainer
from composer.algorithms import CutMix
from composer.models import ComposerClassifier
from composer.utils import reproducibility
from torch.utils.data import DataLoader, TensorDataset

from composer_ls.algorithm import LabelSmoothing
from composer_ls.lab.tasks.classification.networks import build_model
from composer_ls.losses import cross_entropy

__all__ = ["StepTimes", "measure_step"]


@dataclass(frozen=True)
class StepTimes:
    """Seconds per step, without and with LabelSmoothing.

    Attributes:
        plain: The median without it.
        smoothed: The median with it.
        ratio: The median over pairs of neighbouring blocks of the ratio of their times.
        spread: The quartiles of these ratios.
        blocks: The number of pairs of blocks.

    """

    plain: float
    smoothed: float
    ratio: float
    spread: tuple[float, float]
    blocks: int


def measure_step(device: str = "cpu", batch_size: int = 128, seconds: float = 60.0, steps: int = 2) -> StepTimes:
    """Measure training steps with and without LabelSmoothing, in alternating blocks on the same data and model.

    Args:
        device: ``"cpu"`` or ``"cuda"``.
        batch_size: The number of 32x32 images per step.
        seconds: About how long to measure. At least five pairs of blocks are run.
        steps: The number of steps per block.

    """
    trainers = [_trainer(smooths, device, batch_size, steps) for smooths in (False, True)]
    times: list[list[float]] = [[], []]
    began = time.perf_counter()
    try:
        for trainer in trainers:
            _block(trainer, steps)  # warm-up
        while len(times[0]) < 5 or time.perf_counter() - began < seconds:
            order = (0, 1) if len(times[0]) % 2 else (1, 0)
            for which in order:
                times[which].append(_block(trainers[which], steps))
    finally:
        for trainer in trainers:
            trainer.close()
    ratios = [smoothed / plain for plain, smoothed in zip(*times, strict=True)]
    quarters = quantiles(ratios, n=4, method="inclusive")
    plain, smoothed = (median(values) / steps for values in times)
    return StepTimes(plain, smoothed, median(ratios), (quarters[0], quarters[2]), len(ratios))


def _trainer(smooths: bool, device: str, batch_size: int, steps: int) -> Trainer:
    reproducibility.seed_all(0)
    images, labels = torch.randn(steps * batch_size, 3, 32, 32), torch.randint(10, (steps * batch_size,))
    model = ComposerClassifier(build_model("resnet20", (3, 32, 32), 10), num_classes=10, loss_fn=cross_entropy)
    return Trainer(
        model=model,
        train_dataloader=DataLoader(TensorDataset(images, labels), batch_size),
        max_duration="1ep",
        algorithms=[CutMix(alpha=1.0), *([LabelSmoothing(0.1)] if smooths else [])],
        optimizers=torch.optim.SGD(model.parameters(), 0.01, momentum=0.9),
        device="gpu" if device == "cuda" else "cpu",
        progress_bar=False,
        seed=0,
    )


def _block(trainer: Trainer, steps: int) -> float:
    began = time.perf_counter()
    trainer.fit(duration=f"{steps}ba")
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - began
