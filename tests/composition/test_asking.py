"""Models with their own losses are asked on the first microbatch how they compute them."""

import functools
import random
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from composer.algorithms import CutMix, MixUp
from composer.core import Callback, DataSpec
from composer.models import ComposerModel
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader
from torchmetrics.classification import MulticlassAccuracy
from trainer_support import fit

import composer_ls
from composer_ls import LabelSmoothing
from composer_ls.composition import DoubleSmoothingError, describe
from composer_ls.errors import TargetError

N, T, K = 8, 6, 11  # examples of a batch, tokens, classes


@dataclass
class Output:
    """An output with attributes, like those of transformers."""

    logits: torch.Tensor


class Model(ComposerModel):
    """A tiny language model; its loss is a function of the output and the batch."""

    def __init__(self, loss, wrap=Output, per_example=False):
        super().__init__()
        torch.manual_seed(3)
        self.embed, self.drop, self.norm = nn.Embedding(K, 16), nn.Dropout(0.1), nn.BatchNorm1d(16)
        self.head = nn.Linear(16, K)
        self.wrap, self.per_example, self._own = wrap, per_example, loss

    def forward(self, batch):
        inputs = batch["input_ids"] if isinstance(batch, dict) else batch[0]
        hidden = self.norm(self.drop(self.embed(inputs)).movedim(-1, 1)).movedim(1, -1)
        return self.wrap(self.head(hidden.mean(1) if self.per_example else hidden))

    def loss(self, outputs, batch):
        return self._own(outputs, batch)


def draw(n=2 * N, per_example=False):
    generator = torch.Generator().manual_seed(5)
    ids = torch.randint(0, K, (n, T), generator=generator)
    if per_example:
        labels = torch.randint(0, K, (n,), generator=generator)
        labels[::3] = -100
    else:
        labels = torch.where(torch.rand(n, T, generator=generator) < 0.3, -100, ids)
    return ids, labels


def dicts(**options):
    return [{"input_ids": i, "labels": y} for i, y in zip(*draw(**options), strict=True)]


def pairs(**options):
    return list(zip(*draw(**options), strict=True))


def train(algorithms, model, data=None, steps=3, **options):
    """The weights and buffers after a few steps."""
    loader = data if isinstance(data, DataLoader) else DataLoader(data or dicts(), N)
    # Composer counts and splits batches of tensors only.
    spec = DataSpec(
        loader, get_num_samples_in_batch=lambda batch: N, split_batch=lambda batch, size: _split(batch, size)
    )
    fit(algorithms, model=model, loader=spec, steps=steps, **options)
    return torch.cat([value.detach().flatten().float() for value in model.state_dict().values()])


def _split(batch, size):
    if size >= N:
        return [batch]
    return [{key: value[i : i + size] for key, value in batch.items()} for i in range(0, N, size)]


def flattened(o, b):
    return F.cross_entropy(o.logits.flatten(0, 1), b["labels"].flatten())


def classes_second(o, b):
    return F.cross_entropy(o.logits.movedim(-1, 1), b["labels"])


def rolled(o, b):
    """The loss of LLM-Foundry's mpt_causal_lm."""
    targets = torch.roll(b["labels"], shifts=-1)
    targets[:, -1] = -100
    losses = F.cross_entropy(o.logits.view(-1, K), targets.view(-1), reduction="none")
    return losses.sum() / (targets != -100).sum()


def shifted(o, b):
    return F.cross_entropy(o.logits[:, :-1].reshape(-1, K), b["labels"][:, 1:].reshape(-1))


def masked(o, b):
    counts = b["labels"] != -100
    return F.cross_entropy(o.logits[counts], b["labels"][counts])


def negative_log_likelihood(o, b):
    return F.nll_loss(o.logits.log_softmax(-1).flatten(0, 1), b["labels"].flatten())


def summed(o, b):
    return nn.CrossEntropyLoss(reduction="sum")(o.logits.flatten(0, 1), b["labels"].flatten()) / 10


