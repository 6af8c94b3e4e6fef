"""The report of generated speech."""

import json

import pytest

from llmcodec_jax import audio, evaluate
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


def test_pooled_rates_weigh_words():
    items = [{"wer": 1.0, "words": 1}, {"wer": 0.0, "words": 3}, {"speaker": 0.5}]
    assert generated.pooled(items) == {"wer": pytest.approx(0.25), "words": 4}
    assert generated.pooled([{"speaker": 0.5}]) == {}
