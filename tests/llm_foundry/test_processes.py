"""Trainings that are killed and resumed, and trainings by two processes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from llm_foundry_support import assert_same, configuration, make_data, train, weights
from omegaconf import OmegaConf

BIN = Path(sys.executable).parent
SMOOTHING = {"label_smoothing": {"smoothing": 0.1}}
MODELS = ("mpt", "llama")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("llm"))


def settings_for(folder, model="mpt", loader="text", algorithms=SMOOTHING, **others):
    """Without dropout, whose random numbers differ in each process and after a resumption."""
    settings = configuration(folder, model, loader, algorithms, accumulate_train_batch_on_tokens=True, **others)
    if model == "mpt":
        settings["model"]["resid_pdrop"] = 0.0
    return settings


def start(*command, **environment):
    """Run a command beside the tests' own Python."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True, timeout=500)


def test_a_killed_run_that_goes_on_ends_as_one_that_was_not(folder, tmp_path):
    (tmp_path / "dying.py").write_text(
        "import os, signal\n"
        "from composer.core import Callback\n"
        "from llmfoundry.registry import callbacks\n"
        "@callbacks.register('dying')\n"
        "class Dying(Callback):\n"
        "    def batch_end(self, state, logger):\n"
        "        if state.timestamp.batch.value == 13:\n"
        "            os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    settings = settings_for(folder)
    kept = {**settings, "save_folder": str(tmp_path / "saved"), "save_interval": "5ba", "run_name": "tried"}
    dying = {**kept, "code_paths": [str(tmp_path / "dying.py")], "callbacks": {"dying": {}}}
    OmegaConf.save(OmegaConf.create(dying), tmp_path / "dying.yaml")
    died = start(BIN / "llmfoundry", "train", tmp_path / "dying.yaml")
    assert died.returncode == -9, died.stderr[-4000:]
    resumed = train({**kept, "autoresume": True})
    assert resumed.state.timestamp.batch.value == 20
    assert_same(weights(resumed), weights(train(settings)))


@pytest.fixture(scope="module")
def of_two_processes(folder):
    """The weights that two processes end with, by name; one start of both trains them all."""
    listed = {f"{loader}-ddp": (settings_for(folder, "mpt", loader), None) for loader in ("text", "prompts")}
    for model in MODELS:
        for name, algorithms, reference in (
            ("none", None, None),
            ("zero", {"label_smoothing": {"smoothing": 0.0}}, None),
            ("ours", SMOOTHING, None),
            ("reference", None, 0.1),
        ):
            sharded = settings_for(folder, model, "text", algorithms, fsdp_config={"sync_module_states": True})
            listed[f"{model}-fsdp-{name}"] = (sharded, reference)
    (folder / "two.json").write_text(json.dumps(listed))
    script = Path(__file__).parents[1] / "llm_foundry_processes.py"
    done = start(BIN / "composer", "-n", "2", script, folder / "two.json", FSDP_VERSION="2")
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return {name: torch.load(folder / f"{name}.pt") for name in listed}


@pytest.mark.parametrize("loader", ["text", "prompts"])
def test_two_processes_with_ddp_give_the_weights_of_one(folder, of_two_processes, loader):
    assert_same(of_two_processes[f"{loader}-ddp"], weights(train(settings_for(folder, "mpt", loader))))


@pytest.mark.parametrize("model", MODELS)
def test_with_fsdp_2_smoothing_gives_the_weights_of_label_smoothing_in_every_cross_entropy(of_two_processes, model):
    """Composer's FSDP 2 itself ends with other weights than one process does, with and without smoothing."""
    found = {name: of_two_processes[f"{model}-fsdp-{name}"] for name in ("none", "zero", "ours", "reference")}
    assert_same(found["zero"], found["none"])
    assert_same(found["ours"], found["reference"])
    assert any((found["ours"][name] - found["none"][name]).abs().max() > 1e-4 for name in found["none"])
