"""Losses that use their labels in unusual ways: smoothed as if written by hand, or refused, and never silently left as they are."""

import functools
import random
import warnings
from collections import deque
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from composer import Evaluator, Trainer
from composer.algorithms import CutMix, MixUp
from composer.core import Algorithm, Callback, Event
from composer.loss import soft_cross_entropy
from composer.models import ComposerModel
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close
from torch.utils.data import DataLoader, TensorDataset
from trainer_support import classifier, fit

from composer_ls import LabelSmoothing, MaxSup, OnlineLabelSmoothing, target_smoothing
from composer_ls.composition import choosing
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


def teacher(b):
    return (b[0] @ torch.linspace(-1, 1, 6 * K).view(6, K)).softmax(1)


def both_of_classes(cross_entropy):
    """The cross entropy of the labels, beside one of numbers that only have to do with labels."""
    of_edges = lambda o, b: F.binary_cross_entropy_with_logits(o[:, 0], (b[1] == 0).float())  # noqa: E731
    of_domains = lambda o, b: F.cross_entropy(o, torch.zeros_like(b[1]))  # noqa: E731
    of_pairs = lambda o, b: F.cross_entropy(o @ o.T, torch.arange(len(o)).to(b[1]))  # noqa: E731
    of_teacher = lambda o, b: F.cross_entropy(o[b[1] != 1], teacher(b)[b[1] != 1])  # noqa: E731
    return {
        name: (lambda o, b, other=other: cross_entropy(o, b[1]) + other(o, b))
        for name, other in {"edges": of_edges, "domains": of_domains, "pairs": of_pairs, "teacher": of_teacher}.items()
    }


@pytest.mark.parametrize("name", both_of_classes(smoothed))
def test_a_loss_of_what_only_has_to_do_with_labels_is_not_smoothed(name):
    def masked(o, target):  # so that the model is not given rows
        return F.cross_entropy(o[target != -100], target[target != -100])

    loss, expected = both_of_classes(masked)[name], both_of_classes(smoothed)[name]
    assert_close(
        weights(Model(lambda o, b: loss(o, b)), [LabelSmoothing(0.1)]), weights(Model(lambda o, b: expected(o, b)), [])
    )


def test_one_hot_rows_that_the_loss_scatters_are_smoothed():
    found = weights(
        Model(lambda o, b: F.cross_entropy(o, torch.zeros_like(o).scatter_(1, b[1][:, None], 1.0))),
        [LabelSmoothing(0.1)],
    )
    assert_close(found, weights(by_hand(), []))


def test_labels_that_the_loss_writes_into_others_are_smoothed():
    def moved(o, b):
        target = torch.full_like(b[1], -100)
        target[:-1] = b[1][1:]
        return F.cross_entropy(o, target)

    found = weights(Model(moved), [LabelSmoothing(0.1)])
    assert_close(found, weights(Model(lambda o, b: smoothed(o[:-1], b[1][1:])), []))


@pytest.mark.parametrize("of_labels", [False, True])
def test_a_number_in_the_output_is_a_loss_only_if_it_changes_with_the_labels(of_labels):
    def forward(model, b):
        logits = model.layer(b[0])
        picked = logits.softmax(1).gather(1, b[1][:, None]) if of_labels else logits.softmax(1)
        return logits, picked.square().mean()

    def trained(cross_entropy, *algorithms):
        return weights(Model(lambda o, b: cross_entropy(o[0], b[1]) + 0.1 * o[1], forward), algorithms)

    if of_labels:
        with pytest.raises(ValueError, match="output contains a loss that was computed from labels"):
            trained(F.cross_entropy, LabelSmoothing(0.1))
    else:
        assert_close(trained(F.cross_entropy, LabelSmoothing(0.1)), trained(smoothed))


def test_a_label_to_ignore_that_comes_later_is_ignored():
    target = labels()
    target[9::3] = 255  # none in the first batch
    found = weights(Model(lambda o, b: F.cross_entropy(o, b[1], ignore_index=255)), [LabelSmoothing(0.1)], target)
    expected = Model(lambda o, b: smoothed(o[b[1] != 255], b[1][b[1] != 255]))
    assert_close(found, weights(expected, [], target))


def test_a_batch_whose_labels_are_all_ignored_decides_nothing():
    target = labels()
    target[:8] = -100
    summed = Model(lambda o, b: F.cross_entropy(o, b[1], reduction="sum") / b[1].numel())  # of rows, K times as many
    found = weights(summed, [LabelSmoothing(0.1)], target)
    expected = Model(lambda o, b: smoothed(o, b[1]) if b[1][0] >= 0 else 0 * o.sum())
    assert_close(found, weights(expected, [], target))


def test_a_process_asks_again_while_the_labels_of_another_are_all_ignored(monkeypatch):
    others, asked = [0, 1, 1], []

    def all_reduce(tensor, reduce_operation):
        assert reduce_operation == "MIN"
        tensor.fill_(others.pop(0))

    def choose(*given):
        asked.append(given)
        return choosing.choose(*given)

    monkeypatch.setattr(target_smoothing, "choose", choose)
    state = SimpleNamespace(get_world_size=lambda: 2, all_reduce=all_reduce)
    monkeypatch.setattr(target_smoothing, "dist", state)
    found = weights(Model(lambda o, b: F.cross_entropy(o, b[1])), [LabelSmoothing(0.1)])
    assert len(asked) == 2
    assert_close(found, weights(by_hand(), []))


