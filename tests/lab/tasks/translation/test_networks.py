"""Networks of every type, pretrained ones, and what is wrong with a recipe of one."""

import json
import re
import shutil
import typing

import pytest
import torch
from composer import Trainer
from composer.models import HuggingFaceModel
from tokenizers import Tokenizer, models
from torch.nn import functional as F
from transformers import (
    AutoModelForSeq2SeqLM,
    BertConfig,
    BertForMaskedLM,
    MBart50TokenizerFast,
    MBartConfig,
    MBartForConditionalGeneration,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

from composer_ls import LabelSmoothing
from composer_ls.composition import describe
from composer_ls.errors import RecipeError
from composer_ls.lab.recipe.reading import load_recipe
from composer_ls.lab.run_folder.folder import RunFolder
from composer_ls.lab.tasks.registry import open_task
from composer_ls.lab.tasks.translation.batches import collator
from composer_ls.lab.tasks.translation.networks import language_doubts, make_network, make_tokenizer
from composer_ls.lab.tasks.translation.schema import TranslationData, TranslationModel
from composer_ls.lab.tasks.translation.subwords import encode, learn_tokenizer
from composer_ls.lab.tasks.translation.translator import Translator
from composer_ls.lab.training.train import train

BART = {
    **{"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2},
    **{"decoder_attention_heads": 2, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16},
}
T5 = {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_decoder_layers": 1, "num_heads": 2}
SWITCH = {**T5, "num_experts": 2, "num_sparse_encoder_layers": 0, "num_sparse_decoder_layers": 0}
OWN = {
    "led": {**BART, "attention_window": 8},
    "longt5": T5,
    "mt5": T5,
    "t5": T5,
    "umt5": T5,
    "switch_transformers": SWITCH,
}
TYPES = [
    name.removeprefix("transformers/") for name in typing.get_args(TranslationModel.model_fields["name"].annotation)
]
TEXTS = ["a man and a dog", "ein Mann und ein Hund"]


@pytest.fixture(scope="module")
def tokenizer():
    return learn_tokenizer(TEXTS, 280, longest=16)


def small(kind, tokenizer):
    model = TranslationModel(name=f"transformers/{kind}", arguments=OWN.get(kind, BART), beam=2)
    torch.manual_seed(0)
    return make_network(model, TranslationData(name="parallel_text", longest=16), tokenizer)


@pytest.mark.parametrize("kind", TYPES)
def test_every_type_trains_smoothed_by_composer_and_translates(kind, tokenizer):
    network = small(kind, tokenizer)
    assert network.config.model_type == kind
    left, right = (encode(tokenizer, [line] * 2, 16)[0] for line in TEXTS)
    batch = collator(tokenizer, network)([{"input_ids": left, "labels": right}, {"input_ids": right, "labels": left}])
    starts = batch["decoder_input_ids"]
    assert (starts[:, 0] == network.config.decoder_start_token_id).all()
    following = batch["labels"][:, :-1]
    assert torch.equal(starts[:, 1:][following != -100], following[following != -100])
    output = network.eval()(**batch)
    own = F.cross_entropy(output.logits.flatten(0, 1), batch["labels"].flatten())
    assert output.loss.item() == pytest.approx(own.item(), rel=1e-5)
    before = {name: weight.clone() for name, weight in network.named_parameters()}
    trainer = Trainer(
        model=HuggingFaceModel(network, tokenizer, use_logits=True),
        train_dataloader=[batch],
        device_train_microbatch_size=2,
        max_duration="1ba",
        optimizers=torch.optim.SGD(network.parameters(), 0.1),
        algorithms=LabelSmoothing(0.1),
        progress_bar=False,
    )
    trainer.fit()
    assert describe(trainer).startswith("smoothing 0.1")
    assert any(not torch.equal(weight, before[name]) for name, weight in network.named_parameters())
    lines = Translator(network.eval(), tokenizer).translate(["a dog", "", "a man and"])
    assert len(lines) == 3
    assert lines[1] == ""


@pytest.mark.parametrize("kind", ["pegasus", "t5"])
def test_arguments_are_those_of_the_configuration(kind, tokenizer):
    config = small(kind, tokenizer).config
    for key, value in OWN.get(kind, BART).items():
        assert getattr(config, key) == value
    assert config.vocab_size == len(tokenizer)


def test_training_goes_on_from_weights_with_their_own_tokenizer(run, data, tmp_path):
    overrides = [
        *("model.arguments={dropout: 0.1}", f"model.weights={run / 'model'}", "data.lowercase=false"),
        *("optimizer.learning_rate=1e-9", "duration=1ba", "data.vocabulary=300"),
    ]
    recipe = load_recipe(data / "toy.yaml", overrides)
    result = train(recipe, RunFolder(tmp_path, recipe), progress=False)
    before = json.loads((run / "result.json").read_text())
    assert result["vocabulary"] == before["vocabulary"] > 300
    assert result["metrics"]["nll"] == pytest.approx(before["metrics"]["nll"], rel=1e-4)
    assert json.loads((tmp_path / "model" / "config.json").read_text())["dropout"] == 0.1
    assert (tmp_path / "model" / "tokenizer.json").read_text() == (run / "model" / "tokenizer.json").read_text()


def test_a_t5_saved_by_others_is_fine_tuned(data, tmp_path):
    words = learn_tokenizer(TEXTS, 300)
    PreTrainedTokenizerFast(
        tokenizer_object=words.backend_tokenizer, pad_token="<pad>", eos_token="</s>"
    ).save_pretrained(tmp_path / "t5")
    network = T5ForConditionalGeneration(T5Config(**T5, vocab_size=320, decoder_start_token_id=0))
    network.save_pretrained(tmp_path / "t5")
    overrides = [f"model={{name: transformers/t5, weights: {tmp_path / 't5'}, beam: 1}}", "data.lowercase=false"]
    recipe = load_recipe(data / "toy.yaml", [*overrides, "duration=20ba"])
    result = train(recipe, RunFolder(tmp_path / "run", recipe), progress=False)
    assert result["vocabulary"] == 320
    tuned = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "run" / "model")
    assert not torch.equal(tuned.shared.weight, network.shared.weight)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.name=transformers/bert"], r"model\.name is 'transformers/bert': .*transformers/marian"),
        (["model.arguments.width=3"], r"unknown key model\.arguments\.width: .*d_model"),
        (["model.arguments.vocab_size=9"], r"model\.arguments\.vocab_size follows from the subwords"),
        (["model.arguments.d_model=66"], r"transformers refuses .*'d_model': 66.* divisible by num_heads"),
        (["model.arguments.d_model=wide"], r"transformers refuses .*'d_model': 'wide'"),
        (["data.longest=65"], r"data\.longest=65 is more than the 64 positions"),
        (["model.weights=nowhere"], r"data\.lowercase=true does not go with model\.weights=nowhere"),
        (["model.weights=nowhere", "data.lowercase=false"], r"model\.weights=nowhere: there is no such folder"),
    ],
)
def test_a_network_that_cannot_be_is_told_before_training(data, overrides, message):
    with pytest.raises(RecipeError, match=message):
        open_task(load_recipe(data / "toy.yaml", overrides))


