"""LabelSmoothing inside Composer's Trainer."""

import pickle
from dataclasses import dataclass
from unittest.mock import Mock

import composer.algorithms
import pytest
import torch
from composer import Trainer
from composer.algorithms import CutMix, MixUp
from composer.core import Callback, Event, State
from composer.loss import binary_cross_entropy_with_logits as composer_binary_cross_entropy
from composer.loss import soft_cross_entropy
from composer.models import ComposerClassifier, ComposerModel
from support import Allocations
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset
from trainer_support import K, RecordingLoss, SecondStep, classifier, examples, fit

import composer_ls.algorithm
from composer_ls import LabelSmoothing, SoftTargets, cross_entropy
from composer_ls.errors import TargetError
from composer_ls.smoothing import linear


def fake_state(batch, outputs, model=None):
    state = Mock(spec=State)
    state.batch, state.outputs, state.model = batch, outputs, model
    state.algorithms, state.callbacks = [], []
    state.batch_get_item = lambda key: State.batch_get_item(state, key)
    state.batch_set_item = lambda key, value: State.batch_set_item(state, key, value)
    return state


def test_same_weights_as_pytorchs_own_label_smoothing():
    loss = nn.CrossEntropyLoss(label_smoothing=0.1)
    torch.testing.assert_close(fit([LabelSmoothing(0.1)]), fit([], model=classifier(loss)))


def test_smoothing_zero_trains_as_without():
    torch.testing.assert_close(fit([LabelSmoothing(0.0)]), fit([]))


@pytest.mark.parametrize("mixer", [MixUp, CutMix])
@pytest.mark.parametrize("interpolate_loss", [False, True])
@pytest.mark.parametrize("first", [False, True])
def test_every_loss_beside_a_mixer_sees_the_whole_smoothing(mixer, interpolate_loss, first):
    loss = RecordingLoss()
    algorithms = [mixer(alpha=0.5, interpolate_loss=interpolate_loss)]
    algorithms.insert(0 if first else 1, LabelSmoothing(0.1))
    fit(algorithms, model=classifier(loss))
    assert len(loss.smoothed) == (6 if interpolate_loss else 3)
    assert loss.smoothed == pytest.approx([0.1] * len(loss.smoothed), abs=1e-6)
    assert all(isinstance(target, SoftTargets) for target in loss.targets)


@pytest.mark.parametrize("mixer", [MixUp, CutMix])
def test_both_modes_and_both_orders_give_the_same_weights(mixer):
    runs = [
        fit(order)
        for interpolate_loss in (False, True)
        for order in (
            [LabelSmoothing(0.1), mixer(alpha=0.5, interpolate_loss=interpolate_loss)],
            [mixer(alpha=0.5, interpolate_loss=interpolate_loss), LabelSmoothing(0.1)],
        )
    ]
    for run in runs[1:]:
        torch.testing.assert_close(run, runs[0], rtol=1e-5, atol=1e-6)


def test_cutmix_on_label_maps_agrees_in_both_orders_and_spares_the_users_labels():
    images, labels = examples(segmentation=True)
    before = labels.clone()
    loader = DataLoader(TensorDataset(images, labels), 8)
    first = fit([LabelSmoothing(0.1), CutMix()], segmentation=True, loader=loader)
    torch.testing.assert_close(fit([CutMix(), LabelSmoothing(0.1)], segmentation=True, loader=loader), first)
    assert torch.equal(labels, before)


def test_ignored_labels_get_no_gradient():
    images, labels = examples()
    labels[::2] = -100
    kept = TensorDataset(images[1::2], labels[1::2])
    all_rows = fit([LabelSmoothing(0.1)], loader=DataLoader(TensorDataset(images, labels), 8))
    torch.testing.assert_close(all_rows, fit([LabelSmoothing(0.1)], loader=DataLoader(kept, 4)))


@pytest.mark.parametrize("kind", ["labels", "one-hot", "dense"])
@pytest.mark.parametrize("container", [tuple, list])
def test_the_batch_holds_the_same_object_after_the_loss(kind, container):
    images, labels = examples()
    target = {"labels": labels, "one-hot": F.one_hot(labels, K), "dense": torch.rand(24, K).softmax(1)}[kind]
    batch = container((images, target))
    state = fake_state(batch, torch.randn(24, K))
    algorithm = LabelSmoothing(0.1)
    algorithm.apply(Event.BEFORE_LOSS, state, Mock())
    assert state.batch[1] is not target
    assert batch[1] is target  # the batch that others hold is never changed
    dense = target if kind == "dense" else F.one_hot(labels, K)
    torch.testing.assert_close(state.batch[1], 0.9 * dense + 0.02)
    algorithm.apply(Event.AFTER_LOSS, state, Mock())
    assert state.batch[1] is target


