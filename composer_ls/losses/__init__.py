"""Losses of labels, dense rows and SoftTargets: cross entropy, as a function and as a module, and Dice."""

from composer_ls.losses.cross_entropy import CrossEntropyLoss, cross_entropy
from composer_ls.losses.dice import dice_loss

__all__ = ["CrossEntropyLoss", "cross_entropy", "dice_loss"]
