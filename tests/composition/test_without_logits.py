"""Hugging Face models that are trained without logits train as they do with them."""

import functools
import sys

import pytest
import torch
import transformers as hf
from composer.core import Callback
from composer.models import ComposerModel, HuggingFaceModel
from huggingface_support import TASKS, T, bert, train, wrapped
from support import Allocations
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torchmetrics.classification import MulticlassAccuracy
from trainer_support import SecondStep, fit

from composer_ls import LabelSmoothing
from composer_ls.composition import describe
from composer_ls.errors import TargetError

NEVER = functools.partial(LabelSmoothing, logits="never")
LINEAR = ["causal LM", "masked LM", "sequence to sequence", "sequence classification", "token classification"]


@pytest.mark.parametrize("task", LINEAR)
def test_a_model_trains_to_the_weights_that_it_gets_with_logits(task):
    torch.testing.assert_close(train(task, [NEVER(0.1)]), train(task, [LabelSmoothing(0.1)]), rtol=1e-5, atol=1e-6)


def test_priors_and_outputs_as_tuples_work_too():
    prior = torch.rand(41, generator=torch.Generator().manual_seed(0)).softmax(0)
    tuples = train("causal LM", [NEVER(0.1, prior=prior)], wrapped("causal LM", return_dict=False))
    expected = train("causal LM", [LabelSmoothing(0.1, prior=prior)])
    torch.testing.assert_close(tuples, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("bf16", [False, True])
def test_no_logits_are_made(bf16, monkeypatch):
    vocabulary = 24_000
    cls, config, _ = TASKS["causal LM"]
    config = config()
    config.vocab_size = vocabulary
    model = HuggingFaceModel(cls(config))
    if bf16:
        model.model.forward = torch.autocast("cpu", torch.bfloat16)(model.model.forward)
    monkeypatch.setattr(sys.modules["composer_ls.losses.linear_cross_entropy"], "BUDGET", 4 * vocabulary * 4)
    allocations = Allocations(4 * T * vocabulary * (2 if bf16 else 4) - 1)  # all weights are smaller
    train("causal LM", [NEVER(0.1)], model, callbacks=[SecondStep(allocations)])
    assert not allocations.large


def test_the_plan_says_so_and_the_head_is_as_it_was():
    plans = []

    class Watch(Callback):
        def fit_end(self, state, logger):
            plans.append(describe(state))

    model = wrapped("causal LM")
    train("causal LM", [NEVER(0.1)], model, callbacks=[Watch()])
    assert "linear_cross_entropy, without logits, with labels shifted by one" in plans[0]
    assert "forward" not in vars(model.model.lm_head)
    assert model.model(input_ids=torch.zeros(1, 3, dtype=torch.long)).logits.isfinite().all()


def refused(match, model, task="causal LM"):
    with pytest.raises(TargetError, match=match):
        train(task, [NEVER(0.1)], model)


def test_training_metrics_are_refused():
    cls, config, _ = TASKS["causal LM"]
    model = HuggingFaceModel(cls(config()), metrics=[MulticlassAccuracy(41)], use_logits=True)
    refused("training metrics .MulticlassAccuracy. are computed from them", model)


def test_losses_of_several_cross_entropies_are_refused():
    refused("not one cross entropy over classes", wrapped("question answering"), "question answering")


@pytest.mark.parametrize(("change", "match"), [("mul", "not what a linear layer"), ("mul_", "in place")])
def test_logits_that_are_changed_after_the_head_are_refused(change, match):
    class Changed(hf.BertForMaskedLM):
        def forward(self, input_ids, attention_mask=None, labels=None):
            output = super().forward(input_ids, attention_mask)
            output["logits"] = getattr(output.logits, change)(0.5)
            if labels is not None:
                output["loss"] = nn.functional.cross_entropy(output.logits.view(-1, 41), labels.view(-1))
            return output

    refused(match, HuggingFaceModel(Changed(bert())), "masked LM")


class Tied(nn.Embedding):
    """An embedding that is the last layer too, as in LLM-Foundry's models."""

    def forward(self, input, unembed=False):
        return F.linear(input, self.weight) if unembed else super().forward(input)


class Language(ComposerModel):
    """A model that computes its loss in loss(), from all positions, with the labels moved."""

    def __init__(self, tied=True, reduction="none", flat=True, change=None):
        super().__init__()
        torch.manual_seed(3)
        self.embedding, self.flat, self.change = Tied(K, 6), flat, change
        self.mixing = nn.Linear(6, 6)
        self.head = None if tied else nn.Linear(6, K)
        self.loss_fn = nn.CrossEntropyLoss(reduction=reduction)

    def forward(self, batch):
        hidden = self.mixing(self.embedding(batch["tokens"])).tanh()
        return {"logits": self.embedding(hidden, True) if self.head is None else self.head(input=hidden)}

    def loss(self, outputs, batch):
        logits, labels = outputs["logits"], batch["labels"].roll(-1, 1)
        labels[:, -1] = -100
        if self.change:
            logits = self.change(logits)
        if not self.flat:
            return self.loss_fn(logits.movedim(-1, 1), labels)
        losses = self.loss_fn(logits.view(-1, K), labels.view(-1))
        return losses.sum() / (labels != -100).sum() if losses.ndim else losses


K, STEPS = 23, 3
TEXT = torch.randint(K, (8, 5), generator=torch.Generator().manual_seed(2))
OTHER_LOSSES = {
    "tied": {},
    "untied": {"tied": False},
    "mean": {"reduction": "mean"},
    "classes second": {"reduction": "mean", "flat": False},
}


def language(algorithms, text=TEXT, **options):
    """The weights after some steps, and those of every layer that is in the result."""
    return fit(algorithms, model=Language(**options), loader=loader_of(text), steps=STEPS)


def loader_of(text):
    return DataLoader([{"tokens": row, "labels": row} for row in text], 4)


@pytest.mark.parametrize("options", OTHER_LOSSES.values(), ids=OTHER_LOSSES)
def test_a_model_whose_loss_is_computed_from_its_output_trains_to_the_weights_that_it_gets_with_logits(options):
    never, kept = language([NEVER(0.1)], **options), language([LabelSmoothing(0.1)], **options)
    torch.testing.assert_close(never, kept, rtol=1e-5, atol=1e-6)
    assert (kept - language([LabelSmoothing(0.0)], **options)).abs().max() > 1e-3


def test_sentences_of_one_token_are_rows_too():
    class Own(Language):
        def loss(self, outputs, batch):
            return self.loss_fn(outputs["logits"].view(-1, K), batch["labels"].view(-1)).mean()

    text = TEXT[:, :1]
    never, kept = (fit([LabelSmoothing(0.1, logits=a)], model=Own(), loader=loader_of(text)) for a in ("never", "kept"))
    torch.testing.assert_close(never, kept, rtol=1e-5, atol=1e-6)


def test_no_logits_are_made_for_a_loss_computed_from_the_output():
    seen = []

    class Watch(Callback):
        def after_forward(self, state, logger):
            seen.append(state.outputs["logits"])

        def fit_end(self, state, logger):
            seen.append(describe(state))

    model = Language()
    fit([NEVER(0.1)], model=model, loader=loader_of(TEXT), callbacks=[Watch()])
    *logits, plan = seen
    assert all(one.shape == (4, 5, K) and one.untyped_storage().nbytes() == 4 for one in logits)
    assert "linear_cross_entropy, without logits, of labels smoothed where Language.loss() computes it" in plan
    assert "forward" not in vars(model.embedding)
    assert model({"tokens": TEXT})["logits"].isfinite().all()


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda x: x * 2, "works on the logits before"),
        (lambda x: x.flip(0), "works on the logits before"),
        (lambda x: x.mul_(2), "in place|cannot do without"),
    ],
)
def test_a_loss_that_works_on_its_logits_is_refused(change, match):
    with pytest.raises(TargetError, match=match):
        language([NEVER(0.1)], change=change)


