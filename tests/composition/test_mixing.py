"""Smooth-then-mix equals mix-then-smooth, for each mixer, mode and place where mixing happens."""

import functools
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from composer.algorithms import CutMix, MixUp
from composer.core import Algorithm, DataSpec, Event
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.data.mixup import FastCollateMixup, Mixup
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset, default_collate
from torchvision.transforms import v2
from trainer_support import K, RecordingLoss, classifier, examples, fit

from composer_ls import LabelSmoothing, SoftTargets, smooth_labels
from composer_ls.composition import Mixer, register_mixer


def one_hot(labels, num_classes):
    """Dense rows; an ignored label has no mass."""
    rows = F.one_hot(labels.clamp(0), num_classes).movedim(-1, 1).double()
    return rows * (labels != -100).unsqueeze(1)


@st.composite
def batches(draw, spatial=None):
    num_classes, size = draw(st.integers(2, 12)), draw(st.integers(1, 6))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    shape = (size, *(draw(st.sampled_from([(), (6, 5)])) if spatial is None else spatial))
    labels = torch.randint(0, num_classes, shape, generator=generator)
    if draw(st.booleans()):
        labels = torch.where(torch.rand(shape, generator=generator) < 0.3, -100, labels)
    rows = torch.rand(num_classes, num_classes, generator=generator, dtype=torch.float64)
    rows = rows / rows.sum(1, keepdim=True)
    prior = draw(st.sampled_from([None, rows[0], rows]))
    permutation = torch.randperm(size, generator=generator)
    logits = torch.zeros(size, num_classes, *shape[1:], dtype=torch.float64)
    return labels, logits, prior, permutation


def smoothed_rows(rows, smoothing, prior):
    """The definition, on dense rows."""
    rows = rows.movedim(1, -1)
    mass = rows.sum(-1, keepdim=True)
    moved = mass / rows.shape[-1] if prior is None else mass * prior if prior.ndim == 1 else rows @ prior
    return ((1 - smoothing) * rows + smoothing * moved).movedim(-1, 1)


@settings(deadline=None, max_examples=60)
@given(batches(), st.floats(0, 1), st.floats(0, 1))
def test_mixing_smoothed_labels_is_smoothing_mixed_rows(batch, mixing, smoothing):
    labels, logits, prior, permutation = batch
    smoothed = smooth_labels(logits, labels, smoothing, prior=prior)
    mixed = (1 - mixing) * smoothed + mixing * smoothed[permutation]
    assert isinstance(mixed, SoftTargets)
    rows = one_hot(labels, logits.shape[1])
    expected = smoothed_rows((1 - mixing) * rows + mixing * rows[permutation], smoothing, prior)
    torch.testing.assert_close(mixed.dense(), expected, rtol=1e-9, atol=1e-12)


@settings(deadline=None, max_examples=60)
@given(
    batches(spatial=(6, 5)),
    st.tuples(st.integers(0, 6), st.integers(0, 6)),
    st.tuples(st.integers(0, 5), st.integers(0, 5)),
)
def test_pasting_a_box_of_smoothed_label_maps_is_smoothing_the_pasted_map(batch, xs, ys):
    labels, logits, prior, permutation = batch
    box = (..., slice(*sorted(xs)), slice(*sorted(ys)))
    smoothed = smooth_labels(logits, labels, 0.1, prior=prior)
    partner = smoothed[permutation]
    pasted = labels.clone()
    pasted[box] = labels[permutation][box]
    smoothed[box] = partner[box]
    assert isinstance(smoothed, SoftTargets)
    expected = smoothed_rows(one_hot(pasted, logits.shape[1]), 0.1, prior)
    torch.testing.assert_close(smoothed.dense(), expected, rtol=1e-9, atol=1e-12)


