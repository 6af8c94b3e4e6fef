"""Start rows of the audio vocabulary (method.md 2)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llmcodec_jax.lm import vocab

WIDTH, KEY = 6, jax.random.key(3)


@pytest.fixture(scope="module")
def text_rows():
    """Rows with a mean, a scale and correlations that noise would miss."""
    mix = jax.random.normal(jax.random.key(0), (WIDTH, WIDTH))
    return 3.0 + 0.1 * jax.random.normal(jax.random.key(1), (5000, WIDTH)) @ mix


def test_text_distribution_has_the_text_rows_mean_and_covariance(text_rows):
    rows = vocab.audio_embedding_init(text_rows, 50_000, KEY)
    assert rows.dtype == jnp.float32
    np.testing.assert_allclose(rows.mean(0), text_rows.mean(0), atol=0.01)
    np.testing.assert_allclose(np.cov(rows.T), np.cov(text_rows.T), atol=0.002)


def test_fewer_rows_than_channels_still_work():
    rows = vocab.audio_embedding_init(jnp.ones((2, WIDTH), jnp.bfloat16), 4, KEY)
    np.testing.assert_allclose(rows, 1.0, atol=1e-4)


def test_other_starts(text_rows):
    mean = vocab.audio_embedding_init(text_rows, 4, KEY, "mean")
    np.testing.assert_allclose(mean, np.broadcast_to(text_rows.mean(0), (4, WIDTH)), rtol=1e-5)
    normal = vocab.audio_embedding_init(text_rows, 20_000, KEY, "normal")
    np.testing.assert_allclose(normal.std(), 0.02, rtol=0.02)
    with pytest.raises(ValueError, match="text_distribution"):
        vocab.audio_embedding_init(text_rows, 4, KEY, "zeros")


def test_head_rows_follow_the_model(text_rows):
    """Tied: a copy of the audio input rows. Untied: drawn like the text head's rows."""
    audio = jax.random.normal(KEY, (30_000, WIDTH))
    tied = vocab.audio_head_init({"embed": {}}, audio, KEY)
    np.testing.assert_array_equal(tied, audio)
    assert tied is not audio
    untied = {"lm_head": {"kernel": text_rows.T}}
    head = vocab.audio_head_init(untied, audio, KEY)
    np.testing.assert_allclose(head.mean(0), text_rows.mean(0), atol=0.01)


def test_from_checkpoint(tmp_path, text_rows):
    rows, head = np.ones((4, WIDTH), np.float32), np.full((4, WIDTH), 2, np.float32)
    path = tmp_path / "rows.safetensors"
    vocab.save_audio_rows(path, rows, head)
    kind = f"from:{path}"
    np.testing.assert_array_equal(vocab.audio_embedding_init(text_rows, 4, KEY, kind), rows)
    np.testing.assert_array_equal(vocab.audio_head_init({}, rows, KEY, kind), head)
    with pytest.raises(ValueError, match="this run needs"):
        vocab.audio_embedding_init(text_rows, 5, KEY, kind)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        vocab.audio_embedding_init(text_rows, 4, KEY, "from:nowhere")
