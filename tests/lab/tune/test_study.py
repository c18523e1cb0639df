"""The search in its journal: what is tried, what is told, who does what, and when a trial stops."""

from pathlib import Path

import optuna
import pytest
from comparison_support import make_run
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from composer_ls.errors import InputError
from composer_ls.lab.compare.execute import Ended
from composer_ls.lab.compare.one_run import Status
from composer_ls.lab.tune.plan import make_tune_plan
from composer_ls.lab.tune.study import JOURNAL, Search, Watch


def plan(out, *overrides, purpose="nll", trials=4, vary=(), seeds=3):
    return make_tune_plan("digits-mlp", overrides, purpose, trials, vary, seeds, Path(out))


def finish(search, run, better=0.0):
    """Do a run that gets this much better on its validation part, and much worse on its test part."""
    make_run(run.folder, run.recipe.smoothing, run.recipe.seed, better=-3 * better, held_out=better)
    search.tell(Ended(run))


def test_trial_0_is_the_recipe_as_it_was_and_others_are_within_the_ranges(tmp_path):
    search = Search(plan(tmp_path, "algorithms.label_smoothing.smoothing=0.15", trials=8))
    factors = []
    for run in search.runs():
        factors.append(run.recipe.smoothing)
        finish(search, run)
    assert search.starts_from_the_recipe
    assert factors[0] == 0.15
    assert all(0 <= factor <= 0.3 for factor in factors)
    assert len(set(factors)) == 8


@pytest.mark.parametrize(
    ("override", "vary"),
    [
        ("algorithms.label_smoothing.smoothing=0.1234", "optimizer.learning_rate=0.0001..0.01"),
        ("optimizer.weight_decay=0", "optimizer.weight_decay=[0, 0.01]"),
    ],
)
def test_trial_0_is_the_recipe_to_all_digits_and_however_a_number_is_written(override, vary, tmp_path):
    search = Search(plan(tmp_path, override, vary=[vary]))
    run = next(search.runs())
    assert search.starts_from_the_recipe
    assert run.recipe.identity() == search.plan.recipe.identity()


def test_a_recipe_outside_the_ranges_is_not_trial_0(tmp_path):
    search = Search(plan(tmp_path, "algorithms.label_smoothing.smoothing=0.5"))
    assert not search.starts_from_the_recipe
    assert next(search.runs()).recipe.smoothing <= 0.3


def test_a_trial_is_judged_on_the_validation_part_and_the_best_comes_first(tmp_path):
    search = Search(plan(tmp_path))
    for better, run in zip((0.0, 1.0, 0.5, -1.0), search.runs(), strict=False):
        finish(search, run, better)  # on the test part the order is the reverse
    assert [trial.number for trial in search.ranking] == [1, 2, 0, 3]
    accuracy = Search(plan(tmp_path / "accuracy", purpose="accuracy"))
    for better, run in zip((0.0, 1.0, 0.5, -1.0), accuracy.runs(), strict=False):
        finish(accuracy, run, better)
    assert [trial.number for trial in accuracy.ranking] == [1, 2, 0, 3]


def test_data_of_ones_own_must_bring_the_validation_part(tmp_path):
    search = Search(plan(tmp_path, "data={target: my_package.data:loaders}", "model={target: my_package.nets:make}"))
    assert search.plan.notes == ()
    run = next(search.runs())
    make_run(run.folder)
    with pytest.raises(InputError, match='and my_package.data:loaders returns none: return "validation" too'):
        search.tell(Ended(run))


def test_a_trial_that_failed_diverged_or_was_stopped_has_no_value_and_is_counted(tmp_path):
    search = Search(plan(tmp_path))
    runs = search.runs()
    finish(search, next(runs))
    search.tell(Ended(next(runs), Status.FAILED, "no memory"))
    search.tell(Ended(next(runs), Status.STOPPED))
    search.tell(Ended(next(runs)))  # without any files
    assert search.left == 0
    assert [trial.number for trial in search.ranking] == [0]
    assert search.in_words == "4 trials: 1 finished, 1 stopped early, 2 failed"
    assert list(search.runs()) == []


def test_a_trial_that_a_killed_process_left_behind_is_done_again_with_its_own_values(tmp_path):
    killed = Search(plan(tmp_path))
    left = next(killed.runs())
    search = Search(plan(tmp_path))
    done = []
    for run in search.runs():
        done.append(run)
        finish(search, run)
    assert [run.folder.name for run in done] == ["trial-1", "trial-2", "trial-3", "trial-0"]
    assert done[-1].recipe == left.recipe
    assert search.left == 0


def test_a_trial_whose_process_was_killed_before_it_had_values_gets_some(tmp_path, monkeypatch):
    killed = Search(plan(tmp_path))
    finish(killed, next(killed.runs()))
    killed._study.ask()
    search = Search(plan(tmp_path))
    runs = search.runs()
    for _ in range(2):
        finish(search, next(runs))
    assert next(runs) is None  # another process may be about to choose them
    monkeypatch.setattr("composer_ls.lab.tune.study.UNNAMED", 0)
    run = next(runs)
    assert run.folder.name == "trial-1"
    finish(search, run)
    assert (search.left, [*runs]) == (0, [])
    whole = Search(plan(tmp_path / "whole"))
    for _ in range(2):
        finish(whole, next(whole.runs()))
    assert search.changes(search.trials[1]) == whole.changes(whole.trials[1])


