"""Progress display: one line per event, or bars, with the time left."""

import io
from pathlib import Path

import pytest
from comparison_support import make_run
from rich.console import Console

from composer_ls.lab.compare.execute import Ended
from composer_ls.lab.compare.one_run import Status
from composer_ls.lab.compare.planned_runs import PlannedRun
from composer_ls.lab.compare.progress import LiveDisplay, PlainDisplay, progress_of, time_left
from composer_ls.lab.recipe.reading import load_recipe


def planned(folder=Path("nowhere"), *overrides, name="smoothing 0, seed 17"):
    return PlannedRun(name, load_recipe("digits-mlp", overrides), (), folder)


def console(terminal=False):
    return Console(file=io.StringIO(), force_terminal=terminal, width=100, color_system=None)


def test_the_progress_of_a_run_is_read_from_its_last_line(tmp_path):
    folder = make_run(tmp_path / "run")
    assert progress_of(planned(folder)) == 1
    assert progress_of(planned(folder, "duration=60ep")) == 0.5
    assert progress_of(planned(folder, "duration=6600ba")) == 0.1
    assert progress_of(planned(folder, "duration=9000sp")) == 0  # the lines do not count samples
    lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    (folder / "metrics.jsonl").write_text("".join(lines[:3]))
    assert progress_of(planned(folder)) == 0.1
    (folder / "metrics.jsonl").write_text("".join(lines[:3]) + '{"epo')
    assert progress_of(planned(folder)) == 0
    assert progress_of(planned(tmp_path / "gone")) == 0


@pytest.mark.parametrize(
    ("done", "total", "seconds", "words"),
    [
        (0, 10, 5, ""),
        (5, 10, 20, "about 20 s left"),
        (9.99, 10, 20, "about 1 s left"),
        (1, 3, 60, "about 2 min left"),
        (1, 13, 3600, "about 12 h left"),
    ],
)
def test_the_time_left_is_in_words(done, total, seconds, words):
    assert time_left(done, total, seconds) == words


def test_without_a_terminal_each_event_is_a_line():
    out = console()
    display = PlainDisplay(out, total=3, found=2)
    run = planned(Path("out") / "run")
    display.started(run)
    display.tick()
    display.ended(Ended(run))
    display.ended(Ended(run, Status.FAILED, "OutOfMemoryError: 3 GiB"))
    display.ended(Ended(run, Status.STOPPED))
    lines = out.file.getvalue().splitlines()
    assert lines[0] == "3 runs to do, 2 already finished"
    assert lines[1].startswith("[1/3] finished: smoothing 0, seed 17; about ")
    assert lines[2].startswith("[2/3] failed: smoothing 0, seed 17: OutOfMemoryError: 3 GiB (out/run/log.txt)")
    assert lines[3:] == ["[3/3] stopped early: smoothing 0, seed 17"]


def test_on_a_terminal_there_are_bars_that_go_away(tmp_path):
    out = console(terminal=True)
    run, other = planned(make_run(tmp_path / "run"), "duration=60ep"), planned(tmp_path / "x", name="another")
    with LiveDisplay(out, total=3, found=1) as display:
        display.started(run)
        display.started(other)
        display.tick()
        display.bars.refresh()
        during = out.file.getvalue()
        display.ended(Ended(run))
        display.ended(Ended(other, Status.FAILED, "it was killed by SIGKILL"))
        display.tick()
        display.bars.refresh()
    after = out.file.getvalue()
    assert "1 of 4 runs are already finished" in during
    assert "smoothing 0, seed 17" in during
    assert "50%" in during
    assert "0 of 3" in during
    assert "failed: another: it was killed by SIGKILL" in after
    assert "2 of 3, 1 failed" in after
    assert after.count("\x1b[?25l") == after.count("\x1b[?25h") == 1  # the cursor is back
