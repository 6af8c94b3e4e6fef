"""load_codec, encode and decode: any audio, few compilations, long files without seams."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import llmcodec_jax
from llmcodec_jax import audio
from llmcodec_jax.codec.auv.model import AUV
from llmcodec_jax.codec.inference import Codec
from tests.tiny import SMALL, init


def tone(seconds, rate=16_000, seed=0):
    """A few drifting tones in noise: float32 [N]."""
    rng = np.random.default_rng(seed)
    time = np.arange(int(seconds * rate)) / rate
    tones = sum(np.sin(2 * np.pi * f * time + np.sin(3 * time)) for f in rng.uniform(80, 3000, 4))
    return (0.05 * tones + 0.01 * rng.standard_normal(len(time))).astype("f4")


@pytest.fixture(scope="module")
def codec(small_folder):
    codec = llmcodec_jax.load_codec(small_folder)
    assert codec.buckets[-1] == 1500
    return codec


def test_importing_the_package_does_not_load_jax():
    check = "import sys, llmcodec_jax; assert 'jax' not in sys.modules; llmcodec_jax.Codec"
    subprocess.run([sys.executable, "-c", check], check=True)


def test_public_surface(codec):
    assert isinstance(codec, llmcodec_jax.Codec)
    assert (codec.sample_rate, codec.codebook_size, codec.frame_rate) == (16_000, 96, 50.0)
    codes = codec.encode(tone(1.01), 16_000)
    assert codes.dtype == np.int32
    assert codes.shape == (51,)
    wav = codec.decode(codes)
    assert wav.dtype == np.float32
    assert wav.shape == (51 * 320,)


def test_codes_are_those_of_the_module(codec, small):
    wav = tone(1.0)
    module, variables = small
    expected = module.apply(variables, wav[None], method="encode")
    np.testing.assert_array_equal(codec.encode(wav), expected.codes[0])
    decoded = module.apply(variables, expected.codes, method="decode_codes")
    np.testing.assert_allclose(codec.decode(np.asarray(expected.codes[0])), decoded[0], atol=1e-5)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_a_list_is_coded_like_its_clips_one_by_one(small, batch_size):
    codec = Codec(*small, batch_size=batch_size, buckets=(100, 300))
    clips = [tone(s, seed=i) for i, s in enumerate([0.3, 5.9, 0.001, 1.9, 2.0, 2.01, 9, 0.5])]
    together = codec.encode(clips)
    for clip, codes in zip(clips, together, strict=True):
        assert len(codes) == -(-len(clip) // 320)
        np.testing.assert_array_equal(codec.encode(clip), codes)
    wavs = codec.decode(together)
    for codes, wav in zip(together, wavs, strict=True):
        np.testing.assert_array_equal(codec.decode(codes), wav)
    assert codec.compilations == 4


def test_any_rate_channels_and_type(codec):
    wav = tone(1.5, 44_100)
    stereo = np.stack([wav, wav], axis=1)
    codes = codec.encode(wav, 44_100)
    assert len(codes) == 75
    np.testing.assert_array_equal(codec.encode(stereo, 44_100), codes)
    mono = tone(1.0)
    pcm = np.round(mono * 32768).astype(np.int16)
    np.testing.assert_array_equal(codec.encode(pcm), codec.encode(pcm / np.float32(32768)))
    assert len(codec.encode(tone(1.0, 8000), 8000)) == 50


def test_resampled_audio_codes_like_the_original_rate(codec):
    wav = tone(2.0)
    up = audio.resample(wav, 16_000, 48_000)
    agreement = np.mean(codec.encode(up, 48_000) == codec.encode(wav))
    assert agreement > 0.5  # a random codec is the harshest judge of a resampler's band edge


@pytest.mark.parametrize(
    ("wav", "message"),
    [
        (np.zeros(0), "not empty"),
        (np.zeros((2, 3, 4)), "channels"),
        (np.zeros((2, 16_000)), r"pass \[N, channels\]"),
        (np.array([0.0, np.nan]), "NaN"),
    ],
)
def test_unusable_audio_says_why(codec, wav, message):
    with pytest.raises(ValueError, match=message):
        codec.encode(wav)


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        (np.array([3, 96]), "has 96"),
        (np.array([-1]), "from -1"),
        (np.array([0.5]), "integers"),
        (np.zeros((3, 2), int), r"\[T\]"),
        (np.zeros(0, int), r"\[T\]"),
    ],
)
def test_unusable_codes_say_why(codec, codes, message):
    with pytest.raises(ValueError, match=message):
        codec.decode(codes)


def test_a_list_of_integers_is_one_clip(codec):
    codes = codec.encode(tone(0.5))
    np.testing.assert_array_equal(codec.decode(codes.tolist()), codec.decode(codes))
    assert codec.decode([]) == []
    with pytest.raises(ValueError, match="integers"):
        codec.decode([0.5, 1.0])


@pytest.mark.parametrize("rate", [0, -1, float("nan"), float("inf"), "16000", True])
def test_an_impossible_rate_is_told(codec, rate):
    with pytest.raises(ValueError, match="sample_rate is"):
        codec.encode(tone(0.1), rate)


@pytest.mark.parametrize("name", ["clip.wav", Path("clip.wav"), ["clip.wav"]])
def test_a_path_is_told_from_samples(codec, name):
    with pytest.raises(ValueError, match=r"clip\.wav.* is a file's name, not its samples"):
        codec.encode(name)
    with pytest.raises(ValueError, match=r"clip\.wav.* is a file's name, not codes"):
        codec.decode(name)


def test_what_is_no_array_of_numbers_is_told(codec):
    with pytest.raises(ValueError, match="audio must be"):
        codec.encode(np.zeros(400, np.uint8))
    with pytest.raises(ValueError, match="audio must be"):
        codec.encode([[0.1, [0.2]]])
    with pytest.raises(ValueError, match="codes must be"):
        codec.decode([[[1], [2, 3]]])


def test_long_audio_has_no_seams(small):
    """Windows of 8 s against the whole 60 s at once: no worse where windows meet than inside."""
    windowed = Codec(*small, buckets=(100, 400))
    whole = Codec(*small, buckets=(3000,))
    wav = tone(59.99)
    codes, reference = windowed.encode(wav), whole.encode(wav)
    assert codes.shape == reference.shape == (3000,)
    step = 400 - 2 * (400 // 12)
    joints = np.arange(400 - 400 // 12, 3000, step)
    near = (np.abs(np.arange(3000)[:, None] - joints) <= 10).any(axis=1)
    agree = codes == reference
    assert agree[near].mean() > agree[~near].mean() - 0.1
    audio_windowed, audio_whole = windowed.decode(reference), whole.decode(reference)
    assert len(audio_windowed) == len(audio_whole) == 3000 * 320
    error = np.square(audio_windowed - audio_whole).reshape(3000, 320).mean(axis=1)
    assert error[near].mean() < 2 * error[~near].mean() + 1e-12
    jump = np.abs(np.diff(audio_windowed)).reshape(-1)
    assert jump[joints[0] * 320 - 5000 : joints[0] * 320 + 5000].max() <= jump.max()


def test_streaming_does_not_depend_on_block_sizes(small):
    codec = Codec(*small, buckets=(200,))
    wav = tone(17.3)
    reference = codec.encode(wav)
    for size in (777, 64_000, len(wav)):
        blocks = [wav[i : i + size] for i in range(0, len(wav), size)]
        streamed = np.concatenate(list(codec.encode_stream(blocks)))
        np.testing.assert_array_equal(streamed, reference)
    assert len(codec.decode(reference)) == len(reference) * 320


def test_windows_cover_every_length(small):
    codec = Codec(*small, buckets=(200,))
    for frames in (200, 201, 232, 233, 366, 367, 368, 399, 400):
        codes = codec.encode(tone(frames / 50))
        assert len(codes) == frames
        assert len(codec.decode(codes)) == frames * 320


def test_residual_codes_round_trip():
    module = AUV(**SMALL, levels=2)
    codec = Codec(module, init(module), buckets=(100,))
    for seconds in (0.5, 5.0):
        codes = codec.encode(tone(seconds))
        assert codes.shape == (seconds * 50, 2)
        assert codec.decode(codes).shape == (seconds * 16_000,)