def test_target_key_may_be_a_getter_and_a_setter():
    labels = torch.tensor([0, 1])
    batch = {"inputs": torch.zeros(2), "nested": {"labels": labels}}

    def get(batch):
        return batch["nested"]["labels"]

    def put(batch, value):
        batch["nested"]["labels"] = value
        return batch

    state = fake_state(batch, torch.randn(2, K))
    algorithm = LabelSmoothing(0.1, (get, put))
    algorithm.apply(Event.BEFORE_LOSS, state, Mock())
    assert isinstance(state.batch["nested"]["labels"], SoftTargets)
    assert batch["nested"]["labels"] is labels
    algorithm.apply(Event.AFTER_LOSS, state, Mock())
    assert state.batch["nested"]["labels"] is labels


def test_a_loss_that_raises_leaves_the_users_batch_as_it_was():
    def broken(logits, target):
        raise RuntimeError("the loss broke")

    batches = [[*examples()]]
    labels = batches[0][1]
    with pytest.raises(RuntimeError, match="the loss broke"):
        fit([LabelSmoothing(0.1)], model=classifier(broken), loader=_Loader(batches))
    assert batches[0][1] is labels


class _Loader(list):
    """A dataloader of ready-made batches."""

    batch_size = 24


def test_output_key_leads_to_the_logits():
    @dataclass
    class Output:
        logits: torch.Tensor

    labels, logits = torch.tensor([0, 1]), torch.randn(2, K)
    for output, key in (
        (Output(logits), "logits"),
        ({"logits": logits}, "logits"),
        ((logits, None), 0),
        (Output(logits), lambda output: output.logits),
    ):
        state = fake_state((None, labels), output)
        LabelSmoothing(0.1, output_key=key).apply(Event.BEFORE_LOSS, state, Mock())
        assert state.batch[1].shape == (2, K)


class Watch(Callback):
    """Calls a function at an event."""

    def __init__(self, event, look):
        setattr(self, event, lambda state, logger: look(state))


def test_a_classifier_on_composers_default_loss_has_the_fused_one_while_it_trains_and_its_own_afterwards():
    model, during = classifier(), []
    watch = Watch("after_loss", lambda state: during.append(state.model._loss_fn))
    fit([LabelSmoothing(0.1)], model=model, steps=1, callbacks=[watch])
    assert during == [cross_entropy]
    assert model._loss_fn is soft_cross_entropy
    assert "composer_ls" not in str(pickle.dumps(model))


def test_a_training_that_failed_leaves_no_loss_behind_in_the_next():
    model = classifier()
    smoother = LabelSmoothing(0.1)

    def fail(state):
        raise RuntimeError("the disk is full")

    with pytest.raises(RuntimeError, match="the disk is full"):
        fit([smoother], model=model, callbacks=[Watch("batch_end", fail)])
    fit([smoother], model=model)
    assert model._loss_fn is soft_cross_entropy


def test_evaluation_sees_plain_labels():
    seen = []

    class Model(ComposerClassifier):
        def update_metric(self, batch, outputs, metric):
            seen.append(type(batch[1]))
            super().update_metric(batch, outputs, metric)

    model = Model(nn.Sequential(nn.Flatten(), nn.Linear(192, K)), num_classes=K)
    loader = DataLoader(TensorDataset(*examples()), 8)
    fit([LabelSmoothing(0.1), MixUp()], model=model, eval_dataloader=loader, eval_interval="1ba")
    assert set(seen) == {torch.Tensor}


def test_labels_are_always_checked_on_the_first_batch_and_later_where_that_costs_no_wait(monkeypatch):
    checks = []
    original = composer_ls.algorithm.smooth_labels
    monkeypatch.setattr(
        "composer_ls.algorithm.smooth_labels",
        lambda *args, **options: checks.append(options["validate"]) or original(*args, **options),
    )
    fit([LabelSmoothing(0.1)])
    assert checks == [True, None, None]


