"""How much smoothing does the loss really receive? A comparison of Composer's LabelSmoothing with this one.

Each case trains three steps in Composer's Trainer with smoothing 0.1, and the loss measures the α of its targets. A class
that neither example of a mixed pair has gets α/K, so α is K times the smallest entry of a row.

    python examples/composition_table.py
"""

import warnings
from dataclasses import dataclass

import torch
from composer import Trainer
from composer.algorithms import SAM, BlurPool, ChannelsLast, ColOut, CutMix, LabelSmoothing, MixUp, ProgressiveResizing
from composer.core import Algorithm, Callback, Event
from composer.models import ComposerClassifier
from composer.utils import reproducibility
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset, default_collate
from torchvision.transforms import v2

import composer_ls

K, SMOOTHING = 10, 0.1


class Relabel(Algorithm):
    """An algorithm unknown to composer_ls, which changes some labels just before the loss."""

    def match(self, event, state):
        """Run before the loss."""
        return event == Event.BEFORE_LOSS

    def apply(self, event, state, logger):
        """Change a tenth of the labels to the next class."""
        labels = state.batch_get_item(1)
        if labels.is_floating_point():
            labels = labels.argmax(1)
        state.batch_set_item(1, torch.where(torch.rand(labels.shape) < 0.1, (labels + 1) % K, labels))


@dataclass
class Case:
    """One way to train: the algorithms around the smoother, and the data."""

    name: str
    algorithms: object = lambda smoother: [smoother]
    label_maps: bool = False
    ignored: bool = False
    dict_output: bool = False
    collate: object = None


def in_the_dataloader(mix):
    """A collate function that mixes whole batches."""
    return lambda samples: mix(*default_collate(samples))


CASES = [
    Case("alone"),
    Case("before `MixUp`", lambda smoother: [smoother, MixUp(0.2)]),
    Case("after `MixUp`", lambda smoother: [MixUp(0.2), smoother]),
    Case("before `CutMix`", lambda smoother: [smoother, CutMix(1.0)]),
    Case("after `CutMix`", lambda smoother: [CutMix(1.0), smoother]),
    Case("before `MixUp` and `CutMix`", lambda smoother: [smoother, MixUp(0.2), CutMix(1.0)]),
    Case("with `MixUp(interpolate_loss=True)`", lambda smoother: [smoother, MixUp(0.2, interpolate_loss=True)]),
    Case("with `CutMix(interpolate_loss=True)`", lambda smoother: [smoother, CutMix(1.0, interpolate_loss=True)]),
    Case("label maps, before `CutMix`", lambda smoother: [smoother, CutMix(1.0)], label_maps=True),
    Case("label maps, after `CutMix`", lambda smoother: [CutMix(1.0), smoother], label_maps=True),
    Case("some labels are -100", ignored=True),
    Case("model output in a dict", dict_output=True),
    Case("before an algorithm that relabels", lambda smoother: [smoother, Relabel()]),
    Case("between `MixUp` and one that relabels", lambda smoother: [MixUp(0.2), smoother, Relabel()]),
    Case(
        "torchvision `v2.MixUp` or `v2.CutMix`, in the dataloader",
        collate=in_the_dataloader(v2.RandomChoice([v2.MixUp(num_classes=K), v2.CutMix(num_classes=K)])),
    ),
    Case(
        "MosaicML's CIFAR list: `BlurPool`, `ChannelsLast`, smoothing, `MixUp`",
        lambda smoother: [BlurPool(), ChannelsLast(), smoother, MixUp(0.2)],
    ),
    Case(
        "MosaicML's ImageNet list: with `SAM`, `ColOut`, `ProgressiveResizing`",
        lambda smoother: [BlurPool(), smoother, ProgressiveResizing(), MixUp(0.2), SAM(), ColOut()],
    ),
]


