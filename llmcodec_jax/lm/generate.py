"""Generation with a key-value cache, one token a step or several (Medusa, arXiv 2401.10774).

`start` reads the prompts, `extend` writes tokens; what they need is a `Writer`: a decoder, and
the rows of the tokens that it may write, text or audio. Its further heads propose the tokens
after the next; one pass of the decoder verifies them all and keeps those that plain decoding
could have written: at temperature 0 exactly its tokens, above it draws of exactly its
distribution (speculative sampling, arXiv 2211.17192).

Shapes: B items, S prompt positions, N tokens at most, R token rows, H width, K heads.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import flax.struct
import jax
import jax.numpy as jnp

from llmcodec_jax.lm.config import LMConfig
from llmcodec_jax.lm.decoder import Decoder, Params, make_context
from llmcodec_jax.lm.lora import LoRA
from llmcodec_jax.lm.sampling import Sampling, draw, probabilities

P = TypeVar("P")  # a batch's progress, which says what has `stopped`


@flax.struct.dataclass
class Writer:
    """A decoder and the tokens that it writes; ids count the rows."""

    params: Params
    embedding: jax.Array  # [R, H], rows as they are read
    heads: jax.Array  # [K, R, H]: head k predicts the k-th token ahead; K = 1 is plain decoding
    allowed: jax.Array  # bool [P, R]: which tokens may stand at index i is row i modulo P
    lora: LoRA | None
    config: LMConfig = flax.struct.field(pytree_node=False)

    def split_heads(self) -> tuple[jax.Array, jax.Array]:
        """The head that writes [1, R, H], and those that propose [K - 1, R, H], float32."""
        rows = self.heads.astype(jnp.float32)
        return rows[:1], rows[1:]

    def distributions(self, hidden, rows, index, sampling: Sampling, seen) -> jax.Array:
        """What may stand at each index int [B, n], float32 [B, n, R]; seen bool [B, n, R].

        hidden [B, n, H] under one head's rows [1, R, H], or [B, 1, H] under n of them.
        """
        logits = product(hidden, rows).reshape(*index.shape, rows.shape[1])
        logits = jnp.where(self.allowed[index % len(self.allowed)], logits, -jnp.inf)
        return probabilities(logits, sampling, seen)


@flax.struct.dataclass
class Progress:
    """Where a batch stands. The next token is drawn already, and not yet read."""

    cache: dict[str, jax.Array]
    hidden: jax.Array  # [B, H], the state that the next token was drawn from
    token: jax.Array  # int32 [B], the next token
    position: jax.Array  # int32 [B], where it will stand
    ids: jax.Array  # int32 [B, N + K], of which `count` are written
    count: jax.Array  # int32 [B]
    passes: jax.Array  # int32 [B], of the decoder, over which they were written
    stopped: jax.Array  # bool [B]
    seen: jax.Array  # bool [B, R], tokens written so far
    keys: jax.Array  # one random key an item


def product(hidden: jax.Array, rows: jax.Array) -> jax.Array:
    """hidden [..., H] with rows float32 [K, R, H] -> logits float32 [..., K R].

    As one matrix: an einsum over both K and R takes XLA's CPU backend ten times as long.
    """
    return hidden.astype(jnp.float32) @ rows.reshape(-1, rows.shape[-1]).T


@functools.partial(jax.jit, static_argnames=("limit", "slots"))
def start(
    writer: Writer,
    prompt: jax.Array,
    lengths: jax.Array,
    keys: jax.Array,
    sampling: Sampling,
    limit: int,
    slots: int | None = None,
) -> Progress:
    """Reads prompts [B, S, H] embeddings, right-padded, of `lengths` int [B] (at least one).

    keys: [B] random keys, one an item: what an item becomes does not depend on its company.
    limit: tokens N at most. slots: size of the cache's ring (at least S), by default all
    positions; a smaller one forgets the oldest.
    """
    batch, size, _ = prompt.shape
    dtype, width = writer.params["embed"]["embedding"].dtype, len(writer.heads)
    cache = init_cache(writer.config, batch, slots or size + limit + width, dtype)
    positions = jnp.broadcast_to(jnp.arange(size), (batch, size))
    hidden, cache = advance(writer.config, writer.params, prompt, positions, cache, writer.lora)
    last = jnp.take_along_axis(hidden, (lengths - 1)[:, None, None], axis=1)[:, 0]
    count = jnp.zeros(batch, jnp.int32)
    seen = jnp.zeros((batch, len(writer.embedding)), bool)
    rows, _ = writer.split_heads()
    first = writer.distributions(last[:, None], rows, count[:, None], sampling, seen[:, None])
    return Progress(
        cache=cache,
        hidden=last,
        token=jax.vmap(draw)(jax.vmap(jax.random.fold_in)(keys, count), first[:, 0]),
        position=jnp.asarray(lengths, jnp.int32),
        ids=jnp.zeros((batch, limit + width), jnp.int32),
        count=count,
        passes=count,
        stopped=jnp.zeros(batch, bool),
        seen=seen,
        keys=keys,
    )


@functools.partial(jax.jit, donate_argnums=1)
def extend(
    writer: Writer, progress: Progress, sampling: Sampling, passes, stops, limits
) -> Progress:
    """Up to `passes` passes more, fewer where all items have stopped.

    An item stops after one of `stops`, int [] or [n] (-1: none), and at its limit of tokens,
    int [B].
    """

    heads = writer.split_heads()  # once, not at every pass
    step = functools.partial(_step, writer, heads, sampling=sampling, stops=stops, limits=limits)
    return until_stopped(step, progress, passes)


def until_stopped(step: Callable[[P], P], progress: P, passes) -> P:
    """`passes` steps of a batch's progress, fewer where all of its items have stopped."""

    def going(carry):
        index, progress = carry
        return (index < passes) & ~progress.stopped.all()

    def body(carry):
        index, progress = carry
        return index + 1, step(progress)

    return jax.lax.while_loop(going, body, (0, progress))[1]


