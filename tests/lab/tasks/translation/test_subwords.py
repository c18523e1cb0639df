"""Subwords: there and back, the same each time."""

import sys

import pytest

from composer_ls.errors import MissingPackageError, RunFolderError
from composer_ls.lab.tasks.translation.subwords import BEGIN, END, PAD, Subwords

TEXTS = ["Two young men are outside.", "Zwei junge weiße Männer sind im Freien.", "a man, a dog"] * 3


@pytest.fixture(scope="module")
def subwords():
    return Subwords.learn(TEXTS, vocabulary=320)


@pytest.mark.parametrize("text", ["zwei männer!", "a </s> b <pad>", "日本語 🙂", "it's 5 o'clock", ""])
def test_any_text_comes_back(subwords, text):
    ids = subwords.encode([text])
    assert subwords.decode(ids) == [text]
    assert not {PAD, BEGIN, END} & set(ids[0])


def test_capitals_become_small_unless_told(subwords):
    assert subwords.decode(subwords.encode(["ZWEI Männer"])) == ["zwei männer"]
    kept = Subwords.learn(TEXTS, vocabulary=320, lowercase=False)
    assert kept.decode(kept.encode(["ZWEI Männer"])) == ["ZWEI Männer"]


def test_the_same_text_gives_the_same_subwords(subwords):
    assert Subwords.learn(TEXTS, vocabulary=320).to_json() == subwords.to_json()


def test_the_vocabulary_is_as_large_as_asked_or_as_the_text_allows(subwords):
    assert 259 < len(subwords) <= 320
    assert len(Subwords.learn(TEXTS, vocabulary=300)) == 300
    assert len(Subwords.learn(["a b"], vocabulary=8000)) < 300
    assert max(max(row) for row in subwords.encode(TEXTS)) < len(subwords)


def test_frequent_words_are_one_subword(subwords):
    assert len(subwords.encode(["a man"])[0]) <= 3


def test_a_file_gives_the_same_subwords(subwords, tmp_path):
    file = tmp_path / "subwords.json"
    file.write_text(subwords.to_json(), encoding="utf-8")
    loaded = Subwords.load(file)
    assert loaded.encode(["a </s> man, zwei Männer"]) == subwords.encode(["a </s> man, zwei Männer"])


def test_a_broken_file_is_told(tmp_path):
    (tmp_path / "subwords.json").write_text("{", encoding="utf-8")
    with pytest.raises(RunFolderError, match=r"subwords.json cannot be read"):
        Subwords.load(tmp_path / "subwords.json")


def test_a_translation_is_one_line(subwords):
    assert subwords.decode(subwords.encode(["a\nb\r\n c"])) == ["a b c"]


def test_a_missing_package_is_named_with_the_way_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(MissingPackageError, match=r"pip install 'composer_ls\[nlp\]'"):
        Subwords.learn(["a"])