def test_a_loss_that_adds_something_of_the_logits_is_refused():
    class Penalised(Language):
        def loss(self, outputs, batch):
            return super().loss(outputs, batch) + outputs["logits"].square().mean()

    with pytest.raises(TargetError, match="uses them otherwise too"):
        fit([NEVER(0.1)], model=Penalised(), loader=loader_of(TEXT))


def test_an_embedding_that_scales_is_refused():
    class Scaled(Tied):
        def forward(self, input, unembed=False):
            return super().forward(input, unembed) * 2

    model = Language()
    model.embedding = Scaled(K, 6)
    with pytest.raises(TargetError, match="not what a linear layer"):
        fit([NEVER(0.1)], model=model, loader=loader_of(TEXT))


def test_losses_of_several_cross_entropies_in_loss_are_refused():
    class Twice(Language):
        def loss(self, outputs, batch):
            return super().loss(outputs, batch) + super().loss({"logits": outputs["logits"][:2]}, {"labels": TEXT[:2]})

    class Both(Language):
        def loss(self, outputs, batch):
            return super().loss(outputs, batch) + super().loss(outputs, batch)

    for cls in (Twice, Both):
        with pytest.raises(TargetError, match="logits='never'"):
            fit([NEVER(0.1)], model=cls(), loader=loader_of(TEXT))


def test_an_unknown_value_is_refused():
    with pytest.raises(ValueError, match="logits must be 'kept' or 'never', but is 'no'"):
        LabelSmoothing(0.1, logits="no")


def test_a_cross_entropy_of_another_head_that_comes_later_is_its_own():
    class Later(ComposerModel):
        def __init__(self, smoothing):
            super().__init__()
            torch.manual_seed(3)
            self.layer, self.auxiliary, self.smoothing, self.steps = nn.Linear(6, 5), nn.Linear(6, 5), smoothing, 0

        def forward(self, batch):
            return self.layer(batch[0])

        def loss(self, outputs, batch):
            self.steps += 1
            loss = F.cross_entropy(outputs, batch[1], label_smoothing=self.smoothing)
            if self.steps > 1:
                loss = loss + F.cross_entropy(self.auxiliary(batch[0]), batch[1], label_smoothing=self.smoothing)
            return loss

    data = [(torch.randn(6, generator=torch.Generator().manual_seed(i)), torch.tensor(i % 5)) for i in range(24)]
    found = fit([NEVER(0.1)], model=Later(0.0), loader=DataLoader(data, 8))
    torch.testing.assert_close(found, fit([], model=Later(0.1), loader=DataLoader(data, 8)), rtol=1e-5, atol=1e-6)
