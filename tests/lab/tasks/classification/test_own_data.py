"""Data and networks of the user's, through whole runs."""

import json
import re
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.utils.data import DataLoader, TensorDataset, WeightedRandomSampler
from torchvision.datasets import FakeData
from torchvision.transforms import ToTensor

from composer_ls.errors import RecipeError
from composer_ls.lab.images.loaders import training_loader
from composer_ls.lab.images.preprocessing import Preprocessing
from composer_ls.lab.recipe.reading import load_recipe
from composer_ls.lab.run_folder.folder import RunFolder
from composer_ls.lab.tasks.classification.data import load_splits
from composer_ls.lab.tasks.classification.own_data import own_splits
from composer_ls.lab.tasks.classification.schema import ClassificationData
from composer_ls.lab.training.train import train

HERE = "import_me_as_own"


def examples(count, classes=3, shape=(1, 4, 4)):
    labels = torch.arange(count) % classes
    return TensorDataset(torch.randn(count, *shape) + labels.view(-1, *[1] * len(shape)), labels)


def loaders(**changes):
    mapping = {"train": examples(48), "test": examples(12), "classes": ["a", "b", "c"]} | changes
    return {key: value for key, value in mapping.items() if value is not None}


def network(num_classes, image_shape, width=8):
    inputs = torch.Size(image_shape).numel()
    hidden = [torch.nn.Linear(inputs, width), torch.nn.ReLU()]
    return torch.nn.Sequential(torch.nn.Flatten(), *hidden, torch.nn.Linear(width, num_classes))


@pytest.fixture(autouse=True)
def own(monkeypatch):
    """This file, as a module that a recipe can name, with a function that returns what a test wants."""
    module = sys.modules[__name__]
    monkeypatch.setitem(sys.modules, HERE, module)

    def returning(value):
        monkeypatch.setattr(module, "returned", lambda: value, raising=False)
        return ClassificationData(target=f"{HERE}:returned")

    return returning


def own_recipe(*overrides):
    return load_recipe(
        "digits-mlp",
        [
            "duration=2ep",
            f"data={{target: '{HERE}:loaders', batch_size: 16}}",
            f"model.target={HERE}:network",
            *overrides,
        ],
    )


def test_a_run_trains_ones_own_network_on_ones_own_data(tmp_path):
    recipe = own_recipe("model.arguments={width: 16}", "diagnostics={}", "algorithms.label_smoothing.prior=unigram")
    result = train(recipe, RunFolder(tmp_path, recipe), progress=False)
    assert result["classes"] == ["a", "b", "c"]
    assert result["examples"] == {"train": 48, "test": 12}
    assert load_file(tmp_path / "predictions.safetensors")["labels"].tolist() == [0, 1, 2] * 4
    assert load_recipe(tmp_path / "recipe.yaml") == recipe


def test_a_validation_part_and_preprocessing_may_be_returned_too(own):
    known = {"size": [4, 4], "mean": [0.5], "std": [0.25]}
    splits = own_splits(own(loaders(validation=examples(6), preprocessing=known)))
    assert len(splits.validation) == 6
    assert splits.preprocessing.as_dict() == known | {"crop": False}
    assert own_splits(own(loaders())).preprocessing is None


def test_a_loader_gives_its_data_set_and_collate_function(own):
    def collate(batch):
        return torch.stack([image for image, _ in batch]) * 2, torch.tensor([int(label) for _, label in batch])

    loader = DataLoader(examples(48), batch_size=7, shuffle=True, collate_fn=collate)
    splits = own_splits(own(loaders(train=loader)))
    assert (len(splits.train), splits.train.collate) == (48, collate)
    assert splits.train.targets[:4] == [0, 1, 2, 0]


class Counting(TensorDataset):
    """Examples whose pixels are the epoch."""

    epoch = -1

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __getitem__(self, index):
        image, label = super().__getitem__(index)
        return torch.full_like(image, self.epoch), label


@pytest.mark.parametrize("workers", [0, 1])
def test_a_data_set_is_told_of_each_epoch_in_workers_too(own, workers):
    splits = own_splits(own(loaders(train=Counting(*examples(8).tensors))))
    loader = training_loader(splits, ClassificationData(target="a:b", batch_size=4, workers=workers), seed=0)
    for epoch in range(3):
        loader.sampler.set_epoch(epoch)
        assert {pixel for images, _ in loader for pixel in images.flatten().tolist()} == {epoch}


