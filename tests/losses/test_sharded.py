"""Logits that several processes share give the loss and the gradient of those that one process has."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SIZES = (1, 2, 3, 4)


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    """What each process of each number of processes says, from one run."""
    folder = tmp_path_factory.mktemp("sharded")
    script = Path(__file__).with_name("sharded_processes.py")
    environment = os.environ | {
        "GLOO_SOCKET_IFNAME": "lo",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
    }
    command = [sys.executable, "-W", "ignore", str(script), str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return {size: [json.loads((folder / f"{size}-{rank}.json").read_text()) for rank in range(size)] for size in SIZES}


@pytest.mark.slow
@pytest.mark.parametrize("size", SIZES)
def test_loss_and_gradient_equal_those_of_one_process_and_few_numbers_cross(said, size):
    for results in said[size]:
        errors = {name: error for name, error in results.items() if name not in ("layer", "refused")}
        assert len(errors) >= 10
        for name, error in errors.items():
            assert error < (2e-2 if "bfloat16" in name else 1e-9), (size, name)


@pytest.mark.slow
@pytest.mark.parametrize("size", SIZES)
def test_a_column_parallel_layer_trains_to_the_weights_of_one_process(said, size):
    assert all(results["layer"] < 1e-12 for results in said[size])


@pytest.mark.slow
def test_what_does_not_fit_is_refused_with_both_names(said):
    parts = {
        "mesh": ("logits are on", "but the target's classes on"),
        "spatial": ("placements", "redistribute"),
        "shard": ("the shard of this process has shape (6, 5)", "(6, 7)"),
        "rows": ("dense rows (6, 10)", "give labels"),
        "plain logits": ("target is a DTensor, but input is not", "full_tensor"),
        "gradient": ("need a gradient", "detach"),
        "label": ("is 10, but the logits have 10 classes",),
        "a changed prior": ("modified by an inplace operation",),
    }
    refused = said[2][0]["refused"]
    assert refused.keys() == parts.keys()
    for name, words in parts.items():
        for word in words:
            assert word in refused[name]
