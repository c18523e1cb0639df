"""Schedules, factors per class, MaxSup and OnlineLabelSmoothing inside Composer's Trainer."""

import copy
import os
import pickle
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import composer.algorithms
import online_processes
import pytest
import torch
import transformers as hf
from composer import Callback, Trainer
from composer.algorithms import SAM, CutMix, MixUp
from composer.core import Event
from composer.loggers import InMemoryLogger
from composer.models import ComposerModel, HuggingFaceModel
from huggingface_support import bert, train
from huggingface_support import examples as tokens
from test_algorithm import fake_state
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset
from trainer_support import K, RecordingLoss, classifier, examples, fit

import composer_ls.online_label_smoothing
from composer_ls import LabelSmoothing, MaxSup, OnlineLabelSmoothing, SoftTargets
from composer_ls.composition import DoubleSmoothingError, describe
from composer_ls.errors import InputError, TargetError
from composer_ls.smoothing import cosine, linear, online_prior, right_predictions

FACTORS = [0.0, 0.1, 0.2, 0.3, 0.4]
VARIANTS = {
    "schedule": lambda: LabelSmoothing(linear(0.1, 0.4)),
    "by class": lambda: LabelSmoothing(FACTORS),
    "MaxSup": lambda: MaxSup(0.2),
    "MaxSup, schedule": lambda: MaxSup(cosine(0.1, 0.3)),
    "online": lambda: OnlineLabelSmoothing(0.5),
}


def logged(algorithms, name, **options):
    """What was logged under a name at each step."""
    logger = InMemoryLogger()
    fit(algorithms, loggers=[logger], **options)
    return [float(value) for _, value in logger.data[name]]


class Reference(nn.Module):
    """A loss from its formula, step by step."""

    def __init__(self, *losses):
        super().__init__()
        self.losses, self.step = losses, -1

    def forward(self, logits, target):
        self.step += 1
        return self.losses[self.step % len(self.losses)](logits, target)


def max_sup(strength):
    return lambda x, y: F.cross_entropy(x, y) + strength * (x.amax(1) - x.mean(1)).mean()


def by_class(x, y):
    each, log = torch.tensor(FACTORS)[y], x.log_softmax(1)
    return (-(1 - each) * log.gather(1, y.unsqueeze(1)).squeeze(1) - each * log.mean(1)).mean()


def smoothed_by(*factors):
    return [lambda x, y, factor=factor: F.cross_entropy(x, y, label_smoothing=factor) for factor in factors]


@pytest.mark.parametrize(
    ("algorithm", "losses"),
    [
        (LabelSmoothing(linear(0.0, 0.3)), smoothed_by(0.0, 0.1, 0.2)),
        (
            LabelSmoothing({"schedule": "linear", "start": 0.3, "end": 0.0, "duration": "2ba"}),
            smoothed_by(0.3, 0.15, 0.0),
        ),
        (LabelSmoothing(lambda state: 0.1 * int(state.timestamp.batch)), smoothed_by(0.0, 0.1, 0.2)),
        (LabelSmoothing(torch.tensor(FACTORS)), [by_class]),
        (MaxSup(0.2), [max_sup(0.2)]),
        (MaxSup(linear(0.0, 0.3)), [max_sup(0.0), max_sup(0.1), max_sup(0.2)]),
    ],
    ids=["linear", "mapping", "callable", "by class", "MaxSup", "MaxSup, schedule"],
)
def test_the_weights_are_those_of_the_formula(algorithm, losses):
    torch.testing.assert_close(fit([algorithm]), fit([], model=classifier(Reference(*losses))))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("mixer", [MixUp, CutMix])
def test_beside_a_mixer_both_modes_and_both_orders_give_the_same_weights(variant, mixer):
    runs = [
        fit([VARIANTS[variant](), other] if first else [other, VARIANTS[variant]()], steps=6)
        for interpolate_loss in (False, True)
        for first in (False, True)
        for other in [mixer(alpha=0.5, interpolate_loss=interpolate_loss)]
    ]
    for run in runs[1:]:
        torch.testing.assert_close(run, runs[0], rtol=1e-5, atol=1e-6)
    assert not torch.equal(runs[0], fit([mixer(alpha=0.5)], steps=6))


@pytest.mark.parametrize("variant", VARIANTS)
def test_cutmix_on_label_maps_agrees_in_both_orders(variant):
    first = fit([VARIANTS[variant](), CutMix()], segmentation=True, steps=6)
    torch.testing.assert_close(fit([CutMix(), VARIANTS[variant]()], segmentation=True, steps=6), first)


