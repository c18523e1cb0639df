"""The data sets that recipes name."""

import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from composer_ls.errors import DataNotFoundError, RecipeError
from composer_ls.lab.images.loaders import evaluation_loader, training_loader, unaugmented
from composer_ls.lab.images.memory_images import MemoryImages
from composer_ls.lab.tasks.classification.data import load_splits
from composer_ls.lab.tasks.classification.schema import ClassificationData


@pytest.fixture
def image_tree(tmp_path):
    for split, count in (("train", 6), ("test", 4)):
        for number, name in enumerate(("cat", "dog", "owl")):
            folder = tmp_path / split / name
            folder.mkdir(parents=True)
            for index in range(count):
                Image.new("RGB", (40, 30), (80 * number, 10 * index, 0)).save(folder / f"{index}.png")
    return tmp_path


def test_digits_are_the_real_ones_standardised():
    splits = load_splits(ClassificationData(name="digits"))
    images = torch.stack([image for image, _ in splits.train])
    assert (len(splits.train), len(splits.test), splits.num_classes) == (1437, 360, 10)
    assert images.shape[1:] == splits.image_shape == (1, 8, 8)
    assert images.mean().abs() < 1e-4
    assert abs(images.std() - 1) < 1e-4
    assert not {tuple(i.flatten().tolist()) for i, _ in splits.train} & {
        tuple(i.flatten().tolist()) for i, _ in splits.test
    }


@pytest.mark.parametrize("augmentation", ["none", "crop_flip", "resized_crop"])
def test_an_image_folder_gives_images_of_the_size_asked_for(image_tree, augmentation):
    data = ClassificationData(
        name="imagefolder", root=str(image_tree), image_size=32, augmentation=augmentation, batch_size=6
    )
    splits = load_splits(data)
    assert splits.classes == ("cat", "dog", "owl")
    images, labels = next(iter(training_loader(splits, data, seed=0)))
    assert images.shape == (6, 3, 32, 32)
    assert images.dtype == torch.float32
    assert set(labels.tolist()) <= {0, 1, 2}
    assert sum(len(labels) for _, labels in evaluation_loader(splits, data)) == 12


@pytest.mark.parametrize("in_memory", [True, False])
def test_a_part_of_the_training_images_is_held_out_and_not_augmented(image_tree, in_memory):
    data = ClassificationData(
        name="imagefolder", root=str(image_tree), image_size=32, augmentation="crop_flip", batch_size=6,
        in_memory=in_memory, validation=6, examples=9, label_noise={"rate": 1.0},
    )  # fmt: skip
    splits = load_splits(data)
    whole = load_splits(
        ClassificationData(name="imagefolder", root=str(image_tree), image_size=32, in_memory=in_memory)
    )
    known = {image.numpy().tobytes(): label for image, label in whole.train}
    held_out = [(image, label) for images, labels in evaluation_loader(splits, data, "validation")
                for image, label in zip(images, labels, strict=True)]  # fmt: skip
    assert [int(label) for _, label in held_out] == [0, 0, 1, 1, 2, 2]
    assert all(known[image.numpy().tobytes()] == label for image, label in held_out)
    assert (len(splits.train), splits.wrong_labels) == (9, 1.0)
    plain = unaugmented(splits.train, splits.test)
    trained = {image.numpy().tobytes() for image, _ in plain}
    assert len(trained) == 9
    assert trained <= known.keys() - {image.numpy().tobytes() for image, _ in held_out}
    assert len(next(iter(training_loader(splits, data, seed=0)))[1]) == 6


