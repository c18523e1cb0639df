"""Inspecting a network without changing it: its last linear layer, and the inputs of that layer."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from composer_ls.diagnostics.checks import whole
from composer_ls.errors import DiagnosticsError

__all__ = ["Penultimate", "check_head", "evaluating", "last_linear", "penultimate_features", "seeded"]


def last_linear(model: nn.Module, name: str | None = None) -> nn.Linear:
    """The linear layer that computes a network's logits.

    Args:
        model: The network.
        name: The layer's name in ``model.named_modules()``. ``None``: the last ``nn.Linear``.

    Raises:
        DiagnosticsError: There is no such layer; the message lists the existing ones.

    Example:
        >>> import torch
        >>> from composer_ls.diagnostics.inspection import last_linear
        >>> last_linear(torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.ReLU(), torch.nn.Linear(4, 3)))
        Linear(in_features=4, out_features=3, bias=True)

    """
    layers = {key: module for key, module in model.named_modules() if isinstance(module, nn.Linear)}
    if not layers:
        raise DiagnosticsError(
            f"{type(model).__name__} has no linear layer, so it has no templates to measure distances from: these "
            f"diagnostics are for classifiers that end in nn.Linear"
        )
    if name is None:
        return list(layers.values())[-1]
    if name not in layers:
        raise DiagnosticsError(f"there is no linear layer {name!r}: there are {', '.join(map(repr, layers))}")
    return layers[name]


class Penultimate(NamedTuple):
    """The result of :func:`penultimate_features`, on the CPU.

    Attributes:
        features: Inputs of the last linear layer, float32 ``(N, D)``.
        logits: Its outputs, float32 ``(N, K)``.
        labels: ``(N,)``.

    """

    features: Tensor
    logits: Tensor
    labels: Tensor


def penultimate_features(
    model: nn.Module,
    batches: Iterable[tuple[Any, Tensor]],
    layer: str | None = None,
    forward: Callable[[Any], Tensor] | None = None,
) -> Penultimate:
    """The inputs of the last linear layer for some examples, with the network in evaluation mode.

    The network's mode, statistics and gradients are left as they were.

    Args:
        model: Maps inputs to logits ``(N, K)``.
        batches: Pairs of inputs, on the model's device, and integer labels ``(N,)``.
        layer: The name of the last linear layer. ``None``: found by :func:`last_linear`.
        forward: Maps inputs to logits through the model. ``None``: the model itself.

    Raises:
        DiagnosticsError: There is no linear layer, there are no examples, or the layer does not compute the logits.

    Example:
        >>> import torch
        >>> from composer_ls.diagnostics.inspection import penultimate_features
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.ReLU(), torch.nn.Linear(4, 3))
        >>> penultimate_features(model, [(torch.zeros(5, 8), torch.arange(5) % 3)]).features.shape
        torch.Size([5, 4])

    """
    head = last_linear(model, layer)
    forward = forward or model
    calls: list[tuple[Tensor, Tensor]] = []
    features, outputs, labels = [], [], []

    def hook(_: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any], result: Tensor) -> None:
        given = arguments[0] if arguments else next(iter(named.values()))
        calls.append((_kept(given), _kept(result)))  # copied, because later operations may work in place

    handle = head.register_forward_hook(hook, with_kwargs=True)
    try:
        with evaluating(model):
            for images, some_labels in batches:
                calls.clear()
                labels.append(some_labels.detach().cpu().clone())
                logits = forward(images)
                if not calls:
                    raise DiagnosticsError("the network does not use its last linear layer: name the one that it uses")
                given, result = calls[-1]
                features.append(given)
                outputs.append(_kept(logits))
                check_head(head, given, outputs[-1])
                _check_output(head, result, outputs[-1])
    finally:
        handle.remove()
    if not labels:
        raise DiagnosticsError("there are no examples to take features from: give at least one batch")
    return Penultimate(torch.cat(features), torch.cat(outputs), torch.cat(labels))


def _kept(tensor: Tensor) -> Tensor:
    """A float32 copy on the CPU of a tensor, gathered if it is sharded."""
    return whole(tensor.detach()).to("cpu", torch.float32, copy=True)


def check_head(head: nn.Linear, features: Tensor, logits: Tensor) -> None:
    """Refuse a layer whose output is not the logits."""
    if features.ndim != 2 or logits.shape != (len(features), head.out_features):
        raise DiagnosticsError(
            f"the layer {head} does not compute the logits: its input has shape {tuple(features.shape)} and the logits "
            f"{tuple(logits.shape)}, which must be (N, {head.in_features}) and (N, {head.out_features}); name the "
            f"layer that computes them"
        )


def _check_output(head: nn.Linear, result: Tensor, logits: Tensor) -> None:
    """Refuse logits that are not the layer's output, but for a temperature, a softmax's constant, rounding or a soft cap."""
    finite = result.isfinite().all(1) & logits.isfinite().all(1)  # masked classes may be -inf
    ours, theirs = (rows[finite].double() for rows in (result, logits))
    ours, theirs = (rows - rows.mean(1, keepdim=True) for rows in (ours, theirs))
    likeness = torch.nn.functional.cosine_similarity(ours, theirs)[ours.any(1) & theirs.any(1)]
    if len(likeness) and likeness.median() < 0.99:
        raise DiagnosticsError(
            f"the layer {head} does not compute the logits: they are made of its output and of something else, as where two "
            f"heads are averaged (median correlation {likeness.median():.2f}); name the layer that computes them"
        )


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients. Every module's mode is restored afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextlib.contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seeds PyTorch's random numbers. Their state is restored afterwards."""
    on_gpu = device.type == "cuda"
    with torch.random.fork_rng([device] if on_gpu else []):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed every GPU too
        if on_gpu:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield
