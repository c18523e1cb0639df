"""Runs on a real Ray cluster of two nodes: one dies, folders come back as files, hopeless runs stop."""

import socket
from pathlib import Path

import pytest
from comparison_support import make_run

ray = pytest.importorskip("ray")

from ray.cluster_utils import Cluster

from composer_ls.errors import InputError
from composer_ls.lab.compare import local_engine, ray_engine
from composer_ls.lab.compare.execute import Display, Ended, execute
from composer_ls.lab.compare.local_engine import LocalEngine
from composer_ls.lab.compare.one_run import Status
from composer_ls.lab.compare.planned_runs import make_plan
from composer_ls.lab.compare.progress import progress_of
from composer_ls.lab.compare.ray_engine import RayEngine
from composer_ls.lab.report.comparison_page import build_report
from composer_ls.lab.tune.plan import make_tune_plan
from composer_ls.lab.tune.study import Search

SIZE = {"num_cpus": 1, "object_store_memory": 100 * 2**20}


@pytest.fixture(scope="module")
def cluster():
    """A cluster of two nodes with a core each; the second is ``cluster.second``."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("PYTHONPATH", str(Path(ray_engine.__file__).parents[3]))
        whole = Cluster(initialize_head=True, head_node_args={**SIZE, "include_dashboard": False})
        whole.second = whole.add_node(**SIZE)
        whole.wait_for_nodes()
        yield whole
        whole.shutdown()


def plan(out, *overrides, seeds=1, smoothing="0.1"):
    return make_plan("digits-mlp", ["checkpoints.interval=1ep", *overrides], smoothing, seeds, [], out)


def is_in_the_middle(folder, node):
    """Whether a node is doing the run in this folder, and has saved a checkpoint."""
    try:
        _, process, *_ = (folder / ".lock").read_text().split()
        status = Path(f"/proc/{process}/status").read_text()
    except (OSError, ValueError):
        return False
    (raylet,) = node.all_processes["raylet"]
    return f"PPid:\t{raylet.process.pid}\n" in status and (folder / "checkpoints" / "latest-rank0.pt").exists()


class Watching(Display):
    """Notes what happens, and calls a function twice a second."""

    def __init__(self, each_tick=lambda: None):
        self.tick, self.over = each_tick, []

    def started(self, run):
        pass

    def ended(self, ended):
        self.over.append(ended)


@pytest.mark.slow  # it starts a cluster, and each of its processes imports Composer
def test_a_comparison_whose_node_dies_finishes_with_the_summary_of_the_local_engine(tmp_path, cluster, monkeypatch):
    monkeypatch.setattr(local_engine, "cores", lambda: 2)  # so that a run has one thread, as with --cpus 1
    with LocalEngine(2, "cpu") as engine:
        assert not any(
            one.failed
            for one in execute(
                plan(tmp_path / "local", "duration=20ep", smoothing="0,0.1,0.2").runs, engine, Watching()
            )
        )
    runs = plan(tmp_path / "ray", "duration=20ep", smoothing="0,0.1,0.2").runs

    def kill_the_second_node():
        node = cluster.second
        if node is not None and any(is_in_the_middle(run.folder, node) for run in runs):
            cluster.second = None
            cluster.remove_node(node, allow_graceful=False)

    with RayEngine(tmp_path / "ray", cluster.address, 1, 0, None) as engine:
        engine.check(runs)
        ended = list(execute(runs, engine, Watching(kill_the_second_node)))
    assert cluster.second is None
    assert [one.status for one in ended] == [Status.FINISHED] * 3
    assert sum((run.folder / "log.txt").read_text().count("--- ") for run in runs) == 4  # one was tried again
    for run in runs:
        epochs = [line.split(",")[0] for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
        assert len(epochs) == len(set(epochs)) == 20
    for place in ("local", "ray"):
        build_report(tmp_path / place)
    assert (tmp_path / "ray" / "summary.csv").read_bytes() == (tmp_path / "local" / "summary.csv").read_bytes()
    assert not list((tmp_path / "ray").glob(".ray-*"))


@pytest.mark.slow
def test_on_a_machine_that_does_not_see_the_folder_files_come_back_hopeless_trials_stop_and_failures_are_told(
    tmp_path, cluster
):
    search = Search(make_tune_plan("digits-mlp", ["eval_interval=1ep", "duration=6ep"], "nll", 6, [], 3, tmp_path))
    trials = search.runs()
    for _ in range(5):
        trial = next(trials)
        assert not any(trial.watch({"epoch": epoch, "metrics/validation/CrossEntropy": 0.0}) for epoch in range(1, 6))
        make_run(trial.folder, held_out=5.0)
        search.tell(Ended(trial))
    (good,) = plan(tmp_path / "good", "duration=6ep", "eval_interval=1ep", "checkpoints.keep=true").runs
    (bad,) = plan(tmp_path / "bad", "data.batch_size=5000").runs
    (wrong,) = plan(tmp_path / "wrong", "data.examples=100000").runs
    seen = set()
    with RayEngine(tmp_path, cluster.address, 1, 0, None) as engine:
        engine._mark.unlink()  # by which a machine knows that it sees the folder
        with pytest.raises(InputError, match="data.examples is 100,000"):
            engine.check([wrong])
        runs = [good, next(trials), bad]
        ended = {one.run.folder: one for one in execute(runs, engine, Watching(lambda: seen.add(progress_of(good))))}
    finished, stopped, failed = (ended[run.folder] for run in runs)  # they end in any order
    assert finished.status == Status.FINISHED
    assert {path.name for path in good.folder.iterdir()} == {
        "checkpoints",
        "log.txt",
        "metrics.jsonl",
        "predictions.safetensors",
        "recipe.yaml",
        "result.json",
        "weights.safetensors",
    }
    assert len((good.folder / "metrics.jsonl").read_text().splitlines()) == 6
    assert "composer-ls train digits-mlp" in (good.folder / "log.txt").read_text()
    assert max(seen) == 1.0
    assert stopped.status == Status.STOPPED
    assert not (stopped.run.folder / "checkpoints").exists()
    search.tell(stopped)
    assert search.in_words == "6 trials: 5 finished, 1 stopped early"
    assert failed.status == Status.REFUSED
    assert "data.batch_size=5000 exceeds the 1437 training examples" in failed.reason


def test_what_no_machine_can_do_is_refused_with_what_they_have(tmp_path, cluster):
    with pytest.raises(InputError, match="has --cpus 64 and --gpus 0 \\(they have: 1 CPUs and 0 GPUs.*ask for less"):
        RayEngine(tmp_path / "out", cluster.address, 64, 0, None).__enter__()
    assert not ray.is_initialized()
    assert not (tmp_path / "out").exists()


def test_a_cluster_that_cannot_be_reached_is_named_with_the_way_out(tmp_path, monkeypatch):
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{nobody.getsockname()[1]}"
        with pytest.raises(InputError, match=f"there is no Ray at {address} .*start it with `ray start --head`"):
            RayEngine(tmp_path / "out", address, 1, 0, None).__enter__()

    def nowhere(**_):
        raise ConnectionError("Could not find any running Ray instance.")

    monkeypatch.setattr(ray, "init", nowhere)
    with pytest.raises(
        InputError, match="there is no Ray at auto \\(Could not find any running Ray instance.\\): start it"
    ):
        RayEngine(tmp_path / "out", "auto", 1, 0, None).__enter__()
    assert not (tmp_path / "out").exists()
