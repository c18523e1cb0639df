"""BLEU is sacrebleu's."""

import importlib
import sys
import unicodedata

import pytest
import sacrebleu

from composer_ls.errors import MissingPackageError, TextError
from composer_ls.lab.tasks.translation.bleu import bleu

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


def test_letters_with_marks_are_the_same_however_they_are_encoded():
    assert bleu(REFERENCES, [unicodedata.normalize("NFD", line) for line in REFERENCES]).score == pytest.approx(100)


def test_bleu_of_different_numbers_of_sentences_is_refused():
    with pytest.raises(TextError, match="1 translations and 2 references"):
        bleu(TRANSLATIONS[:1], REFERENCES)


CHINESE = (
    ["一个男人骑马穿过田野。", "孩子们正在公园里踢足球。"],
    ["一个男人骑着马穿过田野。", "孩子们在公园里踢足球。"],
)


@pytest.mark.parametrize("language", ["zh", "ZH", "zh-cn", "zh_TW", "zho_Hans", "cn"])
def test_bleu_of_chinese_uses_its_tokenizer(language):
    found = bleu(*CHINESE, language=language)
    expected = sacrebleu.BLEU(trg_lang="zh").corpus_score(CHINESE[0], [CHINESE[1]]).score
    assert found.score == expected > 40
    assert "|tok:zh|" in found.signature


@pytest.mark.parametrize("language", ["", "de", "en", "deu", "de_DE", "mizo"])
def test_bleu_of_other_languages_is_that_of_the_default(language):
    assert bleu(TRANSLATIONS, REFERENCES, language=language) == bleu(TRANSLATIONS, REFERENCES)


@pytest.mark.parametrize(("language", "code"), [("ja", "ja"), ("jpn", "ja"), ("ko", "ko"), ("ko-KR", "ko")])
def test_a_tokenizer_that_is_not_installed_is_named(monkeypatch, language, code):
    module = importlib.import_module(f"sacrebleu.tokenizers.tokenizer_{code}_mecab")
    monkeypatch.setattr(module, "MeCab", None)
    with pytest.raises(MissingPackageError, match=rf"BLEU of {language} needs .*: pip install 'sacrebleu\[{code}\]'"):
        bleu(TRANSLATIONS, REFERENCES, language=language)


@pytest.mark.parametrize("package", ["sacrebleu", "tokenizers", "transformers"])
def test_a_missing_package_is_named(monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, "composer_ls.lab.tasks.translation.packages")
    with pytest.raises(MissingPackageError, match=rf"needs the package {package}.*pip install 'composer_ls\[nlp\]'"):
        importlib.import_module("composer_ls.lab.tasks.translation.packages")
