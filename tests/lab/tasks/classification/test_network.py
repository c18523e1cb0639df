"""Networks of torchvision and timm, the weights that they begin with, and which of them are trained."""

import copy
import json
import re

import pytest
import torch
import torchvision
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from composer_ls.errors import MissingPackageError, RecipeError
from composer_ls.lab.images.preprocessing import Preprocessing
from composer_ls.lab.recipe.reading import load_recipe
from composer_ls.lab.run_folder.folder import RunFolder
from composer_ls.lab.tasks.classification import network as network_module
from composer_ls.lab.tasks.classification.data import load_splits
from composer_ls.lab.tasks.classification.network import (
    backbone_parameters,
    build_network,
    expected_preprocessing,
    head_names,
    load_weights,
)
from composer_ls.lab.tasks.classification.schema import ClassificationData, ClassificationModel
from composer_ls.lab.tasks.classification.weights import weights_metadata
from composer_ls.lab.training.train import train

MOBILE = "torchvision/mobilenet_v3_small"
CLASSES = ("a", "b", "c")


def model(name, **settings):
    return ClassificationModel(name=name, **settings)


@pytest.mark.parametrize(
    ("name", "size", "head"),
    [
        (MOBILE, 32, "classifier.3"),
        ("torchvision/squeezenet1_1", 32, "classifier.1"),
        ("torchvision/googlenet", 64, "fc"),
        ("timm/resnet10t", 32, "fc"),
        ("timm/vit_tiny_patch16_224", 48, "head"),
        ("timm/mobilenetv3_small_050.lamb_in1k", 32, "classifier"),
        ("mlp", 8, "5"),
        ("resnet20", 32, "classifier"),
    ],
)
def test_a_network_is_built_for_the_images_and_the_head_for_the_classes(name, size, head):
    network = build_network(model(name), (3, size, size), 7)
    assert head_names(network, 7) == [head]
    assert network.training
    assert network(torch.zeros(2, 3, size, size)).shape == (2, 7)


def test_networks_of_timm_take_any_number_of_channels_and_arguments():
    network = build_network(model("timm/resnet10t", arguments={"drop_rate": 0.5}), (1, 32, 32), 7)
    assert network.drop_rate == 0.5
    assert network(torch.zeros(2, 1, 32, 32)).shape == (2, 7)


@pytest.mark.parametrize(
    ("settings", "shape", "message"),
    [
        (model("torchvision/resnet51"), (3, 32, 32), "there is no resnet51 among .*: did you mean torchvision/resnet"),
        (model("timm/resnet10x"), (3, 32, 32), "there is no resnet10x among .*: did you mean timm/resnet10t"),
        (model(MOBILE), (1, 32, 32), "takes images of 3 channels, but these have 1: use a network of timm"),
        (
            model("torchvision/resnet18", arguments={"wide": 2}),
            (3, 32, 32),
            "torchvision does not make resnet18 of .*'wide'",
        ),
        (model("timm/resnet10t", arguments={"wide": 2}), (3, 32, 32), "timm does not make resnet10t for .*'wide'"),
        (model("torchvision/vit_b_16"), (3, 32, 32), "does not take images of shape \\(N, 3, 32, 32\\): .*height"),
    ],
)
def test_what_a_library_does_not_make_is_told(settings, shape, message):
    with pytest.raises(RecipeError, match=message):
        build_network(settings, shape, 7)


def test_without_timm_the_line_that_installs_it_is_told(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "timm", None)
    with pytest.raises(MissingPackageError, match=re.escape("pip install 'composer_ls[timm]'")):
        build_network(model("timm/resnet10t"), (3, 32, 32), 7)


@pytest.fixture
def downloads(monkeypatch):
    """torchvision's default weights, made here instead of downloaded."""
    made = torchvision.models.mobilenet_v3_small().state_dict()
    enum = torchvision.models.MobileNet_V3_Small_Weights
    monkeypatch.setattr(enum, "get_state_dict", lambda self, **options: copy.deepcopy(made))
    return made


