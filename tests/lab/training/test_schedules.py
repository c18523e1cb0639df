"""Schedules of our own."""

import pytest
import torch
from composer import Trainer
from composer.core import Timestamp
from composer.models import ComposerClassifier

from composer_ls.lab.training.schedules import InverseSquareRootScheduler


@pytest.fixture(scope="module")
def state():
    data = [(torch.zeros(1, 2), torch.zeros(1, dtype=torch.int64))] * 4
    model = ComposerClassifier(torch.nn.Linear(2, 2), num_classes=2)
    trainer = Trainer(model=model, train_dataloader=data, max_duration="4ep", device_train_microbatch_size=1)
    return trainer.state


@pytest.mark.parametrize("warmup", ["4ba", "0.25dur", "1ep"])
def test_the_rate_rises_to_its_peak_and_falls_with_the_square_root_of_time(state, warmup):
    scheduler, factors = InverseSquareRootScheduler(warmup), []
    for step in range(16):
        state.timestamp = Timestamp(batch=step)
        factors.append(scheduler(state))
    assert factors == pytest.approx([min(step / 4, (4 / step) ** 0.5) if step else 0 for step in range(16)])
    assert factors.index(1) == 4