@pytest.fixture
def weights(run, tmp_path):
    """A copy of the run's model, to spoil."""
    shutil.copytree(run / "model", tmp_path / "weights")
    return tmp_path / "weights"


def refused(data, weights, *overrides):
    with pytest.raises(RecipeError) as caught:
        open_task(load_recipe(data / "toy.yaml", [f"model.weights={weights}", "data.lowercase=false", *overrides]))
    assert str(weights) in str(caught.value)
    return str(caught.value)


def test_weights_of_another_type_are_told_with_the_type_to_name(data, weights):
    message = refused(data, weights, f"model={{name: transformers/marian, weights: {weights}}}")
    assert "it is not a transformers/marian: use model.name=transformers/pegasus" in message


def test_weights_that_are_not_sequence_to_sequence_are_told(data, weights):
    BertForMaskedLM(BertConfig(100, 8, 1, 1, 8)).save_pretrained(weights)
    assert "its model_type bert is not sequence to sequence" in refused(data, weights)


def test_weights_with_another_vocabulary_than_the_tokenizer_are_told(data, weights):
    learn_tokenizer([f"word{index} " * 3 for index in range(300)], 600).save_pretrained(weights)
    assert re.search(r"its tokenizer has ids up to \d+, but its weights have \d+ embeddings", refused(data, weights))


def test_a_tokenizer_without_padding_is_told(data, weights):
    tokenizer = PreTrainedTokenizerFast.from_pretrained(weights)
    tokenizer.pad_token = None
    tokenizer.save_pretrained(weights)
    assert "has no pad_token" in refused(data, weights)


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json"])
def test_a_broken_file_is_told(data, weights, name):
    (weights / name).write_text("{")
    assert "cannot read it" in refused(data, weights)


def multilingual(folder, forced):
    """An mBART in a folder, whose tokenizer marks English and German sentences."""
    words = ["<s>", "<pad>", "</s>", "<unk>", "▁a", "▁dog", "▁Hund"]
    unigrams = Tokenizer(models.Unigram([(word, -1.0) for word in words], unk_id=3))
    tokenizer = MBart50TokenizerFast(tokenizer_object=unigrams, src_lang="en_XX", tgt_lang="de_DE")
    network = MBartForConditionalGeneration(MBartConfig(len(tokenizer), **BART, max_position_embeddings=16))
    network.generation_config.forced_bos_token_id = forced and tokenizer.convert_tokens_to_ids(forced)
    for one in (tokenizer, network):
        one.save_pretrained(folder)
    return TranslationModel(name="transformers/mbart", weights=str(folder))


@pytest.mark.parametrize("forced", [None, "fr_XX"])
def test_a_multilingual_network_whose_search_begins_with_no_or_another_language_is_refused(tmp_path, forced):
    model, data = multilingual(tmp_path, forced), TranslationData(name="parallel_text", longest=16)
    with pytest.raises(RecipeError, match="src_lang=en_XX and tgt_lang=de_DE, and the search does not begin .*: set"):
        make_network(model, data, make_tokenizer(model, data, []))


def test_a_multilingual_network_keeps_its_languages_and_they_are_compared_with_those_of_the_data(tmp_path):
    model, data = multilingual(tmp_path, "de_DE"), TranslationData(name="parallel_text", longest=16)
    tokenizer = make_tokenizer(model, data, [])
    make_network(model, data, tokenizer)
    assert language_doubts(tokenizer, data) == []
    swapped = data.model_copy(update={"source": "de", "target": "en"})
    assert "as en_XX and translations as de_DE: make sure" in language_doubts(tokenizer, swapped)[0]