def weighted(o, b):
    return F.cross_entropy(o.logits.flatten(0, 1), b["labels"].flatten(), weight=torch.arange(1.0, K + 1))


def of_our_own_function(o, b):
    return composer_ls.cross_entropy(o.logits.flatten(0, 1), b["labels"].flatten())


def mean_per_sequence(o, b):
    losses = F.cross_entropy(o.logits.movedim(-1, 1), b["labels"], reduction="none")
    return (losses.sum(1) / (b["labels"] != -100).sum(1).clamp(1)).mean()


def with_z_loss(o, b):
    return flattened(o, b) + 0.1 * o.logits.logsumexp(-1).square().mean()


def in_a_dict(o, b):
    loss, balance = rolled(o, b), o.logits.square().mean()
    return {"total": loss + 0.1 * balance, "loss": loss, "lbl": balance}


LOSSES = [
    *(flattened, classes_second, rolled, shifted, masked, negative_log_likelihood, summed, weighted),
    *(of_our_own_function, mean_per_sequence, with_z_loss, in_a_dict),
]


def smooth_everywhere(monkeypatch):
    """Make every cross entropy over classes smooth, as `label_smoothing=0.1` in the user's code would."""
    hard = F.cross_entropy

    def smooth(input, target, *args, **options):
        return hard(input, target, *args, **options | {"label_smoothing": 0.1})

    monkeypatch.setattr(F, "cross_entropy", smooth)
    monkeypatch.setattr(F, "nll_loss", smooth)


