"""Distillation: what the teacher sees and what it changes, in any order and beside everything else."""

import copy
import itertools

import pytest
import torch
from composer.algorithms import CutMix, MixUp
from composer.models import ComposerClassifier
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset
from trainer_support import K, classifier, examples, fit

from composer_ls import Distillation, LabelSmoothing, smooth_labels
from composer_ls.composition import describe
from composer_ls.diagnostics.teaching import distillation_loss
from composer_ls.errors import DiagnosticsError, TeacherError

MIXERS = {
    "none": lambda: None,
    "MixUp": lambda: MixUp(0.4),
    "MixUp of losses": lambda: MixUp(0.4, interpolate_loss=True),
    "CutMix": lambda: CutMix(1.0),
    "CutMix of losses": lambda: CutMix(1.0, interpolate_loss=True),
}


def teacher_network():
    torch.manual_seed(11)
    return nn.Sequential(nn.Flatten(), nn.Linear(192, 16), nn.BatchNorm1d(16), nn.Dropout(0.5), nn.Linear(16, K))


class Recording(nn.Module):
    """A network that remembers what it was given."""

    def __init__(self, network):
        super().__init__()
        self.network, self.inputs = network, []

    def forward(self, x):
        self.inputs.append(x.detach().clone())
        return self.network(x)


@pytest.mark.parametrize("mixer", MIXERS)
def test_the_order_with_smoothing_and_mixing_does_not_matter(mixer):
    def weights(order):
        parts = [Distillation(teacher_network(), 3, 0.7), LabelSmoothing(0.1), MIXERS[mixer]()]
        return fit([parts[index] for index in order if parts[index] is not None])

    orders = list(itertools.permutations(range(3)))
    expected = weights(orders[0])
    for order in orders[1:]:
        torch.testing.assert_close(weights(order), expected, rtol=1e-6, atol=1e-7)


def test_a_step_descends_the_formula_on_smoothed_and_mixed_targets():
    teacher, mixer = teacher_network().eval(), MixUp(0.4)
    model = classifier()
    start = copy.deepcopy(model.module)
    after = fit(
        [Distillation(teacher, 3, 0.7, student_temperature=2), LabelSmoothing(0.1), mixer], model=model, steps=1
    )
    images, labels = (part[:8] for part in examples())
    images = (1 - mixer.mixing) * images + mixer.mixing * images[mixer.indices]
    logits = start(images)
    hard = smooth_labels(logits, labels, 0.1)
    target = (1 - mixer.mixing) * hard + mixer.mixing * hard[mixer.indices]
    distillation_loss(logits, teacher(images), target, 3, 0.7, student_temperature=2).backward()
    expected = torch.cat([(p - 0.1 * p.grad).detach().flatten() for p in start.parameters()])
    torch.testing.assert_close(after, expected, rtol=1e-5, atol=1e-6)


def test_mixed_losses_and_mixed_targets_agree():
    one, other = (
        fit([MixUp(0.4, interpolate_loss=interpolate), LabelSmoothing(0.1), Distillation(teacher_network(), 2, 0.6)])
        for interpolate in (False, True)
    )
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("mixer", MIXERS)
def test_the_teacher_sees_the_students_mixed_input(mixer):
    teacher, student = Recording(teacher_network()), Recording(classifier().module)
    mixers = [one for one in [MIXERS[mixer]()] if one is not None]
    fit([Distillation(teacher), *mixers], model=ComposerClassifier(student, num_classes=K))
    assert len(teacher.inputs) == len(student.inputs) == 3
    for seen, given in zip(teacher.inputs, student.inputs, strict=True):
        assert torch.equal(seen, given)


def test_the_teacher_is_evaluated_without_gradient_and_stays_what_it_was():
    teacher = teacher_network().train()
    before = copy.deepcopy(teacher.state_dict())
    fit([Distillation(teacher, weight=1.0)])
    assert not any(module.training for module in teacher.modules())
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())


def test_its_own_weights_as_teacher_give_a_student_no_gradient():
    model = classifier()
    before = torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
    after = fit([Distillation(copy.deepcopy(model.module), temperature=4, weight=1.0)], model=model)
    torch.testing.assert_close(after, before, rtol=0, atol=1e-7)


def test_weight_zero_is_training_without_a_teacher_and_random_numbers_are_left_alone():
    expected = fit([LabelSmoothing(0.1), MixUp(0.4)])
    torch.testing.assert_close(
        fit([Distillation(teacher_network(), weight=0), LabelSmoothing(0.1), MixUp(0.4)]), expected
    )


def test_microbatches_give_the_step_of_the_whole_batch():
    def weights(**options):
        return fit([Distillation(teacher_network(), 2, 0.6), LabelSmoothing(0.1)], **options)

    torch.testing.assert_close(weights(device_train_microbatch_size=2), weights(), rtol=1e-5, atol=1e-6)


