"""LabelSmoothing, a Composer Algorithm: a thin layer over `smooth_labels` and `composer_ls.target_smoothing`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from composer.core import State
from torch import Tensor

from composer_ls.composition.batches import DEFAULT_KEY
from composer_ls.smoothing import as_prior, check_kind, check_smoothing, smooth_by_class, smooth_labels
from composer_ls.target_smoothing import Factor, TargetSmoothing, check_choice
from composer_ls.varying import as_factor, factor_at, in_words

__all__ = ["LabelSmoothing"]


class LabelSmoothing(TargetSmoothing):
    """Label smoothing for training targets, correct alongside other algorithms that change the targets.

    A drop-in replacement for :class:`composer.algorithms.LabelSmoothing` with the same first arguments. Targets are
    smoothed just before the loss and restored right after it; evaluation is never changed. With MixUp and CutMix, both
    labels of every pair are smoothed, in both of their modes and at any position in the list of algorithms.

    On the first microbatch the model is run once without side effects, to see which PyTorch loss functions it calls and
    with which labels. If the loss uses the labels in a way that distributions do not support (a mask, a shift, a loss
    computed in ``forward()``), the labels stay as they are, and each cross entropy that the model computes from them is
    replaced by the smoothed one. No ``target_key`` is needed then.

    Args:
        smoothing: α in [0, 1], the mass that moves to the prior. Or a schedule: :func:`~composer_ls.smoothing.linear`,
            :func:`~composer_ls.smoothing.cosine`, the mapping that spells one, or any function of Composer's ``State``,
            called at the start of every step. Or one factor per class, ``(K,)``.
        target_key: Where the targets are in the batch: an index, a key, a path such as ``("outer", "inner")``, a
            getter, or a (getter, setter) pair. In a mapping, ``labels`` or ``targets`` is found without it.
        prior: Where the mass goes: ``None`` for the uniform ``1/K``, a row ``(K,)`` such as
            :func:`~composer_ls.smoothing.unigram_prior` makes, or one row per class ``(K, K)``.
        ignore_index: A label that gets no mass and no gradient; ``None`` to ignore no label.
        spread: ``"all"``, or ``"others"`` to share α among the K - 1 incorrect classes only.
        on_conflict: What to do if something else smooths the targets too: ``"raise"`` or ``"warn"``.
        output_key: Where the logits are in the model's output, as an index, a key, an attribute's name or a getter.
            ``None`` if the output is the logits, or if the loss extracts them itself.
        kind: ``"multiclass"``, or ``"binary"`` if every logit has its own label (multi-label targets) and the loss is
            binary cross entropy; the mass then moves to 1/2.
        logits: ``"kept"``, or ``"never"`` to train a model whose logits come from a linear layer or a tied embedding, and
            whose loss is one cross entropy of them, without computing the logits: Hugging Face's and LLM-Foundry's
            language models, and others whose ``loss()`` works in this way. It saves most of the memory of a step at a large
            vocabulary. Evaluation is not changed. The logits in the output are NaN in training, so training metrics are
            refused.

    Raises:
        TypeError: ``smoothing`` is of another type. During training: the output or the targets are not a tensor.
        ValueError: An argument is wrong. During training: there are no targets at ``target_key``, they do not fit the
            logits, the logits have one class, a mixer has another target key, a schedule leaves [0, 1], or there is
            another number of classes than of factors.
        TargetError: On the first microbatch: the loss does not fit this ``kind``, or it neither accepts distributions
            nor computes a cross entropy of the labels (a regression, for example).
        DoubleSmoothingError: When training starts, if the loss, another algorithm or the dataloader smooths too.

    Note:
        Under cross entropy without class weights or ignored labels, both modes of MixUp and CutMix give the same loss
        and gradient. With either, PyTorch's mean divides each of the two interpolated losses by the weight of its own
        labels.

        As without smoothing, the mean is over the counted labels of one microbatch, and Composer weights microbatches
        by their number of examples, or of tokens with ``accumulate_train_batch_on_tokens=True``.

        The factor in use is logged at every step as ``label_smoothing/smoothing``; with factors per class, their mean.

    Example:
        >>> from composer.algorithms import MixUp
        >>> from composer_ls import LabelSmoothing
        >>> from composer_ls.smoothing import linear
        >>> algorithms = [LabelSmoothing(smoothing=0.1), MixUp(alpha=0.2)]  # for Trainer(algorithms=...)
        >>> LabelSmoothing(smoothing=linear(0.0, 0.1, "0.5dur")).smoothing
        linear(0, 0.1, '0.5dur')

    References:
        Szegedy et al., 2016, https://arxiv.org/abs/1512.00567; Müller et al., 2019, https://arxiv.org/abs/1906.02629.

    """

    def __init__(
        self,
        smoothing: float | Mapping[str, Any] | Callable[[State], float] | Tensor | Sequence[float] = 0.1,
        target_key: Any = DEFAULT_KEY,
        prior: Tensor | Sequence[Any] | None = None,
        ignore_index: int | None = -100,
        spread: str = "all",
        on_conflict: str = "raise",
        output_key: str | int | Callable[..., Any] | None = None,
        kind: str = "multiclass",
        logits: str = "kept",
    ) -> None:
        super().__init__(target_key, ignore_index, on_conflict, output_key)
        self.smoothing = as_factor(smoothing, "smoothing", self._checked)
        check_smoothing(0.0, None, spread, prior is not None)
        check_kind(kind, spread, prior is not None)
        check_choice("logits", logits, ("kept", "never"))
        self.prior = as_prior(prior)
        if self.prior is not None and not self.prior.requires_grad:  # else it is being learnt
            self.prior = self.prior.clone()
        self.spread = spread
        self.kind = kind
        self.logits = logits

    def __repr__(self) -> str:
        """The constructor call, which Composer stores in checkpoints."""
        prior = None if self.prior is None else f"<{tuple(self.prior.shape)}>"
        return (
            f"LabelSmoothing(smoothing={self.smoothing!r}, target_key={self.target_key!r}, prior={prior}, "
            f"ignore_index={self.ignore_index!r}, spread={self.spread!r}, on_conflict={self.on_conflict!r}, "
            f"output_key={self.output_key!r}, kind={self.kind!r}, logits={self.logits!r})"
        )

    @property
    def smooths(self) -> bool:  # type: ignore[override]
        """Whether any mass moves at any time."""
        return bool(self.smoothing.any()) if isinstance(self.smoothing, Tensor) else self.smoothing != 0

    @staticmethod
    def _checked(value: Any) -> float:
        return check_smoothing(value, None, "all", False)  # type: ignore[return-value]

    def _factor_at(self, state: State) -> Factor:
        return factor_at(self.smoothing, state, "smoothing", self._checked)

    def _smooth(self, logits: Tensor, target: Tensor, ignore_index: int, validate: bool | None) -> Tensor:
        if self.prior is not None:
            self.prior = self.prior.to(logits.device)
        assert self.factor is not None
        smooth: Callable[..., Tensor] = smooth_labels
        if isinstance(self.factor, Tensor):
            self.factor, smooth = self.factor.to(logits.device), smooth_by_class
        return smooth(
            logits,
            target,
            self.factor,
            prior=self.prior,
            ignore_index=ignore_index,
            spread=self.spread,
            kind=self.kind,
            validate=validate,
        )

    def in_words_over(self, classes: int | None, of: str) -> str:
        """What is done to the targets, for :func:`composer_ls.composition.describe`."""
        amount = f"smoothing {in_words(self.smoothing)}{of}"
        if self.kind == "binary":
            return f"{amount}, each label toward 1/2"
        if self.prior is not None:
            return f"{amount}, to the given prior{' of each class' if self.prior.ndim == 2 else ''}"
        over = f"{classes} classes" if classes else "all classes"
        if self.spread == "others":
            over = f"all but the true one of {classes} classes" if classes else "all but the true class"
        return f"{amount}, uniform over {over}"