@pytest.mark.parametrize("interpolate_loss", [False, True])
def test_a_step_that_failed_does_not_reach_the_next_one(interpolate_loss):
    """Simulates Composer's retry with a smaller microbatch after running out of memory."""

    mixer = MixUp(0.5, interpolate_loss=interpolate_loss)
    smoother = LabelSmoothing(0.1)
    images, labels = examples()
    state = fake_state([images[:8], labels[:8]], torch.randn(8, K))
    state.algorithms = [smoother, mixer]
    mixer.apply(Event.BEFORE_FORWARD, state, Mock())
    smoother.apply(Event.BEFORE_LOSS, state, Mock())  # and the loss fails
    state.batch, state.outputs = [images[:4], labels[:4]], torch.randn(4, K)
    mixer.apply(Event.BEFORE_FORWARD, state, Mock())
    partners = mixer.permuted_target
    smoother.apply(Event.BEFORE_LOSS, state, Mock())
    torch.testing.assert_close(mixer.permuted_target, 0.9 * F.one_hot(partners, K) + 0.1 / K)
    smoother.apply(Event.AFTER_LOSS, state, Mock())
    smoother.apply(Event.AFTER_BACKWARD, state, Mock())
    assert mixer.permuted_target is partners


def test_a_second_fit_after_a_failed_one_starts_from_the_plain_batch():
    def broken(logits, target):
        raise RuntimeError("the loss broke")

    model = classifier(broken)
    trainer = Trainer(
        model=model,
        train_dataloader=DataLoader(TensorDataset(*examples()), 8),
        max_duration="2ba",
        algorithms=[LabelSmoothing(0.1)],
        optimizers=torch.optim.SGD(model.parameters(), 0.1),
        progress_bar=False,
        device="cpu",
    )
    with pytest.raises(RuntimeError, match="the loss broke"):
        trainer.fit()
    trainer.state.algorithms[0].apply(Event.FIT_START, trainer.state, Mock())
    assert type(trainer.state.batch[1]) is torch.Tensor
    trainer.close()


def test_an_output_with_its_own_loss_is_refused():
    logits = torch.zeros(2, K)
    state = fake_state((None, torch.tensor([0, 1])), {"logits": logits, "loss": logits.sum()})
    with pytest.raises(ValueError, match="contains a loss that was computed.*keep the labels out of forward"):
        LabelSmoothing(0.1, output_key="logits").apply(Event.BEFORE_LOSS, state, Mock())
    with pytest.warns(UserWarning, match="contains a loss that was computed"):
        LabelSmoothing(0.1, output_key="logits", on_conflict="warn").apply(Event.BEFORE_LOSS, state, Mock())


@pytest.mark.parametrize("prior", [torch.tensor([0.4, 0.3, 0.2, 0.1, 0.0]), torch.eye(K).roll(1, 0)])
def test_a_prior_receives_the_mass(prior):
    state = fake_state((None, torch.tensor([2])), torch.randn(1, K))
    LabelSmoothing(0.5, prior=prior).apply(Event.BEFORE_LOSS, state, Mock())
    row = prior if prior.ndim == 1 else prior[2]
    torch.testing.assert_close(state.batch[1], 0.5 * F.one_hot(torch.tensor([2]), K) + 0.5 * row)


@pytest.mark.parametrize("kind", [torch.Tensor.clone, torch.Tensor.numpy])
def test_a_change_of_the_users_factors_or_prior_does_not_reach_the_algorithm(kind):
    factors, prior = kind(torch.full((K,), 0.3)), kind(torch.full((K,), 1 / K))
    smoother = LabelSmoothing(factors, prior=prior)
    factors[:], prior[:] = 0, 0
    assert (smoother.smoothing == 0.3).all()
    assert (smoother.prior == 1 / K).all()


def test_a_prior_that_is_learnt_gets_its_gradient():
    prior = torch.full((K,), 1 / K, requires_grad=True)
    fit([LabelSmoothing(0.3, prior=prior)], steps=1)
    assert prior.grad.abs().sum() > 0


def test_repr_is_the_call():
    assert repr(LabelSmoothing(0.2)) == (
        "LabelSmoothing(smoothing=0.2, target_key=1, prior=None, ignore_index=-100, spread='all', on_conflict='raise', "
        "output_key=None, kind='multiclass', logits='kept')"
    )


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"smoothing": 7}, ValueError, r"smoothing must be in \[0, 1\], but is 7"),
        ({"smoothing": float("nan")}, ValueError, "but is nan"),
        ({"smoothing": "0.1"}, TypeError, "must be a number .* but is the string '0.1': write it without quotes"),
        (
            {"ignore_index": "-100"},
            TypeError,
            "ignore_index must be an integer, or None to ignore no label, but is '-100'",
        ),
        ({"smoothing": torch.rand(2, 3)}, ValueError, r"shape \(2, 3\), but must be a number or have shape \(K,\)"),
        ({"smoothing": [0.1, 1.5]}, ValueError, r"smoothing\[1\] must be in \[0, 1\], but is 1.5"),
        (
            {"smoothing": linear(0.0, 2.0)},
            ValueError,
            r"linear\(0, 2, '1dur'\) goes out of range at its end: .* but is 2",
        ),
        ({"smoothing": {"schedule": "linear", "from": 0}}, ValueError, "a schedule is written as {schedule: cosine"),
        ({"spread": "none"}, ValueError, "spread must be 'all' or 'others', but is 'none'"),
        ({"kind": "several"}, ValueError, "kind must be 'multiclass' or 'binary', but is 'several'"),
        ({"kind": "binary", "spread": "others"}, ValueError, "leave prior=None and spread='all' with it"),
        ({"on_conflict": "ignore"}, ValueError, "on_conflict must be 'raise' or 'warn', but is 'ignore'"),
        ({"prior": [0.5, 0.6]}, ValueError, "prior sums to 1.1, but must sum to 1"),
        ({"prior": [1.5, -0.5]}, ValueError, "prior has an entry -0.5"),
    ],
)
def test_wrong_arguments_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        LabelSmoothing(**arguments)


