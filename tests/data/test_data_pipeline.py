"""The loader: the same clips whatever the workers, the processes and the interruptions."""

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from llmcodec_jax import audio
from llmcodec_jax.data.batches import DataError
from llmcodec_jax.data.prefetch import prefetch
from llmcodec_jax.data.records import stable_hash
from llmcodec_jax.types import DOMAINS
from tests.tiny import TONE_RATE, Letters, make_eval_batches, make_loader, tone, write_corpus

CLIP = dict(
    sample_rate=TONE_RATE, clip_samples=8000, hop=320, text_tokenizer=Letters(), max_text=32
)


def load(sources, count=5, start=None, **options):
    options = dict(CLIP, batch_size=8, split="all", seed=5) | options
    with make_loader(sources, **options) as loader:
        if start is not None:
            loader.restore(start)
        return [next(loader) for _ in range(count)]


def assert_equal(first, second):
    for one, other in zip(first, second, strict=True):
        jax.tree.map(np.testing.assert_array_equal, one, other)


def test_batches_are_what_the_step_expects(corpus):
    batch = load(corpus, 1)[0]
    assert batch.wav.shape == (8, 8000)
    assert batch.wav.dtype == np.float32
    assert batch.text_ids.shape == (8, 32)
    for field in (batch.wav_length, batch.text_length, batch.domain, batch.text_ids):
        assert field.dtype == np.int32
    assert batch.example_id.dtype == np.uint32
    for wav, length in zip(batch.wav, batch.wav_length, strict=True):
        assert 0.3 * TONE_RATE <= length <= 8000
        assert np.abs(wav[:length]).max() > 0.3
        assert not wav[length:].any()


def test_workers_do_not_change_anything(corpus, tmp_path):
    """0, 1 and 2 worker processes, with clips that are skipped on the way."""
    folder = write_corpus(tmp_path / "holes")
    (folder / "2/7/2-7-0003.flac").write_bytes(b"fLaC but not really")
    mixture = [corpus, (f"librispeech:{folder}", 2.0, "other")]
    expected = load(mixture, 7)
    assert_equal(expected, load(mixture, 7, workers=1))
    assert_equal(expected, load(mixture, 7, workers=2, buffer=5))
    assert_equal(expected, load(mixture, 7, threads=4))


def test_state_brings_the_same_next_batch(corpus):
    whole = load(corpus, 9)
    with make_loader(corpus, batch_size=8, split="all", seed=5, **CLIP) as loader:
        for _ in range(4):
            next(loader)
        state = loader.state()
        assert_equal(whole[4:6], [next(loader), next(loader)])
        loader.restore(state)  # backwards, within one loader
        assert_equal(whole[4:6], [next(loader), next(loader)])
    assert_equal(whole[4:], load(corpus, 5, start=state))
    assert_equal(whole[4:], load(corpus, 5, start=state, workers=2))


def test_changed_data_is_told_at_restore(corpus, caplog):
    with make_loader(corpus, batch_size=8, split="all", **CLIP) as loader:
        state = loader.state()
    with make_loader(corpus, batch_size=4, split="all", **CLIP) as loader:
        loader.restore(state)
    assert "changed since the checkpoint" in caplog.text


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_share_each_global_batch(corpus, processes):
    whole = load(corpus, 4)
    shares = [load(corpus, 4, process_index=i, process_count=processes) for i in range(processes)]
    joined = [
        jax.tree.map(lambda *parts: np.concatenate(parts), *(share[step] for share in shares))
        for step in range(4)
    ]
    assert_equal(whole, joined)
    # Interrupted with 4 processes, resumed with another number.
    with make_loader(
        corpus, batch_size=8, split="all", seed=5, process_count=4, process_index=3, **CLIP
    ) as loader:
        next(loader)
        state = loader.state()
    resumed = load(corpus, 3, start=state, process_index=1, process_count=processes)
    assert_equal(shares[1][1:], resumed)


def test_uneven_shares_are_refused(corpus):
    with pytest.raises(ValueError, match="cannot be shared by 3"):
        make_loader(corpus, batch_size=8, process_count=3, **CLIP)