@settings(deadline=None, max_examples=30)
@given(batches(spatial=()), st.sampled_from([MixUp, CutMix]), st.booleans())
def test_composers_own_arithmetic_gives_the_smoothed_mix(batch, mixer, smoother_first):
    labels, logits, prior, _ = batch
    np.random.seed(3)
    torch.manual_seed(3)
    mixing = mixer(alpha=1.0)
    smoother = LabelSmoothing(0.1, prior=prior)
    state = _State(torch.zeros(len(labels), 3, 8, 8), labels, logits)
    mixing.apply(Event.BEFORE_FORWARD, state, Mock())
    weight = mixing.mixing if mixer is MixUp else 1 - mixing._adjusted_lambda
    partners = one_hot((mixing.permuted_target if mixer is MixUp else mixing._permuted_target), logits.shape[1])
    state.algorithms = [smoother, mixing] if smoother_first else [mixing, smoother]
    for algorithm in state.algorithms:
        algorithm.apply(Event.BEFORE_LOSS, state, Mock())
    expected = smoothed_rows((1 - weight) * one_hot(labels, logits.shape[1]) + weight * partners, 0.1, prior)
    torch.testing.assert_close(state.batch[1].double(), expected, rtol=1e-5, atol=1e-6)


class _State:
    """The part of Composer's State that the algorithms use."""

    def __init__(self, images, labels, outputs):
        self.batch, self.outputs, self.algorithms = (images, labels), outputs, []

    def batch_get_item(self, key):
        return self.batch[key]

    def batch_set_item(self, key, value):
        self.batch = (value, self.batch[1]) if key == 0 else (self.batch[0], value)


def assert_every_loss_saw_a_tenth(loss, calls=3):
    assert len(loss.smoothed) == calls
    assert loss.smoothed == pytest.approx([0.1] * calls, abs=1e-6)


@pytest.mark.parametrize("interpolate_loss", [False, True])
@pytest.mark.parametrize("smoother_first", [False, True])
def test_label_maps_with_mixup_see_the_whole_smoothing(interpolate_loss, smoother_first):
    loss = RecordingLoss()
    algorithms = [MixUp(0.5, interpolate_loss=interpolate_loss)]
    algorithms.insert(0 if smoother_first else 1, LabelSmoothing(0.1))
    fit(algorithms, model=classifier(loss, segmentation=True), segmentation=True)
    assert_every_loss_saw_a_tenth(loss, 6 if interpolate_loss else 3)


@pytest.mark.parametrize("order", [(0, 1, 2), (1, 0, 2), (1, 2, 0), (2, 1, 0)])
@pytest.mark.parametrize("segmentation", [False, True])
def test_mixup_and_cutmix_together_see_the_whole_smoothing(order, segmentation):
    loss = RecordingLoss()
    algorithms = [LabelSmoothing(0.1), MixUp(0.5), CutMix()]
    if segmentation:  # Composer's CutMix pastes label maps; with MixUp before it, it would paste dense rows
        algorithms = [LabelSmoothing(0.1), CutMix(), MixUp(0.5)]
    fit([algorithms[i] for i in order], model=classifier(loss, segmentation=segmentation), segmentation=segmentation)
    assert_every_loss_saw_a_tenth(loss)


def mix_collate(samples, mix):
    return mix(*default_collate(samples))


class CollateObject:
    def __init__(self, mix):
        self.mix = mix

    def __call__(self, samples):
        return self.mix(*default_collate(samples))


COLLATES = {
    "partial": lambda mix: functools.partial(mix_collate, mix=mix),
    "lambda": lambda mix: lambda samples: mix(*default_collate(samples)),
    "object": CollateObject,
}


@pytest.mark.parametrize("collate", COLLATES.values(), ids=COLLATES)
@pytest.mark.parametrize(
    "mix",
    [
        v2.MixUp(num_classes=K),
        v2.CutMix(num_classes=K),
        v2.RandomChoice([v2.MixUp(num_classes=K), v2.CutMix(num_classes=K)]),
        Mixup(mixup_alpha=0.5, cutmix_alpha=1.0, label_smoothing=0.0, num_classes=K),
    ],
    ids=["MixUp", "CutMix", "RandomChoice", "timm"],
)
def test_targets_mixed_by_the_collate_function_are_smoothed(collate, mix):
    loss = RecordingLoss()
    loader = DataLoader(TensorDataset(*examples()), 8, collate_fn=collate(mix))
    fit([LabelSmoothing(0.1)], model=classifier(loss), loader=loader)
    assert_every_loss_saw_a_tenth(loss)


@pytest.mark.parametrize("when", ["batch_transforms", "microbatch_transforms"])
def test_targets_mixed_by_a_transform_of_the_data_spec_are_smoothed(when):
    loss = RecordingLoss()
    mix = v2.RandomChoice([v2.MixUp(num_classes=K), v2.CutMix(num_classes=K)])
    spec = DataSpec(DataLoader(TensorDataset(*examples()), 8), **{when: lambda batch: mix(*batch)})
    fit([LabelSmoothing(0.1)], model=classifier(loss), loader=spec, device_train_microbatch_size=4)
    assert_every_loss_saw_a_tenth(loss, 6)