@pytest.mark.parametrize(
    ("outputs", "target", "error", "message"),
    [
        ({"logits": torch.zeros(2, K)}, torch.tensor([0, 1]), TypeError, "output is dict, .* give it output_key"),
        (torch.zeros(2, 1), torch.tensor([0, 0]), ValueError, "one logit per example, .* use a head with two logits"),
        (torch.zeros(4), torch.rand(4), ValueError, "one logit per example, .* use a head with two logits"),
        (torch.zeros(2, 7, K), torch.zeros(2, 7).long(), ValueError, r"give logits.movedim\(-1, 1\)"),
        (torch.zeros(2, K), ["cat", "dog"], TypeError, "target_key=1 are list, but must be one tensor"),
        (torch.zeros(2, K), [0, K], ValueError, rf"target\[1\] is {K}, but the logits have {K} classes"),
        (torch.zeros(2, K), torch.tensor([0, 255]), ValueError, r"target\[1\] is 255, .* pass ignore_index=255"),
        (torch.zeros(2, K), torch.zeros(2, 3), ValueError, "the target has 3 classes, the logits 5"),
    ],
)
def test_a_batch_that_does_not_fit_is_refused_with_the_way_out(outputs, target, error, message):
    state = fake_state((None, target), outputs)
    with pytest.raises(error, match=message):
        LabelSmoothing(0.1).apply(Event.BEFORE_LOSS, state, Mock())
    assert state.batch[1] is target


def test_a_prior_of_another_size_is_refused():
    state = fake_state((None, torch.tensor([0])), torch.zeros(1, K))
    with pytest.raises(ValueError, match=r"prior has shape \(3,\), .* have K = 5 classes"):
        LabelSmoothing(0.1, prior=[0.5, 0.25, 0.25]).apply(Event.BEFORE_LOSS, state, Mock())


def test_a_model_with_a_loss_of_its_own_trains_the_same():
    class Model(ComposerModel):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(192, K)

        def forward(self, batch):
            return self.layer(batch[0].flatten(1))

        def loss(self, outputs, batch):
            return nn.CrossEntropyLoss()(outputs, batch[1])

    model = Model()
    model.load_state_dict({"layer." + name: value for name, value in classifier().module[1].state_dict().items()})
    torch.testing.assert_close(fit([LabelSmoothing(0.1)], model=model), fit([LabelSmoothing(0.1)], model=classifier()))


@pytest.mark.parametrize("algorithms", [[], [CutMix(alpha=1.0)], [MixUp(alpha=0.2)]], ids=["alone", "cutmix", "mixup"])
def test_training_on_32000_classes_makes_nothing_of_the_logits_size_but_their_gradient(algorithms):
    n, num_classes = 64, 32_000
    generator = torch.Generator().manual_seed(0)
    images, labels = torch.randn(n, 1, 2, 2, generator=generator), torch.randint(num_classes, (n,), generator=generator)
    model = ComposerClassifier(nn.Sequential(nn.Flatten(), nn.Linear(4, num_classes)), num_classes=num_classes)
    made = Allocations(nbytes=4 * n * num_classes)
    loader = DataLoader(TensorDataset(images.repeat(2, 1, 1, 1), labels.repeat(2)), n)
    callbacks = [SecondStep(made)]  # in the first one the model is asked
    fit([LabelSmoothing(0.1), *algorithms], model=model, loader=loader, steps=2, callbacks=callbacks)
    assert made.count == 2  # the logits and their gradient