@pytest.mark.parametrize("variant", VARIANTS)
def test_ignored_labels_do_not_count(variant):
    images, labels = examples()
    labels[::2] = -100
    kept = TensorDataset(images[1::2], labels[1::2])
    all_rows = fit([VARIANTS[variant]()], loader=DataLoader(TensorDataset(images, labels), 8), steps=6)
    torch.testing.assert_close(all_rows, fit([VARIANTS[variant]()], loader=DataLoader(kept, 4), steps=6))


@pytest.mark.parametrize("variant", VARIANTS)
def test_targets_are_compact_and_restored(variant):
    loss, seen = RecordingLoss(), []

    class Watch(Callback):
        def after_backward(self, state, logger):
            seen.append(state.batch[1])

    fit([VARIANTS[variant](), CutMix(interpolate_loss=True)], model=classifier(loss), callbacks=[Watch()])
    assert len(loss.targets) == 6
    assert all(isinstance(target, SoftTargets) for target in loss.targets)
    assert len(seen) == 3
    assert not any(isinstance(target, SoftTargets) or target.is_floating_point() for target in seen)


def test_the_factor_in_use_is_logged_at_every_step():
    assert logged([LabelSmoothing(0.1)], "label_smoothing/smoothing") == [0.1] * 3
    assert logged([LabelSmoothing(linear(0.0, 0.3))], "label_smoothing/smoothing") == pytest.approx([0.0, 0.1, 0.2])
    assert logged([LabelSmoothing(FACTORS)], "label_smoothing/smoothing") == pytest.approx([0.2] * 3)
    assert logged([MaxSup(linear(0.3, 0.0))], "max_sup/strength") == pytest.approx([0.3, 0.2, 0.1])
    assert logged([OnlineLabelSmoothing(0.5)], "online_label_smoothing/smoothing") == [0.5] * 3


def test_one_step_in_microbatches_has_one_factor():
    values = logged([LabelSmoothing(linear(0.0, 0.3))], "label_smoothing/smoothing", device_train_microbatch_size=2)
    assert values == pytest.approx([0.0, 0.1, 0.2])


# ---------------------------------------------------------------------------------------------------------------------
# The online prior.


class Predictions(Callback):
    """Computes the prior of every epoch from the batches and outputs themselves."""

    def __init__(self):
        self.sums, self.priors, self.used = torch.zeros(K, K, dtype=torch.float64), [], []

    def after_loss(self, state, logger):
        right_predictions(state.outputs, state.batch[1], into=self.sums)
        self.used.append(state.algorithms[0].prior)

    def epoch_end(self, state, logger):
        self.priors.append(online_prior(self.sums))
        self.sums = torch.zeros_like(self.sums)


def test_the_prior_of_an_epoch_is_the_mean_right_prediction_of_the_one_before():
    watch = Predictions()
    fit([OnlineLabelSmoothing(0.5)], callbacks=[watch], steps=9)
    assert watch.used[:3] == [None] * 3  # uniform
    for step in range(3, 9):
        torch.testing.assert_close(watch.used[step], watch.priors[step // 3 - 1])
    assert not torch.allclose(watch.priors[0], watch.priors[1])


def test_evaluation_is_never_counted():
    images, labels = examples(seed=5)
    loader = DataLoader(TensorDataset(images, labels), 8)
    evaluated = fit([OnlineLabelSmoothing(0.5)], steps=6, eval_dataloader=loader, eval_interval="1ba")
    assert torch.equal(evaluated, fit([OnlineLabelSmoothing(0.5)], steps=6))


def counted(*algorithms, **options):
    """The sums after one step on eight examples, all of which are right."""
    images, _ = examples()
    labels = classifier().module(images).argmax(1)
    online = OnlineLabelSmoothing(0.5)
    loader = DataLoader(TensorDataset(images, labels), 8)
    fit([online, *algorithms], loader=loader, steps=1, device_train_microbatch_size=3, **options)
    return online._sums


def test_a_second_pass_over_a_batch_is_not_counted():
    assert counted().sum() == pytest.approx(8)
    torch.testing.assert_close(counted(SAM(interval=1)), counted())


def test_a_batch_that_runs_out_of_memory_and_is_tried_again_is_counted_once(monkeypatch):
    train = Trainer._train_microbatches

    def train_again(self, microbatches, *args):
        train(self, microbatches[:1], *args)  # no further
        return train(self, self._train_data_spec.split_batch(self.state.batch, 2), *args)

    whole = counted()
    monkeypatch.setattr(Trainer, "_train_microbatches", train_again)
    torch.testing.assert_close(counted(), whole)


def test_a_mixed_example_counts_once_in_the_prior_in_every_place():
    labels = {"first": torch.tensor([0, 1, 2]), "second": torch.tensor([1, 1, 0])}
    logits = torch.tensor([[0.0, 3.0, 0.0], [0.0, 3.0, 0.0], [0.0, 3.0, 0.0]])
    found = []
    for interpolate in (False, True):
        state, mixer, algorithm = fake_state((None, labels["first"]), logits), MixUp(interpolate_loss=interpolate), None
        algorithm = OnlineLabelSmoothing(0.5)
        mixer._permuted_target, mixer.mixing = labels["second"], 0.3
        mixer.permuted_target = labels["second"]
        state.algorithms = [algorithm, mixer]
        algorithm.apply(Event.BEFORE_LOSS, state, Mock())
        mixer.apply(Event.BEFORE_LOSS, state, Mock()) if not interpolate else None
        algorithm.apply(Event.AFTER_LOSS, state, Mock())
        found.append(algorithm._sums)
    expected = right_predictions(logits[:2], torch.tensor([1, 1]))
    for sums in found:
        torch.testing.assert_close(sums, expected)


def test_a_mixed_example_with_two_equal_labels_counts_once_where_the_loss_is_computed():
    def two_losses(logits, labels):  # each is computed again for the second labels
        return sum(F.nll_loss((scale * logits).log_softmax(1), labels) for scale in (1, 2))

    def right(loss):
        images, _ = examples()
        loader = DataLoader(TensorDataset(images, torch.arange(len(images)) % 2), 8)
        online, mixer = OnlineLabelSmoothing(0.5), MixUp(0.5, interpolate_loss=True)
        fit([online, mixer], model=classifier(loss), loader=loader, steps=1, device_train_microbatch_size=3)
        return online._sums.sum().item()

    assert right(two_losses) == pytest.approx(2 * right(F.cross_entropy))


def run(folder, algorithms, **options):
    return fit(algorithms, save_folder=str(folder), save_interval="1ba", save_filename="{batch}.pt", **options)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("stopped", [2, 3, 4])
def test_a_run_that_is_resumed_in_the_middle_ends_with_the_same_weights(variant, stopped, tmp_path):
    whole = run(tmp_path, [VARIANTS[variant](), MixUp()], steps=7)
    resumed = fit([VARIANTS[variant](), MixUp()], steps=7, load_path=str(tmp_path / f"{stopped}.pt"))
    assert torch.equal(resumed, whole)


def test_two_fits_of_one_trainer_end_with_the_weights_of_one():
    def trained(*durations):
        model = classifier()
        loader = DataLoader(TensorDataset(*examples()), 8)
        trainer = Trainer(
            model=model, train_dataloader=loader, max_duration=durations[0], algorithms=[OnlineLabelSmoothing(0.5)],
            progress_bar=False, device="cpu", optimizers=torch.optim.SGD(model.parameters(), 0.1), seed=7,
        )  # fmt: skip
        trainer.fit()
        for duration in durations[1:]:
            trainer.fit(duration=duration)
        return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])

    assert torch.equal(trained("1ep", "2ep"), trained("3ep"))


def test_a_second_trainer_starts_with_a_uniform_prior():
    algorithm = OnlineLabelSmoothing(0.5)
    fit([algorithm], steps=4)  # an epoch's prior, and sums of the next
    watch = Predictions()
    again = fit([algorithm], steps=5, callbacks=[watch])
    assert watch.used[:3] == [None] * 3
    assert torch.equal(again, fit([OnlineLabelSmoothing(0.5)], steps=5))


def test_trainers_that_are_all_made_first_each_keep_a_prior_of_their_own():
    def made(seed, algorithm):
        model = classifier()
        loader = DataLoader(TensorDataset(*examples(seed=seed)), 8)
        return Trainer(
            model=model, train_dataloader=loader, max_duration="1ep", algorithms=[algorithm], progress_bar=False,
            device="cpu", optimizers=torch.optim.SGD(model.parameters(), 0.1), seed=7,
        )  # fmt: skip

    def trained(trainers):
        for trainer in trainers:
            trainer.fit()
        for trainer in trainers:  # each goes on with its own
            trainer.fit(duration="1ep")
        return [torch.cat([p.detach().flatten() for p in trainer.state.model.parameters()]) for trainer in trainers]

    shared = OnlineLabelSmoothing(0.5)
    together = trained([made(seed, shared) for seed in (0, 1)])
    for seed, weights in enumerate(together):
        assert torch.equal(weights, trained([made(seed, OnlineLabelSmoothing(0.5))])[0])


