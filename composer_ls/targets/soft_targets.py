"""SoftTargets: a dense ``(N, K, *spatial)`` target that stores only its labels, weights and smoothing."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from composer_ls.targets.dispatch import call, through_dense
from composer_ls.targets.fields import as_field, class_dim, expand_field, host_number, wide_dtype

__all__ = ["SoftTargets", "make", "part_of", "replace"]


class SoftTargets(torch.Tensor):
    r"""A mixture of smoothed labels that behaves like the dense tensor it represents.

    Row ``n`` is :math:`y_n = \sum_j w_{nj}\,[(1-\alpha_{nj})\,\mathrm{onehot}(c_{nj}) + \alpha_{nj}\,q(c_{nj})]`.
    There is one component (J = 1) for plain labels and one more for every mix (MixUp, CutMix). An ignored row has
    weight 0.

    Adding two SoftTargets, multiplying by a number or by per-row weights, indexing, ``roll``, ``flip``, ``cat``,
    ``split``, ``to``, ``float``, ``clone`` and ``detach`` return SoftTargets.
    :func:`torch.nn.functional.cross_entropy` reads them without building the dense tensor. Every other operation
    works on :meth:`dense`.

    Operations that would silently go wrong are refused: those that read labels, such as ``target != -100`` or
    ``target.long()``, and in-place operations whose result has no compact form or would not reach the original object.
    In-place multiplication, addition and assignment of other SoftTargets to rows or boxes change the object itself.

    Args:
        classes: Labels c, integer, shape ``(N, J, *spatial)``, or ``(J,)`` for a single unbatched row. Every entry
            is in ``[0, num_classes)``; an ignored position holds any valid class with weight 0. The tensor is copied.
        num_classes: K, the size of the class dimension.
        weights: w, a number or a float tensor broadcastable to ``classes``. It may require a gradient, as may
            ``smoothing`` and ``prior``.
        smoothing: α, a number or a float tensor broadcastable to ``classes``.
        prior: q. ``None`` for the uniform ``1/K``, one row ``(K,)``, or one row per class ``(K, K)``. It is not copied.
        dtype: The floating dtype of the dense tensor. Default: float32.

    Raises:
        TypeError: ``classes`` is not an integer tensor or ``dtype`` is not floating.
        ValueError: A shape does not fit.

    Example:
        >>> import torch
        >>> from composer_ls import SoftTargets
        >>> target = SoftTargets(torch.tensor([[0], [2]]), num_classes=4, smoothing=0.2)
        >>> target
        SoftTargets(shape=(2, 4), components=1, smoothing=0.2, prior=uniform, dtype=float32, device=cpu)
        >>> target.dense()
        tensor([[0.8500, 0.0500, 0.0500, 0.0500],
                [0.0500, 0.0500, 0.8500, 0.0500]])
        >>> 0.7 * target + 0.3 * target.flip(0)
        SoftTargets(shape=(2, 4), components=2, smoothing=0.2, prior=uniform, dtype=float32, device=cpu)

    References:
        Szegedy et al., 2016, https://arxiv.org/abs/1512.00567; Müller et al., 2019, https://arxiv.org/abs/1906.02629.

    """

    classes: Tensor
    num_classes: int
    weights: Tensor
    smoothing: Tensor
    prior: Tensor | None
    is_part: bool
    """Whether this is a view of other SoftTargets. Writing to it would not change them, so it is refused."""

    @staticmethod
    def __new__(  # noqa: D102  (documented in the class)
        cls,
        classes: Tensor,
        num_classes: int,
        weights: float | Tensor = 1.0,
        smoothing: float | Tensor = 0.0,
        prior: Tensor | None = None,
        *,
        dtype: torch.dtype = torch.float32,
    ) -> SoftTargets:
        if classes.dtype == torch.bool or classes.is_floating_point() or classes.is_complex():
            raise TypeError(f"classes must be an integer tensor, but its dtype is {classes.dtype}")
        if not dtype.is_floating_point:
            raise TypeError(f"dtype must be floating, but is {dtype}")
        if classes.ndim == 0:
            raise ValueError("classes must have a component dimension: (N, J, *spatial), or (J,) for one row")
        if prior is not None and tuple(prior.shape) not in {(num_classes,), (num_classes, num_classes)}:
            raise ValueError(
                f"prior has shape {tuple(prior.shape)}, but must be ({num_classes},) or ({num_classes}, {num_classes}) "
                f"for num_classes={num_classes}"
            )
        weights, smoothing = as_field(weights, classes, "weights"), as_field(smoothing, classes, "smoothing")
        prior = None if prior is None else prior.to(classes.device)
        return make(classes.to(torch.long, copy=True), num_classes, weights, smoothing, prior, dtype)

    def dense(self) -> Tensor:
        """The plain ``(N, K, *spatial)`` tensor that this represents, in this object's dtype."""
        dim, compute = class_dim(self.classes), wide_dtype(self.dtype)
        weights, smoothing = (
            expand_field(field, self.classes.shape, self.classes.device, compute)
            for field in (self.weights, self.smoothing)
        )
        shape = list(self.classes.shape)
        shape[dim] = self.num_classes
        rows = weights.new_zeros(shape).scatter_add(dim, self.classes, weights * (1 - smoothing))
        moved = weights * smoothing
        if self.prior is None:
            rows = rows + moved.sum(dim, keepdim=True) / self.num_classes
        elif self.prior.ndim == 1:
            per_class = [1] * rows.ndim
            per_class[dim] = self.num_classes
            rows = rows + moved.sum(dim, keepdim=True) * self.prior.to(compute).view(per_class)
        else:
            rows = rows + (moved.unsqueeze(-1) * self.prior.to(compute)[self.classes]).sum(dim).movedim(-1, dim)
        return rows.to(self.dtype)

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        number = host_number(self.smoothing.detach())
        smoothing = f"{tuple(self.smoothing.shape)}" if number is None else f"{number:g}"
        prior = {None: "uniform", 1: "row", 2: "row per class"}[None if self.prior is None else self.prior.ndim]
        return (
            f"SoftTargets(shape={tuple(self.shape)}, components={self.classes.shape[class_dim(self.classes)]}, "
            f"smoothing={smoothing}, prior={prior}, dtype={str(self.dtype).removeprefix('torch.')}, "
            f"device={self.device})"
        )

    def __format__(self, spec: str) -> str:
        return format(repr(self), spec)

    def __deepcopy__(self, memo: dict[int, Any]) -> SoftTargets:
        if id(self) not in memo:
            memo[id(self)] = replace(
                self,
                *(field.clone() for field in (self.classes, self.weights, self.smoothing)),
                prior=copy.deepcopy(self.prior, memo),
            )
        return memo[id(self)]

    def __reduce_ex__(self, protocol: object) -> tuple[Any, ...]:
        fields = (self.classes, self.num_classes, self.weights, self.smoothing, self.prior, self.dtype)
        return _rebuild, fields

    def __tensor_flatten__(self) -> tuple[list[str], tuple[int, torch.dtype, bool]]:
        fields = ["classes", "weights", "smoothing"] + ([] if self.prior is None else ["prior"])
        return fields, (self.num_classes, self.dtype, self.is_part)

    @staticmethod
    def __tensor_unflatten__(
        fields: dict[str, Tensor], metadata: tuple[int, torch.dtype, bool], size: Any, stride: Any
    ) -> SoftTargets:
        num_classes, dtype, is_part = metadata
        target = make(
            fields["classes"], num_classes, fields["weights"], fields["smoothing"], fields.get("prior"), dtype
        )
        target.is_part = is_part
        return target

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        return call(cls, func, args, kwargs or {})

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        # Calls that bypass __torch_function__ (from C++) see the dense tensor.
        if func is torch.ops.aten.detach.default:
            return part_of(args[0])
        return through_dense(cls, func, args, kwargs or {})


