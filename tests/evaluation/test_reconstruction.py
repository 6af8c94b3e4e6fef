import json
import math
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile

from llmcodec_jax import audio, evaluate
from llmcodec_jax.evaluation import additional, codec_superb, reconstruction
from llmcodec_jax.evaluation.quick import quick_metrics

ABSENT = codec_superb.absent()


def _voice(seconds=1.5, rate=16000, pitch=150):
    time = np.arange(int(seconds * rate)) / rate
    phase = 2 * np.pi * pitch * time + 3 * np.sin(6 * time)
    wav = 0.1 * sum(np.sin(k * phase) / k for k in range(1, 15)) * (1 + np.sin(9 * time))
    return (wav / 2).astype(np.float32)


def _folders(root, clips):
    """{name: (reference, estimate, rate)} -> (reference folder, estimate folder)."""
    for name, (reference, estimate, rate) in clips.items():
        for side, wav in (("reference", reference), ("estimate", estimate)):
            (root / side / name).parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(root / side / name, wav, rate, subtype="PCM_16")
    return root / "reference", root / "estimate"


def test_identical_clips_are_perfect():
    wav = _voice()[None]
    values = codec_superb.score(wav, 16000, wav, 16000)
    assert values["mel"] == values["stft"] == values["waveform"] == 0
    for name, best in {"pesq": 4.6, "stoi": 0.999, "f0corr": 0.999}.items():
        assert name in ABSENT or values[name] > best


def test_undefined_is_not_a_score():
    wav, silence = _voice()[None], np.zeros((1, 24000), np.float32)
    for reference, estimate in ((silence, silence), (silence, wav)):
        values = codec_superb.score(reference, 16000, estimate, 16000)
        assert math.isfinite(values["mel"])
        for name in ("pesq", "stoi", "f0corr"):
            assert name in ABSENT or math.isnan(values[name]), name
    values = codec_superb.score(wav[:, :300], 16000, wav[:, :300], 16000)
    assert values["mel"] == 0
    assert "stoi" in ABSENT or math.isnan(values["stoi"])


def test_lengths_channels_and_rates_may_differ():
    wav = _voice()
    stereo = np.stack([wav, wav])
    same = codec_superb.score(wav[None], 16000, stereo, 16000)
    assert same["mel"] == pytest.approx(0, abs=1e-6)
    shorter = codec_superb.score(wav[None], 16000, wav[None, :-800], 16000)
    padded = np.pad(wav[:-800], (0, 800))[None]
    assert shorter == pytest.approx(codec_superb.score(wav[None], 16000, padded, 16000))
    other = codec_superb.sinc_resample(wav[None], 16000, 44100)
    values = codec_superb.score(wav[None], 16000, other, 44100)
    assert values["waveform"] < 1e-3
    assert "pesq" in ABSENT or values["pesq"] > 4.4


def test_sinc_resampling_keeps_tones_and_constants():
    time = np.arange(44100) / 44100
    tone = np.sin(2 * np.pi * 440 * time)[None].astype(np.float32)
    resampled = codec_superb.sinc_resample(tone, 44100, 16000)
    expected = np.sin(2 * np.pi * 440 * np.arange(16000) / 16000)
    assert resampled.shape == (1, 16000)
    np.testing.assert_allclose(resampled[0, 100:-100], expected[100:-100], atol=1e-3)
    ones = codec_superb.sinc_resample(np.ones((2, 999), np.float32), 48000, 44100)
    np.testing.assert_allclose(ones, 1, atol=1e-5)


def test_a_missing_library_marks_its_metric_absent(monkeypatch):
    monkeypatch.setitem(codec_superb.NEEDS, "pesq", "a_module_that_does_not_exist")
    monkeypatch.setitem(codec_superb.PACKAGES, "a_module_that_does_not_exist", "its-package")
    assert "pip install its-package" in codec_superb.absent()["pesq"]
    values = codec_superb.score(_voice()[None], 16000, _voice()[None], 16000)
    assert "pesq" not in values
    assert "mel" in values