@pytest.mark.parametrize("constant", [0.0, 3000.0])
def test_a_large_constant_does_not_hide_that_rows_give_another_loss(constant):
    def summed(o, b):
        return F.cross_entropy(o, b[1], reduction="sum") / b[1].numel() + constant

    assert_close(weights(Model(summed), [LabelSmoothing(0.1)]), weights(by_hand(), []))


def test_a_head_that_begins_with_zeros_does_not_hide_that_rows_are_rolled_over_classes():
    def mixed(cross_entropy):
        return lambda o, b: 0.7 * cross_entropy(o, b[1]) + 0.3 * cross_entropy(o, b[1].roll(1))

    found = weights(Model(mixed(F.cross_entropy), zeros=True), [LabelSmoothing(0.1)])
    assert_close(found, weights(Model(mixed(smoothed), zeros=True), []))


def several():
    """Several labels for each example, as rows of zeros and ones."""
    return torch.randint(0, 2, (N, K), generator=torch.Generator().manual_seed(3)).float()


def binary_focal(target_of=lambda t: t):
    def loss(o, b):
        hard, soft = b[1].float(), target_of(b[1].float())
        right = torch.where(hard == 1, o.sigmoid(), 1 - o.sigmoid())
        return (F.binary_cross_entropy_with_logits(o, soft, reduction="none") * (1 - right) ** 2).mean()

    return loss


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64])
def test_a_focal_loss_of_several_labels_weighs_by_the_labels_and_smooths_the_loss(dtype):
    target = several().to(dtype)
    found = weights(Model(binary_focal()), [LabelSmoothing(0.1, kind="binary")], target)
    assert_close(found, weights(Model(binary_focal(lambda t: 0.9 * t + 0.05)), [], target))


@pytest.mark.parametrize(
    "take",
    [
        lambda p, y: -(p * (y > 0)).sum(1).mean(),
        lambda p, y: -p[y.bool()].mean(),
        lambda p, y: -(p * y).sum() / y.count_nonzero(),
    ],
)
def test_a_loss_that_compares_rows_with_numbers_is_refused(take):
    model = Model(lambda o, b: take(o.log_softmax(1), b[1].float()))
    with pytest.raises(
        TargetError, match="jumps when the targets are smoothed|same number when the targets are smoothed"
    ):
        weights(model, [LabelSmoothing(0.1)], rows().float())


@pytest.mark.parametrize(
    "take",
    [
        lambda o, y: -(o.log_softmax(1) * y).sum(1).mean(),
        lambda o, y: (o.softmax(1) - y).square().sum(1).mean(),
        lambda o, y: F.kl_div(o.log_softmax(1), y, reduction="batchmean"),
        lambda o, y: 1 - 2 * (o.softmax(1) * y).sum() / (o.softmax(1) + y).sum(),
    ],
)
def test_a_loss_of_rows_that_is_smooth_in_them_is_taken(take):
    found = weights(Model(lambda o, b: take(o, b[1])), [LabelSmoothing(0.1)], rows().float())
    assert_close(found, weights(Model(lambda o, b: take(o, 0.9 * b[1] + 0.1 / K)), [], rows().float()))


def focal_nll(o, b, gamma=2.0, alpha=0.0):
    """The focal loss as nll_loss of log-probabilities times a factor, smoothed by hand: the mean over rows of their entries' losses."""
    log_probabilities = o.log_softmax(1)
    scores = (1 - log_probabilities.exp()) ** gamma * log_probabilities
    loss = F.nll_loss(scores, b[1])
    return loss if not alpha else (1 - alpha) * loss - alpha * scores.mean(1).mean()


@pytest.mark.parametrize("classes", [K, 1000])
def test_a_focal_factor_within_nll_loss_is_smoothed_as_it_is(classes):
    found = weights(Model(focal_nll, classes=classes), [LabelSmoothing(0.1)], labels(classes))
    by_hand = Model(lambda o, b: focal_nll(o, b, alpha=0.1), classes=classes)
    assert_close(found, weights(by_hand, [], labels(classes)))


def test_a_focal_factor_that_grows_from_nothing_is_smoothed_as_it_is():
    def growing(alpha):
        def loss(o, b, model):
            model.steps += 1  # asking calls the loss too, and undoes this
            return focal_nll(o, b, model.steps - 1.0, alpha)

        model = Model(loss)
        model.steps = 0
        return model

    found = weights(growing(0), [LabelSmoothing(0.1)])
    assert_close(found, weights(growing(0.1), []))


class Counter:
    """An object that is no tensor and no module."""

    def __init__(self):
        self.steps, self.losses = 0, []


@pytest.mark.parametrize(
    ("made", "count"),
    [
        (Counter, lambda counter: (setattr(counter, "steps", counter.steps + 1), counter.steps)[1]),
        (Counter, lambda counter: (counter.losses.append(1), len(counter.losses))[1]),
        (lambda: deque(maxlen=9), lambda steps: (steps.append(1), len(steps))[1]),
        (lambda: np.zeros(2), lambda steps: (np.add(steps, 1, out=steps), steps[0])[1]),
    ],
)
def test_asking_leaves_what_a_model_counts_as_it_was(made, count):
    def counting(o, b, model):
        return count(model.counter) * F.cross_entropy(o, b[1])

    def trained(*algorithms):
        model = Model(counting)
        model.counter = made()
        return weights(model, algorithms)

    assert_close(trained(LabelSmoothing(0.0)), trained())


