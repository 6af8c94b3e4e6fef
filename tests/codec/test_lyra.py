"""Lyra V2's published files, where LLMCODEC_LYRA names their folder and their runtime is here."""

import os

import numpy as np
import pytest

import llmcodec_jax
from llmcodec_jax.codec import lyra
from llmcodec_jax.errors import UsageError
from tests.tiny import babble


@pytest.fixture(scope="module")
def codec():
    pytest.importorskip("ai_edge_litert")
    folder = os.environ.get("LLMCODEC_LYRA", "")
    if not folder:
        pytest.skip("LLMCODEC_LYRA names no folder")
    return llmcodec_jax.load_codec(folder)


def test_real_weights_code_speech_like_sound(codec):
    wav = babble(1.01, 0, 16_000)
    codes = codec.encode(wav)
    assert codes.shape == (51, 46)
    assert 0 <= codes.min() <= codes.max() < 16
    assert len(np.unique(codes)) == 16
    sound = codec.decode(codes)
    assert sound.shape == (51 * 320,)
    shared = np.corrcoef(wav[: 50 * 320], sound[: 50 * 320])[0, 1]
    fewer = codec.decode(codec.encode(wav, levels=4))
    assert shared > np.corrcoef(wav[: 50 * 320], fewer[: 50 * 320])[0, 1]


def test_clips_do_not_depend_on_those_before_them(codec):
    first, second = (babble(0.5, seed, 16_000) for seed in (0, 1))
    alone = codec.encode(second)
    np.testing.assert_array_equal(codec.encode([first, second])[1], alone)
    np.testing.assert_array_equal(codec.decode(alone), codec.decode([alone, alone])[1])
    few = codec.encode(second, levels=16)
    np.testing.assert_array_equal(few, alone[:, :16])


def test_other_files_are_refused_by_name(tmp_path):
    for name in lyra.FILES:
        (tmp_path / name).write_bytes(b"nothing of the kind" * 10)
    with pytest.raises(lyra.LyraError, match=str(tmp_path)):
        llmcodec_jax.load_codec(tmp_path)
    with open(tmp_path / lyra.ENCODER, "r+b") as file:
        file.truncate(lyra.LARGEST + 1)
    with pytest.raises(lyra.LyraError, match=r"soundstream_encoder\.tflite: more than"):
        llmcodec_jax.load_codec(tmp_path)


def test_it_does_not_stream(codec):
    with pytest.raises(UsageError, match="whole clips"):
        codec.stream()