def test_the_state_of_one_object_in_another_is_a_copy():
    one, other = OnlineLabelSmoothing(0.5), OnlineLabelSmoothing(0.5)
    fit([one], steps=2)
    one._sums.fill_(1)
    other.load_state_dict(one.state_dict())
    other._sums.zero_()
    assert (one._sums == 1).all()


def test_a_used_object_resumes_from_the_checkpoint_alone(tmp_path):
    algorithm = OnlineLabelSmoothing(0.5)
    whole = run(tmp_path, [algorithm], steps=7)
    for stopped in (2, 4):
        assert torch.equal(fit([algorithm], steps=7, load_path=str(tmp_path / f"{stopped}.pt")), whole)


class TwoHeads(ComposerModel):
    def __init__(self):
        super().__init__()
        torch.manual_seed(7)
        self.first, self.second = (nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, K)) for _ in range(2))

    def forward(self, batch):
        return self.first(batch[0]), self.second(batch[0])

    def loss(self, outputs, batch):
        return F.cross_entropy(outputs[0], batch[1]) + 0.4 * F.cross_entropy(outputs[1], batch[2])


def of_heads(*heads):
    return [OnlineLabelSmoothing(0.5, target_key=1 + head, output_key=head) for head in heads]


def of_getters(*heads):
    getters = [lambda batch: batch[1], lambda batch: batch[2]]
    return [OnlineLabelSmoothing(0.5, target_key=getters[head], output_key=head) for head in heads]


def fit_two_heads(algorithms, train=fit, folder=None, **options):
    (images, first), (_, second) = examples(), examples(seed=1)
    folder = [] if folder is None else [folder]
    loader = DataLoader(TensorDataset(images, first, second), 8)
    return train(*folder, algorithms, model=TwoHeads(), loader=loader, **options)


@pytest.mark.parametrize("make", [of_heads, of_getters])
@pytest.mark.parametrize("stopped", [3, 4])
def test_two_heads_resume_with_the_prior_of_each(make, stopped, tmp_path):
    whole = fit_two_heads(make(0, 1), run, tmp_path, steps=7)
    path = str(tmp_path / f"{stopped}.pt")
    assert torch.equal(fit_two_heads(make(0, 1), steps=7, load_path=path), whole)
    if make is of_heads:
        assert torch.equal(fit_two_heads(make(1, 0), steps=7, load_path=path), whole)


def test_priors_of_other_heads_are_refused(tmp_path):
    fit_two_heads(of_heads(0, 1), run, tmp_path / "two", steps=4)
    fit_two_heads(of_heads(0), run, tmp_path / "one", steps=4)
    other = [*of_heads(0), OnlineLabelSmoothing(0.5, target_key=2, output_key=0)]
    with pytest.raises(
        InputError, match=r"has target_key=1, output_key=0; .* the Trainer has .*target_key=2, output_key=0"
    ):
        fit_two_heads(other, steps=7, load_path=str(tmp_path / "two" / "4.pt"))
    with pytest.raises(
        InputError, match="it has only one, .* the Trainer has .*give them the target_key and output_key"
    ):
        fit_two_heads(of_heads(0, 1), steps=7, load_path=str(tmp_path / "one" / "4.pt"))


def test_a_copy_holds_none_of_the_other_algorithms():
    one, other = of_heads(0, 1)
    fit_two_heads([one, other], steps=4)
    assert copy.deepcopy(one)._siblings == pickle.loads(pickle.dumps(one))._siblings == []
    assert torch.equal(copy.deepcopy(one).state_dict()["prior"], one.prior)


