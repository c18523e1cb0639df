"""Label smoothing as one pure function: labels, dense rows or SoftTargets in, smoothed targets out."""

from __future__ import annotations

import numbers
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from composer_ls.smoothing.priors import check_prior_values
from composer_ls.targets import SoftTargets
from composer_ls.targets.compiling import in_graph, know_in_graph
from composer_ls.targets.fields import as_field, class_dim, host_number, is_sharded, transformed, wide_dtype
from composer_ls.targets.soft_targets import make, replace

__all__ = ["check_kind", "check_smoothing", "classes_and_weights", "smooth_labels", "smoothed_parts"]

SPREADS = ("all", "others")
KINDS = ("multiclass", "binary")


def smooth_labels(
    logits: Tensor,
    target: Tensor,
    smoothing: float | Tensor = 0.1,
    *,
    prior: Tensor | Sequence[Any] | None = None,
    ignore_index: int | None = -100,
    spread: str = "all",
    kind: str = "multiclass",
    validate: bool | None = None,
) -> Tensor:
    r"""Move ``smoothing`` of each target's mass to a prior: :math:`y' = (1-\alpha)\,y + \alpha\,q`.

    With ``kind="binary"`` every entry of the target is an independent label in [0, 1] and the prior is 1/2:
    :math:`y' = (1-\alpha)\,y + \alpha/2`. Use it for multi-label targets and
    :func:`torch.nn.functional.binary_cross_entropy_with_logits`.

    Args:
        logits: Predictions ``(N, K, *spatial)`` or ``(K,)``; only shape, dtype and device are read.
        target: Labels, integer ``(N, *spatial)``; dense rows ``(N, K, *spatial)`` of any dtype, including integer
            one-hot rows; or :class:`~composer_ls.SoftTargets`. With ``kind="binary"``: labels in [0, 1] of the logits'
            shape, whatever that is.
        smoothing: α in [0, 1], the mass that moves. A tensor of the labels' shape gives each example its own α.
        prior: q. ``None`` for the uniform ``1/K``; a row ``(K,)``; or ``(K, K)``, where row c is the prior of label c.
        ignore_index: Positions with this label get a row of zeros; ``None`` to ignore no label.
        spread: ``"all"``: α is shared by all classes, the true one included. ``"others"``: α goes to the K - 1
            incorrect classes only and the true class keeps 1 - α; this is ``"all"`` with :math:`\alpha K/(K-1)`.
        kind: ``"multiclass"``: a row is one distribution over K classes. ``"binary"``: every entry is its own label.
        validate: Whether to check values as well as shapes (labels in range, rows and priors that are distributions),
            which forces a GPU to synchronise. ``None``: on the CPU only. Values are never read under
            :func:`torch.compile`, :func:`torch.vmap` and the like.

    Returns:
        SoftTargets for labels and SoftTargets, so that the loss never needs the dense rows; a dense tensor for dense
        rows. The shape is ``(N, K, *spatial)``, and rows sum to 1, or to 0 where ignored. With ``kind="binary"``: a
        float tensor of the logits' shape. The result never shares memory with ``target``.

    Raises:
        TypeError: ``smoothing`` is not a number, ``target`` not a tensor or ``ignore_index`` not an integer.
        ValueError: ``smoothing`` is outside [0, 1] or NaN; a label is out of range; the shapes fit neither labels nor
            dense rows; dense rows sum to more than 1; the prior is negative, does not sum to 1, or has another K;
            ``spread`` or ``kind`` is unknown. With ``kind="binary"``: a label outside [0, 1], or a ``prior`` or
            ``spread``.

    Example:
        >>> import torch
        >>> from composer_ls import smooth_labels
        >>> logits, labels = torch.zeros(2, 4), torch.tensor([1, -100])
        >>> smooth_labels(logits, labels, smoothing=0.2).dense()
        tensor([[0.0500, 0.8500, 0.0500, 0.0500],
                [0.0000, 0.0000, 0.0000, 0.0000]])
        >>> smooth_labels(logits[:1], torch.tensor([[1, 0, 1, 0]]), smoothing=0.2, kind="binary")
        tensor([[0.9000, 0.1000, 0.9000, 0.1000]])

    References:
        Szegedy et al., 2016, https://arxiv.org/abs/1512.00567, section 7; Müller et al., 2019,
        https://arxiv.org/abs/1906.02629.

    """
    if torch.compiler.is_compiling():
        know_in_graph()
    return _smooth_labels(logits, target, smoothing, prior, ignore_index, spread, kind, validate)


