"""Losses that use their labels in unusual ways: smoothed as if written by hand, or refused, and never silently left as they are."""

import random
import warnings

import numpy as np
import pytest
import torch
from composer import Evaluator, Trainer
from composer.algorithms import CutMix, MixUp
from composer.models import ComposerModel
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close
from torch.utils.data import DataLoader, TensorDataset
from trainer_support import fit

from composer_ls import LabelSmoothing, MaxSup, OnlineLabelSmoothing
from composer_ls.errors import TargetError

K, N = 5, 24


class Model(ComposerModel):
    """A linear classifier with a loss, and perhaps a forward pass, of its own."""

    def __init__(self, loss, forward=None, classes=K, zeros=False):
        super().__init__()
        torch.manual_seed(7)
        self.layer, self.auxiliary = nn.Linear(6, classes), nn.Linear(6, classes)
        if zeros:
            nn.init.zeros_(self.layer.weight)
            nn.init.zeros_(self.layer.bias)
        self.own_loss, self.own_forward = loss, forward

    def forward(self, batch):
        return self.layer(batch[0]) if self.own_forward is None else self.own_forward(self, batch)

    def loss(self, outputs, batch):
        return (
            self.own_loss(outputs, batch, self)
            if self.own_loss.__code__.co_argcount == 3
            else self.own_loss(outputs, batch)
        )


def inputs():
    return torch.randn(N, 6, generator=torch.Generator().manual_seed(1))


def labels(classes=K):
    return torch.randint(0, classes, (N,), generator=torch.Generator().manual_seed(2))


def weights(model, algorithms, *targets, microbatch=None):
    """The weights after three steps."""
    loader = DataLoader(TensorDataset(inputs(), *(targets or (labels(),))), 8)
    return fit(algorithms, model=model, loader=loader, device_train_microbatch_size=microbatch)


def smoothed(logits, target, amount=0.1):
    """Cross entropy, from the dense formula."""
    rows = F.one_hot(target, logits.shape[1]) if target.ndim == 1 else target
    return -(((1 - amount) * rows + amount / logits.shape[1]) * logits.log_softmax(1)).sum(1).mean()


def penalised(logits, target, strength=0.1, keep=None):
    """Cross entropy and the penalty of MaxSup."""
    keep = torch.ones(len(target), dtype=torch.bool) if keep is None else keep
    penalty = strength * (logits.amax(1) - logits.mean(1))
    return (F.cross_entropy(logits, target, reduction="none") + penalty)[keep].sum() / keep.sum()


def by_hand(forward=None, **options):
    return Model(lambda o, b: smoothed(o, b[1]), forward, **options)


def keep_labels(model, batch):
    model.kept = batch[1]
    return model.layer(batch[0])


def rows():
    return F.one_hot(labels(), K)


ANSWERED = {
    "rows to labels": (Model(lambda o, b: F.cross_entropy(o, b[1].argmax(1))), rows()),
    "float rows to labels": (Model(lambda o, b: F.cross_entropy(o, b[1].argmax(1))), rows().float()),
    "rows to labels if they are rows": (
        Model(lambda o, b: F.cross_entropy(o, b[1] if b[1].ndim == 1 else b[1].argmax(1))),
        labels(),
    ),
    "labels in the output": (
        Model(lambda o, b: F.cross_entropy(*o), lambda model, b: (model.layer(b[0]), b[1])),
        labels(),
    ),
    "labels that forward() keeps": (Model(lambda o, b, model: F.cross_entropy(o, model.kept), keep_labels), labels()),
    "of a layer that begins with zeros": (
        Model(lambda o, b: F.cross_entropy(o, b[1].argmax(1)), zeros=True),
        rows(),
    ),
}


@pytest.mark.parametrize("name", ANSWERED)
@pytest.mark.parametrize("microbatch", [None, 3])
def test_a_loss_that_turns_rows_into_labels_or_takes_others_is_smoothed_where_it_is_computed(name, microbatch):
    model, target = ANSWERED[name]
    start = {key: value.clone() for key, value in model.state_dict().items()}
    key = 0 if name == "labels in the output" else None
    found = weights(model, [LabelSmoothing(0.1, output_key=key)], target, microbatch=microbatch)
    model.load_state_dict(start)
    expected = weights(by_hand(zeros="zeros" in name), [], labels(), microbatch=microbatch)
    assert_close(found, expected)


@pytest.mark.parametrize("zeros", [False, True])
def test_a_usual_loss_is_not_taken_for_one_that_ignores_rows(zeros):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = weights(Model(lambda o, b: F.cross_entropy(o, b[1]), zeros=zeros), [LabelSmoothing(0.1)])
    assert_close(found, weights(by_hand(zeros=zeros), []))


