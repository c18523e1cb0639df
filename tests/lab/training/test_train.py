"""Whole runs: their folder, resuming, several processes."""

import json
import math
import os
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from composer.devices import DeviceCPU
from PIL import Image
from safetensors.torch import load_file

from composer_ls.diagnostics.calibration import accuracy, expected_calibration_error
from composer_ls.errors import RecipeError, RunFolderError
from composer_ls.lab.commands.cli import main
from composer_ls.lab.recipe.reading import load_recipe, shipped_recipes
from composer_ls.lab.run_folder.folder import RunFolder
from composer_ls.lab.tasks.classification import task as classification
from composer_ls.lab.training import train as run_module
from composer_ls.lab.training.train import train
from composer_ls.losses import cross_entropy

QUICK = ["duration=3ep", "eval_interval=1ep", "checkpoints.interval=1ep", "data.batch_size=128"]


def run(path, *overrides, **options):
    recipe = load_recipe("digits-mlp", [*QUICK, *overrides])
    return train(recipe, RunFolder(path, recipe), progress=False, **options)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "finished"
    return path, run(path)


def test_a_run_leaves_one_folder(finished):
    path, result = finished
    assert {file.name for file in path.iterdir()} == {
        "recipe.yaml",
        "result.json",
        "metrics.jsonl",
        "predictions.safetensors",
        "weights.safetensors",
    }
    assert json.loads((path / "result.json").read_text()) == result
    assert load_recipe(path / "recipe.yaml") == load_recipe("digits-mlp", QUICK)


def test_the_result_says_what_where_and_how(finished):
    _, result = finished
    assert result["metrics"].keys() == {"accuracy", "nll", "ece", "brier"}
    assert (result["smoothing"], result["seed"], result["epochs"], result["steps"]) == (0.1, 17, 3, 33)
    assert result["train_seconds"] > 0
    assert result["plan"].startswith("smoothing 0.1, uniform over 10 classes; loss cross_entropy, fused")
    assert result["peak_memory_bytes"]["host"] > 1e8
    assert {"composer_ls", "mosaicml", "torch", "python"} <= result["versions"].keys()
    assert result["hardware"]["processes"] == 1


def test_the_metrics_can_be_computed_again_from_the_predictions(finished):
    path, result = finished
    predictions = load_file(path / "predictions.safetensors")
    logits, labels = predictions["logits"], predictions["labels"]
    assert (logits.shape, labels.shape) == ((360, 10), (360,))
    assert accuracy(logits, labels) == result["metrics"]["accuracy"]
    assert expected_calibration_error(logits, labels) == result["metrics"]["ece"]


def test_the_part_that_is_held_out_is_watched_and_predicted_apart_from_the_test_set(tmp_path, finished):
    result = run(tmp_path, "data.validation=137", "data.examples=1000", "data.label_noise={rate: 0.2}")
    assert result["examples"] == {"train": 1000, "validation": 137, "test": 360}
    predictions = load_file(tmp_path / "predictions.safetensors")
    assert torch.equal(predictions["labels"], load_file(finished[0] / "predictions.safetensors")["labels"])
    logits, labels = predictions["validation.logits"], predictions["validation.labels"]
    assert (logits.shape, predictions["logits"].shape) == ((137, 10), (360, 10))
    assert accuracy(logits, labels) == result["validation"]["accuracy"] > 0.8
    assert accuracy(predictions["logits"], predictions["labels"]) == result["metrics"]["accuracy"]
    last = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["metrics/validation/MulticlassAccuracy"] == pytest.approx(result["validation"]["accuracy"], abs=1e-6)
    assert not any(key.startswith("metrics/test") for key in last)


def test_composers_own_smoothing_smooths_one_label_of_a_mixed_pair(tmp_path):
    mixed = "algorithms={label_smoothing: {smoothing: 0.1, implementation: composer}, mixup: {alpha: 0.2}}"
    result = run(tmp_path, mixed, "duration=1ep")
    assert result["smoothing"] == 0.1
    assert result["plan"].startswith(
        "smoothing 0.1 by Composer's own LabelSmoothing; MixUp mixes first labels with second labels; loss"
    )


def test_metrics_have_a_line_an_epoch(finished):
    path, result = finished
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2, 3]
    assert lines[-1]["metrics/test/MulticlassAccuracy"] == pytest.approx(result["metrics"]["accuracy"], abs=1e-6)
    assert lines[0]["loss/train/total"] > lines[-1]["loss/train/total"]


