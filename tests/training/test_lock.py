"""One run at a time in a folder: refused while the holder lives, taken over once it is gone."""

import contextlib
import errno
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from llmcodec_jax.training import lock
from llmcodec_jax.training.lock import FolderLock, LockedError

HOLD = """
import sys, time
sys.path.insert(0, {root!r})
from llmcodec_jax.training.lock import FolderLock
with FolderLock({folder!r}):
    print("held", flush=True)
    time.sleep(60)
"""


@contextlib.contextmanager
def holder(folder) -> Iterator[subprocess.Popen]:
    script = HOLD.format(root=str(Path(__file__).parents[2]), folder=str(folder))
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_second_process_is_refused_by_name_and_the_first_goes_on(tmp_path):
    with holder(tmp_path) as first:
        before = (tmp_path / lock.NAME).read_text()
        with (
            pytest.raises(LockedError, match=rf"in use by process {first.pid} on "),
            FolderLock(tmp_path),
        ):
            pass
        assert (tmp_path / lock.NAME).read_text() == before


@pytest.mark.parametrize("reaped", [True, False])
def test_a_killed_holder_is_recognised_at_once(tmp_path, reaped):
    with holder(tmp_path) as first:
        first.kill()
        if reaped:
            first.wait()
        else:
            time.sleep(0.2)  # a zombie still has its process id
        begun = time.monotonic()
        with FolderLock(tmp_path):
            assert json.loads((tmp_path / lock.NAME).read_text())["pid"] == os.getpid()
        assert time.monotonic() - begun < 5
        assert not (tmp_path / lock.NAME).exists()


def test_a_process_id_that_was_given_away_again_holds_nothing(tmp_path):
    other = {"host": lock.this_host(), "pid": os.getppid(), "started": "1", "token": "x"}
    (tmp_path / lock.NAME).write_text(json.dumps(other))
    with FolderLock(tmp_path):
        pass


def elsewhere(folder, beats: int) -> None:
    other = {"host": "elsewhere", "pid": 1, "started": "1", "token": "x", "beats": beats}
    (folder / lock.NAME).write_text(json.dumps(other))


def test_a_holder_on_another_machine_is_gone_once_it_renews_no_more(tmp_path):
    elsewhere(tmp_path, 1)
    begun = time.monotonic()
    with FolderLock(tmp_path, patience=0.5):
        assert time.monotonic() - begun >= 0.5


def test_a_holder_on_another_machine_that_renews_is_respected(tmp_path, monkeypatch):
    elsewhere(tmp_path, 1)
    monkeypatch.setattr(lock.time, "sleep", lambda _: elsewhere(tmp_path, 2))
    with pytest.raises(LockedError, match="process 1 on elsewhere"), FolderLock(tmp_path):
        pass


def test_the_lock_is_renewed_while_it_is_held(tmp_path):
    with FolderLock(tmp_path, renew=0.02):
        deadline = time.monotonic() + 10
        while json.loads((tmp_path / lock.NAME).read_text())["beats"] < 3:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["", "{", "[]", "{}"])
def test_a_torn_lock_file_holds_nothing(tmp_path, text):
    (tmp_path / lock.NAME).write_text(text)
    with FolderLock(tmp_path):
        pass


def test_a_bucket_is_held_by_one(tmp_path, monkeypatch):
    """The same lock in an object store: refused while it is renewed, free afterwards."""
    pytest.importorskip("s3fs", reason="s3:// needs s3fs: pip install 'llmcodec-jax[stores]'")
    pytest.importorskip("moto", reason="the S3 server is moto's: pip install moto flask")
    from tests.object_store import s3_server

    monkeypatch.setattr(lock, "SETTLE", 0.1)
    quick = dict(renew=0.1, patience=1.0)
    with s3_server(tmp_path):
        with FolderLock("s3://corpora/run", **quick):
            monkeypatch.setattr(lock, "this_host", lambda: "elsewhere")
            with pytest.raises(LockedError, match="s3://corpora/run is in use"):
                FolderLock("s3://corpora/run", **quick).__enter__()
            monkeypatch.undo()
        monkeypatch.setattr(lock, "SETTLE", 0.1)
        with FolderLock("s3://corpora/run", **quick) as held:
            assert held._file.exists()
        assert not held._file.exists()


def test_a_busy_object_is_read_again_and_a_failing_store_outlived(tmp_path, monkeypatch, caplog):
    failures = [OSError(errno.EBUSY, "renewed while it was read"), OSError("no route to host")]
    with FolderLock(tmp_path, renew=0.01) as held:
        read = held._file.read_text

        def unreliable(_):
            if failures:
                raise failures.pop(0)
            return read()

        monkeypatch.setattr(type(held._file), "read_text", unreliable)
        deadline = time.monotonic() + 20
        while failures or json.loads((tmp_path / lock.NAME).read_bytes())["beats"] < 3:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        monkeypatch.undo()
    assert "no route to host" in caplog.text
    assert not (tmp_path / lock.NAME).exists()
