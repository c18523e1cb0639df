"""SmoothingDiagnostics: it sees everything and changes nothing."""

import functools
import random

import numpy as np
import pytest
import torch
from composer import Evaluator, Trainer
from composer.loggers import InMemoryLogger
from composer.models import ComposerClassifier
from composer.utils import reproducibility
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset
from trainer_support import K, classifier, examples

from composer_ls import LabelSmoothing, SmoothingDiagnostics
from composer_ls.diagnostics.calibration import expected_calibration_error
from composer_ls.diagnostics.geometry import neural_collapse
from composer_ls.diagnostics.information import draw_logit_differences
from composer_ls.errors import DiagnosticsError


class Jittered(Dataset):
    """Examples whose transforms draw from all three random number generators."""

    def __init__(self, *tensors):
        self.tensors = tensors

    def __len__(self):
        return len(self.tensors[0])

    def __getitem__(self, index):
        image, label = (tensor[index] for tensor in self.tensors)
        return image + random.random() + np.random.rand() + torch.rand(()), label


def network():
    torch.manual_seed(7)
    layers = [nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Dropout(0.5), nn.Linear(216, K)]
    return ComposerClassifier(nn.Sequential(*layers), num_classes=K)


def jitter(images):
    return images + torch.randn(len(images), 1, 1, 1)


def train(callbacks=(), *, model=None, steps="2ep", eval_dataloader=None, data=Jittered, workers=0, **options):
    """Train two epochs of three steps; return the weights and what was logged."""
    reproducibility.seed_all(7)
    model = model or network()
    logger = InMemoryLogger()
    trainer = Trainer(
        model=model,
        train_dataloader=DataLoader(data(*examples()), 8, shuffle=True, num_workers=workers),
        eval_dataloader=eval_dataloader,
        max_duration=steps,
        algorithms=[LabelSmoothing(0.1)],
        callbacks=list(callbacks),
        loggers=logger,
        optimizers=torch.optim.SGD(model.parameters(), 0.1),
        progress_bar=False,
        device="cpu",
        seed=7,
        **options,
    )
    try:
        trainer.fit()
    finally:
        trainer.close()
    logged = {
        key: [float(v[1]) for v in values] for key, values in logger.data.items() if key.startswith("diagnostics")
    }
    return {name: value.clone() for name, value in model.state_dict().items()}, logged


def held_out(count=40, batch_size=16, data=TensorDataset):
    generator = torch.Generator().manual_seed(5)
    images = torch.randn(count, 3, 8, 8, generator=generator)
    return DataLoader(data(images, torch.arange(count) % K), batch_size)


@pytest.mark.parametrize("interval", [None, "1ba"])
@pytest.mark.parametrize("workers", [0, 1])
def test_training_with_and_without_it_gives_identical_weights(interval, workers):
    draws = functools.partial(draw_logit_differences, images=examples()[0], augment=jitter)
    loader = DataLoader(Jittered(*examples()), 8, shuffle=True)
    watched = SmoothingDiagnostics(interval, data={"train": loader, "test": held_out(data=Jittered)}, draws=draws)
    without, _ = train(eval_dataloader=held_out(), workers=workers)
    with_it, logged = train([watched], eval_dataloader=held_out(), workers=workers)
    assert len(logged["diagnostics/train/ece"]) >= 2
    assert without.keys() == with_it.keys()
    for name, value in without.items():
        assert torch.equal(value, with_it[name]), name


def test_the_numbers_are_those_of_the_evaluation_set_after_each_evaluation():
    model = network()
    _, logged = train([SmoothingDiagnostics()], model=model, eval_dataloader=held_out())
    assert {len(values) for values in logged.values()} == {2}
    images, labels = held_out().dataset.tensors
    with torch.no_grad():
        features = model.eval().module[:-1](images)
        logits = model.module[-1](features)
    last = {key.removeprefix("diagnostics/eval/"): values[-1] for key, values in logged.items()}
    assert last["accuracy"] == pytest.approx((logits.argmax(1) == labels).float().mean().item())
    assert last["ece"] == pytest.approx(expected_calibration_error(logits, labels))
    assert last["nc1"] == pytest.approx(neural_collapse(features, labels), rel=1e-4)
    assert {"nll", "classwise_ece", "equivalent_smoothing", "relative_spread", "template_unevenness"} <= last.keys()


def test_an_interval_counts_steps():
    _, logged = train([SmoothingDiagnostics("2ba", data={"test": held_out()})], steps="5ba")
    assert len(logged["diagnostics/test/ece"]) == 2