def test_default_weights_are_the_librarys_with_a_new_head(downloads):
    settings = model(MOBILE, weights="default")
    network = build_network(settings, (3, 32, 32), 3)
    assert load_weights(network, settings, CLASSES) == {"from": MOBILE, "left_out": []}
    torch.testing.assert_close(network.features[0][0].weight, downloads["features.0.0.weight"])
    assert network.classifier[3].weight.shape[0] == 3


def test_the_names_in_torchvisions_old_files_are_those_of_its_networks(monkeypatch):
    made = torchvision.models.densenet121().state_dict()
    old = {re.sub(r"(denselayer\d+\.(norm|conv))(\d)", r"\1.\3", name): value for name, value in made.items()}
    assert len(old.keys() - made.keys()) > 500
    monkeypatch.setattr(torchvision.models.DenseNet121_Weights, "get_state_dict", lambda self, **options: old)
    settings = model("torchvision/densenet121", weights="default")
    network = build_network(settings, (3, 32, 32), 3)
    load_weights(network, settings, CLASSES)
    name = "features.denseblock1.denselayer1.norm1.weight"
    assert torch.equal(network.state_dict()[name], made[name])


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_a_network_transforms_its_input_whatever_weights_it_begins_with(name):
    for weights in (None, "default", "weights.safetensors"):
        assert build_network(model(f"torchvision/{name}", weights=weights), (3, 96, 96), 3).transform_input


def test_pretrained_weights_bring_the_librarys_preprocessing(tmp_path):
    for split in ("train", "test"):
        for label in CLASSES:
            (tmp_path / split / label).mkdir(parents=True)
            Image.new("RGB", (20, 12), "gray").save(tmp_path / split / label / "one.png")
    expected = expected_preprocessing(model(MOBILE, weights="default"))
    assert (expected.size, expected.mean[0]) == ((224, 224), 0.485)
    inception = expected_preprocessing(model("torchvision/inception_v3", weights="default"))
    assert inception.size == (299, 299)
    of_timm = expected_preprocessing(model("timm/vit_tiny_patch16_224.augreg_in21k_ft_in1k", weights="default"))
    assert (of_timm.size, of_timm.mean) == ((224, 224), (0.5, 0.5, 0.5))
    assert expected_preprocessing(model(MOBILE)) is None
    data = {"name": "imagefolder", "root": str(tmp_path)}
    splits = load_splits(ClassificationData(**data), pretrained=of_timm)
    assert splits.image_shape == (3, 224, 224)
    assert splits.preprocessing == of_timm
    small = load_splits(ClassificationData(**data, image_size=16), pretrained=of_timm)
    assert small.image_shape == (3, 16, 16)
    wide = Preprocessing((24, 48), (0.5,) * 3, (0.5,) * 3)
    with pytest.raises(
        RecipeError, match=r"images of 24 by 48 pixels, but .* square: choose a size with data\.image_size=48"
    ):
        load_splits(ClassificationData(**data), pretrained=wide)
    assert load_splits(ClassificationData(**data, image_size=16), pretrained=wide).image_shape == (3, 16, 16)
    torch.testing.assert_close(small.test[0][0], torch.full((3, 16, 16), (128 / 255 - 0.5) / 0.5))


def test_a_download_that_fails_says_so_and_what_to_do(monkeypatch):
    def refuse(self, **options):
        raise OSError("no route to host")

    monkeypatch.setattr(torchvision.models.MobileNet_V3_Small_Weights, "get_state_dict", refuse)
    settings = model(MOBILE, weights="default")
    message = "could not be downloaded \\(no route to host\\): .*or download them elsewhere and use model.weights=FILE"
    with pytest.raises(RecipeError, match=message):
        load_weights(build_network(settings, (3, 32, 32), 3), settings, CLASSES)