def test_a_finished_run_is_not_run_again_unless_asked(finished):
    path, result = finished
    stamp = (path / "predictions.safetensors").stat().st_mtime_ns
    assert run(path) == result
    assert (path / "predictions.safetensors").stat().st_mtime_ns == stamp


def test_the_same_recipe_gives_the_same_numbers_and_overwrite_runs_again(tmp_path, finished):
    _, result = finished
    assert run(tmp_path / "again")["metrics"] == result["metrics"]
    assert run(tmp_path / "again", overwrite=True)["finished"] >= result["finished"]


def test_smoothing_reaches_the_training(tmp_path, finished):
    _, result = finished
    hard = run(tmp_path / "hard", "algorithms.label_smoothing.smoothing=0")
    assert hard["smoothing"] == 0
    assert hard["metrics"]["nll"] < result["metrics"]["nll"]  # digits are easy: the smoothed one is under-confident


def test_smoothing_0_is_no_smoothing_but_for_rounding(tmp_path):
    run(tmp_path / "zero", "algorithms.label_smoothing.smoothing=0", "duration=1ep")
    run(tmp_path / "off", "algorithms.label_smoothing=null", "duration=1ep")
    zero, off = (load_file(tmp_path / name / "predictions.safetensors") for name in ("zero", "off"))
    torch.testing.assert_close(zero["logits"], off["logits"], rtol=1e-4, atol=1e-5)


def initial_weights(tmp_path, monkeypatch, *overrides):
    """What training would start from."""
    kept = []

    def trainer(model, **_):
        kept.append(torch.cat([parameter.detach().flatten() for parameter in model.parameters()]))
        raise ValueError("enough")

    monkeypatch.setattr(run_module, "Trainer", trainer)
    with pytest.raises(RecipeError, match="enough"):
        run(tmp_path / str(hash(overrides)), *overrides)
    return kept[0]


def test_a_seed_gives_the_same_initial_weights_whatever_the_algorithms(tmp_path, monkeypatch):
    base = initial_weights(tmp_path, monkeypatch)
    for setting in ("algorithms.label_smoothing.smoothing=0", "algorithms.mixup={}", "algorithms.cutmix={alpha: 1.0}"):
        assert torch.equal(initial_weights(tmp_path, monkeypatch, setting), base)
    assert not torch.equal(initial_weights(tmp_path, monkeypatch, "seed=18"), base)


def test_a_seed_gives_the_same_initial_weights_whatever_was_drawn_before(tmp_path, monkeypatch):
    base = initial_weights(tmp_path, monkeypatch)
    build = run_module.build_algorithms
    monkeypatch.setattr(run_module, "build_algorithms", lambda *args: (torch.rand(3), build(*args))[1])
    assert torch.equal(initial_weights(tmp_path, monkeypatch, "duration=2ep"), base)


