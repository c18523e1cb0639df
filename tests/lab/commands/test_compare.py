"""compare and report on the command line, end to end."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from comparison_support import make_comparison, make_run

from composer_ls.lab.commands.cli import main
from composer_ls.lab.compare import execute as execute_module
from composer_ls.lab.compare import local_engine, one_run
from composer_ls.lab.compare.execute import Ended
from composer_ls.lab.compare.local_engine import default_jobs
from composer_ls.lab.compare.one_run import Order, Status
from composer_ls.lab.compare.planned_runs import make_plan
from composer_ls.lab.recipe.reading import load_recipe
from composer_ls.lab.run_folder.claim import claimant

QUICK = ["duration=4ep", "checkpoints.interval=1ep"]
PATIENCE = 400  # seconds until a test gives up


def run(*arguments):
    """The exit status of a command."""
    try:
        main(list(arguments))
    except SystemExit as stop:
        return stop.code or 0
    return 0


def test_report_prints_the_table_the_verdicts_and_what_was_left_out(tmp_path, capsys):
    make_comparison(tmp_path, (0.0, 0.1), 5)
    (make_run(tmp_path / "broken", 0.2) / "result.json").unlink()
    assert run("report", str(tmp_path)) == 0
    printed = capsys.readouterr().out
    assert "Smoothing 0.1 against none" in printed
    assert "accuracy +5.42 points [4.45, 6.38], 5 seeds: helps" in printed
    assert "Warning: ECE gets worse at 0.1" in printed
    assert f"left out: {tmp_path / 'broken'}: it has begun, but not finished" in printed
    assert (tmp_path / "report.html").is_file()
    assert (tmp_path / "summary.csv").is_file()


def test_report_ends_with_what_to_do_for_the_purpose_that_is_named(tmp_path, capsys):
    make_comparison(tmp_path, (0.0, 0.1), 5)
    assert run("report", str(tmp_path)) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert printed.index("Smoothing 0.1 against none") < printed.index("What to do")
    assert "Use smoothing 0.1 for accuracy: +5.42 points [4.45, 6.38], 5 seeds. It makes" in printed
    assert run("report", str(tmp_path), "--for", "ece") == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "Nothing is shown to help ECE: keep what you have, and avoid 0.1, which hurts it." in printed
    assert "To calibrate the network without smoothing, divide its logits by" in printed


def test_compare_of_what_is_finished_runs_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(local_engine, "_start", lambda _: pytest.fail("something was run"))
    for planned in make_plan("digits-mlp", [], "0,0.1", 2, [], tmp_path).runs:
        make_run(planned.folder, planned.recipe.smoothing, planned.recipe.seed)
    assert run("compare", "digits-mlp", "--smoothing", "0.1,0", "--seeds", "2", "--out", str(tmp_path)) == 0
    printed = capsys.readouterr()
    assert "--smoothing 0.1,0 is read as 0,0.1, sorted and without duplicates" in printed.err
    assert "all runs are already finished" in printed.err
    assert "2 seeds" in printed.out


def test_list_prints_a_command_a_run_and_does_nothing(tmp_path, capsys):
    out = tmp_path / "out"
    assert run("compare", "digits-mlp", "duration=1ep", "--seeds", "2", "--out", str(out), "--list") == 0
    lines = capsys.readouterr().out.splitlines()
    start = "composer-ls train digits-mlp duration=1ep algorithms.label_smoothing.smoothing"
    assert lines == [
        f"{start}={factor} seed={seed} --out {out}/smoothing-{factor}/seed-{seed}"
        for seed in (17, 18)
        for factor in ("0", "0.1")
    ]
    assert not out.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["compare", "digits-mpl"], "did you mean digits-mlp"),
        (["compare", "digits-mlp", "--smoothing", "0,2"], "--smoothing has '2'"),
        (["compare", "digits-mlp", "--jobs", "0"], "--jobs is 0"),
        (["compare", "digits-mlp", "--engine", "spark"], "--engine is 'spark', but must be local or ray"),
        (["compare", "digits-mlp", "--address", "auto"], "--address auto is for Ray: add --engine ray"),
        (["compare", "digits-mlp", "--cpus", "2"], "--cpus 2.0 is for Ray"),
        (["compare", "digits-mlp", "--engine", "ray", "--cpus", "0"], "--cpus is 0, but must be more than 0"),
        (["compare", "digits-mlp", "--engine", "ray", "--gpus", "-1"], "--gpus is -1, but must be at least 0"),
        (["compare", "digits-mlp", "device=gpu", "--engine", "ray"], "runs ask Ray for no GPU: add --gpus 1"),
        (["compare", "digits-mlp", "--for", "bleu"], "--for is 'bleu', but must be accuracy, nll"),
        (["compare", "camvid-unet", "--for", "aurc"], "--for is 'aurc', but must be mean_iou, accuracy, nll or ece"),
        (["compare", "digits-mlp", "--vary", "algorithms.cutmixx=[{}]", "--list"], "unknown key algorithms.cutmixx"),
        (["report", "no/such/folder"], "there is no folder"),
        (["report", "."], "there are no finished runs in"),
    ],
)
def test_a_mistake_is_one_paragraph_and_status_2(capsys, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert run(*arguments) == 2
    text = capsys.readouterr().err
    assert text.startswith("composer-ls: ")
    assert message in text
    assert text.strip().count("\n") == 0
    assert list(tmp_path.iterdir()) == []


def test_without_ray_the_package_to_install_is_named(capsys, monkeypatch):
    monkeypatch.setattr("composer_ls.lab.commands.engines.find_spec", lambda _: None)
    assert run("compare", "digits-mlp", "--engine", "ray") == 2
    assert "--engine ray needs Ray: pip install 'composer_ls[ray]'" in capsys.readouterr().err


def test_a_report_that_cannot_be_written_is_told(tmp_path, capsys):
    make_comparison(tmp_path, (0.0, 0.1), 1)
    (tmp_path / "summary.csv").mkdir()
    assert run("report", str(tmp_path)) == 2
    assert "summary.csv cannot be written" in capsys.readouterr().err


def test_as_many_jobs_as_cores_or_gpus_but_not_more_than_runs(monkeypatch):
    monkeypatch.setattr(local_engine, "cores", lambda: 32)
    assert default_jobs("cpu", 100) == 8
    assert default_jobs("cpu", 3) == 3
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert default_jobs("auto", 100) == 2
    assert default_jobs("cpu", 100) == 8


def comparison(folder):
    """A compare command with four runs, in its own process."""
    options = ["--seeds", "2", "--jobs", "1", "--out", str(folder)]
    command = [sys.executable, "-m", "composer_ls", "compare", "digits-mlp", *QUICK, *options]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )


def until(condition, seconds=PATIENCE):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.slow
def test_a_comparison_that_is_killed_and_interrupted_ends_with_the_summary_of_an_undisturbed_one(tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"

    def finished():
        return {path: path.stat().st_mtime_ns for path in broken.rglob("result.json")}

    def begun():
        return [path.parent for path in broken.rglob("recipe.yaml") if not (path.parent / "result.json").exists()]

    killed = comparison(broken)
    until(lambda: finished() and list(broken.rglob("latest-rank0.pt")))
    killed.kill()
    killed.communicate()
    until(lambda: not any(map(claimant, begun())), 20)  # its processes have not outlived it
    assert begun()
    first = finished()

    interrupted = comparison(broken)
    until(lambda: any(map(claimant, begun())))
    interrupted.send_signal(signal.SIGINT)
    printed, _ = interrupted.communicate(timeout=PATIENCE)
    assert interrupted.returncode == 130
    assert "stopped; run the same command to continue" in printed
    assert "Traceback" not in printed
    assert not any(map(claimant, begun()))
    left = 4 - len(finished())
    assert left >= 1

    undisturbed, resumed = comparison(whole), comparison(broken)
    texts = [process.communicate(timeout=PATIENCE)[0] for process in (undisturbed, resumed)]
    assert [process.returncode for process in (undisturbed, resumed)] == [0, 0]
    assert f"{left} runs to do, {4 - left} already finished" in texts[1]
    assert first.items() <= finished().items()  # nothing was run again
    assert (broken / "summary.csv").read_bytes() == (whole / "summary.csv").read_bytes()
    assert (broken / "commands.txt").read_text().count("\n") == 1
    for log in broken.rglob("log.txt"):
        assert "Traceback" not in log.read_text()


@pytest.mark.slow
def test_a_run_that_fails_keeps_its_log_and_does_not_stop_the_rest(tmp_path, capfd):
    bad = tmp_path / "smoothing-0" / "seed-17"
    bad.mkdir(parents=True)
    (bad / "checkpoints").mkdir()
    (bad / "checkpoints" / "mine.pt").write_text("")
    options = ["duration=1ep", "--seeds", "1", "--out", str(tmp_path), "--jobs", "1"]
    assert run("compare", "digits-mlp", *options) == 1
    printed = capfd.readouterr()
    assert "[1/2] failed: smoothing 0, seed 17:" in printed.err
    assert "[2/2] finished: smoothing 0.1, seed 17" in printed.err
    assert "1 of 2 runs failed: " in printed.err
    assert "checkpoints is not from a run of composer-ls" in printed.err
    assert str(bad / "log.txt") in printed.err
    assert "checkpoints is not from" in (bad / "log.txt").read_text()
    assert "There is nothing to compare with: no run without smoothing is finished" in " ".join(printed.out.split())
    assert (tmp_path / "report.html").is_file()


def test_a_run_that_diverged_fails_with_a_sentence_in_its_log(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "composer_ls.lab.training.train.train",
        lambda *_, **__: {"diverged": True, "divergence": "at step 3 its loss was nan"},
    )
    monkeypatch.setattr(one_run.signal, "signal", lambda *_: None)
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    order = Order(load_recipe("digits-mlp").model_dump(), str(tmp_path), ("train", "digits-mlp"))
    assert one_run.carry_out(order, 1) == Status.FAILED
    assert "composer-ls: it diverged: at step 3 its loss was nan; use a smaller" in (tmp_path / "log.txt").read_text()


def test_a_run_that_another_process_does_fails_with_its_name_and_what_to_do(tmp_path):
    (planned,) = make_plan("digits-mlp", [], "0.1", 1, [], tmp_path).runs
    code = f"""if True:
        import sys, pathlib
        from composer_ls.lab.run_folder.claim import claimed
        with claimed(pathlib.Path({str(planned.folder)!r})):
            print("claimed", flush=True)
            sys.stdin.read()
    """
    other = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ
    )
    try:
        assert other.stdout.readline() == "claimed\n"
        ended = execute_module.how_it_ended(planned, Status.BUSY)
    finally:
        other.communicate("")
    assert ended.failed
    assert ended.reason.startswith(f"it is being done by process {other.pid} on ")
    assert ended.reason.endswith("run the same command again when that is over")


def test_overwrite_does_finished_runs_afresh(tmp_path, capsys, monkeypatch):
    """What runs left is deleted, but only after all else was found in order."""
    plan = make_plan("digits-mlp", [], "0,0.1", 3, [], tmp_path)
    for planned in plan.runs:
        make_run(planned.folder, planned.recipe.smoothing, planned.recipe.seed)
    done = []

    def fake(todo, engine, display):
        done.extend(todo)
        assert not list(tmp_path.rglob("result.json"))
        for planned in todo:
            make_run(planned.folder, planned.recipe.smoothing, planned.recipe.seed)
        return [Ended(planned) for planned in todo]

    monkeypatch.setattr(execute_module, "execute", fake)
    command = ["compare", "digits-mlp", "--seeds", "3", "--out", str(tmp_path)]
    assert run(*command) == 0
    assert done == []
    assert run(*command, "--overwrite", "--smoothing", "0,7") != 0
    assert len(list(tmp_path.rglob("result.json"))) == 6
    assert run(*command, "--overwrite") == 0
    assert len(done) == 6
    assert "all runs were found finished" not in capsys.readouterr().err.splitlines()[-1]


def test_the_home_folder_is_meant_by_a_tilde_that_the_shell_left(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert run("compare", "digits-mlp", "--seeds", "1", "--out=~/x", "--list") == 0
    assert f"--out {tmp_path}/x/smoothing-0/seed-17" in capsys.readouterr().out
    make_comparison(tmp_path / "runs", (0.0, 0.1), 1)
    assert run("report", "~/runs") == 0


@pytest.mark.parametrize("command", [(), ("train",), ("compare",), ("bench", "loss")])
def test_h_shows_the_help(command, capsys):
    assert run(*command, "-h") == 0
    assert "Usage" in capsys.readouterr().out