def test_a_composer_model_as_teacher_gets_the_whole_batch():
    module = teacher_network()
    torch.testing.assert_close(
        fit([Distillation(ComposerClassifier(copy.deepcopy(module), num_classes=K))]), fit([Distillation(module)])
    )


def test_losses_of_several_parts_and_outputs_with_a_key():
    class TwoLosses(ComposerClassifier):
        parts = staticmethod(lambda loss: (0.25 * loss, 0.75 * loss))

        def forward(self, batch):
            return {"logits": super().forward(batch)}

        def loss(self, outputs, batch):
            return self.parts(F.cross_entropy(outputs["logits"], batch[1]))

        def update_metric(self, batch, outputs, metric):
            pass

    class TotalLoss(TwoLosses):
        parts = staticmethod(lambda loss: {"total": loss, "other": 2 * loss})

    def teacher():
        return ComposerClassifier(teacher_network(), num_classes=K)

    class InADict(nn.Module):
        def __init__(self):
            super().__init__()
            self.network = teacher_network()

        def forward(self, x):
            return {"logits": self.network(x)}

    expected = fit([Distillation(teacher(), 2, 0.6)])
    for cls in (TwoLosses, TotalLoss):
        model = cls(classifier().module, num_classes=K)
        weights = fit([Distillation(InADict(), 2, 0.6, output_key="logits")], model=model)
        torch.testing.assert_close(weights, expected)


def test_label_maps_are_taught_too():
    torch.manual_seed(3)
    teacher = nn.Conv2d(3, K, 1)
    one, other = (
        fit(list(order), segmentation=True, model=classifier(segmentation=True))
        for order in itertools.permutations([Distillation(teacher, 2, 0.6), LabelSmoothing(0.1)])
    )
    torch.testing.assert_close(one, other)


def test_checkpoints_hold_the_student_only(tmp_path):
    fit([Distillation(teacher_network())], save_folder=str(tmp_path), save_interval="1ba")
    state = torch.load(tmp_path / "latest-rank0.pt", weights_only=False)["state"]
    assert state["model"].keys() == classifier().state_dict().keys()
    assert (tmp_path / "latest-rank0.pt").stat().st_size < 40_000
    assert len(state["optimizers"]["SGD"]["param_groups"][0]["params"]) == 2


def test_the_plan_tells_of_the_teacher():
    from composer import Trainer

    algorithms = [Distillation(teacher_network(), 4, 0.75), LabelSmoothing(0.1)]
    plan = describe(Trainer(model=classifier(), algorithms=algorithms, progress_bar=False))
    assert plan.endswith("; teacher Sequential at temperature 4 counts 0.75, the loss 0.25")
    assert "may rewrite targets" not in plan
    assert repr(algorithms[0]).startswith("Distillation(teacher='Sequential', temperature=4, weight=0.75")


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"temperature": 0}, DiagnosticsError, "temperature must be a positive number, but is 0"),
        ({"student_temperature": -1}, DiagnosticsError, "temperature must be a positive number, but is -1"),
        ({"weight": 1.5}, DiagnosticsError, r"weight must be in \[0, 1\], but is 1.5"),
        ({"teacher": 3}, TypeError, "teacher must be a network, but is int: give a module"),
        ({"teacher": "runs/mine"}, TypeError, r"but is str: .*load_teacher\(PATH\).module is that of a run folder"),
    ],
)
def test_wrong_arguments_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        Distillation(**({"teacher": teacher_network()} | arguments))


def test_a_teacher_with_other_classes_and_the_student_itself_are_refused():
    with pytest.raises(DiagnosticsError, match=r"teacher's logits have shape \(8, 7\), the student's \(8, 5\)"):
        fit([Distillation(nn.Sequential(nn.Flatten(), nn.Linear(192, 7)))])
    model = classifier()
    for itself in (model, model.module):
        with pytest.raises(TeacherError, match="the teacher is the student itself: give Distillation a copy"):
            fit([Distillation(itself)], model=model)


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (
            lambda x: (x, 2 * x),
            "teacher's output is tuple of 2 with several tensors that could be logits, .*output_key",
        ),
        (lambda x: {"loss": x.mean()}, "teacher's output is dict with the keys loss with no logits, .*output_key"),
    ],
)
def test_an_output_without_one_tensor_of_logits_says_what_to_give(output, message):
    class Odd(nn.Module):
        def forward(self, x):
            return output(x)

    with pytest.raises(TypeError, match=message):
        fit([Distillation(Odd())])


def test_a_dataloader_of_dense_rows_is_taught_too():
    images, labels = examples()
    rows = F.one_hot(labels, K).float()
    dense = fit([Distillation(teacher_network())], loader=DataLoader(TensorDataset(images, rows), 8))
    torch.testing.assert_close(dense, fit([Distillation(teacher_network())]), rtol=1e-5, atol=1e-6)
