"""Conclusions from runs: outcomes follow from intervals, have the right direction, and are worded carefully."""

import math

import pytest
from comparison_support import make_comparison, make_run

from composer_ls.errors import InputError
from composer_ls.lab.compare.comparison import Difference, Verdict, compare_runs
from composer_ls.lab.compare.measured_runs import read_runs
from composer_ls.lab.compare.statistics import holm, interval_of_mean, paired_p_value
from composer_ls.lab.tasks.classification.report import REPORT as CLASSIFICATION

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
        ([0.5], ACCURACY, "few"),
        ([0.5, 0.6], ACCURACY, "few"),  # whose interval would be [-0.09, 1.19]
        ([0.5, 0.5], NLL, "few"),
        ([], ACCURACY, "no pair"),
        ([0.0, 0.0, 0.0], ACCURACY, "equal"),
        ([0.5, 0.5, 0.5], ACCURACY, "constant"),
        ([-0.5, -0.5, -0.5], NLL, "constant"),
    ],
)
def test_the_outcome_follows_from_the_interval(values, metric, outcome):
    assert difference(values, metric).outcome == outcome


def test_what_is_not_shown_after_correction_is_a_hint():
    assert difference(CLEAR, corrected_p=0.06).outcome == "may help"
    assert difference(CLEAR, NLL, corrected_p=0.06).outcome == "may hurt"
    assert difference(UNCLEAR, corrected_p=0.06).outcome == "unclear"
    assert Verdict("", ACCURACY, (difference(CLEAR, corrected_p=0.06),)).tone == "none"


def test_one_factor_is_one_plain_sentence():
    assert sentence(difference(CLEAR, corrected_p=0.01)) == "accuracy +0.31 points [0.29, 0.33], 3 seeds: helps"
    assert sentence(difference(CLEAR, NLL, corrected_p=0.01)) == "NLL +0.3100 nats [0.2852, 0.3348], 3 seeds: hurts"
    assert (
        sentence(difference(CLEAR, corrected_p=0.2))
        == "accuracy +0.31 points [0.29, 0.33], 3 seeds: a hint that it helps (not shown after correction)"
    )
    assert (
        sentence(difference(UNCLEAR))
        == "accuracy +0.10 points [-0.89, 1.09], 3 seeds: no evidence either way (0.1 points would take about 128 seeds to show)"
    )
    assert (
        sentence(difference(SMALL))
        == "accuracy +0.00 points [-0.03, 0.04], 3 seeds: no difference as large as 0.1 points"
    )
    assert sentence(difference([0.28])) == "accuracy +0.28 points, 1 seed: nothing can be said from so few seeds"
    assert sentence(difference([])) == "accuracy: no seed was run both with and without smoothing"
    assert sentence(difference([0, 0, 0])) == "accuracy +0.00 points, 3 seeds: no difference at any seed"
    assert (
        sentence(difference([0.5, 0.5, 0.5]))
        == "accuracy +0.50 points, 3 seeds: no verdict (the same at every seed: no spread to judge by)"
    )


def test_several_factors_are_one_sentence_too():
    found = sentence(
        difference(CLEAR, smoothing=0.05, corrected_p=0.01),
        difference(UNCLEAR, smoothing=0.1),
        difference([2.0, 2.1, 2.2], smoothing=0.2, corrected_p=0.01),
    )
    assert found == (
        "accuracy, 3 seeds: helps at 0.05 (+0.31 points [0.29, 0.33]) and 0.2 (+2.10 points [1.85, 2.35]); "
        "no evidence either way at 0.1 (+0.10 points [-0.89, 1.09]; 0.1 points would take about 128 seeds to show)"
    )


def test_factors_with_different_numbers_of_seeds_each_say_theirs():
    found = sentence(difference(CLEAR, smoothing=0.05, corrected_p=0.01), difference([0.2], smoothing=0.1))
    assert "helps at 0.05 (+0.31 points [0.29, 0.33]; 3 seeds)" in found
    assert "nothing can be said from so few seeds at 0.1 (+0.20 points; 1 seed)" in found


