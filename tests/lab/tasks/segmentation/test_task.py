"""Runs on label maps: their files, losses, and supported algorithms."""

import json
import re

import numpy as np
import pytest
import torch
from camvid_support import write_camvid
from PIL import Image
from safetensors.torch import load_file

from composer_ls.diagnostics.pixels import PixelCounts, mean_iou, pixel_calibration_error, pixel_nll
from composer_ls.errors import InputError, RecipeError, TeacherError
from composer_ls.lab.commands.cli import main
from composer_ls.lab.compare.measured_runs import read_runs
from composer_ls.lab.recipe.reading import load_recipe
from composer_ls.lab.report.diagnosed_runs import read_all
from composer_ls.lab.run_folder.folder import RunFolder
from composer_ls.lab.tasks.registry import open_task
from composer_ls.lab.tasks.segmentation.networks import UNet
from composer_ls.lab.training.algorithms import build_algorithms
from composer_ls.lab.training.teacher import load_teacher
from composer_ls.lab.training.train import train

WITH_CLASSES = "1.png"
"""A mask of 20 that the recipe's seed puts into none of the first two batches of four."""


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_camvid(tmp_path_factory.mktemp("camvid"))


def run(path, root, *overrides):
    tiny = [
        f"data.root={root}",
        "data.batch_size=4",
        "model.width=4",
        "duration=3ba",
        "schedule.warmup=0ba",
        "device=cpu",
    ]
    recipe = load_recipe("camvid-unet", [*tiny, *overrides])
    return train(recipe, RunFolder(path, recipe), progress=False)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, root):
    path = tmp_path_factory.mktemp("runs") / "finished"
    return path, run(path, root, "duration=20ep", "optimizer.learning_rate=0.02")


def test_it_learns(finished):
    _, result = finished
    assert result["metrics"]["accuracy"] > 0.7
    assert 0.4 < result["metrics"]["mean_iou"] <= 1


def test_the_result_says_what_it_is_of(finished):
    _, result = finished
    assert result["task"] == "segmentation"
    assert result["metrics"].keys() == result["units"].keys() == {"mean_iou", "accuracy", "nll", "ece"}
    assert (result["image_shape"], result["examples"]) == ([3, 24, 32], {"train": 8, "test": 8})
    assert result["classes"][:2] == ["sky", "building"]
    assert result["plan"].startswith("smoothing 0.1, uniform over 11 classes; loss cross_entropy, fused")


def test_the_metrics_can_be_computed_again_from_small_predictions(finished):
    path, result = finished
    counts = PixelCounts(**load_file(path / "predictions.safetensors"))
    assert counts.confusion.shape == (8, 11, 11)
    metrics = {"mean_iou": mean_iou(counts), "nll": pixel_nll(counts), "ece": pixel_calibration_error(counts)}
    assert metrics.items() <= result["metrics"].items()
    assert (path / "predictions.safetensors").stat().st_size < 8 * 4096
    line = json.loads((path / "metrics.jsonl").read_text().splitlines()[-1])
    assert line["metrics/test/MulticlassJaccardIndex"] == pytest.approx(metrics["mean_iou"], abs=1e-6)


@pytest.mark.parametrize("loss", ["cross_entropy", "dice", "cross_entropy+dice"])
@pytest.mark.parametrize("mixer", ["mixup", "cutmix"])
def test_every_loss_trains_beside_every_mixer(tmp_path, root, loss, mixer):
    result = run(tmp_path, root, f"loss={loss}", f"algorithms.{mixer}={{alpha: 1.0}}", "duration=2ba")
    assert (
        f"{'MixUp' if mixer == 'mixup' else 'CutMix'} mixes first labels with second labels, both smoothed"
        in result["plan"]
    )
    assert all(torch.tensor(value).isfinite() for value in result["metrics"].values())


@pytest.mark.parametrize("loss", ["cross_entropy", "dice", "cross_entropy+dice"])
def test_batches_of_void_alone_have_zero_loss_and_leave_no_nan(tmp_path, loss):
    void = write_camvid(tmp_path / "void", count=20)
    for file in (void / "train" / "masks").iterdir():
        if file.name != WITH_CLASSES:
            Image.new("L", (32, 24), 11).save(file)
    run(tmp_path / "run", void, f"loss={loss}", "checkpoints.keep=true", "duration=2ba")
    lines = (tmp_path / "run/metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["loss/train/total"] == 0  # in the second step too
    checkpoint = torch.load(tmp_path / "run/checkpoints/latest-rank0.pt", weights_only=False)
    assert all(weights.isfinite().all() for weights in checkpoint["state"]["model"].values())


@pytest.mark.parametrize("shape", [(16, 16), (17, 31), (45, 60)])
def test_the_u_net_takes_images_of_any_size_from_16_pixels(shape):
    logits = UNet(3, 11, width=2)(torch.randn(2, 3, *shape))
    assert logits.shape == (2, 11, *shape)


def test_a_run_on_label_maps_is_no_teacher(finished):
    with pytest.raises(TeacherError, match="is for segmentation, but a teacher is a classifier"):
        load_teacher(finished[0])


def test_diagnostics_of_label_maps_are_refused(tmp_path, root):
    with pytest.raises(RecipeError, match="diagnostics are for classification only: use diagnostics=null"):
        run(tmp_path, root, "diagnostics={}")


def test_diagnose_of_label_maps_is_refused(finished):
    path, _ = finished
    with pytest.raises(InputError, match="is for segmentation, but diagnose is for classification"):
        read_all([path])


def test_compare_says_whether_smoothing_helps_label_maps(tmp_path, root, capsys):
    words = [f"data.root={root}", "data.batch_size=4", "model.width=4", "duration=2ep", "--seeds", "2"]
    with pytest.raises(SystemExit) as exit_info:
        main(["compare", "camvid-unet", *words, "--out", str(tmp_path / "out")])
    assert not exit_info.value.code
    assert re.search(r"^mIoU [+-]\d+\.\d\d points.*, 2 seeds: \w+", capsys.readouterr().out, re.M)
    assert len(list((tmp_path / "out").rglob("result.json"))) == 4


def test_compare_finds_what_does_not_fit_before_anything_runs(tmp_path, root, capsys):
    with pytest.raises(SystemExit) as exit_info:
        main(["compare", "camvid-unet", f"data.root={root}", "diagnostics={}", "--out", str(tmp_path / "out")])
    assert exit_info.value.code == 2
    assert "diagnostics are for classification only" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_unigram_prior_is_the_frequency_of_the_classes_in_training_pixels(root):
    task = open_task(load_recipe("camvid-unet", [f"data.root={root}"]))
    counts = task.label_counts()
    masks = [np.asarray(Image.open(file)) for file in (root / "train" / "masks").glob("*.png")]
    assert counts.tolist() == np.bincount(np.stack(masks).ravel(), minlength=12)[:11].tolist()
    (smoothing,) = build_algorithms({"label_smoothing": {"smoothing": 0.1, "prior": "unigram"}}, 11, task.label_counts)
    assert smoothing.prior.tolist() == pytest.approx((counts / counts.sum()).tolist())


def test_a_report_computes_what_the_run_measured(finished):
    path, result = finished
    (reported,), left_out = read_runs(path)
    assert not left_out
    assert {key: reported.values[key] for key in result["metrics"]} == pytest.approx(result["metrics"])