@pytest.fixture(scope="module")
def image_tree(tmp_path_factory):
    root, noise = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for split in ("train", "test"):
        for name, level in (("dark", 60), ("light", 200)):
            folder = root / split / name
            folder.mkdir(parents=True)
            for index in range(24):
                pixels = noise.normal(level, 60, (32, 32, 3)).clip(0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{index}.png")
    return root


def run_on_images(path, root, name, *overrides):
    place = ["data.name=imagefolder", f"data.root={root}", "data.image_size=32", "data.workers=0", "device=cpu"]
    recipe = load_recipe(name, [*place, "data.batch_size=8", "precision=auto", *overrides])
    return train(recipe, RunFolder(path, recipe), progress=False)


@pytest.mark.parametrize(
    "name",
    [
        name
        for name in shipped_recipes()
        if load_recipe(name).task == "classification" and load_recipe(name).data.name != "digits"
    ],
)
def test_a_shipped_recipe_trains_on_a_few_images(tmp_path, image_tree, name):
    few = ["duration=2ba", "schedule.warmup=1ba", "schedule.milestones=[1ba]"]
    if load_recipe(name).data.validation is not None:
        few += ["data.validation=8", "data.examples=32", "diagnostics=null"]  # it has two classes
    result = run_on_images(tmp_path, image_tree, name, *few)
    assert (result["steps"], result["precision"]) == (2, "fp32")
    assert result["smoothing"] == load_recipe(name).smoothing
    assert math.isfinite(result["metrics"]["nll"])


@pytest.mark.parametrize("mixer", ["mixup", "cutmix"])
def test_mixing_comes_by_override(tmp_path, image_tree, mixer):
    mixed = [f"algorithms.{mixer}={{alpha: 1.0}}", "duration=2ba", "schedule.warmup=0ba", "data.image_size=8"]
    result = run_on_images(tmp_path, image_tree, "cifar10-alexnet", *mixed)
    assert mixer in result["plan"].lower()


def test_workers_load_the_same_data(tmp_path, image_tree):
    alone, helped = (
        run_on_images(tmp_path / count, image_tree, "cifar10-resnet20", *overrides, f"data.workers={count}")
        for overrides in [["data.in_memory=false", "data.augmentation=none", "model.name=cnn", "duration=1ep"]]
        for count in "01"
    )
    assert alone["metrics"] == helped["metrics"]


def test_a_run_stopped_within_an_epoch_goes_on_with_the_same_crops(tmp_path, image_tree, monkeypatch):
    def go(path):
        settings = ["model.name=cnn", "duration=2ep", "checkpoints.interval=2ba", "eval_interval=1ep"]
        return run_on_images(path, image_tree, "cifar10-resnet20-fast", *settings)

    whole, calls = go(tmp_path / "whole"), []

    def stops_in_the_second_epoch(*arguments, **options):
        calls.append(1)
        if len(calls) > 9:
            raise KeyboardInterrupt
        return cross_entropy(*arguments, **options)

    monkeypatch.setattr(classification, "cross_entropy", stops_in_the_second_epoch)
    with pytest.raises(KeyboardInterrupt):
        go(tmp_path / "stopped")
    monkeypatch.undo()
    resumed = go(tmp_path / "stopped")
    assert resumed["steps"] == whole["steps"] == 12
    assert resumed["metrics"] == pytest.approx(whole["metrics"], rel=1e-6)


def test_training_curves_are_comparable_across_smoothing(tmp_path):
    """With a network that stands still they are the same, though the losses that are trained on differ."""
    lines = []
    for smoothing in (0.0, 0.3):
        still = ["optimizer.learning_rate=1e-12", "optimizer.weight_decay=0", "duration=1ep"]
        run(tmp_path / str(smoothing), *still, f"algorithms.label_smoothing.smoothing={smoothing}")
        lines.append(json.loads((tmp_path / str(smoothing) / "metrics.jsonl").read_text()))
    hard, smoothed = lines
    assert hard["metrics/train/CrossEntropy"] == pytest.approx(hard["loss/train/total"], rel=1e-5)
    assert hard["loss/train/total"] != pytest.approx(smoothed["loss/train/total"], rel=1e-5)
    for name in ("metrics/train/CrossEntropy", "metrics/train/MulticlassAccuracy", "metrics/test/CrossEntropy"):
        assert hard[name] == pytest.approx(smoothed[name], rel=1e-5)


@pytest.mark.parametrize("name", ["training", "mixed"])
def test_the_training_curve_is_of_the_whole_epoch(tmp_path, name):
    mixer = ["algorithms.mixup={alpha: 1.0}"] if name == "mixed" else []
    run(tmp_path, *mixer, "duration=17ba", "data.batch_size=100")
    epoch, part = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    for line, examples in ((epoch, 1400), (part, 300)):
        accuracy = line["metrics/train/MulticlassAccuracy"]
        assert 0 < accuracy < 1
        assert accuracy * examples == pytest.approx(round(accuracy * examples), abs=1e-3)
        assert line["metrics/train/CrossEntropy"] > 0


@pytest.mark.slow
def test_a_compiled_network_trains(tmp_path, finished):
    assert run(tmp_path, "model.compile=true")["metrics"] == pytest.approx(finished[1]["metrics"], rel=1e-2, abs=1e-2)


def test_what_pytorch_cannot_compile_is_told(tmp_path, monkeypatch):
    from torch._inductor.exc import InductorError

    def fit(_):
        raise InductorError(RuntimeError("C++ compile error"), None)

    monkeypatch.setattr(run_module.Trainer, "fit", fit)
    with pytest.raises(
        RecipeError, match="PyTorch cannot compile mlp here .*C.. compile error.*use model.compile=false"
    ):
        run(tmp_path, "model.compile=true")


def test_the_precision_that_auto_means_follows_from_the_device(tmp_path):
    assert run_module._precision("auto", DeviceCPU()).value == "fp32"
    with pytest.raises(RecipeError, match="precision=amp_bf16 .*use precision=auto or fp32"):
        run(tmp_path, "precision=amp_bf16", "device=cpu")


def test_kept_checkpoints_finish_a_run_that_was_stopped_before_its_result(tmp_path):
    path = tmp_path / "kept"
    first = run(path, "checkpoints.keep=true", "duration=1ep")
    assert list((path / "checkpoints").iterdir())
    (path / "result.json").unlink()
    again = run(path, "checkpoints.keep=true", "duration=1ep")
    assert again["metrics"] == first["metrics"]
    assert again["steps"] == first["steps"]


def test_a_folder_with_another_recipes_run_is_refused_with_the_keys(finished):
    path, _ = finished
    with pytest.raises(RunFolderError, match=r"another recipe \(they differ in seed\).*--out DIR.*--overwrite"):
        run(path, "seed=5")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("algorithms.mixupp={}", "unknown key algorithms.mixupp"),
        ("data.batch_size=2000", "exceeds the 1437 training examples"),
        ("schedule.warmup=1sp", "Composer refuses the recipe digits-mlp: Cannot use warmup scheduler .* same units"),
    ],
)
def test_overwriting_with_a_recipe_that_is_refused_leaves_the_old_run(finished, override, message):
    path, _ = finished
    files = {file: file.read_bytes() for file in path.iterdir() if file.is_file()}
    with pytest.raises(RecipeError, match=message):
        run(path, override, overwrite=True)
    assert {file: file.read_bytes() for file in path.iterdir() if file.is_file()} == files