def test_a_batch_without_any_label_is_not_taken_for_a_loss_that_ignores_rows():
    model = Model(lambda o, b: F.cross_entropy(o, b[1], reduction="sum"))
    target = labels()
    target[:8] = -100
    found = weights(model, [LabelSmoothing(0.1)], target)
    assert_close(found, weights(Model(lambda o, b: smoothed(o, b[1]) * 8 if b[1][0] >= 0 else o.sum() * 0), [], target))


def test_logits_that_share_memory_are_asked_as_they_are():
    model = Model(
        lambda o, b: F.cross_entropy(o[0] + 0, b[1]), lambda m, b: (m.layer(b[0]), m.layer(b[0])[:, :1].expand(-1, K))
    )
    found = weights(model, [LabelSmoothing(0.1, output_key=0)])
    assert_close(found, weights(by_hand(), []))


@pytest.mark.parametrize(
    "algorithm", [LabelSmoothing(0.1, output_key=0), MaxSup(0.1, output_key=0), OnlineLabelSmoothing(output_key=0)]
)
@pytest.mark.parametrize(
    ("loss", "forward"),
    [
        (
            lambda o, b: o[1].mean(),
            lambda model, b: (model.layer(b[0]), F.cross_entropy(model.layer(b[0]), b[1], reduction="none")),
        ),
        (
            lambda o, b, model: F.cross_entropy(o[0], model.kept),
            lambda model, b: (setattr(model, "kept", b[1] + 0), (model.layer(b[0]),))[1],
        ),
    ],
)
def test_a_loss_that_smoothing_cannot_reach_is_refused(algorithm, loss, forward):
    with pytest.raises(TargetError, match="is the same number when the targets are smoothed"):
        weights(Model(loss, forward), [algorithm])


def test_on_request_a_loss_that_smoothing_does_not_reach_trains_with_a_warning():
    model = Model(lambda o, b: o[1].mean(), lambda m, b: (m.layer(b[0]), F.cross_entropy(m.layer(b[0]), b[1])[None]))
    with pytest.warns(UserWarning, match="is the same number when the targets are smoothed"):
        weights(model, [LabelSmoothing(0.1, output_key=0, on_conflict="warn")])


def focal(o, b):
    log_probabilities = o.log_softmax(1)
    return F.cross_entropy(o, b[1]) + F.nll_loss((1 - log_probabilities.exp()) ** 2 * log_probabilities, b[1])


def test_nll_loss_of_what_is_no_log_probability_stays_as_it_is_beside_a_cross_entropy():
    assert_close(weights(Model(focal), [LabelSmoothing(0.0)]), weights(Model(focal), []), rtol=0, atol=0)

    def expected(o, b):
        return smoothed(o, b[1]) + focal(o, b) - F.cross_entropy(o, b[1])

    assert_close(weights(Model(focal), [LabelSmoothing(0.1)]), weights(Model(expected), []))


@pytest.mark.parametrize("mixer", [MixUp, CutMix])
@pytest.mark.parametrize("interpolate_loss", [False, True])
@pytest.mark.parametrize(
    "mark",
    [lambda y: y.masked_fill(y == 255, -100), lambda y: torch.where(y == 255, -100, y), lambda y: y.clamp(min=-100)],
)
def test_labels_that_are_marked_before_the_loss_are_smoothed_in_both_modes_of_a_mixer(mixer, interpolate_loss, mark):
    def images(loss):
        return Model(loss, lambda model, b: model.layer(b[0].mean((2, 3))))

    def trained(model, algorithms):
        data = torch.randn(N, 6, 4, 4, generator=torch.Generator().manual_seed(1))
        return fit(algorithms, model=model, loader=DataLoader(TensorDataset(data, labels()), 8))

    mix = {"alpha": 0.8, "interpolate_loss": interpolate_loss}
    found = trained(images(lambda o, b: F.cross_entropy(o, mark(b[1]))), [LabelSmoothing(0.1), mixer(**mix)])
    assert_close(found, trained(images(lambda o, b: smoothed(o, b[1])), [mixer(**mix)]))


def two_heads(model, b):
    return model.layer(b[0]), model.auxiliary(b[0])


@pytest.mark.parametrize("key", [None, 0])
def test_max_sup_penalises_the_logits_that_each_loss_takes(key):
    def loss(o, b):
        return F.cross_entropy(o[0], b[1]) + 0.4 * F.cross_entropy(o[1], b[1])

    def expected(o, b):
        return penalised(o[0], b[1]) + 0.4 * penalised(o[1], b[1])

    assert_close(
        weights(Model(loss, two_heads), [MaxSup(0.1, output_key=key)]), weights(Model(expected, two_heads), [])
    )