def test_report_shape_and_means(tmp_path):
    wav = _voice()
    noisy = wav + 0.01 * np.random.default_rng(0).normal(size=wav.shape)
    reference, estimate = _folders(
        tmp_path,
        {
            "speech/s1.wav": (wav, noisy, 16000),
            "speech/s2.wav": (wav, wav, 16000),
            "other/silent.wav": (0 * wav, 0 * wav, 16000),
        },
    )
    output = tmp_path / "report.json"
    command = ["--reference", str(reference), "--estimate", str(estimate), "--output", str(output)]
    assert evaluate.main(["reconstruction", *command, "--workers", "1"]) == 0
    report = json.loads(output.read_text())
    assert set(report["items"]) == {"speech/s1.wav", "speech/s2.wav", "other/silent.wav"}
    assert set(report["categories"]) == {"speech", "other"}
    expected = [m for m in codec_superb.METRICS if m not in ABSENT]
    assert list(report["mean"]) == expected
    mels = [report["items"][f"speech/s{i}.wav"]["mel"] for i in (1, 2)]
    assert report["categories"]["speech"]["mel"] == pytest.approx(np.mean(mels))
    assert report["mean"]["mel"] == pytest.approx(np.sum(mels) / 3)
    assert not (tmp_path / "report.jsonl").exists()
    if "pesq" not in ABSENT:
        assert report["items"]["other/silent.wav"]["pesq"] is None
        assert report["undefined"]["pesq"] == 1
        assert report["mean"]["pesq"] == report["categories"]["speech"]["pesq"]


def _row(name, mel):
    return {"name": name, "seconds": 1.0, "metrics": {"mel": mel}, "additional": {}}


def test_an_interrupted_run_carries_on(tmp_path, monkeypatch):
    wav = _voice(0.2)
    reference, estimate = _folders(tmp_path, {f"{i}.wav": (wav, wav, 16000) for i in range(4)})
    clips = reconstruction.match_folders(reference, estimate)
    output, scored = tmp_path / "r.json", []

    def scoring(stop_after):
        def run(jobs, workers):
            for clip, _, _ in jobs:
                if len(scored) == stop_after:
                    raise KeyboardInterrupt
                scored.append(clip.name)
                yield _row(clip.name, float(clip.name[0]))

        return run

    monkeypatch.setattr(reconstruction, "_in_parallel", scoring(2))
    with pytest.raises(KeyboardInterrupt):
        reconstruction.evaluate(clips, output, "e")
    assert not output.exists()
    with (tmp_path / "r.jsonl").open("a") as journal:
        journal.write('{"name": "2.wav", "key"')  # killed while writing
    monkeypatch.setattr(reconstruction, "_in_parallel", scoring(99))
    report = reconstruction.evaluate(clips, output, "e")
    assert scored == ["0.wav", "1.wav", "2.wav", "3.wav"]
    assert report["mean"]["mel"] == 1.5
    assert reconstruction.evaluate(clips, output, "e") == report  # a finished one is not made again
    assert len(scored) == 4
    assert not (tmp_path / "r.jsonl").exists()
    reconstruction.evaluate(clips, output, "another codec")
    assert len(scored) == 8


