"""SmoothingDiagnostics: it sees everything and changes nothing."""

import copy
import functools
import random
import re
import warnings

import numpy as np
import pytest
import torch
from composer import DataSpec, Evaluator, Trainer
from composer.core import Callback
from composer.loggers import InMemoryLogger
from composer.models import ComposerClassifier
from composer.utils import reproducibility
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset
from trainer_support import K, classifier, examples

from composer_ls import LabelSmoothing, SmoothingDiagnostics
from composer_ls.diagnostics.calibration import expected_calibration_error, negative_log_likelihood
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


def test_an_interval_can_count_iterations():
    class Iterations(Callback):
        def init(self, state, logger):
            state._iteration_length = "2ep"

    _, logged = train([Iterations(), SmoothingDiagnostics("1iter", data={"test": held_out()})], steps="4ep")
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


def test_each_of_two_continues_its_own_mutual_information(tmp_path):
    def parts(*names):
        images, _ = examples()
        return [
            SmoothingDiagnostics(
                "1ba",
                data={name: held_out()},
                draws=functools.partial(draw_logit_differences, images=images, augment=jitter, classes=classes),
            )
            for name, classes in zip(names, [(0, 1), (2, 3)], strict=False)
        ]

    first = parts("a", "b")
    with pytest.warns(
        UserWarning, match="same names, such as diagnostics/mutual_information: give their sets different"
    ):
        train(first, steps="2ba", save_folder=str(tmp_path), save_interval="2ba", save_filename="{batch}.pt")
    path = str(tmp_path / "2.pt")
    resumed = parts("a", "b")
    train(resumed, steps="3ba", load_path=path)
    for before, after in zip(first, resumed, strict=True):
        assert after.mutual_information[:2] == before.mutual_information
    (alone,) = parts("a")
    with pytest.warns(UserWarning, match="information of 2 SmoothingDiagnostics, but the Trainer has 1, so none"):
        train([alone], steps="3ba", load_path=path)
    assert [step for step, _ in alone.mutual_information] == [3]
    assert copy.deepcopy(resumed[0])._siblings == []


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


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target_key": "labels"}, "no labels at target_key='labels' in a batch that is a .*target_key"),
        ({"layer": "module.3"}, "the layer Linear.* name the layer that computes them"),
        (
            {"output_key": lambda outputs: outputs["logits"]},
            "output is Tensor and output_key is .*, which gives no tensor",
        ),
    ],
)
def test_what_cannot_be_looked_at_is_told_before_training_starts(options, message):
    class NoStep(Callback):
        def batch_start(self, state, logger):
            raise AssertionError("training has started")

    layers = [nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(216, 9), nn.ReLU(), nn.Linear(9, K)]
    model = ComposerClassifier(nn.Sequential(*layers), num_classes=K)
    with pytest.raises(DiagnosticsError, match=message):
        train([SmoothingDiagnostics(**options), NoStep()], model=model, eval_dataloader=held_out())


def test_nothing_to_look_at_is_refused_when_training_starts():
    with pytest.raises(DiagnosticsError, match="no examples to measure: give the Trainer an eval_dataloader"):
        train([SmoothingDiagnostics()])
    with pytest.raises(DiagnosticsError, match="has no examples"):
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
    for key in (None, "logit", 3):
        with pytest.raises(DiagnosticsError, match=f"output is dict and output_key is {key!r}.*output_key='logits'"):
            SmoothingDiagnostics(data=data, output_key=key).collect(trainer.state)
    plain = Trainer(model=network(), progress_bar=False, device="cpu")
    assert SmoothingDiagnostics(data=data, output_key=0).collect(plain.state)["test"].logits.shape == (40, K)
    with pytest.raises(DiagnosticsError, match="no linear layer 'head': there are 'module.5'"):
        SmoothingDiagnostics(data=data, layer="head").collect(trainer.state)


def test_it_looks_into_compiled_networks():
    model = network()
    trainer = Trainer(model=model, compile_config={"backend": "eager"}, progress_bar=False, device="cpu")
    with torch.no_grad():
        trainer.state.model(next(iter(held_out())))  # compiled before the hook is there
    taken = SmoothingDiagnostics(data={"test": held_out()}).collect(trainer.state)
    assert taken["test"].features.shape == (40, 216)


def likelihood(model, images, labels):
    with torch.no_grad():
        return negative_log_likelihood(model.eval().module(images), labels)