@in_graph
def _smooth_labels(
    logits: Tensor,
    target: Tensor,
    smoothing: float | Tensor,
    prior: Tensor | Sequence[Any] | None,
    ignore_index: int | None,
    spread: str,
    kind: str,
    validate: bool | None,
) -> Tensor:
    _require_tensors(logits, target, ignore_index)
    look = validate if validate is not None else logits.device.type == "cpu"
    read = None if isinstance(target, SoftTargets) else target
    look = look and not transformed(None if is_sharded(logits) else logits, read)
    check_kind(kind, spread, prior is not None)
    if kind == "binary":
        return _smooth_binary(logits, target, smoothing, look)
    if logits.ndim == 0:
        raise ValueError("logits have no dimensions, but must be (K,), (N, K) or (N, K, *spatial)")
    dim = class_dim(logits)
    num_classes = logits.shape[dim]
    if isinstance(smoothing, Tensor):
        _check_each_smoothing(smoothing, logits.shape[:dim] + logits.shape[dim + 1 :], look)
    amount = check_smoothing(smoothing, num_classes, spread, prior is not None)
    rows = None if prior is None else _placed_prior(prior, num_classes, logits, look)
    if isinstance(target, SoftTargets):
        _require_same_shape(logits, target)
        return _smooth_soft(target, amount, rows)
    if _are_labels(logits, target, dim):
        return _smooth_hard(logits, target, amount, rows, ignore_index, dim, look)
    _require_same_shape(logits, target)
    if look:
        _require_distributions(target, dim)
    return _smooth_dense(target, amount, rows, dim)


def _require_tensors(logits: Any, target: Any, ignore_index: Any) -> None:
    for name, value in (("logits", logits), ("target", target)):
        if not isinstance(value, Tensor):
            raise TypeError(f"{name} must be a tensor, but is {type(value).__name__}: use torch.as_tensor({name})")
    if ignore_index is not None and (isinstance(ignore_index, bool) or not isinstance(ignore_index, numbers.Integral)):
        raise TypeError(f"ignore_index must be an integer, or None to ignore no label, but is {ignore_index!r}")


def check_kind(kind: str, spread: str, has_prior: bool) -> None:
    """Check ``kind``, and that ``prior`` and ``spread`` are not given with ``kind="binary"``."""
    if kind not in KINDS:
        raise ValueError(f"kind must be 'multiclass' or 'binary', but is {kind!r}")
    if kind == "binary" and (has_prior or spread != "all"):
        raise ValueError("kind='binary' moves the mass of each label to 1/2; leave prior=None and spread='all' with it")


