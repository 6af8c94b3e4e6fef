"""Clips are coded once; what an interruption left is gone on with, and said."""

import logging

import numpy as np
import pytest

from llmcodec_jax import audio, load_codec
from llmcodec_jax.data.sources import open_source
from llmcodec_jax.speech_lm import corpus
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