@pytest.mark.slow
def test_two_processes_share_one_prior_and_end_with_the_weights_of_one(tmp_path):
    alone = online_processes.train()
    script = Path(online_processes.__file__)
    paths = os.pathsep.join([str(script.parent), *(path for path in sys.path if path)])
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": paths, "GLOO_SOCKET_IFNAME": "lo"}
    command = [sys.executable, "-W", "ignore", str(script), str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    results = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for result in results:
        torch.testing.assert_close(result["whole"], alone, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(result["resumed"], result["whole"], rtol=1e-6, atol=1e-7)
    assert torch.equal(results[0]["whole"]["prior"], results[1]["whole"]["prior"])


# ---------------------------------------------------------------------------------------------------------------------
# Hugging Face models.


def max_sup_by_themselves(monkeypatch, strength):
    """Make every cross entropy of every model add the penalty."""
    original = F.cross_entropy

    def suppressed(input, target, *args, **options):
        counted = target != options.get("ignore_index", -100)
        penalty = (input.amax(1) - input.mean(1))[counted].mean()
        return original(input, target, *args, **options) + strength * penalty

    monkeypatch.setattr(F, "cross_entropy", suppressed)


@pytest.mark.parametrize("task", ["causal LM", "sequence classification", "question answering"])
def test_a_model_that_makes_its_loss_trains_as_if_every_cross_entropy_had_the_penalty(task, monkeypatch):
    ours = train(task, [MaxSup(0.2)])
    assert not torch.allclose(ours, train(task, []), rtol=1e-5, atol=1e-6)
    max_sup_by_themselves(monkeypatch, 0.2)
    torch.testing.assert_close(ours, train(task, []), rtol=1e-5, atol=1e-6)


def test_the_right_tokens_of_a_language_model_count_in_the_online_prior():
    algorithm, watched = OnlineLabelSmoothing(0.5), []

    class Watch(Callback):
        def after_loss(self, state, logger):
            labels = F.pad(state.batch["labels"][:, 1:], (0, 1), value=-100)
            watched.append(right_predictions(state.outputs["logits"].movedim(-1, 1), labels))

    train("causal LM", [algorithm], steps=1, callbacks=[Watch()])
    torch.testing.assert_close(algorithm._sums, sum(watched))


@pytest.mark.parametrize(
    ("num_labels", "labels", "message"),
    [
        (1, torch.tensor(0.5), "is a regression head .* Take MaxSup out of algorithms"),
        (5, torch.ones(5), "multi_label_classification.* MaxSup has no binary form"),
    ],
)
def test_a_head_without_classes_is_refused_for_max_sup(num_labels, labels, message):
    data = [example | {"labels": labels} for example in tokens("sequence classification")]
    model = HuggingFaceModel(hf.BertForSequenceClassification(bert(num_labels=num_labels)))
    with pytest.raises(TargetError, match=message):
        train("sequence classification", [MaxSup(0.1)], model, data=data)


# ---------------------------------------------------------------------------------------------------------------------
# What is refused.


@pytest.mark.parametrize("algorithm", [MaxSup(0.1), OnlineLabelSmoothing(0.5)], ids=["MaxSup", "online"])
def test_two_smoothers_at_once_are_refused_by_their_names(algorithm):
    name = type(algorithm).__name__
    for other in (LabelSmoothing(0.1), composer.algorithms.LabelSmoothing(0.1), MaxSup(0.2)):
        with pytest.raises(DoubleSmoothingError, match=f"smoothed twice: by {name}\\(.*take {name} out of algorithms"):
            fit([copy.copy(algorithm), other])
    with pytest.raises(DoubleSmoothingError, match=f"by {name}\\(.* and by model._loss_fn"):
        fit([algorithm], model=classifier(nn.CrossEntropyLoss(label_smoothing=0.1)))


def test_a_max_sup_of_zero_conflicts_with_nothing():
    assert torch.equal(fit([MaxSup(0.0), LabelSmoothing(0.1)]), fit([LabelSmoothing(0.1)]))


def test_a_schedule_that_leaves_the_range_is_refused_when_it_does():
    def rising(state):
        return 0.6 * int(state.timestamp.batch)

    with pytest.raises(
        ValueError, match=r"schedule of smoothing .*gives 1.2 at batch 2, epoch 0: .* in \[0, 1\], but is 1.2"
    ):
        fit([LabelSmoothing(rising)])
    with pytest.raises(ValueError, match=r"schedule of strength .* gives 1.2 at batch 2"):
        fit([MaxSup(rising)])
    with pytest.raises(TypeError, match=r"schedule of smoothing .*gives 'high' at batch 0"):
        fit([LabelSmoothing(lambda state: "high")])


def test_factors_of_another_number_of_classes_are_refused():
    with pytest.raises(
        ValueError, match=r"smoothing has shape \(3,\), but must be a number or have shape \(5,\) for 5"
    ):
        fit([LabelSmoothing([0.1, 0.2, 0.3])])


class Binary(ComposerModel):
    def __init__(self):
        super().__init__()
        self.module = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, K))

    def forward(self, batch):
        return self.module(batch[0])

    def loss(self, outputs, batch):
        return F.binary_cross_entropy_with_logits(outputs, batch[1])


