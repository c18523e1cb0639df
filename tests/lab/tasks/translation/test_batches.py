"""Batches of tokens: complete, small enough, and drawn from seed and epoch alone."""

import random
from types import SimpleNamespace

import pytest
import torch

from composer_ls.errors import RecipeError
from composer_ls.lab.tasks.translation.batches import IGNORED, TokenBatches, collator
from composer_ls.lab.tasks.translation.subwords import learn_tokenizer

PAD, END = 0, 1
NETWORK = SimpleNamespace(config=SimpleNamespace(decoder_start_token_id=END, pad_token_id=PAD))
COLLATE = collator(learn_tokenizer(["a"], 300), NETWORK)


def pairs(count=500, seed=0):
    draw = random.Random(seed)

    def ids():
        return [draw.randint(3, 50) for _ in range(draw.randint(0, 20))] + [END]

    return [{"input_ids": ids(), "labels": ids()} for _ in range(count)]


def batches_of(rows, batch_tokens, seed):
    return TokenBatches(rows, batch_tokens, seed, COLLATE)


def sentences(batches):
    found = []
    for index in range(len(batches)):
        batch = batches[index]
        for row, label in zip(batch["input_ids"].tolist(), batch["labels"].tolist(), strict=True):
            found.append(
                (tuple(token for token in row if token != PAD), tuple(token for token in label if token != IGNORED))
            )
    return found


def test_every_pair_stands_in_one_batch_of_an_epoch():
    data = pairs()
    expected = sorted((tuple(row["input_ids"]), tuple(row["labels"])) for row in data)
    batches = batches_of(data, 200, seed=1)
    for epoch in (0, 1, 5):
        batches.set_epoch(epoch)
        assert sorted(sentences(batches)) == expected


def test_no_batch_is_larger_than_allowed_and_few_could_be():
    batches = batches_of(pairs(), 200, seed=1)
    sizes = [max(batch["input_ids"].numel(), batch["labels"].numel()) for batch in batches]
    assert max(sizes) <= 200
    assert sum(sizes) / len(sizes) > 160


def test_little_is_padding():
    draw = random.Random(0)
    lengths = [draw.randint(1, 20) for _ in range(2000)]
    rows = [{"input_ids": [3] * length + [END], "labels": [3] * length + [END]} for length in lengths]
    labels = torch.cat([batch["labels"].flatten() for batch in batches_of(rows, 400, seed=1)])
    assert (labels == IGNORED).double().mean() < 0.05


def test_what_stands_together_follows_from_seed_and_epoch_alone():
    one, other = batches_of(pairs(), 200, seed=1), batches_of(pairs(), 200, seed=1)
    one.set_epoch(3)
    before = sentences(one)
    other.set_epoch(9)
    other.set_epoch(3)
    assert sentences(other) == before
    other.set_epoch(4)
    assert sentences(other) != before
    different = batches_of(pairs(), 200, seed=2)
    different.set_epoch(3)
    assert sentences(different) != before


def test_shapes_and_number_stay_the_same_in_every_epoch():
    batches = batches_of(pairs(), 200, seed=1)
    shapes = [batch["labels"].shape for batch in batches]
    batches.set_epoch(7)
    assert [batch["labels"].shape for batch in batches] == shapes


def test_a_batch_is_what_the_network_takes():
    batch = batches_of(pairs(), 200, seed=None)[5]
    assert set(batch) == {"input_ids", "attention_mask", "labels", "decoder_input_ids"}
    assert torch.equal(batch["attention_mask"] == 0, batch["input_ids"] == PAD)
    labels, starts = batch["labels"], batch["decoder_input_ids"]
    assert (starts[:, 0] == END).all()
    following = labels[:, :-1]
    assert torch.equal(starts[:, 1:][following != IGNORED], following[following != IGNORED])
    assert (starts[:, 1:][following == IGNORED] == PAD).all()
    assert ((labels == END).sum(1) == 1).all()


def test_rows_without_labels_make_a_batch_without_them():
    assert set(COLLATE([{"input_ids": [5, END]}, {"input_ids": [END]}])) == {"input_ids", "attention_mask"}


def test_a_sentence_longer_than_a_batch_is_told():
    with pytest.raises(RecipeError, match=r"data\.batch_tokens=10 is less than the 21 subwords"):
        batches_of(pairs(), 10, seed=0)