def shifted_by(classes):
    """The same images with other labels, which give another likelihood."""
    images, labels = held_out().dataset.tensors
    return DataLoader(TensorDataset(images, (labels + classes) % K), 16)


def test_each_evaluation_outside_of_training_looks_at_its_own_set():
    model, watched = network(), SmoothingDiagnostics()
    loaders = [shifted_by(0), shifted_by(1), shifted_by(2)]
    trainer = Trainer(model=model, eval_dataloader=loaders[0], callbacks=[watched], progress_bar=False, device="cpu")
    values = [likelihood(model, *loader.dataset.tensors) for loader in loaders]
    assert len({round(value, 3) for value in values}) == 3
    for loader, value in ((loaders[1], values[1]), (loaders[2], values[2]), (None, values[0]), (loaders[1], values[1])):
        trainer.eval() if loader is None else trainer.eval(loader)
        assert watched.numbers["diagnostics/eval/nll"] == pytest.approx(value)
    trainer.eval([Evaluator(label=f"by {i}", dataloader=loaders[i]) for i in (1, 2)])
    found = {key: value for key, value in watched.numbers.items() if key.endswith("nll")}
    assert found == {f"diagnostics/by {i}/nll": pytest.approx(values[i]) for i in (1, 2)}


def test_a_trainer_without_an_evaluation_set_can_evaluate_one():
    model, watched = network(), SmoothingDiagnostics()
    trainer = Trainer(model=model, callbacks=[watched], progress_bar=False, device="cpu")
    for loader in (shifted_by(0), shifted_by(1)):
        trainer.eval(loader)
        assert watched.numbers["diagnostics/eval/nll"] == pytest.approx(likelihood(model, *loader.dataset.tensors))


def test_an_evaluation_sees_what_the_data_set_has_become():
    model, watched, loader = network(), SmoothingDiagnostics(), held_out()
    trainer = Trainer(model=model, eval_dataloader=loader, callbacks=[watched], progress_bar=False, device="cpu")
    for _ in range(2):
        trainer.eval()
        assert watched.numbers["diagnostics/eval/nll"] == pytest.approx(likelihood(model, *loader.dataset.tensors))
        loader.dataset.tensors[1].add_(1).remainder_(K)


def test_a_second_fit_and_a_second_trainer_look_at_their_own_set():
    watched, model = SmoothingDiagnostics(), network()
    options = {"progress_bar": False, "device": "cpu", "callbacks": [watched]}
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    train_set = DataLoader(TensorDataset(*examples()), 8)
    trainer = Trainer(
        model=model, train_dataloader=train_set, eval_dataloader=shifted_by(0), optimizers=optimizer, **options
    )
    for loader in (shifted_by(0), shifted_by(1)):
        trainer.fit(duration="1ep", eval_dataloader=loader)
        assert watched.numbers["diagnostics/eval/nll"] == pytest.approx(likelihood(model, *loader.dataset.tensors))
    trainer.close()
    other = network()
    trainer = Trainer(
        model=other,
        train_dataloader=train_set,
        max_duration="1ep",
        eval_dataloader=shifted_by(2),
        optimizers=torch.optim.SGD(other.parameters(), 0.1),
        **options,
    )
    trainer.fit()
    trainer.close()
    assert watched.numbers["diagnostics/eval/nll"] == pytest.approx(likelihood(other, *shifted_by(2).dataset.tensors))


def test_a_second_trainer_has_steps_of_its_own():
    draws = functools.partial(draw_logit_differences, images=examples()[0], augment=jitter)
    watched = SmoothingDiagnostics("1ba", data={"test": held_out()}, draws=draws)
    train([watched], steps="2ba")
    first, model = watched.mutual_information, network()
    model.module[-1].weight.data.mul_(3)
    _, logged = train([watched], model=model, steps="2ba")
    assert [step for step, _ in watched.mutual_information] == [1, 2]
    assert [value for _, value in watched.mutual_information] == logged["diagnostics/mutual_information"]
    assert all(one != other for (_, one), (_, other) in zip(watched.mutual_information, first, strict=True))


def test_a_second_trainer_is_told_again_what_is_left_out():
    images, _ = examples()
    watched = SmoothingDiagnostics(data={"test": [(images, torch.zeros(len(images)).long())]})
    for _ in range(2):
        trainer = Trainer(model=network(), callbacks=[watched], progress_bar=False, device="cpu")
        with pytest.warns(UserWarning, match="nc1 is left out: NC1 needs examples of at least 2"):
            watched.measure(trainer.state, trainer.logger)
        trainer.close()