def test_overwriting_starts_afresh_and_ignores_the_checkpoints_there(tmp_path):
    first = run(tmp_path, "checkpoints.keep=true", "duration=1ep")
    again = run(tmp_path, "checkpoints.keep=true", "duration=2ep", overwrite=True)
    assert (first["steps"], again["steps"]) == (11, 22)
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2
    assert not (tmp_path / "recipe.yaml.orig").exists()


def test_checkpoints_of_something_else_are_left_alone(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "mine.pt").write_text("")
    RunFolder(tmp_path, load_recipe("digits-mlp")).clear()
    for overwrite in (False, True):
        with pytest.raises(RunFolderError, match="checkpoints is not from a run of composer-ls: .*--out DIR"):
            run(tmp_path, overwrite=overwrite)
    assert (tmp_path / "checkpoints" / "mine.pt").exists()


def test_a_recipe_of_ones_own_in_the_run_folder_is_no_run_and_is_kept(tmp_path):
    own = "name: own\nduration: 1ep  # a first try\ndata: {name: digits}\nmodel: {name: mlp}\n"
    (tmp_path / "recipe.yaml").write_text(own)
    recipe = load_recipe(tmp_path / "recipe.yaml", ["duration=3ba"])
    train(recipe, RunFolder(tmp_path, recipe), progress=False)
    assert (tmp_path / "recipe.yaml.orig").read_text() == own
    assert load_recipe(tmp_path / "recipe.yaml") == recipe


def test_metrics_have_a_line_for_the_part_of_an_epoch_too(tmp_path):
    run(tmp_path, "duration=14ba")
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(line["epoch"], line["batch"]) for line in lines] == [(1, 11), (1, 14)]
    assert all({"loss/train/total", "metrics/test/MulticlassAccuracy"} <= line.keys() for line in lines)


def test_an_evaluation_after_the_last_epoch_is_in_its_line(tmp_path):
    run(tmp_path, "duration=2ep", "eval_interval=5ep")
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2]
    assert {"loss/train/total", "metrics/test/MulticlassAccuracy"} <= lines[-1].keys()


def test_the_command_repeats_the_run_on_as_many_processes(monkeypatch):
    monkeypatch.setattr("sys.argv", ["composer-ls", "train", "digits-mlp"])
    assert run_module._command() == "composer-ls train digits-mlp"
    monkeypatch.setattr(run_module.dist, "get_local_world_size", lambda: 2)
    monkeypatch.setattr(run_module.dist, "get_world_size", lambda: 2)
    assert run_module._command() == "composer -n 2 -m composer_ls train digits-mlp"
    monkeypatch.setattr(run_module.dist, "get_world_size", lambda: 4)
    assert run_module._command() == "composer -n 2 --world_size 4 --node_rank 0 -m composer_ls train digits-mlp"


def test_a_folder_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError, match="cannot be written .*--out DIR"):
        run(tmp_path / "file" / "run")


