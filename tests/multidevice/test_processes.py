"""Real processes on this machine, joined by launch/local_multiprocess.sh: kill, resume, resize."""

import json
import os
import signal
import socket
import subprocess
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


def start(processes: int, *given: str):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = ["bash", "launch/local_multiprocess.sh", str(processes), *given]
    environment = os.environ | {"PORT": port, "XLA_FLAGS": ""}
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True, process_group=0
    )


def finish(running) -> None:
    _, errors = running.communicate(timeout=900)
    assert running.returncode == 0, errors[-3000:]


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


def test_a_killed_peer_ends_the_job_and_resuming_continues_it(tmp_path, tiny_lm, speech):
    """Undisturbed on two; killed on two and resumed on two; from four's checkpoint on two."""
    whole = tmp_path / "whole"
    finish(start(2, *arguments(tiny_lm, speech, whole)))
    assert sorted(rows(whole)) == list(range(10))
    for first in (2, 4):
        workdir = tmp_path / f"from-{first}"
        given = arguments(tiny_lm, speech, workdir)
        running = start(first, *given)
        deadline = time.monotonic() + 600
        while max(rows(workdir), default=0) < 5:
            assert running.poll() is None, running.stderr.read()[-3000:]
            assert time.monotonic() < deadline
            time.sleep(0.2)
        children = Path(f"/proc/{running.pid}/task/{running.pid}/children").read_text().split()
        trainers = [p for p in children if b"llmcodec" in Path(f"/proc/{p}/cmdline").read_bytes()]
        os.kill(int(trainers[-1]), signal.SIGKILL)
        running.communicate(timeout=120)  # bounded: the others do not wait for it
        assert running.returncode != 0
        finish(start(2, *given))
        same_trajectory(rows(whole), rows(workdir))


def test_sigterm_saves_on_all_processes(tmp_path, tiny_lm, speech):
    given = arguments(tiny_lm, speech, tmp_path)
    running = start(2, *given)
    while max(rows(tmp_path), default=0) < 1:
        assert running.poll() is None, running.stderr.read()[-3000:]
        time.sleep(0.2)
    os.kill(running.pid, signal.SIGTERM)
    _, errors = running.communicate(timeout=120)
    assert running.returncode == 0, errors[-3000:]
    assert any((tmp_path / "checkpoints").iterdir())
    assert "the same command resumes" in errors
