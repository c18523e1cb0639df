"""Wrong labels on purpose."""

import pytest
import torch
from PIL import Image

from composer_ls.errors import RecipeError
from composer_ls.lab.images.label_noise import noisy_labels
from composer_ls.lab.images.loaders import evaluation_loader, labels_of, training_loader
from composer_ls.lab.recipe.reading import load_recipe
from composer_ls.lab.run_folder.folder import RunFolder
from composer_ls.lab.tasks.classification.data import load_splits
from composer_ls.lab.tasks.classification.schema import ClassificationData
from composer_ls.lab.training.train import train

LABELS = torch.arange(10).repeat(2000)


@pytest.mark.parametrize("rate", [0, 0.2, 0.5, 1])
def test_symmetric_noise_has_its_rate_and_every_wrong_class_equally(rate):
    wrong = noisy_labels(LABELS, 10, rate)
    changed = wrong != LABELS
    assert changed.double().mean() == pytest.approx(rate, abs=0.01)
    steps = torch.bincount((wrong - LABELS)[changed] % 10, minlength=10)
    assert steps[0] == 0
    assert all(abs(count - rate * 20_000 / 9) <= 4 * (rate * 20_000 / 9) ** 0.5 for count in steps[1:].tolist())


def test_pairs_change_their_classes_only_and_in_their_direction():
    wrong = noisy_labels(LABELS, 10, 0.4, {3: 5, 9: 1})
    for source in range(10):
        target = {3: 5, 9: 1}.get(source)
        became = wrong[source == LABELS]
        assert set(became.tolist()) == ({source, target} if target is not None else {source})
    assert (wrong[LABELS == 3] == 5).double().mean() == pytest.approx(0.4, abs=0.03)


def test_the_seed_decides_and_a_higher_rate_changes_the_same_and_more():
    few, many = (noisy_labels(LABELS, 10, rate) for rate in (0.2, 0.4))
    assert torch.equal(many[few != LABELS], few[few != LABELS])
    assert torch.equal(noisy_labels(LABELS, 10, 0.2), few)
    assert not torch.equal(noisy_labels(LABELS, 10, 0.2, seed=1), few)


def test_random_numbers_of_the_run_are_left_alone():
    state = torch.get_rng_state()
    noisy_labels(LABELS, 10, 0.2)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("pairs", [{0: 0}, {0: 10}, {-1: 3}])
def test_pairs_that_lead_nowhere_are_refused(pairs):
    with pytest.raises(RecipeError, match="data.label_noise.pairs has .* from 0 to 9"):
        noisy_labels(LABELS, 10, 0.2, pairs)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.label_noise.rate=1.5", "data.label_noise.rate is 1.5"),
        ("data.label_noise={}", "the key data.label_noise.rate is missing"),
        (
            "data.label_noise={rate: 0.1, kind: pairs}",
            "unknown key data.label_noise.kind: .*allowed are rate, pairs, seed",
        ),
        ("data.label_noise={rate: 0.1, pairs: {cat: 3}}", "data.label_noise.pairs.cat"),
    ],
)
def test_wrong_settings_are_named(override, message):
    with pytest.raises(RecipeError, match=message):
        load_recipe("digits-mlp", [override])


@pytest.fixture
def image_tree(tmp_path):
    for split in ("train", "test"):
        for number, name in enumerate(("cat", "dog", "owl")):
            (tmp_path / split / name).mkdir(parents=True)
            for index in range(8):
                Image.new("RGB", (8, 8), (80 * number, 10 * index, 0)).save(tmp_path / split / name / f"{index}.png")
    return tmp_path


@pytest.mark.parametrize("in_memory", [True, False])
def test_training_labels_change_and_test_labels_do_not(image_tree, in_memory):
    data = ClassificationData(
        name="imagefolder", root=str(image_tree), image_size=8, in_memory=in_memory, batch_size=24,
        label_noise={"rate": 1.0, "pairs": {0: 1, 1: 2, 2: 0}},
    )  # fmt: skip
    splits = load_splits(data)
    assert splits.wrong_labels == 1
    assert labels_of(splits.train).tolist() == [1] * 8 + [2] * 8 + [0] * 8
    images, labels = next(iter(training_loader(splits, data, seed=0)))
    number = (images[:, 0].mean((1, 2)).argsort().argsort() // 8).tolist()  # red tells the true class
    assert labels.tolist() == [(n + 1) % 3 for n in number]
    assert torch.cat([labels for _, labels in evaluation_loader(splits, data)]).tolist() == [0] * 8 + [1] * 8 + [2] * 8


def test_a_run_records_the_true_rate_and_noise_costs_accuracy(tmp_path):
    def run(name, *overrides):
        recipe = load_recipe("digits-mlp", ["duration=2ep", "eval_interval=2ep", *overrides])
        return train(recipe, RunFolder(tmp_path / name, recipe), progress=False)

    noisy, clean = run("noisy", "data.label_noise.rate=0.6"), run("clean")
    assert clean["wrong_labels"] == 0
    assert noisy["wrong_labels"] == pytest.approx(0.6, abs=0.04)
    assert noisy["wrong_labels"] != 0.6
    assert noisy["metrics"]["accuracy"] < clean["metrics"]["accuracy"]
