"""The command line: what it prints, and how it fails."""

import importlib.metadata
import json
import shlex
import sys
import warnings

import pytest
import yaml

import composer_ls
from composer_ls.lab.commands.cli import main
from composer_ls.lab.commands.train import next_commands
from composer_ls.lab.recipe.reading import load_recipe, shipped_recipes
from composer_ls.lab.run_folder.folder import RunFolder

QUICK = ["duration=1ep", "checkpoints.interval=1ep"]


def failure(capsys, *arguments):
    """The message of a command that must exit with status 2."""
    with pytest.raises(SystemExit) as stop:
        main(list(arguments))
    assert stop.value.code == 2
    printed = capsys.readouterr()
    assert "Traceback" not in printed.err
    return printed.err


def succeed(capsys, *arguments):
    with pytest.raises(SystemExit) as stop:
        main(list(arguments))
    assert not stop.value.code
    return capsys.readouterr().out


def test_train_ends_with_a_short_table_and_does_not_run_twice(capfd, tmp_path):
    arguments = ["train", "digits-mlp", *QUICK, "--out", str(tmp_path / "run")]
    table = succeed(capfd, *arguments)
    for word in (
        "accuracy",
        "NLL (nats)",
        "ECE (fraction, 15 bins)",
        "Brier score",
        "smoothing",
        "seconds",
        "Run folder: ",
    ):
        assert word in table
    again = succeed(capfd, *arguments)
    assert "was not run again; --overwrite does that" in again
    assert json.loads((tmp_path / "run" / "result.json").read_text())["name"] == "digits-mlp"


def test_train_ends_with_the_two_commands_to_type_next_and_they_can_be_typed(capfd, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = succeed(capfd, "train", "digits-mlp", *QUICK, "algorithms.mixup={alpha: 0.2}", "--out", "a run")
    commands = [line.strip() for line in text.splitlines() if line.startswith("  composer-ls ")]
    given = "digits-mlp duration=1ep checkpoints.interval=1ep 'algorithms.mixup={alpha: 0.2}'"
    assert commands == [
        f"composer-ls compare {given}",
        f"composer-ls train {given} algorithms.label_smoothing.smoothing=0",
    ]
    listing = succeed(capfd, *shlex.split(commands[0])[1:], "--list")
    assert len(listing.splitlines()) == 10
    again = succeed(capfd, *shlex.split(commands[1])[1:])
    assert "algorithms.label_smoothing.smoothing=0.1" in again


def test_the_next_commands_follow_from_the_run(tmp_path):
    recipe = load_recipe("digits-mlp", ["diagnostics={}"])
    folder = RunFolder(tmp_path, recipe)
    folder.features_file.write_bytes(b"")
    (_, compare), (_, look) = next_commands("digits-mlp", ["algorithms.label_smoothing.smoothing=0.3"], 0.3, folder)
    assert compare == "composer-ls compare digits-mlp --smoothing 0,0.3"
    assert look == f"composer-ls diagnose {tmp_path}"
    penalised = load_recipe(
        "digits-mlp", overrides := ["algorithms.label_smoothing=null", "algorithms.max_sup={strength: 0.2}"]
    )
    (_, compare), (_, without) = next_commands("digits-mlp", overrides, 0.2, RunFolder(tmp_path / "max_sup", penalised))
    given = "digits-mlp algorithms.label_smoothing=null 'algorithms.max_sup={}'"
    assert compare == f"composer-ls compare {given} --smoothing 0,0.2"
    assert without == f"composer-ls train {given} algorithms.max_sup.strength=0"
    falling = load_recipe("digits-mlp", ["algorithms.label_smoothing.smoothing={schedule: linear, start: 0.2, end: 0}"])
    (_, compare), _ = next_commands("digits-mlp", [], 0.2, RunFolder(tmp_path / "falling", falling))
    assert compare == "composer-ls compare digits-mlp"
    translator = RunFolder(tmp_path, load_recipe("multi30k-transformer-small"))
    _, (_, translate) = next_commands("multi30k-transformer-small", [], 0.1, translator)
    assert translate == f"composer-ls translate {tmp_path} < in.txt > out.txt"


def test_what_a_user_can_do_nothing_about_is_shown_on_request_only(tmp_path, capfd, monkeypatch):
    """The 360 test images leave a last batch of 40, of which Composer warns in the progress bar, where it also dumps its settings."""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    arguments = ["train", "digits-mlp", *QUICK, "data.batch_size=64", "microbatch_size=64"]
    for noisy, extra in ((False, []), (True, ["--debug"])):
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            with pytest.raises(SystemExit) as stop:
                main([*arguments, *extra, "--out", str(tmp_path / str(noisy))])
        assert not stop.value.code
        shown = "".join(capfd.readouterr())
        assert ("****" in shown) == noisy
        assert any("Cannot split tensor" in str(one.message) for one in warned) == noisy
        assert "Epoch" in shown  # the bar itself


def test_without_a_terminal_each_epoch_is_a_line_and_nothing_is_an_escape_sequence(tmp_path, capfd):
    with pytest.raises(SystemExit) as stop:
        main(["train", "digits-mlp", "duration=3ep", "--out", str(tmp_path)])
    assert not stop.value.code
    printed = capfd.readouterr()
    assert [line.split(":")[0] for line in printed.err.splitlines()] == [
        f"epoch {epoch}, step {22 * epoch}" for epoch in (1, 2, 3)
    ]
    assert not set("\x1b\r") & set(printed.err + printed.out)


def test_recipes_lists_each_with_what_it_needs(capsys):
    listing = succeed(capsys, "recipes")
    assert all(name in listing for name in shipped_recipes())
    assert "data.download=true" in listing
    assert "'composer_ls[nlp]'" in listing.replace("\n", "")  # brackets are no markup


def test_recipes_shows_one_as_yaml_and_prints_the_schema(capsys):
    assert yaml.safe_load(succeed(capsys, "recipes", "--show", "digits-mlp"))["duration"] == "30ep"
    assert json.loads(succeed(capsys, "recipes", "--schema"))["title"] == "Recipe"


def test_train_help_shows_examples(capsys):
    text = succeed(capsys, "train", "--help")
    assert "composer-ls train digits-mlp" in text
    assert "key.path=value" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "digits-mpl"], "did you mean digits-mlp"),
        (["train", "digits-mlp", "data.batchsize=3"], "unknown key data.batchsize"),
        (["train", "digits-mlp", "seed=x"], "seed is 'x'"),
        (["train", "digits-mlp", "algorithms.cutmixx={}"], "unknown key algorithms.cutmixx"),
        (
            ["train", "digits-mlp", "algorithms.label_smoothing.smoothing=7"],
            "smoothing is 7, but must be a number from 0 to 1",
        ),
        (["train", "digits-mlp", "algorithms.label_smoothing.prior=[0.5, 0.5]"], "have K = 10 classes"),
        (["train", "cifar10-resnet20", "data.root=nowhere"], "data.download=true"),
        (["train", "digits-mlp", "device=gpu"], "device is gpu, but PyTorch sees none"),
        (["train", "digits-mlp", "precision=amp_fp16"], "precision=amp_fp16 does not work with device=auto"),
        (["train", "digits-mlp", "model.name=resnet18"], "takes images of 3 channels"),
        (["train", "digits-mlp", "schedule.warmup=1sp"], "Composer refuses the recipe digits-mlp"),
        (["recipes", "--show", "digits"], "did you mean"),
    ],
)
def test_a_mistake_is_one_paragraph_and_status_2(capsys, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    text = failure(capsys, *arguments)
    assert message in text
    assert text.startswith("composer-ls: ")
    assert text.strip().count("\n") == 0


def test_an_unwritable_run_folder_is_told(capsys, tmp_path):
    (tmp_path / "file").write_text("")
    assert "cannot be written" in failure(capsys, "train", "digits-mlp", "--out", str(tmp_path / "file" / "run"))


@pytest.mark.parametrize("arguments", [["--debug", "train", "digits-mpl"], ["train", "digits-mpl", "--debug"]])
def test_debug_shows_the_traceback(arguments):
    with pytest.raises(ValueError, match="did you mean digits-mlp"):
        main(arguments)


def test_version_shows_what_an_issue_needs(capsys):
    versions = dict(line.split() for line in succeed(capsys, "--version").splitlines())
    assert versions["composer_ls"] == composer_ls.__version__
    assert versions["composer"] == importlib.metadata.version("mosaicml")
    assert versions["torch"] == importlib.metadata.version("torch")
    assert list(versions) == ["composer_ls", "composer", "torch", "python"]
