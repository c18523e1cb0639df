"""Cross entropy against a target that is a few weighted labels plus a multiple of a prior, one implementation a device.

Every kernel computes, for the rows ``n`` of logits ``x`` of shape ``(N, K, S)``,

    loss_n = mass_n · logsumexp(x_n) - Σ_j hard_nj · x_n[c_nj] - Σ_j soft_nj · <q(c_nj), x_n>
    dloss_n/dx_n = mass_n · softmax(x_n) - Σ_j hard_nj · onehot(c_nj) - Σ_j soft_nj · q(c_nj)

where ``mass_n`` is the sum of what is subtracted. An ignored row costs nothing and gets no gradient, whatever its
logits. Checking, reductions and class weights happen in `composer_ls.losses`.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

__all__ = ["RowTargets"]


@dataclass(frozen=True)
class RowTargets:
    """The target of a kernel, in the compute dtype (float32, or float64 for float64 logits).

    Attributes:
        classes: c, int64 ``(N, J, S)``.
        hard: The weight of each label, ``(N, J, S)``.
        soft: The weight of the prior, ``(N, 1, S)``, or ``(N, J, S)`` when the prior has a row per class. ``None`` when
            nothing is smoothed.
        prior: ``None`` for the uniform ``1/K``, ``(K,)``, or ``(K, K)``. It need not sum to one.
        mass: The sum of each row of the target, ``(N, S)``.
        ignored: Where a row counts for nothing, bool ``(N, S)``.

    """

    classes: Tensor
    hard: Tensor
    soft: Tensor | None
    prior: Tensor | None
    mass: Tensor
    ignored: Tensor

    def rows(self, examples: slice, positions: slice) -> RowTargets:
        """The part of the target for some examples and positions."""
        part, row = (examples, slice(None), positions), (examples, positions)
        soft = None if self.soft is None else self.soft[part]
        return RowTargets(self.classes[part], self.hard[part], soft, self.prior, self.mass[row], self.ignored[row])