def make(
    classes: Tensor, num_classes: int, weights: Tensor, smoothing: Tensor, prior: Tensor | None, dtype: torch.dtype
) -> SoftTargets:
    """SoftTargets from fields that are neither checked nor copied."""
    shape = list(classes.shape)
    shape[class_dim(classes)] = num_classes
    target = torch.Tensor._make_wrapper_subclass(SoftTargets, shape, dtype=dtype, device=classes.device)  # type: ignore[attr-defined]
    target.classes, target.num_classes, target.weights, target.smoothing, target.prior, target.is_part = (
        classes, num_classes, weights, smoothing, prior, False,
    )  # fmt: skip
    return target


def replace(
    target: SoftTargets, classes: Tensor, weights: Tensor, smoothing: Tensor, *, prior: Any = ..., dtype: Any = None
) -> SoftTargets:
    """New SoftTargets with the same number of classes and these fields."""
    prior = target.prior if prior is ... else prior
    return make(classes, target.num_classes, weights, smoothing, prior, dtype or target.dtype)


def part_of(target: SoftTargets, *fields: Tensor) -> SoftTargets:
    """A view of ``target`` with these fields, or with all of its fields."""
    part = replace(target, *(fields or (target.classes, target.weights, target.smoothing)))
    part.is_part = True
    return part


def _rebuild(
    classes: Tensor, num_classes: int, weights: Tensor, smoothing: Tensor, prior: Tensor | None, dtype: torch.dtype
) -> SoftTargets:
    return SoftTargets(classes, num_classes, weights, smoothing, prior, dtype=dtype)


torch.serialization.add_safe_globals([_rebuild])  # for torch.load(weights_only=True)
