"""Every order of algorithms drawn from Composer's: the same weights whatever the place of smoothing.

A failure names its case: ``pytest tests/endurance -k place --case 12`` repeats it.
"""

import random
import warnings

import pytest
import torch
from composer.algorithms import (
    CutMix,
    GyroDropout,
    LayerFreezing,
    MixUp,
    SqueezeExcite,
    WeightStandardization,
)
from composer.models import ComposerClassifier
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset
from trainer_support import COMPANIONS, K, examples, fit

from composer_ls import LabelSmoothing

pytestmark = pytest.mark.slow

OTHERS = {
    "MixUp": lambda: MixUp(0.5),
    "MixUp of losses": lambda: MixUp(0.5, interpolate_loss=True),
    "CutMix": lambda: CutMix(1.0),
    "CutMix of losses": lambda: CutMix(1.0, interpolate_loss=True),
    **COMPANIONS,
    "SqueezeExcite": lambda: SqueezeExcite(latent_channels=4, min_channels=8),
    "WeightStandardization": WeightStandardization,
    "LayerFreezing": lambda: LayerFreezing(freeze_start=0.3, freeze_level=0.5),
    "GyroDropout": lambda: GyroDropout(p=0.3, sigma=2, tau=2),
}
"""The algorithms of Composer that touch targets, images, losses or the network."""
MIXERS = [name for name in OTHERS if name.startswith(("MixUp", "CutMix"))]


def draw(number):
    """The names of three algorithms, of which one mixes if the number is even, and how the batch is divided."""
    choose = random.Random(number)
    names = (
        choose.sample(list(OTHERS), 3) if number % 2 else [*choose.sample(MIXERS, 1), *choose.sample(list(OTHERS), 2)]
    )
    names = list(dict.fromkeys(names))
    choose.shuffle(names)
    microbatch = None if {"SAM", "SelectiveBackprop"} & set(names) else choose.choice([None, 4])
    return names, microbatch


def weights(names, microbatch, place):
    torch.manual_seed(7)
    body = [nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    module = nn.Sequential(*body, nn.Dropout(0.1), nn.Linear(8, K))
    model = ComposerClassifier(module, num_classes=K, loss_fn=F.cross_entropy)
    algorithms = [OTHERS[name]() for name in names]
    if place is not None:
        algorithms.insert(place, LabelSmoothing(0.3))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return fit(
            algorithms,
            model=model,
            loader=DataLoader(TensorDataset(*examples()), 8),
            device_train_microbatch_size=microbatch,
        )


def test_the_place_of_smoothing_changes_nothing(cases):
    for number in cases(12):
        names, microbatch = draw(number)
        words = f"case {number}: {names}, microbatch {microbatch}"
        try:
            first, *others = (weights(names, microbatch, place) for place in range(len(names) + 1))
        except Exception as error:
            error.add_note(words)
            raise
        for place, other in enumerate(others, 1):
            assert torch.equal(first, other), f"{words}: in place {place}, not 0, by {(first - other).abs().max():.1e}"
        assert not torch.equal(first, weights(names, microbatch, None)), f"{words}: smoothing has no effect"
