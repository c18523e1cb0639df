"""BLEU is sacrebleu's; what is measured batch by batch is what the diagnostics measure at once."""

import math
import sys

import pytest
import sacrebleu
import torch

from composer_ls.diagnostics.calibration import accuracy, expected_calibration_error, negative_log_likelihood
from composer_ls.errors import MissingPackageError, TextError
from composer_ls.translation.metrics import bleu, token_metrics

REFERENCES = ["Zwei junge Männer sind im Freien.", "Ein kleines Mädchen klettert in ein Spielhaus aus Holz."]
TRANSLATIONS = ["zwei junge männer sind draußen im freien .", "ein mädchen klettert in ein spielhaus aus holz."]


@pytest.mark.parametrize("lowercase", [True, False])
def test_bleu_is_that_of_sacrebleu(lowercase):
    found = bleu(TRANSLATIONS, REFERENCES, lowercase)
    assert found.score == sacrebleu.corpus_bleu(TRANSLATIONS, [REFERENCES], lowercase=lowercase).score
    assert f"case:{'lc' if lowercase else 'mixed'}|" in found.signature
    assert sacrebleu.__version__ in found.signature


def test_bleu_of_the_reference_is_100():
    assert bleu(REFERENCES, REFERENCES).score == pytest.approx(100)


def test_bleu_of_different_numbers_of_sentences_is_refused():
    with pytest.raises(TextError, match="1 translations and 2 references"):
        bleu(TRANSLATIONS[:1], REFERENCES)


def test_a_missing_sacrebleu_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "sacrebleu.metrics.bleu", None)
    with pytest.raises(MissingPackageError, match=r"pip install 'composer_ls\[nlp\]'"):
        bleu(TRANSLATIONS, REFERENCES)


def test_metrics_of_subwords_are_those_of_the_diagnostics_at_each_temperature():
    torch.manual_seed(0)
    batches = []
    for places in (5, 9, 3):
        labels = torch.randint(11, (4, places))
        labels[0, places // 2 :] = -100
        batches.append((torch.randn(4, 11, places) * 2, labels))
    flat = torch.cat([logits.movedim(1, -1)[labels != -100] for logits, labels in batches])
    labels = torch.cat([labels[labels != -100] for _, labels in batches])
    for temperature, found in zip((1.0, 2.5), token_metrics(batches, (1.0, 2.5)), strict=True):
        assert found.tokens == len(labels)
        assert found.nll == pytest.approx(negative_log_likelihood(flat / temperature, labels), rel=1e-5)
        assert found.perplexity == pytest.approx(math.exp(found.nll))
        assert found.ece == pytest.approx(expected_calibration_error(flat / temperature, labels), abs=1e-6)
        assert found.accuracy == accuracy(flat, labels)


def test_nothing_but_padding_is_refused():
    with pytest.raises(TextError, match="every label is padding"):
        token_metrics([(torch.zeros(1, 4, 2), torch.full((1, 2), -100))])
