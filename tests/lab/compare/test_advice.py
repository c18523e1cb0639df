"""Advice: correct for runs with known effects, and none if there is no effect."""

import random
from pathlib import Path

import pytest
import torch
from torch.nn.functional import one_hot

from composer_ls.lab.compare.advice import advise, smallest_not_worse
from composer_ls.lab.compare.comparison import Comparison
from composer_ls.lab.compare.measured_runs import Run, Scores
from composer_ls.lab.tasks.classification.report import REPORT as CLASSIFICATION

FACTORS = (0.0, 0.05, 0.1, 0.2)
ACCURACY, NLL = CLASSIFICATION.metrics[:2]


def drawn(runs, better=0.0, seed=0, examples=240, classes=5):
    """The metrics of runs whose predictions are drawn alike: ``better`` is what the label's logit is raised by."""
    generator = torch.Generator().manual_seed(seed)
    values = []
    for _ in range(runs):
        labels = torch.randint(classes, (examples,), generator=generator)
        logits = torch.randn(examples, classes, generator=generator) + one_hot(labels, classes) * (2 + better)
        values.append(
            {metric.key: metric.compute({"logits": logits, "labels": labels}) for metric in CLASSIFICATION.metrics}
        )
    return values


def comparison(values, seeds=5, purpose=ACCURACY, factors=FACTORS, temperature=None, test=None):
    """A comparison whose runs have ``values(factor, seed)``, and ``test(factor, seed)`` if they held a part out."""

    def a_run(factor, seed):
        judged = Scores(values(factor, seed), None, temperature and temperature(factor))
        if test is None:
            return Run(Path(), None, {}, (), {"test": judged})
        return Run(
            Path(), None, {}, (), {"validation": judged, "test": Scores(test(factor, seed), None, None)}, "validation"
        )

    runs = {"": {factor: {seed: a_run(factor, seed) for seed in range(seeds)} for factor in factors}}
    return Comparison(Path(), CLASSIFICATION, runs, (), purpose)


def shifted(effects, spread=0.002, seed=0, key="accuracy"):
    """Values that differ between factors by ``effects`` in one metric, and by noise in all; seeds are paired."""
    draw = random.Random(seed)
    return lambda factor, seed: {
        metric.key: 0.7 + 0.01 * seed + draw.gauss(0, spread) + (effects[factor] if metric.key == key else 0)
        for metric in CLASSIFICATION.metrics
    }


@pytest.fixture(scope="module")
def alike():
    return drawn(300)


@pytest.mark.parametrize("seeds", [3, 5, 10])
def test_without_any_effect_at_most_one_comparison_in_twenty_says_that_something_helps(alike, seeds):
    draw, helped, used, hinted, number = random.Random(seeds), 0, 0, 0, 1000
    for _ in range(number):
        found = comparison(lambda factor, seed: draw.choice(alike), seeds)
        outcomes = {one.outcome for one in found.differences.values()}
        helped += "helps" in outcomes
        hinted += bool({"helps", "may help"} & outcomes)
        used += advise(found, "").verdict == "use"
    assert helped <= 0.05 * number
    assert used <= 0.05 * number
    assert hinted > 0.15 * number  # which is why hints are not verdicts


def test_predictions_that_are_truly_better_are_recommended():
    by_factor = {0.0: drawn(5), 0.05: drawn(5, seed=1), 0.1: drawn(5, 1.0, 2), 0.2: drawn(5, 1.0, 3)}
    found = advise(comparison(lambda factor, seed: by_factor[factor][seed]), "")
    assert (found.verdict, found.smoothing) == ("use", 0.1)


def test_the_smallest_factor_that_is_not_shown_to_be_worse_than_the_best_is_recommended():
    effects = {0.0: 0.0, 0.05: 0.01, 0.1: 0.02, 0.2: 0.0201}
    chosen = [advise(comparison(shifted(effects, seed=seed)), "").smoothing for seed in range(100)]
    assert chosen.count(0.1) >= 90
    assert set(chosen) <= {0.05, 0.1, 0.2}
    assert smallest_not_worse({0.05: {0: 1.0, 1: 1.1, 2: 0.9}, 0.1: {0: 3.0, 1: 3.2, 2: 3.0}}) == 0.1
    assert smallest_not_worse({0.05: {0: 3.0, 1: 3.3, 2: 3.1}, 0.1: {0: 3.1, 1: 3.2, 2: 3.0}}) == 0.05
    assert smallest_not_worse({0.2: {0: 1.0}}) == 0.2


