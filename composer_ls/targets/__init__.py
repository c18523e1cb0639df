"""SoftTargets: targets that stand for dense rows over K classes and store a few labels, weights and a smoothing factor.

`soft_targets` defines what is stored, `algebra` the operations whose result stays compact, `dispatch` how PyTorch's
calls are handled, and `fields` how weights and smoothing factors are represented.
"""

from composer_ls.targets import algebra as algebra  # registers its handlers
from composer_ls.targets.soft_targets import SoftTargets

__all__ = ["SoftTargets"]
