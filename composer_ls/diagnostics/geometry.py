"""Geometry of the penultimate layer: projection on the plane of three templates, and measures of its clusters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from composer_ls.diagnostics.checks import IGNORED, as_tensor, check_finite, check_pairs, require_classes
from composer_ls.errors import DiagnosticsError

__all__ = [
    "TemplateDistances",
    "TemplatePlane",
    "class_means",
    "neural_collapse",
    "project",
    "relative_spread",
    "simplex_deviation",
    "template_distances",
    "template_plane",
]


@dataclass(frozen=True)
class TemplatePlane:
    """The plane through the templates of three classes, or through those of two and along what else varies.

    Attributes:
        classes: The classes.
        origin: The mean of their templates, float64 ``(D + 1,)``, or ``(D,)`` for a layer without bias.
        basis: Two orthonormal directions of the plane, float64 ``(2, D + 1)``. The first points from the first template
            to the second; the third template is on the positive side of the second direction.
        corners: The coordinates of the templates in the plane, float64 ``(3, 2)`` or ``(2, 2)``.
        width: D, the number of input features of the layer.

    """

    classes: tuple[int, ...]
    origin: Tensor
    basis: Tensor
    corners: Tensor
    width: int


def template_plane(
    weight: Tensor, bias: Tensor | None, classes: Sequence[int], features: Tensor | None = None
) -> TemplatePlane:
    """The plane through the templates of three classes: the rows of the last layer's weight with their bias appended.

    The templates of two classes define only a line. The second direction is then the one, at right angles to it, in
    which the features vary most.

    Args:
        weight: The last linear layer's weight ``(K, D)``.
        bias: Its bias ``(K,)``, or ``None``.
        classes: Three different classes, or two with ``features``.
        features: Inputs of the layer ``(N, D)``, for two classes.

    Raises:
        DiagnosticsError: The classes are not three different classes of the layer (or two, with features), their
            templates are collinear, or the features do not vary across the line.

    Example:
        >>> import torch
        >>> from composer_ls.diagnostics.geometry import template_plane
        >>> plane = template_plane(torch.eye(3), torch.zeros(3), classes=(0, 1, 2))
        >>> torch.pdist(plane.corners)  # three unit vectors: a regular triangle with sides of √2
        tensor([1.4142, 1.4142, 1.4142], dtype=torch.float64)

    References:
        Müller et al., 2019, https://arxiv.org/abs/1906.02629, section 2.

    """
    rows = _templates(weight, bias)
    chosen = _classes_of_a_plane(classes, len(rows), 3 if features is None else 2)
    corners = rows[chosen]
    first = corners[1] - corners[0]
    along = first / first.norm().clamp_min(torch.finfo(torch.float64).tiny)
    if len(chosen) == 2:
        assert features is not None
        second = _most_varying(features, along, weight.shape[1])
    else:
        second = corners[2] - corners[0]
    across = second - (second @ along) * along
    if across.norm() <= 1e-9 * corners.norm() or first.norm() <= 1e-9 * corners.norm():
        raise DiagnosticsError(
            f"the templates of the classes {', '.join(map(str, chosen[:-1]))} and {chosen[-1]} lie on one line, so they "
            f"do not define a plane: choose other classes"
        )
    basis = torch.stack([along, across / across.norm()])
    origin = corners.mean(0)
    return TemplatePlane(tuple(chosen), origin, basis, (corners - origin) @ basis.T, rows.shape[1] - (bias is not None))


def _most_varying(features: Tensor, along: Tensor, width: int) -> Tensor:
    """The direction, ``(D,)`` or ``(D + 1,)``, at right angles to ``along`` in which the features vary most."""
    if features.dim() != 2 or features.shape[1] != width:
        raise DiagnosticsError(
            f"features have shape {tuple(features.shape)}, but must be (N, {width}), as the layer takes them"
        )
    check_finite("features", features)
    x = features.double().to(along.device)
    x = torch.nn.functional.pad(x, (0, len(along) - width))  # the constant 1 for the bias does not vary
    x = x - x.mean(0)
    x = x - (x @ along).unsqueeze(1) * along
    size, directions = torch.linalg.eigh(x.T @ x)
    if not len(x) or size[-1] <= 0:
        raise DiagnosticsError("features do not vary across the line of two templates: give more examples")
    direction = directions[:, -1]
    return direction * direction[direction.abs().argmax()].sign()  # else the picture could be upside down elsewhere


def project(features: Tensor, plane: TemplatePlane) -> Tensor:
    """The coordinates of penultimate features in a plane of templates, in the units of the features.

    Args:
        features: Inputs of the last linear layer ``(N, D)``; the 1 for the bias is appended here. Points that already
            have this coordinate, such as templates with their bias, are ``(N, D + 1)``.
        plane: The result of :func:`template_plane` for the same layer.

    Returns:
        Float64 ``(N, 2)``; the mean of the three templates is at (0, 0).

    Raises:
        DiagnosticsError: The features do not have the layer's input width, or contain NaN.

    Example:
        >>> import torch
        >>> from composer_ls.diagnostics.geometry import project, template_plane
        >>> plane = template_plane(torch.eye(3), None, classes=(0, 1, 2))
        >>> corners = project(torch.eye(3), plane)  # the templates themselves
        >>> bool(torch.allclose(corners, plane.corners))
        True

    References:
        Müller et al., 2019, https://arxiv.org/abs/1906.02629, section 2.

    """
    features = as_tensor("features", features)
    full = len(plane.origin)
    if features.ndim != 2 or features.shape[1] not in (plane.width, full):
        raise DiagnosticsError(
            f"features have shape {tuple(features.shape)}, but the last layer takes (N, {plane.width}): give the inputs "
            f"of the layer to which the templates belong"
        )
    check_finite("features", features)
    x = features.double()
    x = x if x.shape[1] == full else torch.cat([x, x.new_ones(len(x), 1)], 1)
    return (x - plane.origin) @ plane.basis.T


def relative_spread(features: Tensor, labels: Tensor, ignore_index: int = IGNORED) -> float:
    """The width of clusters: the distance of examples from their class mean, relative to the distance between means.

    The former is a root mean square over examples, the latter a mean over pairs of classes. At 0 each class is a single
    point; from about 0.5 on clusters overlap. The scale of the features does not matter.

    Args:
        features: ``(N, D)``, such as penultimate features or their projections.
        labels: Integer ``(N,)``.
        ignore_index: The label of examples that do not count.

    Raises:
        DiagnosticsError: There are fewer than two classes, all class means coincide, or features are NaN.

    Example:
        >>> import torch
        >>> from composer_ls.diagnostics.geometry import relative_spread
        >>> relative_spread(torch.tensor([[-1.0], [1.0], [9.0], [11.0]]), torch.tensor([0, 0, 1, 1]))
        0.1

    """
    means, within = _centred(features, labels, ignore_index, "the relative spread")
    between = torch.pdist(means).mean()
    if between <= 1e-12 * means.norm():
        raise DiagnosticsError("the means of all classes coincide, so the features do not separate any classes")
    return (within.square().sum(1).mean().sqrt() / between).item()


class TemplateDistances(NamedTuple):
    """The result of :func:`template_distances`. Distances are in the units of the features.

    Attributes:
        own: Mean distance of examples from the template of their class.
        others: Mean distance of examples from the templates of the other classes.
        unevenness: How much an example's distances from the other templates differ: their standard deviation divided by
            their mean, averaged over examples. 0 if each example is equally far from all of them.

    """

    own: float
    others: float
    unevenness: float


def template_distances(
    features: Tensor, labels: Tensor, weight: Tensor, bias: Tensor | None, ignore_index: int = IGNORED
) -> TemplateDistances:
    """How close examples are to the template of their class, and how evenly distant from the others.

    Args:
        features: Inputs of the last linear layer ``(N, D)``.
        labels: Integer ``(N,)``.
        weight: The layer's weight ``(K, D)``.
        bias: Its bias ``(K,)``, or ``None``.
        ignore_index: The label of examples that do not count.

    Raises:
        DiagnosticsError: Shapes do not match, the layer has fewer than three classes, a label is out of range, or
            values are NaN.

    Example:
        >>> import torch
        >>> from composer_ls.diagnostics.geometry import template_distances
        >>> template_distances(torch.eye(3), torch.arange(3), torch.eye(3), None)
        TemplateDistances(own=0.0, others=1.4142135623730951, unevenness=0.0)

    References:
        Müller et al., 2019, https://arxiv.org/abs/1906.02629, section 2: ``||x - w||² = x'x - 2x'w + w'w``.

    """
    features, labels = check_pairs("features", features, labels, ignore_index)
    rows = _templates(weight, bias)
    if len(rows) < 3:
        raise DiagnosticsError(f"distances to templates need at least 3 classes, but the layer has {len(rows)}")
    if int(labels.min()) < 0 or int(labels.max()) >= len(rows):
        raise DiagnosticsError(f"labels are outside the layer's {len(rows)} classes: give those it was trained on")
    x = features.double().to(rows.device)
    labels = labels.to(rows.device)
    if bias is not None:
        x = torch.cat([x, x.new_ones(len(x), 1)], 1)
    if x.shape[1] != rows.shape[1]:
        raise DiagnosticsError(
            f"features have width {features.shape[1]}, but the layer's weight has width {rows.shape[1] - (bias is not None)}: give the inputs "
            f"of that layer"
        )
    distances = torch.cdist(x, rows, compute_mode="donot_use_mm_for_euclid_dist")
    is_own = torch.nn.functional.one_hot(labels, len(rows)).bool()
    own, others = distances[is_own], distances[~is_own].view(len(x), -1)
    unevenness = others.std(1, correction=0) / others.mean(1)
    return TemplateDistances(own.mean().item(), others.mean().item(), unevenness.mean().item())


def simplex_deviation(points: Tensor) -> float:
    """How far points deviate from a regular triangle or simplex: the coefficient of variation of their distances.

    Args:
        points: ``(C, D)`` with C at least 3, such as class means.

    Returns:
        The standard deviation of all pairwise distances divided by their mean; 0 for a regular simplex.

    Raises:
        DiagnosticsError: There are fewer than three points, all points coincide, or points are NaN.

    Example:
        >>> import torch
        >>> from composer_ls.diagnostics.geometry import simplex_deviation
        >>> simplex_deviation(torch.eye(3)) < 1e-6
        True
        >>> round(simplex_deviation(torch.tensor([[0.0], [1.0], [2.0]])), 4)  # sides 1, 1 and 2
        0.3536

    """
    points = as_tensor("points", points)
    if points.ndim != 2 or len(points) < 3:
        raise DiagnosticsError(f"points must be (C, D) with C of at least 3, but are {tuple(points.shape)}")
    check_finite("points", points)
    sides = torch.pdist(points.double())
    if sides.max() == 0:
        raise DiagnosticsError("all points coincide, so they form no triangle")
    return (sides.std(correction=0) / sides.mean()).item()


def neural_collapse(features: Tensor, labels: Tensor, ignore_index: int = IGNORED) -> float:
    """NC1, the collapse of within-class variation: ``trace(Σ_W Σ_B⁺) / C``, which is 0 if every class is one point.

    ``Σ_W`` is the covariance of examples around their class mean, ``Σ_B`` that of the class means around their mean,
    ``⁺`` the pseudo-inverse and C the number of classes among the labels.

    Args:
        features: Penultimate features ``(N, D)``.
        labels: Integer ``(N,)``.
        ignore_index: The label of examples that do not count.

    Raises:
        DiagnosticsError: There are fewer than two classes, all class means coincide, or features are NaN.

    Example:
        >>> import torch
        >>> from composer_ls.diagnostics.geometry import neural_collapse
        >>> features = torch.tensor([[-1.0], [1.0], [9.0], [11.0]])
        >>> round(neural_collapse(features, torch.tensor([0, 0, 1, 1])), 6)  # 1/25, over 2
        0.02

    References:
        Papyan, Han, Donoho, 2020, https://arxiv.org/abs/2008.08186.

    """
    means, within = _centred(features, labels, ignore_index, "NC1")
    centred = means - means.mean(0)
    _, scales, directions = torch.linalg.svd(centred, full_matrices=False)
    kept = scales > 1e-6 * means.norm()  # what is smaller may be rounding of float32, also in features of another dtype
    if not kept.any():
        raise DiagnosticsError("the means of all classes coincide, so the features do not separate any classes")
    variances = (within @ directions[kept].T).square().mean(0)
    # The eigenvalues of Σ_B are scales² / C, which cancels the C in the trace's denominator.
    return (variances / scales[kept].square()).sum().item()


def class_means(features: Tensor, labels: Tensor, ignore_index: int = IGNORED) -> Tensor:
    """The mean feature of every class that occurs in the labels, in ascending order: float64 ``(C, D)``.

    Example:
        >>> import torch
        >>> from composer_ls.diagnostics.geometry import class_means
        >>> class_means(torch.tensor([[0.0], [2.0], [5.0]]), torch.tensor([3, 3, 7]))
        tensor([[1.],
                [5.]], dtype=torch.float64)

    """
    features, labels = check_pairs("features", features, labels, ignore_index)
    return _means(features, labels)[0]


def _means(features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The class means ``(C, D)``, and the index of each example's class among them."""
    _, index = labels.unique(return_inverse=True)
    count = int(index.max()) + 1
    sums = features.new_zeros(count, features.shape[1], dtype=torch.float64).index_add_(0, index, features.double())
    return sums / torch.bincount(index, minlength=count).unsqueeze(1), index


