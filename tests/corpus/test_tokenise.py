"""`encode --engine`: one token table of a corpus, made in any order, taken up where it was left."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

import llmcodec_jax
from llmcodec_jax import encode
from llmcodec_jax.corpus import plan as planning
from llmcodec_jax.corpus import shard, tokenise
from llmcodec_jax.corpus.local import Maker
from llmcodec_jax.corpus.plan import Task
from llmcodec_jax.data.token_table import TokenTable
from tests.corpus.conftest import write_clips

ROOT = Path(__file__).parents[2]
BAD = (5, 17)


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> Path:
    return write_clips(tmp_path_factory.mktemp("clips"), 40, BAD)


def in_this_process(task: Task, shards: list[int], _workers):
    """An engine of one worker, for tests of what does not depend on where the work is done."""
    maker = Maker(task)
    for number in shards:
        yield maker.make(number, [], lambda _: None)


@pytest.fixture
def engine(monkeypatch):
    monkeypatch.setattr(tokenise, "open_engine", lambda *_: in_this_process)


def run(codec, source, output, *options) -> int:
    arguments = ["--codec", codec, "--input", source, "--output", output, "--engine", "local"]
    return encode.main([str(a) for a in (*arguments, "--clips-per-shard", 16, *options)])


def check_table(output: Path, codec_folder: Path, clips: Path, bad=BAD, sample=None) -> None:
    """Every clip is there once, with the codes that the codec gives it, or named as failed."""
    table = TokenTable(output)
    lines = [json.loads(line) for line in (output / "failures.jsonl").read_text().splitlines()]
    found = sorted(table.name(i) for i in range(len(table)))
    paths = {str(p.relative_to(clips).with_suffix("")): p for p in clips.rglob("*.wav")}
    assert sorted([*found, *(line["id"] for line in lines)]) == sorted(paths)
    assert sorted(int(line["id"][-5:]) for line in lines) == sorted(bad)
    assert all("cannot be read as audio" in line["reason"] for line in lines)
    codec = llmcodec_jax.load_codec(codec_folder)
    for index in range(0, len(table), sample or 1):
        path = paths[table.name(index)]
        wav = encode.audio.load(path, codec.sample_rate)
        np.testing.assert_array_equal(table.codes(index), codec.encode(wav))
        assert table.source(index) == str(path)
        assert table.seconds(index) == pytest.approx(len(wav) / codec.sample_rate)


@pytest.mark.usefixtures("engine")
def test_a_corpus_becomes_a_table(codec_folder, clips, tmp_path, capsys):
    out = tmp_path / "out"
    assert run(codec_folder, clips, out) == 1  # two clips are bad, and are named
    said = capsys.readouterr()
    assert "encoded: 38 clips" in said.out
    assert "2 failed; 3 shards, 0 of them already there" in said.out
    check_table(out, codec_folder, clips)
    summary = json.loads((out / "summary.json").read_text())
    assert summary["clips"] == 38
    assert 0 < summary["unigram_entropy_bits"][0] <= np.log2(1 << 16)
    assert summary["hours"] > 0
    assert "Failures" in (out / "report.html").read_text()

    # Taken up again: what is there stays, what is damaged or missing is made as before.
    shards = sorted(out.glob("*.parquet"))
    before = [path.read_bytes() for path in shards]
    shards[0].unlink()
    shards[2].write_bytes(before[2][:100])
    stamp = shards[1].stat().st_mtime_ns
    assert run(codec_folder, clips, out) == 1
    assert "3 shards, 1 of them already there" in capsys.readouterr().out
    assert shards[1].stat().st_mtime_ns == stamp
    assert [path.read_bytes() for path in shards] == before
    assert json.loads((out / "summary.json").read_text()) == summary


@pytest.mark.usefixtures("engine")
def test_another_corpus_is_not_mixed_in(codec_folder, clips, tmp_path, capsys):
    out = tmp_path / "out"
    source = write_clips(tmp_path / "few", 3)
    assert run(codec_folder, source, out) == 0
    assert run(codec_folder, clips, out) == 2
    assert "records is 3 there and 40 now" in capsys.readouterr().err
    assert run(codec_folder, tmp_path / "nowhere", out) == 2
    assert "nowhere" in capsys.readouterr().err


def test_long_recordings_are_streamed_alike(codec_folder, tmp_path, monkeypatch):
    source = write_clips(tmp_path / "clips", 2)
    monkeypatch.setattr(shard, "LONG", 0.0)
    monkeypatch.setattr(shard, "BLOCK", 0.03)
    codec = llmcodec_jax.load_codec(codec_folder)
    opened = planning.open_source(f"folder:{source}")
    read = list(shard.read_clips(opened, range(2), codec.sample_rate))
    assert [clip.wav for clip in read] == [None, None]
    for clip, row in shard.code_clips(codec, opened, read):
        wav = encode.audio.load(clip.uri, codec.sample_rate)
        np.testing.assert_array_equal(row["codes"], codec.encode(wav))


def test_kinds_of_input_are_recognised(tmp_path):
    assert planning.spec_of("embedded") == "embedded"
    assert planning.spec_of("s3://b/x.tar") == "webdataset:s3://b/x.tar"
    (tmp_path / "1" / "2").mkdir(parents=True)
    assert planning.spec_of(str(tmp_path)) == f"folder:{tmp_path}"
    (tmp_path / "1/2/1-2.trans.txt").touch()
    assert planning.spec_of(str(tmp_path)) == f"librispeech:{tmp_path}"


def command(codec, source, output, *options) -> list[str]:
    arguments = ["--codec", codec, "--input", source, "--output", output]
    return [sys.executable, "-m", "llmcodec_jax.encode", *map(str, (*arguments, *options))]


@pytest.mark.slow
def test_processes_that_die_lose_nothing(codec_folder, tmp_path):
    """Workers are killed, then the parent; the same command goes on."""
    source, out = write_clips(tmp_path / "clips", 400, BAD), tmp_path / "out"
    options = ("--engine", "local", "--workers", 2, "--clips-per-shard", 20)
    line = command(codec_folder, source, out, *options)
    first = subprocess.Popen(line, cwd=ROOT, stderr=subprocess.PIPE, text=True)

    def workers() -> list[psutil.Process]:
        children = psutil.Process(first.pid).children()
        return [child for child in children if "spawn_main" in " ".join(child.cmdline())]

    def made() -> int:
        return len(list(out.glob("*.parquet")))

    deadline = time.monotonic() + 600
    while not made():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    killed = workers()[0]
    killed.kill()
    enough = made() + 2
    while made() < enough and first.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    first.send_signal(signal.SIGKILL)
    first.wait()
    time.sleep(2)
    again = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert again.returncode == 1, again.stderr
    assert "encoded: 398 clips" in again.stdout
    check_table(out, codec_folder, source, sample=20)
