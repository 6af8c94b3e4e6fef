"""Decoding: several tokens a pass are those of one a pass; rings of keys; who may be drawn."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from llmcodec_jax.lm import decoder, generate, sampling
from llmcodec_jax.lm.sampling import GREEDY, Sampling
from tests.tiny import tiny_lm_config

CONFIG = tiny_lm_config(layers=2)
ROWS = 6
LONGEST, SLOTS = 24, 32


@pytest.fixture(scope="module")
def writer():
    """Few tokens and a lively model, so that heads are often right and often wrong."""
    params = decoder.init_params(CONFIG, jax.random.key(0))
    params = jax.tree.map(lambda x: x * 8 if x.ndim > 1 and x.shape[-1] != 8 else x, params)
    rows = jax.random.normal(jax.random.key(1), (ROWS, CONFIG.width))
    other = jax.random.normal(jax.random.key(2), (3, ROWS, CONFIG.width))
    heads = 0.4 * jnp.concatenate([rows[None], rows + other])
    return generate.Writer(params, rows, heads, jnp.ones((1, ROWS), bool), None, CONFIG)


def write(writer, count, how, batch=3, seed=5, slots=None, prompt_seed=3, stop=-1):
    prompt = jax.random.normal(jax.random.key(prompt_seed), (1, 4, CONFIG.width))
    prompt = jnp.broadcast_to(prompt, (batch, 4, CONFIG.width))
    lengths = jnp.where(jnp.arange(batch) % 2, 2, 4) if batch < 10 else jnp.full(batch, 4)
    keys = jax.random.split(jax.random.key(seed), batch)
    # One size of buffer for all: each is a compilation.
    progress = generate.start(writer, prompt, lengths, keys, how, LONGEST, slots or SLOTS)
    return generate.extend(writer, progress, how, 10 * count, stop, jnp.full(batch, count))


def test_greedy_tokens_are_plain_decodings_own(writer):
    plain = write(writer.replace(heads=writer.heads[:1]), 24, GREEDY)
    several = write(writer, 24, GREEDY)
    np.testing.assert_array_equal(several.ids[:, :24], plain.ids[:, :24])
    assert (plain.passes == 24).all()
    assert several.passes.sum() < 0.9 * plain.passes.sum()


def test_a_stop_ends_an_item_whichever_way_it_is_decoded(writer):
    plain = write(writer.replace(heads=writer.heads[:1]), 24, GREEDY)
    stop = int(plain.ids[0, 7])
    one, several = (
        write(w, 24, GREEDY, stop=stop) for w in (writer.replace(heads=writer.heads[:1]), writer)
    )
    np.testing.assert_array_equal(one.count, several.count)
    first = plain.ids[0].tolist().index(stop)
    assert one.count[0] == first + 1


@pytest.mark.parametrize(
    "how",
    [Sampling(), Sampling(temperature=1.5, top_k=4, top_p=0.9, repetition_penalty=1.7)],
    ids=["plain", "limited"],
)
def test_drawn_tokens_are_distributed_as_plain_decodings(writer, how):
    """Chains of three tokens, counted: one table must be a draw of the other's distribution."""
    count = 4000
    tables = []
    for heads, seed in ((writer.heads[:1], 1), (writer.heads, 2)):
        found = write(writer.replace(heads=heads), 3, how, batch=count, seed=seed)
        chains = np.asarray(found.ids[:, :3]) @ np.array([ROWS**2, ROWS, 1])
        tables.append(np.bincount(chains, minlength=ROWS**3))
    table = np.stack(tables)
    common = table.sum(0) >= 10
    table = np.concatenate([table[:, common], table[:, ~common].sum(1, keepdims=True)], axis=1)
    table = table[:, table.sum(0) > 0]
    assert table.shape[1] > 10
    assert scipy.stats.chi2_contingency(table).pvalue > 1e-3


def test_the_statistical_test_can_fail(writer):
    """Proposals taken unverified are another distribution, and are found out."""
    count, how = 4000, Sampling()
    truth = write(writer.replace(heads=writer.heads[:1]), 2, how, batch=count)
    wrong = write(writer.replace(heads=writer.heads[1:2]), 2, how, batch=count, seed=6)
    table = [np.bincount(np.asarray(x.ids[:, 1]), minlength=ROWS) + 1 for x in (truth, wrong)]
    assert scipy.stats.chi2_contingency(table).pvalue < 1e-6


def test_an_item_does_not_depend_on_its_company(writer):
    both = write(writer, 12, Sampling(), batch=3)
    prompt = jax.random.normal(jax.random.key(3), (1, 4, CONFIG.width))
    keys = jax.random.split(jax.random.key(5), 3)
    alone = generate.start(writer, prompt, jnp.array([4]), keys[:1], Sampling(), LONGEST, SLOTS)
    alone = generate.extend(writer, alone, Sampling(), 99, -1, jnp.array([12]))
    np.testing.assert_array_equal(alone.ids[0, :12], both.ids[0, :12])


def test_a_full_ring_forgets_the_oldest_and_goes_on(writer):
    whole, small = write(writer, 24, GREEDY), write(writer, 24, GREEDY, slots=12)
    assert (small.count == 24).all()
    same = 8  # 4 of the prompt and 8 more fit: until then nothing was forgotten
    np.testing.assert_array_equal(small.ids[:, : same - 3], whole.ids[:, : same - 3])


