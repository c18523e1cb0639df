"""The verdict: does the gain of the best trial hold over fresh seeds?"""

import json

import pytest
from comparison_support import make_run
from safetensors.torch import load_file

from composer_ls.errors import InputError
from composer_ls.lab.compare.execute import Ended
from composer_ls.lab.compare.one_run import Status
from composer_ls.lab.recipe.reading import load_recipe
from composer_ls.lab.run_folder.folder import RunFolder
from composer_ls.lab.tune.plan import make_tune_plan
from composer_ls.lab.tune.study import Search
from composer_ls.lab.tune.verdict import BEST, SUMMARY, comparison_runs, judge, write_verdict


def searched(out, seeds=5, best=1):
    """A search of three trials, of which ``best`` is the best."""
    plan = make_tune_plan("digits-mlp", ["duration=9ep"], "nll", 3, [], seeds, out)
    search = Search(plan)
    for number, run in enumerate(search.runs()):
        make_run(run.folder, run.recipe.smoothing, run.recipe.seed, held_out=1.0 * (number == best))
        search.tell(Ended(run))
    return plan, search


def verdict_of(plan, search, gain, on_test=0.0):
    runs = comparison_runs(plan, search)
    for run in runs:
        is_best = run.folder.parent.name != "recipe"
        wobble = 0.05 * (run.recipe.seed % 3) * is_best
        make_run(
            run.folder,
            run.recipe.smoothing,
            run.recipe.seed,
            better=on_test * is_best,
            held_out=gain * is_best + wobble,
        )
    return judge(plan, search, runs)


def test_the_best_trial_and_the_recipe_run_in_pairs_over_seeds_that_the_search_has_not_seen(tmp_path):
    plan, search = searched(tmp_path, seeds=2)
    runs = comparison_runs(plan, search)
    assert [run.recipe.seed for run in runs] == [18, 18, 19, 19]
    assert [run.recipe.smoothing for run in runs[:2]] == [
        0.1,
        float(search.changes(search.ranking[0])[0].split("=")[1]),
    ]
    assert {run.recipe.data.validation for run in runs} == {0.1}
    assert runs[1].arguments[:3] == ("train", "digits-mlp", "duration=9ep")


def test_a_gain_that_holds_is_told_with_what_it_costs(tmp_path):
    verdict = verdict_of(*searched(tmp_path), gain=0.5, on_test=0.4)
    assert verdict.holds is True
    assert verdict.headline.startswith("The gain holds over 5 fresh seeds: NLL -0.")
    assert verdict.headline.endswith(f"Use {tmp_path / BEST}")
    assert verdict.remarks[-1].startswith("On the test examples, which played no part in this, the difference is -0.")


def test_a_gain_that_does_not_hold_is_told(tmp_path):
    verdict = verdict_of(*searched(tmp_path), gain=-0.5)
    assert verdict.holds is False
    assert "The gain does not hold over 5 fresh seeds: NLL +0." in verdict.headline
    assert "(it is worse). Keep the recipe as it was" in verdict.headline
    verdict = verdict_of(*searched(tmp_path / "none"), gain=-0.05)
    assert verdict.holds is False
    assert "The gain does not hold over 5 fresh seeds" in verdict.headline
    assert verdict.headline.endswith("Keep the recipe as it was")


def test_from_two_seeds_nothing_is_said(tmp_path):
    verdict = verdict_of(*searched(tmp_path, seeds=2), gain=0.5)
    assert verdict.holds is None
    assert verdict.headline.startswith("Whether the gain holds cannot be said from 2 fresh seeds")


def test_if_the_recipe_as_it_was_is_the_best_there_is_nothing_to_compare(tmp_path):
    plan, search = searched(tmp_path, best=0)
    assert comparison_runs(plan, search) == ()
    assert judge(plan, search, ()).headline == "No trial was better than the recipe as it was: keep it"


def without_results(runs, place, seeds=None):
    for run in runs:
        if run.folder.parent.name.startswith(place) and (seeds is None or run.recipe.seed in seeds):
            (run.folder / "result.json").unlink()