class MeasuringLoss:
    """Cross entropy that records the α of every row of its targets."""

    def __init__(self):
        self.received = []
        self.trains_on_ignored = False

    def __call__(self, logits, target):
        """The loss of a model's output."""
        logits = logits["logits"] if isinstance(logits, dict) else logits
        if not logits.requires_grad:  # LabelSmoothing runs the model once without gradients before the first step
            return F.cross_entropy(logits, target)
        if not target.is_floating_point():
            target = F.one_hot(target.clamp(0), K).movedim(-1, 1).float() * (target != -100).unsqueeze(1)
        rows = target.movedim(1, -1).reshape(-1, K)
        empty = rows.sum(1) == 0
        uniform = (rows.amax(1) - rows.amin(1) < 1e-6) & ~empty
        self.trains_on_ignored |= bool(uniform.any())
        self.received.append((K * rows.amin(1))[~empty & ~uniform])
        return F.cross_entropy(logits, target)


class Network(ComposerClassifier):
    """A small network whose output may be a dict, as Hugging Face's are."""

    def __init__(self, case, loss):
        head = [nn.Conv2d(8, K, 1)] if case.label_maps else [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, K)]
        super().__init__(nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), *head), num_classes=K, loss_fn=loss)
        self.dict_output = case.dict_output

    def forward(self, batch):
        """The output for a batch."""
        logits = super().forward(batch)
        return {"logits": logits} if self.dict_output else logits

    def update_metric(self, batch, outputs, metric):
        """Do nothing: the loss does the measurement."""


class LossWeights(Callback):
    """Records the weights of a step's losses: a mixer that interpolates losses adds a second one."""

    def __init__(self, algorithms):
        self.mixers = [a for a in algorithms if getattr(a, "interpolate_loss", False)]
        self.weights = []

    def after_forward(self, state, logger):
        """Record the weights of the one or two losses that follow."""
        second = [m.mixing if isinstance(m, MixUp) else 1 - m._adjusted_lambda for m in self.mixers]
        self.weights += [1 - second[0], second[0]] if second else [1.0]


def received_smoothing(case, smoother):
    """The mean α of the targets in three training steps, and whether the loss trains on label -100."""
    reproducibility.seed_all(17)
    images = torch.randn(48, 3, 16, 16)
    labels = torch.randint(0, K, (48, 16, 16) if case.label_maps else (48,))
    if case.ignored:
        labels[::3] = -100
    loss = MeasuringLoss()
    model = Network(case, loss)
    algorithms = case.algorithms(smoother)
    weights = LossWeights(algorithms)
    trainer = Trainer(
        model=model,
        train_dataloader=DataLoader(TensorDataset(images, labels), 16, collate_fn=case.collate),
        max_duration="3ba",
        algorithms=algorithms,
        callbacks=weights,
        optimizers=torch.optim.SGD(model.parameters(), 0.01),
        device="cpu",
        seed=17,
        progress_bar=False,
    )
    try:
        trainer.fit()
    finally:
        trainer.close()
    means = [rows.double().mean().item() for rows in loss.received]
    total = sum(weight * mean for weight, mean in zip(weights.weights, means, strict=True))
    return total / sum(weights.weights), loss.trains_on_ignored


def in_words(case, smoother):
    """An entry of the table."""
    try:
        smoothing, trains_on_ignored = received_smoothing(case, smoother)
    except Exception as error:
        return type(error).__name__
    return f"{smoothing:.4f}" + (", and trains on -100" if trains_on_ignored else "")


def ours(case):
    """Our LabelSmoothing, as a case needs it."""
    return composer_ls.LabelSmoothing(SMOOTHING, output_key="logits" if case.dict_output else None)


def main():
    """Print the table as Markdown."""
    warnings.filterwarnings("ignore")
    print(f"| smoothing {SMOOTHING} | Composer's | this one's |\n| --- | --- | --- |")
    for case in CASES:
        print(
            f"| {case.name} | {in_words(case, LabelSmoothing(SMOOTHING))} | {in_words(case, ours(case))} |", flush=True
        )


if __name__ == "__main__":
    main()
