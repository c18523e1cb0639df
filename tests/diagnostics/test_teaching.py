"""The equivalent smoothing of a teacher, and the loss of its student."""

import math

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


@pytest.mark.parametrize("weight", [0, 0.3, 1])
def test_rows_without_mass_count_no_more_than_ignored_labels(weight):
    student, teacher = logits_of((4, 3)), logits_of((4, 3), 1)
    labels = torch.tensor([0, 1, -100, -100])
    soft = smooth_labels(student, labels, 0.0)
    losses, gradients = [], []
    for target in (labels, soft, soft.dense()):
        x = student.clone()
        x[2] = torch.nan  # which an ignored position keeps to itself
        x.requires_grad_()
        losses.append(distillation_loss(x, teacher, target, weight=weight))
        gradients.append(torch.autograd.grad(losses[-1], x)[0])
    expected = distillation_loss(student[:2], teacher[:2], labels[:2], weight=weight)
    for loss, gradient in zip(losses, gradients, strict=True):
        torch.testing.assert_close(loss, expected)
        torch.testing.assert_close(gradient, gradients[1])
        assert not gradient[2:].any()
    assert distillation_loss(student, teacher, torch.zeros(4, 3), weight=weight) == 0


@pytest.mark.parametrize("dense", [False, True])
def test_many_rows_do_not_overflow_half_precision(dense):
    student, teacher = torch.zeros(70_000, 2).half(), torch.zeros(70_000, 2).half()
    labels = torch.zeros(70_000).long()
    target = F.one_hot(labels, 2).half() if dense else labels
    assert distillation_loss(student, teacher, target, weight=0).item() == pytest.approx(math.log(2), rel=1e-3)


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


def reference(student, teacher, counted, temperature=1.0, own=None):
    """The teacher's part in float64, position by position and class by class, and its gradient."""
    x = student.detach().double().movedim(1, -1).reshape(-1, student.shape[1]).requires_grad_()
    p = (teacher.double().movedim(1, -1).reshape(-1, teacher.shape[1]) / temperature).softmax(1)
    chosen = counted.flatten().nonzero()[:, 0]
    terms = -torch.where(p > 0, p * (x / (own or temperature)).log_softmax(1), 0)[chosen]
    loss = terms.sum() / max(1, len(chosen))
    loss.backward()
    positions = (student.shape[0], *student.shape[2:])
    return loss.detach(), x.grad.view(*positions, -1).movedim(-1, 1)


@pytest.mark.parametrize("shape", [(7, 5), (3, 11, 4), (2, 5, 8, 6), (4, 1000), (2, 50_257, 5), (1, 300, 64, 64)])
@pytest.mark.parametrize("temperature", [(1.0, None), (4.0, 1.0)])
def test_value_and_gradient_are_those_of_float64_at_every_shape(shape, temperature):
    student, teacher = (3 * logits_of(shape)).requires_grad_(), 3 * logits_of(shape, 1)
    labels = torch.randint(0, shape[1], (shape[0], *shape[2:]), generator=torch.Generator().manual_seed(2))
    labels.view(-1)[::3] = -100
    loss = distillation_loss(student, teacher, labels, temperature[0], 1, temperature[1])
    loss.backward()
    value, gradient = reference(student, teacher, labels != -100, *temperature)
    torch.testing.assert_close(loss.detach().double(), value, rtol=2e-6, atol=0)
    torch.testing.assert_close(student.grad.double(), gradient, rtol=1e-4, atol=1e-6 * gradient.abs().max().item())


