"""LabelSmoothing in LLM-Foundry's own `train()`: its models, its loaders, its ways to weigh microbatches."""

import pytest
import torch
from llm_foundry_support import (
    VOCABULARY,
    assert_same,
    configuration,
    every_cross_entropy_smooths,
    make_data,
    measured,
    train,
    weights,
)

from composer_ls import LabelSmoothing
from composer_ls.composition import describe

CASES = [
    ("mpt", "text", True),
    ("mpt", "text", False),
    ("mpt", "prompts", True),
    ("mpt", "packed", True),
    ("gpt2", "text", True),
    ("llama", "prompts", False),
    ("llama", "packed", True),
    ("llama+lora", "prompts", True),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("llm"))


@pytest.fixture(scope="module", params=CASES, ids=lambda case: "-".join(map(str, case)))
def case(request, folder):
    model, loader, on_tokens = request.param
    return {"folder": folder, "model": model, "loader": loader, "accumulate_train_batch_on_tokens": on_tokens}


def smoothing(amount, **options):
    return {"label_smoothing": {"smoothing": amount, **options}}


def test_smoothing_zero_ends_with_the_weights_of_no_algorithm(case):
    ours, none = train(configuration(**case, algorithms=smoothing(0.0))), train(configuration(**case))
    assert_same(weights(ours), weights(none))
    assert_same(measured(ours), measured(none))


def test_smoothing_ends_with_the_weights_of_label_smoothing_in_every_cross_entropy(case):
    """Metrics and evaluation, which have no gradient, are of hard labels on both sides."""
    ours = train(configuration(**case, algorithms=smoothing(0.1)))
    with every_cross_entropy_smooths(0.1):
        reference = train(configuration(**case))
    assert_same(weights(ours), weights(reference))
    assert_same(measured(ours), measured(reference))


@pytest.mark.parametrize(
    ("model", "loader"), [("mpt", "text"), ("mpt untied", "packed"), ("gpt2", "text"), ("llama", "packed")]
)
def test_training_without_logits_ends_with_the_same_weights(folder, model, loader):
    settings = configuration(folder, model.split()[0], loader)
    settings["model"]["use_train_metrics"] = False
    if model == "mpt untied":
        settings["model"]["tie_word_embeddings"] = False
    without = train({**settings, "algorithms": smoothing(0.1, logits="never")})
    assert "linear_cross_entropy, without logits" in describe(without)
    assert_same(weights(without), weights(train({**settings, "algorithms": smoothing(0.1)})))
    assert without.state.eval_metrics["eval"]["LanguageCrossEntropy"].compute() > 0


def test_training_without_logits_is_refused_beside_training_metrics(folder):
    with pytest.raises(ValueError, match="use_train_metrics: false"):
        train(configuration(folder, algorithms=smoothing(0.1, logits="never")))


def test_smoothing_is_felt(folder):
    """The two tests above would hold if neither side smoothed."""
    ours, hard = weights(train(configuration(folder, algorithms=smoothing(0.1)))), weights(train(configuration(folder)))
    worst = max((ours[name] - hard[name]).abs().max() / hard[name].abs().max() for name in hard)
    assert worst > 1e-2


def test_the_size_of_microbatches_changes_nothing(folder):
    """Beside prompts of many lengths, where tokens are counted, and in a model without dropout."""
    settings = configuration(folder, "mpt", "prompts", smoothing(0.1))
    settings["model"]["resid_pdrop"] = 0.0
    whole = {**settings, "device_train_microbatch_size": 4}
    assert_same(weights(train(settings)), weights(train(whole)))


def test_the_plan_names_the_loss_and_the_labels(folder):
    plan = describe(train(configuration(folder, algorithms=smoothing(0.1), max_duration="1ba")))
    assert "cross_entropy of labels smoothed where ComposerMPTCausalLM.loss() computes it" in plan
    plan = describe(train(configuration(folder, "gpt2", algorithms=smoothing(0.1), max_duration="1ba")))
    assert "cross_entropy, fused, with labels shifted by one, which are not passed to GPT2LMHeadModel" in plan


