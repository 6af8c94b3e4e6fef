"""The command lines on folders of mixed files: resume, damage, exit codes, the token format."""

import contextlib
import json
import os
import resource
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
import soundfile

import llmcodec_jax
from llmcodec_jax import audio, convert, decode, encode, evaluate, export, export_tokens
from llmcodec_jax.codec import store, tokens
from llmcodec_jax.codec.inference import Codec
from llmcodec_jax.codec.store import save_torch


def sound(samples, seed=0):
    return 0.1 * np.random.default_rng(seed).standard_normal(samples).astype("f4")


@pytest.fixture
def mixed(tmp_path):
    """A folder of every format beside files that are no audio."""
    folder = tmp_path / "in"
    (folder / "deep/er").mkdir(parents=True)
    soundfile.write(folder / "a.wav", sound(16_000), 16_000)
    soundfile.write(folder / "deep/b.flac", sound(8_001, 1), 8_000)
    soundfile.write(folder / "deep/c.ogg", np.stack([sound(44_100, 2)] * 2, 1), 44_100)
    soundfile.write(folder / "deep/er/d.mp3", sound(24_000, 3), 24_000)
    soundfile.write(
        folder / "deep/er/e.opus", sound(48_000, 4), 48_000, format="OGG", subtype="OPUS"
    )
    (folder / "deep/broken.wav").write_bytes(b"RIFF no audio at all")
    (folder / "empty.flac").write_bytes(b"")
    soundfile.write(folder / "nan.wav", np.full(400, np.nan, "f4"), 16_000, subtype="FLOAT")
    soundfile.write(folder / "silent.wav", np.zeros(0, "f4"), 16_000)
    (folder / "notes.txt").write_text("not looked at")
    return folder


def run(command, codec, source, output, *options):
    arguments = ["--codec", codec, "--input", source, "--output", output, *options]
    return command.main([str(a) for a in arguments])


def test_folder_to_tokens_to_audio(mixed, small_folder, tmp_path, capsys):
    coded, audio_out = tmp_path / "tokens", tmp_path / "audio"
    assert run(encode, small_folder, mixed, coded) == 1  # four files are bad, and are named
    said = capsys.readouterr()
    for name in ("deep/broken.wav", "empty.flac", "nan.wav", "silent.wav"):
        assert str(mixed / name) in said.err
    assert "5 done, 0 already there, 4 failed" in said.out
    names = sorted(str(p.relative_to(coded)) for p in coded.rglob("*") if p.is_file())
    assert names == ["a.npz", "deep/b.npz", "deep/c.npz", "deep/er/d.npz", "deep/er/e.npz"]
    with np.load(coded / "deep/b.npz") as file:
        assert set(file) >= {"codes", "num_samples", "sample_rate", "codec", "hop"}
        assert file["codes"].dtype == np.int32
        assert file["sample_rate"] == 16_000
        assert file["num_samples"] == 16_002
        assert file["codes"].shape == (51,)

    stamps = {p: p.stat().st_mtime_ns for p in coded.rglob("*.npz")}
    (coded / "a.npz").unlink()
    assert run(encode, small_folder, mixed, coded) == 1
    assert "1 done, 4 already there" in capsys.readouterr().out
    for path, stamp in stamps.items():
        assert (path.stat().st_mtime_ns == stamp) == (path.name != "a.npz")

    assert run(decode, small_folder, coded, audio_out) == 0
    wav, rate = soundfile.read(audio_out / "deep/b.wav", dtype="float32")
    assert (len(wav), rate) == (16_002, 16_000)
    codec = llmcodec_jax.load_codec(small_folder)
    expected = codec.decode(tokens.read(coded / "deep/b.npz").codes)[:16_002]
    np.testing.assert_allclose(wav, expected, atol=1e-6)
    assert run(decode, small_folder, coded / "a.npz", tmp_path / "one", "--format", "flac") == 0
    assert [p.name for p in (tmp_path / "one").iterdir()] == ["a.flac"]


def test_files_that_would_share_an_output_are_named(tmp_path, small_folder, capsys):
    for suffix in ("wav", "flac"):
        soundfile.write(tmp_path / f"x.{suffix}", sound(3200), 16_000)
    assert run(encode, small_folder, tmp_path, tmp_path / "out") == 1
    assert "x.wav: its output would replace that of" in capsys.readouterr().err
    assert len(list((tmp_path / "out").iterdir())) == 1


