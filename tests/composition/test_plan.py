"""The plan in words."""

import logging

import pytest
import torch
from composer import Trainer
from composer.algorithms import CutMix, MixUp
from composer.core import Algorithm
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset, default_collate
from torchvision.transforms import v2
from trainer_support import K, classifier, examples, fit

from composer_ls import LabelSmoothing
from composer_ls.composition import describe


class Unknown(Algorithm):
    def match(self, event, state):
        return False

    def apply(self, event, state, logger):
        raise AssertionError


def mixing_loader():
    mix = v2.RandomChoice([v2.MixUp(num_classes=K), v2.CutMix(num_classes=K)])
    return DataLoader(TensorDataset(*examples()), 8, collate_fn=lambda samples: mix(*default_collate(samples)))


PLAIN = "loss cross_entropy; targets restored after the loss"
FUSED = "loss cross_entropy, fused; targets restored after the loss"


@pytest.mark.parametrize(
    ("algorithms", "options", "plan"),
    [
        ([LabelSmoothing(0.1)], {}, f"smoothing 0.1, uniform over 5 classes; {FUSED}"),
        (
            [CutMix(), LabelSmoothing(0.1)],
            {},
            f"smoothing 0.1, uniform over 5 classes; CutMix mixes first labels with second labels, both smoothed; {FUSED}",
        ),
        (
            [LabelSmoothing(0.2, spread="others"), MixUp(interpolate_loss=True)],
            {},
            "smoothing 0.2, uniform over all but the true one of 5 classes; "
            f"MixUp mixes the losses of first and second labels, both smoothed; {FUSED}",
        ),
        (
            [MixUp(), LabelSmoothing(0.1), Unknown()],
            {},
            "smoothing 0.1, uniform over 5 classes; MixUp mixes first labels with second labels, whose dense "
            f"rows are smoothed; Unknown may rewrite targets, smoothed after it; {PLAIN}",
        ),
        (
            [LabelSmoothing(0.1, prior=torch.eye(K).roll(1, 0))],
            {},
            f"smoothing 0.1, to the given prior of each class; {FUSED}",
        ),
        (
            [LabelSmoothing(0.1)],
            {"train_dataloader": mixing_loader()},
            "smoothing 0.1, uniform over 5 classes; MixUp and CutMix in the dataloader, whose dense rows are smoothed; "
            f"{PLAIN}",
        ),
        ([MixUp()], {}, "no smoothing; MixUp mixes first labels with second labels; loss soft_cross_entropy"),
    ],
)
def test_the_plan_says_what_will_happen(algorithms, options, plan):
    trainer = Trainer(model=classifier(), algorithms=algorithms, progress_bar=False, **options)
    assert describe(trainer) == describe(trainer.state) == plan
    trainer.close()


def test_the_plan_of_several_labels_an_example():
    model = classifier(nn.functional.binary_cross_entropy_with_logits)
    trainer = Trainer(model=model, algorithms=[LabelSmoothing(0.1, kind="binary")], progress_bar=False)
    assert describe(trainer) == (
        "smoothing 0.1, each label toward 1/2; loss binary_cross_entropy_with_logits; targets restored after the loss"
    )
    trainer.close()


def test_a_loss_that_is_not_fused_is_named():
    trainer = Trainer(model=classifier(nn.NLLLoss()), algorithms=[LabelSmoothing(0.1)], progress_bar=False)
    assert "; loss NLLLoss; targets" in describe(trainer)
    trainer.close()


def test_the_plan_is_logged_in_one_line_when_training_starts(caplog):
    with caplog.at_level(logging.INFO, logger="composer"):
        fit([LabelSmoothing(0.1), CutMix()])
    lines = [record.getMessage() for record in caplog.records if record.name == "composer.composer_ls"]
    assert len(lines) == 1
    assert lines[0].startswith("label smoothing: smoothing 0.1, uniform over 5 classes; CutMix mixes")


def test_a_data_set_without_a_length_can_be_described_and_trained():
    class Stream(IterableDataset):
        def __iter__(self):
            return iter(list(zip(*examples(), strict=True)))

    assert torch.isfinite(fit([LabelSmoothing(0.1)], loader=DataLoader(Stream(), 8))).all()


def test_a_subclass_is_described_as_its_parent():
    class Mine(LabelSmoothing):
        pass

    trainer = Trainer(model=classifier(), algorithms=[Mine(0.1)], progress_bar=False)
    assert describe(trainer).startswith("smoothing 0.1, uniform")
    trainer.close()
