"""EnCodec's balancer: shares of the gradient are those of the weights, whatever losses' scales."""

import jax
import jax.numpy as jnp
import numpy as np

from llmcodec_jax.training.balancer import balance, term_gradients


def noise(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def test_shares_of_the_gradient_are_the_weights():
    one, other = noise(3, 40), noise(3, 40, seed=1)
    found = balance({"a": one, "b": 1e6 * other}, {"a": 3.0, "b": 1.0}, total=2.0)
    norms = (np.linalg.norm(x, axis=-1).mean() for x in (one, other))
    expected = sum(2 * w / 4 * x / n for w, x, n in zip((3, 1), (one, other), norms, strict=True))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_a_loss_that_waits_or_has_no_gradient_takes_nothing():
    one = noise(2, 8)
    weights = {"a": 1.0, "late": 0.0}
    alone = balance({"a": one}, weights, 1.0)
    np.testing.assert_allclose(
        balance({"a": one, "late": noise(2, 8, seed=2)}, weights, 1.0), alone
    )
    still = balance({"a": one, "flat": 0 * one}, {"a": 1.0, "flat": 1.0}, 1.0)
    np.testing.assert_allclose(still, alone / 2, rtol=1e-6)
    assert not np.any(balance({"late": one}, weights, 1.0))


def test_gradients_are_those_of_each_loss_alone():
    wav = noise(2, 16)

    def losses(wav):
        named = {"square": jnp.mean(wav**2), "sine": jnp.sum(jnp.sin(wav))}
        return named, {"seen": wav.sum()}

    found, aux = term_gradients(losses, wav)
    np.testing.assert_allclose(found["square"], 2 * wav / wav.size, rtol=1e-6)
    np.testing.assert_allclose(found["sine"], np.cos(wav), rtol=1e-5)
    np.testing.assert_allclose(aux["seen"], wav.sum(), rtol=1e-5)
    assert jax.tree.structure(found) == jax.tree.structure(losses(wav)[0])