def test_missing_input_is_a_usage_error(tmp_path, small_folder, capsys):
    assert run(encode, small_folder, tmp_path / "nowhere", tmp_path / "out") == 2
    assert "nowhere" in capsys.readouterr().err


@pytest.mark.parametrize("command", [encode, decode, convert, evaluate, export])
def test_every_command_answers_a_codec_that_is_not_there_alike(command, tmp_path, capsys):
    """One line on stderr, status 2."""
    audio.write(tmp_path / "in" / "a.wav", np.zeros(1600, np.float32), 16_000)
    tokens.write(tmp_path / "in" / "a.npz", tokens.Tokens(np.zeros(5, np.int32), 16_000, 1600))
    missing, given, output = (str(tmp_path / name) for name in ("nowhere", "in", "out"))
    arguments = {
        encode: ["--codec", missing, "--input", given, "--output", output],
        decode: ["--codec", missing, "--input", given, "--output", output],
        convert: ["auv", "--input", missing, "--output", output],
        evaluate: ["reconstruction", "--codec", missing, "--reference", given],
        export: ["--run", missing, "--format", "auv", "--output", output],
    }
    assert command.main(arguments[command]) == 2
    told = capsys.readouterr().err.splitlines()
    assert [line for line in told if "nowhere" in line] == [told[-1]]
    assert told[-1].startswith("error: ")


