import importlib.util
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llmcodec_jax.evaluation import speaker
from tests.conftest import babble

TOP_PLACES = [213, 224, 246, 100]
TOP = [0.18750839, 0.20458670, 0.25475949, 0.38249490]
"""The four largest values of a voice, by Resemblyzer 0.1.4 under PyTorch 2.13."""

needs_weights = pytest.mark.skipif(
    importlib.util.find_spec(speaker.WEIGHTS) is None,
    reason="no speaker encoder: pip install --no-deps resemblyzer",
)


def random_tensors(hidden=8, bands=5, layers=3):
    rng = np.random.default_rng(0)
    draw = lambda *shape: rng.normal(size=shape).astype(np.float32)  # noqa: E731
    tensors = {"linear.weight": draw(6, hidden), "linear.bias": draw(6)}
    for layer in range(layers):
        inputs = bands if layer == 0 else hidden
        tensors |= {
            f"lstm.weight_ih_l{layer}": draw(4 * hidden, inputs),
            f"lstm.weight_hh_l{layer}": draw(4 * hidden, hidden),
            f"lstm.bias_ih_l{layer}": draw(4 * hidden),
            f"lstm.bias_hh_l{layer}": draw(4 * hidden),
        }
    return tensors


def flax_params(tensors, layer):
    """PyTorch's stacked gates -> the parameters of flax's LSTMCell."""
    params = {}
    for name in ("ih", "hh"):
        weights = np.split(tensors[f"lstm.weight_{name}_l{layer}"], 4)
        for gate, weight in zip("ifgo", weights, strict=True):
            params[("i" if name == "ih" else "h") + gate] = {"kernel": weight.T}
    bias = tensors[f"lstm.bias_ih_l{layer}"] + tensors[f"lstm.bias_hh_l{layer}"]
    for gate, value in zip("ifgo", np.split(bias, 4), strict=True):
        params["h" + gate]["bias"] = value
    return params


def test_the_encoder_agrees_with_flax_lstm_cells():
    tensors = random_tensors()
    mels = np.random.default_rng(1).normal(size=(2, 9, 5)).astype(np.float32)
    hidden = jnp.asarray(mels)
    for layer in range(speaker.LAYERS):
        cell = nn.LSTMCell(8)
        run = nn.RNN(cell)
        hidden = run.apply({"params": {"cell": flax_params(tensors, layer)}}, hidden)
    voice = jax.nn.relu(hidden[:, -1] @ tensors["linear.weight"].T + tensors["linear.bias"])
    voice = voice / jnp.linalg.norm(voice, axis=1, keepdims=True)
    np.testing.assert_allclose(speaker.encode(mels, tensors), voice, atol=1e-5)


def test_parts_cover_the_clip():
    assert speaker.part_starts(1) == [0]
    assert speaker.part_starts(160 * 160) == [0]
    for samples in (30_000, 50_000, 123_456):
        starts = speaker.part_starts(samples)
        assert np.diff(starts).tolist() == [speaker.STEP] * (len(starts) - 1)
        uncovered = samples / speaker.HOP - (starts[-1] + speaker.PART)
        assert uncovered < speaker.STEP  # less than a step is left over at the end
        assert uncovered > -(1 - speaker.COVERAGE) * speaker.PART - 1  # and little is padding


def test_silence_has_no_voice():
    assert math.isnan(speaker.similarity(np.zeros(16000), babble(1, 0)))


@needs_weights
def test_published_weights_reproduce_the_published_encoder():
    voice = speaker.embed(babble(3.0, 1))
    assert voice.shape == (256,)
    assert np.linalg.norm(voice) == pytest.approx(1, abs=1e-5)
    np.testing.assert_allclose(voice[np.argsort(voice)[-4:]], TOP, atol=1e-5)
    assert np.argsort(voice)[-4:].tolist() == TOP_PLACES


@needs_weights
def test_a_voice_is_nearer_to_itself_than_to_another():
    first, other = babble(3.0, 1), babble(3.0, 3)
    assert speaker.similarity(first, first) == pytest.approx(1, abs=1e-5)
    assert speaker.similarity(first, 0.2 * first) > 0.9
    assert speaker.similarity(first, other) < 0.8
