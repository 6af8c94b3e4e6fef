"""Two real processes that must act alike: checkpoints, errors, a peer that hangs or is killed."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.multidevice.test_processes import port

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


def start(what: str, folder: Path, processes: int = 2, devices: int = 1, **environment: str):
    address = f"127.0.0.1:{port()}"
    return [
        subprocess.Popen(
            [sys.executable, "-m", "tests.multidevice.agreement", what, str(folder)],
            cwd=ROOT,
            env=os.environ
            | {
                "JAX_PLATFORMS": "cpu",
                "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
                "JAX_COORDINATOR_ADDRESS": address,
                "JAX_NUM_PROCESSES": str(processes),
                "JAX_PROCESS_ID": str(index),
                "LLMCODEC_PEER_TIMEOUT": "10",
            }
            | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(processes)
    ]


def said(output: str) -> list[str]:
    lines = output.splitlines()
    return [line.removeprefix("said: ") for line in lines if line.startswith("said: ")]


def finish(running, status: int = 0) -> list[list[str]]:
    """What each said."""
    ended = [process.communicate(timeout=300) for process in running]
    for process, (_, told) in zip(running, ended, strict=True):
        assert process.returncode == status, told[-3000:]
    return [said(output) for output, _ in ended]


def test_a_checkpoint_of_two_processes_is_read_by_two_and_by_one(tmp_path):
    assert finish(start("save", tmp_path)) == [["saved"]] * 2
    assert finish(start("restored", tmp_path)) == [["restored 2 2"]] * 2
    assert finish(start("restored", tmp_path, processes=1, devices=4)) == [["restored 2 2"]]


def test_one_process_that_cannot_read_takes_the_other_back_with_it(tmp_path):
    finish(start("save", tmp_path))
    assert finish(start("disagree", tmp_path)) == [["restored 1 1"]] * 2


def test_one_process_that_gives_up_is_heard_by_the_other(tmp_path):
    first, second = finish(start("give_up", tmp_path))
    assert first == ["gave up: process 1: no such clip"]
    assert second == ["gave up: no such clip"]


def test_a_mesh_whose_clips_span_processes_is_refused(tmp_path):
    for told in finish(start("tensor", tmp_path)):
        assert told[0].startswith("refused: mesh.tensor=2 spans processes")
    assert finish(start("tensor", tmp_path, devices=2)) == [["accepted"]] * 2


def test_a_peer_that_hangs_is_waited_for_as_long_as_a_step_may_take(tmp_path):
    begun = time.monotonic()
    running = start("hang", tmp_path, LLMCODEC_STEP_TIMEOUT="5")
    output, told = running[0].communicate(timeout=120)
    assert running[0].returncode == 1
    assert said(output) == ["1128"]
    assert "Timeout" in told
    assert time.monotonic() - begun < 100
    running[1].kill()


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_ends_the_other_in_bounded_time(tmp_path, victim):
    running = start("hang", tmp_path)
    for process in running:
        while "said: 1128" not in process.stdout.readline():
            assert process.poll() is None
    running[victim].kill()
    other = running[1 - victim]
    other.communicate(timeout=120)
    assert other.returncode != 0