def test_max_sup_penalises_adjusted_logits():
    by = torch.linspace(-2, 2, K)
    found = weights(Model(lambda o, b: F.cross_entropy(o + by, b[1])), [MaxSup(0.3)])
    assert_close(found, weights(Model(lambda o, b: penalised(o + by, b[1], 0.3)), []))


def test_max_sup_leaves_out_what_the_loss_ignores():
    found = weights(Model(lambda o, b: F.cross_entropy(o, b[1], ignore_index=0)), [MaxSup(0.1)])
    assert_close(found, weights(Model(lambda o, b: penalised(o, b[1], keep=b[1] != 0)), []))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
def test_class_156_in_bytes_is_not_taken_for_minus_100(dtype):
    target = labels(171)
    target[::3], target[1::4] = 255, 156

    def expected(o, b):
        keep = b[1] != 255
        return smoothed(o[keep], b[1][keep])

    found = weights(
        Model(lambda o, b: F.cross_entropy(o, b[1], ignore_index=255), classes=171),
        [LabelSmoothing(0.1)],
        target.to(dtype),
    )
    assert_close(found, weights(Model(expected, classes=171), [], target))


def test_labels_of_a_mix_that_the_key_does_not_lead_to_are_refused():
    def mixed(o, b):
        return 0.7 * F.cross_entropy(o, b[1]) + 0.3 * F.cross_entropy(o, b[2])

    both = labels(), labels().flip(0)
    with pytest.raises(
        TargetError, match="labels at 1 of the batch and with those at 2, and LabelSmoothing would smooth only"
    ):
        weights(Model(mixed), [LabelSmoothing(0.1)], *both)
    with pytest.warns(UserWarning, match="would smooth only the first"):
        found = weights(Model(mixed), [LabelSmoothing(0.1, on_conflict="warn")], *both)
    assert_close(
        found, weights(Model(lambda o, b: 0.7 * smoothed(o, b[1]) + 0.3 * F.cross_entropy(o, b[2])), [], *both)
    )


def test_a_step_in_which_nothing_is_smoothed_is_told_once():
    def sometimes(o, b, model):
        model.steps = getattr(model, "steps", 0) + 1
        target = b[1] if b[1].ndim == 1 else b[1].argmax(1)
        return F.cross_entropy(o, target) if model.steps == 1 else o.square().mean()

    with pytest.warns(
        UserWarning, match="changed nothing in a step, because Model computed no cross_entropy of 1"
    ) as told:
        weights(Model(sometimes), [LabelSmoothing(0.1)])
    assert len([one for one in told if "changed nothing" in str(one.message)]) == 1


def test_asking_does_not_advance_generators_that_the_model_owns():
    class Noisy(Model):
        def __init__(self):
            super().__init__(lambda o, b: F.cross_entropy(o, b[1]))
            self.generators = [random.Random(1), np.random.default_rng(1)]
            self.generator = torch.Generator().manual_seed(1)

        def forward(self, batch):
            scale = self.generators[0].random() + self.generators[1].random()
            return self.layer(batch[0]) * scale + torch.randn(K, generator=self.generator)

    assert_close(weights(Noisy(), [LabelSmoothing(0.0)]), weights(Noisy(), []))


def test_evaluation_after_an_interrupted_step_sees_plain_labels(monkeypatch):
    model = Model(lambda o, b: F.cross_entropy(o, b[1].argmax(1) if b[1].ndim > 1 else b[1]))
    loader = DataLoader(TensorDataset(inputs(), labels()), 8)
    trainer = Trainer(
        model=model, train_dataloader=loader, max_duration="2ba", algorithms=[LabelSmoothing(0.1)], device="cpu"
    )

    def interrupted(*args, **named):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "backward", interrupted)
        with pytest.raises(KeyboardInterrupt):
            trainer.fit()
    found = []

    def evaluated(batch, outputs=None):
        outputs = model.layer(batch[0])
        found.append(model.loss(outputs, batch))
        return outputs

    model.eval_forward, model.update_metric = evaluated, lambda *_: None
    trainer.eval(Evaluator(label="test", dataloader=loader, metric_names=[]))
    trainer.close()
    with torch.no_grad():
        plain = F.cross_entropy(model.layer(inputs()[:8]), labels()[:8])
    assert_close(found[0], plain)


def test_a_model_that_could_not_be_asked_but_trains_is_told():
    class Store(Model):
        def __init__(self):
            super().__init__(lambda o, b, model: F.cross_entropy(o, model.store["labels"]))
            self.store = {}

        def forward(self, batch):
            self.store["labels"] = batch[1]
            return super().forward(batch)

    with pytest.warns(UserWarning, match=r"could not ask the model what its loss is \(KeyError: 'labels'\)"):
        weights(Store(), [LabelSmoothing(0.1)])