def average(model):
    with torch.no_grad():
        for mean, weight in zip(model.auxiliary.parameters(), model.layer.parameters(), strict=True):
            mean.mul_(0.5).add_(weight, alpha=0.5)


def average_at_once(model):
    means, others = list(model.auxiliary.parameters()), [p.detach() for p in model.layer.parameters()]
    torch._foreach_lerp_([mean.data for mean in means], others, 0.5)


def average_of_parts(model):
    with torch.no_grad():
        for mean, weight in zip(model.auxiliary.parameters(), model.layer.parameters(), strict=True):
            for i in range(len(mean)):
                mean[i].mul_(0.5).add_(weight[i], alpha=0.5)


def average_into(model):
    with torch.no_grad():
        for mean, weight in zip(model.auxiliary.parameters(), model.layer.parameters(), strict=True):
            torch.lerp(mean[1:], weight[1:], 0.5, out=mean[1:])


@pytest.mark.parametrize("update", [average, average_at_once, average_of_parts, average_into])
def test_asking_does_not_move_the_average_of_the_weights(update):
    def loss(o, b, model):
        update(model)
        with torch.no_grad():
            taught = model.auxiliary(b[0]).softmax(1)
        return F.cross_entropy(o, b[1]) + F.mse_loss(o.softmax(1), taught)

    assert_close(weights(Model(loss), [LabelSmoothing(0.0)]), weights(Model(loss), []))


def test_asking_leaves_the_output_as_it_was():
    class Scaled(Model):
        def __init__(self):
            super().__init__(lambda o, b: F.cross_entropy(o[0] * o[1], b[1]) + 0 * o[2].sum())
            self.scale = nn.Parameter(torch.tensor(0.07))
            self.register_buffer("seen", torch.full((8, K), 0.3))

        def forward(self, batch):
            return self.layer(batch[0]), self.scale, self.seen, self.seen

    model = Scaled()
    loader = DataLoader(TensorDataset(inputs(), labels()), 8)
    optimizer = torch.optim.SGD(model.parameters(), 0.0)
    trainer = Trainer(
        model=model, train_dataloader=loader, max_duration="1ba", optimizers=optimizer, device="cpu",
        algorithms=[LabelSmoothing(0.1, output_key=0)],
    )  # fmt: skip
    trainer.fit()
    trainer.close()
    assert model.scale.item() == torch.tensor(0.07).item()
    assert torch.equal(model.seen, torch.full((8, K), 0.3))


def test_a_loss_without_a_gradient_does_not_count_as_smoothed():
    class ByHand(torch.autograd.Function):
        @staticmethod
        def forward(context, x, target):
            context.save_for_backward(x, target)
            return F.cross_entropy(x, target)

        @staticmethod
        def backward(context, gradient):
            x, target = context.saved_tensors
            return gradient * (x.softmax(1) - F.one_hot(target, K)) / len(x), None

    model = Model(lambda o, b: ByHand.apply(o[b[1] >= 0], b[1][b[1] >= 0]))
    with pytest.warns(UserWarning, match="with a gradient in it"):
        weights(model, [LabelSmoothing(0.1)])


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
def test_a_loss_that_smoothing_cannot_reach_is_refused(algorithm):
    with pytest.raises(TargetError, match="is the same number when the targets are smoothed"):
        weights(Model(*of_labels_from_afar()), [algorithm])


def of_labels_from_afar():
    """A loss, and a forward pass that takes its labels out of PyTorch."""

    def forward(model, b):
        model.kept = b[1].tolist()
        return (model.layer(b[0]),)

    return lambda o, b, model: F.cross_entropy(o[0], torch.tensor(model.kept)), forward


def test_on_request_a_loss_that_smoothing_does_not_reach_trains_with_a_warning():
    with pytest.warns(UserWarning, match="is the same number when the targets are smoothed"):
        weights(Model(*of_labels_from_afar()), [LabelSmoothing(0.1, output_key=0, on_conflict="warn")])


def test_nll_loss_of_scores_is_smoothed_as_it_is_beside_a_cross_entropy():
    def focal(o, b):
        return F.cross_entropy(o, b[1]) + focal_nll(o, b)

    assert_close(weights(Model(focal), [LabelSmoothing(0.0)]), weights(Model(focal), []), rtol=0, atol=0)
    by_hand = Model(lambda o, b: smoothed(o, b[1]) + focal_nll(o, b, alpha=0.1))
    assert_close(weights(Model(focal), [LabelSmoothing(0.1)]), weights(by_hand, []))


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


@pytest.mark.parametrize("ignore_index", [-100, 0])
def test_max_sup_leaves_out_what_the_loss_ignores(ignore_index):
    algorithm = MaxSup(0.1, ignore_index=ignore_index)
    found = weights(Model(lambda o, b: F.cross_entropy(o, b[1], ignore_index=0)), [algorithm])
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
    def with_penalty(o, b, model):
        (gradient,) = torch.autograd.grad(o.sum(), model.layer.weight, create_graph=True)
        return F.cross_entropy(o, b[1]) + gradient.square().mean()

    with pytest.warns(UserWarning, match=r"could not ask the model what its loss is \(RuntimeError: .*require grad"):
        weights(Model(with_penalty), [LabelSmoothing(0.1)])


