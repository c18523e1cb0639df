"""The example's comparison of language models: what it trains, measures and prints."""

import json
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from llm_foundry_support import EXAMPLE, LENGTH, VOCABULARY, example, make_data
from omegaconf import OmegaConf
from torch.nn import functional as F

SEEDS = ["17", "18"]


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """The script, and the data and the runs of a copy of it that trained a smaller model for four steps."""
    folder = make_data(tmp_path_factory.mktemp("llm"))
    data, runs, here = folder / "data", folder / "runs", folder / "example"
    shutil.copytree(data / "val", data / "test")
    shutil.copytree(EXAMPLE, here)
    recipe = OmegaConf.load(EXAMPLE / "mpt-tiny.yaml")
    recipe.variables.vocabulary, recipe.max_seq_len, recipe.max_duration = VOCABULARY, LENGTH, "4ba"
    recipe.model.d_model, recipe.model.n_layers = 32, 1
    OmegaConf.save(recipe, here / "mpt-tiny.yaml")
    arguments = ["--data", str(data), "--out", str(runs), "--seeds", *SEEDS]
    # In a process of its own, because each training keeps files open.
    subprocess.run([sys.executable, str(here / "compare.py"), *arguments], check=True, capture_output=True, timeout=900)
    return SimpleNamespace(script=example("compare"), data=data, runs=runs)


def main(script, data, runs):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["compare.py", "--data", str(data), "--out", str(runs), "--seeds", *SEEDS])
        script.main()


def test_every_setting_is_trained_with_every_seed_and_only_smoothing_differs(compared):
    found = {file.stem: json.loads(file.read_text()) for file in compared.runs.iterdir()}
    names = [name.replace(" ", "-") for name in compared.script.SETTINGS]
    assert found.keys() == {f"{name}-{seed}" for name in names for seed in SEEDS}
    assert len({run["loss"] for run in found.values()}) == len(found)
    for seed in SEEDS:  # after four steps, smoothing has changed every loss a little
        losses = [found[f"{name}-{seed}"]["loss"] for name in names]
        assert 0 < max(losses) - min(losses) < 0.05


def test_finished_runs_are_not_trained_again(compared, monkeypatch, capsys):
    def train(*arguments):
        raise AssertionError(arguments)

    monkeypatch.setattr(compared.script, "run", train)
    main(compared.script, compared.data, compared.runs)
    assert capsys.readouterr().out.count("\n") == 2 + len(compared.script.SETTINGS)
    next(compared.runs.glob("none-17.json")).rename(compared.runs / "kept")
    with pytest.raises(AssertionError, match="none"):
        main(compared.script, compared.data, compared.runs)
    (compared.runs / "kept").rename(compared.runs / "none-17.json")


def test_each_prediction_is_of_the_next_token(compared):
    torch.manual_seed(0)
    table = torch.randn(VOCABULARY, VOCABULARY)

    def bigrams(batch):
        assert batch["attention_mask"].all()
        return SimpleNamespace(logits=table[batch["input_ids"]])

    logits, labels = compared.script.predictions(bigrams, compared.data / "val")
    assert len(logits) == len(labels)
    assert len(labels) % (LENGTH - 1) == 0
    torch.testing.assert_close(
        logits[1], table[labels[0]]
    )  # what is predicted from the token that was the label before
    found = compared.script.measured(logits, labels)
    assert found["loss"] == pytest.approx(F.cross_entropy(logits, labels).item())
    assert found["accuracy"] == pytest.approx((logits.argmax(1) == labels).double().mean().item())


def test_differences_in_the_table_are_paired_by_seed(compared):
    runs = {"none": [{"loss": 4.0}, {"loss": 5.0}], "uniform 0.1": [{"loss": 4.5}, {"loss": 5.5}]}
    *_, none, smoothed = compared.script.table(runs).splitlines()
    assert none == "| none | 4.5000 |"
    assert smoothed == "| uniform 0.1 | 5.0000 (+0.5000 ± 0.0000) |"