def test_unusable_clips_are_named_and_counted(tmp_path, capsys):
    """One is damaged, one cut short; a report with failures is tried again, but for its rest."""
    wav = _voice(0.5)
    names = [f"{i}.wav" for i in range(4)]
    reference, estimate = _folders(tmp_path, {name: (wav, wav, 16000) for name in names})
    whole = (reference / "2.wav").read_bytes()
    (estimate / "1.wav").write_bytes(b"RIFF....")
    (reference / "2.wav").write_bytes(whole[: len(whole) // 2])
    output = tmp_path / "report.json"
    command = ["reconstruction", "--reference", str(reference), "--estimate", str(estimate)]
    command += ["--output", str(output), "--workers", "1"]
    assert evaluate.main(command) == 1
    said = capsys.readouterr().err
    report = json.loads(output.read_text())
    assert sorted(report["items"]) == ["0.wav", "3.wav"]
    assert sorted(report["failed"]) == ["1.wav", "2.wav"]
    assert "truncated" in report["failed"]["2.wav"]
    assert str(estimate / "1.wav") in said
    assert str(reference / "2.wav") in said
    (reference / "2.wav").write_bytes(whole)
    (estimate / "1.wav").write_bytes(whole)
    assert evaluate.main(command) == 0
    assert sorted(json.loads(output.read_text())["items"]) == names


class QuietCodec:
    """Decodes the level of 20 ms frames as noise: near silence where its input is."""

    sample_rate, hop, levels, codebook_size, batch_size = 16000, 320, 1, 4096, 1
    frame_rate, buckets, architecture, digest = 50.0, (10_000,), "quiet", "0" * 16

    def encode(self, wav, rate=None):
        if isinstance(wav, list):
            return [self.encode(w) for w in wav]
        frames = np.pad(wav, (0, -len(wav) % 320)).reshape(-1, 320)
        return np.clip(np.abs(frames).mean(axis=1) * 4e5, 0, 4095).astype(np.int32)

    def check_codes(self, codes):
        return codes

    def decode(self, codes):
        if isinstance(codes, list):
            return [self.decode(c) for c in codes]
        noise = np.random.default_rng(0).normal(size=320 * len(codes))
        return (noise * np.repeat(codes / 4e5, 320)).astype(np.float32)


@pytest.mark.parametrize("rate", [16000, 44100])
@pytest.mark.parametrize("kind", ["wav", "flac"])
def test_a_codec_and_the_files_it_wrote_get_one_score(tmp_path, monkeypatch, rate, kind):
    """`--codec`, `--keep` and `decode`, in near-silence, where 16 bits made mel .89 into .99."""
    from llmcodec_jax import decode, encode

    codec = QuietCodec()
    monkeypatch.setattr("llmcodec_jax.load_codec", lambda *_, **__: codec)
    monkeypatch.setattr("llmcodec_jax.codec.store.digest", lambda *_: "quiet")
    generator = np.random.default_rng(1)
    for index in range(3):
        wav = 10 ** -(3 + index / 2) * generator.normal(size=rate).astype(np.float32)
        audio.write(tmp_path / "reference" / f"{index}.wav", wav, rate, exact=True)
    score = ["reconstruction", "--reference", str(tmp_path / "reference"), "--workers", "1"]
    reports = [str(tmp_path / f"{way}.json") for way in ("codec", "kept", "decoded")]
    keep = ["--keep", str(tmp_path / "kept")]
    assert evaluate.main([*score, "--codec", "x", *keep, "--output", reports[0]]) == 0
    assert evaluate.main([*score, "--estimate", keep[1], "--output", reports[1]]) == 0
    folders = [str(tmp_path / name) for name in ("reference", "tokens", "decoded")]
    assert encode.main(["--codec", "x", "--input", folders[0], "--output", folders[1]]) == 0
    coding = ["--codec", "x", "--input", folders[1], "--output", folders[2], "--format", kind]
    assert decode.main(coding) == 0
    assert evaluate.main([*score, "--estimate", folders[2], "--output", reports[2]]) == 0
    means = [json.loads(Path(path).read_text())["mean"] for path in reports]
    for way in means[1:]:
        for metric in ("mel", "stft", "waveform"):
            assert way[metric] == pytest.approx(means[0][metric], rel=1e-3), metric


def test_changed_estimates_are_scored_again(tmp_path, monkeypatch):
    wav = _voice(0.2)
    reference, estimate = _folders(tmp_path, {"a.wav": (wav, wav, 16000)})
    before = reconstruction.match_folders(reference, estimate)[0].key("e")
    soundfile.write(estimate / "a.wav", wav[:-1], 16000)
    assert reconstruction.match_folders(reference, estimate)[0].key("e") != before


def test_a_missing_estimate_is_an_error(tmp_path, capsys):
    wav = _voice(0.2)
    reference, estimate = _folders(
        tmp_path, {"a.wav": (wav, wav, 16000), "b.wav": (wav, wav, 16000)}
    )
    (estimate / "b.wav").rename(estimate / "c.wav")
    arguments = ["reconstruction", "--reference", str(reference), "--estimate", str(estimate)]
    assert evaluate.main(arguments) == 2
    assert "b.wav" in capsys.readouterr().err
    assert evaluate.main(["reconstruction", "--reference", str(reference)]) == 2


def test_estimates_may_have_another_extension(tmp_path):
    wav = _voice(0.2)
    reference, estimate = _folders(tmp_path, {"a.flac": (wav, wav, 16000)})
    audio.write(estimate / "a.wav", wav, 16000)
    (estimate / "a.flac").unlink()
    assert reconstruction.match_folders(reference, estimate)[0].estimate.name == "a.wav"


def test_the_benchmarks_way_through_a_codec(tmp_path):
    """Resampled to the codec's rate, coded, cut to its input's length, resampled back."""
    wav = _voice(0.5, 44100)
    soundfile.write(tmp_path / "a.wav", np.stack([wav, wav], 1), 44100)
    heard = []

    def encode(wav, rate):
        heard.append((wav, rate))
        return np.arange(1 + len(wav) // 320)

    codec = SimpleNamespace(
        sample_rate=16000,
        encode=encode,
        decode=lambda codes: np.pad(heard[0][0], (0, 400)),
    )
    coded = reconstruction.codec_coder(codec)(tmp_path / "a.wav")
    assert heard[0][1] == 16000
    assert heard[0][0].shape == (8000,)
    assert coded.rate == 16000
    assert coded.wav.shape == (1, 8000)
    row = reconstruction.score_clip(
        reconstruction.Clip("a.wav", tmp_path / "a.wav", None), coded, ()
    )
    assert row["metrics"]["waveform"] < 0.01
    report = reconstruction.summarise([row])
    assert report["codes"]["tokens"] == 26
    assert report["codes"]["codes_used"] == [26]
    assert report["codes"]["unigram_entropy"][0] == pytest.approx(math.log(26))


def test_quick_metrics_are_the_benchmarks():
    wav = _voice()
    noisy = wav + 0.01 * np.random.default_rng(0).normal(size=wav.shape).astype(np.float32)
    quick = quick_metrics(wav, noisy, 16000)
    whole = codec_superb.score(wav[None], 16000, noisy[None], 16000)
    assert set(quick) == {"mel", "stft", "pesq", "stoi"} - set(ABSENT)
    for name, value in quick.items():
        assert value == pytest.approx(whole[name])


def test_additional_measures():
    wav = _voice()
    noise = 0.01 * np.random.default_rng(0).normal(size=wav.shape)
    louder = additional.score(wav, 3 * wav, 16000)
    assert louder["si_sdr"] > 60
    assert louder["mcd"] < 1
    noisy = additional.score(wav, wav + noise, 16000)
    expected = 10 * np.log10(np.var(wav) / np.var(noise))
    assert noisy["si_sdr"] == pytest.approx(expected, abs=0.2)
    assert noisy["mcd"] > 3
    assert math.isnan(additional.si_sdr(0 * wav, wav))


def test_edit_distance():
    assert additional.edit_distance("kitten", "sitting") == 3
    assert additional.edit_distance([], [1, 2]) == 2
    assert additional.edit_distance([1, 2, 3], []) == 3
    generator = np.random.default_rng(0)
    for _ in range(20):
        first, second = (generator.integers(0, 4, generator.integers(1, 9)) for _ in range(2))
        table = np.add.outer(np.arange(len(first) + 1), np.arange(len(second) + 1))
        for i, a in enumerate(first):
            for j, b in enumerate(second):
                table[i + 1, j + 1] = min(
                    table[i, j + 1] + 1, table[i + 1, j] + 1, table[i, j] + (a != b)
                )
        assert additional.edit_distance(first, second) == table[-1, -1]


def test_help_names_the_commands():
    shown = subprocess.run(
        [sys.executable, "-m", "llmcodec_jax.evaluate", "--help"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert "reconstruction" in shown