def test_cifar_is_divided_without_being_in_memory(tmp_path, monkeypatch):
    def source(root, train, transform, download):
        count = 40 if train else 20
        return SimpleNamespace(
            data=np.arange(count, dtype=np.uint8)[:, None, None, None].repeat(3, 3), targets=[0, 1] * (count // 2),
            classes=["a", "b"], transform=transform,
        )  # fmt: skip

    (tmp_path / "cifar-10-batches-py").mkdir()
    monkeypatch.setattr("torchvision.datasets.CIFAR10", source)
    splits = load_splits(
        ClassificationData(
            name="cifar10", root=str(tmp_path), in_memory=False, validation=20 / 40, examples=10
        ).model_copy()
    )
    held_out, kept = (set(part.data[:, 0, 0, 0].tolist()) for part in (splits.validation, splits.train))
    assert (len(held_out), len(kept), held_out & kept) == (20, 10, set())
    assert [int(value) % 2 for value in splits.train.data[:, 0, 0, 0]] == splits.train.targets


def test_the_test_split_may_be_called_val(image_tree):
    (image_tree / "test").rename(image_tree / "val")
    assert len(load_splits(ClassificationData(name="imagefolder", root=str(image_tree))).test) == 12


def test_the_seed_decides_the_order():
    data = ClassificationData(name="digits", batch_size=16)
    splits = load_splits(data)
    orders = [torch.cat([labels for _, labels in training_loader(splits, data, seed)]) for seed in (0, 0, 1)]
    assert torch.equal(orders[0], orders[1])
    assert not torch.equal(orders[0], orders[2])


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_absent_cifar_says_where_it_looked_and_how_to_get_it(name, tmp_path):
    with pytest.raises(DataNotFoundError, match=f"{name} is not at {tmp_path}.*data.download=true.*data.root=DIR"):
        load_splits(ClassificationData(name=name, root=str(tmp_path)))


def test_incomplete_cifar_says_how_to_get_it_again(tmp_path):
    (tmp_path / "cifar-10-batches-py").mkdir()
    with pytest.raises(DataNotFoundError, match="cifar10 at .*cifar-10-batches-py is not complete.*data.download=true"):
        load_splits(ClassificationData(name="cifar10", root=str(tmp_path)))


@pytest.mark.parametrize("local_rank", [0, 1])
def test_one_process_a_machine_downloads(tmp_path, monkeypatch, local_rank):
    asked = []

    def source(root, train, transform, download):
        asked.append(download)
        return SimpleNamespace(classes=["cat"])

    monkeypatch.setattr("torchvision.datasets.CIFAR10", source)
    monkeypatch.setattr("composer.utils.dist.get_local_rank", lambda: local_rank)
    load_splits(ClassificationData(name="cifar10", root=str(tmp_path), download=True, in_memory=False))
    assert asked == [local_rank == 0] * 2


def test_a_download_that_fails_is_told(tmp_path, monkeypatch):
    def source(*_, **__):
        raise OSError("no route to host")

    monkeypatch.setattr("torchvision.datasets.CIFAR10", source)
    with pytest.raises(DataNotFoundError, match="could not be downloaded to .*no route to host.*data.root=DIR"):
        load_splits(ClassificationData(name="cifar10", root=str(tmp_path), download=True))


def test_a_class_without_images_is_named(image_tree):
    for file in (image_tree / "train" / "owl").iterdir():
        file.unlink()
    with pytest.raises(DataNotFoundError, match="holds no images .*owl.*data.root=DIR"):
        load_splits(ClassificationData(name="imagefolder", root=str(image_tree)))


def test_an_absent_folder_says_what_it_should_hold(tmp_path):
    with pytest.raises(DataNotFoundError, match=f"no class folders in {tmp_path}/train.*data.root=DIR"):
        load_splits(ClassificationData(name="imagefolder", root=str(tmp_path)))


def test_splits_with_different_classes_are_refused(image_tree):
    (image_tree / "test" / "owl").rename(image_tree / "test" / "newt")
    with pytest.raises(DataNotFoundError, match="must hold the same classes, but newt, owl"):
        load_splits(ClassificationData(name="imagefolder", root=str(image_tree)))


def test_a_batch_larger_than_the_data_is_refused():
    data = ClassificationData(name="digits", batch_size=2000)
    with pytest.raises(RecipeError, match="data.batch_size=2000 exceeds the 1437 training examples"):
        training_loader(load_splits(data), data, seed=0)


@pytest.mark.parametrize("size", [32, 20])
def test_in_memory_and_from_the_files_a_test_image_is_the_same(image_tree, size):
    passes = []
    for in_memory in (True, False):
        data = ClassificationData(
            name="imagefolder", root=str(image_tree), image_size=size, batch_size=5, in_memory=in_memory
        )
        splits = load_splits(data)
        assert isinstance(splits.test, MemoryImages) == in_memory
        passes.append([torch.cat(parts) for parts in zip(*evaluation_loader(splits, data), strict=True)])
    assert torch.equal(passes[0][1], passes[1][1])
    torch.testing.assert_close(passes[0][0], passes[1][0])


@pytest.mark.parametrize(
    ("settings", "held"),
    [
        ({}, True),
        ({"image_size": 33}, False),
        ({"image_size": 33, "in_memory": True}, True),
        ({"in_memory": False}, False),
        ({"augmentation": "resized_crop", "image_size": 8}, False),
    ],
)
def test_images_are_held_in_memory_if_they_fit(image_tree, monkeypatch, settings, held):
    monkeypatch.setattr("composer_ls.lab.tasks.classification.data.MEMORY_LIMIT", 30 * 32 * 32 * 3)
    splits = load_splits(ClassificationData(name="imagefolder", root=str(image_tree), **settings))
    assert isinstance(splits.train, MemoryImages) == isinstance(splits.test, MemoryImages) == held


def test_cifar_is_held_in_memory_as_its_files_hold_it(tmp_path, monkeypatch):
    pixels = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)

    def source(root, train, transform, download):
        return SimpleNamespace(data=pixels, targets=[3, 1, 0, 2], classes=list("abcd"), transform=transform)

    monkeypatch.setattr("torchvision.datasets.CIFAR10", source)
    (tmp_path / "cifar-10-batches-py").mkdir()
    splits = load_splits(ClassificationData(name="cifar10", root=str(tmp_path)))
    image, label = splits.test[2]
    from_file = load_splits(ClassificationData(name="cifar10", root=str(tmp_path), in_memory=False)).test
    torch.testing.assert_close(image, from_file.transform(Image.fromarray(pixels[2])))
    assert label == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"name": "imagefolder", "augmentation": "resized_crop", "in_memory": True},
            "data.in_memory=true does not work with data.augmentation=resized_crop.*use data.in_memory=auto",
        ),
        ({"name": "digits", "in_memory": False}, "data.in_memory=false does not work with data.name=digits.*leave it"),
        ({"name": "digits", "augmentation": "resized_crop"}, "resized_crop does not work with data.name=digits"),
    ],
)
def test_what_cannot_be_held_in_memory_or_outside_is_refused(image_tree, settings, message):
    with pytest.raises(RecipeError, match=message):
        load_splits(ClassificationData(root=str(image_tree), **settings))


