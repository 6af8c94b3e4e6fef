"""A codec of a few thousand parameters."""

import jax
import jax.numpy as jnp

SMALL = dict(
    width=32, encoder_layers=2, decoder_layers=1, head_dim=16, codebook_size=96, conv_kernel=7
)


def init(codec, seed=0):
    """Fresh {"params", "batch_stats"} for any AUV."""
    wav = jnp.zeros((1, 4 * codec.hop))
    return jax.jit(lambda key: codec.init(key, wav, method="reconstruct"))(jax.random.key(seed))
