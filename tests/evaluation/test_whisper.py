import json
import math

import numpy as np
import pytest

from llmcodec_jax import audio, evaluate
from llmcodec_jax.data.embedded import fetch_speech
from llmcodec_jax.evaluation import additional, reconstruction, whisper
from llmcodec_jax.evaluation.reports import EvaluationError
from tests.conftest import babble

ABSENT = additional.absent(["wer"])
needs_whisper = pytest.mark.skipif(bool(ABSENT), reason=ABSENT.get("wer", ""))


def test_a_missing_package_is_named_with_its_install_line(monkeypatch, tmp_path):
    monkeypatch.delenv(whisper.VARIABLE, raising=False)
    monkeypatch.setitem(additional.OPTIONAL, "wer", {"a_module_of_nobody": "its-package"})
    reason = additional.absent(["wer"])["wer"]
    assert reason == "a_module_of_nobody not installed: pip install its-package"
    wav = babble(0.6, 0)
    audio.write(tmp_path / "a" / "x.wav", wav, 16000)
    clips = reconstruction.match_folders(tmp_path / "a", tmp_path / "a")
    report = reconstruction.evaluate(clips, tmp_path / "r.json", "s", optional=("wer",), workers=1)
    assert report["absent"]["wer"] == reason
    assert "wer" not in report["additional"]["mean"]


def test_unknown_measures_are_refused(tmp_path, capsys):
    command = ["reconstruction", "--reference", str(tmp_path), "--estimate", str(tmp_path)]
    assert evaluate.main([*command, "--additional", "wer,sound"]) == 2
    assert "sound: expected one of wer, speaker, dnsmos, utmos" in capsys.readouterr().err


def test_a_folder_without_weights_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv(whisper.VARIABLE, str(tmp_path))
    with pytest.raises(EvaluationError, match=r"no model\.bin there"):
        whisper.model_folder()


def test_transcripts_beside_the_audio(tmp_path):
    (tmp_path / "a.txt").write_text("its own text\n")
    (tmp_path / "1-2.trans.txt").write_text("1-2-0000 FIRST LINE\n1-2-0001 second line\n")
    assert whisper.text_beside(tmp_path / "a.wav") == "its own text"
    assert whisper.text_beside(tmp_path / "1-2-0001.flac") == "second line"
    assert whisper.text_beside(tmp_path / "1-2-0002.flac") is None


def test_pooled_rates_weigh_clips_by_their_words():
    def row(name, wer, words, against="transcript"):
        hearing = {"against": against, "reference": "", "heard": "", "words": words}
        return {"name": name, "additional": {"wer": wer}, "hearing": hearing}

    report = whisper.summarise([row("a", 1.0, 1), row("b", 0.0, 9, "hearing"), row("c", None, 0)])
    assert report["pooled"] == {"wer": pytest.approx(0.1)}
    assert report["words"] == 10
    assert report["against"] == {"transcript": 2, "hearing": 1}


@needs_whisper
def test_error_rates_after_the_standard_normaliser():
    assert whisper.error_rates("Mr. Smith paid twenty-two dollars!", "mister smith paid $22") == {
        "wer": 0,
        "cer": 0,
    }
    assert whisper.error_rates("we saw the sea", "we sore the")["wer"] == pytest.approx(0.5)
    assert whisper.error_rates("yes", "yes yes yes")["wer"] == pytest.approx(2)
    assert math.isnan(whisper.error_rates("!?", "words")["wer"])


@needs_whisper
def test_silence_says_nothing():
    assert whisper.transcribe(np.zeros(16000, np.float32)) == ""


@needs_whisper
@pytest.mark.slow
def test_recorded_speech_is_understood(tmp_path):
    """Eight recorded prompts, by their own transcripts and through the command."""
    corpus = fetch_speech()
    if not any((corpus / "1").glob("*/1-1.trans.txt")):
        pytest.skip("no recorded prompts: they come by apt-get")
    folder = tmp_path / "speech"
    transcript = next((corpus / "1").glob("*/1-1.trans.txt"))
    lines = [line for line in transcript.read_text().splitlines() if len(line.split()) > 8][:8]
    for line in lines:
        name, _, text = line.partition(" ")
        wav, rate = audio.read(next(transcript.parent.glob(f"{name}.*")))
        audio.write(folder / f"{name}.wav", wav[:, 0], rate)
        (folder / f"{name}.txt").write_text(text)
    output = tmp_path / "report.json"
    command = ["reconstruction", "--reference", str(folder), "--estimate", str(folder)]
    command += ["--output", str(output), "--additional", "wer", "--workers", "1"]
    assert evaluate.main(command) == 0
    report = json.loads(output.read_text())
    assert report["hearing"]["against"] == {"transcript": 8}
    assert report["hearing"]["pooled"]["wer"] < 0.15
    assert report["hearing"]["pooled"]["wer"] == report["hearing"]["pooled"]["wer_original"]