def check_smoothing(smoothing: Any, num_classes: int | None, spread: str, has_prior: bool) -> float | Tensor:
    """The checked smoothing factor for a prior over all classes, converted if ``spread`` is ``"others"``."""
    if spread not in SPREADS:
        raise ValueError(f"spread must be 'all' or 'others', but is {spread!r}")
    if spread == "others" and has_prior:
        raise ValueError("spread='others' divides the mass equally among the other classes; leave prior=None with it")
    if isinstance(smoothing, Tensor):
        if not smoothing.is_floating_point():
            raise TypeError(f"smoothing must be a float tensor or a number, but its dtype is {smoothing.dtype}")
    elif isinstance(smoothing, bool) or not isinstance(smoothing, (numbers.Real, torch.SymFloat)):
        raise TypeError(f"smoothing must be a number in [0, 1], but is {smoothing!r} ({type(smoothing).__name__})")
    elif not 0 <= smoothing <= 1:  # type: ignore[operator]  # refuses NaN too
        raise ValueError(f"smoothing must be in [0, 1], but is {smoothing}; 0.1 moves a tenth of the mass")
    elif not isinstance(smoothing, torch.SymFloat):  # a SymFloat has no value yet: code is being compiled
        smoothing = float(smoothing)
    if spread == "all" or num_classes is None:
        return smoothing
    if num_classes < 2:
        raise ValueError("spread='others' needs at least 2 classes, but the logits have 1; use spread='all'")
    return smoothing * num_classes / (num_classes - 1)


def _check_each_smoothing(smoothing: Tensor, label_shape: torch.Size, look: bool) -> None:
    if smoothing.ndim and smoothing.shape != label_shape:
        raise ValueError(
            f"smoothing has shape {tuple(smoothing.shape)}, but must be a number or have the shape of the labels, "
            f"{tuple(label_shape)}"
        )
    outside = ~((smoothing >= 0) & (smoothing <= 1))  # true of NaN too
    if look and bool(outside.any()):
        where = outside.nonzero()[0].tolist()
        raise ValueError(f"smoothing{where or ''} must be in [0, 1], but is {smoothing[tuple(where)].item():g}")


def _placed_prior(prior: Any, num_classes: int, logits: Tensor, look: bool) -> Tensor:
    rows = torch.as_tensor(prior)
    rows = rows if rows.is_floating_point() else rows.float()
    if tuple(rows.shape) not in {(num_classes,), (num_classes, num_classes)}:
        raise ValueError(
            f"prior has shape {tuple(rows.shape)}, but the logits {tuple(logits.shape)} have K = {num_classes} "
            f"classes: give a row ({num_classes},), one row per class ({num_classes}, {num_classes}), or None"
        )
    if look:
        check_prior_values(rows)
    return rows.to(logits.device)


def _are_labels(logits: Tensor, target: Tensor, dim: int) -> bool:
    label_shape = logits.shape[:dim] + logits.shape[dim + 1 :]
    if target.shape == label_shape and target.shape != logits.shape:
        if target.is_floating_point() or target.is_complex() or target.dtype == torch.bool:
            raise ValueError(
                f"target has the shape of labels, {tuple(target.shape)}, but dtype {target.dtype}: labels are "
                f"integers, use target.long()"
            )
        return True
    return False


def _require_same_shape(logits: Tensor, target: Tensor) -> None:
    if logits.shape != target.shape:
        dim = class_dim(logits)
        label_shape = tuple(logits.shape[:dim] + logits.shape[dim + 1 :])
        hint = ""
        fits_but_for_classes = (
            target.ndim == logits.ndim and target.shape[:dim] + target.shape[dim + 1 :] == label_shape
        )
        if fits_but_for_classes and target.shape[dim] == 1:
            hint = f"; if these are labels, drop the dimension of size 1: target.squeeze({dim})"
        elif target.shape == (*label_shape, 1):
            hint = "; if these are labels, drop the last dimension: target.squeeze(-1)"
        elif fits_but_for_classes:
            hint = f"; the target has {target.shape[dim]} classes, the logits {logits.shape[dim]}"
        elif target.shape == logits.shape[:-1]:
            hint = "; if the logits' classes are last, give logits.movedim(-1, 1)"
        raise ValueError(
            f"target has shape {tuple(target.shape)}, but logits {tuple(logits.shape)} take labels of shape "
            f"{label_shape} or dense rows of shape {tuple(logits.shape)}{hint}"
        )