def auxiliary(logits, target, cross_entropy):
    """The auxiliary cross entropy that the forward passes below leave in different places."""
    return 0.5 * cross_entropy(logits, target)


def on_itself(model, b, cross_entropy=F.cross_entropy):
    model.kept = auxiliary(model.auxiliary(b[0]), b[1], cross_entropy)
    return model.layer(b[0])


def in_a_list(model, b, cross_entropy=F.cross_entropy):
    model.gathered = getattr(model, "gathered", [])
    model.gathered.append(auxiliary(model.auxiliary(b[0]), b[1], cross_entropy))
    return model.layer(b[0])


def in_a_mapping(model, b, cross_entropy=F.cross_entropy):
    model.store = getattr(model, "store", {"losses": {}})
    model.store["losses"]["kept"] = auxiliary(model.auxiliary(b[0]), b[1], cross_entropy)
    return model.layer(b[0])


def in_one_piece(model, b, cross_entropy=F.cross_entropy):
    return {"logits": model.layer(b[0]), "loss": auxiliary(model.auxiliary(b[0]), b[1], cross_entropy).view(1)}


def for_each_example(model, b, cross_entropy=F.cross_entropy):
    logits, is_plain = model.auxiliary(b[0]), cross_entropy is F.cross_entropy
    losses = F.cross_entropy(logits, b[1], reduction="none") if is_plain else smoothed_each(logits, b[1])
    return {"logits": model.layer(b[0]), "loss": 0.5 * losses}


def smoothed_each(logits, target):
    return torch.stack([smoothed(row[None], label[None]) for row, label in zip(logits, target, strict=True)])


def taken(model, outputs):
    """The auxiliary loss, from wherever the forward pass left it, and the logits."""
    if isinstance(outputs, dict):
        return outputs["loss"].mean(), outputs["logits"]
    if gathered := vars(model).get("gathered"):
        found = sum(gathered)
        gathered.clear()
        return found, outputs
    if store := vars(model).get("store"):
        return store["losses"].pop("kept"), outputs
    return model.kept, outputs


@pytest.mark.parametrize("forward", [on_itself, in_a_list, in_a_mapping, in_one_piece, for_each_example])
@pytest.mark.parametrize("microbatch", [None, 4])
def test_a_cross_entropy_of_the_forward_pass_is_smoothed_wherever_it_is_left(forward, microbatch):
    def loss(cross_entropy):
        def taking(outputs, b, model):
            other, logits = taken(model, outputs)
            return cross_entropy(logits, b[1]) + other

        return taking

    smoothing = LabelSmoothing(0.1, output_key="logits" if forward in (in_one_piece, for_each_example) else None)
    found = weights(Model(loss(F.cross_entropy), forward), [smoothing], microbatch=microbatch)
    by_hand = Model(loss(smoothed), lambda model, b: forward(model, b, smoothed))
    assert_close(found, weights(by_hand, [], microbatch=microbatch))


class Maps(ComposerModel):
    """Label maps in two sizes."""

    def __init__(self, cross_entropy, smaller):
        super().__init__()
        torch.manual_seed(7)
        self.layer, self.coarse = nn.Conv2d(3, K, 1), nn.Conv2d(3, K, 2, stride=2)
        self.cross_entropy, self.smaller = cross_entropy, smaller

    def forward(self, batch):
        return {"out": self.layer(batch[0]), "coarse": self.coarse(batch[0])}

    def loss(self, outputs, batch):
        coarse = self.cross_entropy(outputs["coarse"], self.smaller(batch[1]))
        return self.cross_entropy(outputs["out"], batch[1]) + 0.5 * coarse


@pytest.mark.parametrize(
    "smaller",
    [
        lambda y: F.interpolate(y[:, None].float(), scale_factor=0.5, mode="nearest").squeeze(1).long(),
        lambda y: F.max_pool2d(y[:, None].double(), 2)[:, 0].to(torch.int64),
        lambda y: (y[:, ::2, ::2].double() / 2).floor().long(),
    ],
)
def test_labels_that_were_numbers_for_a_while_are_smoothed_too(smaller):
    generator = torch.Generator().manual_seed(3)
    images = torch.randn(16, 3, 4, 4, generator=generator)
    maps = torch.randint(0, K, (16, 4, 4), generator=generator)
    loader = DataLoader(TensorDataset(images, maps), 4)
    found = fit([LabelSmoothing(0.1, output_key="out")], model=Maps(F.cross_entropy, smaller), loader=loader)
    by_hand = Maps(lambda o, y: F.cross_entropy(o, y, label_smoothing=0.1), smaller)
    assert_close(found, fit([], model=by_hand, loader=loader))


def test_numbers_that_a_network_made_of_labels_are_not_labels():
    def forward(model, b):
        conditioned = b[0] + F.one_hot(b[1], 6).float()
        return model.layer(b[0]), model.auxiliary(conditioned)

    def loss(cross_entropy):
        return lambda o, b: cross_entropy(o[0], b[1]) + F.cross_entropy(o[0] / 2, o[1].argmax(1))

    found = weights(Model(loss(F.cross_entropy), forward), [LabelSmoothing(0.1, output_key=0)])
    assert_close(found, weights(Model(loss(smoothed), forward), []))


