"""The bridge against the published code's values and gradients (tau 0.5)."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llmcodec_jax.bridge import MODES, bridge, bridge_from_noise

DATA = Path(__file__).parent / "data"
NAMES = ("quantized", "kernel", "bias", "embedding")


@pytest.mark.parametrize("mode", MODES)
def test_reference(mode):
    golden = dict(np.load(DATA / f"bridge_{mode}.npz"))

    def embeds(latent, kernel, bias, embedding):
        logits = jnp.einsum("btd,vd->btv", latent, kernel) + bias
        return bridge_from_noise(logits, golden["noise"], embedding, 0.5, mode)

    value, pull = jax.vjp(embeds, *(jnp.asarray(golden[name]) for name in NAMES))
    np.testing.assert_array_equal(value, golden["embeds"])
    for name, gradient in zip(NAMES, pull(jnp.asarray(golden["cotangent"])), strict=True):
        np.testing.assert_allclose(gradient, golden[f"grad_{name}"], atol=1e-5)


@pytest.mark.parametrize("mode", ["ste", "detach"])
def test_fused(mode):
    """Without noise the fused bridge has the golden values to meet too."""
    golden = dict(np.load(DATA / f"bridge_{mode}.npz"))
    labels = jnp.asarray(golden["index"])

    def embeds(latent, kernel, bias, embedding):
        key = jax.random.key(0)
        output = bridge(latent, kernel, bias, embedding, key, 0.5, mode=mode, labels=labels)
        return output.embeds, output

    value, pull, output = jax.vjp(
        embeds, *(jnp.asarray(golden[name]) for name in NAMES), has_aux=True
    )
    np.testing.assert_array_equal(value, golden["embeds"])
    np.testing.assert_array_equal(output.ids, golden["index"])
    assert output.agree.all()
    for name, gradient in zip(NAMES, pull(jnp.asarray(golden["cotangent"])), strict=True):
        np.testing.assert_allclose(gradient, golden[f"grad_{name}"], atol=1e-5)
