"""Consistency terms: what must not change the codes, measured between queries."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llmcodec_jax.codec.search import spacing
from llmcodec_jax.training.consistency import NAMES, consistency_losses, query_distance
from llmcodec_jax.training.method import Consistency
from llmcodec_jax.types import CodecOutput
from tests.codec.toy_codec import ToyCodec
from tests.training.test_families import small_batch, small_method, with_toy  # noqa: F401

CODEC = ToyCodec()
BATCH = small_batch(CODEC)


def method(**settings):
    made = small_method(CODEC)
    weights = dataclasses.replace(made.weights, **dict.fromkeys(NAMES, 1.0))
    return dataclasses.replace(made, weights=weights, consistency=Consistency(**settings))


@pytest.fixture(scope="module")
def params():
    made = CODEC.init(jax.random.key(0), BATCH.wav, BATCH.wav_length, method="reconstruct")
    params = made["params"]  # a codebook at the scale of the latents, so that codes differ
    books = 0.02 * jax.random.normal(jax.random.key(1), params["quantizer"]["codebooks"].shape)
    return params | {"quantizer": {"codebooks": books}}


def losses(method, params):
    output = CODEC.apply({"params": params}, BATCH.wav, BATCH.wav_length, method="encode")
    found = consistency_losses(method, params, {}, BATCH, output, jax.random.key(2))
    return {name: total / count for name, (total, count) in found.items()}


def test_what_is_unchanged_costs_nothing(params):
    still = method(shift_seconds=0.0, noise_db=400.0, slice_share=1.0)
    changed = method(noise_db=0.0)
    assert set(losses(still, params)) == set(losses(changed, params)) == set(NAMES)
    for name, value in losses(still, params).items():
        assert value == pytest.approx(0, abs=1e-6), name
    for name, value in losses(changed, params).items():
        assert value > 1e-3, name


def test_terms_of_weight_zero_are_not_computed(params):
    made = small_method(CODEC)
    assert losses(made, params) == {}
    one = dataclasses.replace(made.weights, consistency_noise=0.3)
    assert set(losses(dataclasses.replace(made, weights=one), params)) == {"consistency_noise"}


def test_the_changed_version_learns(params):
    """Descent on the terms lowers them; the clean version's queries stand still as the target."""
    made = method(noise_db=10.0)
    total = jax.jit(jax.value_and_grad(lambda p: sum(losses(made, p).values())))
    first, gradient = total(params)
    norm = jnp.sqrt(sum(jnp.sum(jnp.square(g)) for g in jax.tree.leaves(gradient["encoder"])))
    encoder = jax.tree.map(lambda p, g: p - 0.02 * g / norm, params["encoder"], gradient["encoder"])
    assert total(params | {"encoder": encoder})[0] < first


def test_a_level_counts_where_those_before_it_agree():
    tables = 0.1 * jax.random.normal(jax.random.key(0), (3, 24, 12))
    variables = {"params": {"quantizer": {"codebooks": tables}}}
    codes = jnp.zeros((1, 2, 3), jnp.int32)
    query = jnp.zeros((1, 2, 3, 12))
    blank = jnp.zeros((1, 2, 12))
    clean = CodecOutput(blank, codes, blank, query, jnp.zeros(1), jnp.ones((1, 2), bool))
    moved = dataclasses.replace(
        clean, query=query + jnp.array([1.0, 2.0, 4.0])[:, None], codes=codes.at[0, 1, 0].set(5)
    )
    found = query_distance(method(), variables, moved, clean)
    units = [12 * size / spacing(table) for size, table in zip((1, 4, 16), tables, strict=True)]
    # Frame 0 at all levels, frame 1 at the first alone: its code differs there.
    np.testing.assert_allclose(found[0], (2 * units[0] + units[1] + units[2]) / 4, rtol=1e-5)


def test_impossible_settings_are_refused():
    with pytest.raises(ValueError, match="slice_share"):
        Consistency(slice_share=0.0)
