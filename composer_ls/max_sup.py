"""MaxSup, a Composer Algorithm: a thin layer over `max_suppression` and `composer_ls.target_smoothing`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from composer.core import State
from torch import Tensor

from composer_ls.composition.batches import DEFAULT_KEY
from composer_ls.smoothing import check_strength, max_suppression
from composer_ls.target_smoothing import Factor, TargetSmoothing
from composer_ls.varying import as_factor, factor_at, in_words

__all__ = ["MaxSup"]


class MaxSup(TargetSmoothing):
    r"""Max suppression: the largest logit is penalised, where label smoothing penalises the label's.

    The loss is :math:`\mathrm{CE} + \alpha\,(\max_k x_k - \mathrm{mean}_k\,x_k)`. For examples that the network has right this
    is label smoothing with α. For others, smoothing makes the wrong answer more confident, and MaxSup less.

    It composes with other algorithms, restores the targets and reports conflicts as :class:`~composer_ls.LabelSmoothing`
    does. Mixed examples get the penalty once, because it does not depend on their labels; ignored ones get none.

    Args:
        strength: α in [0, 1). Or a schedule, as for LabelSmoothing. The authors raise it from 0.1 to 0.2 on ImageNet, which
            is ``linear(0.1, 0.2)``.
        target_key: Where the targets are in the batch, as for LabelSmoothing.
        ignore_index: A label that gets no penalty and no gradient; ``None`` to ignore no label.
        on_conflict: What to do if something smooths the targets too: ``"raise"`` or ``"warn"``.
        output_key: Where the logits are in the model's output, as for LabelSmoothing.

    Raises:
        TypeError: ``strength`` is of another type.
        ValueError: ``strength`` is negative, 1 or more, or NaN; a schedule leaves [0, 1); or as for LabelSmoothing.
        TargetError: On the first microbatch: the loss is a binary one, or as for LabelSmoothing.
        DoubleSmoothingError: When training starts, if the loss, another algorithm or the dataloader smooths.

    Note:
        The strength in use is logged at every step as ``max_sup/strength``.

    Example:
        >>> from composer.algorithms import CutMix
        >>> from composer_ls import MaxSup
        >>> algorithms = [MaxSup(strength=0.1), CutMix(alpha=1.0)]  # for Trainer(algorithms=...)

    References:
        Zhou et al., 2025, https://arxiv.org/abs/2502.15798.

    """

    reads_logits = True
    ARGUMENT: ClassVar[str] = "strength"
    METRIC: ClassVar[str] = "max_sup/strength"

    def __init__(
        self,
        strength: float | Mapping[str, Any] | Callable[[State], float] = 0.1,
        target_key: Any = DEFAULT_KEY,
        ignore_index: int | None = -100,
        on_conflict: str = "raise",
        output_key: str | int | Callable[..., Any] | None = None,
    ) -> None:
        super().__init__(target_key, ignore_index, on_conflict, output_key)
        self.strength = as_factor(strength, "strength", check_strength, by_class=False)

    def __repr__(self) -> str:
        """The constructor call, which Composer stores in checkpoints."""
        return (
            f"MaxSup(strength={self.strength!r}, target_key={self.target_key!r}, ignore_index={self.ignore_index!r}, "
            f"on_conflict={self.on_conflict!r}, output_key={self.output_key!r})"
        )

    @property
    def smooths(self) -> bool:  # type: ignore[override]
        """Whether there is a penalty at any time."""
        return self.strength != 0

    def _factor_at(self, state: State) -> Factor:
        return factor_at(self.strength, state, "strength", check_strength)

    def _smooth(self, logits: Tensor, target: Tensor, ignore_index: int, validate: bool | None) -> Tensor:
        assert isinstance(self.factor, float)
        return max_suppression(logits, target, self.factor, ignore_index=ignore_index, validate=validate)

    def _own_words(self, message: str) -> str:
        binary = "MaxSup has no binary form: take it out of algorithms, or use another of its kind with kind='binary'"
        message = message.replace("give LabelSmoothing(kind='binary')", binary)
        message = message.replace("give LabelSmoothing(kind='multiclass')", "MaxSup is for such classes")
        return super()._own_words(message)

    def in_words_over(self, classes: int | None, of: str) -> str:
        """What is done to the targets, for :func:`composer_ls.composition.describe`."""
        over = f"{classes} classes" if classes else "all classes"
        return f"MaxSup {in_words(self.strength)}{of}, from the largest logit to uniform over {over}"