def test_targets_that_are_not_the_labels_of_the_examples_are_not_used(own):
    transformed = FakeData(12, (1, 4, 4), 3, ToTensor(), target_transform=lambda label: 2 - label)
    transformed.targets = [2 - int(transformed[index][1]) for index in range(12)]
    longer = examples(12)
    longer.targets = [0] * 48
    for given in (transformed, longer):
        assert own_splits(own(loaders(train=given))).train.targets == [int(given[index][1]) for index in range(12)]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (lambda: None, "returned returned NoneType, but must return a mapping"),
        (lambda: {"train": 1}, "returned the keys train, but must return a mapping"),
        (lambda: loaders(vaildation=1), "returned the keys vaildation too, but must return"),
        (lambda: loaders(train=iter([])), 'for "train", but must return a map-style data set'),
        (lambda: loaders(test=[]), 'returned no examples for "test"'),
        (lambda: loaders(classes=None), '"classes": None, but it must be the names of two classes or more'),
        (lambda: loaders(classes=["a"]), "must be the names of two classes or more"),
        (lambda: loaders(classes={"a", "b", "c"}), '"classes" as a set, which has no order: return a list'),
        (lambda: loaders(classes={"a": "ant", "b": "bee"}), "a mapping must be of names to the numbers 0 to 1"),
        (lambda: loaders(classes={"a": 1, "b": 2, "c": 3}), "a mapping must be of names to the numbers 0 to 2"),
        (lambda: loaders(classes={0: 1, 1: 2, 2: 0}), "a mapping must be of names to the numbers 0 to 2"),
        (lambda: loaders(classes=["a", "a", "b"]), "returned two classes of one name: a, a, b"),
        (lambda: loaders(classes=["a", "b"], test=examples(3, 3)[2:3]), "but must be \\(image, label\\)"),
        (lambda: loaders(train=[(torch.zeros(1, 2, 2), 3)]), "has the label 3, but there are classes 0 to 2"),
        (lambda: loaders(train=[(torch.zeros(1, 2, 2), 0.5)]), "has the label 0.5, but it must be an integer"),
        (
            lambda: loaders(train=[(torch.zeros(1, 2, 2, dtype=torch.uint8), 0)]),
            "has the image a tensor of uint8 of shape \\(1, 2, 2\\), but it must be a floating-point tensor",
        ),
        (
            lambda: loaders(test=examples(3, shape=(1, 5, 5))),
            'shape \\(1, 5, 5\\) for "test", but of shape \\(1, 4, 4\\) for "train"',
        ),
        (
            lambda: loaders(train=DataLoader(examples(4), sampler=WeightedRandomSampler([1.0] * 4, 4))),
            "with a WeightedRandomSampler, but the order of examples is composer-ls's",
        ),
        (
            lambda: loaders(train=DataLoader(examples(4), batch_sampler=[[0, 1], [0, 2]])),
            "with a list, but the order of examples is composer-ls's",
        ),
        (lambda: loaders(preprocessing={"size": [4, 4]}), "it needs size, mean and std"),
    ],
)
def test_what_was_returned_and_what_was_expected_are_told(own, value, message):
    with pytest.raises(RecipeError, match=message):
        own_splits(own(value()))


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (
            lambda: 3,
            "returned int, but must return a torch.nn.Module from images \\(N, 1, 4, 4\\) to logits \\(N, 3\\)",
        ),
        (lambda: torch.nn.Identity(), "turns 2 images into an output of shape \\(2, 1, 4, 4\\), but must give logits"),
        (lambda: torch.nn.Linear(5, 3), "does not take images of shape \\(N, 1, 4, 4\\): RuntimeError: mat1 and mat2"),
    ],
)
def test_a_network_that_does_not_fit_is_refused_before_training(own, made, message, tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "made", made, raising=False)
    recipe = own_recipe(f"model.target={HERE}:made")
    with pytest.raises(RecipeError, match=message):
        train(recipe, RunFolder(tmp_path / "run", recipe), progress=False)


def test_one_of_our_networks_takes_ones_own_images_and_says_which_it_does_not_take(own, tmp_path):
    recipe = own_recipe("model.name=mlp")
    assert train(recipe, RunFolder(tmp_path / "run", recipe), progress=False)["image_shape"] == [1, 4, 4]
    own(loaders(train=examples(32, shape=(5,)), test=examples(6, shape=(5,))))
    recipe = own_recipe(f"data.target={HERE}:returned", "model.name=mlp")
    with pytest.raises(
        RecipeError, match="takes images \\(channels, height, width\\), but these are of shape \\(5,\\)"
    ):
        train(recipe, RunFolder(tmp_path / "rows", recipe), progress=False)


