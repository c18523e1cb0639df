"""Learning rate schedules that Composer does not provide."""

from __future__ import annotations

from composer.core import State, Time
from composer.optim import ComposerScheduler
from composer.optim.scheduler import _convert_time

__all__ = ["InverseSquareRootScheduler"]


class InverseSquareRootScheduler(ComposerScheduler):
    r"""A linear warmup of length w, then a decay with the square root of time: :math:`\min(t/w, \sqrt{w/t})`.

    Args:
        warmup: w, such as ``"1000ba"`` or ``"0.1dur"``; more than 0.

    Example:
        >>> from composer_ls.lab.training.schedules import InverseSquareRootScheduler
        >>> scheduler = InverseSquareRootScheduler("1000ba")

    References:
        Vaswani et al., 2017, https://arxiv.org/abs/1706.03762, section 5.3.

    """

    def __init__(self, warmup: str | Time[int] | Time[float]) -> None:
        self.warmup = warmup

    def __call__(self, state: State, ssr: float = 1.0) -> float:
        """The factor by which the learning rate is multiplied at the state's time."""
        warmup = _convert_time(self.warmup, state, ssr=ssr)
        now, until = int(state.timestamp.get(warmup.unit)), max(1, int(warmup))
        return now / until if now < until else (until / now) ** 0.5