def _require_distributions(target: Tensor, dim: int) -> None:
    """Refuse rows that sum to more than 1. Rows that sum to less are mixes with an ignored label."""
    sums = target.sum(dim, dtype=torch.float32)
    if sums.numel() and sums.max() > 1.01:
        where = (sums > 1.01).nonzero()[0].tolist()
        raise ValueError(
            f"the target's row at {where} sums to {sums[tuple(where)].item():g}, but a distribution over classes sums to "
            f"1: divide each row by its sum; for several labels per example and a binary loss, use kind='binary'"
        )


def _smooth_hard(
    logits: Tensor,
    labels: Tensor,
    smoothing: float | Tensor,
    prior: Tensor | None,
    ignore_index: int | None,
    dim: int,
    look: bool,
) -> SoftTargets:
    num_classes = logits.shape[dim]
    classes, weights = _counted(logits, labels, ignore_index, dim, look)
    if isinstance(smoothing, Tensor) and smoothing.ndim:
        smoothing = smoothing.unsqueeze(dim)
    out = logits.dtype if logits.dtype.is_floating_point else torch.float32
    return make(classes, num_classes, weights, as_field(smoothing, classes, "smoothing"), prior, out)


def classes_and_weights(
    logits: Tensor, target: Any, ignore_index: int | None, validate: bool | None
) -> tuple[Tensor, Tensor] | None:
    """The fields of SoftTargets for labels, checked as :func:`smooth_labels` checks them; ``None`` for other targets."""
    _require_tensors(logits, target, ignore_index)
    if isinstance(target, SoftTargets) or logits.ndim == 0:
        return None
    dim = class_dim(logits)
    if not _are_labels(logits, target, dim):
        return None
    look = validate if validate is not None else logits.device.type == "cpu"
    return _counted(logits, target, ignore_index, dim, look and not transformed(logits, target))


def _counted(logits: Tensor, labels: Tensor, ignore_index: int | None, dim: int, look: bool) -> tuple[Tensor, Tensor]:
    """Labels as classes ``(N, 1, *spatial)``, a valid one where ignored, and their weights."""
    num_classes = logits.shape[dim]
    dtype = wide_dtype(logits.dtype)
    classes = labels.unsqueeze(dim).to(torch.long, copy=True)  # in uint8, 156 would equal an ignore_index of -100
    weights = torch.scalar_tensor(1.0, dtype=torch.float64)
    if not (look and _none_ignored(classes, num_classes, ignore_index)):
        if ignore_index is not None:
            counted = classes != ignore_index
            weights = counted.to(dtype)
            classes = torch.where(counted, classes, 0)
        if look:
            _require_in_range(labels, classes, num_classes)
    return classes, weights


def _none_ignored(labels: Tensor, num_classes: int, ignore_index: int | None) -> bool:
    is_class = ignore_index is not None and 0 <= ignore_index < num_classes
    return labels.numel() == 0 or (not is_class and _in_range(labels, num_classes))


def _in_range(labels: Tensor, num_classes: int) -> bool:
    low, high = (int(value) for value in labels.aminmax())
    return low >= 0 and high < num_classes


def _require_in_range(labels: Tensor, classes: Tensor, num_classes: int) -> None:
    """Refuse a label outside ``[0, K)``. ``classes`` are the labels, with a valid class in ignored positions."""
    if not _in_range(classes, num_classes):
        where = ((classes < 0) | (classes >= num_classes)).reshape(labels.shape).nonzero()[0].tolist()
        value = int(labels[tuple(where)])
        raise ValueError(
            f"target{where or ''} is {value}, but the logits have {num_classes} classes, so labels must be in "
            f"0 to {num_classes - 1}; if {value} marks positions to ignore, pass ignore_index={value}"
        )


