"""The order of the training data: different in each epoch, reproducible from the seed."""

from __future__ import annotations

from typing import Any

import numpy as np
from composer.utils import dist
from torch.utils.data import Dataset
from torch.utils.data.distributed import DistributedSampler

__all__ = ["EpochSampler"]


class EpochSampler(DistributedSampler[Any]):
    """The share of a data set that belongs to this process, shuffled. The order depends on the seed and the epoch only.

    Composer calls the sampler's ``set_epoch``; this one also calls the data set's, if it has one.

    Args:
        dataset: A map-style data set.
        seed: The recipe's seed.

    """

    def __init__(self, dataset: Dataset[Any], seed: int) -> None:
        far_apart = int(np.random.SeedSequence(seed).generate_state(1)[0])  # because the epoch is added to the seed
        super().__init__(
            dataset, dist.get_world_size(), dist.get_global_rank(), shuffle=True, seed=far_apart, drop_last=True
        )

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the shuffle, and of the data set's own random choices."""
        super().set_epoch(epoch)
        if hasattr(self.dataset, "set_epoch"):
            self.dataset.set_epoch(epoch)