def test_binary_targets_are_refused_for_max_sup():
    images, _ = examples()
    loader = DataLoader(TensorDataset(images, torch.rand(24, K).round()), 8)
    with pytest.raises(TargetError, match="MaxSup has no binary form: take it out of algorithms"):
        fit([MaxSup(0.1)], model=Binary(), loader=loader)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: MaxSup(-0.1), ValueError, r"strength must be in \[0, 1\), but is -0.1"),
        (lambda: MaxSup(float("nan")), ValueError, "but is nan"),
        (lambda: MaxSup([0.1, 0.2]), TypeError, "strength must be a number"),
        (lambda: MaxSup("0.1"), TypeError, "is the string '0.1'"),
        (lambda: MaxSup(linear(0.0, 1.0)), ValueError, "goes out of range at its end"),
        (lambda: OnlineLabelSmoothing(1.5), ValueError, r"smoothing must be in \[0, 1\], but is 1.5"),
        (lambda: MaxSup(on_conflict="ignore"), ValueError, "on_conflict must be"),
        (lambda: OnlineLabelSmoothing(ignore_index="-100"), TypeError, "ignore_index must be an integer"),
    ],
)
def test_wrong_arguments_are_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_errors_name_the_algorithm_that_the_user_gave():
    state = fake_state({"image": torch.zeros(2), "mask": torch.zeros(2)}, torch.randn(2, K))
    with pytest.raises(ValueError, match=r"as in MaxSup\(target_key='mask'\)"):
        MaxSup(0.1).apply(Event.BEFORE_LOSS, state, Mock())
    with pytest.raises(TypeError, match="give MaxSup a target_key"):
        MaxSup(0.1).apply(Event.BEFORE_LOSS, fake_state((None, "labels"), torch.randn(2, K)), Mock())


def test_a_prior_that_does_not_fit_in_memory_is_refused(monkeypatch):
    monkeypatch.setattr(composer_ls.online_label_smoothing, "free_memory", lambda device: 200)
    with pytest.raises(
        InputError, match=r"a row for each of 5 classes and takes 0.0 GB .* only 0.0 GB are free on cpu"
    ):
        fit([OnlineLabelSmoothing(0.5)])


def test_the_cost_of_a_large_prior_is_said(monkeypatch, caplog):
    monkeypatch.setattr(composer_ls.online_label_smoothing, "LARGE", 4)
    with caplog.at_level("WARNING"):
        fit([OnlineLabelSmoothing(0.5)])
    assert sum("has a row for each of 5 classes and takes" in record.message for record in caplog.records) == 1


def test_the_plan_says_what_each_does():
    plans = {
        "schedule": "smoothing 0.1 to 0.4 (linear over 1dur), uniform over 5 classes",
        "by class": "smoothing 0 to 0.4 by class, uniform over 5 classes",
        "MaxSup": "MaxSup 0.2, from the largest logit to uniform over 5 classes",
        "online": "smoothing 0.5, to what the network predicts for each class",
    }
    for variant, plan in plans.items():
        trainer = Trainer(model=classifier(), algorithms=[VARIANTS[variant]()], progress_bar=False, device="cpu")
        assert describe(trainer).startswith(f"{plan}; loss cross_entropy, fused")


def test_the_constructor_call_is_the_representation():
    for algorithm in (MaxSup(linear(0.1, 0.2)), OnlineLabelSmoothing(0.3, "labels"), LabelSmoothing(cosine(0.2, 0.0))):
        again = eval(repr(algorithm))
        assert repr(again) == repr(algorithm)


def test_one_online_prior_of_labels_at_two_places_is_refused():
    both = (lambda batch: batch[1:], lambda batch, value: batch)  # no one path, so all labels are smoothed
    fit_two_heads([LabelSmoothing(0.5, target_key=both)])
    with pytest.raises(
        TargetError, match="of the labels at 1 and 2, of which OnlineLabelSmoothing would learn one prior"
    ):
        fit_two_heads([OnlineLabelSmoothing(0.5, target_key=both)])
