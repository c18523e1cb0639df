"""The position of LabelSmoothing in the list never changes the numbers."""

import pytest
import torch
from composer.algorithms import EMA, CutMix, MixUp, SelectiveBackprop
from composer.core import Algorithm, Event
from composer.models import ComposerClassifier
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from trainer_support import K, RecordingLoss, classifier, fit

from composer_ls import LabelSmoothing, SoftTargets
from composer_ls.composition import place
from composer_ls.lab.training.algorithms import build_algorithms


class Relabel(Algorithm):
    """An algorithm unknown to composer_ls, which changes some labels just before the loss."""

    def match(self, event, state):
        return event == Event.BEFORE_LOSS

    def apply(self, event, state, logger):
        labels = state.batch_get_item(1)
        if labels.is_floating_point():
            state.batch_set_item(1, labels.roll(1, 1))
        else:
            state.batch_set_item(1, (labels + 1) % K)


class Bf16(nn.Module):
    """Runs a network under CPU autocast, which Composer's amp_bf16 does on GPUs only."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, images):
        with torch.autocast("cpu", torch.bfloat16):
            return self.module(images)


OTHERS = {
    "mixup": lambda: [MixUp(0.5)],
    "cutmix": lambda: [CutMix()],
    "mixup-interpolated": lambda: [MixUp(0.5, interpolate_loss=True)],
    "cutmix-interpolated": lambda: [CutMix(interpolate_loss=True)],
    "both": lambda: [MixUp(0.5), CutMix()],
    "both, swapped": lambda: [CutMix(), MixUp(0.5)],
    "mixup-interpolated and cutmix": lambda: [MixUp(0.5, interpolate_loss=True), CutMix()],
    "unknown": lambda: [Relabel()],
    "unknown first": lambda: [Relabel(), MixUp(0.5)],
    "unknown last": lambda: [MixUp(0.5), Relabel()],
    "unknown between": lambda: [MixUp(0.5), Relabel(), CutMix()],
    "four": lambda: [SelectiveBackprop(0.0, 1.0, interrupt=0), MixUp(0.5), Relabel(), CutMix()],
}


def in_every_place(others, **options):
    """The losses of all steps and the final weights, for each position of LabelSmoothing."""
    for position in range(len(others()) + 1):
        algorithms = others()
        algorithms.insert(position, LabelSmoothing(0.1))
        loss = RecordingLoss()
        weights = fit(algorithms, model=classifier(loss), **options)
        yield loss, weights


@pytest.mark.parametrize("others", OTHERS.values(), ids=OTHERS)
def test_every_place_gives_the_same_losses_and_weights(others):
    (first, weights), *rest = in_every_place(others, steps=4)
    assert first.smoothed == pytest.approx([0.1] * len(first.smoothed), abs=1e-6)
    for other, other_weights in rest:
        assert other.losses == pytest.approx(first.losses, rel=1e-6)
        torch.testing.assert_close(other_weights, weights, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("others", [OTHERS["both"], OTHERS["four"], OTHERS["cutmix-interpolated"]])
@pytest.mark.parametrize("bfloat16", [False, True])
def test_every_place_gives_the_same_in_microbatches_and_in_bfloat16(others, bfloat16):
    options = {"device_train_microbatch_size": 3}
    if bfloat16 and torch.cuda.is_available():
        options |= {"precision": "amp_bf16", "device": "gpu"}
    runs = []
    for position in range(len(others()) + 1):
        algorithms = others()
        algorithms.insert(position, LabelSmoothing(0.1))
        model = classifier()
        if bfloat16 and not torch.cuda.is_available():
            model = ComposerClassifier(Bf16(model.module), num_classes=K)
        runs.append(fit(algorithms, model=model, **options))
    for run in runs[1:]:
        torch.testing.assert_close(run, runs[0], rtol=1e-6, atol=1e-7)


def test_every_place_in_a_recipes_mapping_gives_the_same():
    names = ["mixup", "cutmix", "ema"]
    runs = []
    for position in range(len(names) + 1):
        order = [*names[:position], "label_smoothing", *names[position:]]
        runs.append(fit(build_algorithms({name: {} for name in order})))
    for run in runs[1:]:
        torch.testing.assert_close(run, runs[0], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("mixer", [MixUp, CutMix])
def test_interpolating_the_loss_or_the_targets_is_the_same(mixer):
    runs = []
    for interpolate_loss in (False, True):
        mixing = mixer(alpha=0.5, interpolate_loss=interpolate_loss)
        runs.append(fit([LabelSmoothing(0.1), mixing], device_train_microbatch_size=4))
    torch.testing.assert_close(*runs, rtol=1e-5, atol=1e-6)


def test_a_known_mixer_gets_compact_targets_and_one_before_an_unknown_algorithm_dense_ones():
    loss = RecordingLoss()
    fit([MixUp(0.5), LabelSmoothing(0.1)], model=classifier(loss))
    assert all(isinstance(target, SoftTargets) for target in loss.targets)
    loss = RecordingLoss()
    fit([MixUp(0.5), LabelSmoothing(0.1), Relabel()], model=classifier(loss))
    assert all(type(target) is torch.Tensor for target in loss.targets)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.sampled_from(["mixup", "cutmix", "unknown", "ema"]), max_size=5), st.data())
def test_placing_keeps_the_others_in_order_and_is_idempotent(names, data):
    makers = {"mixup": MixUp, "cutmix": CutMix, "unknown": Relabel, "ema": EMA}
    others = [makers[name]() for name in names]
    smoother = LabelSmoothing(0.1)
    position = data.draw(st.integers(0, len(others)))
    placed = place([*others[:position], smoother, *others[position:]], smoother)
    assert [algorithm for algorithm in placed if algorithm is not smoother] == others
    assert place(placed, smoother) == placed
    after = placed[placed.index(smoother) + 1 :]
    assert not any(isinstance(algorithm, Relabel) for algorithm in after)
    unknown = [i for i, name in enumerate(names) if name == "unknown"]
    before = names[: placed.index(smoother)]
    assert not {"mixup", "cutmix"} & set(before[(unknown[-1] + 1 if unknown else 0) :])
