"""How recipes differ, and names for that."""

import pytest

from composer_ls.lab.compare.settings import names_of_settings, other_keys
from composer_ls.lab.recipe.reading import load_recipe


def recipes(*overrides):
    return [load_recipe("digits-mlp", some) for some in overrides]


def test_smoothing_seed_and_places_are_no_settings():
    same = recipes(
        [], ["algorithms.label_smoothing.smoothing=0"], ["algorithms.label_smoothing=null"], ["seed=5"],
        ["data.root=elsewhere"], ["data.workers=3"], ["device=cpu"], ["checkpoints.keep=true"], ["description=other"],
    )  # fmt: skip
    assert other_keys(same) == []
    assert names_of_settings(same) == [""] * 9


@pytest.mark.parametrize(
    ("overrides", "names"),
    [
        ([[], ["algorithms.mixup={alpha: 0.2}"]], ["plain", "mixup(alpha 0.2)"]),
        ([["algorithms.mixup=null"], ["algorithms.mixup={}"]], ["plain", "mixup"]),
        (
            [["algorithms.mixup={}"], ["algorithms.cutmix={alpha: 1.0}"], ["algorithms={}"]],
            ["mixup", "cutmix(alpha 1)", "plain"],
        ),
        (
            [["algorithms.mixup={alpha: 0.2}"], ["algorithms.mixup={alpha: 0.4}"]],
            ["alpha 0.2", "alpha 0.4"],
        ),
        ([["model.name=mlp"], ["model.name=cnn"]], ["model mlp", "model cnn"]),
        ([["data.batch_size=32"], ["data.batch_size=64"]], ["batch_size 32", "batch_size 64"]),
        (
            [["algorithms.label_smoothing.spread=others"], ["algorithms.label_smoothing.smoothing=0"]],
            ["label_smoothing(spread others)", "plain"],
        ),
        (
            [["optimizer.name=sgd", "schedule.name=constant"], ["optimizer.name=adamw", "schedule.name=constant"], []],
            [
                "optimizer sgd, schedule constant",
                "optimizer adamw, schedule constant",
                "optimizer adamw, schedule cosine",
            ],
        ),
    ],
)
def test_a_setting_is_called_by_what_differs(overrides, names):
    assert names_of_settings(recipes(*overrides)) == names


def test_keys_of_the_same_name_are_told_apart():
    pair = recipes(
        ["algorithms.mixup={alpha: 0.2}", "algorithms.cutmix={alpha: 1}"],
        ["algorithms.mixup={alpha: 0.3}", "algorithms.cutmix={alpha: 2}"],
    )
    first, second = names_of_settings(pair)
    assert first == "algorithms.cutmix.alpha 1, algorithms.mixup.alpha 0.2"
    assert second != first


def test_methods_of_smoothing_are_settings_and_their_numbers_are_not():
    off = "algorithms.label_smoothing=null"
    found = names_of_settings(
        recipes(
            ["algorithms.label_smoothing.smoothing=0"],
            [],
            [off, "algorithms.max_sup={strength: 0.2}"],
            [off, "algorithms.max_sup={}"],
            [off, "algorithms.max_sup={strength: 0}"],
            [off, "algorithms.online_label_smoothing={smoothing: 0.5}", "algorithms.mixup={}"],
        )
    )
    expected = ["plain", "label_smoothing", "max_sup", "max_sup", "plain", "mixup, online_label_smoothing"]
    assert found == expected


def test_a_schedule_is_a_setting():
    schedule = "{schedule: linear, start: 0, end: 0.1}"
    plain, other = recipes([], [f"algorithms.label_smoothing.smoothing={schedule}"])
    assert plain.smoothing == other.smoothing == 0.1
    assert names_of_settings([plain, other])[0] != names_of_settings([plain, other])[1]
    assert plain.identity() != other.identity()


def test_numbers_that_differ_in_the_seventh_digit_have_names_that_differ():
    names = names_of_settings(recipes(["optimizer.weight_decay=1.0e-6"], ["optimizer.weight_decay=1.0000001e-6"]))
    assert names == ["weight_decay 1e-06", "weight_decay 1.0000001e-06"]
