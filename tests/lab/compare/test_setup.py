"""What runs trained on what, in words, and what to be careful about."""

from pathlib import Path

from composer_ls.lab.compare.measured_runs import LeftOut
from composer_ls.lab.compare.setup import cautions, failures, name_of_setup, setup_in_words
from composer_ls.lab.recipe.reading import load_recipe

OWN = load_recipe(
    "cifar10-resnet20-fast", ["data.name=imagefolder", "data.root=my/shapes", "data.image_size=32", "duration=3ep"]
)
RESULT = {
    "classes": ["circle", "square", "triangle"],
    "image_shape": [3, 32, 32],
    "examples": {"train": 180, "test": 60},
    "epochs": 3,
    "training": {"steps": 3, "dropped_share": 52 / 180},
}


def test_ones_own_images_are_named_by_their_folder_and_not_by_the_shipped_recipe():
    assert name_of_setup(OWN) == "resnet20 on shapes"
    assert setup_in_words(OWN, RESULT) == (
        "resnet20 on images in my/shapes: 3 classes, 180 training and 60 test images, 3 epochs of 1 step (each epoch "
        "leaves out 29% of the training set)."
    )


def test_what_a_result_does_not_say_is_passed_over():
    assert setup_in_words(OWN, {"steps": 5, "epochs": 0}) == "resnet20 on images in my/shapes: 5 steps."


def test_warnings_that_differ_in_their_numbers_only_are_told_once():
    results = [
        {"warnings": [f"Its NLL of {nll} is high.", "It trained for only 10 steps."]} for nll in ("3.51", "1,204.7")
    ]
    assert cautions(results) == [
        "all runs, for example: Its NLL of 3.51 is high.",
        "all runs: It trained for only 10 steps.",
    ]
    assert cautions([*results, {}])[1] == "2 of 3 runs: It trained for only 10 steps."


def test_many_warnings_and_failures_are_counted():
    results = [{"warnings": [f"Warning {letter}." for letter in "abcdefg"]}]
    assert len(cautions(results)) == 6
    assert cautions(results)[-1] == "and 2 more"
    words = failures([LeftOut(Path(name), "it diverged") for name in "abcd"])
    assert words.startswith("4 runs are left out: a (it diverged); ")
    assert words.endswith("and 1 more, named at the end")


def test_runs_of_other_versions_precisions_and_processes_are_told():
    alike = {"versions": {"torch": "2.7.0", "python": "3.11"}, "precision": "fp32", "hardware": {"processes": 1}}
    other = {"versions": {"torch": "2.4.1", "python": "3.12"}, "precision": "amp_bf16", "hardware": {"processes": 8}}
    assert cautions([alike, alike, {}]) == []
    assert cautions([alike, other]) == [
        "the runs differ in torch (2.4.1, 2.7.0), precision (amp_bf16, fp32), processes (1, 8), which may make a difference by "
        "itself."
    ]
