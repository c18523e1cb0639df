"""The `diagnostics` section of a recipe: what it watches, and what the run folder keeps."""

import json
import os

import pytest
import torch
from composer import Trainer
from composer.models import ComposerClassifier
from PIL import Image
from safetensors.torch import load_file
from torch.nn import functional as F

from composer_ls.diagnostics.summary import summarise
from composer_ls.errors import DiagnosticsError, RecipeError
from composer_ls.lab.images.loaders import labels_of
from composer_ls.lab.recipe.reading import load_recipe
from composer_ls.lab.report.diagnosed_runs import read_all
from composer_ls.lab.run_folder.folder import RunFolder
from composer_ls.lab.tasks.classification.data import load_splits
from composer_ls.lab.tasks.classification.networks import build_model
from composer_ls.lab.tasks.classification.schema import ClassificationData, Diagnostics
from composer_ls.lab.tasks.classification.watching import build_diagnostics, choose_examples
from composer_ls.lab.training.train import train

QUICK = ["duration=3ep", "eval_interval=1ep", "checkpoints.interval=1ep", "data.batch_size=128"]
WATCHED = "diagnostics={examples: 500, mutual_information: {examples: 40, shift: 1}}"


def run(path, *overrides, **options):
    recipe = load_recipe("digits-mlp", [*QUICK, *overrides])
    return train(recipe, RunFolder(path, recipe), progress=False, **options)


@pytest.fixture(scope="module")
def watched(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "watched"
    return path, run(path, WATCHED)


def test_the_run_folder_keeps_features_that_give_the_logits(watched):
    path, _ = watched
    kept = load_file(path / "features.safetensors")
    predictions = load_file(path / "predictions.safetensors")
    assert kept["train.features"].shape == (500, 256)
    assert kept["test.features"].shape == (360, 256)
    assert all((kept["train.labels"] == label).sum() >= 100 for label in (0, 1, 2))
    logits = F.linear(kept["test.features"], kept["weight"], kept["bias"])
    torch.testing.assert_close(logits, predictions["logits"], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(kept["test.logits"], predictions["logits"], rtol=1e-4, atol=1e-4)
    assert torch.equal(kept["test.labels"], predictions["labels"])


def test_the_history_of_mutual_information_is_kept(watched):
    path, result = watched
    history = load_file(path / "features.safetensors")["mutual_information"]
    assert history[:, 0].tolist() == [11, 22, 33]
    assert history[-1, 1].item() == pytest.approx(result["diagnostics"]["mutual_information"])


def test_the_numbers_are_in_the_metrics_of_each_epoch_and_in_the_result(watched):
    path, result = watched
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    assert all("diagnostics/test/nc1" in line and "diagnostics/mutual_information" in line for line in lines)
    assert lines[-1]["diagnostics/train/nc1"] == pytest.approx(result["diagnostics"]["train/nc1"])
    assert result["diagnostics"]["test/accuracy"] == pytest.approx(result["metrics"]["accuracy"])


def test_watching_does_not_change_the_run(tmp_path, watched):
    assert run(tmp_path / "alone")["metrics"] == watched[1]["metrics"]
    assert not (tmp_path / "alone" / "features.safetensors").exists()


def test_a_watched_run_is_not_run_again_and_can_be_overwritten(tmp_path, watched):
    path, result = watched
    assert run(path, WATCHED) == result
    run(tmp_path, WATCHED, "duration=1ep")
    run(tmp_path, "duration=1ep", overwrite=True)
    assert not (tmp_path / "features.safetensors").exists()


def test_an_interval_in_steps_is_measured_at_the_end_too(tmp_path):
    result = run(tmp_path, "diagnostics={interval: 20ba, examples: 50, mutual_information: {examples: 40}}")
    history = load_file(tmp_path / "features.safetensors")["mutual_information"]
    assert history[:, 0].tolist() == [20, 33]
    assert "test/ece" in result["diagnostics"]


def test_no_half_features_are_left_when_the_disk_is_full(tmp_path, monkeypatch):
    folder = RunFolder(tmp_path, load_recipe("digits-mlp", QUICK))
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        folder.write_features({"weight": torch.zeros(3, 3)})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("diagnostics.clases=[0, 1, 2]", "unknown key diagnostics.clases: did you mean diagnostics.classes="),
        (
            "diagnostics.mutual_information.draw=3",
            "unknown key diagnostics.mutual_information.draw: did you mean diagnostics.mutual_information.draws=3",
        ),
        ("diagnostics.classes=[0]", r"diagnostics.classes is \[0\]: list should have at least 2 items"),
        (
            "diagnostics.classes=[0, 1, 10]",
            r"diagnostics.classes is \[0, 1, 10\], but must be different classes from 0",
        ),
        ("diagnostics.mutual_information.classes=[1, 1]", r"classes is \[1, 1\], but must be different classes"),
        ("diagnostics.examples=0", "diagnostics.examples is 0"),
        ("diagnostics.interval=0.1dur", "diagnostics.interval is '0.1dur'"),
        ("diagnostics.layer=head", "no linear layer 'head': there are 'module.1', 'module.3', 'module.5'"),
    ],
)
def test_wrong_settings_are_named(tmp_path, override, message):
    with pytest.raises(ValueError, match=message):
        run(tmp_path, override)


