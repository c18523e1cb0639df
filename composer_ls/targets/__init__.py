"""SoftTargets: targets that stand for dense rows over K classes and store a few labels, weights and a smoothing factor.

`soft_targets` is what is stored, `algebra` what stays small, `dispatch` how PyTorch's calls arrive, `fields` what weights
and smoothing factors are.
"""

from composer_ls.targets import algebra as algebra  # registers its handlers
from composer_ls.targets.soft_targets import SoftTargets

__all__ = ["SoftTargets"]
