"""Clips are coded once; what an interruption left is gone on with, and said."""

import logging

import numpy as np
import pytest

from llmcodec_jax import audio, load_codec
from llmcodec_jax.data.sources import open_source
from llmcodec_jax.errors import UsageError
from llmcodec_jax.speech_lm import corpus, data, sources
from llmcodec_jax.speech_lm.config import SpeechConfig, SpeechData
from llmcodec_jax.speech_lm.template import Vocabulary
from tests.tiny import babble


@pytest.fixture
def source(tmp_path):
    for n in range(3):
        audio.write(tmp_path / "clips" / f"{n}.wav", babble(0.3, n), 16_000)
    return open_source(f"folder:{tmp_path / 'clips'}")


def test_interrupted_coding_goes_on_and_says_so(tmp_path, source, caplog, monkeypatch):
    monkeypatch.setattr(corpus, "PIECE", 1)
    codec = load_codec("mini")
    caplog.set_level(logging.INFO)
    first = next(corpus.read_coded(source, codec, 1, tmp_path / "cache"))  # and no further
    assert "coding clips, 3 of 3 clips" in caplog.text
    pieces = list((tmp_path / "cache").rglob("*.npz"))
    assert len(pieces) == 1
    written = pieces[0].stat().st_mtime_ns

    caplog.clear()
    clips = list(corpus.read_coded(source, codec, 1, tmp_path / "cache"))
    assert "coding clips, 2 of 3 clips" in caplog.text
    assert pieces[0].stat().st_mtime_ns == written
    np.testing.assert_array_equal(clips[0].codes, first.codes)
    wav = audio.load(tmp_path / "clips" / "2.wav", 16_000)
    np.testing.assert_array_equal(clips[2].codes, codec.encode(wav, 16_000))

    caplog.clear()
    assert len(list(corpus.read_coded(source, codec, 1, tmp_path / "cache"))) == 3
    assert "coding" not in caplog.text


def test_other_speeds_are_other_voices_and_never_held_out(tmp_path, source):
    codec = load_codec("mini")
    cache = tmp_path / "cache"
    clips = sources.read(f"folder:{tmp_path / 'clips'}", codec, 1, cache, speeds=(0.5, 1.25))
    assert [(clip.name, clip.speed) for clip in clips[3:6]] == [(str(n), 0.5) for n in range(3)]
    assert [len(clips[n].codes) for n in (0, 3, 6)] == [15, 30, 12]
    wav = audio.resample(audio.load(tmp_path / "clips" / "0.wav", 16_000), 8_000, 16_000)
    np.testing.assert_array_equal(clips[3].codes, codec.encode(wav, 16_000))

    for split_by in ("name", "speaker", "text"):
        spoken = [clip._replace(speaker=f"s{clip.name}", text=f"t{clip.name}") for clip in clips]
        options = {"eval_fraction": 0.7, "eval_max": 1, "split_by": split_by}
        training, held = data.split(spoken, SpeechData(**options))
        assert [clip.speed for clip in held] == [1.0]
        assert held[0].name not in {clip.name for clip in training}
        others = {clip.name for clip in training}
        assert len(training) == 3 * len(others) > 0
        # Whoever speaks at another speed is not the one who speaks at this.
        config = SpeechConfig(task="tts", data=SpeechData(voice_share=1.0))
        same = [clip._replace(speaker="s") for clip in spoken]
        make = data.Sequences(config, Vocabulary(8192, 1, 256), 50, data.bytes_of, same)
        found = {tuple(make.voice(same[3], np.random.default_rng(n))) for n in range(20)}
        assert found == {tuple(clip.codes) for clip in same[4:6]}


@pytest.mark.parametrize("speeds", [(1.0,), (0.9, 0.9), (3.0,)])
def test_speeds_that_are_none_are_named(speeds):
    with pytest.raises(UsageError, match=r"data\.speeds"):
        SpeechConfig(data=SpeechData(speeds=speeds))
