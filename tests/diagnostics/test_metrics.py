"""Calibration error, Brier score and AURC as metrics: over batches, ranks and Composer's evaluation they equal the functions."""

import copy

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from composer_ls import diagnostics
from composer_ls.errors import DiagnosticsError

pytest.importorskip("composer")  # and torchmetrics with it: the functions need neither

from composer import Trainer
from composer.models import ComposerClassifier
from torchmetrics import MetricCollection

from composer_ls.diagnostics import AURC, BrierScore, ExpectedCalibrationError

N, K = 103, 5


def area(logits, labels):
    counts = labels != -100
    logits, labels = logits[counts], labels[counts]
    return diagnostics.aurc(diagnostics.log_odds(logits), logits.argmax(1) == labels)


FUNCTIONS = {
    ExpectedCalibrationError: diagnostics.expected_calibration_error,
    BrierScore: diagnostics.brier_score,
    AURC: area,
}


def predictions():
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(N, K, generator=generator)
    labels = torch.where(torch.rand(N, generator=generator) < 0.5, logits.argmax(1), torch.arange(N) % K)
    return logits, labels.masked_fill(torch.arange(N) % 7 == 0, -100)


@pytest.mark.parametrize("cls", FUNCTIONS)
def test_batches_add_up_to_the_functions_number_and_ignored_labels_do_not_count(cls):
    logits, labels = predictions()
    metric = cls()
    for rows, classes in zip(logits.split(8), labels.split(8), strict=True):
        metric.update(rows, classes.int())
    metric.update(logits[:3], torch.full((3,), -100))  # a batch without any label
    assert metric.compute().item() == pytest.approx(FUNCTIONS[cls](logits, labels), rel=1e-6)


@pytest.mark.parametrize("cls", FUNCTIONS)
def test_a_reset_metric_starts_again_and_an_empty_one_is_nan(cls):
    logits, labels = predictions()
    metric = cls()
    metric.update(logits, labels)
    metric.reset()
    with pytest.warns(UserWarning, match="before the ``update`` method"):
        assert metric.compute().isnan()
    metric.update(logits[:50], labels[:50])
    assert metric.compute().item() == pytest.approx(FUNCTIONS[cls](logits[:50], labels[:50]), rel=1e-6)


@pytest.mark.parametrize("cls", FUNCTIONS)
def test_label_maps_are_rows_of_pixels(cls):
    logits, labels = (
        torch.randn(2, K, 4, 6, generator=torch.Generator().manual_seed(1)),
        torch.arange(48).view(2, 4, 6) % K,
    )
    metric = cls(ignore_index=3)
    metric.update(logits, labels)
    rows, classes = logits.movedim(1, -1).reshape(-1, K), labels.flatten()
    assert metric.compute().item() == pytest.approx(
        FUNCTIONS[cls](rows, classes.masked_fill(classes == 3, -100)), rel=1e-6
    )


@pytest.mark.parametrize("cls", FUNCTIONS)
def test_shapes_and_labels_that_do_not_fit_are_refused(cls):
    with pytest.raises(DiagnosticsError, match=r"labels \(N, \*spatial\), but are \(4, 5\) and \(4, 1\)"):
        cls().update(torch.zeros(4, K), torch.zeros(4, 1).long())
    with pytest.raises(DiagnosticsError, match="but go from 0 to 5"):
        cls().update(torch.zeros(4, K), torch.tensor([0, 1, 2, 5]))


def test_a_network_that_diverged_has_no_number():
    for cls in FUNCTIONS:
        metric = cls()
        metric.update(torch.tensor([[1.0, 0.0], [torch.nan, 0.0]]), torch.tensor([0, 0]))
        assert metric.compute().isnan()


def test_number_of_bins():
    logits, labels = predictions()
    metric = ExpectedCalibrationError(bins=4)
    metric.update(logits, labels)
    assert metric.compute().item() == pytest.approx(diagnostics.expected_calibration_error(logits, labels, 4), rel=1e-6)
    with pytest.raises(DiagnosticsError, match="bins must be at least 1, but is 0"):
        ExpectedCalibrationError(bins=0)


def test_composer_evaluates_them_and_a_second_evaluation_is_of_the_second_set():
    metrics = MetricCollection([cls() for cls in FUNCTIONS])
    model = ComposerClassifier(nn.Identity(), num_classes=K, val_metrics=metrics, train_metrics=copy.deepcopy(metrics))
    trainer = Trainer(model=model, progress_bar=False, device="cpu")
    logits, labels = predictions()
    for rows, classes in ((logits, labels), (logits[:40], labels[:40])):
        trainer.eval(DataLoader(TensorDataset(rows, classes), 16))
        for cls, function in FUNCTIONS.items():
            value = trainer.state.eval_metrics["eval"][cls.__name__].compute().item()
            assert value == pytest.approx(function(rows, classes), rel=1e-6)


def _gathered(state):
    return torch.cat([torch.empty(0), *state]) if isinstance(state, list) else state


def ranks_of(cls, parts):
    """The metric of each rank, as torchmetrics gathers states from all of them; no process waits for another."""
    metrics = [cls(distributed_available_fn=lambda: True) for _ in parts]
    for metric, part in zip(metrics, parts, strict=True):
        if len(part[0]):
            metric.update(*part)
    held = [[_gathered(value) for value in metric.metric_state.values()] for metric in metrics]
    for metric in metrics:
        states = iter(zip(*held, strict=True))  # torchmetrics asks for one state after the other
        metric.dist_sync_fn = lambda tensor, group, states=states: list(next(states))
    return metrics


@pytest.mark.parametrize("cls", FUNCTIONS)
def test_two_ranks_have_one_number_that_of_all_examples(cls):
    logits, labels = predictions()
    for parts in (
        [(logits[rank::2], labels[rank::2]) for rank in range(2)],
        [(logits, labels), (logits[:0], labels[:0])],
    ):
        values = [metric.compute().item() for metric in ranks_of(cls, parts)]
        assert values == pytest.approx([FUNCTIONS[cls](logits, labels)] * 2, rel=1e-6)


def test_a_rank_without_examples_sends_the_dtypes_of_the_others():
    sent = []

    def gather(tensor, group):
        sent.append(tensor.dtype)
        return [tensor, tensor]

    for labels in (torch.tensor([0, 1]), torch.tensor([-100, -100])):
        metric = AURC()
        metric.update(torch.tensor([[2.0, 0.0], [1.0, 0.0]]), labels)
        metric.sync(gather, distributed_available=lambda: True)
    assert sent[:2] == sent[2:] == [torch.float64, torch.bool]
    assert AURC().compute().isnan()