@pytest.mark.parametrize("place", ["output", "attribute"])
def test_labels_that_the_forward_pass_makes_are_refused(place):
    def forward(model, b):
        coarse = b[1] // 2
        if place == "attribute":
            model.coarse = coarse
        return {
            "logits": model.layer(b[0]),
            "other": model.auxiliary(b[0]),
            "labels": coarse if place == "output" else 0,
        }

    def loss(o, b, model):
        coarse = o["labels"] if place == "output" else model.coarse
        return F.cross_entropy(o["logits"], b[1]) + F.cross_entropy(o["other"], coarse)

    with pytest.raises(TargetError, match=r"labels that forward\(\) made .* make them in loss\(\)"):
        weights(Model(loss, forward), [LabelSmoothing(0.1, output_key="logits")])
    with pytest.warns(UserWarning, match=r"labels that forward\(\) made"):
        weights(Model(loss, forward), [LabelSmoothing(0.1, output_key="logits", on_conflict="warn")])


def test_a_second_cross_entropy_that_makes_labels_of_rows_is_smoothed_beside_one_that_takes_them():
    def loss(cross_entropy):
        def of_both(o, b):
            hard = b[1].argmax(1) if b[1].ndim == 2 else b[1]
            return cross_entropy(o[0], b[1]) + 0.5 * cross_entropy(o[1], hard)

        return of_both

    both = lambda model, b: (model.layer(b[0]), model.auxiliary(b[0]))  # noqa: E731
    found = weights(Model(loss(F.cross_entropy), both), [LabelSmoothing(0.1, output_key=0)])
    assert_close(found, weights(Model(loss(smoothed), both), []))


@pytest.mark.parametrize(
    "mask", [lambda y, valid: y.masked_fill(~valid, -100), lambda y, valid: torch.where(valid, y, -100)]
)
def test_a_mask_that_broadcasts_against_the_rows_of_one_batch_stays_a_mask(mask):
    generator = torch.Generator().manual_seed(3)
    valid = torch.ones(N, dtype=torch.bool)
    valid[K:] = torch.rand(N - K, generator=generator) < 0.6  # the first batch is valid everywhere
    data = TensorDataset(inputs(), labels(), valid)

    def trained(amount, *algorithms):
        model = Model(lambda o, b: F.cross_entropy(o, mask(b[1], b[2]), label_smoothing=amount))
        return fit(algorithms, model=model, loader=DataLoader(data, K), steps=4)  # N == K

    assert_close(trained(0, LabelSmoothing(0.1)), trained(0.1))


@pytest.mark.parametrize(
    "weighting",
    [
        lambda y: {"weight": y * (1 - y.mean()) + (1 - y) * y.mean()},
        lambda y: {"pos_weight": (1 - y).sum() / y.sum()},
    ],
)
def test_weights_that_come_from_the_share_of_positives_stay_those_of_the_labels(weighting):
    target = (torch.rand(N, K, generator=torch.Generator().manual_seed(4)) < 0.2).float()

    def trained(amount, *algorithms):
        def loss(o, b):
            rows = (1 - amount) * b[1] + amount / 2 if amount else b[1]
            return F.binary_cross_entropy_with_logits(o, rows, **weighting(b[1]))

        return weights(Model(loss), algorithms, target)

    assert_close(trained(0, LabelSmoothing(0.1, kind="binary")), trained(0.1))


@pytest.mark.parametrize("method", [MaxSup, OnlineLabelSmoothing])
def test_as_many_tokens_as_classes_are_not_mixed_up(method):
    generator = torch.Generator().manual_seed(3)
    tokens = torch.randn(16, K, 6, generator=generator)  # K tokens
    targets = torch.randint(0, K, (16, K), generator=generator)
    loader = DataLoader(TensorDataset(tokens, targets), 8)

    def trained(loss, *algorithms):
        return fit(algorithms, model=Model(loss), loader=loader, steps=4)

    found = trained(lambda o, b: F.cross_entropy(o.transpose(1, 2), b[1]), method(0.4))
    rows = trained(lambda o, b: F.cross_entropy(o.flatten(0, 1), b[1].flatten()), method(0.4))
    assert_close(found, rows)


def test_a_network_whose_weights_are_replaced_by_an_average_is_as_it_was_after_asking():
    def forward(model, b):
        with torch.no_grad():
            for slow, fast in zip(model.auxiliary.parameters(), model.layer.parameters(), strict=True):
                slow.data = slow.data * 0.9 + fast.data * 0.1
        return model.layer(b[0])

    def trained(*algorithms):
        model = Model(lambda o, b: F.cross_entropy(o, b[1]), forward)
        model.auxiliary.requires_grad_(False)
        return weights(model, algorithms)

    assert_close(trained(LabelSmoothing(0)), trained())


