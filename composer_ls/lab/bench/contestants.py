"""The implementations to compare: for each, a step from labels to the gradient of the logits."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["CASES", "GROUPS", "HARD", "SMOOTHED", "SMOOTHING", "USUAL", "Contestant", "Problem", "contestants"]

CASES = {
    "hard": "plain labels",
    "smoothed": "labels smoothed by 0.1",
    "mixed": "0.7 of one smoothed label and 0.3 of another, as in MixUp",
    "by_class": "labels smoothed by one factor per class",
    "max_sup": "MaxSup of strength 0.1",
    "online": "online label smoothing by 0.5, with a prior for each class, and counting the right predictions",
}
USUAL = ("hard", "smoothed", "mixed")
"""The cases that are measured unless others are asked for."""
SMOOTHING, MIXING = 0.1, 0.3
GROUPS = ("composer_ls", "F.cross_entropy", "Composer", "torch.compile", "timm", "Liger-Kernel")
HARD, SMOOTHED = "F.cross_entropy", "F.cross_entropy, smoothing"
"""The two implementations relative to which ratios are reported."""


@dataclass(frozen=True)
class Problem:
    """The inputs of a loss.

    Attributes:
        logits: ``(N, K, *spatial)``, a leaf that requires a gradient.
        labels: ``(N, *spatial)``; -100 where ignored. The second labels of a mix are these in reverse order.
        layer: Hidden states ``(N, width)`` and a weight ``(K, width)``, leaves that require gradients, if the loss is
            measured with a linear layer. ``logits`` then only has the shape of the layer's output.

    """

    logits: Tensor
    labels: Tensor
    layer: tuple[Tensor, Tensor] | None = None

    @classmethod
    def make(
        cls, shape: tuple[int, ...], dtype: torch.dtype, device: str, ignored: float, width: int | None = None
    ) -> Problem:
        """Normally distributed logits, or hidden states and a weight, and uniformly distributed labels."""
        generator = torch.Generator(device).manual_seed(0)

        def normal(*size: int) -> Tensor:
            return torch.empty(size, dtype=dtype, device=device).normal_(generator=generator)

        label_shape = (shape[0], *shape[2:])
        labels = torch.randint(shape[1], label_shape, generator=generator, device=device)
        if ignored:
            labels[torch.rand(label_shape, generator=generator, device=device) < ignored] = -100
        if width is None:
            return cls(normal(*shape).requires_grad_(), labels)
        hidden, weight = normal(shape[0], width), normal(shape[1], width) / width**0.5
        return cls(hidden.new_empty(()).expand(shape), labels, (hidden.requires_grad_(), weight.requires_grad_()))

    @property
    def leaves(self) -> tuple[Tensor, ...]:
        """The tensors that get a gradient."""
        return (self.logits,) if self.layer is None else self.layer


@dataclass(frozen=True)
class Contestant:
    """One way to compute one case.

    Attributes:
        name: Its name in tables.
        case: One of :data:`CASES`.
        loss: The forward pass, starting from labels.
        kernel: The kernel that `composer_ls` is made to use, if not the one that it chooses.
        consumes: Whether it overwrites the logits.

    """

    name: str
    case: str
    loss: Callable[[Problem], Tensor]
    kernel: str | None = None
    consumes: bool = False


def contestants(
    shape: tuple[int, ...],
    dtype: torch.dtype,
    device: str,
    ignored: float,
    peers: Sequence[str] = (),
    width: int | None = None,
) -> list[Contestant]:
    """Every implementation that is installed and supports these inputs, or only those of the groups in ``peers``."""
    if width is not None:
        return [one for one in _linear(device) if not peers or one.name.startswith(tuple(peers))]
    plain = len(shape) == 2 and not ignored
    groups: dict[str, Callable[[], Iterator[Contestant]]] = {
        GROUPS[0]: lambda: _ours(shape, device),
        GROUPS[1]: lambda: _pytorch(ignored),
    }
    if plain:
        groups |= {GROUPS[2]: _composer, GROUPS[3]: _compiled_formula}
    if plain and find_spec("timm") is not None:
        groups[GROUPS[4]] = _timm
    if plain and device == "cuda" and find_spec("liger_kernel") is not None:
        groups[GROUPS[5]] = _liger
    return [one for name, group in groups.items() if not peers or name in peers for one in group()]


def _ours(shape: tuple[int, ...], device: str) -> Iterator[Contestant]:
    from composer_ls import cross_entropy, smooth_labels

    def mixed_target(problem: Problem) -> Tensor:
        first, second = (smooth_labels(problem.logits, y, SMOOTHING) for y in (problem.labels, problem.labels.flip(0)))
        return (1 - MIXING) * first + MIXING * second

    losses: dict[str, Callable[[Problem], Tensor]] = {
        "hard": lambda p: cross_entropy(p.logits, smooth_labels(p.logits, p.labels, 0.0)),
        "smoothed": lambda p: cross_entropy(p.logits, smooth_labels(p.logits, p.labels, SMOOTHING)),
        "mixed": lambda p: cross_entropy(p.logits, mixed_target(p)),
    }
    kernels: dict[str, str | None] = {"composer_ls": None}  # the one that it chooses
    if device == "cuda" and find_spec("triton") is not None:
        kernels = {f"composer_ls, {kernel}": kernel for kernel in ("eager", "triton")}
    for name, kernel in kernels.items():
        for case, loss in losses.items():
            yield Contestant(name, case, loss, kernel)
        for case, loss in _variants(shape, device):
            yield Contestant(name, case, loss, kernel)


def _variants(shape: tuple[int, ...], device: str) -> Iterator[tuple[str, Callable[[Problem], Tensor]]]:
    """The methods beyond one factor. Online label smoothing is left out where its prior and sums do not fit."""
    from composer_ls import cross_entropy, smooth_labels
    from composer_ls.online_label_smoothing import BYTES, free_memory
    from composer_ls.smoothing import max_suppression, online_prior, right_predictions, smooth_by_class

    factors = torch.full((shape[1],), SMOOTHING, device=device)
    yield "by_class", lambda p: cross_entropy(p.logits, smooth_by_class(p.logits, p.labels, factors))
    yield "max_sup", lambda p: cross_entropy(p.logits, max_suppression(p.logits, p.labels, SMOOTHING))
    free = free_memory(torch.device(device))
    if free is not None and 4 * BYTES * shape[1] ** 2 > 3 * free:
        return

    @cache  # made when it is measured
    def tables() -> tuple[Tensor, Tensor]:
        sums = torch.full((shape[1], shape[1]), 1 / shape[1], dtype=torch.float64, device=device)
        sums.diagonal().add_(1)
        return sums, online_prior(sums)

    def online(problem: Problem) -> Tensor:
        sums, prior = tables()
        right_predictions(problem.logits, problem.labels, into=sums)
        return cross_entropy(problem.logits, smooth_labels(problem.logits, problem.labels, 0.5, prior=prior))

    yield "online", online


def _pytorch(ignored: float) -> Iterator[Contestant]:
    yield Contestant(HARD, "hard", lambda p: F.cross_entropy(p.logits, p.labels))
    yield Contestant(SMOOTHED, "smoothed", lambda p: F.cross_entropy(p.logits, p.labels, label_smoothing=SMOOTHING))
    if ignored:
        return

    def rows(problem: Problem) -> Tensor:
        return F.one_hot(problem.labels, problem.logits.shape[1]).movedim(-1, 1).to(problem.logits.dtype)

    def mixed(problem: Problem) -> Tensor:
        dense = rows(problem)
        dense = (1 - MIXING) * dense + MIXING * dense.flip(0)
        return F.cross_entropy(problem.logits, dense, label_smoothing=SMOOTHING)

    name = "F.cross_entropy, dense"
    yield Contestant(name, "smoothed", lambda p: F.cross_entropy(p.logits, rows(p), label_smoothing=SMOOTHING))
    yield Contestant(name, "mixed", mixed)


def _composer() -> Iterator[Contestant]:
    from composer.algorithms.label_smoothing.label_smoothing import smooth_labels
    from composer.loss import soft_cross_entropy

    def smoothed(problem: Problem) -> Tensor:
        return soft_cross_entropy(problem.logits, smooth_labels(problem.logits, problem.labels, SMOOTHING))

    def mixed(problem: Problem) -> Tensor:
        first, second = (smooth_labels(problem.logits, y, SMOOTHING) for y in (problem.labels, problem.labels.flip(0)))
        return soft_cross_entropy(problem.logits, (1 - MIXING) * first + MIXING * second)

    yield Contestant("Composer", "smoothed", smoothed)
    yield Contestant("Composer", "mixed", mixed)


def _timm() -> Iterator[Contestant]:
    from timm.data.mixup import mixup_target
    from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy

    by_labels, by_rows = LabelSmoothingCrossEntropy(SMOOTHING), SoftTargetCrossEntropy()

    def mixed(problem: Problem) -> Tensor:
        x = problem.logits
        return by_rows(x, mixup_target(problem.labels, x.shape[1], 1 - MIXING, SMOOTHING))

    yield Contestant("timm", "smoothed", lambda p: by_labels(p.logits, p.labels))
    yield Contestant("timm", "mixed", mixed)


def _compiled_formula() -> Iterator[Contestant]:
    def formula(x: Tensor, labels: Tensor, second: Tensor | None, smoothing: float) -> Tensor:
        log_probabilities = x.float().log_softmax(1)
        picked = log_probabilities.gather(1, labels.unsqueeze(1)).mean()
        if second is not None:
            picked = (1 - MIXING) * picked + MIXING * log_probabilities.gather(1, second.unsqueeze(1)).mean()
        return -(1 - smoothing) * picked - smoothing * log_probabilities.mean()

    compiled = torch.compile(formula, dynamic=False)
    name = "torch.compile"
    yield Contestant(name, "hard", lambda p: compiled(p.logits, p.labels, None, 0.0))
    yield Contestant(name, "smoothed", lambda p: compiled(p.logits, p.labels, None, SMOOTHING))
    yield Contestant(name, "mixed", lambda p: compiled(p.logits, p.labels, p.labels.flip(0), SMOOTHING))


def _liger() -> Iterator[Contestant]:
    from liger_kernel.transformers.cross_entropy import LigerCrossEntropyLoss

    for case, loss in (
        ("hard", LigerCrossEntropyLoss()),
        ("smoothed", LigerCrossEntropyLoss(label_smoothing=SMOOTHING)),
    ):
        yield Contestant("Liger-Kernel", case, lambda p, loss=loss: loss(p.logits, p.labels), consumes=True)  # type: ignore[misc]


def _linear(device: str) -> Iterator[Contestant]:
    """The loss of a linear layer's output, with and without full logits."""
    from composer_ls import cross_entropy, linear_cross_entropy, smooth_labels

    def target(problem: Problem, case: str) -> Tensor:
        smoothing = 0.0 if case == "hard" else SMOOTHING
        first = smooth_labels(problem.logits, problem.labels, smoothing)
        if case != "mixed":
            return first
        return (1 - MIXING) * first + MIXING * smooth_labels(problem.logits, problem.labels.flip(0), smoothing)

    def layer(problem: Problem) -> tuple[Tensor, Tensor]:
        assert problem.layer is not None
        return problem.layer

    def logits(problem: Problem) -> Tensor:
        return F.linear(*layer(problem))

    def dense(problem: Problem) -> Tensor:
        x = logits(problem)
        rows = F.one_hot(problem.labels, x.shape[1]).to(x.dtype)
        return F.cross_entropy(x, (1 - MIXING) * rows + MIXING * rows.flip(0), label_smoothing=SMOOTHING)

    for case in USUAL:

        def without(problem: Problem, case: str = case) -> Tensor:
            hidden, weight = layer(problem)
            return linear_cross_entropy(hidden, weight, target(problem, case))

        def through(problem: Problem, case: str = case) -> Tensor:
            return cross_entropy(logits(problem), target(problem, case))

        yield Contestant("composer_ls, without logits", case, without)
        yield Contestant("composer_ls, with logits", case, through)
    yield Contestant(HARD, "hard", lambda p: F.cross_entropy(logits(p), p.labels))
    yield Contestant(SMOOTHED, "smoothed", lambda p: F.cross_entropy(logits(p), p.labels, label_smoothing=SMOOTHING))
    yield Contestant("F.cross_entropy, dense", "mixed", dense)
    if device == "cuda" and find_spec("liger_kernel") is not None:
        from liger_kernel.transformers.fused_linear_cross_entropy import LigerFusedLinearCrossEntropyLoss

        for case, smoothing in (("hard", 0.0), ("smoothed", SMOOTHING)):
            liger = LigerFusedLinearCrossEntropyLoss(label_smoothing=smoothing)

            def fused(problem: Problem, liger: Callable[..., Tensor] = liger) -> Tensor:
                hidden, weight = layer(problem)
                return liger(weight, hidden, problem.labels)

            yield Contestant("Liger-Kernel", case, fused)
