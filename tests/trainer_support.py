"""Training a tiny network for a few steps, and measuring the smoothing that its loss received."""

import torch
from composer import Trainer
from composer.algorithms import (
    EMA,
    SAM,
    SWA,
    BlurPool,
    ChannelsLast,
    ColOut,
    CutOut,
    GradientClipping,
    ProgressiveResizing,
    SelectiveBackprop,
)
from composer.core import Callback
from composer.loss import soft_cross_entropy
from composer.models import ComposerClassifier
from composer.utils import reproducibility
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from composer_ls import SoftTargets

K = 5


def classifier(loss_fn=soft_cross_entropy, segmentation=False):
    torch.manual_seed(7)
    module = nn.Conv2d(3, K, 1) if segmentation else nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, K))
    return ComposerClassifier(module, num_classes=K, loss_fn=loss_fn)


def convolutional(loss):
    """A network that takes any size of image, for the methods that change it."""
    torch.manual_seed(7)
    layers = [nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    model = classifier(loss)
    model.module = nn.Sequential(*layers, nn.Linear(8, K))
    return model


def examples(segmentation=False, seed=0):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(24, 3, 8, 8, generator=generator)
    labels = torch.randint(0, K, (24, 8, 8) if segmentation else (24,), generator=generator)
    return images, labels


def fit(algorithms, *, model=None, segmentation=False, loader=None, steps=3, device="cpu", **options):
    """Train a few steps and return the final weights."""
    reproducibility.seed_all(7)
    model = model or classifier(segmentation=segmentation)
    if loader is None:
        loader = DataLoader(TensorDataset(*examples(segmentation)), 8)
    trainer = Trainer(
        model=model,
        train_dataloader=loader,
        max_duration=f"{steps}ba",
        algorithms=algorithms,
        optimizers=torch.optim.SGD(model.parameters(), 0.1),
        progress_bar=False,
        device=device,
        seed=7,
        **options,
    )
    try:
        trainer.fit()
    finally:
        trainer.close()
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


class RecordingLoss:
    """A loss that records how much of its targets' mass was smoothed."""

    def __init__(self):
        self.smoothed, self.targets, self.losses = [], [], []

    def __call__(self, logits, target, **options):
        if not logits.requires_grad:  # asked before the first step
            return F.cross_entropy(logits, target, **options)
        if not target.is_floating_point():  # SelectiveBackprop chooses examples by their plain labels
            return F.cross_entropy(logits, target, **options)
        self.targets.append(target)
        dense = target.dense() if isinstance(target, SoftTargets) else target
        # A class that no example of a mixed pair has received α/K.
        self.smoothed.append((dense.min(1).values.max() * K).item())
        loss = F.cross_entropy(logits, target, **options)
        self.losses.append(loss.detach().sum().item())
        return loss


class SecondStep(Callback):
    """Enters a context for the second step."""

    def __init__(self, context):
        self.context = context

    def batch_start(self, state, logger):
        if state.timestamp.batch == 1:
            self.context.__enter__()

    def after_backward(self, state, logger):
        if state.timestamp.batch == 1:
            self.context.__exit__(None, None, None)


COMPANIONS = {
    "SAM": lambda: SAM(interval=1),
    "EMA": lambda: EMA(half_life="2ba"),
    "SWA": lambda: SWA(swa_start="0.2dur", swa_end="0.9dur", update_interval="1ba"),
    "ColOut": lambda: ColOut(p_row=0.3, p_col=0.3),
    "ProgressiveResizing": lambda: ProgressiveResizing(initial_scale=0.5, finetune_fraction=0.1),
    "CutOut": lambda: CutOut(length=0.5),
    "GradientClipping": lambda: GradientClipping(clipping_type="norm", clipping_threshold=0.1),
    "SelectiveBackprop": lambda: SelectiveBackprop(0.0, 1.0, keep=0.5, interrupt=0),
    "BlurPool": lambda: BlurPool(min_channels=3),
    "ChannelsLast": ChannelsLast,
}
"""Algorithms of Composer that leave targets alone."""
