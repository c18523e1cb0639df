"""The equivalent smoothing of a teacher, and the loss of its student."""

import pytest
import torch
from torch.nn import functional as F

from composer_ls import cross_entropy, smooth_labels
from composer_ls.diagnostics.teaching import distillation_loss, equivalent_smoothing
from composer_ls.errors import DiagnosticsError


def logits_of(shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("smoothing", [1e-6, 0.1, 0.5, 0.99])
@pytest.mark.parametrize("classes", [2, 10])
def test_a_teacher_that_is_exactly_smoothed_targets_has_their_smoothing(smoothing, classes):
    labels = torch.arange(20) % classes
    target = smooth_labels(torch.zeros(20, classes, dtype=torch.float64), labels, smoothing).dense()
    assert equivalent_smoothing(target.log(), labels) == pytest.approx(smoothing, rel=1e-9)


def test_temperature_raises_it_from_none_to_all():
    logits, labels = 9 * logits_of((50, 10)), torch.arange(50) % 10
    right = logits.scatter(1, labels.unsqueeze(1), 60)
    values = [equivalent_smoothing(right, labels, temperature) for temperature in (0.1, 1, 4, 16, 1e9)]
    assert values == sorted(values)
    assert values[0] == pytest.approx(0, abs=1e-9)
    assert values[-1] == pytest.approx(1)


def test_it_equals_the_formula_summed_by_hand():
    logits, labels = logits_of((9, 4)).double(), torch.arange(9) % 4
    p = (logits / 3).softmax(1)
    by_hand = sum(p[n, k].item() for n in range(9) for k in range(4) if k != labels[n]) / 9 * 4 / 3
    assert equivalent_smoothing(logits, labels, 3) == pytest.approx(by_hand)


def test_the_loss_mixes_the_cross_entropies_of_labels_and_teacher():
    student, teacher, labels = logits_of((6, 5)), logits_of((6, 5), 1), torch.arange(6) % 5
    soft = -((teacher / 3).softmax(1) * (student / 2).log_softmax(1)).sum(1).mean()
    loss = distillation_loss(student, teacher, labels, 3, 0.7, student_temperature=2)
    torch.testing.assert_close(loss, 0.3 * F.cross_entropy(student, labels) + 0.7 * soft)
    torch.testing.assert_close(distillation_loss(student, teacher, labels, 3, 0), F.cross_entropy(student, labels))


def test_the_labels_may_be_smoothed_and_mixed():
    student, teacher = logits_of((6, 5)), logits_of((6, 5), 1)
    target = smooth_labels(student, torch.arange(6) % 5, 0.1)
    mixed = 0.6 * target + 0.4 * target.flip(0)
    expected = 0.5 * cross_entropy(student, mixed) + 0.5 * distillation_loss(student, teacher, mixed, weight=1)
    torch.testing.assert_close(distillation_loss(student, teacher, mixed), expected)


@pytest.mark.parametrize("temperature", [0.5, 1, 4])
def test_a_student_equal_to_its_teacher_gets_no_gradient(temperature):
    student = logits_of((6, 5)).requires_grad_()
    teacher = student.detach().clone().requires_grad_()
    distillation_loss(student, teacher, torch.zeros(6).long(), temperature, weight=1).backward()
    assert student.grad.abs().max() < 1e-7
    assert teacher.grad is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_half_precision_logits_are_summed_in_float32(dtype):
    student, teacher = logits_of((64, 50)).to(dtype), logits_of((64, 50), 1).to(dtype)
    loss = distillation_loss(student, teacher, torch.zeros(64).long(), 2, weight=1)
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    reference = distillation_loss(student.double(), teacher.double(), torch.zeros(64).long(), 2, weight=1)
    torch.testing.assert_close(loss.double(), reference, rtol=1e-6, atol=0)


def test_a_teacher_with_other_classes_is_refused():
    with pytest.raises(DiagnosticsError, match=r"teacher's logits have shape \(6, 4\), the student's \(6, 5\)"):
        distillation_loss(torch.zeros(6, 5), torch.zeros(6, 4), torch.zeros(6).long())


@pytest.mark.parametrize("temperature", [0, -1.0, float("nan"), float("inf")])
def test_a_temperature_must_be_positive(temperature):
    with pytest.raises(DiagnosticsError, match="temperature must be a positive number"):
        distillation_loss(torch.zeros(6, 5), torch.zeros(6, 5), torch.zeros(6).long(), temperature)
    with pytest.raises(DiagnosticsError, match="temperature must be a positive number"):
        equivalent_smoothing(torch.zeros(6, 5), torch.zeros(6).long(), temperature)


def test_a_weight_outside_of_zero_to_one_and_nan_teachers_are_refused():
    with pytest.raises(DiagnosticsError, match=r"weight must be in \[0, 1\], but is 2"):
        distillation_loss(torch.zeros(6, 5), torch.zeros(6, 5), torch.zeros(6).long(), weight=2)
    with pytest.raises(DiagnosticsError, match="logits of 6 of 6 examples are not finite"):
        equivalent_smoothing(torch.full((6, 5), torch.nan), torch.zeros(6).long())
    with pytest.raises(DiagnosticsError, match="one class"):
        equivalent_smoothing(torch.zeros(6, 1), torch.zeros(6).long())