def test_every_epoch_has_every_clip_once_in_another_order(corpus):
    batches = load(corpus, 6, batch_size=9)
    ids = np.concatenate([batch.example_id for batch in batches]).reshape(3, 18)
    for epoch in ids:
        assert len(set(epoch)) == 18
    assert not (ids[0] == ids[1]).all()
    assert not (ids[1] == ids[2]).all()


def test_seed_changes_order_and_crops(corpus):
    first, second = load(corpus, 1)[0], load(corpus, 1, seed=6)[0]
    assert not (first.example_id == second.example_id).all()


def test_mixture_keeps_its_weights_and_domains(corpus):
    batches = load([(corpus, 3.0, "speech"), (corpus, 1.0, "music")], 6)
    domains = np.stack([batch.domain for batch in batches])
    music = (domains == DOMAINS.index("music")).sum(axis=1)
    assert (music == 2).all()  # of 8 in every batch
    assert (domains != DOMAINS.index("speech")).sum() == music.sum()
    with pytest.raises(ValueError, match="weight must be positive"):
        load([(corpus, 0.0, "speech")])
    with pytest.raises(ValueError, match="not one of speech"):
        load([(corpus, 1.0, "birdsong")])


def spoiled(folder: Path) -> Path:
    """Twelve good clips, and a broken, an empty, a silent, a short and a NaN one."""
    write_corpus(folder, speakers=2)
    chapter = folder / "1" / "7"
    (chapter / "1-7-0900.wav").write_bytes(b"RIFF????WAVE")
    (chapter / "1-7-0901.wav").write_bytes(b"")
    audio.write(chapter / "1-7-0902.wav", 0.0001 * tone(1.0), TONE_RATE)
    audio.write(chapter / "1-7-0903.wav", tone(0.1), TONE_RATE)
    good = (chapter / "1-7-0005.flac").read_bytes()
    (chapter / "1-7-0904.flac").write_bytes(good[: len(good) // 2])
    return folder


def test_unusable_clips_are_skipped_counted_and_named(tmp_path, caplog):
    spec = f"librispeech:{spoiled(tmp_path)}"
    with (
        caplog.at_level(logging.WARNING),
        make_loader(spec, batch_size=17, split="all", seed=1, **CLIP) as loader,
    ):
        batches = [next(loader) for _ in range(3)]  # three epochs
        report = loader.skipped()
    assert report["count"] >= 15
    assert report["read"] == report["count"] + 3 * 17
    assert len(report["reasons"]) == 5
    for name, why in {
        "1-7-0900": "cannot be read as audio",
        "1-7-0901": "cannot be read as audio",
        "1-7-0902": "silent",
        "1-7-0903": "too short",
        "1-7-0904": "1-7-0904",
    }.items():
        (reason,) = [reason for reason in report["reasons"] if name in reason]
        assert why in reason
        assert sum(name in line for line in caplog.messages) == 1  # each is told once
    assert all(np.abs(batch.wav).max(axis=1).min() > 0.3 for batch in batches)
    assert_equal(batches, load(spec, 3, batch_size=17, seed=1))


@pytest.mark.parametrize("workers", [0, 1])
def test_mostly_unusable_data_is_an_error(tmp_path, workers):
    folder = write_corpus(tmp_path, speakers=1, clips=2)
    for number in range(100, 140):
        (folder / "1" / "7" / f"1-7-0{number}.flac").write_bytes(b"nothing")
    with pytest.raises(DataError, match="unusable"):
        load(f"librispeech:{folder}", 20, workers=workers)
    for file in folder.rglob("*.flac"):
        file.write_bytes(b"nothing")
    with pytest.raises(DataError, match="64 records in a row"):
        load(f"librispeech:{folder}", 1, workers=workers)


def test_evaluation_batches_are_fixed_and_filled_up(corpus):
    options = dict(CLIP, count=100, batch_size=4, split="eval", eval_fraction=0.4)
    first, again = make_eval_batches(corpus, **options), make_eval_batches(corpus, **options)
    assert_equal(first, again)
    ids = np.concatenate([batch.example_id for batch in first])
    lengths = np.concatenate([batch.wav_length for batch in first])
    held = {int(i) for i, length in zip(ids, lengths, strict=True) if length}
    assert len(held) == (lengths > 0).sum()
    named = [np.uint32(stable_hash(name)) for name, _ in first.spoken]  # of what is heard, in order
    np.testing.assert_array_equal(ids[lengths > 0], named)
    assert all(text.startswith("SPEAKER ") for _, text in first.spoken)
    training = load(corpus, 20, split="train", eval_fraction=0.4)
    seen = {int(i) for batch in training for i in batch.example_id}
    assert held
    assert not held & seen
    assert len(held | seen) == 18
    halves = [
        make_eval_batches(corpus, process_index=i, process_count=2, **options) for i in (0, 1)
    ]
    for whole, *parts in zip(first, *halves, strict=True):
        np.testing.assert_array_equal(whole.wav, np.concatenate([part.wav for part in parts]))


def test_prefetch_state_is_that_of_the_batch_handed_out(corpus):
    whole = load(corpus, 6)
    with (
        make_loader(corpus, batch_size=8, split="all", seed=5, **CLIP) as loader,
        prefetch(loader, jax.device_put, size=3) as batches,
    ):
        for expected in whole[:3]:
            assert isinstance(batches.state()["batches"], int)
            state = batches.state()
            batch = next(batches)
            assert isinstance(batch.wav, jax.Array)
            assert_equal([expected], [jax.tree.map(np.asarray, batch)])
        time.sleep(0.3)  # by now the loader is ahead
        assert loader.state()["batches"] > 3
        assert batches.state()["batches"] == 3
        assert state["batches"] == 2
    assert_equal(whole[2:4], load(corpus, 2, start=state))
    assert not any(thread.name.startswith("prefetch") for thread in threading.enumerate())
    with pytest.raises(RuntimeError, match="closed"):
        next(batches)


def test_prefetch_passes_errors_on(corpus):
    def refuse(_):
        raise RuntimeError("device is full")

    with (
        make_loader(corpus, batch_size=8, split="all", **CLIP) as loader,
        prefetch(loader, refuse) as batches,
    ):
        for _ in range(2):  # and goes on saying so
            with pytest.raises(RuntimeError, match="device is full"):
                next(batches)


_PARENT = """
import os, sys
from tests.tiny import make_loader
if __name__ == "__main__":
    clip = dict(sample_rate=8000, clip_samples=8000, hop=160)
    loader = make_loader(sys.argv[1], batch_size=2, workers=1, **clip)
    next(loader)
    print("ready", flush=True)
    if sys.argv[2] == "die":
        os.kill(os.getpid(), 9)
    import psutil
    for child in psutil.Process().children():
        if "spawn_main" in " ".join(child.cmdline()):
            child.kill()
    for _ in range(100):
        next(loader)
"""


def children_of_dead(parent: int) -> list[int]:
    """Loader processes that a process which no longer exists has left."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                environment = (entry / "environ").read_bytes()
                command = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if f"DATA_TEST_PARENT={parent}".encode() in environment and b"spawn_main" in command:
                found.append(int(entry.name))
    return found


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs /proc")
@pytest.mark.parametrize("ending", ["die", "kill worker"])
def test_loader_processes_and_their_parent_end_together(corpus, tmp_path, ending):
    script = tmp_path / "parent.py"
    script.write_text(_PARENT)
    mark = os.getpid()
    environment = os.environ | {"DATA_TEST_PARENT": str(mark)}
    environment["PYTHONPATH"] = str(Path(__file__).parents[2])
    done = subprocess.run(
        [sys.executable, script, corpus, ending],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "ready" in done.stdout, done.stderr
    if ending == "die":
        assert done.returncode == -signal.SIGKILL
    else:
        assert "terminated unexpectedly" in done.stderr
    deadline = time.monotonic() + 15
    while children_of_dead(mark) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not children_of_dead(mark)
