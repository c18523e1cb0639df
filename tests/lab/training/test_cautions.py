"""The warnings of a run."""

import json

import pytest
import torch
from torch.utils.data import DataLoader

from composer_ls.lab.commands.cli import main
from composer_ls.lab.images.loaders import Splits, training_loader
from composer_ls.lab.images.memory_images import MemoryImages
from composer_ls.lab.recipe.reading import load_recipe
from composer_ls.lab.run_folder.folder import RunFolder
from composer_ls.lab.tasks.no_better import no_better_than_nothing
from composer_ls.lab.training.cautions import dropped_share
from composer_ls.lab.training.train import train


def loader(examples, batch_size):
    images = MemoryImages(torch.zeros(examples, 2, 2, 1), torch.zeros(examples), mean=(0.5,), std=(0.5,))
    splits = Splits(images, images, 2, (1, 2, 2), ("a", "b"))
    return training_loader(splits, load_recipe("digits-mlp", [f"data.batch_size={batch_size}"]).data, seed=0)


@pytest.mark.parametrize(
    ("examples", "batches", "share"),
    [
        (180, [128, 52], 0),  # 29 % would be lost
        (138, [128], 10 / 138),
        (256, [128, 128], 0),
        (129, [128], 1 / 129),
    ],
)
def test_the_last_batch_is_kept_if_more_than_a_tenth_would_be_lost_and_the_share_is_known(examples, batches, share):
    found = loader(examples, 128)
    assert [len(labels) for _, labels in found] == batches
    assert dropped_share(found) == pytest.approx(share)


def test_a_last_batch_of_one_image_is_never_kept():
    assert [len(labels) for _, labels in loader(9, 4)] == [4, 4]
    assert dropped_share(DataLoader([1, 2, 3], batch_size=2)) == 0


def test_a_network_that_knows_nothing_is_told():
    counts, classes = torch.tensor([1, 2, 1]), ["a", "b", "c"]
    assert no_better_than_nothing({"accuracy": 0.75, "nll": 1.0}, counts, classes) == []
    assert no_better_than_nothing({"accuracy": float("nan"), "nll": float("nan")}, counts, classes) == []
    largest, uniform = no_better_than_nothing({"accuracy": 0.5, "nll": 320.0}, counts, classes)
    assert "50.0%" in largest
    assert "always answering b" in largest
    assert "320.00 is worse than that of equal probabilities for all 3 classes, 1.10" in uniform


def test_a_run_that_diverged_is_told_has_a_status_and_strict_json(tmp_path, capfd):
    overrides = ["duration=2ep", "optimizer.learning_rate=1e6", "on_divergence=continue"]
    with pytest.raises(SystemExit) as stop:
        main(["train", "digits-mlp", *overrides, "--out", str(tmp_path)])
    assert stop.value.code == 1
    printed = capfd.readouterr()
    assert "the run diverged" in printed.err
    assert "It diverged: at step 6 its training loss was nan. Use a smaller" in printed.out
    assert "NLL (nats)               not finite" in printed.out

    def refused(constant):
        raise AssertionError(f"{constant} is no JSON")

    result = json.loads((tmp_path / "result.json").read_text(), parse_constant=refused)
    assert result["diverged"]
    assert result["training"] == {"steps": 44, "dropped_share": pytest.approx(29 / 1437)}
    assert result["metrics"]["nll"] is None
    for line in (tmp_path / "metrics.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=refused)
    recipe = load_recipe("digits-mlp", overrides)
    assert train(recipe, RunFolder(tmp_path, recipe)) == result
