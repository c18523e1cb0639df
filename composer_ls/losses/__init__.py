"""Losses against labels, dense rows or SoftTargets: cross entropy, alone or fused with a linear layer, and Dice."""

from composer_ls.losses.cross_entropy import CrossEntropyLoss, cross_entropy
from composer_ls.losses.dice import dice_loss
from composer_ls.losses.linear_cross_entropy import LinearCrossEntropyLoss, linear_cross_entropy

__all__ = ["CrossEntropyLoss", "LinearCrossEntropyLoss", "cross_entropy", "dice_loss", "linear_cross_entropy"]
