"""A residual, causal codec: levels take turns, and audio comes while it is written."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llmcodec_jax.codec.inference import Codec
from llmcodec_jax.lm import decoder, generate
from llmcodec_jax.lm.sampling import Sampling
from llmcodec_jax.speech_lm import speaker, template
from llmcodec_jax.speech_lm.data import bytes_of
from tests.codec.families import EXAMPLES
from tests.tiny import babble, tiny_lm_config


@pytest.fixture(scope="module")
def lm():
    """An untrained one over two levels of EnCodec's three."""
    module = EXAMPLES["encodec"]
    wav = jnp.zeros((1, 8 * module.hop))
    init = jax.jit(lambda key: module.init(key, wav, method="reconstruct"))
    codec = Codec(module, init(jax.random.key(0)), buckets=(64, 256))
    config = tiny_lm_config(1)
    words = template.Vocabulary(size=24, levels=2, text=config.vocab_size)
    rows = jax.random.normal(jax.random.key(1), (3, words.rows, config.width))
    writer = generate.Writer(
        params=decoder.init_params(config, jax.random.key(2)),
        embedding=rows[0],
        heads=0.3 * rows,
        allowed=jnp.asarray(words.allowed()).at[0, words.mark("<end>")].set(False),
        lora=None,
        config=config,
    )
    return speaker.SpeechLM(writer, words, "continuation", bytes_of, codec)


def test_levels_take_turns_and_streamed_audio_is_the_whole_clips(lm):
    start = babble(20 * lm.codec.hop / lm.codec.sample_rate, 1, lm.codec.sample_rate)
    request = speaker.Request(start=start, seed=3)
    seconds = 10 * lm.codec.hop / lm.codec.sample_rate
    written = lm.write([request], Sampling(), seconds)[0]
    ids, passes, _ = written
    assert len(ids) == 20
    assert passes <= 20
    assert ((ids // 24) == np.arange(20) % 2).all()
    spoken = lm.finish(request, written)
    assert spoken.codes.shape == (10, 2)
    assert len(spoken.wav) == 30 * lm.codec.hop
    pieces = list(lm.stream(request, Sampling(), max_seconds=seconds, frames=2))
    assert len(pieces) > 3
    whole = lm.codec.decode(spoken.codes)
    np.testing.assert_allclose(np.concatenate(pieces), whole, atol=1e-4)