def test_examples_of_the_projected_classes_come_first_and_the_rest_is_spread():
    labels = torch.arange(5000) // 50  # a hundred classes, sorted
    chosen = choose_examples(labels, 400, (3, 50, 99))
    counts = torch.bincount(labels[chosen], minlength=100)
    assert len(chosen) == 400
    assert counts[[3, 50, 99]].tolist() == [50, 50, 50]
    assert counts.min() >= 1
    assert torch.equal(choose_examples(labels[:30], 400, (0, 1, 2)), torch.arange(30))
    assert len(choose_examples(labels, 2, (0, 1, 2))) == 2


def test_a_layer_that_is_not_there_does_not_cost_the_run_that_is_overwritten(watched):
    path, result = watched
    with pytest.raises(DiagnosticsError, match="no linear layer 'head'"):
        run(path, "diagnostics.layer=head", overwrite=True)
    assert json.loads((path / "result.json").read_text()) == result


@pytest.fixture
def image_tree(tmp_path):
    for split in ("train", "test"):
        for number, name in enumerate(("cat", "dog", "owl")):
            (tmp_path / split / name).mkdir(parents=True)
            for index in range(6):
                Image.new("RGB", (16, 16), (80 * number, 40 * index, 0)).save(tmp_path / split / name / f"{index}.png")
    return tmp_path


def test_images_of_files_are_looked_at_without_augmentation(image_tree):
    settings = {"name": "imagefolder", "root": str(image_tree), "image_size": 16, "augmentation": "crop_flip"}
    trainer = Trainer(
        model=ComposerClassifier(build_model("mlp", (3, 16, 16), 3), num_classes=3), progress_bar=False, device="cpu"
    )
    taken = []
    for in_memory in (False, True):
        data = ClassificationData(**settings, in_memory=in_memory)
        splits = load_splits(data)
        assert labels_of(splits.train).tolist() == [0] * 6 + [1] * 6 + [2] * 6
        taken.append(build_diagnostics(Diagnostics(), splits, data).collect(trainer.state)["train"])
    torch.testing.assert_close(taken[0].features, taken[1].features, rtol=1e-4, atol=1e-4)
    assert torch.equal(taken[0].labels, taken[1].labels)


def test_mutual_information_of_images_that_are_not_in_memory_is_refused(image_tree):
    data = ClassificationData(name="imagefolder", root=str(image_tree), image_size=16, in_memory=False)
    with pytest.raises(RecipeError, match="needs images in memory: use data.in_memory=true"):
        build_diagnostics(Diagnostics(mutual_information={}), load_splits(data), data)


def test_the_default_classes_are_both_where_there_are_two():
    assert Diagnostics().classes_of(2) == [0, 1]
    assert Diagnostics().classes_of(10) == [0, 1, 2]
    assert Diagnostics(classes=[1, 0]).classes_of(2) == [1, 0]


def test_the_page_shows_the_logits_of_a_network_that_scales_its_last_layer(tmp_path):
    recipe = load_recipe("digits-mlp", [*QUICK, "model={name: resnet9}", "diagnostics={examples: 200}", "duration=1ep"])
    result = train(recipe, RunFolder(tmp_path, recipe), progress=False)
    (run,) = read_all([tmp_path])
    assert run.taken("train").logits.abs().max() < run.taken("train").features.matmul(run.head[0].T).abs().max() / 4
    numbers, _ = summarise(run.taken("train"), *run.head)
    for name in ("equivalent_smoothing", "nll"):
        assert numbers[name] == pytest.approx(result["diagnostics"][f"train/{name}"])


def test_examples_of_ones_own_are_collated_as_for_evaluation(tmp_path, monkeypatch):
    (tmp_path / "strange.py").write_text(
        "import torch\nfrom torch.utils.data import DataLoader, TensorDataset\n"
        "def normalised(batch):\n    images, labels = zip(*batch)\n    return (torch.stack(images) - 0.3) * 50, torch.stack(labels)\n"
        "def augmented(batch):\n    images, labels = normalised(batch)\n    return images + torch.randn(images.shape), labels\n"
        "def part(n):\n    labels = torch.arange(n) % 3\n    images = 0.3 * torch.rand(n, 1, 8, 8)\n"
        "    for image, label in zip(images, labels):\n        image[0, 2 * label : 2 * label + 2] += 1\n"
        "    return TensorDataset(images, labels)\n"
        "def data():\n    return {'train': DataLoader(part(120), collate_fn=augmented), 'classes': ['a', 'b', 'c'],\n"
        "            'test': DataLoader(part(60), collate_fn=normalised)}\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    own = ["data={target: 'strange:data', batch_size: 20}", "diagnostics={}", "duration=6ep"]
    recipe = load_recipe("digits-mlp", own)
    result = train(recipe, RunFolder(tmp_path / "run", recipe), progress=False)
    assert result["metrics"]["accuracy"] == result["diagnostics"]["test/accuracy"] > 0.9
    assert result["diagnostics"]["train/accuracy"] > 0.9
