"""A real Ray cluster on this machine: a worker, a node and the driver die, and nothing is lost."""

import os
import subprocess
import time

import psutil
import pytest

pytest.importorskip("ray", reason="--engine ray needs Ray: pip install 'llmcodec-jax[ray]'")

from tests.corpus.conftest import write_clips
from tests.corpus.test_tokenise import ROOT, check_table, command

BAD = tuple(range(7, 3000, 211))
ENVIRONMENT = os.environ | {
    "RAY_USAGE_STATS_ENABLED": "0",
    "PYTHONPATH": str(ROOT),
    "JAX_PLATFORMS": "cpu",
    "RAY_worker_niceness": "0",  # else whatever else runs here goes first
}


@pytest.fixture
def cluster(monkeypatch):
    """A head that runs nothing, and two nodes of one core each."""
    for name in ("RAY_USAGE_STATS_ENABLED", "RAY_worker_niceness", "PYTHONPATH", "JAX_PLATFORMS"):
        monkeypatch.setenv(name, ENVIRONMENT[name])
    from ray.cluster_utils import Cluster

    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "dashboard_port": None})
    for _ in range(2):
        nodes.add_node(num_cpus=1)
    yield nodes
    nodes.shutdown()


def wait_for(condition, seconds=600):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def ray_workers(word: str) -> list[psutil.Process]:
    """This cluster's worker processes that are at the task or actor of a name."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        if word in " ".join(process.info["cmdline"] or []) and process.is_running():
            found.append(process)
    return found


@pytest.mark.slow
def test_worker_node_and_driver_die_and_nothing_is_lost(cluster, tmp_path):
    source, out = write_clips(tmp_path / "clips", 3000, BAD), tmp_path / "out"
    options = ("--engine", "ray", "--address", cluster.address, "--workers", 2)
    line = command("mini", source, out, *options, "--clips-per-shard", 50)
    driver = subprocess.Popen(line, cwd=ROOT, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True)

    def made() -> int:
        return len(list(out.glob("*.parquet")))

    def one_more() -> None:
        enough = made() + 2
        wait_for(lambda: made() >= enough or driver.poll() is not None)
        assert driver.poll() is None, driver.stderr.read()

    one_more()
    victims = ray_workers("ray::MapWorker") or ray_workers("ray::_MapWorker")
    assert victims, "no actor was found to kill"
    victims[0].kill()
    one_more()
    cluster.remove_node(
        next(n for n in cluster.list_all_nodes() if not n.is_head()), allow_graceful=False
    )
    cluster.add_node(num_cpus=1)
    one_more()
    driver.kill()
    driver.wait()
    stamps = {path: path.stat().st_mtime_ns for path in out.glob("*.parquet")}
    assert len(stamps) < 60
    time.sleep(1)
    again = subprocess.run(
        line, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=900
    )
    assert again.returncode == 1, again.stderr
    assert f"encoded: {3000 - len(BAD)} clips" in again.stdout
    kept = {path: path.stat().st_mtime_ns for path in stamps}
    assert sum(kept[path] == stamps[path] for path in stamps) >= len(stamps) - 2
    check_table(out, "mini", source, BAD, sample=100)


@pytest.mark.slow
def test_the_drivers_memory_does_not_grow_with_the_corpus(monkeypatch):
    """100,000 item rows, with made-up clips: only their sums are kept."""
    import tracemalloc

    import numpy as np

    from llmcodec_jax.corpus.plan import Plan
    from llmcodec_jax.corpus.shard import Part
    from llmcodec_jax.corpus.summary import Totals, follow

    plan = Plan("folder:x", 100_000, "0", 10, "d", "auv", 16_000, 320, 1024, 1)
    rng = np.random.default_rng(0)

    def parts():
        for number in range(plan.shards):
            if number == 100:
                tracemalloc.start()
                parts.early = tracemalloc.get_traced_memory()[0]
            yield Part(number, 10, 0, float(rng.uniform(10, 100)), np.ones(1024, np.int64))

    totals = Totals(plan)
    follow(parts(), plan, totals)
    late = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert totals.clips == 100_000
    assert late - parts.early < 1 << 20