@pytest.mark.slow
@pytest.mark.skipif("COMPOSER_LS_DATA" not in os.environ, reason="COMPOSER_LS_DATA is unset: no real images here")
def test_the_real_cifar_images_load():
    root = Path(os.environ["COMPOSER_LS_DATA"]) / "cifar10-jpeg"
    data = ClassificationData(name="imagefolder", root=str(root), augmentation="crop_flip")
    splits = load_splits(data)
    assert (len(splits.train), len(splits.test), splits.num_classes) == (50_000, 10_000, 10)
    images, _ = next(iter(training_loader(splits, data, seed=0)))
    assert images.shape == (128, 3, 32, 32)
    assert images.mean().abs() < 0.3


@pytest.mark.parametrize(
    ("names", "pairs", "caution"),
    [
        (["0", "1", "2", "10"], None, "class number 2 is 10, because"),
        (["1", "2", "3"], {1: 2}, "class number 0 is 1, because"),
        (["1", "2", "3"], None, None),
        (["00", "01", "02"], {1: 2}, None),
        (["0", "10", "2b"], None, None),
    ],
)
def test_classes_named_by_numbers_that_are_not_theirs_are_a_caution(tmp_path, names, pairs, caution):
    for split in ("train", "test"):
        for name in names:
            (tmp_path / split / name).mkdir(parents=True)
            Image.new("RGB", (8, 8)).save(tmp_path / split / name / "one.png")
    noise = pairs and {"rate": 1.0, "pairs": pairs}
    data = ClassificationData(name="imagefolder", root=str(tmp_path), label_noise=noise)
    cautions = load_splits(data).cautions
    assert len(cautions) == (caution is not None)
    assert all(caution in one for one in cautions)
