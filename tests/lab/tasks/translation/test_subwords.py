"""Subwords: there and back, the same each time."""

import logging

import pytest
from transformers import AutoTokenizer

from composer_ls.errors import TextError
from composer_ls.lab.tasks.translation.subwords import decode, encode, learn_tokenizer

TEXTS = ["Two young men are outside.", "Zwei junge weiße Männer sind im Freien.", "a man, a dog"] * 3


@pytest.fixture(scope="module")
def tokenizer():
    return learn_tokenizer(TEXTS, vocabulary=320)


@pytest.mark.parametrize("text", ["zwei männer!", "a </s> b <pad>", "日本語 🙂", "it's 5 o'clock", "", "ZWEI Männer"])
def test_any_text_comes_back(tokenizer, text):
    (row,) = encode(tokenizer, [text], 128)
    assert decode(tokenizer, [row]) == [text]
    assert row[-1] == tokenizer.eos_token_id
    assert not {tokenizer.pad_token_id, tokenizer.eos_token_id} & set(row[:-1])


def test_capitals_become_small_if_told():
    small = learn_tokenizer(TEXTS, vocabulary=320, lowercase=True)
    assert decode(small, encode(small, ["ZWEI Männer"], 128)) == ["zwei männer"]


def test_the_same_text_gives_the_same_subwords(tokenizer):
    again = learn_tokenizer(TEXTS, vocabulary=320)
    assert again.backend_tokenizer.to_str() == tokenizer.backend_tokenizer.to_str()


def test_the_vocabulary_is_as_large_as_asked_or_as_the_text_allows(tokenizer):
    assert 258 < len(tokenizer) <= 320
    assert len(learn_tokenizer(TEXTS, vocabulary=300)) == 300
    assert len(learn_tokenizer(["a b"], vocabulary=8000)) < 300
    assert max(max(row) for row in encode(tokenizer, TEXTS, 128)) < len(tokenizer)


def test_frequent_words_are_one_subword(tokenizer):
    assert len(encode(tokenizer, ["a man"], 128)[0]) <= 4


def test_a_folder_gives_the_same_subwords(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    texts = ["a </s> man, zwei Männer", " two  spaces", ""]
    assert encode(loaded, texts, 128) == encode(tokenizer, texts, 128)
    assert decode(loaded, encode(loaded, texts, 128)) == ["a </s> man, zwei Männer", "two spaces", ""]


def test_a_translation_is_one_line(tokenizer):
    assert decode(tokenizer, encode(tokenizer, ["a\nb\r\n c"], 128)) == ["a b c"]


LONG = ["a man", "a man and a dog and a tree", ""]


@pytest.mark.parametrize("target", [False, True])
def test_long_sentences_are_cut_and_that_is_told(tokenizer, caplog, target):
    with caplog.at_level(logging.WARNING):
        rows = encode(tokenizer, LONG, 8, "cut", "the source of train", target=target)
    assert "the source of train: 1 of 3 sentences have more than 8 subwords, including the end (line 2)" in caplog.text
    (whole,) = encode(tokenizer, LONG[1:2], 128)
    assert rows[1] == [*whole[:7], tokenizer.eos_token_id]


def test_long_sentences_are_refused_with_their_lines(tokenizer):
    with pytest.raises(TextError, match=r"\(line 2\).*data\.longest=8.*data\.too_long=cut"):
        encode(tokenizer, LONG, 8, "refuse")


def test_a_sentence_just_short_enough_is_whole(tokenizer, caplog):
    rows = encode(tokenizer, LONG, 128)
    with caplog.at_level(logging.WARNING):
        assert encode(tokenizer, LONG, max(map(len, rows)), "refuse") == rows
    assert not caplog.text


def test_no_lines_are_no_rows(tokenizer):
    assert encode(tokenizer, [], 128) == []