def test_the_console_shows_how_the_loss_is_replaced(folder, capsys):
    train(configuration(folder, algorithms=smoothing(0.1), max_duration="1ba", python_log_level="info"))
    lines = [line for line in capsys.readouterr().err.splitlines() if "label smoothing: smoothing 0.1" in line]
    assert len(lines) == 2
    assert "cross_entropy of labels smoothed where ComposerMPTCausalLM.loss() computes it" in lines[1]


def test_the_example_learns_where_documents_end(folder):
    """LLM-Foundry takes padding out of the labels, so the end token must not be the padding token."""
    loader = train(configuration(folder, max_duration="1ba")).state.train_dataloader
    batch = next(iter(loader))
    ends = batch["input_ids"] == loader.dataset.tokenizer.eos_token_id
    assert ends.any()
    assert (batch["labels"][ends] != -100).all()


def test_a_vocabulary_wider_than_the_tokenizer_trains(folder):
    """LLM-Foundry pads vocabularies to a multiple of what a GPU likes; padding gets its share of the mass."""
    settings = configuration(folder, algorithms=smoothing(0.1))
    settings["model"]["vocab_size"] = VOCABULARY + 84
    ours = train(settings)
    del settings["algorithms"]
    with every_cross_entropy_smooths(0.1):
        assert_same(weights(ours), weights(train(settings)))


def test_a_unigram_prior_comes_from_a_file(folder):
    from llm_foundry_support import EXAMPLE

    algorithms = {"unigram_smoothing": {"smoothing": 0.1, "path": str(folder / "data" / "unigram.json")}}
    paths = [str(EXAMPLE / "unigram_smoothing.py")]
    trainer = train(configuration(folder, algorithms=algorithms, code_paths=paths, max_duration="2ba"))
    (smoother,) = (a for a in trainer.state.algorithms if isinstance(a, LabelSmoothing))
    assert smoother.prior.shape == (VOCABULARY,)
    assert smoother.prior.sum() == pytest.approx(1, abs=1e-5)
    assert "to the given prior" in describe(trainer)


class TestBadInput:
    """Errors come before the first step, and name what to change."""

    def test_a_quoted_number(self, folder):
        with pytest.raises(TypeError, match=r"smoothing must be a number in \[0, 1\], but is the string '0.1'"):
            train(configuration(folder, algorithms=smoothing("0.1")))

    def test_an_argument_that_is_none(self, folder):
        with pytest.raises(TypeError, match="unexpected keyword argument 'alpha'"):
            train(configuration(folder, algorithms=smoothing(0.1, alpha=0.2)))

    def test_a_loss_that_smooths_already(self, folder, monkeypatch):
        from llmfoundry.models import ComposerMPTCausalLM

        before = ComposerMPTCausalLM.__init__

        def init(self, *args, **options):
            before(self, *args, **options)
            self.loss_fn = torch.nn.CrossEntropyLoss(ignore_index=-100, reduction="none", label_smoothing=0.2)

        monkeypatch.setattr(ComposerMPTCausalLM, "__init__", init)
        with pytest.raises(ValueError, match=r"smoothed twice: .*CrossEntropyLoss\(label_smoothing=0.2\)"):
            train(configuration(folder, algorithms=smoothing(0.1)))

    def test_labels_outside_the_logits(self, folder, monkeypatch):
        from llmfoundry.models.mpt import modeling_mpt

        before = modeling_mpt.get_targets

        def targets(labels):
            shifted = before(labels)
            return shifted.where(shifted == -100, shifted + VOCABULARY)

        monkeypatch.setattr(modeling_mpt, "get_targets", targets)
        with pytest.raises(ValueError, match=rf"the logits have {VOCABULARY} classes, so labels must be"):
            train(configuration(folder, algorithms=smoothing(0.1)))

    def test_a_loss_without_a_cross_entropy(self, folder, monkeypatch):
        from llmfoundry.models import ComposerMPTCausalLM

        def loss(self, outputs, batch):
            return outputs.logits.log_softmax(-1).gather(-1, batch["labels"].clamp(0)[..., None]).neg().mean()

        monkeypatch.setattr(ComposerMPTCausalLM, "loss", loss)
        with pytest.raises((TypeError, ValueError), match="LabelSmoothing"):
            train(configuration(folder, algorithms=smoothing(0.1)))
