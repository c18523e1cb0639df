"""Hugging Face models: the smoothed loss replaces the one that they compute in forward()."""

import functools
import logging
from collections import UserDict

import pytest
import torch
import transformers as hf
from composer import Trainer
from composer.algorithms import MixUp
from composer.core import Callback
from composer.metrics import LanguageCrossEntropy
from composer.models import HuggingFaceModel
from composer.utils import reproducibility
from huggingface_support import SMALL, TASKS, TOKENS, N, T, V, bert, examples, gpt2, train, wrapped
from support import Allocations
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torchmetrics.classification import MulticlassAccuracy
from trainer_support import SecondStep, fit
from transformers.trainer_pt_utils import LabelSmoother

from composer_ls import LabelSmoothing
from composer_ls.composition import DoubleSmoothingError, describe
from composer_ls.errors import TargetError
from composer_ls.kernels import VARIABLE, eager


def smoothing_by_themselves(monkeypatch):
    """Make every cross entropy of every model smooth."""
    original = F.cross_entropy
    monkeypatch.setattr(
        F, "cross_entropy", lambda *args, **options: original(*args, **options | {"label_smoothing": 0.1})
    )


@pytest.mark.parametrize("task", TASKS)
def test_smoothing_zero_trains_as_the_models_own_loss(task):
    """Checked step by step, with dropout and batch normalisation: asking the model has no side effects."""
    torch.testing.assert_close(train(task, [LabelSmoothing(0.0)]), train(task, []), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("task", TASKS)
def test_trains_as_if_every_cross_entropy_of_the_model_smoothed(task, monkeypatch):
    smoothed = train(task, [LabelSmoothing(0.1)])
    assert not torch.allclose(smoothed, train(task, []), rtol=1e-5, atol=1e-6)
    smoothing_by_themselves(monkeypatch)
    torch.testing.assert_close(smoothed, train(task, []), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("task", TOKENS)
def test_the_loss_equals_that_of_transformers_label_smoother(task):
    shifts = task == "causal LM"
    seen = []

    class Watch(Callback):
        def after_loss(self, state, logger):
            labels = state.batch["labels"]
            theirs = LabelSmoother(epsilon=0.1)({"logits": state.outputs["logits"]}, labels, shift_labels=shifts)
            seen.append((state.loss.detach(), theirs.detach()))

    train(task, [LabelSmoothing(0.1)], callbacks=[Watch()])
    for ours, theirs in seen:
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    assert len(seen) == 2


@pytest.mark.parametrize("task", ["causal LM", "sequence to sequence", "question answering"])
def test_microbatches_weigh_by_their_examples_as_they_do_without_smoothing(task, monkeypatch):
    smoothed = train(task, [LabelSmoothing(0.1)], device_train_microbatch_size=1)
    smoothing_by_themselves(monkeypatch)
    torch.testing.assert_close(smoothed, train(task, [], device_train_microbatch_size=1), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("task", ["causal LM", "masked LM", "sequence to sequence", "question answering"])
def test_outputs_may_be_tuples(task):
    train_tuples = functools.partial(train, task, model=wrapped(task, return_dict=False))
    torch.testing.assert_close(train_tuples([LabelSmoothing(0.1)]), train(task, [LabelSmoothing(0.1)]))


@pytest.mark.parametrize("task", ["causal LM", "masked LM", "sequence to sequence"])
@pytest.mark.parametrize("bf16", [False, True])
def test_nothing_of_tokens_times_vocabulary_beside_logits_and_gradient(task, bf16, monkeypatch):
    monkeypatch.setattr(eager, "CHUNK", 1 << 18)
    vocabulary = 24_000
    cls, config, _ = TASKS[task]
    config = config()
    config.vocab_size = vocabulary
    itemsize = 2 if bf16 else 4
    model = HuggingFaceModel(cls(config))
    if bf16:
        model.model.forward = torch.autocast("cpu", torch.bfloat16)(model.model.forward)
    # All weights, 24,000 by 16, are smaller, and so are the few rows that the kernel works on at once.
    allocations = Allocations(4 * T * vocabulary * itemsize - 1)
    train(task, [LabelSmoothing(0.1)], model, callbacks=[SecondStep(allocations)])
    sizes = [tensor.untyped_storage().nbytes() for tensor in allocations.large.values()]
    assert sizes == [4 * T * vocabulary * itemsize] * 2


@pytest.mark.parametrize("task", [name for name in TASKS if "hides" not in name])
def test_the_models_own_loss_is_never_computed(task, monkeypatch):
    monkeypatch.setenv(VARIABLE, "eager")  # for such small logits the loss would use _log_softmax too

    class Computed(torch.utils._python_dispatch.TorchDispatchMode):
        names = set()

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.names.add(func.overloadpacket.__name__)
            return func(*args, **(kwargs or {}))

    with Computed() as computed:
        train(task, [LabelSmoothing(0.1)])
    assert "scatter_add_" in computed.names  # the eager kernel's
    assert not {name for name in computed.names if "nll_loss" in name or name == "_log_softmax"}


@pytest.mark.parametrize("task", TASKS)
def test_labels_are_never_changed_and_the_batch_is_whole_after_the_step(task):
    data = examples(task)
    before = [{key: value.clone() for key, value in example.items()} for example in data]
    batches = []

    class First(LabelSmoothing):
        """Callbacks run after algorithms, so an algorithm must look at the batch."""

        def apply(self, event, state, logger):
            if event.value == "before_forward":
                batches.append(dict(state.batch))
            super().apply(event, state, logger)

    class After(Callback):
        def after_backward(self, state, logger):
            assert {key: id(value) for key, value in state.batch.items()} == {
                key: id(value) for key, value in batches[-1].items()
            }

    train(task, [First(0.1)], data=data, callbacks=[After()])
    assert len(batches) == 2
    for example, copy in zip(data, before, strict=True):
        assert example.keys() == copy.keys()
        assert all(torch.equal(example[key], copy[key]) for key in copy)


@pytest.mark.parametrize("use_logits", [False, True])
def test_evaluation_and_training_metrics_see_what_they_saw_before(use_logits):
    def values(algorithms):
        torch.manual_seed(3)
        metrics = [LanguageCrossEntropy()] if use_logits else None
        model = HuggingFaceModel(hf.GPT2LMHeadModel(gpt2()), use_logits=use_logits, metrics=metrics)
        evaluated = []

        class Watch(Callback):
            def eval_after_forward(self, state, logger):
                outputs = state.outputs
                evaluated.append(outputs if use_logits else outputs["loss"])

        reproducibility.seed_all(7)
        trainer = Trainer(
            model=model,
            train_dataloader=DataLoader(examples("causal LM"), 4),
            eval_dataloader=DataLoader(examples("causal LM"), 4),
            max_duration="2ba",
            eval_interval="1ba",
            algorithms=algorithms,
            callbacks=[Watch()],
            optimizers=torch.optim.SGD(model.parameters(), 0.1),
            progress_bar=False,
            seed=7,
        )
        trainer.fit()
        trained = {name: metric.compute() for name, metric in (trainer.state.train_metrics or {}).items()}
        trainer.close()
        return [*evaluated, *trained.values()]

    theirs, ours = values([]), values([LabelSmoothing(0.0)])
    assert len(ours) == len(theirs) >= 4
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_metrics_of_classification_work_beside_smoothing():
    torch.manual_seed(3)
    model = hf.BertForSequenceClassification(bert(num_labels=5))
    model = HuggingFaceModel(model, use_logits=True, metrics=[MulticlassAccuracy(5)])
    assert torch.isfinite(train("sequence classification", [LabelSmoothing(0.1)], model)).all()


def test_a_batch_of_padding_only_costs_nothing_and_moves_nothing():
    data = [example | {"labels": torch.full((T,), -100)} for example in examples("causal LM")]
    before = torch.cat([value.flatten().float() for value in wrapped("causal LM").state_dict().values()])
    assert torch.equal(train("causal LM", [LabelSmoothing(0.1)], data=data), before)
    mixed = data[:4] + examples("causal LM")  # learnt from the first batch, right for the second
    quiet = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    runs = [
        train("causal LM", [LabelSmoothing(0.1)], wrapped("causal LM", **quiet), steps, mixed[8 - 4 * steps :])
        for steps in (1, 2)
    ]
    torch.testing.assert_close(*runs)


def test_batches_may_be_any_mapping_and_hold_more_than_the_model_takes():
    def collate(samples):
        return UserDict(
            {key: torch.stack([sample[key] for sample in samples]) for key in samples[0]} | {"more": samples}
        )

    model = wrapped("sequence to sequence")
    loader = DataLoader(examples("sequence to sequence"), 4, collate_fn=collate)
    fit([LabelSmoothing(0.1)], model=model, loader=loader, steps=2)
    weights = torch.cat([value.detach().flatten() for value in model.state_dict().values()])
    torch.testing.assert_close(weights, train("sequence to sequence", [LabelSmoothing(0.1)]))


def test_a_prior_and_a_spread_are_kept_to():
    prior = torch.arange(1.0, V + 1) / torch.arange(1.0, V + 1).sum()
    losses = {}

    class Watch(Callback):
        def after_loss(self, state, logger):
            labels, logits = state.batch["labels"], state.outputs["logits"]
            log_p = logits[:, :-1].log_softmax(-1)
            counts = labels[:, 1:] != -100
            hard = -log_p.gather(-1, labels[:, 1:].clamp(0).unsqueeze(-1)).squeeze(-1)
            losses["ours"] = state.loss
            losses["formula"] = (0.9 * hard - 0.1 * (log_p @ prior))[counts].mean()

    train("causal LM", [LabelSmoothing(0.1, prior=prior)], steps=1, callbacks=[Watch()])
    torch.testing.assert_close(losses["ours"], losses["formula"])


def multi_label(n=N):
    generator = torch.Generator().manual_seed(1)
    data = examples("sequence classification", n)
    return [example | {"labels": (torch.rand(5, generator=generator) < 0.4).float()} for example in data]


def test_multi_label_classification_moves_each_label_toward_a_half():
    task = "sequence classification"
    by_hand = [example | {"labels": 0.9 * example["labels"] + 0.05} for example in multi_label()]
    ours = train(task, [LabelSmoothing(0.1, kind="binary")], data=multi_label())
    torch.testing.assert_close(ours, train(task, [], data=by_hand), rtol=1e-5, atol=1e-6)


class Focal(hf.BertForSequenceClassification):
    """A loss that is not a cross entropy."""

    def forward(self, labels=None, **inputs):
        output = super().forward(**inputs)
        probabilities = output.logits.softmax(-1).gather(1, labels[:, None])
        output["loss"] = ((1 - probabilities) ** 2 * -probabilities.log()).mean()
        return output


class Weighted(Focal):
    def forward(self, labels=None, **inputs):
        output = super(Focal, self).forward(**inputs)
        output["loss"] = F.cross_entropy(output.logits, labels, weight=torch.ones(5))
        return output


class Penalised(Focal):
    def forward(self, labels=None, **inputs):
        output = super(Focal, self).forward(**inputs)
        output["loss"] = F.cross_entropy(output.logits, labels) + 0.1 * output.logits.square().mean()
        return output


class Summed(Focal):
    def forward(self, labels=None, **inputs):
        output = super(Focal, self).forward(**inputs)
        output["loss"] = F.cross_entropy(output.logits, labels, reduction="sum")
        return output


class Relabelled(Focal):
    def forward(self, labels=None, **inputs):
        output = super(Focal, self).forward(**inputs)
        output["loss"] = F.cross_entropy(output.logits, 4 - labels)
        return output


class Cooled(Focal):
    def forward(self, labels=None, **inputs):
        output = super(Focal, self).forward(**inputs)
        output["loss"] = F.cross_entropy(output.logits / 2, labels)
        return output


class Smoothing(Focal):
    def forward(self, labels=None, **inputs):
        output = super(Focal, self).forward(**inputs)
        output["loss"] = F.cross_entropy(output.logits, labels, label_smoothing=0.2)
        return output


class IgnoringZero(Focal):
    def forward(self, labels=None, **inputs):
        output = super(Focal, self).forward(**inputs)
        output["loss"] = F.cross_entropy(output.logits, labels, ignore_index=0)
        return output


def test_a_loss_without_a_cross_entropy_is_refused_with_the_reason():
    with pytest.raises(TargetError, match="is not a cross entropy .* Write a subclass of HuggingFaceModel"):
        train("sequence classification", [LabelSmoothing(0.1)], of_class(Focal))


def of_class(cls):
    torch.manual_seed(3)
    model = HuggingFaceModel(cls(bert(num_labels=5)))
    model.model_forward_args |= {"input_ids", "attention_mask"}
    return model


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("cls", [Weighted, Penalised, Summed, Relabelled, Cooled, IgnoringZero])
def test_a_cross_entropy_inside_a_larger_loss_is_smoothed_and_all_else_is_kept(cls, smoothing, monkeypatch):
    task = "sequence classification"
    ours = train(task, [LabelSmoothing(smoothing)], of_class(cls))
    if smoothing:
        smoothing_by_themselves(monkeypatch)
    torch.testing.assert_close(ours, train(task, [], of_class(cls)), rtol=1e-5, atol=1e-6)


class Scores(Focal):
    """Gives the scores, whose nll_loss is its loss, as its logits."""

    alpha = 0.0

    def forward(self, labels=None, **inputs):
        output = super(Focal, self).forward(**inputs)
        log_probabilities = output.logits.log_softmax(-1)
        scores = output["logits"] = (1 - log_probabilities.exp()) ** 2 * log_probabilities
        loss = F.nll_loss(scores, labels)
        output["loss"] = (1 - self.alpha) * loss - self.alpha * scores.mean() if self.alpha else loss
        return output


def test_scores_that_a_model_passes_to_nll_loss_are_smoothed_as_they_are():
    task = "sequence classification"
    by_hand = of_class(Scores)
    by_hand.model.alpha = 0.1
    ours = train(task, [LabelSmoothing(0.1)], of_class(Scores))
    torch.testing.assert_close(ours, train(task, [], by_hand), rtol=1e-5, atol=1e-6)


def test_a_label_that_either_ignores_is_ignored():
    task = "sequence classification"
    both = train(task, [LabelSmoothing(0.1, ignore_index=0)], of_class(IgnoringZero))
    torch.testing.assert_close(train(task, [LabelSmoothing(0.1)], of_class(IgnoringZero)), both, rtol=1e-5, atol=1e-6)
    ours = train(task, [LabelSmoothing(0.1, ignore_index=0)], of_class(Weighted))
    torch.testing.assert_close(ours, both, rtol=1e-5, atol=1e-6)


def test_a_model_that_smooths_by_itself_is_refused_or_smoothed_on_top():
    def model():
        torch.manual_seed(3)
        model = HuggingFaceModel(Smoothing(bert(num_labels=5)))
        model.model_forward_args |= {"input_ids", "attention_mask"}
        return model

    task = "sequence classification"
    with pytest.raises(
        DoubleSmoothingError,
        match=r"by model.forward, which passes label_smoothing=0.2 to cross_entropy \(.*test_huggingface.py:\d+\)",
    ):
        train(task, [LabelSmoothing(0.1)], model())
    with pytest.warns(UserWarning, match="smoothed twice"):
        twice = train(task, [LabelSmoothing(0.1, on_conflict="warn")], model())
    once = train(task, [LabelSmoothing(0.28)])  # 1 - 0.9 * 0.8
    torch.testing.assert_close(twice, once, rtol=1e-5, atol=1e-6)


def test_the_loss_that_balances_experts_is_kept_beside_the_smoothed_one(monkeypatch):
    def model(coefficient):
        torch.manual_seed(3)
        sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
        balance = {"output_router_logits": coefficient > 0, "router_aux_loss_coef": coefficient}
        config = hf.MixtralConfig(**SMALL, **sizes, **balance, num_key_value_heads=2)
        return HuggingFaceModel(hf.MixtralForCausalLM(config))

    balanced, plain = (train("causal LM", [LabelSmoothing(0.1)], model(coefficient)) for coefficient in (0.5, 0.0))
    assert not torch.allclose(balanced, plain, rtol=1e-4)
    smoothing_by_themselves(monkeypatch)
    torch.testing.assert_close(balanced, train("causal LM", [], model(0.5)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("num_labels", "labels", "options", "message"),
    [
        (1, torch.tensor(0.5), {}, "BertForSequenceClassification is a regression head .* the squared error"),
        (5, torch.ones(5), {}, r"problem_type='multi_label_classification'\), .* give LabelSmoothing\(kind='binary'\)"),
        (5, torch.tensor(1), {"kind": "binary"}, r"mutually exclusive classes, .*\(kind='multiclass'\)"),
    ],
)
def test_a_head_of_another_kind_is_refused_with_the_reason(num_labels, labels, options, message):
    data = [example | {"labels": labels} for example in examples("sequence classification")]
    model = HuggingFaceModel(hf.BertForSequenceClassification(bert(num_labels=num_labels)))
    with pytest.raises(TargetError, match=message):
        train("sequence classification", [LabelSmoothing(0.1, **options)], model, data=data)


def test_a_batch_without_labels_is_refused():
    data = [{"input_ids": example["input_ids"]} for example in examples("causal LM")]
    with pytest.raises(TargetError, match="returned no loss for a batch with the keys input_ids: give it labels"):
        train("causal LM", [LabelSmoothing(0.1)], data=data)


def test_a_token_outside_the_vocabulary_is_named():
    data = examples("masked LM")
    data[2]["labels"][3] = V
    with pytest.raises(ValueError, match=rf"target\[2, 3\] is {V}, but the logits have {V} classes"):
        train("masked LM", [LabelSmoothing(0.1)], data=data)


def test_a_mixer_beside_a_model_that_reads_its_labels_in_forward_is_refused():
    with pytest.raises(ValueError, match="MixUp mixes the targets after the forward pass, .* a ComposerClassifier"):
        train("image classification", [MixUp(), LabelSmoothing(0.1)])


def test_a_subclass_with_a_forward_of_its_own_keeps_its_labels():
    class Mine(HuggingFaceModel):
        def forward(self, batch):
            assert "labels" in batch
            return super().forward(batch)

    torch.manual_seed(3)
    model = Mine(hf.GPT2LMHeadModel(gpt2()))
    torch.testing.assert_close(
        train("causal LM", [LabelSmoothing(0.1)], model), train("causal LM", [LabelSmoothing(0.1)])
    )


def test_a_subclass_with_a_loss_of_its_own_is_smoothed_as_any_model():
    class Mine(HuggingFaceModel):
        def forward(self, batch):
            return super().forward({key: value for key, value in batch.items() if key != "labels"})

        def loss(self, outputs, batch):
            return F.cross_entropy(outputs["logits"], batch["labels"])

    task = "sequence classification"
    torch.manual_seed(3)
    model = Mine(TASKS[task][0](TASKS[task][1]()))
    smoother = LabelSmoothing(0.1, target_key="labels", output_key="logits")
    torch.testing.assert_close(train(task, [smoother], model), train(task, [LabelSmoothing(0.1)]))


def test_a_forward_pass_that_fails_leaves_nothing_behind():
    model = wrapped("causal LM")
    attributes = set(vars(model))
    model.model.transformer.register_forward_hook(_fails_on_the_third_call())
    smoother = LabelSmoothing(0.1)
    with pytest.raises(RuntimeError, match="out of memory"):
        train("causal LM", [smoother], model)
    assert set(vars(model)) == attributes
    assert torch.isfinite(train("causal LM", [smoother], model)).all()


def _fails_on_the_third_call():
    calls = []

    def hook(*_):
        calls.append(1)
        if len(calls) == 3:  # two ask
            raise RuntimeError("out of memory")

    return hook


@pytest.mark.parametrize("task", TASKS)
def test_the_plan_says_how_the_loss_is_replaced_before_and_after_the_first_batch(task, caplog):
    smoother, model = LabelSmoothing(0.1), wrapped(task)
    plans = []

    class Watch(Callback):
        def fit_start(self, state, logger):
            plans.append(describe(state))

        def after_loss(self, state, logger):
            plans.append(describe(state))

    with caplog.at_level(logging.INFO, logger="composer"):
        train(task, [smoother], model, callbacks=[Watch()])
    name = type(model.model).__name__
    beginning = f"smoothing 0.1, uniform over all classes; loss of {name} to be replaced"
    assert plans[0].startswith(beginning)
    assert TASKS[task][2] in plans[1]
    assert plans[1] == plans[2]
    lines = [record.getMessage() for record in caplog.records if record.name == "composer.composer_ls"]
    assert lines == [f"label smoothing: {plan}" for plan in plans[:2]]


def test_a_first_batch_without_labels_does_not_decide_whether_they_are_shifted():
    task = "causal LM whose labels are not shifted"
    data = examples(task, 12)
    for example in data[:4]:
        example["labels"] = torch.full_like(example["labels"], -100)
    plans = []

    class Watch(Callback):
        def batch_end(self, state, logger):
            plans.append(describe(state))

    found = train(task, [LabelSmoothing(0.1)], data=data, steps=3, callbacks=[Watch()])
    assert "shifted" not in plans[-1]

    class Hand(HuggingFaceModel):
        def loss(self, outputs, batch):
            logits, labels = outputs["logits"].flatten(0, 1), batch["labels"].flatten()
            return F.cross_entropy(logits, labels, label_smoothing=0.1) if (labels >= 0).any() else 0 * logits.sum()

    torch.testing.assert_close(
        found, train(task, [], Hand(wrapped(task).model), steps=3, data=data), rtol=1e-5, atol=1e-6
    )


class OfActivePositions(hf.BertForTokenClassification):
    """Takes the labels of padding out of its loss."""

    def forward(self, input_ids=None, attention_mask=None, labels=None):
        output = super().forward(input_ids, attention_mask=attention_mask)
        if labels is not None:
            active = torch.where(attention_mask.view(-1) == 1, labels.view(-1), torch.tensor(-100).type_as(labels))
            loss = F.cross_entropy(output.logits.flatten(0, 1), active)
            return hf.modeling_outputs.TokenClassifierOutput(loss=loss, logits=output.logits)
        return output


class OfPositionsWithoutPadding(hf.BertForTokenClassification):
    """Takes label 0 for padding, in one of several ways."""

    way = "masked_fill"

    def forward(self, input_ids=None, attention_mask=None, labels=None):
        output = super().forward(input_ids, attention_mask=attention_mask)
        if labels is None:
            return output
        logits, labels = output.logits.flatten(0, 1), labels.flatten()
        if self.way == "masked_fill":
            labels = labels.masked_fill(labels == 0, -100)
        elif self.way == "in place":
            labels[labels == 0] = -100
        elif self.way == "arithmetic":
            labels = labels - 100 * (labels == 0).long()
        elif self.way == "selection":
            logits, labels = logits[labels != 0], labels[labels != 0]
        return hf.modeling_outputs.TokenClassifierOutput(loss=F.cross_entropy(logits, labels), logits=output.logits)


@pytest.mark.parametrize("first", ["without padding", "with padding"])
@pytest.mark.parametrize("way", ["masked_fill", "in place", "arithmetic", "selection"])
def test_labels_that_a_model_masks_by_their_own_value_stay_masked(monkeypatch, first, way):
    data = examples("token classification", 12)
    for index, example in enumerate(data):
        example["labels"] = example["labels"].clamp(min=1)
        if index >= 4 or first == "with padding":
            example["labels"][T // 2 :] = 0

    def trained(*algorithms):
        torch.manual_seed(3)
        model = HuggingFaceModel(OfPositionsWithoutPadding(bert(num_labels=5)))
        model.model.way = way
        copies = [{key: value.clone() for key, value in example.items()} for example in data]
        return train("", algorithms, model, steps=3, data=copies)

    found = trained(LabelSmoothing(0.1))
    smoothing_by_themselves(monkeypatch)
    torch.testing.assert_close(found, trained(), rtol=1e-5, atol=1e-6)


class ShiftedInItsOwnWay(hf.GPT2LMHeadModel):
    """Moves its labels by concatenation, or writes them into others."""

    way = "cat"

    def forward(self, input_ids=None, attention_mask=None, labels=None):
        output = super().forward(input_ids, attention_mask=attention_mask)
        if labels is None:
            return output
        shifted = torch.full_like(labels, -100)
        if self.way == "cat":
            shifted = torch.cat([labels[:, 1:], shifted[:, :1]], 1)
        else:
            shifted[..., :-1] = labels[..., 1:]
            shifted[..., -1] = -100
        loss = F.cross_entropy(output.logits.flatten(0, 1), shifted.flatten())
        return hf.modeling_outputs.CausalLMOutput(loss=loss, logits=output.logits)


@pytest.mark.parametrize("way", ["cat", "write"])
def test_labels_that_are_moved_in_another_way_are_shifted_by_one(monkeypatch, way):
    plans = []

    class Watch(Callback):
        def batch_end(self, state, logger):
            plans.append(describe(state))

    def trained(*algorithms, **options):
        torch.manual_seed(3)
        model = HuggingFaceModel(ShiftedInItsOwnWay(gpt2()))
        model.model.way = way
        return train("", algorithms, model, data=examples("causal LM"), **options)

    found = trained(LabelSmoothing(0.1), callbacks=[Watch()])
    assert "labels shifted by one, which are not passed" in plans[-1]
    smoothing_by_themselves(monkeypatch)
    torch.testing.assert_close(found, trained(), rtol=1e-5, atol=1e-6)


def test_labels_that_a_model_writes_over_by_their_place_are_left_out(monkeypatch):
    class WithoutStart(hf.BertForTokenClassification):
        def forward(self, input_ids=None, attention_mask=None, labels=None):
            if labels is not None:
                labels[:, :3] = -100
            return super().forward(input_ids, attention_mask=attention_mask, labels=labels)

    def trained(*algorithms):
        torch.manual_seed(3)
        return train("", algorithms, HuggingFaceModel(WithoutStart(bert(num_labels=5))), data=data())

    def data():
        return [{key: value.clone() for key, value in one.items()} for one in examples("token classification")]

    found = trained(LabelSmoothing(0.1))
    smoothing_by_themselves(monkeypatch)
    torch.testing.assert_close(found, trained(), rtol=1e-5, atol=1e-6)


def test_labels_that_a_model_masks_stay_masked_though_the_first_batch_has_no_padding(monkeypatch):
    data = examples("token classification", 12)
    for example in data:
        example["labels"] = example["labels"].clamp(min=0)
    for example in data[4:]:
        example["attention_mask"][T // 2 :] = 0

    def trained(*algorithms):
        torch.manual_seed(3)
        return train("", algorithms, HuggingFaceModel(OfActivePositions(bert(num_labels=5))), steps=3, data=data)

    found = trained(LabelSmoothing(0.1))
    smoothing_by_themselves(monkeypatch)
    torch.testing.assert_close(found, trained(), rtol=1e-5, atol=1e-6)
