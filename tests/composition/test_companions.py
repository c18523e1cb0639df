"""Methods that leave targets alone compose unchanged: the loss receives the full smoothing, and training works."""

import importlib.util
from pathlib import Path

import pytest
import torch
import torchvision
from composer import Evaluator, Trainer
from composer.algorithms import (
    EMA,
    SAM,
    AugMix,
    BlurPool,
    ChannelsLast,
    ColOut,
    MixUp,
    ProgressiveResizing,
    RandAugment,
)
from composer.utils import reproducibility
from torch.utils.data import DataLoader, TensorDataset
from trainer_support import COMPANIONS, K, RecordingLoss, classifier, convolutional, examples, fit

from composer_ls import LabelSmoothing, SoftTargets


def assert_every_loss_saw_a_tenth(loss, at_least=3):
    assert len(loss.smoothed) >= at_least
    assert loss.smoothed == pytest.approx([0.1] * len(loss.smoothed), abs=1e-6)
    assert all(isinstance(target, SoftTargets) for target in loss.targets)


@pytest.mark.parametrize("companion", COMPANIONS.values(), ids=COMPANIONS)
@pytest.mark.parametrize("mixed", [False, True])
def test_the_loss_sees_the_whole_smoothing_beside(companion, mixed):
    loss = RecordingLoss()
    fit([companion(), LabelSmoothing(0.1), *([MixUp(0.5)] if mixed else [])], model=convolutional(loss), steps=5)
    assert_every_loss_saw_a_tenth(loss, at_least=5)


@pytest.mark.parametrize(
    "companion", [COMPANIONS["ColOut"], lambda: ProgressiveResizing(initial_scale=0.5, resize_targets=True)]
)
@pytest.mark.parametrize("first", [False, True])
def test_methods_that_rewrite_label_maps_compose(companion, first):
    loss = RecordingLoss()
    algorithms = [companion()]
    algorithms.insert(0 if first else 1, LabelSmoothing(0.1))
    fit(algorithms, model=classifier(loss, segmentation=True), segmentation=True)
    assert_every_loss_saw_a_tenth(loss)
    assert {target.shape[2:] for target in loss.targets} != {(8, 8)}


def fake_images():
    """A data set of images into which Composer's augmentations can be inserted."""
    to_tensor = torchvision.transforms.Compose([torchvision.transforms.ToTensor()])
    return DataLoader(torchvision.datasets.FakeData(24, (3, 16, 16), K, transform=to_tensor), 8)


@pytest.mark.parametrize("augmentation", [AugMix, RandAugment])
def test_methods_that_change_the_data_sets_images_compose(augmentation):
    loss = RecordingLoss()
    fit([augmentation(), LabelSmoothing(0.1)], model=convolutional(loss), loader=fake_images())
    assert_every_loss_saw_a_tenth(loss)


def test_mosaicmls_cifar_list_in_its_order():
    loss = RecordingLoss()
    algorithms = [BlurPool(min_channels=3), ChannelsLast(), LabelSmoothing(0.1), MixUp()]
    fit(algorithms, model=convolutional(loss), loader=fake_images())
    assert_every_loss_saw_a_tenth(loss)


def test_mosaicmls_imagenet_list_in_its_order():
    loss = RecordingLoss()
    algorithms = [
        BlurPool(min_channels=3),
        ChannelsLast(),
        EMA(half_life="2ba"),
        ProgressiveResizing(initial_scale=0.5),
        LabelSmoothing(0.1),
        MixUp(),
        SAM(),
        ColOut(),
        RandAugment(),
    ]
    fit(algorithms, model=convolutional(loss), loader=fake_images())
    assert_every_loss_saw_a_tenth(loss)


def test_two_evaluators_see_plain_labels():
    loader = DataLoader(TensorDataset(*examples()), 8)
    evaluators = [Evaluator(label=name, dataloader=loader, metric_names=["MulticlassAccuracy"]) for name in ("a", "b")]
    loss = RecordingLoss()
    fit([LabelSmoothing(0.1), MixUp(0.5)], model=classifier(loss), eval_dataloader=evaluators, eval_interval="1ba")
    assert_every_loss_saw_a_tenth(loss)


def test_a_second_fit_goes_on_smoothing():
    reproducibility.seed_all(7)
    loss = RecordingLoss()
    model = classifier(loss)
    trainer = Trainer(
        model=model,
        train_dataloader=DataLoader(TensorDataset(*examples()), 8),
        max_duration="2ba",
        algorithms=[MixUp(0.5), LabelSmoothing(0.1)],
        optimizers=torch.optim.SGD(model.parameters(), 0.1),
        progress_bar=False,
        device="cpu",
    )
    trainer.fit()
    trainer.fit(duration="2ba")
    trainer.close()
    assert_every_loss_saw_a_tenth(loss, at_least=4)


def test_a_run_resumed_in_the_middle_of_an_epoch_ends_where_an_undisturbed_one_does(tmp_path):
    algorithms = lambda: [LabelSmoothing(0.1), MixUp(0.5)]  # noqa: E731
    loader = lambda: DataLoader(TensorDataset(*examples()), 4)  # noqa: E731
    whole = fit(algorithms(), steps=5, loader=loader())
    fit(algorithms(), steps=2, loader=loader(), save_folder=str(tmp_path), save_interval="2ba")
    resumed = fit(algorithms(), steps=5, loader=loader(), load_path=str(tmp_path / "latest-rank0.pt"))
    torch.testing.assert_close(resumed, whole)


@pytest.fixture(scope="module")
def table():
    path = Path(__file__).parents[2] / "examples" / "composition_table.py"
    spec = importlib.util.spec_from_file_location("composition_table", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_tables_every_row_receives_exactly_the_smoothing(table):
    for case in table.CASES:
        smoothing, trains_on_ignored = table.received_smoothing(case, table.ours(case))
        assert smoothing == pytest.approx(0.1, abs=1e-6), case.name
        assert not trains_on_ignored


def test_the_guide_shows_the_table(table):
    guide = (Path(__file__).parents[2] / "examples" / "guides" / "composition.md").read_text(encoding="utf-8")
    for case in table.CASES:
        assert any(line.startswith(f"| {case.name} |") and line.endswith("| 0.1000 |") for line in guide.splitlines())
