"""The launch scripts, with programs of ours in place of the cluster's: who starts again."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]

SRUN = """#!/usr/bin/env bash
while [[ "$1" == --* ]]; do shift; done
"$@"
"""

GCLOUD = """#!/usr/bin/env bash
# A slice that is always there; each training ends with the next status of the list.
echo "$*" >> "$WORK/calls"
case "$*" in
  *describe*) [ -n "${ABSENT:-}" ] || echo READY ;;
  *create*"${TAKEN:-nothing}"*) exit 1 ;;
  *llmcodec_jax.train*)
    status=$(head -n 1 "$WORK/statuses"); sed -i 1d "$WORK/statuses"
    exit "$status" ;;
esac
"""

PYTHON = """#!/usr/bin/env bash
# The real Python, but for the trainer: that ends with the status its process is given.
for word in "$@"; do [ "$word" = llmcodec_jax.train ] && trainer=1; done
if [ -z "${trainer:-}" ]; then exec "$REAL" "$@"; fi
echo "$$ $*" >> "$WORK/calls"
if [ -n "${WAITS:-}" ]; then
  trap 'echo "$$ saved" >> "$WORK/calls"; exit 75' TERM
  for i in $(seq 600); do sleep 0.1; done
fi
statuses=($STATUSES)
exit "${statuses[${JAX_PROCESS_ID:-0}]}"
"""


def program(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text)
    path.chmod(0o755)
    return path


@pytest.fixture
def work(tmp_path, monkeypatch):
    """A folder of programs in front of PATH; what they were called with stands in `calls`."""
    program(tmp_path, "gcloud", GCLOUD)
    program(tmp_path, "python", PYTHON)
    program(
        tmp_path, "srun", '#!/usr/bin/env bash\nwhile [[ "$1" == --* ]]; do shift; done\n"$@"\n'
    )
    program(tmp_path, "scontrol", '#!/usr/bin/env bash\necho "scontrol $*" >> "$WORK/calls"\n')
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("WORK", str(tmp_path))
    monkeypatch.setenv("REAL", sys.executable)
    monkeypatch.setenv("PYTHON", str(tmp_path / "python"))
    (tmp_path / "calls").touch()
    return tmp_path


def run(script: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        ["bash", f"launch/{script}", *arguments],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def calls(work: Path, word: str) -> list[str]:
    return [line for line in (work / "calls").read_text().splitlines() if word in line]


@pytest.mark.parametrize(
    ("statuses", "ends_with", "starts"),
    [
        ([0], 0, 1),
        ([75, 75, 75, 75, 0], 0, 5),  # saved, not finished: goes on however often
        ([255, 1, 0], 0, 3),  # the connection broke, a host failed
        ([1, 75, 1, 1, 1], 1, 4),  # RETRIES failures are enough
        ([2, 0], 2, 1),  # asked for something impossible: again would not help
    ],
)
def test_a_pod_is_started_again_until_the_run_is_finished(work, statuses, ends_with, starts):
    (work / "statuses").write_text("".join(f"{status}\n" for status in statuses))
    result = run(
        *("tpu_pod.sh", "--config", "configs/v6e_16.py", "--workdir", "runs/a b"),
        **{"NAME": "n", "ZONE": "z", "TYPE": "v6e-16", "RETRIES": "2", "PAUSE": "0"},
    )
    assert result.returncode == ends_with, result.stderr
    assert len(calls(work, "llmcodec_jax.train")) == starts
    assert all(r"runs/a\ b" in call for call in calls(work, "llmcodec_jax.train"))


def test_a_pod_goes_on_with_fewer_hosts_where_that_is_what_there_is(work):
    (work / "statuses").write_text("75\n0\n")
    environment = {"NAME": "n", "ZONE": "z", "TYPE": "v6e-16 v6e-8", "PAUSE": "0", "ABSENT": "1"}
    result = run("tpu_pod.sh", "--config", "configs/v6e_16.py", **environment, TAKEN="v6e-16")
    assert result.returncode == 0, result.stderr
    assert "no v6e-16 at the moment" in result.stderr
    assert [call.split("--accelerator-type ")[1].split()[0] for call in calls(work, "create")] == [
        *("v6e-16", "v6e-8"),
        *("v6e-16", "v6e-8"),
    ]


@pytest.mark.parametrize(("status", "again"), [(0, False), (75, True), (1, False), (2, False)])
def test_a_slurm_job_is_requeued_only_when_it_has_saved(work, status, again):
    result = run(
        *("slurm.sbatch", "--config", "configs/base.py"),
        **{"SLURM_SUBMIT_DIR": str(ROOT), "SLURM_JOB_ID": "7", "STATUSES": str(status)},
    )
    assert result.returncode == status, result.stderr
    assert calls(work, "scontrol") == (["scontrol requeue 7"] if again else [])


def test_a_jobset_starts_all_again_at_75_however_often():
    spec = yaml.safe_load((ROOT / "launch" / "gke_jobset.yaml").read_text())["spec"]
    rule = spec["failurePolicy"]["rules"][0]
    assert rule["action"] == "RestartJobSetAndIgnoreMaxRestarts"
    assert rule["onJobFailureReasons"] == ["PodFailurePolicy"]
    job = spec["replicatedJobs"][0]["template"]["spec"]
    pod = job["template"]["spec"]
    assert pod["restartPolicy"] == "Never"  # a podFailurePolicy asks for it
    codes = job["podFailurePolicy"]["rules"][0]
    assert codes["action"] == "FailJob"
    assert codes["onExitCodes"]["values"] == [75]
    assert codes["onExitCodes"]["containerName"] == pod["containers"][0]["name"]


@pytest.mark.parametrize(
    ("statuses", "ends_with"), [("0 0", 0), ("75 75", 75), ("0 3", 3), ("75 1", 1)]
)
def test_processes_on_one_machine_end_as_one(work, statuses, ends_with):
    result = run("local_multiprocess.sh", "2", "--config", "x.py", STATUSES=statuses)
    assert result.returncode == ends_with, result.stderr


def waiting(work: Path) -> tuple[subprocess.Popen, list[int]]:
    """Two trainers that wait -> (their launcher, their process ids)."""
    launcher = subprocess.Popen(
        ["bash", "launch/local_multiprocess.sh", "2", "--config", "x.py"],
        cwd=ROOT,
        env=os.environ | {"WAITS": "1", "STATUSES": "0 0"},
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 60
    while len(calls(work, "llmcodec_jax.train")) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return launcher, [int(call.split()[0]) for call in calls(work, "llmcodec_jax.train")]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_to_the_launcher_reaches_every_trainer(work, number):
    launcher, _ = waiting(work)
    launcher.send_signal(number)
    assert launcher.wait(30) == 75
    assert len(calls(work, "saved")) == 2


LAUNCHED = """
import os, signal, sys, time
sys.path.insert(0, {root!r})
from llmcodec_jax.training import distributed
signal.signal(signal.SIGTERM, lambda *_: (print("asked to stop", flush=True), os._exit(75)))
distributed.end_with_launcher()
print("running", flush=True)
time.sleep(60)
"""


def test_a_trainer_stops_when_its_launcher_was_killed(tmp_path):
    script, log = LAUNCHED.format(root=str(ROOT)), tmp_path / "log"
    command = f'export LLMCODEC_LAUNCHER=$$; "{sys.executable}" -c "$SCRIPT" > {log}; true'
    launcher = subprocess.Popen(["bash", "-c", command], env=os.environ | {"SCRIPT": script})
    deadline = time.monotonic() + 60
    while not log.exists() or "running" not in log.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    launcher.kill()
    launcher.wait()
    while "asked to stop" not in log.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)