def _centred(features: Tensor, labels: Tensor, ignore_index: int, what: str) -> tuple[Tensor, Tensor]:
    """The class means ``(C, D)``, and each example's difference from the mean of its class."""
    features, labels = check_pairs("features", features, labels, ignore_index)
    require_classes(labels, 2, what)
    means, index = _means(features, labels)
    return means, features.double() - means[index]


def _templates(weight: Tensor, bias: Tensor | None) -> Tensor:
    weight, bias = as_tensor("weight", weight), None if bias is None else as_tensor("bias", bias)
    if weight.ndim != 2 or (bias is not None and bias.shape != weight.shape[:1]):
        shape = None if bias is None else tuple(bias.shape)
        raise DiagnosticsError(
            f"the last layer's weight has shape {tuple(weight.shape)} and its bias {shape}, but must be (K, D) and (K,)"
        )
    rows = weight.double()
    rows = rows if bias is None else torch.cat([rows, bias.double().unsqueeze(1)], 1)
    check_finite("entries of the last layer's weight and bias", rows)
    return rows


def _classes_of_a_plane(classes: Sequence[int], num_classes: int, fewest: int) -> list[int]:
    chosen = [int(value) for value in classes]
    if num_classes < fewest:
        raise DiagnosticsError(
            f"a plane needs the templates of 3 classes, or of 2 with features, but the last layer has {num_classes}"
        )
    different = len(set(chosen)) == len(chosen)
    if not fewest <= len(chosen) <= 3 or not different or not all(0 <= value < num_classes for value in chosen):
        raise DiagnosticsError(
            f"classes must be {'two or ' if fewest == 2 else ''}three different ones from 0 to {num_classes - 1}, but are "
            f"{chosen}: as in classes=({'0, 1' if num_classes == 2 else '0, 1, 2'})"
        )
    return chosen