def test_a_failed_write_leaves_no_half_result(tmp_path, monkeypatch):
    recipe = load_recipe("digits-mlp", QUICK)
    folder = RunFolder(tmp_path, recipe)
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        folder.write_result({"accuracy": 1})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_killed_run_goes_on_and_ends_where_an_undisturbed_one_does(tmp_path):
    overrides = ["duration=12ep", "checkpoints.interval=1ep", "checkpoints.keep=true", "data.batch_size=256"]
    command = [
        sys.executable,
        "-m",
        "composer_ls",
        "train",
        "digits-mlp",
        *overrides,
        "--out",
        str(tmp_path / "killed"),
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    latest = tmp_path / "killed" / "checkpoints" / "latest-rank0.pt"
    deadline = time.monotonic() + 100
    while not latest.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert latest.exists()
    assert not (tmp_path / "killed" / "result.json").exists()
    recipe = load_recipe("digits-mlp", overrides)
    resumed = train(recipe, RunFolder(tmp_path / "killed", recipe), progress=False)
    undisturbed = train(recipe, RunFolder(tmp_path / "whole", recipe), progress=False)
    assert resumed["steps"] == undisturbed["steps"] == 12 * 6
    assert resumed["metrics"] == pytest.approx(undisturbed["metrics"], rel=1e-6)
    epochs = [json.loads(line)["epoch"] for line in (tmp_path / "killed" / "metrics.jsonl").read_text().splitlines()]
    assert epochs == list(range(1, 13))


def test_a_machine_without_the_folder_learns_from_the_first_one_that_the_run_is_finished(tmp_path, monkeypatch):
    def broadcast(objects):
        objects[0] = {"as the first process": "has it"}

    monkeypatch.setattr(run_module.dist, "get_global_rank", lambda: 1)
    monkeypatch.setattr(run_module.dist, "broadcast_object_list", broadcast)
    assert run(tmp_path / "none") == {"as the first process": "has it"}
    assert not (tmp_path / "none").exists()


def test_the_command_asks_the_other_processes_before_it_says_that_a_run_is_finished(finished, monkeypatch, capsys):
    path, result = finished
    asked = []
    monkeypatch.setattr(run_module, "train", lambda *_, **__: asked.append(True) or result)
    command = ["train", "digits-mlp", *QUICK, "--out", str(path)]
    with pytest.raises(SystemExit, match="0"):
        main(command)
    assert not asked
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SystemExit, match="0"):
        main(command)
    assert asked
    assert capsys.readouterr().out.count("was not run again") == 2


def on_two_nodes(folders):
    """Train with two launchers, as on two machines with a folder and a disk each, and return their exit statuses."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    nodes = ["-n", "1", "--world_size", "2", "--master_addr", "127.0.0.1", "--master_port", str(port)]
    launchers = []
    for rank, folder in enumerate(folders):
        command = [sys.executable, "-m", "composer.cli.launcher", *nodes, "--node_rank", str(rank), "-m", "composer_ls"]
        command += ["train", "digits-mlp", *QUICK, "checkpoints.keep=true", "--out", str(folder)]
        launchers.append(
            subprocess.Popen(
                command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ | {"OMP_NUM_THREADS": "1"}
            )
        )
    try:
        return [launcher.wait(timeout=500) for launcher in launchers]
    finally:
        for launcher in launchers:
            launcher.terminate()


@pytest.mark.slow
def test_two_nodes_give_the_weights_of_one_process(tmp_path):
    folders = tmp_path / "first", tmp_path / "second"
    assert on_two_nodes(folders) == [0, 0]
    result = json.loads((folders[0] / "result.json").read_text())
    assert result["hardware"]["processes"] == 2
    assert not (folders[1] / "result.json").exists()
    run(tmp_path / "alone", "checkpoints.keep=true")
    weights, alone = (
        torch.load(folder / "checkpoints" / "latest-rank0.pt", weights_only=False)["state"]["model"]
        for folder in (folders[0], tmp_path / "alone")
    )
    assert weights.keys() == alone.keys()
    for name, weight in alone.items():
        torch.testing.assert_close(weights[name], weight, rtol=1e-3, atol=1e-3, msg=name)


@pytest.mark.slow
def test_two_processes_give_one_folder_with_the_same_result(tmp_path, finished):
    _, alone = finished
    launcher = [sys.executable, "-m", "composer.cli.launcher", "-n", "2", "-m", "composer_ls", "train", "digits-mlp"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run(
        [*launcher, *QUICK, "--out", str(tmp_path / "two")],
        check=True,
        capture_output=True,
        env=environment,
        timeout=150,
    )
    result = json.loads((tmp_path / "two" / "result.json").read_text())
    assert result["hardware"]["processes"] == 2
    assert result["steps"] == alone["steps"]
    assert result["metrics"] == pytest.approx(alone["metrics"], rel=1e-3, abs=1e-3)
    predictions = load_file(tmp_path / "two" / "predictions.safetensors")
    reference = load_file(finished[0] / "predictions.safetensors")
    assert torch.equal(predictions["labels"], reference["labels"])
    torch.testing.assert_close(predictions["logits"], reference["logits"], rtol=1e-2, atol=1e-2)