def test_processes_that_share_a_journal_do_each_trial_once_and_wait_for_one_another(tmp_path):
    searches = [Search(plan(tmp_path)) for _ in range(2)]
    sources = [search.runs() for search in searches]
    mine, theirs, third, fourth = (next(sources[number]) for number in (0, 1, 0, 1))
    assert len({run.folder for run in (mine, theirs, third, fourth)}) == 4
    assert len({run.recipe.smoothing for run in (mine, theirs, third, fourth)}) == 4
    finish(searches[0], mine)
    finish(searches[0], third)
    # locks are held by processes, and this is one process: hence claims as another one sees them
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("composer_ls.lab.tune.study.claimant", lambda folder: "process 7")
        assert next(sources[0]) is None
    finish(searches[1], theirs)
    finish(searches[1], fourth)
    assert [next(source, "over") for source in sources] == ["over", "over"]


def test_a_trial_that_another_process_does_is_left_to_it(tmp_path):
    search = Search(plan(tmp_path))
    run = next(search.runs())
    search.tell(Ended(run, Status.BUSY, "it is being done by process 7"))
    assert search.trials[0].state == optuna.trial.TrialState.RUNNING
    finish(search, run)
    finish(search, run)  # told twice, as by two processes
    assert search.trials[0].state == optuna.trial.TrialState.COMPLETE


def test_more_trials_continue_the_search(tmp_path):
    first = Search(plan(tmp_path, trials=2))
    for run in first.runs():
        finish(first, run)
    more = Search(plan(tmp_path, trials=3))
    assert more.left == 1
    assert [run.folder.name for run in more.runs() if finish(more, run) is None] == ["trial-2"]


def test_the_same_results_lead_to_the_same_trials(tmp_path):
    def factors(folder):
        search = Search(plan(folder, trials=14))
        found = []
        for run in search.runs():
            found.append(run.recipe.smoothing)
            finish(search, run, better=run.recipe.smoothing)
        return found

    assert factors(tmp_path / "a") == factors(tmp_path / "b")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"overrides": ["duration=3ep"]}, "is the journal of a search of another recipe \\(they differ in duration\\)"),
        ({"purpose": "accuracy"}, "is the journal of a search with --for nll"),
        (
            {"vary": ["optimizer.learning_rate=0.001..0.01"]},
            "is the journal of a search with --vary algorithms.label_smoothing.smoothing=0..0.3",
        ),
    ],
)
def test_the_journal_of_another_search_is_refused_with_the_difference(tmp_path, change, message):
    Search(plan(tmp_path))
    with pytest.raises(InputError, match=f"{JOURNAL} {message}.*--out DIR"):
        Search(plan(tmp_path, *change.pop("overrides", []), **change))


def test_a_file_that_is_no_journal_and_a_study_of_another_program_are_refused(tmp_path):
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / JOURNAL).write_text("hello\nworld\n")
    with pytest.raises(InputError, match="is not a journal of Optuna, or is damaged"):
        Search(plan(tmp_path / "text"))
    (tmp_path / "json").mkdir()
    (tmp_path / "json" / JOURNAL).write_text('{"a": 1}\n')
    with pytest.raises(InputError, match="is not a journal of Optuna, or is damaged"):
        Search(plan(tmp_path / "json"))
    (tmp_path / "other").mkdir()
    storage = JournalStorage(JournalFileBackend(str(tmp_path / "other" / JOURNAL)))
    optuna.create_study(storage=storage, study_name="mine")
    with pytest.raises(InputError, match="holds a study that is not of composer-ls tune \\(mine\\)"):
        Search(plan(tmp_path / "other"))
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be used .*choose another folder with --out DIR"):
        Search(plan(tmp_path / "file"))


def lines_of(watch, values):
    """The epoch at which a watch stops a run with these values, one per epoch; ``None`` if it does not."""
    for epoch, value in enumerate(values, 1):
        if watch({"epoch": epoch, "batch": 22 * epoch, "metrics/validation/CrossEntropy": value}):
            return epoch
    return None


def test_a_hopeless_trial_stops_after_a_third_and_a_good_one_does_not(tmp_path):
    search = Search(plan(tmp_path, "duration=9ep", "eval_interval=1ep", trials=20))
    runs = search.runs()
    for _ in range(5):
        run = next(runs)
        assert lines_of(run.watch, [1.0] * 9) is None
        finish(search, run)
    assert lines_of(next(runs).watch, [2.0] * 9) == 3
    assert lines_of(next(runs).watch, [0.5] * 9) is None
    late = next(runs)
    assert not late.watch({"epoch": 9, "batch": 198, "metrics/validation/CrossEntropy": 9.0})  # it is all but finished
    assert not late.watch({"epoch": 5, "batch": 110, "loss/train/total": 9.0})  # no evaluation was due
    assert late.watch({"epoch": 5, "batch": 110, "metrics/validation/CrossEntropy": 9.0})


def test_accuracy_stops_trials_the_other_way_round(tmp_path):
    search = Search(plan(tmp_path, "duration=9ep", "eval_interval=1ep", purpose="accuracy", trials=20))
    runs = search.runs()
    line = {"epoch": 5, "batch": 110, "metrics/validation/MulticlassAccuracy": 0.9}
    for _ in range(5):
        run = next(runs)
        assert not run.watch(line)
        finish(search, run)
    assert next(runs).watch(line | {"metrics/validation/MulticlassAccuracy": 0.8})
    assert not next(runs).watch(line | {"metrics/validation/MulticlassAccuracy": 0.95})


def test_a_metric_that_epochs_do_not_measure_stops_nothing(tmp_path):
    search = Search(plan(tmp_path, purpose="ece"))
    assert next(search.runs()).watch is None


def test_a_run_elsewhere_finds_the_journal_by_its_full_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = next(Search(plan("here")).runs())
    assert run.watch == Watch(str(tmp_path / "here" / JOURNAL), 0, "metrics/validation/CrossEntropy", 30)