def test_a_ring_sees_exactly_the_newest(writer):
    """One query through a full ring equals attention over the last positions alone."""
    slots, total = 8, 21
    embeds = jax.random.normal(jax.random.key(9), (1, total, CONFIG.width))
    cache = generate.init_cache(CONFIG, 1, slots, jnp.float32)
    step = jax.jit(lambda *given: generate.advance(CONFIG, writer.params, *given))
    for t in range(total):
        hidden, cache = step(embeds[:, t : t + 1], jnp.array([[t]]), cache)
    positions = jnp.arange(total)[None]
    context = decoder.make_context(CONFIG, positions)
    order = jnp.arange(total)
    near = order > order[:, None] - slots
    context = context.replace(mask=context.mask & near)
    model = decoder.Decoder(CONFIG)
    run = jax.jit(lambda x: model.apply({"params": writer.params}, x, context, method="body")[0])
    wanted = run(embeds)
    np.testing.assert_allclose(hidden[0, 0], wanted[0, -1], atol=1e-4)


def test_only_allowed_tokens_are_written(writer):
    """Two levels: even places draw from the first three rows, odd ones from the rest."""
    first = jnp.arange(ROWS) < 3
    ids = write(writer.replace(allowed=jnp.stack([first, ~first])), 20, Sampling()).ids[:, :20]
    assert (ids[:, ::2] < 3).all()
    assert (ids[:, 1::2] >= 3).all()


def test_tokens_are_drawn_in_proportion_and_impossible_ones_never():
    weights = jnp.array([0.0, 3.0, 0.0, 1.0, 2.0, 0.0])  # need not sum to one
    keys = jax.random.split(jax.random.key(0), 6000)
    drawn = jax.jit(jax.vmap(lambda key: sampling.draw(key, weights)))(keys)
    counts = np.bincount(np.asarray(drawn), minlength=6)
    assert (counts[[0, 2, 5]] == 0).all()
    assert scipy.stats.chisquare(counts[[1, 3, 4]], [3000, 1000, 2000]).pvalue > 1e-3


def test_limits_of_a_distribution():
    logits = jnp.log(jnp.array([0.5, 0.25, 0.15, 0.1]))
    none = jnp.zeros(4, bool)
    top = sampling.probabilities(logits, Sampling(top_k=2), none)
    np.testing.assert_allclose(top, [2 / 3, 1 / 3, 0, 0], atol=1e-6)
    top = sampling.probabilities(logits, Sampling(top_p=0.7), none)
    np.testing.assert_allclose(top, [2 / 3, 1 / 3, 0, 0], atol=1e-6)
    seen = jnp.array([True, False, False, False])
    penalised = sampling.probabilities(logits, Sampling(repetition_penalty=2.0), seen)
    np.testing.assert_allclose(penalised, jnp.array([0.25, 0.25, 0.15, 0.1]) / 0.75, atol=1e-6)
    with pytest.raises(ValueError, match="top_p"):
        Sampling(top_p=0.0).check()


def test_packed_sequences_see_only_themselves(writer):
    embeds = jax.random.normal(jax.random.key(4), (2, 7, CONFIG.width))
    segments = jnp.array([[0, 0, 0, 1, 1, 1, 1], [0, 0, 0, 0, 0, 1, 1]])
    starts = jnp.array([[0, 0, 0, 3, 3, 3, 3], [0, 0, 0, 0, 0, 5, 5]])
    run = jax.jit(functools.partial(decoder.forward, CONFIG, remat=False))
    places = jnp.arange(7) - starts
    packed = run(writer.params, embeds, positions=places, segments=segments).hidden
    for row, first, last in ((0, 0, 3), (0, 3, 7), (1, 0, 5), (1, 5, 7)):
        alone = run(writer.params, embeds[row : row + 1, first:last]).hidden
        np.testing.assert_allclose(packed[row, first:last], alone[0], atol=1e-4)


@pytest.mark.parametrize("size", [1, 2, 7, 1282])
def test_what_competes_is_what_a_sort_would_keep(size):
    """Top-k and top-p over logits of both signs, some of them forbidden."""
    rng = np.random.default_rng(size)
    logits = rng.normal(0, 3, (5, size)).astype(np.float32)
    logits[:, 1:][rng.random((5, size - 1)) < 0.2] = -np.inf
    seen = jnp.zeros(logits.shape, bool)
    order = np.argsort(-logits, axis=1, kind="stable")
    share = np.take_along_axis(np.asarray(jax.nn.softmax(logits)), order, 1)
    for count in (1, 3, size):
        found = sampling.probabilities(jnp.asarray(logits), Sampling(top_k=count), seen)
        for row, found_row in enumerate(np.asarray(found)):
            wanted = {i for i in order[row, :count] if np.isfinite(logits[row, i])}
            assert set(np.flatnonzero(found_row)) == wanted
    for most in (0.3, 0.9):
        found = sampling.probabilities(jnp.asarray(logits), Sampling(top_p=most), seen)
        for row, found_row in enumerate(np.asarray(found)):
            count = 1 + np.sum(np.cumsum(share[row]) < most)
            assert set(np.flatnonzero(found_row)) == set(order[row, :count])


def test_a_token_without_weight_is_never_drawn_from_many():
    """1,282 tokens, all but three without weight, at the ends of blocks and in the padded last."""
    weights = jnp.zeros(1282).at[jnp.array([0, 35, 1281])].set(jnp.array([1.0, 2.0, 1.0]))
    keys = jax.random.split(jax.random.key(0), 4000)
    drawn = np.bincount(jax.vmap(sampling.draw, (0, None))(keys, weights), minlength=1282)
    assert set(np.flatnonzero(drawn)) == {0, 35, 1281}
    assert scipy.stats.chisquare(drawn[[0, 35, 1281]], [1000, 2000, 1000]).pvalue > 1e-3
