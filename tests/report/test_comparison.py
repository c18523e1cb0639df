"""What is concluded from runs: outcomes follow from intervals, in the right direction, and are worded with care."""

import math

import pytest
from comparison_support import make_comparison, make_run

from composer_ls.errors import InputError
from composer_ls.report.comparison import Difference, Verdict, compare_runs
from composer_ls.report.runs import read_runs
from composer_ls.report.statistics import interval_of_mean, paired_p_value
from composer_ls.report.tasks import CLASSIFICATION

ACCURACY, NLL = CLASSIFICATION.metrics[:2]


def difference(values, metric=ACCURACY, smoothing=0.1, corrected_p=None):
    interval = interval_of_mean(values) if values else None
    p = corrected_p if corrected_p is not None else paired_p_value(interval) if interval else math.nan
    return Difference("", smoothing, metric, interval, p)


def sentence(*differences):
    return Verdict("", differences[0].metric, differences).sentence


CLEAR, UNCLEAR, SMALL = [0.30, 0.31, 0.32], [-0.3, 0.1, 0.5], [-0.01, 0.0, 0.02]


@pytest.mark.parametrize(
    ("values", "metric", "outcome"),
    [
        (CLEAR, ACCURACY, "helps"),
        ([-value for value in CLEAR], ACCURACY, "hurts"),
        (CLEAR, NLL, "hurts"),
        ([-value for value in CLEAR], NLL, "helps"),
        (UNCLEAR, ACCURACY, "unclear"),
        (SMALL, ACCURACY, "small"),
        (SMALL, NLL, "unclear"),  # a hundredth of a nat is worth seeing
        ([0.5], ACCURACY, "one seed"),
        ([], ACCURACY, "no pair"),
        ([0.0, 0.0, 0.0], ACCURACY, "equal"),
        ([0.5, 0.5, 0.5], ACCURACY, "constant"),
        ([-0.5, -0.5], NLL, "constant"),
    ],
)
def test_the_outcome_follows_from_the_interval(values, metric, outcome):
    assert difference(values, metric).outcome == outcome


def test_one_factor_is_one_plain_sentence():
    assert sentence(difference(CLEAR, corrected_p=0.01)) == "accuracy +0.31 points [0.29, 0.33], 3 seeds: helps"
    assert sentence(difference(CLEAR, NLL, corrected_p=0.01)) == "NLL +0.3100 nats [0.2852, 0.3348], 3 seeds: hurts"
    assert (
        sentence(difference(CLEAR, corrected_p=0.2))
        == "accuracy +0.31 points [0.29, 0.33], 3 seeds: helps (not after correction)"
    )
    assert (
        sentence(difference(UNCLEAR))
        == "accuracy +0.10 points [-0.89, 1.09], 3 seeds: no evidence either way (about 128 seeds would show 0.1 points)"
    )
    assert (
        sentence(difference(SMALL))
        == "accuracy +0.00 points [-0.03, 0.04], 3 seeds: no difference as large as 0.1 points"
    )
    assert sentence(difference([0.28])) == "accuracy +0.28 points, 1 seed: nothing can be said from one seed"
    assert sentence(difference([])) == "accuracy: no seed was run both with and without smoothing"
    assert sentence(difference([0, 0])) == "accuracy +0.00 points, 2 seeds: no difference at any seed"
    assert (
        sentence(difference([0.5, 0.5]))
        == "accuracy +0.50 points, 2 seeds: no verdict (the same at every seed: no spread to judge by)"
    )


def test_several_factors_are_one_sentence_too():
    found = sentence(
        difference(CLEAR, smoothing=0.05, corrected_p=0.01),
        difference(UNCLEAR, smoothing=0.1),
        difference([2.0, 2.1, 2.2], smoothing=0.2, corrected_p=0.01),
    )
    assert found == (
        "accuracy, 3 seeds: helps at 0.05 (+0.31 points [0.29, 0.33]) and 0.2 (+2.10 points [1.85, 2.35]); "
        "no evidence either way at 0.1 (+0.10 points [-0.89, 1.09]; about 128 seeds would show 0.1 points)"
    )


def test_factors_with_different_numbers_of_seeds_each_say_theirs():
    found = sentence(difference(CLEAR, smoothing=0.05, corrected_p=0.01), difference([0.2], smoothing=0.1))
    assert "helps at 0.05 (+0.31 points [0.29, 0.33]; 3 seeds)" in found
    assert "nothing can be said from one seed at 0.1 (+0.20 points; 1 seed)" in found


