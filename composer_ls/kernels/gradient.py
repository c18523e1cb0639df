"""A gradient as large as the logits: its memory, and its scaling."""

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
"""Bytes from which the C library asks the system for memory and gives it back after use, so that no advice lasts."""
MADV_HUGEPAGE = 14


def empty_gradient(logits: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """An uninitialised tensor like ``logits``, of another ``dtype`` if asked for, which the system may back with huge pages.

    Fresh memory comes in pages of 4 KiB, each at the price of a fault: for large logits on the CPU these faults take
    longer than the whole arithmetic. Linux serves 2 MiB at once to those who ask, as PyTorch does everywhere under
    ``THP_MEM_ALLOC_ENABLE=1``.
    """
    gradient = torch.empty_like(logits, dtype=dtype)
    advise = _madvise()
    if advise is not None and gradient.device.type == "cpu" and gradient.nbytes >= LARGE:
        start = -(-gradient.data_ptr() // 4096) * 4096
        advise(start, gradient.data_ptr() + gradient.nbytes - start, MADV_HUGEPAGE)
    return gradient


def scale_gradient(gradient: Tensor, factor: Tensor, ignored: Tensor | None) -> None:
    """``gradient · factor`` in place, for a 0-dim factor that is 1 unless someone scales the loss.

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
