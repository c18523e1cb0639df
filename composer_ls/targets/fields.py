"""The fields of SoftTargets: weights and smoothing factors, each a number or a tensor that broadcasts to the labels.

A number is stored as a 0-dim float64 tensor on the CPU. It broadcasts against tensors on any device without a copy and
keeps its precision whatever the dtype of the logits.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd import forward_ad

__all__ = [
    "as_field",
    "class_dim",
    "expand_field",
    "host_number",
    "is_sharded",
    "same_number",
    "transformed",
    "wide_dtype",
]


def class_dim(tensor: Tensor) -> int:
    """The class dimension of ``(N, K, *spatial)``, or of a single row ``(K,)``."""
    return 1 if tensor.ndim > 1 else 0


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of sums and weights: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def as_field(value: float | Tensor, classes: Tensor, name: str) -> Tensor:
    """``value`` as a field that shares no memory with it, with as many dimensions as ``classes`` or with none.

    Raises:
        ValueError: Its shape does not broadcast to that of ``classes``.

    """
    if isinstance(value, torch.SymFloat):  # torch.compile turns a symbolic number into a tensor only by a product
        return torch.scalar_tensor(1.0, dtype=torch.float64) * value
    if not isinstance(value, Tensor):
        return torch.scalar_tensor(value, dtype=torch.float64)
    value = value.to(wide_dtype(value.dtype))  # products of bfloat16 weights would be rounded one time too many
    if value.ndim == 0:
        return value.clone()
    sizes = zip(reversed(value.shape), reversed(classes.shape), strict=False)
    fits = value.ndim <= classes.ndim and all(size in (1, full) for size, full in sizes)
    if not fits:
        raise ValueError(
            f"{name} has shape {tuple(value.shape)}, which does not broadcast to classes {tuple(classes.shape)}"
        )
    return value.to(classes.device).clone()[(None,) * (classes.ndim - value.ndim)]


def expand_field(field: Tensor, shape: Sequence[int], device: torch.device, dtype: torch.dtype) -> Tensor:
    """``field`` as a tensor of this shape on this device, without synchronising the device with the host."""
    number = host_number(field) if field.device != device else None
    if number is not None:
        return torch.full((), number, dtype=dtype, device=device).expand(shape)
    return field.to(device, dtype).expand(shape)


def host_number(field: Tensor) -> float | None:
    """The value of a field that is a number; ``None`` if reading it would synchronise a device or lose a derivative."""
    if field.ndim or field.requires_grad or not field.is_cpu or transformed(field):
        return None
    return field.item()


def transformed(*tensors: Tensor | None) -> bool:
    """Whether values must not be read.

    True while code is compiled, traced, vectorised or differentiated in forward mode, and for tensors without values.
    """
    if (
        torch.compiler.is_compiling()  # first, because torch.compile of PyTorch 2.4 cannot trace the next
        or torch._C._are_functorch_transforms_active()
        or forward_ad._current_level >= 0
        or torch._C._is_tracing()
    ):
        return True
    for tensor in tensors:  # noqa: SIM110  (any() takes twice as long, and this runs several times for each loss)
        if tensor is not None and (type(tensor) not in _PLAIN or tensor.is_meta):
            return True
    return False


_PLAIN = frozenset((Tensor, torch.nn.Parameter))


def same_number(a: Tensor, b: Tensor) -> bool:
    """Whether two fields are known to hold the same number."""
    return a is b or (a.ndim == b.ndim == 0 and (value := host_number(a)) is not None and value == host_number(b))


def is_sharded(tensor: object) -> bool:
    """Whether it is a DTensor, which several processes hold parts of."""
    if type(tensor) in _PLAIN:
        return False
    for name in ("torch.distributed.tensor", "torch.distributed._tensor"):  # the second before PyTorch 2.5
        module = sys.modules.get(name)  # importing it takes time; without it there are no DTensors
        if module is not None and hasattr(module, "DTensor"):
            return isinstance(tensor, module.DTensor)
    return False
