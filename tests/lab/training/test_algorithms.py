"""The `algorithms` mapping of a recipe."""

import composer.algorithms
import pytest
import torch

from composer_ls import LabelSmoothing, MaxSup, OnlineLabelSmoothing
from composer_ls.errors import RecipeError
from composer_ls.lab.training.algorithms import build_algorithms
from composer_ls.smoothing import cosine


def test_label_smoothing_is_ours_and_the_others_are_composers():
    built = build_algorithms({"label_smoothing": {"smoothing": 0.2}, "mixup": {"alpha": 0.3}, "channels_last": {}})
    assert [type(algorithm) for algorithm in built] == [
        LabelSmoothing,
        composer.algorithms.MixUp,
        composer.algorithms.ChannelsLast,
    ]
    assert built[0].smoothing == 0.2


def test_composers_own_label_smoothing_can_be_had_to_compare_with():
    (smoothing,) = build_algorithms({"label_smoothing": {"smoothing": 0.2, "implementation": "composer"}})
    assert type(smoothing) is composer.algorithms.LabelSmoothing
    assert smoothing.smoothing == 0.2
    (ours,) = build_algorithms({"label_smoothing": {"implementation": "composer_ls"}})
    assert type(ours) is LabelSmoothing


def test_schedules_and_the_other_methods_are_written_in_a_recipe():
    schedule = {"schedule": "cosine", "start": 0.2, "end": 0.0}
    built = build_algorithms(
        {
            "label_smoothing": {"smoothing": schedule},
            "max_sup": {"strength": 0.1},
            "online_label_smoothing": {"smoothing": 0.4},
        }
    )
    assert [type(algorithm) for algorithm in built] == [LabelSmoothing, MaxSup, OnlineLabelSmoothing]
    assert built[0].smoothing == cosine(0.2, 0.0)
    (by_class,) = build_algorithms({"label_smoothing": {"smoothing": [0.1, 0.2]}})
    assert by_class.smoothing.tolist() == pytest.approx([0.1, 0.2])


def test_null_switches_an_algorithm_off():
    assert build_algorithms({"mixup": None, "label_smoothing": None}) == []


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ({"cutmixx": {}}, "unknown key algorithms.cutmixx: did you mean cutmix\\? allowed are "),
        ({"mixup": {"beta": 1}}, "unknown key algorithms.mixup.beta: allowed are alpha, interpolate_loss"),
        ({"mixup": {"target_key": 2}}, "algorithms.mixup.target_key cannot be set in a recipe"),
        ({"label_smoothing": {"output_key": "logits"}}, "algorithms.label_smoothing.output_key cannot be set"),
        (
            {"label_smoothing": {"implementation": "timm"}},
            "algorithms.label_smoothing.implementation is 'timm', but must be composer_ls or composer",
        ),
        (
            {
                "label_smoothing": {
                    "implementation": "composer",
                    "smoothing": {"schedule": "linear", "start": 0, "end": 0.1},
                }
            },
            "but Composer's own LabelSmoothing takes one number: give one, or leave out implementation: composer",
        ),
        (
            {"label_smoothing": {"implementation": "composer", "smoothing": [0.1, 0.2]}},
            r"smoothing is \[0.1, 0.2\], but Composer's own LabelSmoothing takes one number",
        ),
        (
            {"label_smoothing": {"implementation": "composer", "prior": "unigram"}},
            "unknown key algorithms.label_smoothing.prior: allowed are smoothing",
        ),
        (
            {"label_smoothing": {"smoothing": 2}},
            "algorithms.label_smoothing.smoothing is 2, but must be a number from 0 to 1",
        ),
        (
            {"label_smoothing": {"smoothing": "a"}},
            "algorithms.label_smoothing.smoothing is 'a', but must be a number from 0 to 1",
        ),
        ({"max_sup": {"strength": 1}}, "algorithms.max_sup.strength is 1, but must be a number from 0 up to, but not"),
        ({"max_sup": {"smoothing": 0.1}}, "unknown key algorithms.max_sup.smoothing: .*allowed are strength"),
        (
            {"online_label_smoothing": {"smoothing": -1}},
            "is -1, but must be a number from 0 to 1, .* or a schedule such as",
        ),
        ({"label_smoothing": {"smoothing": {"schedule": "linear", "start": 0}}}, "a schedule is written as"),
    ],
)
def test_a_wrong_entry_is_named_with_what_is_allowed(mapping, message):
    with pytest.raises(RecipeError, match=message):
        build_algorithms(mapping)


def test_the_unigram_prior_is_the_frequency_of_training_labels():
    (smoothing,) = build_algorithms({"label_smoothing": {"prior": "unigram"}}, 3, lambda: torch.tensor([3, 1, 0]))
    assert smoothing.prior.tolist() == [0.75, 0.25, 0]
    (uniform,) = build_algorithms({"label_smoothing": {"prior": "uniform"}}, 3)
    assert uniform.prior is None


def test_a_prior_of_another_name_is_refused():
    with pytest.raises(RecipeError, match="prior is 'bigram', but must be uniform, unigram"):
        build_algorithms({"label_smoothing": {"prior": "bigram"}}, 3)
