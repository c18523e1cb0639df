"""Copies a batch so that in-place changes to the copy do not reach the original, and the other way round."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from torch import Tensor

__all__ = ["copied"]


def copied(batch: Any) -> Any:
    """A copy of nested containers and of the tensors in them, detached from the graph.

    Example:
        >>> import torch
        >>> from composer_ls.batch_copy import copied
        >>> batch = {"x": torch.zeros(2), "names": ["a", "b"]}
        >>> copied(batch)["x"].add_(1), batch["x"]
        (tensor([1., 1.]), tensor([0., 0.]))

    """
    if isinstance(batch, Tensor):
        return batch.detach().clone()
    if isinstance(batch, Mapping):
        new = copy.copy(batch)
        for key, value in batch.items():
            new[key] = copied(value)  # type: ignore[index]
        return new
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*map(copied, batch))
    if type(batch) in (list, tuple):
        return type(batch)(map(copied, batch))
    return copy.deepcopy(batch)
