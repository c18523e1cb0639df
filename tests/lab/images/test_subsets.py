"""Parts of the training images: the number of each class, and reproducibility from the seed."""

import pytest
import torch

from composer_ls.errors import RecipeError
from composer_ls.lab.images.subsets import divide

LABELS = torch.cat([torch.full((count,), label) for label, count in enumerate((100, 60, 8))])
LABELS = LABELS[torch.randperm(len(LABELS), generator=torch.Generator().manual_seed(3))]


def counts(indices):
    return LABELS[indices].bincount(minlength=3).tolist()


def test_the_same_fraction_of_every_class_is_held_out():
    held_out, kept = divide(LABELS, 3, validation=0.25)
    assert counts(held_out) == [25, 15, 2]
    assert torch.equal(torch.cat([held_out, kept]).sort().values, torch.arange(len(LABELS)))
    assert counts(divide(LABELS, 3, validation=43)[0]) == [26, 15, 2]


def test_equally_many_of_every_class_are_trained_on_as_far_as_there_are_so_many():
    assert counts(divide(LABELS, 3, examples=23)[1]) == [8, 8, 7]
    assert counts(divide(LABELS, 3, examples=50)[1]) == [21, 21, 8]
    assert counts(divide(LABELS, 3, validation=0.25, examples=40)[1]) == [17, 17, 6]


def test_the_seed_alone_decides_and_more_examples_are_a_superset():
    held_out, kept = (set(part.tolist()) for part in divide(LABELS, 3, validation=30, examples=20))
    assert not held_out & kept
    assert kept == set(divide(LABELS, 3, examples=20)[1].tolist())
    assert kept < set(divide(LABELS, 3, examples=40)[1].tolist())
    assert kept != set(divide(LABELS, 3, examples=20, seed=1)[1].tolist())
    assert held_out != set(divide(LABELS, 3, validation=30, seed=1)[0].tolist())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"validation": 200},
            r"data.validation=200 holds out 200 of 168 training images, but each of the 3 classes",
        ),
        ({"validation": 5}, r"data.validation=5 holds out 5 of 168 training images"),
        ({"validation": 0.999}, r"data.validation=0.999 holds out 168 of 168"),
        ({"examples": 2}, r"data.examples is 2, but must be from 3, one per class, to 168, .* images there are$"),
        ({"validation": 68, "examples": 101}, r"to 100, the number of .* besides those that data.validation holds out"),
    ],
)
def test_what_cannot_be_divided_is_refused(arguments, message):
    with pytest.raises(RecipeError, match=message):
        divide(LABELS, 3, **arguments)
