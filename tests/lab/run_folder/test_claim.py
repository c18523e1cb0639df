"""One process per run folder: another is refused, and a claim ends with its process."""

import os
import signal
import stat
import subprocess
import sys

import pytest

from composer_ls.errors import RunFolderBusyError, RunFolderError
from composer_ls.lab.run_folder.claim import claimant, claimed

HOLD = """
import sys, time
from pathlib import Path
from composer_ls.lab.run_folder.claim import claimed
with claimed(Path(sys.argv[1])):
    print("mine", flush=True)
    time.sleep(100)
"""


@pytest.fixture
def other(tmp_path):
    """Another process that has claimed ``tmp_path``."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "mine\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_a_claimed_folder_is_refused_and_who_has_it_is_named(tmp_path, other):
    words = f"process {other.pid} on "
    assert claimant(tmp_path).startswith(words)
    with pytest.raises(RunFolderBusyError, match=f"is in use by {words}.*--out DIR"), claimed(tmp_path):
        pass
    assert other.poll() is None
    assert claimant(tmp_path).startswith(words)


def test_a_claim_ends_with_a_process_that_is_killed(tmp_path, other):
    other.send_signal(signal.SIGKILL)
    other.wait()
    assert (tmp_path / ".lock").exists()
    assert claimant(tmp_path) is None
    with claimed(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_group_that_shares_a_folder_can_take_over_what_one_of_it_has_left(tmp_path):
    before = os.umask(0o002)
    try:
        with claimed(tmp_path):
            assert stat.S_IMODE((tmp_path / ".lock").stat().st_mode) == 0o664
    finally:
        os.umask(before)


def test_a_claim_leaves_nothing_behind_even_on_an_error(tmp_path):
    with pytest.raises(KeyError), claimed(tmp_path / "run"):
        raise KeyError
    assert not (tmp_path / "run").exists()
    assert claimant(tmp_path / "run") is None


def test_a_folder_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError, match="cannot be written .*--out DIR"), claimed(tmp_path / "file" / "run"):
        pass


def test_a_folder_that_was_made_for_a_claim_and_stays_empty_goes_with_it(tmp_path):
    with pytest.raises(ZeroDivisionError), claimed(tmp_path / "runs" / "new"):
        raise ZeroDivisionError
    assert not list(tmp_path.iterdir())
    (tmp_path / "own").mkdir()
    with claimed(tmp_path / "own"), claimed(tmp_path / "runs" / "kept"):
        (tmp_path / "runs" / "kept" / "result.json").touch()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["own", "runs"]
