"""The order of the training data: another in each epoch, the same for the same seed."""

from __future__ import annotations

from typing import Any

import numpy as np
from composer.utils import dist
from torch.utils.data import Dataset
from torch.utils.data.distributed import DistributedSampler

__all__ = ["EpochSampler"]


class EpochSampler(DistributedSampler[Any]):
    """The share of a data set that is this process's, shuffled; the order follows from the seed and the epoch alone.

    Composer tells its sampler the epoch; this one tells the data set too, if that has ``set_epoch``.

    Args:
        dataset: Items that have an index.
        seed: The recipe's.

    """

    def __init__(self, dataset: Dataset[Any], seed: int) -> None:
        far_apart = int(np.random.SeedSequence(seed).generate_state(1)[0])  # the epoch is added to it
        super().__init__(
            dataset, dist.get_world_size(), dist.get_global_rank(), shuffle=True, seed=far_apart, drop_last=True
        )

    def set_epoch(self, epoch: int) -> None:
        """Shuffle as in this epoch, and let the data set draw anew."""
        super().set_epoch(epoch)
        if hasattr(self.dataset, "set_epoch"):
            self.dataset.set_epoch(epoch)