class Proposal(NamedTuple):
    """A chain of tokens, and what the proposed ones were drawn from."""

    chain: jax.Array  # int32 [B, K], the next token and K - 1 proposals
    drawn_from: jax.Array  # [B, K - 1, R]


def _step(writer: Writer, heads, progress: Progress, sampling, stops, limits) -> Progress:
    """One pass: propose, verify, keep what plain decoding could have written."""
    first, further = heads
    width = len(writer.heads)
    batch = jnp.arange(len(progress.token))
    # The first token's keys were those of index 0, and each pass adds at least one token.
    keys = jax.vmap(jax.random.fold_in)(progress.keys, progress.count + 1)
    keys = jax.vmap(lambda key: jax.random.split(key, 2 * width))(keys)
    seen = progress.seen.at[batch, progress.token].set(True)
    proposal = _propose(writer, further, progress, sampling, seen, keys)
    positions = progress.position[:, None] + jnp.arange(width)
    embeds = writer.embedding[proposal.chain]
    hidden, cache = advance(
        writer.config, writer.params, embeds, positions, progress.cache, writer.lora
    )
    kept, token, seen = _verify(writer, first, progress, proposal, hidden, sampling, seen, keys)
    ids = progress.ids.at[batch[:, None], progress.count[:, None] + jnp.arange(width)].set(
        proposal.chain
    )
    inside = jnp.arange(width) < kept[:, None]
    last_ones = jnp.isin(proposal.chain, stops) & inside
    ended = last_ones.any(axis=1)
    written = jnp.where(ended, jnp.argmax(last_ones, axis=1) + 1, kept)
    count = jnp.minimum(progress.count + written, limits)
    going = ~progress.stopped
    last = jnp.take_along_axis(hidden, (kept - 1)[:, None, None], axis=1)[:, 0]
    return Progress(
        cache=cache,
        hidden=last,
        token=token,
        # A stopped item stays where it is: what it goes on to write is not kept.
        position=jnp.where(going, progress.position + kept, progress.position),
        ids=jnp.where(going[:, None], ids, progress.ids),
        count=jnp.where(going, count, progress.count),
        passes=progress.passes + going,
        stopped=progress.stopped | ended | (count >= limits),
        seen=seen,
        keys=progress.keys,
    )


def _propose(writer: Writer, rows, progress: Progress, sampling, seen, keys) -> Proposal:
    """Draws one token from every further head."""
    width = len(writer.heads)
    index = progress.count[:, None] + jnp.arange(1, width)
    seen = jnp.broadcast_to(seen[:, None], (len(seen), width - 1, seen.shape[1]))
    hidden = progress.hidden[:, None]
    found = writer.distributions(hidden, rows, index, sampling, seen)
    proposed = jax.vmap(jax.vmap(draw))(keys[:, 1:width], found)
    return Proposal(jnp.concatenate([progress.token[:, None], proposed], axis=1), found)


