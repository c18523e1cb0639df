"""Runs in each of the processes that `composer -n 2` starts: trains what a JSON file lists, and keeps the weights."""

import contextlib
import json
import sys
from pathlib import Path

import torch
from composer.utils import dist
from llm_foundry_support import every_cross_entropy_smooths, train, weights
from torch.distributed.tensor import DTensor


def whole(weight):
    """A weight that may be spread over the processes."""
    return weight.full_tensor() if isinstance(weight, DTensor) else weight


def main(file):
    for name, (settings, reference) in json.loads(file.read_text()).items():
        with every_cross_entropy_smooths(reference) if reference else contextlib.nullcontext():
            trainer = train(settings)
        trained = {key: whole(weight) for key, weight in weights(trainer).items()}
        if dist.get_global_rank() == 0:
            torch.save(trained, file.parent / f"{name}.pt")
        trainer.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
