"""The report of generated speech."""

import json

import numpy as np
import pytest

from llmcodec_jax import audio, evaluate, load_codec
from llmcodec_jax.evaluation import additional, generated
from tests.tiny import babble

ABSENT = additional.absent(["speaker"])


def test_rows_are_matched_and_what_is_missing_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(additional.OPTIONAL, "wer", {"a_module_of_nobody": "its-package"})
    for name in ("v1", "v2", "out/a"):
        audio.write(tmp_path / f"{name}.wav", babble(0.6, len(name)), 16000)
    rows = [{"id": "a", "text": "x", "voice": str(tmp_path / "v1.wav")}, {"id": "b", "text": "y"}]
    (tmp_path / "l.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    output = tmp_path / "r.json"
    given = ["--list", str(tmp_path / "l.jsonl"), "--audio", str(tmp_path / "out")]
    command = ["generated", *given, "--output", str(output), "--additional", "wer"]
    assert evaluate.main(command) == 1
    assert "pip install its-package" in capsys.readouterr().out
    report = json.loads(output.read_text())
    assert report["clips"] == 1
    assert list(report["failed"]) == ["b"]
    assert report["absent"]["wer"] == "a_module_of_nobody not installed: pip install its-package"


def test_a_stranger_is_another_voice():
    assert generated._strangers(["a", "a", None, "b"]) == ["b", "b", "b", "a"]
    assert generated._strangers(["a", None]) == [None, "a"]


def test_loops_and_repeats_of_codes():
    said = np.arange(20)
    assert generated.loops(said) == generated.repeats(said) == 0
    assert generated.loops(np.tile(said, 3)) == pytest.approx(1 - 20 / 56)
    stuck = np.repeat([1, 2], 50)
    assert generated.repeats(stuck) == pytest.approx(98 / 99)
    assert np.isnan(generated.loops(stuck))  # two codes once the repeats are gone: no run of five
    levels = np.stack([said, said // 2], axis=1)
    assert generated.repeats(levels) == 0


def test_a_continuation_is_held_against_the_recording(tmp_path):
    codec = load_codec("mini")
    path = tmp_path / "clip.wav"
    audio.write(path, babble(4.0, 1), 16000)
    spoken = np.concatenate([babble(1.0, 1), np.tile(babble(0.2, 2), 10)])
    audio.write(tmp_path / "out" / "a.wav", spoken, 16000)
    rows = [{"id": "a", "continue": str(path)}]
    report = generated.evaluate(rows, tmp_path / "out", (), prompt_seconds=1.0, codec=codec)
    values = report["items"]["a"]
    assert values["loops"] > values["loops_original"]
    audio.write(path, babble(1.5, 1), 16000)  # goes on for half a second: too short to compare
    report = generated.evaluate(rows, tmp_path / "out", (), prompt_seconds=1.0, codec=codec)
    assert report["items"]["a"] == {}


def test_pooled_rates_weigh_words():
    items = [{"wer": 1.0, "words": 1}, {"wer": 0.0, "words": 3}, {"speaker": 0.5}]
    assert generated.pooled(items) == {"wer": pytest.approx(0.25), "words": 4}
    assert generated.pooled([{"speaker": 0.5}]) == {}