@pytest.mark.parametrize("loss", LOSSES)
def test_smoothing_zero_ends_with_the_weights_of_no_algorithm(loss):
    """Checked step by step, with dropout and batch normalisation: asking has no side effects."""
    torch.testing.assert_close(train([LabelSmoothing(0.0)], Model(loss)), train([], Model(loss)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("microbatch", [N, 4])
@pytest.mark.parametrize("loss", LOSSES)
def test_smoothing_ends_with_the_weights_of_label_smoothing_in_the_call(loss, microbatch, monkeypatch):
    options = {"device_train_microbatch_size": microbatch}
    ours = train([LabelSmoothing(0.1)], Model(loss), **options)
    assert not torch.allclose(ours, train([], Model(loss), **options), rtol=1e-5, atol=1e-6)
    smooth_everywhere(monkeypatch)
    torch.testing.assert_close(ours, train([], Model(loss), **options), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("wrap", [lambda x: {"logits": x}, lambda x: (None, x), lambda x: {"head": [Output(x)]}])
def test_logits_are_found_wherever_the_loss_finds_them(wrap):
    def loss(o, b):
        x = o["logits"] if "logits" in o else o[1] if isinstance(o, tuple) else o["head"][0].logits
        return F.cross_entropy(x.flatten(0, 1), b["labels"].flatten())

    ours = train([LabelSmoothing(0.1)], Model(loss, wrap))
    torch.testing.assert_close(ours, train([LabelSmoothing(0.1)], Model(flattened)))


def test_a_mask_that_is_full_in_the_first_batch_is_understood_too():
    whole = [{"input_ids": i, "labels": i.clone()} for i in draw()[0][:N]]
    data = [*whole, *dicts()]
    ours = train([LabelSmoothing(0.1)], Model(masked), data)
    torch.testing.assert_close(ours, train([LabelSmoothing(0.1)], Model(flattened), data), rtol=1e-5, atol=1e-6)


class Images(Model):
    def forward(self, batch):
        return self.head(batch[0].flatten(1)[:, :16])


@pytest.mark.parametrize("interpolate_loss", [False, True])
@pytest.mark.parametrize("mixer", [MixUp, CutMix])
def test_both_losses_and_mixed_rows_are_smoothed_where_a_model_reads_its_labels(mixer, interpolate_loss):
    def reads(o, b):
        flat = b[1].reshape(len(o), -1).squeeze(1)  # labels, or the rows that a mixer made of them
        return F.nll_loss(o.log_softmax(1), flat) if flat.ndim == 1 else F.cross_entropy(o, flat)

    def plain(o, b):
        return F.cross_entropy(o, b[1])

    generator = torch.Generator().manual_seed(0)
    data = [(torch.randn(3, 4, 4, generator=generator), torch.tensor(i % K)) for i in range(2 * N)]
    runs = []
    for loss in (reads, plain):
        for first in (False, True):
            algorithms = [mixer(alpha=0.5, interpolate_loss=interpolate_loss)]
            algorithms.insert(0 if first else 1, LabelSmoothing(0.1))
            runs.append(train(algorithms, Images(loss, None), data))
    for run in runs[1:]:
        torch.testing.assert_close(run, runs[0], rtol=1e-5, atol=1e-6)


def test_a_loss_that_reads_labels_without_a_cross_entropy_is_refused_with_the_way_out():
    def gathered(o, b):
        return -o.log_softmax(-1).gather(1, b[1].clamp(0)[:, None]).mean()

    model = Model(gathered, lambda x: x, per_example=True)
    with pytest.raises(TargetError, match="does not take smoothed targets: .* replaces the labels by distributions"):
        train([LabelSmoothing(0.1)], model, pairs(per_example=True))


def test_a_loss_that_means_another_thing_by_distributions_is_refused_with_both_numbers():
    def hinge(o, b):
        return (1 - o.gather(1, b[1].float().argsort(0).long()[:, None] % K)).clamp(0).mean() + b[1].float().mean()

    model = Model(hinge, lambda x: x, per_example=True)
    with pytest.raises(TargetError, match="does not take smoothed targets"):
        train([LabelSmoothing(0.1)], model, pairs(per_example=True))


def test_a_cross_entropy_of_labels_that_the_model_makes_is_left_alone():
    def contrastive(o, b):
        return F.cross_entropy(o @ o.T, torch.arange(len(o)))

    with pytest.raises(TargetError, match="does not take|replaces the labels"):
        train([LabelSmoothing(0.1)], Model(gathered_and(contrastive), lambda x: x, True), pairs(per_example=True))

    def beside(o, b):
        return contrastive(o.logits.mean(1), b) + flattened(o, b)

    def by_hand(o, b):
        smooth = F.cross_entropy(o.logits.flatten(0, 1), b["labels"].flatten(), label_smoothing=0.1)
        return contrastive(o.logits.mean(1), b) + smooth

    torch.testing.assert_close(
        train([LabelSmoothing(0.1)], Model(beside)), train([], Model(by_hand)), rtol=1e-5, atol=1e-6
    )


def gathered_and(other):
    return lambda o, b: other(o, b) - o.log_softmax(-1).gather(1, b[1].clamp(0)[:, None]).mean()


def test_regression_is_refused():
    def loss(o, b):
        return F.mse_loss(o.mean(-1), b["labels"])

    data = [{"input_ids": i, "labels": torch.rand(())} for i in draw()[0]]
    with pytest.raises(TargetError, match="squared error of numbers in the batch"):
        train([LabelSmoothing(0.1)], Model(loss, lambda x: x, True), data)


def test_binary_labels_are_smoothed_where_the_loss_takes_them():
    def loss(o, b):
        known = b["labels"] >= 0
        return F.binary_cross_entropy_with_logits(o.logits[known], b["labels"][known])

    def by_hand(o, b):
        known = b["labels"] >= 0
        return F.binary_cross_entropy_with_logits(o.logits[known], 0.9 * b["labels"][known] + 0.05)

    generator = torch.Generator().manual_seed(1)
    data = [{"input_ids": i, "labels": torch.randint(-1, 2, (K,), generator=generator).float()} for i in draw()[0]]
    ours = train([LabelSmoothing(0.1, kind="binary")], Model(loss, per_example=True), data)
    torch.testing.assert_close(ours, train([], Model(by_hand, per_example=True), data), rtol=1e-5, atol=1e-6)


class InForward(Model):
    """Computes its loss in forward(), like language models in research code; `loss()` may add to it."""

    def __init__(self, loss, more=lambda o, b: 0.0):
        super().__init__(loss)
        self.more = more

    def forward(self, batch):
        output = super().forward(batch)
        return output.logits, self._own(output, batch)

    def loss(self, outputs, batch):
        return outputs[1] + self.more(Output(outputs[0]), batch)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("more", [lambda o, b: 0.0, with_z_loss])
@pytest.mark.parametrize("loss", [rolled, masked, with_z_loss])
def test_a_loss_made_in_forward_is_smoothed_there(loss, more, compiled, monkeypatch):
    options = {"compile_config": {"backend": "eager"}} if compiled else {}
    zero = train([LabelSmoothing(0.0)], InForward(loss, more), **options)
    torch.testing.assert_close(zero, train([], InForward(loss, more)), rtol=1e-5, atol=1e-6)
    ours = train([LabelSmoothing(0.1)], InForward(loss, more), **options)
    smooth_everywhere(monkeypatch)
    torch.testing.assert_close(ours, train([], InForward(loss, more)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("loss", [rolled, masked])
def test_a_compiled_model_is_asked_and_smoothed(loss):
    ours = train([LabelSmoothing(0.1)], Model(loss), compile_config={"backend": "eager"})
    torch.testing.assert_close(ours, train([LabelSmoothing(0.1)], Model(loss)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("model", [Model, InForward])
def test_a_cross_entropy_that_the_backward_pass_takes_again_is_refused(model, reentrant):
    def loss(o, b):
        arguments = o.logits.flatten(0, 1), b["labels"].flatten()
        return checkpoint(lambda x, y: F.cross_entropy(x, y), *arguments, use_reentrant=reentrant)

    with pytest.raises(TargetError, match=r"inside torch.utils.checkpoint \(.*test_asking.py:\d+\).* out of the check"):
        train([LabelSmoothing(0.1)], model(loss))


def test_a_loss_in_the_output_that_cannot_be_smoothed_is_refused():
    def focal(o, b):
        picked = o.logits.softmax(-1).gather(-1, b["labels"].clamp(0).unsqueeze(-1))
        return (1 - picked).square().mean()

    with pytest.raises(ValueError, match="output contains a loss that was computed"):
        train([LabelSmoothing(0.1)], InForward(focal))


def test_a_model_that_cannot_be_called_without_gradient_trains_as_before():
    class Forces(Model):
        def forward(self, batch):
            output = super().forward(batch)
            torch.autograd.grad(output.sum(), self.head.weight, retain_graph=True)
            return output

    ours = train([LabelSmoothing(0.1)], Forces(plain, lambda x: x, True), dicts(per_example=True))
    torch.testing.assert_close(ours, REFERENCE())


def test_a_wrong_key_is_named_though_the_loss_could_be_smoothed_without():
    with pytest.raises(
        ValueError, match=r"no targets at target_key='label'.*as in LabelSmoothing\(target_key='labels'\)"
    ):
        train([LabelSmoothing(0.1, "label")], Model(flattened))


# ---------------------------------------------------------------------------------------------------------------------
# Asking leaves no trace, and sees what is really passed.


def test_asking_puts_back_random_numbers_buffers_metrics_and_fields():
    class Counting(Model):
        def __init__(self):
            super().__init__(flattened)
            self.calls, self.history, self.cache = 0, [], None
            self.accuracy = {"train": MulticlassAccuracy(K, average="micro", ignore_index=-100)}

        def forward(self, batch):
            self.calls += 1
            self.history.append(random.random() + np.random.rand() + torch.rand(()).item())
            self.cache = torch.ones(2)
            batch["input_ids"].add_(0)
            output = super().forward(batch)
            self.accuracy["train"].update(output.logits.flatten(0, 1), batch["labels"].flatten())
            return output

    runs = []
    for algorithms in ([], [LabelSmoothing(0.0)]):
        random.seed(1)
        model = Counting()
        train(algorithms, model)
        runs.append((model.calls, model.history, model.accuracy["train"].compute().item()))
    assert runs[0] == runs[1]
    assert runs[0][0] == 3


class Helper:
    """A plain object, such as one that counts labels or hands features to the loss."""

    def __init__(self, **fields):
        vars(self).update(fields)


def resized(helper):
    helper.counts.data = torch.cat([helper.counts, torch.ones(1)])


COUNTS = {
    "in place": lambda helper: helper.counts.add_(1),
    "another tensor": lambda helper: setattr(helper, "counts", helper.counts + 1),
    "resized": resized,
    "an array": lambda helper: np.add(helper.array, 1, out=helper.array),
    "a generator": lambda helper: torch.rand(1, generator=helper.generator),
}


@pytest.mark.parametrize("many", [False, True])
@pytest.mark.parametrize("count", COUNTS.values(), ids=COUNTS)
def test_asking_puts_back_tensors_arrays_and_generators_of_helper_objects(count, many):
    class Counting(Model):
        def __init__(self):
            super().__init__(flattened)
            helper = Helper(
                counts=torch.zeros(K), array=np.zeros(K), generator=torch.Generator(), device=torch.device("cpu"),
                graph=torch.eye(2).to_sparse(), constant=np.broadcast_to(np.ones(1), (3,)), weight=self.head.weight,
            )  # fmt: skip
            self.helper = [helper] if many else helper

        def forward(self, batch):
            count(self.helper[0] if many else self.helper)
            return super().forward(batch)

    ends = []
    for algorithms in ([], [LabelSmoothing(0.0)]):
        model = Counting()
        train(algorithms, model)
        helper = model.helper[0] if many else model.helper
        ends.append((helper.counts.tolist(), helper.array.tolist(), helper.generator.get_state().tolist()))
    assert ends[0] == ends[1]


@pytest.mark.parametrize("before", [None, torch.zeros(0)])
@pytest.mark.parametrize("many", [False, True])
def test_the_loss_finds_what_forward_left_in_a_helper_object(before, many):
    class Handing(Model):
        def __init__(self):
            super().__init__(
                lambda o, b: masked(o, b) + 0.1 * self.helper()["logits"][b["labels"] != -100].square().mean()
            )
            helper = Helper(logits=before)
            self.helpers = [helper] if many else helper

        def helper(self):
            return vars(self.helpers[0] if many else self.helpers)

        def forward(self, batch):
            output = super().forward(batch)
            self.helper()["logits"] = output.logits
            return output

    hard, zero, smooth = (
        train(algorithms, Handing()) for algorithms in ([], [LabelSmoothing(0.0)], [LabelSmoothing(0.3)])
    )
    torch.testing.assert_close(hard, zero)
    assert not torch.allclose(hard, smooth, atol=1e-5)


def test_a_property_of_the_model_is_never_asked():
    class Touchy(Model):
        @property
        def perplexity(self):
            raise RuntimeError("not before the first epoch")

        @property
        def label_smoothing(self):
            raise RuntimeError("not before the first epoch")

    class Data(list):
        @property
        def transform(self):
            raise RuntimeError("no transforms here")

    assert torch.isfinite(train([LabelSmoothing(0.1)], Touchy(flattened), Data(dicts()))).all()


@pytest.mark.parametrize("smooth", [False, True])
def test_label_smoothing_that_depends_on_a_field_is_a_conflict_only_if_it_is_there(smooth):
    class Depends(Model):
        smooth = False

        def loss(self, outputs, batch):
            amount = 0.1 if self.smooth else 0.0
            return F.cross_entropy(outputs.logits.flatten(0, 1), batch["labels"].flatten(), None, None, -100, None,
                                   "mean", amount)  # fmt: skip

    model = Depends(None)
    model.smooth = smooth
    if smooth:
        with pytest.raises(
            DoubleSmoothingError, match=r"label_smoothing=0.1 to cross_entropy \(.*test_asking.py:\d+\)"
        ):
            train([LabelSmoothing(0.1)], model)
        with pytest.warns(UserWarning, match="smoothed twice"):
            train([LabelSmoothing(0.1, on_conflict="warn")], model)
    else:
        assert torch.isfinite(train([LabelSmoothing(0.1)], model)).all()


def test_labels_outside_the_vocabulary_are_named_before_the_first_step():
    data = dicts()
    data[2]["labels"][3] = K
    for loss in (flattened, rolled, masked):
        model = Model(loss)
        before = model.head.weight.clone()
        with pytest.raises(ValueError, match=rf"is {K}, but the logits have {K} classes"):
            train([LabelSmoothing(0.1)], model, data)
        assert torch.equal(model.head.weight, before)


def test_evaluation_and_the_models_methods_are_as_they_were():
    class Watch(Callback):
        def eval_before_forward(self, state, logger):
            assert not {"loss", "forward"} & set(vars(state.model))

    model = Model(rolled)
    model.eval_forward = lambda batch, outputs=None: Model.forward(model, batch)
    model.get_metrics = lambda is_train=False: {}
    train(
        [LabelSmoothing(0.1)], model, eval_dataloader=DataLoader(dicts(), N), eval_interval="1ba", callbacks=[Watch()]
    )
    assert not {"loss", "forward"} & set(vars(model))


def test_a_loss_that_fails_leaves_the_models_methods_as_they_were():
    calls = []

    def fails(o, b):
        calls.append(1)
        if o.logits.requires_grad:
            raise RuntimeError("the loss broke")
        return rolled(o, b)

    model = Model(fails)
    with pytest.raises(RuntimeError, match="the loss broke"):
        train([LabelSmoothing(0.1)], model)
    assert "loss" not in vars(model)


def test_the_plan_says_which_loss_of_which_labels_is_smoothed():
    plans = []

    class Watch(Callback):
        def after_loss(self, state, logger):
            plans.append(describe(state))

    train([LabelSmoothing(0.1)], Model(rolled), callbacks=[Watch()])
    assert plans[0] == (
        "smoothing 0.1, uniform over all classes; loss cross_entropy of labels smoothed where Model.loss() computes it, "
        "all else unchanged"
    )


# ---------------------------------------------------------------------------------------------------------------------
# Where the targets are.


def plain(o, b):
    return F.cross_entropy(o, b["labels"])


EXAMPLES = draw(per_example=True)
REFERENCE = functools.cache(
    lambda: train(
        [LabelSmoothing(0.1)], Model(lambda o, b: F.cross_entropy(o, b[1]), lambda x: x, True), pairs(per_example=True)
    )
)


@pytest.mark.parametrize("key", [1, "labels", lambda batch: batch["labels"]])
def test_a_dict_batch_trains_with_no_key_a_name_or_a_getter_alone(key):
    ours = train([LabelSmoothing(0.1, key)], Model(plain, lambda x: x, True), dicts(per_example=True))
    torch.testing.assert_close(ours, REFERENCE())


@pytest.mark.parametrize("key", ["outer.inner", ("outer", "inner"), ["outer", "inner"], lambda b: b["outer"]["inner"]])
@pytest.mark.parametrize("reads", [False, True])
def test_a_path_leads_into_nested_batches(key, reads):
    def loss(o, b):
        y = b["outer"]["inner"]
        return F.cross_entropy(o[y != -100], y[y != -100]) if reads else F.cross_entropy(o, y)

    data = [{"input_ids": i, "outer": {"inner": y}} for i, y in zip(*EXAMPLES, strict=True)]
    ours = train([LabelSmoothing(0.1, key)], Model(loss, lambda x: x, True), data)
    torch.testing.assert_close(ours, REFERENCE(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", [torch.Tensor.tolist, torch.Tensor.numpy])
def test_labels_in_a_list_or_an_array_are_smoothed(kind):
    def collate(examples):
        return {
            "input_ids": torch.stack([i for i, _ in examples]),
            "labels": kind(torch.stack([y for _, y in examples])),
        }

    def loss(o, b):
        return F.cross_entropy(o, torch.as_tensor(b["labels"]))

    loader = DataLoader(pairs(per_example=True), N, collate_fn=collate)
    ours = train([LabelSmoothing(0.1)], Model(loss, lambda x: x, True), loader)
    torch.testing.assert_close(ours, REFERENCE())


def test_a_batch_without_targets_says_what_it_has_and_the_way_out():
    def loss(o, b):
        return -(o.log_softmax(-1) * F.one_hot(b["y_true"].clamp(0), K)).sum(-1).mean()

    data = [{"input_ids": i, "y_true": y} for i, y in zip(*EXAMPLES, strict=True)]
    message = r"no targets at target_key=1: it is a dict with the keys 'input_ids', 'y_true'.*target_key='y_true'"
    with pytest.raises(ValueError, match=message):
        train([LabelSmoothing(0.1)], Model(loss, lambda x: x, True), data)


def test_a_getter_that_computes_is_refused_with_the_pair_as_the_way_out():
    def loss(o, b):
        return -(o.log_softmax(-1) * F.one_hot(b["labels"].clamp(0), K)).sum(-1).mean()

    smoother = LabelSmoothing(0.1, lambda batch: batch["labels"].clamp(0))
    with pytest.raises(ValueError, match=r"a getter that returns something .* target_key=\(getter, setter\)"):
        train([smoother], Model(loss, lambda x: x, True), dicts(per_example=True))


def test_no_label_is_ignored_if_there_is_none_to_ignore():
    data = [{"input_ids": i, "labels": y.clamp(0)} for i, y in zip(*EXAMPLES, strict=True)]
    runs = [
        train([LabelSmoothing(0.1, ignore_index=ignored)], Model(plain, lambda x: x, True), data)
        for ignored in (None, -100)
    ]
    torch.testing.assert_close(*runs)


@pytest.mark.parametrize("key", ["b", (lambda batch: batch["b"], lambda batch, value: {**batch, "b": value})])
@pytest.mark.parametrize("reads", [False, True])
def test_two_heads_are_smoothed_each_by_its_own_and_the_plan_names_both(reads, key):
    def read(y):
        return y[y != -100] if reads else y

    def loss(o, b, amounts=(0.0, 0.0)):
        terms = []
        for x, key, amount in zip(o, ("a", "b"), amounts, strict=True):
            terms.append(F.cross_entropy(x[b[key] != -100] if reads else x, read(b[key]), label_smoothing=amount))
        return terms[0] + 2 * terms[1]

    ids, labels = EXAMPLES
    data = [{"input_ids": i, "a": y, "b": z} for i, y, z in zip(ids, labels, labels.flip(0), strict=True)]
    plans = []

    class Watch(Callback):
        def fit_start(self, state, logger):
            plans.append(describe(state))

    smoothers = [LabelSmoothing(0.1, "a", output_key=0), LabelSmoothing(0.3, key, output_key=1)]
    ours = train(smoothers, Model(loss, lambda x: (x, 2 * x), True), data, callbacks=[Watch()])
    by_hand = functools.partial(loss, amounts=(0.1, 0.3))
    torch.testing.assert_close(ours, train([], Model(by_hand, lambda x: (x, 2 * x), True), data), rtol=1e-5, atol=1e-6)
    assert plans[0].startswith(
        "smoothing 0.1 of the targets at 'a', uniform over all classes; smoothing 0.3 of the targets at "
        f"{key!r}, uniform"
    )