def test_the_result_holds_the_preprocessing_that_the_function_returned(own, tmp_path):
    own(loaders(preprocessing={"size": [4, 4], "mean": [0.5], "std": [0.25]}))
    recipe = own_recipe(f"data.target={HERE}:returned")
    train(recipe, RunFolder(tmp_path, recipe), progress=False)
    assert json.loads((tmp_path / "result.json").read_text())["preprocessing"]["mean"] == [0.5]


def test_the_example_of_the_guide_learns_and_runs_in_parts(tmp_path, monkeypatch):
    guide = (Path(__file__).parents[4] / "examples" / "guides" / "your-own.md").read_text()
    for name, code in re.findall(r"```(?:py|yaml)\n# (\S+)\n(.*?)```", guide, re.S):
        (tmp_path / name).write_text(code)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    try:
        for overrides in ([], ["model.name=cnn"]):
            recipe = load_recipe("shapes.yaml", overrides)
            result = train(recipe, RunFolder(None, recipe), progress=False)
            assert result["metrics"]["accuracy"] > 0.9
        recipe = load_recipe("digits-mlp", ["model.target=shapes:make", "model.arguments={width: 16}", "duration=1ba"])
        assert train(recipe, RunFolder(None, recipe), progress=False)["steps"] == 1
    finally:
        sys.modules.pop("shapes", None)


class Named(TensorDataset):
    """Examples with names of classes, as an ImageFolder has."""

    def __init__(self, count, *classes):
        super().__init__(*examples(count, len(classes)).tensors)
        self.classes = list(classes)


def test_parts_that_number_their_classes_differently_are_refused(own):
    with pytest.raises(RecipeError, match=r'"train" than for "test" \(green and red have one number\)'):
        own_splits(own(loaders(train=Named(9, "blue", "green", "red"), test=Named(6, "blue", "red"), classes=None)))
    parts = {"train": Named(9, "a", "b", "c"), "test": Named(6, "a", "b", "c"), "classes": ["Ant", "Bee", "Cat"]}
    assert own_splits(own(loaders(**parts))).classes == ("Ant", "Bee", "Cat")


@pytest.mark.parametrize("classes", [{"c": 2, "b": 1, "a": 0}, {2: "c", 0: "a", 1: "b"}, iter("abc")])
def test_class_names_are_in_the_order_of_their_numbers(own, classes):
    assert own_splits(own(loaders(classes=classes))).classes == ("a", "b", "c")


@pytest.mark.parametrize("part", ["train", "test"])
def test_class_names_in_another_order_than_the_data_sets_are_refused(own, part):
    with pytest.raises(
        RecipeError, match=f'other order than the classes of "{part}": c is class 0 in the one and 2 in'
    ):
        own_splits(own(loaders(classes=["c", "b", "a"], **{part: Named(9, "a", "b", "c")})))


@pytest.mark.parametrize(
    ("known", "expected", "caution"),
    [
        ({"mean": [0.1], "std": [0.2]}, (0.1, 0.2), None),
        ({"mean": [0.1], "std": [0.2]}, (0.3, 0.2), "mean 0.1 and standard deviation 0.2 instead of mean 0.3 and"),
        (
            None,
            (0.3, 0.2),
            r"It is not known whether .* \(mean 0.3 and standard deviation 0.2\): let the function return",
        ),
    ],
)
def test_another_normalisation_than_the_weights_is_a_caution(own, known, expected, caution):
    mean, std = expected
    data = own(loaders(preprocessing=known and {"size": [4, 4], **known}))
    cautions = load_splits(data, pretrained=Preprocessing((4, 4), (mean,), (std,))).cautions
    assert len(cautions) == (caution is not None)
    assert all(re.search(caution, one) for one in cautions)
    assert load_splits(data, pretrained=Preprocessing((4, 4), (0.5,) * 3, (0.5,) * 3)).cautions == ()


def test_a_caution_about_the_data_is_among_the_runs_warnings(own, tmp_path):
    data = loaders(preprocessing={"size": [4, 4], "mean": [0.1], "std": [0.2]})
    for mean, run in ((0.1, "first"), (0.5, "second")):
        data["preprocessing"]["mean"] = [mean]
        own(data)
        weights = [] if run == "first" else [f"model.weights={tmp_path / 'first' / 'weights.safetensors'}"]
        recipe = own_recipe(f"data.target={HERE}:returned", *weights)
        result = train(recipe, RunFolder(tmp_path / run, recipe), progress=False)
        assert any("not normalised as model.weights expects" in one for one in result["warnings"]) == bool(weights)
