"""Composer's callbacks and loggers, by their names in a recipe."""

import importlib
import inspect
import json
import re
import sys

import pytest
from composer.callbacks import EarlyStopper, LRMonitor, SpeedMonitor

from composer_ls.errors import MissingPackageError, RecipeError
from composer_ls.lab.recipe.composer_parts import part_arguments, part_places
from composer_ls.lab.recipe.reading import load_recipe
from composer_ls.lab.run_folder.folder import RunFolder
from composer_ls.lab.training.callbacks_and_loggers import build_callbacks, build_loggers
from composer_ls.lab.training.train import train

QUICK = ["duration=3ep", "eval_interval=1ep", "data.batch_size=128"]


def run(path, *overrides, **options):
    recipe = load_recipe("digits-mlp", [*QUICK, *overrides])
    return train(recipe, RunFolder(path, recipe), progress=False, **options)


@pytest.mark.parametrize("kind", ["callbacks", "loggers"])
def test_what_the_sources_say_is_what_the_classes_say(kind):
    package = importlib.import_module(f"composer.{kind}")
    base = package.LoggerDestination if kind == "loggers" else importlib.import_module("composer").Callback
    public = {
        cls.__name__
        for cls in vars(package).values()
        if inspect.isclass(cls) and issubclass(cls, base) and cls is not base
    }
    assert {cls for _, cls in part_places(kind).values()} == public - {"InMemoryLogger", "ProgressBarLogger"}
    for name, (module, cls) in part_places(kind).items():
        loaded = getattr(importlib.import_module(module), cls)
        arguments = inspect.signature(loaded).parameters.values() if "__init__" in vars(loaded) else ()
        names = tuple("**" if one.kind is one.VAR_KEYWORD else one.name for one in arguments)
        assert part_arguments(kind, name) == names, name


def test_callbacks_are_built_by_name_in_order_and_null_switches_one_off():
    built = build_callbacks({"speed_monitor": {"window_size": 5}, "nan_monitor": None, "lr_monitor": {}}, "test", [])
    assert [type(one) for one in built] == [SpeedMonitor, LRMonitor]


def test_an_early_stopper_watches_what_the_run_evaluates_in_the_right_direction():
    entry = {"early_stopper": {"monitor": "CrossEntropy", "patience": 2}}
    (stopper,) = build_callbacks(entry, "validation", ["MulticlassAccuracy", "CrossEntropy"])
    assert isinstance(stopper, EarlyStopper)
    assert stopper.dataloader_label == "validation"
    assert stopper.comp_func.__name__ == "less"
    entry["early_stopper"]["monitor"] = "MulticlassAccuracy"
    (stopper,) = build_callbacks(entry, "validation", ["MulticlassAccuracy", "CrossEntropy"])
    assert stopper.comp_func.__name__ == "greater"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"monitor": "nll"}, "monitor is 'nll', but must be a metric of this run: MulticlassAccuracy, CrossEntropy"),
        ({"monitor": "CrossEntropy", "dataloader_label": "eval"}, "this run evaluates test only"),
        ({}, "callbacks.early_stopper: .*monitor"),
    ],
)
def test_a_stopper_that_could_never_stop_is_refused_before_training(arguments, message):
    with pytest.raises(RecipeError, match=message):
        build_callbacks({"early_stopper": arguments}, "test", ["MulticlassAccuracy", "CrossEntropy"])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("callbacks.speed_monitr={}", "unknown key callbacks.speed_monitr: did you mean speed_monitor\\?"),
        ("callbacks.speed_monitor.window=3", "unknown key callbacks.speed_monitor.window: did you mean window_size\\?"),
        ("callbacks.speed_monitor=true", "callbacks.speed_monitor={} takes its defaults"),
        ("loggers.wandb=false", "loggers.wandb=null switches it off"),
        ("loggers.tensorbord={}", "unknown key loggers.tensorbord: did you mean tensorboard\\?"),
        ("loggers.mlflow.experiment=x", "unknown key loggers.mlflow.experiment: did you mean experiment_name\\?"),
    ],
)
def test_a_wrong_entry_is_named_with_what_is_allowed(override, message):
    with pytest.raises(RecipeError, match=message):
        load_recipe("digits-mlp", [override])


