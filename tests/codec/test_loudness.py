"""A codec that hears every clip equally loud: its loudness is the first level of its codes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llmcodec_jax.codec.conv import loudness
from llmcodec_jax.codec.inference import Codec
from tests.codec.families import EXAMPLES
from tests.tiny import babble


@pytest.fixture(scope="module")
def codec():
    module = EXAMPLES["encodec_48khz"].clone(codebook_size=1024, sample_rate=16_000)
    wav = jnp.zeros((1, 8 * module.hop))
    variables = jax.jit(lambda key: module.init(key, wav, method="reconstruct"))(jax.random.key(0))
    return Codec(module, jax.device_get(variables))


def test_a_fainter_clip_has_another_first_level_and_the_same_codes(codec):
    wav = babble(0.4, 1, codec.sample_rate)
    loud, faint = codec.encode([wav, wav * np.float32(0.1)])
    assert len(np.unique(loud[:, 0])) == 1
    np.testing.assert_array_equal(faint[:, 0], loud[:, 0] + 200)  # 20 dB in steps of 0.1
    np.testing.assert_array_equal(faint[:, 1:], loud[:, 1:])
    np.testing.assert_allclose(codec.decode(faint), 0.1 * codec.decode(loud), rtol=1e-3, atol=1e-7)


def test_the_first_level_is_the_root_mean_square(codec):
    wav = babble(0.5, 2, codec.sample_rate)[: 900 * codec.hop]
    code = codec.encode(wav)[0, 0]
    assert -0.1 * code == pytest.approx(20 * np.log10(np.sqrt(np.mean(wav**2))), abs=0.06)


def test_silence_and_more_than_full_scale_stay_in_the_table(codec):
    codes = codec.encode([np.zeros(800, "f4"), np.full(800, 3.0, "f4")])
    assert [code[0, 0] for code in codes] == [1023, 0]
    assert np.abs(codec.decode(codes[0])).max() < 1e-4
    table = loudness.level_table(1024, 5)
    assert table.shape == (1024, 5)
    np.testing.assert_array_equal(loudness.nearest(table[:, 0], 1024), np.arange(1024))


def test_long_audio_is_heard_a_window_at_a_time(codec):
    """Each window of a second has a loudness of its own, as the codec was made to hear it."""
    assert codec.buckets == (2000,)
    second = babble(1.0, 3, codec.sample_rate)
    wav = np.concatenate([second, np.float32(0.1) * second, second])
    codes = codec.encode(wav)
    assert len(codes) == len(wav) // codec.hop
    first, middle, last = codes[1000, 0], codes[3000, 0], codes[5500, 0]
    assert first == pytest.approx(last, abs=20)
    assert middle > first + 50
    sound = codec.decode(codes)
    assert sound.shape == wav.shape
