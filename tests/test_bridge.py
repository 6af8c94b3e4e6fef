"""The fused bridge: its plain form's values and gradients, its memory, its modes."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llmcodec_jax import bridge as module
from llmcodec_jax.bridge import bridge, bridge_from_noise
from llmcodec_jax.codec.search import spacing
from llmcodec_jax.types import CodecOutput, Search

CLIPS, FRAMES, WIDTH, CODES, OUT = 2, 5, 6, 300, 12
KEY = jax.random.key(7)


def problem():
    keys = jax.random.split(jax.random.key(0), 6)
    tensors = (
        jax.random.normal(keys[0], (CLIPS, FRAMES, WIDTH)),
        jax.random.normal(keys[1], (CODES, WIDTH)),
        jax.random.normal(keys[2], (CODES,)),
        jax.random.normal(keys[3], (CODES, OUT)),
    )
    labels = jax.random.randint(keys[4], (CLIPS, FRAMES), 0, CODES)
    upstream = jax.random.normal(keys[5], (CLIPS, FRAMES, OUT))
    return tensors, labels, upstream


def fused_loss(labels, upstream, mode, chunk=512, lm=1.0, ce=1.0):
    def loss(query, weight, bias, embedding):
        output = bridge(
            query, weight, bias, embedding, KEY, 0.7, mode=mode, labels=labels, chunk=chunk
        )
        return lm * jnp.sum(output.embeds * upstream) + ce * jnp.sum(output.nll), output

    return jax.jit(jax.value_and_grad(loss, (0, 1, 2, 3), has_aux=True))


def plain_loss(labels, upstream, mode):
    noise = module._noise(KEY, 0, CODES, (CLIPS, FRAMES))

    def loss(query, weight, bias, embedding):
        query = jax.lax.stop_gradient(query) if mode == "detach" else query
        logits = jnp.einsum("btd,vd->btv", query, weight) + bias
        embeds = bridge_from_noise(logits, noise, embedding, 0.7, mode)
        likelihood = jax.nn.log_softmax(logits)
        nll = -jnp.take_along_axis(likelihood, labels[..., None], axis=-1)[..., 0]
        return jnp.sum(embeds * upstream) + jnp.sum(nll), (embeds, nll)

    return jax.jit(jax.value_and_grad(loss, (0, 1, 2, 3), has_aux=True))


@pytest.mark.parametrize("mode", module.MODES)
def test_fused_equals_plain(mode):
    tensors, labels, upstream = problem()
    (ours, output), gradients = fused_loss(labels, upstream, mode, chunk=128)(*tensors)
    (theirs, (embeds, nll)), expected = plain_loss(labels, upstream, mode)(*tensors)
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)
    np.testing.assert_array_equal(output.embeds, embeds)
    np.testing.assert_allclose(output.nll, nll, atol=1e-5)
    for a, b in zip(gradients, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)


def test_chunk_never_changes_the_sample():
    tensors, labels, upstream = problem()
    results = [
        fused_loss(labels, upstream, "gumbel", chunk)(*tensors) for chunk in (1, 256, 10_000)
    ]
    for result in results[1:]:
        np.testing.assert_array_equal(result[0][1].ids, results[0][0][1].ids)
        for a, b in zip(result[1], results[0][1], strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-5)


def test_noise_is_gumbel_and_the_picks_follow_the_softmax():
    logits = jnp.array([2.0, 1.0, 0.0, -1.0])
    query, weight = jnp.ones((1, 20_000, 1)), logits[:, None]
    labels = jnp.zeros((1, 20_000), jnp.int32)
    output = bridge(query, weight, jnp.zeros(4), jnp.eye(4), KEY, 0.3, mode="gumbel", labels=labels)
    share = np.bincount(output.ids[0], minlength=4) / 20_000
    np.testing.assert_allclose(share, jax.nn.softmax(logits), atol=0.015)


@pytest.mark.parametrize(("lm", "ce"), [(1.0, 0.0), (0.0, 1.0)])
def test_detach_lets_nothing_reach_the_encoder(lm, ce):
    tensors, labels, upstream = problem()
    _, gradients = fused_loss(labels, upstream, "detach", lm=lm, ce=ce)(*tensors)
    assert (gradients[0] == 0).all()
    learns = np.abs(gradients[1]).max() > 0
    assert learns == (ce > 0)  # the projection itself still learns from its cross-entropy


def coded(vectors, codes) -> CodecOutput:
    """What a codec would say whose latent, query and quantised latent are these vectors."""
    valid = jnp.ones(codes.shape, bool)
    return CodecOutput(vectors, codes, vectors, vectors[:, :, None], jnp.zeros(len(codes)), valid)


def test_native_logits_agree_with_the_quantiser():
    keys = jax.random.split(jax.random.key(1), 2)
    table = jax.random.normal(keys[0], (CODES, 8))
    table /= jnp.linalg.norm(table, axis=-1, keepdims=True)
    query = jax.random.normal(keys[1], (CLIPS, FRAMES, 8))
    query /= jnp.linalg.norm(query, axis=-1, keepdims=True)
    codes = jnp.argmax(query @ table.T, axis=-1)
    search = Search(table, "cosine")
    tensors = module.Native(0.1)({}, coded(query, codes), search, 1.0)
    output = bridge(*tensors, jnp.eye(CODES), KEY, 0.5, mode="ste", labels=codes)
    assert output.agree.all()
    distance = jnp.sum(jnp.square(query[..., None, :] - table), axis=-1)
    nll = -jnp.take_along_axis(
        jax.nn.log_softmax(-distance / (0.1 * spacing(table))), codes[..., None], axis=-1
    )
    np.testing.assert_allclose(output.nll, nll[..., 0], atol=1e-4)


def test_projection_can_start_in_agreement():
    project = module.Projection()
    vectors = jax.random.normal(jax.random.key(2), (CODES, WIDTH))
    codes = jnp.arange(10).reshape(2, 5)
    tensors = project(
        module.projection_from_codes(vectors), coded(vectors[codes], codes), None, 1.0
    )
    output = bridge(*tensors, jnp.eye(CODES), KEY, 0.5, mode="ste", labels=codes)
    assert output.agree.all()
    tensors = project(project.init(KEY, WIDTH, CODES), coded(vectors[codes], codes), None, 1.0)
    output = bridge(*tensors, jnp.eye(CODES), KEY, 0.5, mode="ste", labels=codes)
    assert output.agree.mean() < 0.5


def test_clamped_logits_pass_no_gradient():
    tensors, labels, upstream = problem()
    query, weight, bias, embedding = tensors
    (value, _), gradients = fused_loss(labels, upstream, "ste")(
        query, weight, bias + 500, embedding
    )
    assert np.isfinite(value)
    assert all((g == 0).all() for g in gradients[:3])


@pytest.mark.parametrize("mode", module.MODES)
def test_nothing_of_vocabulary_size_per_frame_is_ever_made(mode):
    """The compiled program holds no array with frames and codes both whole."""
    codes = 1024
    keys = jax.random.split(jax.random.key(0), 3)
    query = jax.random.normal(keys[0], (3, 7, 8))
    weight = jax.random.normal(keys[1], (codes, 8))
    embedding = jax.random.normal(keys[2], (codes, 16))
    labels = jnp.zeros((3, 7), jnp.int32)

    def loss(query, weight, embedding):
        output = bridge(
            query, weight, jnp.zeros(codes), embedding, KEY, 0.5,
            mode=mode, labels=labels, chunk=128,
        )  # fmt: skip
        return output.embeds.sum() + output.nll.sum()

    program = jax.jit(jax.grad(loss, (0, 1, 2))).lower(query, weight, embedding).compile().as_text()
    shapes = {tuple(map(int, s.split(","))) for s in re.findall(r"\w+\[([\d,]+)\]", program)}
    assert (3, 7, 128) in shapes
    assert not [s for s in shapes if codes in s and np.prod(s) >= 3 * 7 * codes]


def test_unknown_mode_is_named():
    with pytest.raises(ValueError, match="straight"):
        bridge_from_noise(jnp.zeros((1, 1, 2)), 0.0, jnp.eye(2), 1.0, "straight")