def test_loggers_do_not_make_another_run_but_callbacks_do():
    plain = load_recipe("digits-mlp").fingerprint()
    assert load_recipe("digits-mlp", ["loggers.tensorboard={}"]).fingerprint() == plain
    assert load_recipe("digits-mlp", ["callbacks.speed_monitor=null"]).fingerprint() == plain
    assert load_recipe("digits-mlp", ["callbacks.early_stopper={monitor: CrossEntropy}"]).fingerprint() != plain


@pytest.mark.parametrize(
    ("logger", "module", "package"),
    [
        ("wandb", "wandb", "composer_ls[loggers]"),
        ("mlflow", "mlflow", "composer_ls[loggers]"),
        ("tensorboard", "torch.utils.tensorboard", "composer_ls[loggers]"),
        ("cometml", "comet_ml", "mosaicml[comet-ml]"),
    ],
)
def test_an_absent_package_gets_the_line_that_installs_it(logger, module, package, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, module, None)
    recipe = load_recipe("digits-mlp", [f"loggers.{logger}={{}}"])
    with pytest.raises(MissingPackageError, match=f"loggers.{logger} needs .*: pip install '{re.escape(package)}'$"):
        build_loggers(recipe, RunFolder(tmp_path, recipe))


def test_an_early_stopper_ends_a_run_and_the_result_says_what_it_looked_at(tmp_path):
    # No accuracy improves by more than 2, so that patience runs out after the second epoch.
    result = run(tmp_path, "callbacks.early_stopper={monitor: MulticlassAccuracy, min_delta: 2, patience: 0}")
    assert result["epochs"] == 2
    assert any("early_stopper looked at the test examples" in warning for warning in result["warnings"])


def test_the_tensorboard_files_of_a_run_are_in_its_folder_and_only_of_the_last_one(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def losses():
        (folder,) = {file.parent for file in tmp_path.glob("tensorboard/digits-mlp/events.*")}
        accumulator = EventAccumulator(str(folder))
        accumulator.Reload()
        return accumulator.Scalars("loss/train/total")

    run(tmp_path, "loggers.tensorboard={}", "callbacks.lr_monitor={}")
    assert [event.step for event in losses()] == list(range(33))
    run(tmp_path, "loggers.tensorboard={}", "duration=2ep", overwrite=True)
    assert [event.step for event in losses()] == list(range(22))


def test_mlflow_gets_metrics_and_the_recipe(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    store = (tmp_path / "mlruns").as_uri()
    options = f"tracking_uri: {store}, experiment_name: digits, synchronous: true, log_system_metrics: false"
    run(tmp_path / "one", f"loggers.mlflow={{{options}}}")
    client = mlflow.MlflowClient(store)
    (stored,) = client.search_runs([client.get_experiment_by_name("digits").experiment_id])
    assert stored.info.run_name == "one"
    assert stored.data.params["algorithms.label_smoothing.smoothing"] == "0.1"
    assert len(client.get_metric_history(stored.info.run_id, "metrics/test/MulticlassAccuracy")) >= 3


def test_wandb_gets_metrics_and_the_recipe_offline(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    run(tmp_path / "one", f"loggers.wandb={{project: digits, init_kwargs: {{dir: {tmp_path}}}}}")
    (written,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    content = written.read_bytes()
    assert b"metrics/test/MulticlassAccuracy" in content
    assert b"algorithms.label_smoothing.smoothing" in content


def test_loggers_see_every_step_of_a_run_that_metrics_jsonl_sums_up(tmp_path):
    run(tmp_path, "loggers.file={filename: " + str(tmp_path / "log.txt") + ", flush_interval: 1}")
    log = (tmp_path / "log.txt").read_text()
    assert "loss/train/total" in log
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert len(lines) == 3
