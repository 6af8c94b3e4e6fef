"""How the next token is drawn: temperature, top-k, top-p, repetition penalty.

All four are arrays of the compiled program, so that changing them compiles nothing.
"""

from __future__ import annotations

import functools
import math

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
    drawn = jnp.asarray(sampling.temperature) > 0  # the likeliest passes any limit
    for limited, keep in (
        (jnp.asarray(sampling.top_k) > 0, functools.partial(_keep_most, sampling.top_k)),
        (jnp.asarray(sampling.top_p) < 1, functools.partial(_keep_share, sampling.top_p)),
    ):
        scaled = jax.lax.cond(drawn & limited, keep, lambda x: x, scaled)
    return jnp.where(drawn, jax.nn.softmax(scaled), likeliest)


def _keep_most(count, logits: jax.Array) -> jax.Array:
    """-inf outside the `count` likeliest, and those that equal the last of them."""
    return _keep_above(logits, lambda above: jnp.sum(above, axis=-1) >= count)


def _keep_share(share, logits: jax.Array) -> jax.Array:
    """-inf outside the smallest set of the likeliest that holds `share` of the probability."""
    weights = jax.nn.softmax(logits)
    return _keep_above(logits, lambda above: jnp.sum(weights * above, axis=-1) >= share)


def _keep_above(logits: jax.Array, enough) -> jax.Array:
    """-inf below the highest threshold for which what lies above is `enough`.

    Found bit by bit, 32 sums over the logits where a sort would be: float32 in order are integers
    in order, once the negative ones are turned round.
    """
    bits = jax.lax.bitcast_convert_type(logits, jnp.int32)
    ordered = jnp.where(bits < 0, bits ^ jnp.int32(0x7FFFFFFF), bits)

    def next_bit(index, threshold):
        higher = threshold + (jnp.int32(1) << (31 - index))  # the first step is from -2^31 to 0
        return jnp.where(enough(ordered >= higher[..., None]), higher, threshold)

    lowest = jnp.full(logits.shape[:-1], jnp.iinfo(jnp.int32).min)
    threshold = jax.lax.fori_loop(0, 32, next_bit, lowest)
    return jnp.where(ordered >= threshold[..., None], logits, -jnp.inf)


def draw(key: jax.Array, distribution: jax.Array) -> jax.Array:
    """One token of a distribution [R], which need not sum to one -> int32 [].

    By two random numbers, not one for every token: a block of tokens is drawn, then one of it. A
    token without weight is never drawn.
    """
    blocks = _blocks(distribution)
    first, second = jax.random.split(key)
    block = _draw_of_few(first, blocks.sum(-1))
    token = _draw_of_few(second, blocks[block])
    return block * blocks.shape[1] + token


def _blocks(distribution: jax.Array) -> jax.Array:
    """[R] -> [m, n] with m and n about alike, zeros at the end."""
    size = len(distribution)
    n = math.ceil(math.sqrt(size))
    return jnp.pad(distribution, (0, -size % n)).reshape(-1, n)


def _draw_of_few(key: jax.Array, weights: jax.Array) -> jax.Array:
    """One index of weights [n]; quadratic in n, which no loop over n is."""
    sums = jnp.tril(jnp.ones((len(weights), len(weights))))
    upto = jnp.dot(sums, weights, precision="highest")  # accelerators round products by default
    beyond = (upto > jax.random.uniform(key) * upto[-1]) & (weights > 0)
    # Where the product rounds up to the whole, nothing is beyond it.
    return jnp.argmax(jnp.where(beyond.any(), beyond, weights)).astype(jnp.int32)