def _verify(writer: Writer, rows, progress: Progress, proposal, hidden, sampling, seen, keys):
    """hidden [B, K, H] after each token of the chain -> (kept int [B], next token [B], seen).

    A proposal drawn from q stays with probability min(1, p / q); the first that does not is
    replaced by a draw from max(0, p - q), and p itself gives the token after a chain that is
    kept whole: every token is then distributed as p.
    """
    width, batch = len(writer.heads), jnp.arange(len(progress.token))
    index = progress.count[:, None] + 1 + jnp.arange(width)
    # What each place has seen if it is reached: all of the chain up to it.
    written = jax.nn.one_hot(proposal.chain, seen.shape[1], dtype=bool)
    upto = seen[:, None] | jax.lax.cummax(written.astype(jnp.int8), axis=1).astype(bool)
    wanted = writer.distributions(hidden, rows, index, sampling, upto)
    offered, proposed = proposal.drawn_from, proposal.chain[:, 1:, None]
    p = jnp.take_along_axis(wanted[:, :-1], proposed, axis=2)[:, :, 0]
    q = jnp.take_along_axis(offered, proposed, axis=2)[:, :, 0]
    chance = jax.vmap(jax.vmap(jax.random.uniform))(keys[:, width : 2 * width - 1])
    kept = 1 + jnp.cumprod(chance * q < p, axis=1).sum(1, dtype=jnp.int32)
    whole = kept == width
    wanted = wanted[batch, kept - 1]
    # After a whole chain nothing was offered; where both agree but for rounding there is no rest.
    none = jnp.zeros_like(wanted)[:, None]
    offered = jnp.concatenate([offered, none], axis=1)[batch, kept - 1]
    rest = jnp.maximum(wanted - offered, 0.0)
    following = jnp.where(rest.sum(-1, keepdims=True) > 0, rest, wanted)
    key = jnp.where(whole, keys[:, 0], keys[:, 2 * width - 1])
    return kept, jax.vmap(draw)(key, following), upto[batch, kept - 1]


def generate(
    config: LMConfig,
    params: Params,
    prompt: jax.Array,
    lengths: jax.Array,
    steps: int,
    *,
    embedding: jax.Array,
    head: jax.Array,
    key: jax.Array | None = None,
    temperature: float = 0.0,
    stop_id: int | None = None,
    lora: LoRA | None = None,
) -> jax.Array:
    """Continues each prompt by `steps` tokens, in one go.

    prompt [B, S, H] embeddings, right-padded; lengths int [B] valid positions (at least one).
    embedding and head [R, H] are the rows of the tokens that may be generated; ids count them.
    temperature 0 is greedy, otherwise `key` is needed. After `stop_id` an item repeats it.
    Returns ids int32 [B, steps].
    """
    if temperature > 0 and key is None:
        raise ValueError("sampling at a temperature needs a key")
    keys = jax.random.split(jax.random.key(0) if key is None else key, len(prompt))
    allowed = jnp.ones((1, len(embedding)), bool)
    writer = Writer(params, embedding, head[None], allowed, lora, config)
    sampling = Sampling(temperature=float(temperature))
    progress = start(writer, prompt, lengths, keys, sampling, steps)
    stop = -1 if stop_id is None else stop_id
    limits = jnp.full(len(prompt), steps)
    progress = extend(writer, progress, sampling, steps, stop, limits)
    written = jnp.arange(steps) < progress.count[:, None]
    return jnp.where(written, progress.ids[:, :steps], stop)


def init_cache(config: LMConfig, batch: int, slots: int, dtype) -> dict[str, jax.Array]:
    """Empty keys and values, each [L, B, kv_heads, slots, head_dim]."""
    shape = (config.layers, batch, config.kv_heads, slots, config.head_dim)
    return {"key": jnp.zeros(shape, dtype), "value": jnp.zeros(shape, dtype)}


def advance(
    config: LMConfig,
    params: Params,
    embeds: jax.Array,
    positions: jax.Array,
    cache: dict[str, Any],
    lora: LoRA | None = None,
) -> tuple[jax.Array, dict[str, Any]]:
    """Reads embeds [B, T, H] at `positions` int [B, T] -> (normed states [B, T, H], new cache).

    The cache is a ring: position p goes to slot p modulo its size, over what stood there. Padding
    written there stays invisible: a query sees slots up to its own position, and those are
    rewritten first.
    """
    embeds = embeds.astype(params["embed"]["embedding"].dtype)
    context = make_context(config, positions, slots=cache["key"].shape[3])
    variables: dict[str, Any] = {"params": params}
    if lora is not None:
        variables["lora"] = lora.weights
    adapter = LoRA() if lora is None else dataclasses.replace(lora, weights=None)
    model = Decoder(config, adapter)
    found: Any = model.apply(variables, embeds, context, cache, method="body")
    hidden, _, cache = found
    return hidden, cache
