"""Audio files: what cannot be used is named, what is written loses nothing."""

import logging
import os

import numpy as np
import pytest
import soundfile

from llmcodec_jax import audio

RATE = 16_000
FORMATS = {
    "wav": {"subtype": "PCM_16"},
    "float.wav": {"subtype": "FLOAT"},
    "flac": {},
    "ogg": {"subtype": "VORBIS"},
    "opus": {"format": "OGG", "subtype": "OPUS"},
    "mp3": {},
}


def noise(seconds: float = 1.0) -> np.ndarray:
    return 0.1 * np.random.default_rng(0).normal(size=round(seconds * RATE)).astype(np.float32)


@pytest.fixture(params=FORMATS)
def clip(request, tmp_path):
    path = tmp_path / f"clip.{request.param}"
    soundfile.write(path, noise(3.0), RATE, **FORMATS[request.param])
    return path


def test_every_format_is_read_whole(clip):
    wav, rate = audio.read(clip)
    assert rate == RATE
    assert abs(len(wav) - 3 * RATE) < 0.1 * RATE


@pytest.mark.parametrize("share", [0.3, 0.6, 0.97])
def test_truncated_files_are_refused_by_name(clip, share):
    """They would be shorter clips whose transcripts say more than their audio."""
    data = clip.read_bytes()
    clip.write_bytes(data[: int(share * len(data))])
    with pytest.raises(audio.AudioError, match=rf"{clip.name}: (truncated|cannot be|holds no)"):
        audio.read(clip)


def test_a_stream_of_unknown_length_is_no_truncated_file(tmp_path):
    """What writes into a pipe cannot know the length and puts the largest one there is."""
    soundfile.write(tmp_path / "a.wav", noise(), RATE)
    data = bytearray((tmp_path / "a.wav").read_bytes())
    data[4:8] = data[40:44] = b"\xff\xff\xff\xff"
    (tmp_path / "a.wav").write_bytes(data)
    assert len(audio.read(tmp_path / "a.wav")[0]) == RATE


def test_a_header_that_lies_costs_no_memory(tmp_path):
    soundfile.write(tmp_path / "a.flac", noise(), RATE)
    data = bytearray((tmp_path / "a.flac").read_bytes())
    data[21] |= 0x0F  # the top bits of the 36-bit number of samples
    (tmp_path / "a.flac").write_bytes(data)
    with pytest.raises(audio.AudioError, match=r"a\.flac: (truncated|cannot be)"):
        audio.read(tmp_path / "a.flac")


def test_left_out_files_are_told(tmp_path, caplog):
    audio.write(tmp_path / "a.wav", noise(), RATE)
    (tmp_path / "._a.wav").write_bytes(b"of a Mac")
    with caplog.at_level(logging.WARNING):
        assert audio.find(tmp_path) == [tmp_path / "a.wav"]
    assert "left out 1 hidden files (such as ._a.wav)" in caplog.text
    (tmp_path / "a.wav").unlink()
    with pytest.raises(audio.AudioError, match="1 hidden files"):
        audio.find(tmp_path)


@pytest.mark.parametrize(("name", "error"), [("a.wav", 0.0), ("a.flac", 2**-23)])
def test_exact_files_hold_what_was_made(tmp_path, name, error):
    quiet = 1e-4 * noise()
    audio.write(tmp_path / name, quiet, RATE, exact=True)
    np.testing.assert_allclose(audio.read(tmp_path / name)[0][:, 0], quiet, rtol=0, atol=error)
    audio.write(tmp_path / name, quiet, RATE)
    assert np.abs(audio.read(tmp_path / name)[0][:, 0] - quiet).max() > 2**-17
    audio.write(tmp_path / name, np.array([2.0, -2.0]), RATE)
    np.testing.assert_allclose(audio.read(tmp_path / name)[0][:, 0], [1, -1], atol=1e-4)
    assert os.listdir(tmp_path) == [name]