def test_at_most_the_asked_number_of_examples_is_taken_spread_over_the_data():
    trainer = Trainer(model=network(), progress_bar=False, device="cpu")
    labels = torch.arange(100) // 20  # sorted by class, as folders of images are
    loader = DataLoader(TensorDataset(torch.zeros(100, 3, 8, 8), labels), 16)
    watched = SmoothingDiagnostics(data={"test": loader, "batches": list(loader)}, examples=10)
    taken = watched.collect(trainer.state)
    assert taken["test"].labels.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert taken["test"].features.shape == (10, 216)
    assert taken["batches"].labels.tolist() == [0] * 16  # a whole batch, and no more
    assert SmoothingDiagnostics(data={"all": loader}).collect(trainer.state)["all"].labels.shape == (100,)


def test_several_evaluators_keep_their_labels():
    evaluators = [Evaluator(label=name, dataloader=held_out()) for name in ("clean", "odd")]
    _, logged = train([SmoothingDiagnostics()], eval_dataloader=evaluators)
    assert logged["diagnostics/clean/ece"] == logged["diagnostics/odd/ece"]


def test_mutual_information_is_logged_and_survives_a_checkpoint(tmp_path):
    draws = functools.partial(draw_logit_differences, images=examples()[0], augment=jitter)
    whole = SmoothingDiagnostics("1ba", data={"test": held_out()}, draws=draws)
    _, logged = train([whole], steps="6ba")
    assert [step for step, _ in whole.mutual_information] == [1, 2, 3, 4, 5, 6]
    assert [value for _, value in whole.mutual_information] == logged["diagnostics/mutual_information"]

    def part():
        return SmoothingDiagnostics("1ba", data={"test": held_out()}, draws=draws)

    options = {"save_folder": str(tmp_path), "save_interval": "1ep", "run_name": "part"}
    train([part()], steps="1ep", **options)
    resumed = part()
    train([resumed], steps="2ep", load_path=str(tmp_path / "ep1-ba3-rank0.pt"))
    assert [step for step, _ in resumed.mutual_information] == [1, 2, 3, 4, 5, 6]


def test_what_cannot_be_computed_is_left_out_and_told_once():
    images, _ = examples()
    one_class = DataLoader(TensorDataset(images, torch.zeros(len(images)).long()), 8)
    with pytest.warns(UserWarning, match="diagnostics/eval/nc1 is left out: NC1 needs examples of at least 2") as told:
        _, logged = train([SmoothingDiagnostics()], eval_dataloader=one_class)
    assert sum("nc1" in str(warning.message) for warning in told) == 1
    assert "diagnostics/eval/ece" in logged
    assert "diagnostics/eval/nc1" not in logged


def test_a_network_that_diverged_does_not_stop_training():
    model = network()
    model.module[-1].bias.data.fill_(torch.nan)
    with pytest.warns(UserWarning, match="are not finite: the run diverged"):
        train([SmoothingDiagnostics()], model=model, eval_dataloader=held_out())


def test_a_network_without_a_linear_layer_is_refused_at_once():
    with pytest.raises(DiagnosticsError, match="has no linear layer"):
        train([SmoothingDiagnostics()], model=classifier(segmentation=True), eval_dataloader=held_out())


def test_nothing_to_look_at_is_refused_when_training_starts():
    with pytest.raises(DiagnosticsError, match="no examples to look at: give the Trainer an eval_dataloader"):
        train([SmoothingDiagnostics()])
    with pytest.raises(DiagnosticsError, match="holds no examples"):
        train([SmoothingDiagnostics(data={"test": []})])
    with pytest.raises(DiagnosticsError, match="examples must be at least 1"):
        SmoothingDiagnostics(examples=0)


def test_a_layer_can_be_named_and_an_output_have_a_key():
    class InADict(ComposerClassifier):
        def forward(self, batch):
            return {"logits": super().forward(batch)}

        def loss(self, outputs, batch):
            return nn.functional.cross_entropy(outputs["logits"], batch[1])

        def update_metric(self, batch, outputs, metric):
            pass

    trainer = Trainer(model=InADict(network().module, num_classes=K), progress_bar=False, device="cpu")
    data = {"test": held_out()}
    taken = SmoothingDiagnostics(data=data, output_key="logits", layer="module.5").collect(trainer.state)
    assert taken["test"].logits.shape == (40, K)
    with pytest.raises(DiagnosticsError, match="output is dict.*output_key='logits'"):
        SmoothingDiagnostics(data=data).collect(trainer.state)
    with pytest.raises(DiagnosticsError, match="no linear layer 'head': there are 'module.5'"):
        SmoothingDiagnostics(data=data, layer="head").collect(trainer.state)


def test_it_looks_into_compiled_networks():
    model = network()
    trainer = Trainer(model=model, compile_config={"backend": "eager"}, progress_bar=False, device="cpu")
    with torch.no_grad():
        trainer.state.model(next(iter(held_out())))  # compiled before the hook is there
    taken = SmoothingDiagnostics(data={"test": held_out()}).collect(trainer.state)
    assert taken["test"].features.shape == (40, 216)
