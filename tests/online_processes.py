"""Trains with OnlineLabelSmoothing in two processes, whole and resumed; run by test_variants.py. Forks after one import."""

import os
import sys
import traceback
from pathlib import Path

import torch
from composer.utils import dist
from composer.utils.misc import get_free_tcp_port
from torch.utils.data import DataLoader, TensorDataset
from trainer_support import examples, fit

from composer_ls import OnlineLabelSmoothing

STEPS, SAVED, SIZE = 8, 4, 2


def train(**options):
    """The weights and the prior after some steps of 8 examples, shared by the processes."""
    data = TensorDataset(*examples())
    loader = DataLoader(data, 8 // dist.get_world_size(), sampler=dist.get_sampler(data, shuffle=False))
    algorithm = OnlineLabelSmoothing(0.5)
    weights = fit([algorithm], loader=loader, steps=STEPS, **options)
    return {"weights": weights, "prior": algorithm.prior}


def process(rank, port, folder):
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT")
    os.environ |= dict(zip(names, map(str, (rank, rank, SIZE, SIZE, 0, "127.0.0.1", port)), strict=True))
    whole = train(save_folder=str(folder / "saved"), save_interval=f"{SAVED}ba", save_filename="{batch}.pt")
    resumed = train(load_path=str(folder / "saved" / f"{SAVED}.pt"))
    torch.save({"whole": whole, "resumed": resumed}, folder / f"{rank}.pt")


def main(folder):
    torch.set_num_threads(1)
    port, children = get_free_tcp_port(), []
    for rank in range(SIZE):
        child = os.fork()
        if child == 0:
            try:
                process(rank, port, folder)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        children.append(child)
    statuses = [os.waitpid(child, 0)[1] for child in children]
    if any(statuses):
        sys.exit(1)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
