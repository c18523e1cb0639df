"""Batches of tokens: complete, small enough, and drawn from seed and epoch alone."""

import logging
import random

import numpy as np
import pytest
import torch

from composer_ls.errors import RecipeError, TextError
from composer_ls.lab.tasks.translation.batches import IGNORED, EncodedPairs, TokenBatches, encode_pairs
from composer_ls.lab.tasks.translation.data import Pairs
from composer_ls.lab.tasks.translation.subwords import BEGIN, END, PAD, Subwords


def pairs(count=500, seed=0):
    draw = random.Random(seed)

    def side():
        return [[draw.randint(3, 50) for _ in range(draw.randint(0, 20))] + [END] for _ in range(count)]

    return EncodedPairs(side(), side())


def sentences(batches):
    found = []
    for index in range(len(batches)):
        (source, _), labels = batches[index]
        for row, label in zip(source.tolist(), labels.tolist(), strict=True):
            found.append(
                (tuple(token for token in row if token != PAD), tuple(token for token in label if token != IGNORED))
            )
    return found


def test_every_pair_stands_in_one_batch_of_an_epoch():
    data = pairs()
    expected = sorted((tuple(left), tuple(right)) for left, right in zip(data.source, data.target, strict=True))
    batches = TokenBatches(data, 200, seed=1)
    for epoch in (0, 1, 5):
        batches.set_epoch(epoch)
        assert sorted(sentences(batches)) == expected


def test_no_batch_is_larger_than_allowed_and_few_could_be():
    batches = TokenBatches(pairs(), 200, seed=1)
    sizes = [max(batches[index][0][0].numel(), batches[index][1].numel()) for index in range(len(batches))]
    assert max(sizes) <= 200
    assert sum(sizes) / len(sizes) > 160


def test_little_is_padding():
    draw = random.Random(0)
    lengths = [draw.randint(1, 20) for _ in range(2000)]
    rows = [[3] * length + [END] for length in lengths]
    batches = TokenBatches(EncodedPairs(rows, rows), 400, seed=1)
    labels = torch.cat([batches[index][1].flatten() for index in range(len(batches))])
    assert (labels == IGNORED).double().mean() < 0.05


def test_what_stands_together_follows_from_seed_and_epoch_alone():
    one, other = TokenBatches(pairs(), 200, seed=1), TokenBatches(pairs(), 200, seed=1)
    one.set_epoch(3)
    before = sentences(one)
    other.set_epoch(9)
    other.set_epoch(3)
    assert sentences(other) == before
    other.set_epoch(4)
    assert sentences(other) != before
    different = TokenBatches(pairs(), 200, seed=2)
    different.set_epoch(3)
    assert sentences(different) != before


def test_shapes_and_number_stay_the_same_in_every_epoch():
    batches = TokenBatches(pairs(), 200, seed=1)
    shapes = [batches[index][1].shape for index in range(len(batches))]
    batches.set_epoch(7)
    assert [batches[index][1].shape for index in range(len(batches))] == shapes


def test_labels_are_the_target_input_one_place_further():
    (_, target), labels = TokenBatches(pairs(), 200, seed=None)[5]
    assert (target[:, 0] == BEGIN).all()
    following = labels[:, :-1]
    assert torch.equal(target[:, 1:][following != IGNORED], following[following != IGNORED])
    assert (target >= 0).all()
    ends = (labels == END).sum(1)
    assert (ends == 1).all()


def test_a_sentence_longer_than_a_batch_is_told():
    with pytest.raises(RecipeError, match=r"data\.batch_tokens=10 is less than the 21 subwords"):
        TokenBatches(pairs(), 10, seed=0)


@pytest.fixture(scope="module")
def subwords():
    return Subwords.learn(["ein mann", "a man"], vocabulary=262)


LONG = Pairs(["a man", "a man and a dog and a tree", ""], ["ein mann", "ein", "x"], "train")


def test_long_sentences_are_cut_and_that_is_told(subwords, caplog):
    with caplog.at_level(logging.WARNING):
        encoded = encode_pairs(LONG, subwords, 10, "cut")
    assert "the source of train: 1 of 3 sentences have more than 9 subwords (line 2) and were cut" in caplog.text
    assert len(encoded.source[1]) == 10
    assert encoded.source[1][-1] == END
    assert encoded.source[1][:-1] == subwords.encode([LONG.source[1]])[0][:9]


def test_long_sentences_are_refused_with_their_lines(subwords):
    with pytest.raises(TextError, match=r"\(line 2\).*data\.longest=10.*data\.too_long=cut"):
        encode_pairs(LONG, subwords, 10, "refuse")


def test_a_sentence_just_short_enough_is_whole(subwords, caplog):
    rows = subwords.encode(LONG.source)
    longest = max(map(len, rows)) + 1
    with caplog.at_level(logging.WARNING):
        encoded = encode_pairs(LONG, subwords, longest, "refuse")
    assert [row[:-1] for row in encoded.source] == rows
    assert not caplog.text
    assert np.array([len(row) for row in encoded.source]).max() == longest
