"""Commands that are killed at random moments: the same command ends with the results of an undisturbed one.

With ``--long``, ``train`` is killed 50 times by each signal, and ``compare`` 13 times by each signal to its own process and to a
worker, and ``tune`` 13 times by each. ``--first 100`` draws other moments.
"""

import collections
import itertools
import math
import random
import signal
import time

import psutil
import pytest
from command_support import PATIENCE, Command

pytestmark = [pytest.mark.slow, pytest.mark.timeout(36_000)]

QUICK = ["duration=4ep", "data.batch_size=256", "eval_interval=4ep", "checkpoints.interval=2ba"]  # 24 steps
KILL, TERM = signal.SIGKILL, signal.SIGTERM
IN_A_ROW = 5
"""After so many kills a command may end, and another begins."""


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    """Let every process compute with one thread, so that two runs of a command are equal bit for bit."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        yield


def finished(*arguments):
    """Run a command that must succeed."""
    status, output = Command(*arguments).ended()
    assert status == 0, output


def results(folder):
    """What two runs of a command must agree in: tensors, recipes, metrics, and the names of all files but logs."""
    files = {str(file.relative_to(folder)): file for file in sorted(folder.rglob("*")) if not file.is_dir()}
    found = {name: None for name in files if not name.endswith("log.txt")}
    for name, file in files.items():
        if name.endswith(".safetensors"):
            content = file.read_bytes()
            found[name] = content[8 + int.from_bytes(content[:8], "little") :]  # after names in any order
        elif name.endswith(("recipe.yaml", "metrics.jsonl")):
            found[name] = file.read_text()
    return found


def sent(command, number, begun, choose, span, to_worker=False):
    """Send a signal at a random moment of the training, to the command's process or to one of its workers.

    Args:
        command: The command.
        number: The signal.
        begun: A function that tells whether it has begun to train.
        choose: Draws the moment.
        span: It is within so many seconds after that.
        to_worker: Whether one of its workers gets the signal.

    Returns:
        Whether it was in time, and the command's other processes.

    """
    deadline = time.monotonic() + PATIENCE
    while not begun() and command.status is None and time.monotonic() < deadline:
        time.sleep(0.005)
    time.sleep(choose.uniform(0, span))
    others = []
    try:
        process = psutil.Process(command.pid)
        others = process.children(recursive=True)
        workers = [child for child in others if child.parent() not in (None, process)]  # made by the server of forks
        (choose.choice(workers) if to_worker else process).send_signal(number)
    except (IndexError, psutil.NoSuchProcess):
        return False, others
    return command.status is None or command.status != 0, others


def undisturbed(folder, *arguments):
    """The results of a command, and how many seconds it trained."""
    command, begun, over = Command(*arguments, "--out", folder), math.inf, 0.0
    while command.status is None:
        if [*folder.rglob(".lock")]:
            begun, over = min(begun, time.monotonic()), time.monotonic()
        time.sleep(0.01)
    status, output = command.ended()
    assert status == 0, output
    return results(folder), over - begun


def disturbed(cases, folder, arguments, kinds, runs):
    """Kill a command at a random moment again and again, and compare its results with those of an undisturbed one.

    Args:
        cases: The numbers of the kills of each kind.
        folder: Where.
        arguments: The command.
        kinds: Signals, each with whether a worker gets it.
        runs: How many runs it does.

    Returns:
        How often it ended in which way.

    """
    whole, seconds = undisturbed(folder / "undisturbed", *arguments)
    ways = collections.Counter()
    for number, to_worker in kinds:
        who = f"{number.name} to {'a worker' if to_worker else 'the command'}"
        out = None
        for kill, case in enumerate(cases, 1):
            out = out or folder / f"{number.name}-{to_worker}-{case}"
            command = Command(*arguments, "--out", out)
            choose = random.Random(f"{case} {who}")
            in_time, others = sent(command, number, lambda: [*out.rglob(".lock")], choose, 0.9 * seconds, to_worker)  # noqa: B023
            status, output = command.ended()
            words = f"case {case}, {who}, status {status}: {output}"
            ways[f"{who}: {'status ' + str(status) if in_time else 'too late'}"] += 1
            assert "Traceback" not in output, words
            expected = {0, 1} if to_worker else {-number, 128 + number, 130, 0}
            assert status in (expected if in_time else {0}), words
            assert ("it was killed by" in output) == (status == 1), words
            assert not psutil.wait_procs(others, timeout=30)[1], f"processes are left: {words}"
            if kill % IN_A_ROW == 0 or kill == len(cases) or len([*out.rglob("result.json")]) == runs:
                finished(*arguments, "--out", out)
                assert results(out) == whole, words
                out = None
    return ways


@pytest.fixture
def numbers(request, long):
    """The numbers of the kills of each kind: one, or 50 with ``--long``."""
    one, first = request.config.getoption("--case", None), request.config.getoption("--first", 0)
    return [one] if one is not None else list(range(first, first + (50 if long else 1)))


def in_words(ways):
    """How often something was killed, and how it ended, for the table."""
    kills = sum(ways.values()) - sum(count for way, count in ways.items() if way.endswith("too late"))
    return f"{kills} kills", "the results of an undisturbed one; " + ", ".join(f"{way}: {n}" for way, n in ways.items())


def test_train_killed_at_random_moments_and_repeated(numbers, tmp_path, tried):
    tried(*in_words(disturbed(numbers, tmp_path, ["train", "digits-mlp", *QUICK], [(KILL, False), (TERM, False)], 1)))


def test_compare_or_its_workers_killed_at_random_moments_and_repeated(numbers, tmp_path, long, tried):
    arguments = ["compare", "digits-mlp", *QUICK, "--seeds", "1", "--jobs", "2"]
    kinds = [*itertools.product((KILL, TERM), (False, True))] if long else [(KILL, True), (TERM, False)]
    tried(*in_words(disturbed(numbers[:13], tmp_path, arguments, kinds, 2)))


def test_tune_killed_at_random_moments_and_repeated(numbers, tmp_path, long, tried):
    arguments = ["tune", "digits-mlp", *QUICK, "data.validation=0.2", "--trials", "3", "--jobs", "1"]
    kinds = [(KILL, False), (TERM, False)] if long else [(KILL, False)]
    tried(*in_words(disturbed(numbers[:13], tmp_path, arguments, kinds, 3)))