def test_a_huge_number_of_seeds_is_not_spelt_out():
    assert "0.1 points would take over 1,000 seeds to show" in sentence(difference([-9.0, 9.0, 0.0]))


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


def test_the_purpose_is_corrected_for_its_own_differences_and_the_rest_for_all(comparison):
    assert comparison.tests == 2 * 2 * len(CLASSIFICATION.metrics)
    everything = list(comparison.differences.values())
    over_all = holm([paired_p_value(one.interval) for one in everything])
    own = [one for one in everything if one.metric == comparison.purpose]
    over_own = holm([paired_p_value(one.interval) for one in own])
    assert comparison.purpose == ACCURACY
    assert [one.corrected_p for one in own] == over_own
    assert over_own < [p for one, p in zip(everything, over_all, strict=True) if one.metric == ACCURACY]
    for one, p in zip(everything, over_all, strict=True):
        if one.metric != ACCURACY:
            assert one.corrected_p == min(1, 2 * p)


def test_the_purpose_can_be_any_metric_of_the_task_and_no_other(comparison):
    runs = [run for _, _, seeds in comparison for run in seeds.values()]
    assert compare_runs(comparison.folder, runs, (), "nll").purpose == NLL
    with pytest.raises(InputError, match="--for is 'bleu', but must be accuracy, nll, brier, ece, ece_scaled or aurc"):
        compare_runs(comparison.folder, runs, (), "bleu")


def test_runs_are_judged_on_the_validation_part_if_most_have_one(tmp_path):
    for smoothing in (0.0, 0.1):
        for seed in range(2):
            make_run(tmp_path / f"{smoothing}-{seed}", smoothing, seed, held_out=3 * smoothing)
    found = compare_runs(tmp_path, *read_runs(tmp_path))
    assert (found.part, found.on_test.part, found.on_test.on_test) == ("validation", "test", None)
    # The test parts are equal: only what was held out can have said that smoothing helps.
    assert found.differences["", 0.1, "accuracy"].interval.mean > 1
    assert found.on_test.differences["", 0.1, "accuracy"].interval.mean == 0
    for seed in range(4):
        make_run(tmp_path / f"without-{seed}", 0.1, seed, "data.batch_size=32")
        mixed = compare_runs(tmp_path, *read_runs(tmp_path))
        assert mixed.part == ("validation" if seed < 3 else "test")
        told = [one.folder.name for one in mixed.left_out if "has no validation part" in one.reason]
        assert told == ([f"without-{other}" for other in range(seed + 1)] if seed < 3 else [])
    assert mixed.on_test is None
    assert mixed.differences["batch_size 64", 0.1, "accuracy"].interval.mean == 0


def test_from_two_pairs_no_interval_no_verdict_and_no_number_of_seeds_is_said(tmp_path):
    make_comparison(tmp_path, (0.0, 0.1), 2)
    found = compare_runs(tmp_path, *read_runs(tmp_path))
    assert {one.outcome for one in found.differences.values()} == {"few"}
    for verdict in found.verdicts(""):
        assert "2 seeds: nothing can be said from so few seeds" in verdict.sentence
        assert "[" not in verdict.sentence
        assert "to show" not in verdict.sentence
    assert found.tests == 0


def test_intervals_end_where_what_is_possible_ends(tmp_path):
    for seed, better in enumerate((9.0, 9.0, -9.0)):  # accuracies near 1, 1 and 0
        make_run(tmp_path / f"a{seed}", 0.0, seed, better=-better)
        make_run(tmp_path / f"b{seed}", 0.1, seed, better=better)
    found = compare_runs(tmp_path, *read_runs(tmp_path))
    accuracy = found.mean(ACCURACY, "", 0.1)
    assert (accuracy.low, accuracy.high) == (0, 100)
    difference = found.differences["", 0.1, "accuracy"].interval
    assert (difference.low, difference.high) == (-100, 100)
    assert found.mean(NLL, "", 0.1).low == 0
    assert found.mean(NLL, "", 0.1).high > 5  # which no bound stops