def test_damaged_and_foreign_token_files_are_named(tmp_path, small_folder, capsys):
    coded = tmp_path / "tokens"
    good = np.arange(5, dtype=np.int32)
    tokens.write(coded / "good.npz", tokens.Tokens(good, 16_000, 1500))
    tokens.write(coded / "range.npz", tokens.Tokens(good + 20_000, 16_000, 1500))
    tokens.write(coded / "length.npz", tokens.Tokens(good, 16_000, 99_999))
    np.savez(coded / "fields.npz", codes=good)
    np.savez(coded / "objects.npz", codes=np.array([{}], object), sample_rate=1, num_samples=1)
    whole = (coded / "good.npz").read_bytes()
    (coded / "cut.npz").write_bytes(whole[: len(whole) // 2])
    assert run(decode, small_folder, coded, tmp_path / "out") == 1
    said = capsys.readouterr().err
    for name in ("range", "length", "fields", "objects", "cut"):
        assert f"{name}.npz" in said
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["good.wav"]


def test_tokens_of_another_codec_are_refused(tmp_path, small, small_folder, capsys):
    codec, variables = small
    other = jax.tree.map(np.array, jax.device_get(dict(variables)))
    other["params"]["quantizer"]["level_0"]["codebook"] *= 2
    store.save_codec_folder(tmp_path / "other", codec, other)
    soundfile.write(tmp_path / "x.wav", sound(3200), 16_000)
    assert run(encode, small_folder, tmp_path / "x.wav", tmp_path) == 0
    made = tokens.read(tmp_path / "x.npz")
    assert (made.codebook_size, made.hop, made.architecture) == (96, 320, "auv")
    assert made.codec == store.digest(codec, variables)
    out = tmp_path / "out"
    assert run(decode, tmp_path / "other", tmp_path / "x.npz", out) == 1
    said = capsys.readouterr().err
    assert f"made by the auv codec {made.codec}, not by this auv codec" in said
    assert "--force" in said
    assert not out.exists()
    assert run(decode, tmp_path / "other", tmp_path / "x.npz", out, "--force") == 0
    assert run(decode, small_folder, tmp_path / "x.npz", tmp_path / "good") == 0
    tokens.write(tmp_path / "old.npz", tokens.Tokens(made.codes, 16_000, 3200))  # does not say
    assert run(decode, tmp_path / "other", tmp_path / "old.npz", out) == 0


@contextlib.contextmanager
def no_room_for_files(size):
    """Files cannot grow beyond `size` bytes, as on a full disk (EFBIG instead of ENOSPC)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_is_one_line_a_file_and_leaves_nothing(tmp_path, small_folder, capsys):
    for name, seconds in (("short", 0.05), ("long", 9)):
        (tmp_path / "in").mkdir(exist_ok=True)
        soundfile.write(tmp_path / f"in/{name}.wav", sound(int(seconds * 16_000)), 16_000)
    codec = llmcodec_jax.load_codec(small_folder)
    work = encode.jobs.plan(tmp_path / "in", tmp_path / "coded", ".npz", (".wav",), False)
    with no_room_for_files(2500):
        encode.encode_corpus(codec, work)
    assert work.finish("encoded") == 1
    assert work.done == 1
    said = capsys.readouterr().err.strip().splitlines()
    assert len([line for line in said if line.startswith("failed: ")]) == 1
    assert "long.npz: cannot be written (File too large)" in said[-1]
    assert [p.name for p in (tmp_path / "coded").iterdir()] == ["short.npz"]
    work = encode.jobs.plan(tmp_path / "in", tmp_path / "coded", ".npz", (".wav",), False)
    encode.encode_corpus(codec, work)
    assert (work.done, work.skipped) == (1, 1)
    work = decode.jobs.plan(tmp_path / "coded", tmp_path / "audio", ".wav", (".npz",), False)
    with no_room_for_files(20_000):
        decode.decode_corpus(codec, work)
    assert (work.done, len(work.failures)) == (1, 1)
    assert "long.wav: cannot be written" in work.failures[0]
    assert [p.name for p in (tmp_path / "audio").iterdir()] == ["short.wav"]


def test_names_at_the_file_systems_limits(tmp_path, small_folder, capsys):
    """255 bytes, bytes that are no text, line breaks: all are coded, and messages are one line."""
    (tmp_path / "in").mkdir()
    names = [b"x" * 251, "\u00e9".encode() * 125, b"caf\xe9", b"two\nlines", b"-dash", b"a b"]
    for name in names:
        with open(os.fsencode(tmp_path / "in") + b"/" + name + b".wav", "wb") as file:
            soundfile.write(file, sound(1600), 16_000, format="WAV")
    (tmp_path / "in/bad\nname.wav").write_bytes(b"no audio")
    assert run(encode, small_folder, tmp_path / "in", tmp_path / "coded") == 1
    said = capsys.readouterr()
    assert "6 done" in said.out
    assert len([line for line in said.err.splitlines() if "failed: " in line]) == 1
    assert "bad\\nname.wav" in said.err
    assert run(decode, small_folder, tmp_path / "coded", tmp_path / "audio") == 0
    made = {os.fsencode(p.stem) for p in (tmp_path / "audio").iterdir()}
    assert made == set(names)
    table = tmp_path / "t.jsonl"
    assert export_tokens.main(["--input", str(tmp_path / "coded"), "--output", str(table)]) == 0
    identities = {json.loads(line)["id"] for line in table.read_text().splitlines()}
    assert {"caf\\xe9", "two\\nlines"} <= identities


def test_what_is_not_looked_at_is_said(tmp_path, small_folder, capsys):
    (tmp_path / "in").mkdir()
    (tmp_path / "elsewhere").mkdir()
    for path in ("in/a.wav", "in/.b.wav", "elsewhere/c.wav"):
        soundfile.write(tmp_path / path, sound(1600), 16_000)
    (tmp_path / "in/linked").symlink_to(tmp_path / "elsewhere")
    assert run(encode, small_folder, tmp_path / "in", tmp_path / "coded") == 0
    said = capsys.readouterr().err
    assert "1 hidden files (such as .b.wav)" in said
    assert "1 linked folders, which are not followed (such as linked)" in said


@pytest.mark.parametrize("wrong", ["0", "-1", "x", "1.5", "9999999"])
def test_batch_size_is_checked(tmp_path, small_folder, wrong, capsys):
    with pytest.raises(SystemExit) as stop:
        run(encode, small_folder, tmp_path, tmp_path / "out", "--batch-size", wrong)
    assert stop.value.code == 2
    assert "--batch-size" in capsys.readouterr().err


def test_long_files_are_streamed(tmp_path, small, monkeypatch):
    """Above LONG seconds a file is never read whole, and gives the same codes."""
    codec = Codec(*small, buckets=(200,))
    soundfile.write(tmp_path / "long.wav", np.stack([sound(320_123)] * 2, 1), 16_000)
    work = encode.jobs.plan(tmp_path / "long.wav", tmp_path, ".npz", (".wav",), False)
    whole = codec.encode(encode.read(tmp_path / "long.wav", 16_000, work))
    monkeypatch.setattr(encode, "LONG", 10)
    monkeypatch.setattr(encode, "BLOCK", 1.7)
    encode.encode_corpus(codec, work)
    coded = tokens.read(tmp_path / "long.npz")
    assert coded.num_samples == 320_123
    np.testing.assert_array_equal(coded.codes, whole)
    work = encode.jobs.plan(tmp_path / "long.npz", tmp_path / "out", ".wav", (".npz",), False)
    decode.decode_corpus(codec, work)
    wav, _ = soundfile.read(tmp_path / "out/long.wav", dtype="float32")
    expected = codec.decode(whole)[:320_123]
    np.testing.assert_allclose(wav, expected, atol=1e-6)


def test_streamed_resampling_is_whole_resampling(tmp_path, monkeypatch):
    soundfile.write(tmp_path / "x.flac", sound(300_000), 44_100)
    work = encode.jobs.plan(tmp_path / "x.flac", tmp_path, ".npz", (".flac",), False)
    whole = encode.read(tmp_path / "x.flac", 16_000, work)
    monkeypatch.setattr(encode, "BLOCK", 0.9)
    streamed = np.concatenate(list(encode.stream(tmp_path / "x.flac", 16_000)))
    assert abs(len(streamed) - len(whole)) <= 1
    shared = min(len(streamed), len(whole))
    np.testing.assert_allclose(streamed[:shared], whole[:shared], atol=1e-5)


def test_convert_then_load(tmp_path, small, small_folder):
    save_torch(tmp_path / "auv.pt", *small)
    (tmp_path / "auv.json").write_text('{"head_dim": 16}')
    arguments = ["--input", str(tmp_path / "auv.pt"), "--output", str(tmp_path / "converted")]
    assert convert.main(["auv", *arguments]) == 0
    names = sorted(p.name for p in (tmp_path / "converted").iterdir())
    assert names == ["codec.json", "codec.safetensors"]
    converted, variables = store.load(tmp_path / "converted")
    expected, expected_variables = store.load(small_folder)
    assert converted == expected
    jax.tree.map(np.testing.assert_array_equal, variables, expected_variables)


def test_tokens_to_tables(tmp_path, capsys):
    rng = np.random.default_rng(0)
    clips = {"a": rng.integers(0, 96, (7, 2)), "d/b": rng.integers(0, 96, (300, 2))}
    clips["e"] = np.array([[1, 2], [3, 4]])
    for name, codes in clips.items():
        path, samples = tmp_path / f"in/{name}.npz", 320 * len(codes)
        tokens.write(path, tokens.Tokens(codes, 16_000, samples, 96, 320, "auv", "one"))
    foreign = tokens.Tokens(clips["e"], 16_000, 640, 96, 320, "auv", "two")
    tokens.write(tmp_path / "in/foreign.npz", foreign)
    (tmp_path / "in/bad.npz").write_bytes(b"PK")
    for suffix in ("jsonl", "parquet"):
        arguments = ["--input", str(tmp_path / "in"), "--output", str(tmp_path / f"t.{suffix}")]
        assert export_tokens.main([*arguments, "--text"]) == 1
        said = capsys.readouterr().err
        assert "bad.npz" in said
        assert "foreign.npz: made by another codec than" in said
    rows = [json.loads(line) for line in (tmp_path / "t.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == ["a", "d/b", "e"]
    assert rows[2]["codes"] == [1, 98, 3, 100]
    assert (rows[2]["num_frames"], rows[2]["levels"], rows[2]["codebook_size"]) == (2, 2, 96)
    assert rows[2]["text"] == "<CODEC_1><CODEC_98><CODEC_3><CODEC_100>"
    parquet = pytest.importorskip("pyarrow.parquet")
    assert parquet.read_table(tmp_path / "t.parquet").to_pylist() == rows


def test_levels_of_unknown_size_are_not_guessed(tmp_path, capsys):
    """Files from before they said how many codes a level has."""
    tokens.write(tmp_path / "in/old.npz", tokens.Tokens(np.array([[1, 2]]), 16_000, 320))
    arguments = ["--input", str(tmp_path / "in"), "--output", str(tmp_path / "t.jsonl")]
    assert export_tokens.main(arguments) == 1
    assert "old.npz: 2 levels of unknown size; give --codebook-size" in capsys.readouterr().err
    assert export_tokens.main([*arguments, "--codebook-size", "96"]) == 0
    assert json.loads((tmp_path / "t.jsonl").read_text())["codes"] == [1, 98]
    for wrong in ("0", "-3", "x", "1.5"):
        with pytest.raises(SystemExit) as stop:
            export_tokens.main([*arguments, "--codebook-size", wrong])
        assert stop.value.code == 2


def round_trip(folder, small_folder, count, seconds):
    """`count` clips of random lengths, every 20th corrupt -> asserts what a corpus user needs."""
    rng = np.random.default_rng(0)
    source, bad = folder / "in", set()
    source.mkdir()
    for index in range(count):
        path = source / f"{index:04d}.wav"
        soundfile.write(path, sound(int(rng.uniform(0.1, seconds) * 16_000), index), 16_000)
        if index % 20 == 7:
            bad.add(path.name)
            data = path.read_bytes()
            path.write_bytes(data[:20] if index % 40 == 7 else b"\0" * len(data))
    codec = llmcodec_jax.load_codec(small_folder)
    coding = encode.jobs.plan(source, folder / "coded", ".npz", (".wav",), False)
    encode.encode_corpus(codec, coding)
    decoding = encode.jobs.plan(folder / "coded", folder / "audio", ".wav", (".npz",), False)
    decode.decode_corpus(codec, decoding)
    assert codec.compilations <= 8
    assert {name for name in bad if any(name in f for f in coding.failures)} == bad
    assert len(coding.failures) == len(bad)
    assert not decoding.failures
    for path in sorted(source.iterdir()):
        if path.name not in bad:
            made = soundfile.info(str(folder / "audio" / path.name))
            assert made.frames == soundfile.info(str(path)).frames


def test_round_trip_of_forty_clips(tmp_path, small_folder):
    round_trip(tmp_path, small_folder, 40, 12.0)


@pytest.mark.slow
def test_round_trip_of_a_thousand_clips(tmp_path, small_folder):
    round_trip(tmp_path, small_folder, 1000, 30.0)


@pytest.mark.slow
def test_an_hour_stays_under_two_gigabytes(tmp_path, small_folder):
    """The full-size codec with random weights, one hour in, one hour out; memory of a process."""
    code = """
import resource, sys
import jax, numpy as np
from llmcodec_jax.codec.auv.model import AUV
from llmcodec_jax.codec.inference import Codec
module = AUV()
wav = np.zeros((1, 3200), "f4")
variables = jax.jit(lambda k: module.init(k, wav, method="reconstruct"))(jax.random.key(0))
codec = Codec(module, variables)
rng = np.random.default_rng(0)
blocks = (0.1 * rng.standard_normal(160_000).astype("f4") for _ in range(int(sys.argv[1]) // 10))
codes = np.concatenate(list(codec.encode_stream(blocks)))
print(len(codes), sum(map(len, codec.decode_stream(codes))))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)
"""
    seconds = os.environ.get("LLMCODEC_TEST_SECONDS", "3600")
    done = subprocess.run(
        [sys.executable, "-c", code, seconds], check=True, capture_output=True, text=True
    )
    frames, samples, gibibytes = done.stdout.split()
    assert (int(frames), int(samples)) == (int(seconds) * 50, int(seconds) * 16_000)
    assert float(gibibytes) < 2


COMMANDS = {
    "encode": lambda codec, out: encode.main(
        ["--codec", codec, "--input", str(out), "--output", str(out / "o")]
    ),
    "decode": lambda codec, out: decode.main(
        ["--codec", codec, "--input", str(out), "--output", str(out / "o")]
    ),
    "convert": lambda codec, out: convert.main(
        ["codec", "--input", codec, "--output", str(out / "o")]
    ),
    "export": lambda codec, out: export.main(
        ["--run", codec, "--format", "auv", "--output", str(out / "o")]
    ),
    "evaluate": lambda codec, out: evaluate.main(
        ["consistency", "--codec", codec, "--data", str(out), "--output", str(out / "o.json")]
    ),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_bad_codec_is_answered_alike_by_every_command(tmp_path, small_folder, command, capsys):
    """2 for a codec that is not there, 1 for one that is broken; one line either way."""
    soundfile.write(tmp_path / "x.wav", sound(1600), 16_000)
    tokens.write(tmp_path / "x.npz", tokens.Tokens(np.zeros(5, np.int32), 16_000, 1600))
    broken = tmp_path / "broken"
    shutil.copytree(small_folder, broken)
    (broken / "codec.safetensors").write_bytes(b"no weights")
    absent = str(tmp_path / "absent")
    for codec, status, said in (
        (absent, 2, "no such codec"),
        (str(broken), 1, "codec.safetensors: not a readable"),
    ):
        assert COMMANDS[command](codec, tmp_path) == status
        lines = capsys.readouterr().err.strip().splitlines()
        assert lines[-1].startswith("error: ")
        assert said in lines[-1]
        assert not (tmp_path / "o").exists()
