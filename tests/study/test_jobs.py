"""Rows side by side: each on its own cores, all finished, failures named, signals answered."""

import functools
import os
import signal
import threading
import time
from pathlib import Path

import pytest

from llmcodec_jax.errors import UserError
from llmcodec_jax.ops.cores import available
from llmcodec_jax.study import jobs
from llmcodec_jax.study.jobs import Row


def note(folder: Path, row: Row) -> None:
    """A row's work: what it saw, in a file of its own."""
    print(f"at work on {row}")
    if row.name == "bad":
        raise UserError(f"{row} cannot be")
    cores = ",".join(map(str, available()))
    (folder / str(row)).write_text(f"{os.getpid()} {cores} {os.environ['NPROC']}")


def stand(folder: Path, row: Row) -> None:
    """Works until it is asked to stop, and saves."""
    try:
        (folder / str(row)).touch()
        time.sleep(600)
    finally:
        (folder / f"{row}.saved").touch()


def test_rows_have_processes_and_cores_of_their_own(tmp_path):
    rows = [Row("bad", 0), Row("a", 0), Row("a", 1)]
    work = functools.partial(note, tmp_path)
    done: list[Row] = []
    with pytest.raises(jobs.RowError, match=r"bad-0: error: bad-0 cannot be \(.*bad-0.log\)"):
        done.extend(jobs.finished(work, rows, 2, tmp_path / "logs"))
    assert sorted(done) == rows[1:]
    seen = [(tmp_path / str(row)).read_text().split() for row in done]
    assert len({pid for pid, *_ in seen} - {str(os.getpid())}) == 2
    mine = available()
    shares = [",".join(map(str, mine[slot::2])) for slot in range(min(2, len(mine)))]
    for _, cores, threads in seen:
        assert cores in shares
        assert int(threads) == len(cores.split(","))
    assert "at work on a-1" in (tmp_path / "logs" / "a-1.log").read_text()


def test_one_job_is_a_loop_here(tmp_path, monkeypatch):
    monkeypatch.setenv("NPROC", "0")
    rows = [Row("a", 1), Row("a", 0)]
    assert list(jobs.finished(functools.partial(note, tmp_path), rows, 1, tmp_path)) == rows
    assert (tmp_path / "a-0").read_text().startswith(f"{os.getpid()} ")


def test_a_signal_lets_the_rows_at_work_save(tmp_path):
    rows = [Row("a", 0), Row("a", 1)]

    def interrupt():
        while not (tmp_path / "a-0").exists():
            time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(jobs.InterruptedRunError):
        list(jobs.finished(functools.partial(stand, tmp_path), rows, 2, tmp_path / "logs"))
    started = {path.name for path in tmp_path.glob("a-?")}
    assert {f"{name}.saved" for name in started} == {p.name for p in tmp_path.glob("*.saved")}
