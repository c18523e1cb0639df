"""Two and four processes give the weights of one, and one that dies ends the others; the run goes on with one process."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close
from training_processes import CASES, kept, train

pytestmark = pytest.mark.slow


def start(processes, folder, what):
    script = Path(__file__).with_name("training_processes.py")
    launcher = [sys.executable, "-m", "composer.cli.launcher", "-n", str(processes), str(script), str(folder), what]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "FSDP_VERSION": "2"}
    return subprocess.run(launcher, env=environment, capture_output=True, text=True, timeout=500)


def distance(found, expected):
    assert found.keys() == expected.keys()
    return max((found[name] - weight).abs().max().item() for name, weight in expected.items())


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_give_the_weights_of_one(processes, tmp_path):
    done = start(processes, tmp_path, "all")
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    found = torch.load(tmp_path / "weights.pt")
    for case in CASES:
        expected = train(case, parts=processes)
        for name, weight in expected.items():
            assert_close(found[case][name], weight, rtol=1e-5, atol=1e-6, msg=lambda text, case=case: f"{case}: {text}")
        assert distance(train(case, parts=processes, algorithms=[]), expected) > 1e-4, case
    if processes == 2:  # FSDP 2 of Composer makes the weights anew, so one process starts from others
        assert distance(found["sharded"], found["sharded by the loss"]) < 1e-6
        assert distance(found["sharded"], found["sharded hard"]) > 1e-4


def test_a_process_that_dies_ends_the_others_and_one_process_goes_on(tmp_path):
    done, ended = start(2, tmp_path, "die"), time.time()
    assert done.returncode != 0
    assert ended - (tmp_path / "died").stat().st_mtime < 60
    assert "rank 1" in done.stdout + done.stderr
    assert not (tmp_path / "weights.pt").exists()
    resumed = train("label smoothing", parts=2, **kept(tmp_path))
    for name, weight in train("label smoothing", parts=2).items():
        assert_close(resumed[name], weight, rtol=1e-5, atol=1e-6)