def test_a_huge_number_of_seeds_is_not_spelt_out():
    assert "over 10,000 seeds would show 0.1 points" in sentence(difference([-9.0, 9.0, 0.0]))


@pytest.fixture(scope="module")
def comparison(tmp_path_factory):
    root = make_comparison(tmp_path_factory.mktemp("runs"), (0.0, 0.05, 0.1), 4, ((), ("algorithms.mixup={}",)))
    return compare_runs(root, *read_runs(root))


def test_runs_are_sorted_by_setting_factor_and_seed(comparison):
    assert {
        name: {factor: list(seeds) for factor, seeds in factors.items()} for name, factors in comparison.runs.items()
    } == {name: {factor: [0, 1, 2, 3] for factor in (0.0, 0.05, 0.1)} for name in ("plain", "mixup")}


def test_differences_are_paired_by_seed_within_a_setting(comparison):
    runs = comparison.runs["mixup"]
    expected = interval_of_mean(
        [100 * (runs[0.1][seed].values["accuracy"] - runs[0.0][seed].values["accuracy"]) for seed in range(4)]
    )
    assert comparison.differences["mixup", 0.1, "accuracy"].interval == pytest.approx(expected)
    assert comparison.mean(NLL, "plain", 0.0).mean == pytest.approx(
        sum(run.values["nll"] for run in comparison.runs["plain"][0.0].values()) / 4
    )


def test_only_seeds_that_were_run_both_ways_are_paired(tmp_path):
    make_comparison(tmp_path, (0.0, 0.1), 3)
    make_run(tmp_path / "more", 0.1, seed=7)
    found = compare_runs(tmp_path, *read_runs(tmp_path))
    assert len(found.runs[""][0.1]) == 4
    assert found.differences["", 0.1, "nll"].interval.size == 3


def test_the_correction_counts_every_difference(comparison):
    assert comparison.tests == 2 * 2 * len(CLASSIFICATION.metrics)
    for one in comparison.differences.values():
        assert one.corrected_p >= paired_p_value(one.interval)


def test_a_warning_names_what_gets_worse(comparison):
    assert "ECE gets worse at 0.05 and 0.1" in comparison.warnings("plain")
    assert not any("accuracy" in warning for warning in comparison.warnings("plain"))


def test_without_a_baseline_or_without_smoothing_there_is_no_verdict(tmp_path):
    make_comparison(tmp_path / "a", (0.1, 0.2), 2)
    make_comparison(tmp_path / "b", (0.0,), 2)
    for name in "ab":
        found = compare_runs(tmp_path / name, *read_runs(tmp_path / name))
        assert found.verdicts("") == []
        assert found.warnings("") == []
        assert found.tests == 0


def test_numbers_in_names_sort_by_size(tmp_path):
    make_comparison(tmp_path, (0.0,), 1, (("data.batch_size=256",), ("data.batch_size=32",), ("data.batch_size=64",)))
    found = compare_runs(tmp_path, *read_runs(tmp_path))
    assert list(found.runs) == ["batch_size 32", "batch_size 64", "batch_size 256"]


def test_the_same_run_twice_counts_once(tmp_path):
    make_run(tmp_path / "a", 0.1)
    make_run(tmp_path / "b", 0.1)
    found = compare_runs(tmp_path, *read_runs(tmp_path))
    assert [one.reason for one in found.left_out] == [f"it is the same run as {tmp_path / 'a'}"]


def test_an_empty_folder_and_several_recipes_are_refused(tmp_path):
    with pytest.raises(InputError, match="no finished runs in .*: `composer-ls compare` makes some"):
        compare_runs(tmp_path, *read_runs(tmp_path))
    (make_run(tmp_path / "a") / "result.json").unlink()
    with pytest.raises(InputError, match="no finished runs in .*a: it has begun, but not finished"):
        compare_runs(tmp_path, *read_runs(tmp_path))
    make_run(tmp_path / "b")
    make_run(tmp_path / "c", recipe="digits-cnn")
    with pytest.raises(InputError, match=r"holds runs of several recipes \(digits-cnn, digits-mlp\)"):
        compare_runs(tmp_path, *read_runs(tmp_path))
