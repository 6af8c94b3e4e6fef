"""Real processes on this machine, joined by launch/local_multiprocess.sh: kill, resume, resize."""

import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.slow


def arguments(tiny_lm, speech, workdir) -> list[str]:
    """configs/base.py, shrunk as in tests/end_to_end."""
    fields = {
        "total_steps": 10,
        "init": "",
        "codec.width": 64,
        "codec.encoder_layers": 1,
        "codec.decoder_layers": 1,
        "codec.codebook_size": 64,
        "codec.dtype": "float32",
        "discriminators.periods": "(2,)",
        "discriminators.period_channels": "(4,8)",
        "discriminators.scales": 1,
        "discriminators.scale_channels": "(4,8)",
        "discriminators.dtype": "float32",
        "lm.path": tiny_lm,
        "lm.begin_token": 0,
        "lm.horizons": 2,
        "lm.bank": 4,
        "lm.dtype": "float32",
        # Its gradient magnifies rounding, which differs with the number of rows per process.
        "weights.multi_resolution_stft": 0.0,
        "weights.complex_stft": 0.0,
        "data.sources": f"('librispeech:{speech}',)",
        "data.batch_size": 4,
        "data.eval_batch_size": 4,
        "data.eval_fraction": 0.2,
        "data.clip_seconds": 1.0,
        "data.max_text": 8,
        "log.every": 1,
        "log.eval_every": 10,
        "log.eval_clips": 3,
        "log.listen": 1,
        "log.checkpoint_every": 3,
        "log.tensorboard": False,
    }
    given = [f"--config.{name}={value}" for name, value in fields.items()]
    return ["--config", "configs/base.py", "--workdir", str(workdir), *given]


def port() -> str:
    """A free one; between here and its use nobody else is expected to want it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


@dataclasses.dataclass
class Running:
    """A job or a process of one, with its log in a file: a full pipe would stop it."""

    process: subprocess.Popen
    log: Path

    def said(self) -> str:
        return self.log.read_text(errors="replace")

    def ended(self, seconds: float) -> int:
        """Its exit status; fails, and ends it and its children, if it takes longer."""
        try:
            return self.process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            raise AssertionError(
                f"still running after {seconds} s: {self.said()[-3000:]}"
            ) from None


def launch(command: list[str], log: Path, **environment: str) -> Running:
    log.parent.mkdir(parents=True, exist_ok=True)
    environment = os.environ | {"PYTHON": sys.executable, "XLA_FLAGS": ""} | environment
    with log.open("ab") as out:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=out, stderr=out, process_group=0
        )
    return Running(process, log)


def start(processes: int, workdir: Path, *given: str) -> Running:
    command = ["bash", "launch/local_multiprocess.sh", str(processes), *given]
    return launch(command, workdir.with_suffix(".log"), PORT=port())


def finish(running: Running) -> None:
    assert running.ended(900) == 0, running.said()[-3000:]


def reached(running: Running, workdir: Path, step: int, seconds: float = 900) -> None:
    """Waits until the run has written the row of a step."""
    deadline = time.monotonic() + seconds
    while max(rows(workdir), default=-1) < step:
        assert running.process.poll() is None, running.said()[-3000:]
        assert time.monotonic() < deadline, running.said()[-3000:]
        time.sleep(0.2)


def trainers(running: Running) -> list[int]:
    """The processes that a launch script started."""
    pid = running.process.pid
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(p) for p in children if b"llmcodec" in Path(f"/proc/{p}/cmdline").read_bytes()]


def rows(workdir) -> dict[int, dict]:
    path = Path(workdir) / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    found = [json.loads(line) for line in lines if line.endswith("}")]
    return {row["step"]: row for row in found if "loss/mel" in row}


def same_trajectory(one, other) -> None:
    assert one.keys() == other.keys()
    for step in one:
        for name, value in one[step].items():
            if name.startswith(("loss/", "accuracy/", "codes/", "schedule/")):
                np.testing.assert_allclose(
                    value, other[step][name], rtol=1e-4, atol=1e-5, err_msg=f"{step} {name}"
                )


@pytest.fixture(scope="module")
def whole(tmp_path_factory, tiny_lm, speech) -> dict[int, dict]:
    """The rows of an undisturbed run on two processes."""
    workdir = tmp_path_factory.mktemp("whole") / "run"
    finish(start(2, workdir, *arguments(tiny_lm, speech, workdir)))
    assert sorted(rows(workdir)) == list(range(10))
    return rows(workdir)


@pytest.mark.parametrize("processes", [2, 4])
def test_resuming_on_two_after_a_kill_continues_the_run(
    processes, whole, tmp_path, tiny_lm, speech
):
    workdir = tmp_path / "run"
    given = arguments(tiny_lm, speech, workdir)
    running = start(processes, workdir, *given)
    reached(running, workdir, 5)
    os.kill(trainers(running)[-1], signal.SIGKILL)
    assert running.ended(60) != 0  # the script ends the others
    finish(start(2, workdir, *given))
    assert "resumed from" in running.said()
    same_trajectory(whole, rows(workdir))


def test_without_its_peer_a_process_ends_in_bounded_time(tmp_path, tiny_lm, speech):
    """Two trainers with nobody to watch over them, as on two hosts."""
    workdir, address = tmp_path / "run", f"127.0.0.1:{port()}"
    given = arguments(tiny_lm, speech, workdir)
    both = [
        launch(
            [sys.executable, "-m", "llmcodec_jax.train", *given],
            tmp_path / f"{index}.log",
            JAX_PLATFORMS="cpu",
            JAX_COORDINATOR_ADDRESS=address,
            JAX_NUM_PROCESSES="2",
            JAX_PROCESS_ID=str(index),
            LLMCODEC_PEER_TIMEOUT="10",
        )
        for index in (0, 1)
    ]
    reached(both[0], workdir, 2)
    both[1].process.kill()
    assert both[0].ended(60) != 0


def test_sigterm_saves_on_all_processes(tmp_path, tiny_lm, speech):
    workdir = tmp_path / "run"
    running = start(2, workdir, *arguments(tiny_lm, speech, workdir))
    reached(running, workdir, 1)
    os.kill(running.process.pid, signal.SIGTERM)
    # Between two steps, that is: the next phase's compilation may come first.
    assert running.ended(600) == 75, running.said()[-3000:]
    assert any((workdir / "checkpoints").iterdir())
    assert running.said().count("the same command resumes") == 2
