"""Streams equal the whole clip, whatever the pieces they come in."""

import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llmcodec_jax import stream as command
from llmcodec_jax.codec import store
from llmcodec_jax.codec.inference import Codec
from llmcodec_jax.codec.streaming import Stream
from tests.codec.families import EXAMPLES
from tests.tiny import babble


@pytest.fixture(scope="module", params=["encodec", "mimi"])
def case(request):
    codec = EXAMPLES[request.param]
    wav = jnp.zeros((1, 8 * codec.hop))
    init = jax.jit(lambda key: codec.init(key, wav, method="reconstruct"))
    return codec, init(jax.random.key(3, impl="rbg"))


def in_pieces(method, values, sizes):
    ends = np.cumsum(sizes)
    return [method(piece) for piece in np.split(values, ends[ends < len(values)])]


@pytest.mark.parametrize("frames", [1, 3])
def test_stream_equals_the_whole_clip(case, frames):
    codec, variables = case
    wav = babble(41.4 * codec.hop / codec.sample_rate, 1, codec.sample_rate)
    padded = np.pad(wav, (0, -len(wav) % codec.hop))[None]
    output, sound = jax.jit(lambda v, w: codec.apply(v, w, method="reconstruct"))(variables, padded)
    stream = Stream(codec, variables, frames)
    assert stream.latency == frames * codec.hop / codec.sample_rate
    for _ in range(2):  # a flushed stream begins anew
        pieces = in_pieces(stream.encode, wav, np.random.default_rng(0).integers(1, 60, 99))
        codes = np.concatenate([*pieces, stream.flush_encoder()])
        np.testing.assert_array_equal(codes, output.codes[0])
        pieces = in_pieces(stream.decode, codes, [1, 9, 2, 4, 5] * 9)
        heard = np.concatenate([*pieces, stream.flush_decoder()])
        np.testing.assert_allclose(heard, sound[0], atol=1e-4)
    assert {type(leaf) for leaf in jax.tree.leaves(stream.state)} == {np.ndarray}


def test_clips_shorter_than_the_start_and_fewer_levels(case):
    codec, variables = case
    wav = babble(1.6 * codec.hop / codec.sample_rate, 2, codec.sample_rate)
    stream = Stream(codec, variables, 1, levels=2)
    codes = np.concatenate([stream.encode(wav), stream.flush_encoder()])
    padded = np.pad(wav, (0, -len(wav) % codec.hop))[None]
    whole = jax.jit(lambda v, w: codec.apply(v, w, levels=2, method="encode"))(variables, padded)
    np.testing.assert_array_equal(codes, whole.codes[0])
    sound = jax.jit(lambda v, c: codec.apply(v, c, method="decode_codes"))(variables, whole.codes)
    heard = np.concatenate([stream.decode(codes), stream.flush_decoder()])
    np.testing.assert_allclose(heard, sound[0], atol=1e-4)


def test_in_use_fewer_levels_are_the_first(case):
    codec, variables = case
    ready = Codec(codec, variables, buckets=(16,))
    wav = babble(21 * codec.hop / codec.sample_rate, 5, codec.sample_rate)
    pair = [wav, wav[: 9 * codec.hop]]
    for few, every in zip(ready.encode(pair, levels=2), ready.encode(pair), strict=True):
        np.testing.assert_array_equal(few, every[:, :2])
        assert len(ready.decode(few)) == len(few) * codec.hop
    with pytest.raises(ValueError, match="1 to 3"):
        ready.encode(wav, levels=4)


def test_state_can_be_put_back(case):
    codec, variables = case
    wav = babble(20 * codec.hop / codec.sample_rate, 3, codec.sample_rate)
    stream = Stream(codec, variables)
    stream.encode(wav[: 12 * codec.hop])
    kept = stream.state
    once = stream.encode(wav[12 * codec.hop :])
    stream.state = kept
    np.testing.assert_array_equal(stream.encode(wav[12 * codec.hop :]), once)


def test_command_streams_raw_audio(case, tmp_path):
    codec, variables = case
    store.save_codec_folder(tmp_path / "codec", codec, variables)
    wav = babble(20.5 * codec.hop / codec.sample_rate, 4, codec.sample_rate)
    pcm = (wav * 32768).round().astype("<i2")
    stream = Stream(*store.load(tmp_path / "codec"), frames=2)
    out = io.BytesIO()
    command.warm_up(stream)
    samples, wall, cpu = command.run(stream, io.BytesIO(pcm.tobytes() + b"x"), out)
    assert samples == len(pcm)
    assert wall > 0
    assert cpu > 0
    padded = np.pad(pcm / np.float32(32768), (0, -len(pcm) % codec.hop))[None]
    whole = jax.jit(lambda v, w: codec.apply(v, w, method="reconstruct"))(variables, padded)[1]
    heard = np.frombuffer(out.getvalue(), "<i2") / 32768
    np.testing.assert_allclose(heard, whole[0, : len(pcm)], atol=1e-4)


@pytest.mark.parametrize("name", ["dac", "encodec_48khz"])
def test_codecs_that_look_ahead_are_refused(name):
    with pytest.raises(ValueError, match="cannot stream"):
        Stream(EXAMPLES[name], {})
