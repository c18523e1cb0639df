"""Runs are paired only if they were trained and tested on the same data, by what their folders hold."""

import json

import pytest
from comparison_support import make_comparison, make_run
from safetensors.torch import load_file, save_file

from composer_ls.lab.compare.comparison import compare_runs
from composer_ls.lab.compare.measured_runs import read_runs
from composer_ls.lab.compare.same_data import data_differences


def on_other_data(folder, *, classes=None, train=None, relabelled=(), examples=None, part="", **others):
    """Rewrite a run as if it had been done on other data."""
    result = json.loads((folder / "result.json").read_text()) | others
    if classes:
        result["classes"] = classes
    if train:
        result["examples"]["train"] = train
    predictions = load_file(folder / "predictions.safetensors")
    for index in relabelled:
        predictions[f"{part}labels"][index] = (predictions[f"{part}labels"][index] + 1) % 5
    if examples:
        predictions = {name: tensor[:examples].clone() for name, tensor in predictions.items()}
    save_file(predictions, folder / "predictions.safetensors")
    (folder / "result.json").write_text(json.dumps(result))


def comparison(folder):
    return compare_runs(folder, *read_runs(folder))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"relabelled": (3, 5, 8)}, "3 of 240 test labels differ"),
        ({"examples": 200}, "200 test labels instead of 240"),
        ({"image_shape": [1, 16, 16]}, "images of shape [1, 16, 16] instead of [1, 8, 8]"),
        ({"preprocessing": {"mean": [0.1]}}, "preprocessing {'mean': [0.1]} instead of {'mean': [0.3]}"),
        ({"train": 1400}, "1,400 train examples instead of 1,437"),
        ({"classes": ["a", "b", "c", "d", "e", "f"]}, "6 classes instead of 5"),
        ({"classes": ["a", "b", "c", "d", "x"]}, "other classes, such as x instead of e"),
    ],
)
def test_runs_on_other_data_are_named_and_left_out(tmp_path, changes, words):
    make_comparison(tmp_path, (0.0, 0.1), 3)
    for result in tmp_path.rglob("result.json"):
        on_other_data(result.parent, classes=list("abcde"), image_shape=[1, 8, 8], preprocessing={"mean": [0.3]})
    odd = tmp_path / "0-0.1" / "2"
    on_other_data(odd, **changes)
    found = comparison(tmp_path)
    assert found.differences["", 0.1, "nll"].interval.size == 2
    (left,) = found.left_out
    assert left.folder == odd
    assert words in left.reason
    assert "Pairs need the same data: run again with --overwrite" in left.reason


def test_where_all_runs_with_smoothing_saw_another_test_set_nothing_is_paired(tmp_path):
    make_comparison(tmp_path, (0.0, 0.1), 5)
    for seed in range(5):
        on_other_data(tmp_path / "0-0.1" / str(seed), relabelled=(0, 1))
    found = comparison(tmp_path)
    assert len(found.runs[""]) == 1
    assert found.verdicts("") == []
    assert len(found.left_out) == 5


def test_the_test_set_of_most_pairs_stays(tmp_path):
    make_comparison(tmp_path, (0.0, 0.1, 0.2), 3)
    for factor in (0.0, 0.1, 0.2):
        on_other_data(tmp_path / f"0-{factor}" / "0", relabelled=(7,))
    found = comparison(tmp_path)
    assert all(set(seeds) == {1, 2} for seeds in found.runs[""].values())
    assert len(found.left_out) == 3


def test_a_pair_needs_one_validation_part_but_seeds_may_have_several(tmp_path):
    for smoothing in (0.0, 0.1):
        for seed in range(3):
            make_run(tmp_path / f"{smoothing}-{seed}", smoothing, seed, held_out=0.0)
            on_other_data(tmp_path / f"{smoothing}-{seed}", relabelled=(seed,), part="validation.")
    found = comparison(tmp_path)
    assert found.left_out == []
    on_other_data(tmp_path / "0.1-2", relabelled=(9,), part="validation.")
    found = comparison(tmp_path)
    assert [one.folder.name for one in found.left_out] == ["0.1-2"]
    assert "1 of 240 validation labels differ" in found.left_out[0].reason
    assert found.differences["", 0.1, "nll"].interval.size == 2


@pytest.mark.parametrize("recipe", ["camvid-unet", "multi30k-transformer"])
def test_other_tasks_are_held_to_it_too(tmp_path, recipe):
    whole, part = make_run(tmp_path / "a", recipe=recipe), make_run(tmp_path / "b", 0.1, recipe=recipe)
    assert comparison(tmp_path).left_out == []
    on_other_data(part, examples=20)
    runs, _ = read_runs(tmp_path)
    assert data_differences(runs[1], runs[0])
    assert [one.folder for one in comparison(tmp_path).left_out] in ([part], [whole])