def test_a_mask_of_labels_in_the_output_is_no_label_of_its_own():
    def forward(model, b):
        return {"logits": model.layer(b[0]), "counted": b[1] != -100}

    target = labels()
    target[N // 2 :: 3] = -100  # none in the first batch
    masked = lambda o, b: F.cross_entropy(o["logits"][o["counted"]], b[1][o["counted"]])  # noqa: E731
    by_hand = lambda o, b: smoothed(o["logits"][o["counted"]], b[1][o["counted"]])  # noqa: E731
    found = weights(Model(masked, forward), [LabelSmoothing(0.1, output_key="logits")], target)
    assert_close(found, weights(Model(by_hand, forward), [], target))


@pytest.mark.parametrize("name", ["squared error", "other labels", "unused", "noise"])
def test_other_losses_of_the_forward_pass_are_left_as_they_are(name):
    generator = torch.Generator().manual_seed(9)

    def forward(model, b):
        other = model.auxiliary(b[0])
        model.kept = {
            "squared error": lambda: F.mse_loss(other, b[0][:, :K]),
            "other labels": lambda: F.cross_entropy(other, b[2]),
            "unused": lambda: 0 * other.sum() + 0 * F.cross_entropy(other, b[1]).detach(),
            "noise": lambda: torch.rand((), generator=generator) + 0 * F.cross_entropy(other, b[1]).detach(),
        }[name]()
        return model.layer(b[0])

    def loss(cross_entropy):
        return lambda o, b, model: cross_entropy(o, b[1]) + 0.5 * model.kept

    other = torch.randint(0, K, (N,), generator=torch.Generator().manual_seed(5))
    found = weights(Model(loss(F.cross_entropy), forward), [LabelSmoothing(0.1)], labels(), other)
    assert_close(found, weights(Model(loss(smoothed), forward), [], labels(), other))


def test_a_layer_whose_size_is_not_known_yet_survives_asking():
    def model(loss):
        model = Model(loss)
        model.layer = nn.LazyLinear(K)
        return model

    loader = DataLoader(TensorDataset(inputs(), labels()), 8)

    def trained(loss, *algorithms):
        torch.manual_seed(3)
        return fit(algorithms, model=model(loss), loader=loader)

    found = trained(lambda o, b: F.cross_entropy(o, b[1]), LabelSmoothing(0.1))
    assert_close(found, trained(lambda o, b: smoothed(o, b[1])))


def in_turn(model, algorithms, batches):
    """The weights after a step on each of these batches."""
    loader = DataLoader(batches, batch_size=None)
    return fit(algorithms, model=model, loader=loader, steps=len(batches), device_train_microbatch_size=8)


def test_a_batch_of_another_form_is_asked_about_anew():
    x, y = inputs()[:8], labels()[:8]

    def model(cross_entropy):
        def loss(o, b):
            return cross_entropy(o, b["y"] if "weights" in b else b["y"].where(b["y"] != 99, -100))

        return Model(loss, lambda model, b: model.layer(b["x"]))

    rows = 0.7 * F.one_hot(y, K) + 0.3 * F.one_hot(y.flip(0), K)
    batches = 2 * [{"x": x, "y": y}, {"x": x, "y": rows, "weights": torch.full((8,), 0.7)}]
    smoothing = LabelSmoothing(0.1, target_key="y")
    assert_close(in_turn(model(F.cross_entropy), [smoothing], batches), in_turn(model(smoothed), [], batches))
    assert [type(way).__name__ for way in smoothing._ways.values()] == ["Answering", "TargetsInBatch"]


def test_a_mix_that_first_comes_later_is_refused_as_if_it_came_first():
    x, y = inputs()[:8], labels()[:8]

    def loss(o, b):
        return (
            F.cross_entropy(o, b[1]) if len(b) == 2 else 0.6 * F.cross_entropy(o, b[1]) + 0.4 * F.cross_entropy(o, b[2])
        )

    with pytest.raises(TargetError, match="would smooth only the first"):
        in_turn(Model(loss), [LabelSmoothing(0.1)], [(x, y), (x, y), (x, y, y.flip(0))])


@pytest.mark.parametrize("key", [1, "labels"])
def test_batches_without_targets_stay_as_they_are_and_that_is_told(key):
    x, y, turns = inputs()[:8], labels()[:8], labels(4)[8:16]

    def model(cross_entropy):
        def loss(o, b):
            of_turns = F.cross_entropy(o["turns"], b["turns"])
            return of_turns + cross_entropy(o["classes"], b["labels"].clone()) if "labels" in b else of_turns

        return Model(loss, lambda model, b: {"classes": model.layer(b["x"]), "turns": model.auxiliary(b["x"])})

    class Other(Algorithm):
        """One that may compute losses of its own."""

        def match(self, event, state):
            return False

        def apply(self, event, state, logger):
            pass

    batches = 2 * [{"x": x, "labels": y, "turns": turns}, {"x": x, "turns": turns}]
    with pytest.warns(UserWarning, match="changes nothing in batches that have no targets at target_key=") as told:
        found = in_turn(model(F.cross_entropy), [LabelSmoothing(0.1, target_key=key), Other()], batches)
    assert len([one for one in told if "changes nothing in batches" in str(one.message)]) == 1
    assert_close(found, in_turn(model(smoothed), [], batches))


@pytest.mark.parametrize("is_masked", [False, True])
def test_a_model_is_asked_about_a_few_forms_only_and_that_is_told_if_it_may_matter(monkeypatch, is_masked):
    asked = []
    monkeypatch.setattr(target_smoothing, "choose", lambda *given: asked.append(given) or choosing.choose(*given))
    batches = [{"x": inputs()[:8], "labels": labels()[:8], f"name {i}": torch.zeros(8)} for i in range(20)]

    def model(cross_entropy):
        def loss(o, b):
            return cross_entropy(o, b["labels"].where(b["labels"] != 99, -100) if is_masked else b["labels"])

        return Model(loss, lambda model, b: model.layer(b["x"]))

    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        found = in_turn(model(F.cross_entropy), [LabelSmoothing(0.1)], batches)
    assert len(asked) == target_smoothing.MOST_FORMS
    assert len([one for one in told if "is treated as the first one" in str(one.message)]) == is_masked
    assert_close(found, in_turn(model(smoothed), [], batches))


def test_a_step_that_ends_in_the_backward_pass_leaves_the_model_as_it_was():
    class Interrupted(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            raise KeyboardInterrupt

    model = Model(
        lambda o, b: F.cross_entropy(o, b[1].where(b[1] != 0, -100)),
        lambda model, b: Interrupted.apply(model.layer(b[0])),
    )
    with pytest.raises(KeyboardInterrupt):
        weights(model, [LabelSmoothing(0.1)])
    assert "loss" not in vars(model)


class Interrupts(Algorithm):
    """Raises an error in the first step, before the backward pass."""

    def match(self, event, state):
        return event == Event.BEFORE_BACKWARD

    def apply(self, event, state, logger):
        raise KeyboardInterrupt


def test_a_training_after_an_interrupted_one_is_not_smoothed_by_it():
    model = Model(lambda o, b: F.cross_entropy(o, b[1]))
    with pytest.raises(KeyboardInterrupt):
        weights(model, [LabelSmoothing(0.5), Interrupts()])
    assert_close(weights(model, []), weights(Model(lambda o, b: F.cross_entropy(o, b[1])), []))


@pytest.mark.parametrize("is_masked", [False, True])
@pytest.mark.parametrize("of_numbers", [F.mse_loss, F.l1_loss])
def test_batches_of_another_form_whose_loss_has_no_classes_stay_as_they_are(is_masked, of_numbers):
    x, y = inputs()[:8], labels()[:8]

    def model(cross_entropy):
        def loss(o, b):
            if b[1].is_floating_point():
                return of_numbers(o[:, 0], b[1])
            return cross_entropy(o, b[1].where(b[1] != 99, -100) if is_masked else b[1])

        return Model(loss)

    batches = 2 * [(x, y), (x, x[:, 0])]
    with pytest.warns(UserWarning, match="or whose loss computes no cross entropy of labels"):
        found = in_turn(model(F.cross_entropy), [LabelSmoothing(0.1)], batches)
    assert_close(found, in_turn(model(smoothed), [], batches))
    with pytest.raises((TargetError, ValueError)):
        in_turn(model(F.cross_entropy), [LabelSmoothing(0.1)], batches[1:2])


class Adversarial(Algorithm):
    """Adds the loss of perturbed inputs."""

    def match(self, event, state):
        return event == Event.BEFORE_BACKWARD

    def apply(self, event, state, logger):
        x, y = state.batch
        state.loss = 0.5 * state.loss + 0.5 * state.model.loss(state.model((x + 0.1 * x.sign(), y)), state.batch)


@pytest.mark.parametrize("is_masked", [False, True])
def test_a_second_loss_by_an_algorithm_of_the_users_is_smoothed_too(is_masked):
    def loss_of(cross_entropy):
        return lambda o, b: cross_entropy(o, b[1].where(b[1] != 99, -100) if is_masked else b[1])

    model = Model(loss_of(F.cross_entropy))
    found = weights(model, [Adversarial(), LabelSmoothing(0.1)])
    assert "loss" not in vars(model)
    assert_close(found, weights(Model(loss_of(smoothed)), [Adversarial()]))


class AddsALoss(Callback):
    """Adds the loss of the same batch once more."""

    def before_backward(self, state, logger):
        state.loss = state.loss + state.model.loss(2 * state.outputs, state.batch)


@pytest.mark.parametrize("is_masked", [False, True])
def test_a_second_loss_by_a_callback_of_the_users_is_smoothed_too(is_masked):
    def model(cross_entropy):
        return Model(lambda o, b: cross_entropy(o, b[1].where(b[1] != 99, -100) if is_masked else b[1]))

    def trained(cross_entropy, algorithms):
        loader = DataLoader(TensorDataset(inputs(), labels()), 8)
        return fit(algorithms, model=model(cross_entropy), loader=loader, callbacks=[AddsALoss()])

    assert_close(trained(F.cross_entropy, [LabelSmoothing(0.1)]), trained(smoothed, []))


class Looks(Algorithm):
    """Computes losses to look at: without a gradient, by keywords, and of another batch."""

    def __init__(self):
        self.seen = []

    def match(self, event, state):
        return event == Event.BEFORE_BACKWARD

    def apply(self, event, state, logger):
        with torch.no_grad():
            self.seen.append(state.model.loss(state.outputs, state.batch).item())
        self.seen.append(state.model.loss(outputs=state.outputs, batch=state.batch).item())
        self.seen.append(state.model.loss(state.outputs, [state.batch[0], state.batch[1].flip(0)]).item())


def test_losses_that_are_only_looked_at_stay_as_they_are():
    hard, soft = Looks(), Looks()
    weights(Model(lambda o, b: F.cross_entropy(o, b[1])), [hard])
    weights(Model(lambda o, b: F.cross_entropy(o, b[1])), [soft, LabelSmoothing(0.1)])
    assert soft.seen[:3] == pytest.approx(hard.seen[:3])  # in the first step, after which the weights are others


def test_a_loss_that_misuses_the_rows_of_later_batches_only_is_smoothed_where_it_is_computed():
    """The second batch lacks a class, which smoothing would make present."""
    target = labels(3)
    target[8:16] = 0
    assert len(target[:8].unique()) == 3

    def loss_of(cross_entropy):
        def loss(o, b):
            rows = b[1] if b[1].is_floating_point() else F.one_hot(b[1], 3)
            return cross_entropy(o, b[1]) + ((rows.sum(0) > 0) * o.softmax(1).mean(0).log()).sum()

        return Model(loss, classes=3)

    assert_close(
        weights(loss_of(F.cross_entropy), [LabelSmoothing(0.1)], target), weights(loss_of(smoothed), [], target)
    )


def test_weights_of_a_first_batch_of_which_half_is_positive_do_not_hide_that_they_are_of_the_labels():
    target = torch.zeros(N, 1)
    target[[0, 1, 2, 3, 8, 16, 17]] = 1

    def weighed(amount):
        def loss(o, b):
            positive = (1 - b[1]).sum() / b[1].sum()
            rows = (1 - amount) * b[1] + amount / 2 if amount else b[1]
            return F.binary_cross_entropy_with_logits(o, rows, pos_weight=positive)

        return Model(loss, classes=1)

    found = weights(weighed(0.0), [LabelSmoothing(0.1, kind="binary")], target)
    assert_close(found, weights(weighed(0.1), [], target))


@pytest.mark.parametrize("take", [lambda t: (t > 0.0).float(), lambda t: F.one_hot(t.argmax(1), K).float()])
def test_a_loss_in_half_precision_that_misuses_rows_is_refused(take):
    def loss(o, b):
        rows = b[1] if b[1].is_floating_point() else F.one_hot(b[1], K)
        return -(take(rows).to(o.dtype) * o.log_softmax(1)).sum(1).mean()

    with pytest.raises(TargetError, match="jumps when|is the same number"):
        weights(Model(loss, lambda model, b: model.layer(b[0]).bfloat16()), [LabelSmoothing(0.1)])


def test_a_loss_of_mixed_rows_that_cannot_be_smoothed_is_refused():
    loss = functools.partial(soft_cross_entropy, weight=torch.arange(1.0, K + 1))
    for mixer in (MixUp, CutMix):
        with pytest.raises(TargetError, match=f"{mixer.__name__} gives the loss of .* rows of mixed labels"):
            fit([mixer(alpha=0.8), LabelSmoothing(0.1)], model=classifier(loss))
    fit([MixUp(alpha=0.8, interpolate_loss=True), LabelSmoothing(0.1)], model=classifier(loss))
    with pytest.warns(UserWarning, match="rows of mixed labels"):
        fit([MixUp(alpha=0.8), LabelSmoothing(0.1, on_conflict="warn")], model=classifier(loss))


def test_cutmix_pastes_label_maps_and_makes_no_rows_of_them():
    class_weights = torch.arange(1.0, K + 1)

    def model(loss):
        return classifier(loss, segmentation=True)

    def by_hand(o, t):
        return F.cross_entropy(o, t, weight=class_weights, label_smoothing=0.1)

    loss = functools.partial(soft_cross_entropy, weight=class_weights)
    found = fit([CutMix(alpha=1.0), LabelSmoothing(0.1)], model=model(loss), segmentation=True)
    assert_close(found, fit([CutMix(alpha=1.0)], model=model(by_hand), segmentation=True))


def test_a_loss_that_takes_labels_and_rows_in_different_lines_trains_with_a_mixer():
    class_weights = torch.arange(1.0, K + 1)

    def loss(o, t):
        if t.ndim == 2:
            return F.cross_entropy(o, t, weight=class_weights)
        return (F.cross_entropy(o, t, weight=class_weights, reduction="none") / class_weights[t]).mean()

    def by_hand(o, t):
        return F.cross_entropy(o, t, weight=class_weights, label_smoothing=0.1)

    found = fit([MixUp(alpha=0.5), LabelSmoothing(0.1)], model=classifier(loss))
    assert_close(found, fit([MixUp(alpha=0.5)], model=classifier(by_hand)))


@pytest.mark.parametrize("seed", range(3))
def test_a_loss_that_computes_in_half_precision_itself_is_not_taken_for_one_that_ignores_rows(seed):
    def of_rows(amount):
        def loss(o, b):
            rows = b[1] if b[1].is_floating_point() else F.one_hot(b[1], 1000)
            rows = (1 - amount) * rows + amount / 1000 if amount else rows
            return -(rows.bfloat16() * o.bfloat16().log_softmax(1)).sum(1).mean()

        return Model(loss, classes=1000)

    target = torch.randint(0, 1000, (N,), generator=torch.Generator().manual_seed(seed))
    found = weights(of_rows(0), [LabelSmoothing(0.1)], target)
    smooth, hard = weights(of_rows(0.1), [], target), weights(of_rows(0), [], target)
    assert_close(found, smooth, rtol=0, atol=1e-5)
    assert (found - hard).abs().max() > 1e-4