def test_ways_of_smoothing_share_the_runs_without(tmp_path):
    ours, theirs = (f"algorithms.label_smoothing.implementation={name}" for name in ("composer_ls", "composer"))
    for seed in range(2):
        make_run(tmp_path / f"none-{seed}", 0.0, seed, ours)
        make_run(tmp_path / f"ours-{seed}", 0.1, seed, ours, better=0.5)
        make_run(tmp_path / f"theirs-{seed}", 0.1, seed, theirs, better=1.0)
        make_run(tmp_path / f"other-{seed}", 0.1, seed, theirs, "algorithms.mixup={}")
    found = compare_runs(tmp_path, *read_runs(tmp_path))
    shared = [name for name, factors in found.runs.items() if 0.0 in factors]
    assert len(shared) == 2
    assert all(found.differences[name, 0.1, "nll"].interval.size == 2 for name in shared)
    assert all(found.runs[name][0.0] == found.runs[shared[0]][0.0] for name in shared)
    assert len(found.runs) == 3  # what differs otherwise, as mixup, has no share


def test_a_warning_names_what_gets_worse(comparison):
    outcomes = [comparison.differences["plain", factor, "ece"].outcome for factor in (0.05, 0.1)]
    assert outcomes == ["may hurt", "hurts"]
    assert "ECE gets worse at 0.1" in comparison.warnings("plain")  # and a hint is no warning
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


def test_a_run_that_differs_in_its_place_only_is_left_out_for_that(tmp_path):
    make_run(tmp_path / "a", 0.1)
    make_run(tmp_path / "b", 0.1, 0, "data.root=elsewhere", "description=other")
    make_run(tmp_path / "c", 0.1, 0, "description=other")
    found = compare_runs(tmp_path, *read_runs(tmp_path))
    assert [one.reason for one in found.left_out] == [
        f"it has the setting and the seed of {tmp_path / 'a'} and differs only in data.root, which compare does not take for a "
        f"setting",
        f"it is the same run as {tmp_path / 'a'}",
    ]


def test_an_empty_folder_and_several_recipes_are_refused(tmp_path):
    with pytest.raises(InputError, match="no finished runs in .*: create some with `composer-ls compare`"):
        compare_runs(tmp_path, *read_runs(tmp_path))
    (make_run(tmp_path / "a") / "result.json").unlink()
    with pytest.raises(InputError, match="no finished runs in .*a: it has begun, but not finished"):
        compare_runs(tmp_path, *read_runs(tmp_path))
    make_run(tmp_path / "b")
    make_run(tmp_path / "c", recipe="digits-cnn")
    with pytest.raises(InputError, match=r"holds runs of several recipes \(digits-cnn, digits-mlp\)"):
        compare_runs(tmp_path, *read_runs(tmp_path))


def test_methods_are_compared_with_the_same_runs_without_smoothing(tmp_path):
    off = "algorithms.label_smoothing=null"
    for seed in range(4):
        make_run(tmp_path / f"none-{seed}", 0.0, seed)
        make_run(tmp_path / f"label_smoothing-{seed}", 0.1, seed, better=0.5 + 0.01 * seed)
        make_run(tmp_path / f"max_sup-{seed}", 0.0, seed, off, "algorithms.max_sup={}", better=1 + 0.01 * seed)
    comparison = compare_runs(tmp_path, *read_runs(tmp_path))
    assert {setting: [*factors] for setting, factors in comparison.runs.items()} == {
        "label_smoothing": [0.0, 0.1],
        "max_sup": [0.0, 0.1],
    }
    hard = [comparison.runs[setting][0.0] for setting in comparison.runs]
    assert [run.folder for run in hard[0].values()] == [run.folder for run in hard[1].values()]
    assert comparison.tests == 2 * len(comparison.task.metrics)