def saved(tmp_path, count=5, kind="safetensors", **metadata):
    network = build_network(model("cnn"), (3, 8, 8), count)
    file = tmp_path / f"weights.{kind}"
    if kind == "pt":
        torch.save({"state_dict": network.state_dict()}, file)
    else:
        save_file(network.state_dict(), file, weights_metadata(**metadata) if metadata else None)
    return file, network


@pytest.mark.parametrize("kind", ["safetensors", "pt"])
def test_weights_of_a_file_are_loaded_and_a_head_of_another_size_is_left_out_and_told(tmp_path, kind):
    file, source = saved(tmp_path, 5, kind)
    settings = model("cnn", weights=str(file))
    network = build_network(settings, (3, 8, 8), 3)
    (told,) = load_weights(network, settings, CLASSES)["left_out"]
    assert "begins with new weights" in told
    assert "(5, 128)" in told
    torch.testing.assert_close(network[0].weight, source[0].weight)
    same = build_network(settings, (3, 8, 8), 5)
    assert load_weights(same, settings, tuple("abcde"))["left_out"] == []
    torch.testing.assert_close(same[-1].weight, source[-1].weight)


def test_a_head_of_the_same_size_for_other_classes_is_left_out_and_told(tmp_path):
    file, source = saved(tmp_path, 3, classes=["x", "y", "z"], preprocessing=None)
    settings = model("cnn", weights=str(file))
    network = build_network(settings, (3, 8, 8), 3)
    (told,) = load_weights(network, settings, CLASSES)["left_out"]
    assert "they are for the classes x, y, z, and the data has a, b, c" in told
    assert not torch.equal(network[-1].weight, source[-1].weight)


class Prototypes(nn.Module):
    """A network without a last layer of its own: logits are similarities to a vector of each class."""

    def __init__(self, count):
        super().__init__()
        self.body, self.vectors = nn.Linear(4, 8), nn.Parameter(torch.randn(count, 8))

    def forward(self, images):
        return self.body(images) @ self.vectors.T


def test_weights_for_other_classes_are_refused_where_the_last_layer_is_not_known(tmp_path):
    source, network, file = Prototypes(3), Prototypes(3), tmp_path / "weights.safetensors"
    settings = model("cnn", weights=str(file))
    save_file(source.state_dict(), file, weights_metadata(["x", "y", "z"], None))
    with pytest.raises(
        RecipeError, match="for the classes x, y, z, and the data has a, b, c, but .*in the function of"
    ):
        load_weights(network, settings, CLASSES)
    save_file(source.state_dict(), file, weights_metadata(CLASSES, None))
    load_weights(network, settings, CLASSES)
    assert torch.equal(network.vectors, source.vectors)


def test_a_file_of_ours_brings_its_preprocessing(tmp_path):
    known = {"size": [8, 8], "mean": [0.1] * 3, "std": [0.2] * 3, "crop": False}
    file, _ = saved(tmp_path, 3, classes=CLASSES, preprocessing=known)
    assert expected_preprocessing(model("cnn", weights=str(file))).as_dict() == known
    assert expected_preprocessing(model("cnn", weights=str(saved(tmp_path, 3)[0]))) is None


def test_weights_that_cannot_be_used_are_told(tmp_path):
    def refused(file, message, name="cnn"):
        settings = model(name, weights=str(file))
        with pytest.raises(RecipeError, match=message):
            load_weights(build_network(settings, (3, 8, 8), 3), settings, CLASSES)

    refused(tmp_path / "none.pt", "there is no file")
    (tmp_path / "bad.pt").write_bytes(b"no weights")
    refused(tmp_path / "bad.pt", "cannot be read|is not read")
    (tmp_path / "bad.safetensors").write_bytes(b"no weights")
    refused(tmp_path / "bad.safetensors", "cannot be read")
    torch.save(nn.Linear(2, 2), tmp_path / "module.pt")
    refused(tmp_path / "module.pt", "holds more than weights, such as a whole module.* save network.state_dict\\(\\)")
    torch.save([1, 2], tmp_path / "list.pt")
    refused(tmp_path / "list.pt", "holds list, but must hold a state_dict")
    refused(saved(tmp_path)[0], "does not fit the network: it has no .*; use weights of the same network", "mlp")


