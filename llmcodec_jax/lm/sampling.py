"""How the next token is drawn: temperature, top-k, top-p, repetition penalty.

All four are arrays of the compiled program, so that changing them compiles nothing.
"""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp


@flax.struct.dataclass
class Sampling:
    """The distribution that tokens are drawn from, out of a model's logits."""

    temperature: jax.Array | float = 1.0  # 0 takes the likeliest
    top_k: jax.Array | int = 0  # the k likeliest compete; 0 all
    top_p: jax.Array | float = 1.0  # the likeliest that hold this share compete
    repetition_penalty: jax.Array | float = 1.0  # of logits of tokens seen (CTRL, 1909.05858)

    def check(self) -> Sampling:
        """Itself. Raises ValueError for a value that means nothing."""
        if self.temperature < 0:
            raise ValueError(f"temperature is {self.temperature}; it must be 0 or more")
        if self.top_k < 0:
            raise ValueError(f"top_k is {self.top_k}; it must be 0 (all) or more")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}; it must be above 0 and at most 1")
        if self.repetition_penalty <= 0:
            raise ValueError(f"repetition_penalty is {self.repetition_penalty}; 1 is none")
        return self


GREEDY = Sampling(temperature=0.0)


def probabilities(logits: jax.Array, sampling: Sampling, seen: jax.Array) -> jax.Array:
    """logits float32 [..., R], -inf where forbidden; seen bool [..., R] -> distribution [..., R].

    At temperature 0 all of it is on the likeliest token.
    """
    penalty = sampling.repetition_penalty
    lowered = jnp.where(logits > 0, logits / penalty, logits * penalty)
    logits = jnp.where(seen, lowered, logits)
    likeliest = jax.nn.one_hot(jnp.argmax(logits, axis=-1), logits.shape[-1])
    scaled = logits / jnp.maximum(sampling.temperature, 1e-4)
    limited = (jnp.asarray(sampling.top_k) > 0) | (jnp.asarray(sampling.top_p) < 1)
    scaled = jax.lax.cond(limited, lambda x: _keep_likeliest(x, sampling), lambda x: x, scaled)
    return jnp.where(jnp.asarray(sampling.temperature) > 0, jax.nn.softmax(scaled), likeliest)


def _keep_likeliest(logits: jax.Array, sampling: Sampling) -> jax.Array:
    """-inf outside the top k and, of what is left, the smallest set that holds `top_p`."""
    size = logits.shape[-1]
    ordered = jnp.flip(jnp.sort(logits, axis=-1), axis=-1)
    most = jnp.where(jnp.asarray(sampling.top_k) > 0, sampling.top_k, size)
    kept = jnp.arange(size) < most
    share = jax.nn.softmax(jnp.where(kept, ordered, -jnp.inf))
    kept = kept & (jnp.cumsum(share, axis=-1) - share < sampling.top_p)
    least = jnp.min(jnp.where(kept, ordered, jnp.inf), axis=-1, keepdims=True)
    return jnp.where(logits >= least, logits, -jnp.inf)


def draw(key: jax.Array, distribution: jax.Array) -> jax.Array:
    """One token of a distribution [R], which need not sum to one -> int32 [].

    By one random number, not one for every token.
    """
    upto = jnp.cumsum(distribution)
    beyond = upto > jax.random.uniform(key) * upto[-1]
    # Where the product rounds up to the whole, nothing is beyond it.
    return jnp.argmax(jnp.where(beyond.any(), beyond, distribution)).astype(jnp.int32)