def test_targets_mixed_by_timms_fast_collate_are_smoothed():
    generator = np.random.default_rng(0)
    samples = [(generator.integers(0, 255, (3, 8, 8), dtype=np.uint8), int(i % K)) for i in range(24)]
    mix = FastCollateMixup(mixup_alpha=0.5, label_smoothing=0.0, num_classes=K)

    def collate(batch):
        images, target = mix(batch)
        return images.float() / 255, target

    loss = RecordingLoss()
    fit([LabelSmoothing(0.1)], model=classifier(loss), loader=DataLoader(samples, 8, collate_fn=collate))
    assert_every_loss_saw_a_tenth(loss)


class FlipMix(Algorithm):
    """A user-defined mixer: mixes each image half and half with the one at the mirrored position in the batch."""

    def __init__(self, target_key=1):
        self.target_key, self.partners = target_key, None

    def match(self, event, state):
        return event in (Event.BEFORE_FORWARD, Event.BEFORE_LOSS)

    def apply(self, event, state, logger):
        if event == Event.BEFORE_FORWARD:
            self.partners = state.batch_get_item(self.target_key).flip(0)
        else:
            target = state.batch_get_item(self.target_key)
            state.batch_set_item(self.target_key, 0.5 * target + 0.5 * self.partners)


@pytest.fixture
def registry(monkeypatch):
    from composer_ls.composition import mixers

    monkeypatch.setattr(mixers, "_REGISTRY", dict(mixers._REGISTRY))


@pytest.mark.parametrize("position", [0, 1, 2])
def test_a_registered_mixer_is_treated_as_composers(registry, position):
    register_mixer(Mixer(FlipMix, second_labels="partners"))
    loss = RecordingLoss()
    algorithms = [FlipMix(), MixUp(0.5)]
    algorithms.insert(position, LabelSmoothing(0.1))
    fit(algorithms, model=classifier(loss))
    assert all(isinstance(target, SoftTargets) for target in loss.targets)
    assert_every_loss_saw_a_tenth(loss)


@pytest.mark.parametrize(
    ("mixer", "message"),
    [
        (
            Mixer(FlipMix, second_labels="second"),
            "FlipMix is registered as a mixer with second_labels='second', but has no",
        ),
        (
            Mixer(FlipMix, "partners", interpolate_loss="both"),
            "with interpolate_loss='both', but has no attribute 'both'",
        ),
        (Mixer(FlipMix, "partners", target_key="key"), "with target_key='key', but has no attribute 'key'"),
    ],
)
def test_a_registered_mixer_without_a_promised_field_is_refused(registry, mixer, message):
    register_mixer(mixer)
    with pytest.raises(ValueError, match=message):
        fit([LabelSmoothing(0.1), FlipMix()])


def test_a_mixer_with_another_target_key_is_refused():
    with pytest.raises(
        ValueError, match="MixUp mixes the targets at target_key='labels', .* give both the same target_key"
    ):
        fit([LabelSmoothing(0.1), MixUp(target_key="labels")])


@pytest.mark.parametrize(
    ("partners", "message"),
    [
        (torch.zeros(3, dtype=torch.long), r"second labels in Broken.partners do not fit .* shape \(3,\)"),
        (torch.zeros(8, K + 1), rf"the target has {K + 1} classes, the logits {K}"),
        (None, "second labels in Broken.partners do not fit"),
    ],
)
def test_second_labels_that_do_not_fit_are_refused(registry, partners, message):
    class Broken(FlipMix):
        def apply(self, event, state, logger):
            self.partners = partners

    register_mixer(Mixer(FlipMix, second_labels="partners"))
    with pytest.raises((TypeError, ValueError), match=message):
        fit([LabelSmoothing(0.1), Broken()])


def test_dense_targets_with_another_number_of_classes_are_refused():
    loader = DataLoader(TensorDataset(examples()[0], torch.rand(24, K + 2)), 8)
    with pytest.raises(ValueError, match=f"the target has {K + 2} classes, the logits {K}"):
        fit([LabelSmoothing(0.1)], loader=loader)
