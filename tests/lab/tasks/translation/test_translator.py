"""What is counted on in the beam search of transformers: greedy, exhaustive, and alike in whatever batch."""

import itertools
import logging

import pytest
import torch
from transformers import MarianConfig, MarianMTModel

from composer_ls.errors import InputError
from composer_ls.lab.tasks.translation.subwords import encode, learn_tokenizer
from composer_ls.lab.tasks.translation.translator import Temperature, Translator

PAD, END, WORDS = 0, 1, (2, 3, 4)
SOURCE = torch.tensor([[2, 3, 4, END]])


def network(vocabulary=5, longest=20, seed=0, spread=0.6):
    """With new weights, large enough that hypotheses differ."""
    torch.manual_seed(seed)
    ids = {"pad_token_id": PAD, "eos_token_id": END, "decoder_start_token_id": END, "forced_eos_token_id": END}
    sizes = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    config = MarianConfig(
        vocab_size=vocabulary, **ids, **sizes, **heads, max_position_embeddings=longest, init_std=spread
    )
    found = MarianMTModel(config).eval()
    found.generation_config.suppress_tokens = [PAD]
    return found


class Ids:
    """A tokenizer for tests that look at ids only."""

    model_max_length = 20


def search(network, longest, **options):
    """What `translate` gives to generate() is right, and the ids that come back."""
    translator = Translator(network, Ids())
    translator.longest = longest
    given = translator._options(options.get("beam", 1), options.get("length_penalty"), options.get("temperature", 1.0))
    found = network.generate(SOURCE, attention_mask=torch.ones_like(SOURCE), **given)[0, 1:].tolist()
    return [token for token in found if token not in (PAD, END)]


def log_probabilities(network, words, temperature=1.0):
    """Of what follows END and words, without a cache."""
    with torch.no_grad():
        logits = network(input_ids=SOURCE, decoder_input_ids=torch.tensor([[END, *words]])).logits[0, -1]
    log_p = logits.log_softmax(-1)
    log_p[PAD] = -torch.inf
    return log_p if temperature == 1 else (log_p / temperature).log_softmax(-1)


@pytest.mark.parametrize("seed", range(3))
def test_beam_1_is_greedy_decoding_without_a_cache(seed):
    model, words = network(9, seed=seed), []
    while len(words) < 8 and (word := int(log_probabilities(model, words).argmax())) != END:
        words.append(word)
    assert search(model, 10, beam=1) == words


@pytest.mark.parametrize("temperature", [1.0, 0.5, 2.0])
@pytest.mark.parametrize("penalty", [0.0, 1.0, 1.5])
@pytest.mark.parametrize("seed", range(2))
def test_a_beam_that_holds_all_is_exhaustive_search(seed, penalty, temperature):
    """At most two words and the end, which is certain there: 1 + 3 + 9 translations."""
    model = network(seed=seed)

    def score(words):
        steps = [*words, END][:2]
        total = sum(
            log_probabilities(model, words[:place], temperature)[word].item() for place, word in enumerate(steps)
        )
        return total / (len(words) + 1) ** penalty

    every = [words for length in range(3) for words in itertools.product(WORDS, repeat=length)]
    best = max(every, key=score)
    found = search(model, 4, beam=20, length_penalty=penalty, temperature=temperature)
    assert score(tuple(found)) == pytest.approx(score(best), abs=1e-5)


def test_temperature_changes_which_translation_is_the_best(monkeypatch):
    """Scores that are only divided by it do not: that leaves every comparison of sums as it was."""
    models = [network(12, seed=seed, spread=0.4) for seed in range(6)]

    def found(temperature):
        return [search(model, 8, beam=4, length_penalty=0.0, temperature=temperature) for model in models]

    plain = found(1.0)
    assert found(0.2) != plain
    monkeypatch.setattr(Temperature, "__call__", lambda self, input_ids, scores: scores / self.temperature)
    assert found(0.2) == plain


def test_temperature_gives_log_probabilities_of_logits_and_of_log_probabilities():
    logits = torch.randn(3, 7, generator=torch.Generator().manual_seed(0)) * 3
    expected = (logits / 1.7).log_softmax(-1)
    assert torch.allclose(Temperature(1.7)(None, logits), expected, atol=1e-6)
    assert torch.allclose(Temperature(1.7)(None, logits.log_softmax(-1)), expected, atol=1e-6)


@pytest.mark.parametrize("beam", [1, 4])
def test_a_sentence_is_translated_alike_in_whatever_batch(beam):
    tokenizer = learn_tokenizer(["a man and a dog", "a child"], 275, longest=20)
    translator = Translator(network(len(tokenizer)), tokenizer)
    lines = ["a man", "a dog and a man and a child", "", "dog", "a child and a dog"]
    together = translator.translate(lines, beam=beam)
    assert [translator.translate([line], beam=beam)[0] for line in lines] == together
    assert translator.translate(lines[::-1], beam=beam, batch=2) == together[::-1]
    assert any(together)


def test_a_line_is_cut_where_the_positions_end_and_that_is_told(caplog):
    tokenizer = learn_tokenizer(["a man and a dog"], 275, longest=10**30)
    translator = Translator(network(len(tokenizer)), tokenizer)
    long = "a man and a dog " * 8
    with caplog.at_level(logging.WARNING):
        lines = translator.translate(["a dog", long], beam=1, first=7)
    assert "the input: 1 of 2 sentences have more than 20 subwords, including the end (line 8)" in caplog.text
    (cut,) = encode(tokenizer, [long], 20)
    assert len(cut) == 20
    assert cut[-1] == tokenizer.eos_token_id
    assert translator.translate([tokenizer.decode(cut, skip_special_tokens=True)], beam=1) == lines[1:]


@pytest.mark.parametrize(
    ("option", "value"),
    [("beam", 0), ("length_penalty", -1.0), ("temperature", 0.0), ("temperature", float("nan")), ("batch", 0)],
)
def test_an_option_out_of_range_is_named(option, value):
    with pytest.raises(InputError, match=f"{option} is {value}, but must be"):
        Translator(network(), Ids()).translate(["a"], **{option: value})