@pytest.mark.parametrize("name", ["cnn", "timm/resnet10t"])
def test_a_frozen_backbone_keeps_its_weights_and_statistics_and_the_head_learns(name, tmp_path):
    overrides = [f"model={{name: {name}, freeze: backbone}}", "duration=2ba", "data.batch_size=32", "eval_interval=1ep"]
    recipe = load_recipe("digits-mlp", overrides)
    begun = build_network(recipe.model, (1, 8, 8), 10)
    seen = {}

    def keep(task, trainer, measure=network_module.FrozenStatistics.before_forward):
        measure(task, trainer, None)
        seen["network"] = trainer.model.module

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(network_module.FrozenStatistics, "before_forward", lambda self, state, logger: keep(self, state))
        patch.setattr("composer_ls.lab.tasks.classification.task.build_network", lambda *_, **__: copy.deepcopy(begun))
        train(recipe, RunFolder(tmp_path, recipe), progress=False)
    (head,) = head_names(begun, 10)
    for key, value in seen["network"].state_dict().items():
        assert torch.equal(value, begun.state_dict()[key]) != key.startswith(f"{head}."), key


def test_backbone_scale_is_the_learning_rate_of_all_but_the_head():
    from composer_ls.lab.tasks.registry import open_task
    from composer_ls.lab.training.train import _optimizer

    recipe = load_recipe(
        "digits-mlp", ["optimizer={name: adamw, learning_rate: 0.01, backbone_scale: 0.1, weight_decay: 0.5}"]
    )
    task = open_task(recipe)
    made = task.model()
    groups = _optimizer(recipe.optimizer, made, task).param_groups
    assert [group["lr"] for group in groups] == [pytest.approx(0.001), 0.01]
    assert [group["weight_decay"] for group in groups] == [0.5, 0.5]
    assert [parameter.shape[0] for parameter in groups[1]["params"]] == [10, 10]
    assert len(groups[0]["params"]) == 4
    frozen = load_recipe("digits-mlp", ["model.freeze=backbone", "optimizer.backbone_scale=0.1"])
    task = open_task(frozen)
    with pytest.raises(RecipeError, match="needs a backbone and a last layer that are both trained"):
        _optimizer(frozen.optimizer, task.model(), task)


def test_a_network_whose_last_layer_is_not_known_cannot_have_a_backbone():
    with pytest.raises(RecipeError, match="no linear layer or convolution in it has 3 outputs"):
        backbone_parameters(nn.Sequential(nn.Linear(4, 2)), model("mlp"), 3)


def test_a_run_begins_with_the_weights_of_another_and_its_result_says_so(tmp_path, capsys):
    file, _ = saved(tmp_path, 5)
    recipe = load_recipe("digits-mlp", [f"model={{name: cnn, weights: {file}}}", "duration=1ba", "data.batch_size=32"])
    with pytest.raises(RecipeError, match="0.weight is \\(32, 3, 3, 3\\) instead of \\(32, 1, 3, 3\\)"):
        train(recipe, RunFolder(tmp_path / "run", recipe), progress=False)
    grey = build_network(model("cnn"), (1, 8, 8), 5)
    save_file(grey.state_dict(), file)
    result = train(recipe, RunFolder(tmp_path / "run", recipe), progress=False)
    assert result["weights"]["from"] == str(file)
    assert "begins with new weights" in capsys.readouterr().err
    assert any("begins with new weights" in warning for warning in result["warnings"])
    assert json.loads((tmp_path / "run" / "result.json").read_text())["weights"] == result["weights"]