def test_lower_is_better_where_it_is():
    effects = {0.0: 0.0, 0.05: -0.01, 0.1: -0.02, 0.2: 0.02}
    found = advise(comparison(shifted(effects, key="nll"), purpose=NLL), "")
    assert (found.smoothing, found.chosen.outcome) == (0.1, "helps")
    assert found.headline.startswith("Use smoothing 0.1 for NLL: -0.0")


def test_an_effect_on_the_purpose_is_seen_that_is_lost_among_all_metrics():
    effects = {0.0: 0.0, 0.05: 0.0, 0.1: 0.004, 0.2: 0.0}
    named, other = (
        sum(
            comparison(shifted(effects, seed=seed), purpose=purpose).differences["", 0.1, "accuracy"].outcome == "helps"
            for seed in range(100)
        )
        for purpose in (ACCURACY, NLL)
    )
    assert named > other + 10


def test_where_nothing_is_shown_one_keeps_what_one_has():
    flat = dict.fromkeys(FACTORS, 0.0)
    found = advise(comparison(shifted(flat), temperature=lambda factor: 2.0 if factor == 0 else 0.5), "")
    assert (found.verdict, found.smoothing, found.temperature) == ("keep", None, pytest.approx(2.0))
    assert found.headline == "Nothing is shown to help accuracy: keep what you have"
    assert "To calibrate the network without smoothing, divide its logits by 2.00" in found.remarks
    harmful = advise(comparison(shifted(flat | {0.2: -0.1, 0.1: -0.05})), "")
    assert harmful.headline.endswith("keep what you have, and avoid 0.1 and 0.2, which hurt it")


def test_a_hint_is_told_as_one():
    values = {0.0: [0.0, 0.0, 0.0], 0.05: [0.01, -0.01, 0.002], 0.1: [0.010, 0.012, 0.016], 0.2: [0.0, 0.01, -0.02]}
    found = advise(
        comparison(lambda factor, seed: {m.key: 0.5 + values[factor][seed] for m in CLASSIFICATION.metrics}, seeds=3),
        "",
    )
    assert found.verdict == "keep"
    assert found.remarks[0].startswith(
        "There is a hint that 0.1 helps (+1.27 points [0.51, 2.03], 3 seeds), which more seeds"
    )


def test_the_price_and_the_temperature_of_a_recommendation_are_told():
    base = shifted({0.0: 0.0, 0.05: 0.0, 0.1: 0.02, 0.2: 0.0})

    def values(factor, seed):
        found = base(factor, seed)
        return found | {"aurc": found["aurc"] + (0.1 if factor == 0.1 else 0)}

    found = advise(comparison(values, temperature=lambda factor: 0.8 if factor == 0.1 else 2.0), "")
    assert (found.smoothing, found.worse, found.temperature) == (0.1, ("AURC",), pytest.approx(0.8))
    assert found.maybe_worse == ("Brier score",)
    assert found.remarks[0] == "It makes AURC worse, and there is a hint that it makes Brier score worse"
    assert "To calibrate the network, divide its logits by 0.80" in found.remarks
    assert "This was chosen on the same test examples on which it is reported" in found.remarks


def test_the_test_part_has_no_say_where_a_validation_part_was_held_out():
    flat, better = dict.fromkeys(FACTORS, 0.0), {0.0: 0.0, 0.05: 0.02, 0.1: 0.02, 0.2: 0.02}
    assert advise(comparison(shifted(flat), test=shifted(better)), "").verdict == "keep"
    found = advise(
        comparison(shifted(better, spread=0.0005), test=shifted(dict.fromkeys(FACTORS, -0.1) | {0.0: 0.0})), ""
    )
    assert (found.verdict, found.smoothing) == ("use", 0.05)
    assert found.on_test.interval.mean == pytest.approx(-10, abs=1)
    assert any(
        remark.startswith("On the test examples, which played no part in this, the difference is -")
        for remark in found.remarks
    )


