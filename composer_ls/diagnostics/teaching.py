"""Distillation targets: the smoothing to which a teacher's targets are equivalent, and the loss of its student."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from composer_ls.diagnostics.checks import IGNORED, check_logits
from composer_ls.errors import DiagnosticsError
from composer_ls.targets import SoftTargets
from composer_ls.targets.fields import wide_dtype

__all__ = ["distillation_loss", "equivalent_smoothing"]


def equivalent_smoothing(
    teacher_logits: Tensor, labels: Tensor, temperature: float = 1.0, ignore_index: int = IGNORED
) -> float:
    r"""The smoothing γ that moves as much mass to the incorrect classes as a teacher's targets on average.

    .. math:: \gamma = \frac{K}{K-1}\, E\Big[\sum_{k\ne y} p^{\text{teacher}}_k(T)\Big]

    A teacher whose probabilities are labels smoothed by α has γ = α, so its students can be compared with networks that
    were trained on labels smoothed by the same amount.

    Args:
        teacher_logits: ``(N, K)``, for the training examples.
        labels: Integer ``(N,)``.
        temperature: T, by which the logits are divided.
        ignore_index: The label of examples that do not count.

    Raises:
        DiagnosticsError: Shapes do not match, there is only one class, the temperature is not positive, or logits are
            NaN.

    Example:
        >>> import torch
        >>> from composer_ls.diagnostics.teaching import equivalent_smoothing
        >>> smoothed = torch.tensor([[0.85, 0.05, 0.05, 0.05]])  # a label smoothed by 0.2
        >>> round(equivalent_smoothing(smoothed.log(), torch.tensor([0])), 6)
        0.2

    References:
        Müller et al., 2019, https://arxiv.org/abs/1906.02629, section 4.

    """
    teacher_logits, labels = check_logits(teacher_logits, labels, ignore_index)
    _check_temperature(temperature)
    classes = teacher_logits.shape[1]
    if classes < 2:
        raise DiagnosticsError("the teacher has one class, so there are no incorrect ones to move mass to")
    probabilities = (teacher_logits.double() / temperature).softmax(1)
    # Summed over the incorrect classes, because 1 - p_y would lose a confident teacher's small numbers to rounding.
    incorrect = probabilities.scatter(1, labels.unsqueeze(1), 0).sum(1)
    return (incorrect.mean() * classes / (classes - 1)).item()


def distillation_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    target: Tensor,
    temperature: float = 1.0,
    weight: float = 0.5,
    student_temperature: float | None = None,
    ignore_index: int = IGNORED,
) -> Tensor:
    r"""Cross entropy of the labels and of a teacher's probabilities, mixed: :math:`(1-\beta)H(y,p) + \beta H(p^t,
    p^s)`.

    No factor T² is added: with β below 1 and a high temperature, the teacher's part has small gradients.

    Args:
        student_logits: ``(N, K, *spatial)``.
        teacher_logits: The same shape, for the same inputs. They get no gradient.
        target: y, as labels, dense rows or SoftTargets. Positions that are ignored, by ``ignore_index`` or a mass of 0,
            are left out of both parts.
        temperature: T of the teacher.
        weight: β in [0, 1], the weight of the teacher's part.
        student_temperature: T of the student in the teacher's part. ``None``: that of the teacher.
        ignore_index: The label of positions that do not count.

    Returns:
        The mean over the positions that count, in nats; 0 if there are none.

    Raises:
        DiagnosticsError: Shapes differ (a teacher with other classes, labels of other positions), there are fewer than
            two classes, a temperature is not positive, or the weight is outside [0, 1].

    Example:
        >>> import torch
        >>> from composer_ls.diagnostics.teaching import distillation_loss
        >>> student, teacher, labels = torch.zeros(1, 4), torch.tensor([[9.0, 0, 0, 0]]), torch.tensor([0])
        >>> distillation_loss(student, teacher, labels, temperature=2.0)  # a student that knows nothing: log 4
        tensor(1.3863)

    References:
        Hinton, Vinyals, Dean, 2015, https://arxiv.org/abs/1503.02531; Müller et al., 2019,
        https://arxiv.org/abs/1906.02629, section 4, where the student's temperature is 1.

    """
    check_distillation(weight, temperature, student_temperature)
    counted = counted_positions(target, student_logits, ignore_index)
    if weight == 1:
        return teacher_cross_entropy(student_logits, teacher_logits, temperature, student_temperature, counted)
    logits = student_logits.to(wide_dtype(student_logits.dtype))  # a sum over all positions overflows in float16
    logits = logits.masked_fill(~counted.unsqueeze(1), 0)  # a gradient of 0 there even where the logits are NaN
    if target.is_floating_point():
        hard = F.cross_entropy(logits, target, reduction="sum")
    else:
        hard = F.cross_entropy(logits, target.long(), ignore_index=ignore_index, reduction="sum")
    hard = hard / counted.sum().clamp_min(1)  # the mean, or 0 if every label is ignored
    if weight == 0:
        return hard
    soft = teacher_cross_entropy(student_logits, teacher_logits, temperature, student_temperature, counted)
    return (1 - weight) * hard + weight * soft


def teacher_cross_entropy(
    student_logits: Tensor,
    teacher_logits: Tensor,
    temperature: float,
    student_temperature: float | None = None,
    counted: Tensor | None = None,
) -> Tensor:
    """The teacher's part of :func:`distillation_loss`, in float32 or wider.

    Args:
        student_logits: ``(N, K, *spatial)``.
        teacher_logits: The same shape. A class with a teacher probability of 0, such as one masked by -inf, contributes
            nothing, whatever the student's logit.
        temperature: T of the teacher.
        student_temperature: T of the student. ``None``: that of the teacher.
        counted: The positions that count, bool ``(N, *spatial)``. ``None``: all. Other positions get a gradient of
            exactly 0, whatever the logits there.

    """
    check_classes(student_logits)
    if student_logits.shape != teacher_logits.shape:
        raise DiagnosticsError(
            f"the teacher's logits have shape {tuple(teacher_logits.shape)}, the student's {tuple(student_logits.shape)}: "
            f"a teacher must have the same classes and inputs as its student"
        )
    own = temperature if student_temperature is None else student_temperature
    dtype = student_logits.dtype if student_logits.dtype.itemsize > 2 else torch.float32
    # Classes last: over another dimension, float32 sums of 50,000 classes are off by 4e-5.
    teacher, student = teacher_logits.detach().to(student_logits.device).movedim(1, -1), student_logits.movedim(1, -1)
    probabilities = (teacher.to(dtype) / temperature).softmax(-1)
    # On some processors a softmax of 50,000 classes in float32 sums to 1 only within 1e-5.
    probabilities /= probabilities.sum(-1, keepdim=True)
    scaled = student.to(dtype) / own
    number: Tensor | int = max(1, probabilities[..., 0].numel())
    if counted is not None:
        left_out = ~counted.unsqueeze(-1)
        probabilities = probabilities.masked_fill(left_out, 0)
        scaled = scaled.masked_fill(left_out, 0)  # otherwise NaN there would reach the gradient as 0 * NaN
        number = counted.sum().clamp_min(1)
    # Classes with probability 0 are masked, because 0 * -inf is NaN.
    log_probabilities = scaled.log_softmax(-1).masked_fill(probabilities == 0, 0)
    return -(probabilities * log_probabilities).sum() / number


def counted_positions(target: Tensor, logits: Tensor, ignore_index: int = IGNORED) -> Tensor:
    """Which positions of a target count, bool ``(N, *spatial)``: labels other than ``ignore_index``, rows with mass.

    Args:
        target: Labels ``(N, *spatial)``, dense rows or SoftTargets ``(N, K, *spatial)``.
        logits: ``(N, K, *spatial)``.
        ignore_index: The label of positions that do not count.

    Raises:
        DiagnosticsError: The target has another shape.

    """
    positions = logits.shape[:1] + logits.shape[2:]
    if target.is_floating_point() and target.shape == logits.shape:
        mass = target
        if isinstance(target, SoftTargets):  # the weights suffice, without the dense rows
            mass = target.weights.expand(target.classes.shape)
        return (mass.sum(1) > 0).to(logits.device)
    if not target.is_floating_point() and target.shape == positions:
        return (target.long() != ignore_index).to(logits.device)  # in uint8, 156 would equal an ignore_index of -100
    raise DiagnosticsError(
        f"the target has shape {tuple(target.shape)} and dtype {target.dtype}, but for logits {tuple(logits.shape)} must be "
        f"integer labels {tuple(positions)} or rows {tuple(logits.shape)}"
    )


def check_classes(logits: Tensor, dim: int = 1) -> None:
    """Refuse logits without a dimension of at least two classes, whose softmax is 1 whatever they are."""
    if logits.ndim < 2 or logits.shape[dim] < 2:
        raise DiagnosticsError(
            f"the logits have shape {tuple(logits.shape)}, but distillation needs at least 2 classes, over which it takes "
            f"the softmax: for one number per example, give both networks two logits"
        )


def check_distillation(weight: float, temperature: float, student_temperature: float | None) -> None:
    """Refuse a weight outside [0, 1], and temperatures that are not positive."""
    if not 0 <= weight <= 1:
        raise DiagnosticsError(f"weight must be in [0, 1], but is {weight}: 1 learns from the teacher alone")
    _check_temperature(temperature)
    if student_temperature is not None:
        _check_temperature(student_temperature)


def _check_temperature(temperature: float) -> None:
    if not 0 < temperature < float("inf"):
        raise DiagnosticsError(
            f"a temperature must be a positive number, but is {temperature}; 1 leaves logits as they are"
        )