def _smooth_soft(target: SoftTargets, smoothing: float | Tensor, prior: Tensor | None) -> Tensor:
    """Smooth SoftTargets. If they were smoothed before with the same prior row, the factors ``1 - α`` multiply."""
    if isinstance(smoothing, Tensor) and smoothing.ndim:
        smoothing = smoothing.unsqueeze(class_dim(target))
    held = target.smoothing
    if host_number(held) != 0 and not _same_row(prior, target.prior):
        return _smooth_dense(target.dense(), smoothing, prior, class_dim(target))
    combined = 1 - (1 - held) * (1 - smoothing)
    combined = as_field(combined, target.classes, "smoothing")
    return replace(target, target.classes, target.weights, combined, prior=prior)


def smoothed_parts(
    logits: Tensor, target: SoftTargets, smoothing: float, prior: Tensor | Sequence[Any] | None = None
) -> list[tuple[float, Tensor]] | None:
    """Smoothed SoftTargets as a weighted sum of SoftTargets, which have the same labels and weights as ``target``.

    A loss that is linear in the target is the same sum of their losses. There is one part if the result is SoftTargets,
    and two if ``target`` was smoothed before with another prior. ``None`` if this prior has one row per class and
    ``target`` was smoothed before: the result is dense then.
    """
    _require_same_shape(logits, target)
    amount = check_smoothing(smoothing, None, "all", False)
    look = logits.device.type == "cpu" and not transformed(None if is_sharded(logits) else logits)
    rows = None if prior is None else _placed_prior(prior, target.num_classes, logits, look)
    if host_number(target.smoothing) == 0 or _same_row(rows, target.prior):
        return [(1.0, _smooth_soft(target, amount, rows))]
    if rows is not None and rows.ndim == 2:
        return None
    whole = as_field(1.0, target.classes, "smoothing")
    moved = replace(target, target.classes, target.weights, whole, prior=rows)
    return [(1.0, moved)] if amount == 1 else [(1 - amount, target), (amount, moved)]  # type: ignore[list-item]


def _same_row(a: Tensor | None, b: Tensor | None) -> bool:
    """Whether both are the same single row. With one row per class, smoothing twice has no compact form."""
    if a is None or b is None:
        return a is b
    return a.ndim == 1 and (a is b or (not transformed(a, b) and a.equal(b)))


def _smooth_binary(logits: Tensor, target: Tensor, smoothing: float | Tensor, look: bool) -> Tensor:
    if target.shape != logits.shape:
        raise ValueError(
            f"target has shape {tuple(target.shape)}, but with kind='binary' every one of the logits "
            f"{tuple(logits.shape)} takes a label in [0, 1]; for labels that are class ids, use "
            f"kind='multiclass'"
        )
    if isinstance(smoothing, Tensor):
        _check_each_smoothing(smoothing, target.shape, look)
    amount = check_smoothing(smoothing, None, "all", False)
    rows = target if target.is_floating_point() else target.float()
    if look:
        _require_probabilities(rows)
    return (1 - amount) * rows + amount / 2


def _require_probabilities(rows: Tensor) -> None:
    outside = ~((rows >= 0) & (rows <= 1))  # true of NaN too
    if bool(outside.any()):
        where = outside.nonzero()[0].tolist()
        raise ValueError(
            f"target{where or ''} is {rows[tuple(where)].item():g}, but with kind='binary' labels must be in [0, 1]; "
            f"if it marks an unknown label, put a valid label there and give the loss a weight= of 0 for it"
        )


def _smooth_dense(target: Tensor, smoothing: float | Tensor, prior: Tensor | None, dim: int) -> Tensor:
    rows = target if target.is_floating_point() else target.float()
    if isinstance(smoothing, Tensor) and smoothing.ndim:
        smoothing = smoothing.unsqueeze(dim)
    mass = rows.sum(dim, keepdim=True)
    if prior is None:
        moved = mass / rows.shape[dim]
    elif prior.ndim == 1:
        shape = [1] * rows.ndim
        shape[dim] = rows.shape[dim]
        moved = mass * prior.to(rows.dtype).view(shape)
    else:
        moved = (rows.movedim(dim, -1) @ prior.to(rows.dtype)).movedim(-1, dim)
    return (1 - smoothing) * rows + smoothing * moved