@pytest.mark.parametrize("odd", [torch.nan, torch.inf, -torch.inf, 1e38])
@pytest.mark.parametrize("weight", [0.5, 1.0])
def test_ignored_positions_teach_nothing_whatever_their_logits(odd, weight):
    student, teacher, labels = logits_of((2, 5, 6)), logits_of((2, 5, 6), 1), torch.arange(12).view(2, 6) % 5
    labels[:, ::2] = 255
    expected = student.clone().requires_grad_()
    value = distillation_loss(expected, teacher, labels, 2, weight, ignore_index=255)
    value.backward()
    student[..., ::2] = odd if weight == 1 else 0.5  # PyTorch's own part has no such rule
    teacher[..., ::2] = odd
    student.requires_grad_()
    loss = distillation_loss(student, teacher, labels, 2, weight, ignore_index=255)
    loss.backward()
    torch.testing.assert_close(loss, value)
    torch.testing.assert_close(student.grad, expected.grad)
    assert not student.grad[..., ::2].any()


def test_a_small_integer_type_ignores_no_label_that_wraps_around_to_the_ignored_one():
    student, teacher, labels = logits_of((4, 200)), logits_of((4, 200), 1), torch.tensor([156, 1, 2, 3])
    loss = distillation_loss(student, teacher, labels.to(torch.uint8), 2)  # in uint8, 156 is -100
    torch.testing.assert_close(loss, distillation_loss(student, teacher, labels, 2))


@pytest.mark.parametrize("kind", ["labels", "rows", "SoftTargets"])
def test_rows_without_mass_are_ignored_positions(kind):
    student, teacher, labels = logits_of((8, 5)), logits_of((8, 5), 1), torch.arange(8) % 5
    labels[:3] = -100
    soft = smooth_labels(student, labels, 0.1)
    target = {"labels": labels, "rows": soft.dense(), "SoftTargets": 0.5 * soft + 0.5 * soft}[kind]
    expected = distillation_loss(student[3:], teacher[3:], labels[3:], 2, 1)
    torch.testing.assert_close(distillation_loss(student, teacher, target, 2, 1), expected)


@pytest.mark.parametrize("weight", [0.0, 0.5, 1.0])
def test_labels_that_are_all_ignored_cost_nothing_and_give_no_gradient(weight):
    student = logits_of((6, 5)).requires_grad_()
    loss = distillation_loss(student, logits_of((6, 5), 1), torch.full((6,), -100), weight=weight)
    loss.backward()
    assert loss.item() == 0
    assert not student.grad.any()


def test_a_class_that_both_mask_costs_nothing_and_leaves_the_others_as_they_are():
    student, teacher, labels = logits_of((6, 5)), logits_of((6, 5), 1), torch.arange(6) % 5
    masked = [torch.cat([part, torch.full((6, 2), -torch.inf)], 1).requires_grad_() for part in (student, teacher)]
    student.requires_grad_()
    plain, loss = distillation_loss(student, teacher, labels, 2), distillation_loss(*masked, labels, 2)
    plain.backward()
    loss.backward()
    torch.testing.assert_close(loss, plain)
    torch.testing.assert_close(masked[0].grad, F.pad(student.grad, (0, 2)))


def test_a_class_that_only_the_teacher_masks_has_no_probability():
    student, teacher = logits_of((6, 5)).requires_grad_(), logits_of((6, 5), 1)
    teacher[:, 2] = -torch.inf
    loss = distillation_loss(student, teacher, torch.zeros(6).long(), 2, 1)
    loss.backward()
    value, gradient = reference(student, teacher, torch.ones(6, dtype=torch.bool), 2)
    torch.testing.assert_close(loss.detach().double(), value)
    torch.testing.assert_close(student.grad.double(), gradient, rtol=1e-5, atol=1e-7)


def test_labels_of_another_shape_are_refused():
    with pytest.raises(DiagnosticsError, match=r"the target has shape \(6, 1\).*must be integer labels \(6,\)"):
        distillation_loss(torch.zeros(6, 5), torch.zeros(6, 5), torch.zeros(6, 1).long())


def test_a_teacher_of_weight_0_teaches_nothing_even_what_the_student_masks():
    student, teacher, labels = logits_of((6, 5)), logits_of((6, 5), 1), torch.arange(6) % 4
    student[:, 4] = -torch.inf
    loss = distillation_loss(student, teacher, labels, 2, 0)
    torch.testing.assert_close(loss, F.cross_entropy(student, labels))