@pytest.mark.parametrize(
    ("place", "whose", "first"),
    [
        ("trial", "trial 1", "trial-1/seed-18"),
        ("recipe", "the recipe as it was", "recipe/seed-18"),
        ("", "trial 1 or of the recipe as it was", "recipe/seed-18"),
    ],
)
def test_a_gain_whose_fresh_runs_did_not_finish_is_not_known(tmp_path, place, whose, first):
    plan, search = searched(tmp_path, seeds=3)
    verdict_of(plan, search, gain=0.5)
    runs = comparison_runs(plan, search)
    without_results(runs, place)
    verdict = judge(plan, search, runs)
    assert verdict.holds is None
    expected = (
        f"Whether the gain holds is not known, because none of the fresh runs of {whose} finished "
        f"({first}: it has begun, but not finished)"
    )
    assert verdict.headline == expected
    write_verdict(verdict)
    written = json.loads((tmp_path / SUMMARY).read_text())
    assert written["text"] == f"{expected}."
    assert len(written["left_out"]) == (3 if place else 6)
    assert written["left_out"][0] == {
        "folder": f"comparison/{first}", "reason": "it has begun, but not finished"
    }  # fmt: skip


def test_a_gain_whose_fresh_runs_all_diverged_is_not_known(tmp_path):
    plan, search = searched(tmp_path, seeds=2)
    verdict_of(plan, search, gain=0.5)
    runs = comparison_runs(plan, search)
    for run in runs:
        if run.folder.parent.name != "recipe":
            result = json.loads((run.folder / "result.json").read_text())
            (run.folder / "result.json").write_text(json.dumps(result | {"diverged": True, "divergence": "loss NaN"}))
    headline = judge(plan, search, runs).headline
    assert headline.startswith(
        "Whether the gain holds is not known, because none of the fresh runs of trial 1 finished"
    )
    assert "it diverged: loss NaN" in headline


def test_a_gain_without_a_seed_that_finished_both_ways_is_not_known(tmp_path):
    plan, search = searched(tmp_path, seeds=2)
    verdict_of(plan, search, gain=0.5)
    runs = comparison_runs(plan, search)
    without_results(runs, "recipe", seeds=[18])
    without_results(runs, "trial", seeds=[19])
    headline = judge(plan, search, runs).headline
    assert headline.startswith(
        "Whether the gain holds is not known, because no fresh seed has a finished run of both trial 1 and the recipe as it "
        "was (recipe/seed-18: it has begun"
    )


def test_the_best_recipe_holds_out_nothing_that_the_user_did_not_ask_for(tmp_path):
    plan, search = searched(tmp_path)
    write_verdict(verdict_of(plan, search, gain=0.5))
    best = load_recipe(tmp_path / BEST)
    assert best.data.validation is None
    assert best.duration == "9ep"
    assert f"algorithms.label_smoothing.smoothing={best.smoothing:g}" in search.changes(search.ranking[0])
    written = json.loads((tmp_path / SUMMARY).read_text())
    assert written["holds"] is True
    assert written["best"]["trial"] == 1
    assert [trial["state"] for trial in written["trials"]] == ["finished"] * 3
    assert written["difference"]["seeds"] == 5
    assert written["text"].startswith("The gain holds")


def test_a_search_without_a_finished_trial_is_an_error_that_leads_to_the_logs(tmp_path):
    plan = make_tune_plan("digits-mlp", [], "nll", 2, [], 3, tmp_path)
    search = Search(plan)
    for run in search.runs():
        search.tell(Ended(run, Status.FAILED, "no memory"))
    with pytest.raises(InputError, match="no trial of .* is finished.*see the logs in"):
        comparison_runs(plan, search)


def test_a_trial_that_changes_what_it_is_judged_on_is_not_judged(tmp_path):
    plan, search = searched(tmp_path)
    verdict_of(plan, search, gain=0.5)
    runs = comparison_runs(plan, search)
    for run in runs[1::2]:
        folder = RunFolder(run.folder, run.recipe)
        predictions = load_file(folder.predictions_file)
        predictions["validation.labels"] = predictions["validation.labels"].roll(1)
        folder.write_predictions(predictions)
    verdict = judge(plan, search, runs)
    assert verdict.holds is None
    assert "it is judged on other data than the recipe as it was" in verdict.unknown