@pytest.mark.parametrize(("factors", "seeds"), [((0.1, 0.2), 5), ((0.0,), 5), ((0.0, 0.1), 1), ((0.0, 0.1), 2)])
def test_too_little_to_judge_by_is_said(factors, seeds):
    found = advise(comparison(shifted(dict.fromkeys(FACTORS, 0.0)), seeds, factors=factors), "")
    assert found.verdict == "unknown"
    assert found.headline.startswith("Nothing can be said yet: run at least 3 seeds")
    assert found.as_dict()["smoothing"] is None


def test_nothing_follows_from_networks_that_have_learnt_nothing():
    def of(learnt):
        def values(factor, seed):
            return {metric.key: 10 * factor + 0.001 * seed * (1 + factor) for metric in CLASSIFICATION.metrics}

        runs = {
            factor: {
                seed: Run(Path(), None, {}, (), {"test": Scores(values(factor, seed), None, None, has_learnt=learnt)})
                for seed in range(5)
            }
            for factor in (0.0, 0.1)
        }
        return advise(Comparison(Path(), CLASSIFICATION, {"": runs}, [], ACCURACY), "")

    assert (of(True).verdict, of(True).smoothing) == ("use", 0.1)
    assert (of(False).verdict, of(False).smoothing) == ("unknown", None)
    assert "no network here is better than one that always answers with the largest class" in of(False).headline


def with_seeds(values):
    """A comparison of runs with accuracies ``values[factor][seed]``, and no other metric that differs."""
    runs = {
        factor: {
            seed: Run(
                Path(), None, {}, (),
                {"test": Scores({m.key: one if m.key == "accuracy" else 0.5 for m in CLASSIFICATION.metrics}, None, None)},
            )
            for seed, one in by_seed.items()
        }
        for factor, by_seed in values.items()
    }  # fmt: skip
    return Comparison(Path(), CLASSIFICATION, {"": runs}, (), ACCURACY)


UNEQUAL = "Not every factor has every seed, so compare the differences rather than the means"


def test_a_factor_is_not_the_best_for_lacking_the_seeds_that_are_hard_nor_worse_for_lacking_the_easy_ones():
    baseline = {17: 0.50, 18: 0.60, 19: 0.70, 20: 0.95, 21: 0.95}
    wobble = {17: 0.0, 18: 1e-4, 19: -1e-4, 20: 2e-4, 21: -2e-4}
    values = {
        0.0: baseline,
        0.05: {seed: one + 0.02 + wobble[seed] for seed, one in baseline.items()},
        0.2: {seed: baseline[seed] + 0.045 - wobble[seed] for seed in (17, 18, 19)},
    }
    found = advise(with_seeds(values), "")
    assert (found.verdict, found.smoothing) == ("use", 0.2)
    assert UNEQUAL in found.remarks
    assert UNEQUAL in found.as_dict()["text"]


def test_factors_without_a_common_seed_are_judged_by_their_own():
    assert smallest_not_worse({0.05: {0: 1.0, 1: 1.1}, 0.1: {2: 3.0, 3: 3.2}}) == 0.05


def test_nothing_is_said_about_seeds_that_all_factors_have():
    found = advise(comparison(shifted({0.0: 0.0, 0.05: 0.02, 0.1: 0.02, 0.2: 0.02})), "")
    assert found.same_seeds
    assert UNEQUAL not in found.remarks


def test_a_factor_that_is_better_than_the_best_of_the_common_seeds_is_not_worse_than_it():
    better = {0: 0.799, 1: 0.801, 2: 0.802, **{seed: 0.85 + 0.001 * (seed % 2) for seed in range(3, 10)}}
    best = {0: 0.800, 1: 0.803, 2: 0.801, **{seed: 0.75 + 0.001 * (seed % 3) for seed in range(3, 10)}}
    assert smallest_not_worse({0.05: better, 0.1: {0: 0.780, 1: 0.783, 2: 0.781}, 0.2: best}) == 0.05