def test_counting_what_training_makes_sees_the_dense_targets_of_composers_own():
    model = ComposerClassifier(nn.Sequential(nn.Flatten(), nn.Linear(4, 32_000)), num_classes=32_000)
    with Allocations(nbytes=4 * 64 * 32_000) as made:
        loader = DataLoader(TensorDataset(torch.randn(64, 1, 2, 2), torch.randint(32_000, (64,))), 64)
        fit([composer.algorithms.LabelSmoothing(0.1)], model=model, loader=loader, steps=1)
    assert made.count > 2


def multi_label(loss_fn):
    """A classifier for several labels per example, and its data."""
    images, _ = examples()
    labels = (torch.rand(24, K, generator=torch.Generator().manual_seed(2)) < 0.4).float()
    return classifier(loss_fn), DataLoader(TensorDataset(images, labels), 8)


def fit_multi_label(algorithms, loss_fn=F.binary_cross_entropy_with_logits):
    model, loader = multi_label(loss_fn)
    return fit(algorithms, model=model, loader=loader)


@pytest.mark.parametrize("loss_fn", [F.binary_cross_entropy_with_logits, nn.BCEWithLogitsLoss()])
def test_binary_smoothing_trains_on_labels_that_moved_toward_a_half(loss_fn):
    def by_hand(logits, labels):
        return F.binary_cross_entropy_with_logits(logits, 0.9 * labels + 0.05)

    torch.testing.assert_close(
        fit_multi_label([LabelSmoothing(0.1, kind="binary")], loss_fn), fit_multi_label([], by_hand)
    )


@pytest.mark.parametrize("mixer", [MixUp, CutMix])
def test_binary_smoothing_beside_a_mixer_is_the_same_in_both_modes_and_orders(mixer):
    runs = [
        fit_multi_label(order)
        for interpolate_loss in (False, True)
        for order in (
            [LabelSmoothing(0.1, kind="binary"), mixer(alpha=0.5, interpolate_loss=interpolate_loss)],
            [mixer(alpha=0.5, interpolate_loss=interpolate_loss), LabelSmoothing(0.1, kind="binary")],
        )
    ]
    for run in runs[1:]:
        torch.testing.assert_close(run, runs[0], rtol=1e-5, atol=1e-6)


def test_binary_smoothing_takes_one_logit_an_example():
    labels = torch.tensor([[1], [0]])
    state = fake_state((None, labels), torch.zeros(2, 1))
    LabelSmoothing(0.2, kind="binary").apply(Event.BEFORE_LOSS, state, Mock())
    torch.testing.assert_close(state.batch[1], torch.tensor([[0.9], [0.1]]))


def test_binary_labels_that_look_smoothed_give_a_warning():
    state = fake_state((None, torch.full((2, 3), 0.05)), torch.zeros(2, 3))
    with pytest.warns(UserWarning, match="none of its labels is 0 or 1"):
        LabelSmoothing(0.1, kind="binary").apply(Event.BEFORE_LOSS, state, Mock())


class OwnLoss(ComposerClassifier):
    """A loss that is named in a method only."""

    def loss(self, outputs, batch):
        return F.binary_cross_entropy_with_logits(outputs, batch[1])


@pytest.mark.parametrize("loss_fn", [F.binary_cross_entropy_with_logits, nn.BCEWithLogitsLoss(), None])
def test_several_labels_an_example_are_refused_without_the_kind_for_them(loss_fn):
    model, loader = multi_label(loss_fn)
    model = OwnLoss(model.module, num_classes=K) if loss_fn is None else model
    with pytest.raises(
        TargetError, match=r"the loss is a binary cross entropy .* give LabelSmoothing\(kind='binary'\)"
    ):
        fit([LabelSmoothing(0.1)], model=model, loader=loader)


def test_classes_with_a_binary_cross_entropy_are_smoothed_as_classes():
    """As in "ResNet strikes back": one label per example, and a binary loss for each class."""
    seen = []

    def loss(logits, target):
        if logits.requires_grad:
            seen.append(target.dense() if isinstance(target, SoftTargets) else target)
        return composer_binary_cross_entropy(logits, target)

    fit([LabelSmoothing(0.1)], model=classifier(loss), steps=1)
    torch.testing.assert_close(seen[0].amin(1), torch.full((8,), 0.1 / K))


@pytest.mark.parametrize("loss_fn", [F.cross_entropy, soft_cross_entropy, nn.CrossEntropyLoss(), cross_entropy])
def test_the_kind_for_several_labels_is_refused_beside_a_loss_over_classes(loss_fn):
    with pytest.raises(
        TargetError, match=r"kind='binary' is for targets with a separate label .*\(kind='multiclass'\)"
    ):
        fit([LabelSmoothing(0.1, kind="binary")], model=classifier(loss_fn))
