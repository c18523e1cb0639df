"""What several tests share: an independent dense reference, random targets, and a count of what is allocated."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from composer_ls import SoftTargets

SPATIAL = [None, (), (4,), (2, 3)]
"""Spatial axes of (N, K, *spatial); None stands for a single unbatched row (K,)."""


def class_dim(tensor: Tensor) -> int:
    return 1 if tensor.ndim > 1 else 0


def dense_reference(
    classes: Tensor, num_classes: int, weights: Any = 1.0, smoothing: Any = 0.0, prior: Tensor | None = None
) -> Tensor:
    """Σ_j w_j [(1-α_j) onehot(c_j) + α_j q(c_j)] in float64, straight from the formula."""
    dim = class_dim(classes)
    weights, smoothing = (
        torch.as_tensor(field, dtype=torch.float64).expand(classes.shape).unsqueeze(-1)
        for field in (weights, smoothing)
    )
    onehot = F.one_hot(classes, num_classes).double()
    if prior is None:
        q = torch.full_like(onehot, 1 / num_classes)
    else:
        q = prior.double().expand(*onehot.shape) if prior.ndim == 1 else prior.double()[classes]
    return (weights * ((1 - smoothing) * onehot + smoothing * q)).sum(dim).movedim(-1, dim)


def reference_loss(
    logits: Tensor,
    target: Tensor,
    weights: Tensor,
    classes: Tensor,
    weight: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    """Cross entropy against dense rows; the mean is over the rows that have some weight, each with the weight of its
    labels' classes.
    """
    dim = class_dim(logits)
    terms = -target * logits.log_softmax(dim)
    each = torch.ones(classes.shape, dtype=torch.float64)
    if weight is not None:
        shape = [1] * logits.ndim
        shape[dim] = -1
        terms = terms * weight.view(shape)
        each = weight.double()[classes]
    losses = terms.sum(dim)
    if reduction == "mean":
        share = torch.as_tensor(weights, dtype=torch.float64).expand(classes.shape).abs()
        counts = share.sum(dim) > 0
        divisor = ((each * share).sum(dim) / share.sum(dim))[counts].sum()
        return losses.sum() / divisor if divisor else losses.sum() * 0
    return losses.sum() if reduction == "sum" else losses


def random_prior(num_classes: int, ndim: int, generator: torch.Generator) -> Tensor | None:
    """None, one row or one row per class, in float64."""
    if ndim == 0:
        return None
    shape = (num_classes,) * ndim
    return torch.randn(shape, dtype=torch.float64, generator=generator).softmax(-1)


def random_soft_targets(
    shape: tuple[int, ...], components: int, prior: Tensor | None, generator: torch.Generator
) -> tuple[SoftTargets, Tensor]:
    """SoftTargets of a dense shape with some rows ignored, and the dense float64 tensor that they stand for."""
    dim = 1 if len(shape) > 1 else 0
    inner = (*shape[:dim], components, *shape[dim + 1 :])

    def draw(kind: int, ignore: bool) -> float | Tensor:
        if kind == 0:
            return torch.rand((), generator=generator).item()
        value = torch.rand(inner, dtype=torch.float64, generator=generator)
        value = value if kind == 1 else value.amax(dim, keepdim=True)
        if ignore:
            value = value * (torch.rand(value.amax(dim, keepdim=True).shape, generator=generator) > 0.25)
        return value

    classes = torch.randint(shape[dim], inner, generator=generator)
    kinds = torch.randint(3, (2,), generator=generator).tolist()
    weights, smoothing = draw(kinds[0], ignore=True), draw(kinds[1], ignore=False)
    soft = SoftTargets(classes, shape[dim], weights, smoothing, prior, dtype=torch.float64)
    return soft, dense_reference(classes, shape[dim], weights, smoothing, prior)


def generators() -> st.SearchStrategy[torch.Generator]:
    return st.integers(0, 2**32 - 1).map(lambda seed: torch.Generator().manual_seed(seed))


class Allocations(TorchDispatchMode):
    """The storages of at least ``nbytes`` bytes that operations inside this context make."""

    def __init__(self, nbytes: int, known: tuple[Tensor, ...] = ()) -> None:
        super().__init__()
        self.nbytes = nbytes
        self.known = {tensor.untyped_storage().data_ptr() for tensor in known}
        self.large: dict[int, Tensor] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if type(tensor) is Tensor:
                storage = tensor.untyped_storage()
                if storage.nbytes() >= self.nbytes and storage.data_ptr() not in self.known:
                    self.large.setdefault(storage.data_ptr(), tensor)  # held, so that no address is used twice
        return result

    @property
    def count(self) -> int:
        return len(self.large)
