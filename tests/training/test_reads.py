"""What the LM reads of several levels: one stream, exact in values, gradients and what it sees."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llmcodec_jax import bridge as bridging
from llmcodec_jax.lm.decoder import init_params
from llmcodec_jax.lm.reading import READS, reading
from llmcodec_jax.losses.ftp import ftp_loss, future_targets, targets_cross_entropy
from llmcodec_jax.training import terms
from llmcodec_jax.training.config import default_config, read_config
from llmcodec_jax.training.gradients import batch_counts
from llmcodec_jax.training.language import (
    Branch,
    bridge_levels,
    code_logits,
    language_losses,
    read_audio,
    repeats,
    target_gradient,
)
from llmcodec_jax.training.state import init_state
from llmcodec_jax.types import CodecOutput
from tests.codec.families import EXAMPLES
from tests.tiny import tiny_lm_config
from tests.training.test_families import small_batch, small_method, with_toy  # noqa: F401

B, T, L, V, D, H, K = 2, 7, 3, 24, 12, 32, 4
PLACES = {"first": 1, "flat": L, "sum": 1}
LEVELS = {"first": 1, "flat": L, "sum": L}
MASK = jnp.arange(T) < jnp.array([[T], [5]])
KEY = jax.random.key(5)
exact = functools.partial(jnp.einsum, precision="highest")
everywhere = pytest.mark.parametrize("reads", READS)


def toy_method(reads: str, name: str = "toy", **bridge):
    method = small_method(EXAMPLES[name])
    return dataclasses.replace(
        method,
        lm=dataclasses.replace(method.lm, reads=reads, horizons=K),
        bridge=dataclasses.replace(method.bridge, label_noise=0.0, **bridge),
    )


@pytest.fixture(scope="module")
def lm():
    return init_params(tiny_lm_config(3), jax.random.key(0), jnp.float32)


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


def branch_of(reads, tables, query, codes=None, method=None, params=None, lm=None, share=None):
    """A branch over a toy codec with tables [L, V, D] that searched for query [B, T, L, D]."""
    method = method or toy_method(reads, scale=2.0)
    if codes is None:
        distance = jnp.square(query[..., None, :] - tables).sum(-1)
        codes = jnp.where(MASK[..., None], jnp.argmin(distance, -1), 0)
    output = CodecOutput(query[:, :, 0], codes, query[:, :, 0], query, jnp.zeros(B), MASK)
    params = {"codec": {"quantizer": {"codebooks": tables}}} | (params or {})
    share = jnp.ones((L, V)) if share is None else share
    return method, Branch(
        params, lm, {}, method.reading.select(output), None, None, share, KEY, 1.0, 0.7
    )


@everywhere
def test_the_heads_see_nothing_of_what_they_predict(reads, lm):
    """Every code has its own embedding row: the loss of one target reaches just those before it."""
    codes = jnp.broadcast_to(jnp.arange(T)[:, None], (B, T, L))
    tables, query = normal(0, L, V, D), normal(1, B, T, L, D)
    levels, places = LEVELS[reads], PLACES[reads]
    lm = jax.tree.map(lambda x: x * 5 if x.ndim > 1 else x, lm)
    heads = normal(2, K, levels * V, H)
    targets = future_targets(codes[..., :levels], MASK, K, places)

    @jax.jit
    def reached(embedding, k, level, frame):
        method, branch = branch_of(
            reads, tables, query, codes, params={"audio_embedding": embedding}, lm=lm
        )
        logits = code_logits(method, branch)
        embeds = bridge_levels(method, branch, logits, KEY, "detach").embeds
        hidden = read_audio(method, lm, embeds, MASK).hidden[:, :-1]
        states = hidden.reshape(B, T, places, H).swapaxes(1, 2)
        chosen = jnp.zeros_like(targets.valid).at[k, level, 0, frame].set(True)
        only = targets._replace(valid=targets.valid & chosen)
        return targets_cross_entropy(states, heads, only)[0].sum()

    embedding = normal(3, levels * V, H)
    # The bridge's own picks are the codes only where they are the nearest; make the query say so.
    query = jnp.stack([tables[q][codes[..., q]] for q in range(L)], axis=2)
    sensitivity = jax.jit(jax.grad(reached))
    for k, level, frame in ((0, 0, 4), (0, levels - 1, 3), (2, levels - 1, 2), (K - 1, 0, 1)):
        gradient = sensitivity(embedding, k, level, frame).reshape(levels, V, H)[:, :T]
        seen = np.abs(gradient).max(-1) > 0  # [L, T]
        state = frame * places + int(targets.place[k, level])  # position whose state predicts
        order = np.arange(T) * places + np.arange(levels)[:, None] % places
        np.testing.assert_array_equal(seen, order < state)


@everywhere
def test_horizons_are_positions_and_a_code_competes_in_its_level(reads):
    """Against whole logits of one level each: values and gradients."""
    read = reading(reads, L)
    codes = jax.random.randint(KEY, (B, T, read.levels), 0, V)
    hidden = normal(0, B, T * read.places, H)
    heads = 0.3 * normal(1, K, read.levels * V, H)
    flat = codes.reshape(B, T * read.places, -1)
    valid = jnp.repeat(MASK, read.places, axis=1)

    def plain(hidden, heads):
        rows = heads.reshape(K, read.levels, V, H)
        log_p = jax.nn.log_softmax(jnp.einsum("bsh,klvh->klsbv", hidden, rows))
        sums, counts = [], []
        for k in range(K):
            place = np.arange(flat.shape[1] - k)
            here, total = valid[:, k:], 0.0
            for r in range(flat.shape[-1]):
                level = np.full_like(place, r) if read.places == 1 else (place + k) % L
                found = jnp.moveaxis(log_p[k][level, place], 0, 1)
                picked = jnp.take_along_axis(found, flat[:, k:, r, None], axis=-1)[..., 0]
                total = total - jnp.sum(here * picked)
            sums.append(total)
            counts.append(here.sum() * flat.shape[-1])
        return sums, counts

    def ours(hidden, heads):
        found = ftp_loss(hidden, heads, codes, MASK)
        return tuple(zip(*(found[f"ftp/{k}"] for k in range(1, K + 1)), strict=True))

    weights = jnp.arange(1.0, K + 1)
    total = lambda form: lambda *args: sum(w * x for w, x in zip(weights, form(*args)[0]))  # noqa
    values = jax.jit(plain)(hidden, heads), jax.jit(ours)(hidden, heads)
    np.testing.assert_allclose(values[1], values[0], rtol=1e-5)
    expected, found = (jax.jit(jax.grad(total(f), (0, 1)))(hidden, heads) for f in (plain, ours))
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    frames = MASK.sum(1)
    for k in range(1, K + 1):  # known from the lengths alone
        assert read.targets(frames, k).sum() == values[0][1][k - 1]


@pytest.mark.parametrize(
    ("reads", "mode"), [("first", "gumbel"), ("flat", "ste"), ("sum", "gumbel")]
)
def test_the_bridge_relaxes_every_level(reads, mode):
    """Against the plain form level by level: what the LM reads, gradients of all that is read."""
    levels, places = LEVELS[reads], PLACES[reads]
    tables, query = normal(0, L, V, D), normal(1, B, T, L, D)
    embedding, upstream = normal(2, levels * V, H), normal(3, B, T * places, H)

    def made(tables, query, embedding, plain):
        method, branch = branch_of(reads, tables, query, params={"audio_embedding": embedding})
        logits = code_logits(method, branch)
        if not plain:
            return bridge_levels(method, branch, logits, KEY, mode).embeds
        keys = [KEY, *(jax.random.fold_in(KEY, 2**20 + q) for q in range(1, L))]
        found = []
        for q in range(levels):
            scores = jnp.einsum(
                "btd,vd->btv", logits.query[q], logits.weight[q], precision="highest"
            )
            noise = 0.7 * bridging._noise(keys[q], 0, V, (B, T))
            rows = embedding[q * V : (q + 1) * V]
            found.append(
                bridging.bridge_from_noise(scores + logits.bias[q], noise, rows, 0.7, mode)
            )
        if reads == "flat":
            return jnp.stack(found, axis=2).reshape(B, T * L, H)
        return sum(found)

    def loss(plain, *args):
        embeds = made(*args, plain)
        return jnp.sum(embeds * upstream), embeds

    args = (tables, query, embedding)
    found, expected = (
        jax.jit(jax.grad(functools.partial(loss, plain), (0, 1, 2), has_aux=True))(*args)
        for plain in (False, True)
    )
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)
    reached = np.abs(found[0][1]).max((0, 1, 3)) > 0  # by level of the query
    assert reached.tolist() == [q < levels for q in range(L)]


@everywhere
def test_target_gradient_of_every_level(reads):
    """Zero in value; its gradient is the relaxed cross-entropy's, over every level and horizon."""
    levels, places = LEVELS[reads], PLACES[reads]
    tables, query = normal(0, L, V, D), normal(1, B, T, L, D)
    hidden, heads = normal(2, B, T * places, H), 0.3 * normal(3, K, levels * V, H)
    share = jnp.abs(normal(4, L, V))
    weights = jnp.array([0.4, 0.3, 0.2, 0.1])
    prior = jnp.log(0.9 * share / share.sum(-1, keepdims=True) + 0.1 / V)

    def setup(query):
        return branch_of(reads, tables, query, params={"ftp_heads": heads}, share=share)

    def ours(query):
        method, branch = setup(query)
        return weights @ target_gradient(method, branch, code_logits(method, branch), hidden)

    def plain(query):
        method, branch = setup(query)
        logits, total = code_logits(method, branch), 0.0
        for q in range(levels):
            scores = jnp.einsum("btd,vd->btv", logits.query[q], logits.weight[q]) + logits.bias[q]
            p = jax.nn.softmax(scores / 0.7, axis=-1)
            for k in range(K):
                state = np.arange(T) * places + (q if reads == "flat" else 0) - k
                rows = heads[k, q * V : (q + 1) * V]
                gain = hidden[:, np.maximum(state, 0)] @ rows.T - prior[q]
                total -= weights[k] * jnp.sum((p * gain).sum(-1) * MASK * (state >= 0))
        return total

    assert jax.jit(ours)(query) == 0
    found, expected = jax.jit(jax.grad(ours))(query), jax.jit(jax.grad(plain))(query)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)


