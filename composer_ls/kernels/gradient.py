"""Allocating and scaling the gradient, a tensor as large as the logits."""

from __future__ import annotations

import ctypes
import math
import sys
from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

from composer_ls.kernels import has_triton

__all__ = ["empty_gradient", "scale_gradient"]

LARGE = 32 << 20
"""Size in bytes from which malloc maps fresh memory and unmaps it on free, so the advice ends with the tensor."""
MADV_HUGEPAGE = 14


def empty_gradient(logits: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """An uninitialised tensor like ``logits``, optionally of another ``dtype``, on huge pages if the system allows it.

    Fresh memory comes in pages of 4 KiB and costs one page fault per page. For large logits on the CPU these faults
    take longer than the arithmetic. Linux hands out 2 MiB pages on request, as it does for all of PyTorch under
    ``THP_MEM_ALLOC_ENABLE=1``.
    """
    gradient = torch.empty_like(logits, dtype=dtype)
    advise = _madvise()
    if advise is not None and gradient.device.type == "cpu" and gradient.nbytes >= LARGE:
        start = -(-gradient.data_ptr() // 4096) * 4096
        advise(start, gradient.data_ptr() + gradient.nbytes - start, MADV_HUGEPAGE)
    return gradient


def scale_gradient(gradient: Tensor, factor: Tensor, ignored: Tensor | None) -> None:
    """``gradient · factor`` in place, for a 0-dim factor, which is 1 unless the loss is scaled.

    Rows that are ``ignored`` stay 0, even where the factor is NaN or infinite.
    """
    if factor.device.type == "cpu":
        number = factor.item()
        if number != 1:
            gradient.mul_(factor)
        if ignored is not None and not math.isfinite(number):
            gradient.masked_fill_(ignored, 0)
    elif factor.device.type == "cuda" and has_triton():
        from composer_ls.kernels.triton import scale_unless_one

        scale_unless_one(gradient, factor)
    else:
        gradient.mul_(factor)
        if ignored is not None:
            gradient.masked_fill_(ignored, 0)


@lru_cache
def _madvise() -> Callable[[int, int, int], int] | None:
    if not sys.platform.startswith("linux"):
        return None
    madvise = getattr(ctypes.CDLL(None), "madvise", None)
    if madvise is not None:
        madvise.argtypes, madvise.restype = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int), ctypes.c_int
    return madvise