def test_weights_that_change_between_two_measurements_of_one_step_change_the_mutual_information():
    draws = functools.partial(draw_logit_differences, images=examples()[0], augment=jitter)
    model, watched = network(), SmoothingDiagnostics(draws=draws)
    trainer = Trainer(model=model, eval_dataloader=held_out(), callbacks=[watched], progress_bar=False, device="cpu")
    trainer.eval()
    (before,) = watched.mutual_information
    model.module[0].weight.data.mul_(5)
    trainer.eval()
    (after,) = watched.mutual_information
    assert before[0] == after[0] == 0
    assert before[1] != after[1]
    assert watched.numbers["diagnostics/mutual_information"] == after[1]


class Halving(nn.Module):
    """A layer that changes its input in place."""

    def forward(self, x):
        return x.mul_(0.5)


def halved(batch):
    """A transform that works in place."""
    batch[0].mul_(0.5)
    return batch


@pytest.mark.parametrize("place", ["network", "batch_transforms", "microbatch_transforms", "draws"])
def test_what_works_in_place_leaves_every_later_measurement_as_it_was(place):
    model = network()
    if place == "network":
        model = ComposerClassifier(nn.Sequential(Halving(), *model.module), num_classes=K)
    loader = [tuple(part.clone() for part in batch) for batch in held_out()]
    before = [image.clone() for image, _ in loader]
    images = examples()[0]
    untouched = images.clone()
    draws = functools.partial(
        draw_logit_differences, images=images, augment=lambda x: x.mul_(torch.rand(len(x), 1, 1, 1))
    )
    spec = DataSpec(loader, **({place: halved} if place.endswith("transforms") else {}))
    watched = SmoothingDiagnostics(data={"test": spec}, draws=draws if place == "draws" else None)
    trainer = Trainer(model=model, progress_bar=False, device="cpu")
    numbers = [watched.measure(trainer.state, trainer.logger) for _ in range(3)]
    assert numbers[0] == numbers[1] == numbers[2]
    assert all(torch.equal(image, kept) for (image, _), kept in zip(loader, before, strict=True))
    assert torch.equal(images, untouched)
    scale = 0.5 if place.endswith("transforms") else 1
    every_image, labels = torch.cat(before) * scale, held_out().dataset.tensors[1]
    assert numbers[0]["diagnostics/test/nll"] == pytest.approx(likelihood(model, every_image, labels), rel=1e-6)


def numbers_for(labels):
    """Those of one set of images under these labels, and the reasons why some are left out."""
    images = held_out().dataset.tensors[0]
    data = {"test": [(images[:16], labels[:16]), (images[16:], labels[16:])]}
    watched = SmoothingDiagnostics(data=data, ignore_index=-100)
    trainer = Trainer(model=network(), progress_bar=False, device="cpu")
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        numbers = watched.measure(trainer.state, trainer.logger)
    return numbers, [str(one.message) for one in told if "diagnostics/" in str(one.message)]


LABELS = {
    "int32": lambda labels: labels.int(),
    "uint8": lambda labels: labels.to(torch.uint8),
    "NumPy": lambda labels: labels.numpy(),
    "NumPy int32": lambda labels: labels.numpy().astype(np.int32),
}


@pytest.mark.parametrize("kind", LABELS)
def test_labels_of_every_kind_give_the_same_numbers(kind):
    labels = held_out().dataset.tensors[1]
    expected, _ = numbers_for(labels)
    numbers, reasons = numbers_for(LABELS[kind](labels))
    assert numbers == expected
    assert len(numbers) >= 14
    assert reasons == []


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
def test_ignored_labels_do_not_count(dtype):
    images, labels = held_out().dataset.tensors
    marked = labels.to(dtype).masked_fill(torch.arange(40) % 3 == 0, -100)
    numbers, reasons = numbers_for(marked)
    left = marked != -100
    assert reasons == []
    assert numbers["diagnostics/test/nll"] == pytest.approx(likelihood(network(), images[left], labels[left]), rel=1e-6)
    with torch.no_grad():
        right = network().eval().module(images).argmax(1) == labels
    assert numbers["diagnostics/test/accuracy"] == pytest.approx(right[left].double().mean().item())


