"""Hugging Face models that are trained without logits train as they do with them."""

import functools
import sys

import pytest
import torch
import transformers as hf
from composer.core import Callback
from composer.models import HuggingFaceModel
from huggingface_support import TASKS, T, bert, train, wrapped
from support import Allocations
from torch import nn
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


def test_other_models_are_refused():
    with pytest.raises(TargetError, match="logits='never' is for HuggingFaceModel"):
        fit([NEVER(0.1)])


def test_an_unknown_value_is_refused():
    with pytest.raises(ValueError, match="logits must be 'kept' or 'never', but is 'no'"):
        LabelSmoothing(0.1, logits="no")