@everywhere
def test_repeats_of_every_level(reads):
    """A code repeats that of its own level one frame before, whatever stands between them."""
    tables, query = normal(0, L, V, D), normal(1, B, T, L, D)
    method, branch = branch_of(reads, tables, query)
    logits = code_logits(method, branch)
    wanted = 0.0
    for q in range(LEVELS[reads]):
        scores = jnp.einsum("btd,vd->btv", logits.query[q], logits.weight[q]) + logits.bias[q]
        p, codes = jax.nn.softmax(scores / 0.7, axis=-1), branch.output.codes[..., q]
        for t in range(1, T):
            wanted += jnp.sum(p[np.arange(B), t, codes[:, t - 1]] * MASK[:, t])
    total, count = repeats(method, branch, logits)["repeats"]
    assert count == (T - 1 + 4) * LEVELS[reads]
    np.testing.assert_allclose(total, wanted, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "reads"),
    [
        ("toy", "sum"),
        pytest.param("toy", "flat", marks=pytest.mark.slow),
        pytest.param("encodec_running", "sum", marks=pytest.mark.slow),
        pytest.param("encodec_running", "flat", marks=pytest.mark.slow),
        pytest.param("auv_levels", "sum", marks=pytest.mark.slow),
        pytest.param("mimi", "flat", marks=pytest.mark.slow),
        pytest.param("dac", "sum", marks=pytest.mark.slow),
    ],
)
def test_a_codec_learns_from_all_that_the_lm_reads(name, reads, lm):
    """The LM's losses on a real codec: counts, agreement of every level, a gradient everywhere."""
    method, batch = toy_method(reads, name, mode="gumbel", target_gradient=1.0), None
    codec = method.codec
    batch = small_batch(codec)
    state = jax.jit(lambda lm: init_state(method, lm, 0))(lm)
    rows = codec.levels * codec.codebook_size
    assert state.params["audio_embedding"].shape == (rows, H)
    assert state.params["ftp_heads"].shape == (K, rows, H)

    def loss(params):
        variables = {"params": params["codec"], "batch_stats": state.batch_stats}
        output = codec.apply(variables, batch.wav, batch.wav_length, method="encode")
        branch = Branch(
            params, lm, state.batch_stats, output, batch, state.bank, state.code_shares, KEY,
            1.0, 1.0,
        )  # fmt: skip
        losses, _ = language_losses(method, branch)
        counts = batch_counts(method, batch)
        weights = terms.step_weights(method.weights, method.schedule, 2, K)
        return terms.weighted_total(losses, weights, counts), (losses, counts)

    (value, (losses, counts)), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(
        state.params
    )
    assert np.isfinite(value)
    for name, (_, count) in losses.items():
        if not name.startswith("accuracy/"):
            assert float(count) == float(counts[name]), name
    agreed, count = losses["accuracy/bridge"]
    assert agreed == count  # each level's best logit is its quantiser's code
    by_level = np.abs(gradient["ftp_heads"]).reshape(K, codec.levels, -1).max(-1)
    assert (by_level > 0).all()
    assert sum(float(jnp.abs(x).sum()) for x in jax.tree.leaves(gradient["codec"]["encoder"])) > 0