@pytest.mark.parametrize(
    ("labels", "reason"),
    [
        (torch.zeros(40, 1).long(), r"give labels.squeeze\(1\)"),
        (torch.full((40,), -100), "all 40 labels are -100, which is ignored"),
        (torch.eye(K)[torch.arange(40) % K], "labels must be integers, but their dtype is torch.float32"),
        (torch.full((40,), K), rf"labels must be in \[0, {K}\)"),
    ],
)
def test_numbers_that_cannot_be_had_of_such_labels_are_left_out_with_their_reason(labels, reason):
    numbers, reasons = numbers_for(labels)
    assert not {"diagnostics/test/accuracy", "diagnostics/test/ece", "diagnostics/test/nll"} & numbers.keys()
    assert any(re.search(reason, text) for text in reasons)
    assert all("is left out: " in text for text in reasons)


def test_a_class_that_the_network_masks_leaves_the_calibration_error_a_number():
    class Masking(nn.Module):
        def __init__(self):
            super().__init__()
            self.network = network().module
            self.register_buffer("mask", torch.tensor([0.0, 0.0, 0.0, 0.0, -torch.inf]))

        def forward(self, x):
            return self.network(x) + self.mask

    images, labels = held_out().dataset.tensors
    labels = labels % (K - 1)
    model = ComposerClassifier(Masking(), num_classes=K)
    watched = SmoothingDiagnostics(data={"test": [(images, labels)]})
    trainer = Trainer(model=model, progress_bar=False, device="cpu")
    with pytest.warns(UserWarning, match="normalised_aurc is left out: .* logits are NaN or infinite"):
        numbers = watched.measure(trainer.state, trainer.logger)
    with torch.no_grad():
        logits = model.eval().module(images)[:, : K - 1]
    assert numbers["diagnostics/test/ece"] == pytest.approx(expected_calibration_error(logits, labels))
    assert numbers["diagnostics/test/nll"] == pytest.approx(negative_log_likelihood(logits, labels))
    assert all(np.isfinite(value) for value in numbers.values())


OF_WEIGHTS = {"diagnostics/test/template_distance", "diagnostics/test/template_unevenness"}


def measured(model, shard=lambda model, mesh: None):
    """The numbers of a model that is sharded over a process group of one rank once its Trainer is made."""
    trainer = Trainer(model=model, progress_bar=False, device="cpu")
    own_group = not torch.distributed.is_initialized()
    if own_group:
        torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        shard(model, torch.distributed.init_device_mesh("cpu", (1,)))
        return SmoothingDiagnostics(data={"test": held_out()}).measure(trainer.state, trainer.logger)
    finally:
        if own_group:
            torch.distributed.destroy_process_group()


def sharded(model, mesh):
    for layer in (*model.module, model):
        torch.distributed.fsdp.fully_shard(layer, mesh=mesh)
    assert isinstance(model.module[-1].weight, torch.distributed.tensor.DTensor)


def test_weights_that_fsdp_2_has_sharded_give_the_numbers_of_whole_ones():
    numbers = measured(network(), sharded)
    assert numbers == measured(network())
    assert numbers.keys() > OF_WEIGHTS


@pytest.mark.parametrize("error", [RuntimeError, NotImplementedError])
def test_weights_that_cannot_be_gathered_cost_only_what_needs_them(monkeypatch, error):
    def full_tensor(self, **options):
        raise error("a rank is gone")

    expected = measured(network())
    monkeypatch.setattr(torch.distributed.tensor.DTensor, "full_tensor", full_tensor)
    with pytest.warns(UserWarning, match="template_distance is left out: .* could not be gathered .*: a rank is gone"):
        numbers = measured(network(), sharded)
    assert numbers == {key: value for key, value in expected.items() if key not in OF_WEIGHTS}


def test_a_weight_that_is_flattened_outside_of_the_forward_pass_costs_only_what_needs_it():
    class Flattened(nn.Linear):
        """A layer as left by FSDP 1, whose weight is whole only during the forward pass."""

        def forward(self, x):
            return nn.functional.linear(x, self.weight.view(self.out_features, -1), self.bias)

    model = network()
    head = Flattened(216, K)
    head.load_state_dict(model.module[-1].state_dict())
    head.weight = nn.Parameter(head.weight.detach().flatten())
    expected = measured(model)
    model.module[-1] = head
    with pytest.warns(
        UserWarning, match=r"template_distance is left out: .* has shape \(1080,\) outside of the forward"
    ):
        numbers = measured(model)
    assert numbers == {key: value for key, value in expected.items() if key not in OF_WEIGHTS}
