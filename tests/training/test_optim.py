"""Optimiser groups: every parameter once, own starts, clipping per group."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from llmcodec_jax.training.optim import Group, assign, norms, optimiser
from llmcodec_jax.training.schedules import Schedule

PARAMS = {"codec": {"a": jnp.ones(3), "b": jnp.ones((2, 2))}, "heads": jnp.ones(4)}
CODEC = Group("codec", "codec/.*", "sgd", learning_rate=0.1, b1=0.0, clip=1e9)
HEADS = Group("heads", "heads", "adamw", learning_rate=0.01)


def test_every_parameter_has_one_owner():
    labels = assign(PARAMS, (CODEC, HEADS))
    assert labels == {"codec": {"a": "codec", "b": "codec"}, "heads": "heads"}


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ((CODEC,), "heads: no group"),
        ((CODEC, HEADS, Group("all", ".*")), "codec and all"),
        ((CODEC, HEADS, Group("typo", "codecs/.*")), "'typo' claims no parameter"),
    ],
)
def test_gaps_overlaps_and_typos_are_errors(groups, message):
    with pytest.raises(ValueError, match=message):
        assign(PARAMS, groups)


def step(groups, schedule, at, gradients=None, state=None):
    transform = optimiser(PARAMS, groups, schedule)
    gradients = gradients or jax.tree.map(jnp.ones_like, PARAMS)
    return transform.update(gradients, state or transform.init(PARAMS), PARAMS, step=at)


def test_a_group_rests_before_its_start():
    late = Group("codec", "codec/.*", "sgd", learning_rate=0.1, start="codec_start")
    schedule = Schedule(100, codec_start=0.5)
    updates, state = step((late, HEADS), schedule, at=49)
    assert not np.any(updates["codec"]["a"])
    assert np.any(updates["heads"])
    momentum = jax.tree.leaves(state.inner_states["codec"])
    assert not any(np.any(leaf) for leaf in momentum)
    updates, _ = step((late, HEADS), schedule, at=50)
    assert np.all(np.asarray(updates["codec"]["a"]) < 0)


def test_clipping_is_per_group():
    clipped = Group("codec", "codec/.*", "sgd", learning_rate=1.0, b1=0.0, clip=1.0, final=1.0)
    gradients = {"codec": {"a": 100 * jnp.ones(3), "b": jnp.zeros((2, 2))}, "heads": jnp.ones(4)}
    updates, _ = step((clipped, HEADS), Schedule(100), 0, gradients)
    assert np.isclose(np.linalg.norm(updates["codec"]["a"]), 1.0)
    other = norms(updates, assign(PARAMS, (CODEC, HEADS)))["heads"]
    unclipped, _ = step((CODEC, HEADS), Schedule(100), 0, gradients)
    assert np.isclose(other, np.linalg.norm(unclipped["heads"]))


def test_the_rate_follows_the_runs_step_not_the_optimisers_count():
    """A skipped update must not shift the schedule."""
    group = Group("codec", "codec/.*", "sgd", learning_rate=1.0, b1=0.0, warmup=0.5, clip=1e9)
    updates, _ = step((group, HEADS), Schedule(100), at=24)
    assert np.allclose(updates["codec"]["a"], -0.5)


def test_muon_turns_layer_matrices_and_leaves_the_rest_to_adam():
    key = jax.random.key(0)
    params = {"layers": {"kernel": jnp.zeros((2, 8, 16)), "bias": jnp.zeros((2, 16))}}
    gradients = jax.tree.map(lambda p: jax.random.normal(key, p.shape), params)
    group = Group("all", ".*", "muon", learning_rate=0.1, final=1.0)
    transform = optimiser(params, (group,), Schedule(100))
    updates, _ = transform.update(gradients, transform.init(params), params, step=0)
    adam = optax.scale_by_adam(b1=group.b1, b2=group.b2, nesterov=True)
    expected, _ = adam.update(gradients, adam.init(params))
    np.testing.assert_allclose(
        updates["layers"]["bias"], -0.1 * expected["layers"]["bias"], rtol=1e-4
    )
    for layer in range(2):  # each layer by itself
        matrix, gradient = (tree["layers"]["kernel"][layer] for tree in (updates, gradients))
        scales = np.linalg.svd(matrix, compute_uv=False)
        assert scales.max() < 2 * scales.min()  # the gradient's differ by more
        assert np.sum(matrix * gradient) < 0  # downhill
        assert np.isclose(np.sqrt(np.mean(np.square(matrix))), 0.2 * 0.1, rtol=0.3)


def test_muon_knows_a_convolution_from_a_layer_stack():
    """[taps, in, out] is one matrix from taps and inputs to outputs, not one a tap."""
    gradient = jax.random.normal(jax.random.key(0), (3, 8, 16))
    params = {"down_0": {"kernel": jnp.zeros(gradient.shape)}}
    group = Group("all", ".*", "muon", learning_rate=0.1, final=1.0)
    transform = optimiser(params, (group,), Schedule(100))
    tree = {"down_0": {"kernel": gradient}}
    updates, _ = transform.update(tree, transform.init(params), params, step=0)
    whole = np.asarray(updates["down_0"]["kernel"]).reshape(24, 16)
    scales = np.linalg.svd(whole, compute_uv=False)
    assert scales.max() < 2 * scales.min()