def test_reads_is_one_of_three():
    config = default_config()
    config.lm.reads = "all"
    with pytest.raises(ValueError, match=r"lm.reads is one of first, flat, sum; not 'all'"):
        read_config(config)


def test_nothing_grows_with_levels_and_codes_at_once(lm):
    """The compiled branch holds no array of all frames and a level's codes: memory is O(B T H)."""
    method = toy_method("sum", mode="gumbel")
    codes = 1024
    codec = method.codec.clone(codebook_size=codes)
    method = dataclasses.replace(
        method, codec=codec, bridge=dataclasses.replace(method.bridge, chunk=128)
    )
    batch = small_batch(codec)
    state = jax.eval_shape(lambda lm: init_state(method, lm, 0), lm)

    def loss(params, state, output):
        branch = Branch(params, lm, {}, output, batch, None, state.code_shares, KEY, 1.0, 1.0)
        losses, _ = language_losses(method, branch)
        return sum(losses[f"ftp/{k}"][0] for k in range(1, K + 1))

    clips, frames = 64, 64
    shape = lambda *s, dtype=jnp.float32: jax.ShapeDtypeStruct(s, dtype)  # noqa: E731
    output = CodecOutput(
        shape(clips, frames, D), shape(clips, frames, L, dtype=jnp.int32), shape(clips, frames, D),
        shape(clips, frames, L, D), shape(clips), shape(clips, frames, dtype=bool),
    )  # fmt: skip
    program = jax.jit(jax.grad(loss)).lower(state.params, state, output).compile()
    temporary = program.memory_analysis().temp_size_in_bytes
    assert temporary < clips * frames * codes * 4 * L  # what one [B, T, L, V] alone would take
