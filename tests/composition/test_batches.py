"""Finding targets in a batch, and replacing them."""

from collections import UserDict, namedtuple
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from composer_ls.composition.batches import (
    TargetKeyError,
    as_tensor,
    cloned,
    form_of,
    get,
    has,
    leaves,
    may_have_targets,
    path_of,
    with_target,
)

Pair = namedtuple("Pair", ["inputs", "labels"])
X, Y, NEW = torch.zeros(2), torch.tensor([0, 1]), torch.tensor([1, 0])


@dataclass
class Fields:
    inputs: torch.Tensor
    labels: torch.Tensor


BATCHES = {
    "tuple": ((X, Y), 1),
    "list": ([X, Y], 1),
    "last": ((X, Y), -1),
    "named tuple": (Pair(X, Y), 1),
    "named tuple by name": (Pair(X, Y), "labels"),
    "dict": ({"inputs": X, "labels": Y}, "labels"),
    "dict without a key": ({"inputs": X, "targets": Y}, 1),
    "user dict": (UserDict(inputs=X, labels=Y), "labels"),
    "object": (Fields(X, Y), "labels"),
    "getter": ({"inputs": X, "labels": Y}, lambda batch: batch["labels"]),
    "pair": ({"inputs": X, "a": [X, Y]}, (lambda b: b["a"][1], lambda b, v: (b["a"].__setitem__(1, v), b)[1])),
    "dots": ({"a": {"b": Y}}, "a.b"),
    "dots in a key": ({"a.b": Y, "a": {"b": X}}, "a.b"),
    "path": ([X, {"a": Pair(X, Fields(X, Y))}], [1, "a", "labels", "labels"]),
}


@pytest.mark.parametrize(("batch", "key"), BATCHES.values(), ids=BATCHES)
def test_targets_are_found_and_replaced_and_the_batch_that_others_hold_is_never_changed(batch, key):
    assert get(batch, key) is Y
    before = list(leaves(batch))
    new = with_target(batch, key, NEW)
    assert type(new) is type(batch)
    assert get(new, key) is NEW
    assert [a is b for (_, a), (_, b) in zip(before, leaves(batch), strict=True)] == [True] * len(before)
    changed = [a is not b for (_, a), (_, b) in zip(before, leaves(new), strict=True)]
    assert sum(changed) == 1


@pytest.mark.parametrize(
    ("batch", "key", "message"),
    [
        ((X, Y), 2, r"no targets at target_key=2: it is a tuple of 2. .* as in LabelSmoothing\(target_key=1\)"),
        ({"x": X, "label_ids": Y}, 1, r"target_key=1: it is a dict with the keys 'x', 'label_ids'"),
        ({"x": X, "labels": Y, "y": Y}, 1, r"as in LabelSmoothing\(target_key='labels'\)"),
        ({"a": {"b": Y}}, "a.c", r"target_key='a.c': it is a dict with the keys 'a'"),
        (Fields(X, Y), "target", r"it is a Fields"),
        ((X, Y), ("labels", 0), r"for nested containers"),
        ({"y": Y}, lambda batch: batch["y"] + 1, r"a getter that returns something which the batch does not hold"),
    ],
)
def test_a_key_that_leads_nowhere_names_what_there_is_and_the_way_out(batch, key, message):
    with pytest.raises(TargetKeyError, match=message):
        path_of(batch, key)


def test_lists_and_arrays_of_numbers_become_tensors_and_all_else_stays():
    for labels in ([0, 1], (0, 1), np.array([0, 1]), [np.int64(0), np.int64(1)]):
        assert torch.equal(as_tensor(labels, torch.device("cpu")), Y)
    for other in (Y, None, [Y, Y], "labels", ["cat", "dog"], np.array(["cat", "dog"])):
        assert as_tensor(other, torch.device("cpu")) is other


def test_a_clone_shares_no_tensor():
    batch = {"a": [X, Pair(X, Y)], "text": "words", "ids": [1, 2]}
    for (path, a), (other, b) in zip(leaves(batch), leaves(cloned(batch)), strict=True):
        assert path == other
        assert (a is not b and torch.equal(a, b)) if isinstance(a, torch.Tensor) else a == b


def test_the_form_of_a_batch_is_where_its_tensors_are_and_of_what_kind():
    x, y = torch.zeros(8, 3), torch.zeros(8).long()
    assert form_of((x, y)) == form_of((x[:1], y[:1])) != form_of((x, y, y))
    assert form_of((x, y)) != form_of((x, torch.zeros(8, 5)))
    assert form_of({"x": x, "y": y}) != form_of({"x": x})
    boxes = [{"boxes": torch.zeros(n, 4), "name": name} for n, name in ((2, "a"), (3, None))]
    assert form_of((x, boxes)) == form_of((x, boxes[:1]))
    assert form_of([{"x": x}, {"x": x}]) == form_of([{"x": x}])


def test_targets_that_are_none_are_no_targets():
    assert has({"labels": torch.zeros(2)}, "labels")
    assert not has({"labels": None}, "labels")
    assert not has({"x": None}, lambda batch: batch.get("labels"))
    assert may_have_targets({"labels": None, "target": 1}, 1)
    assert not may_have_targets({"x": 1}, 1)
