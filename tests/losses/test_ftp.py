"""Future tokens: the fused loss equals the plain one, nothing leaks, heads learn their offset."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from llmcodec_jax.lm import decoder
from llmcodec_jax.lm import heads as lm_heads
from llmcodec_jax.lm.config import LMConfig
from llmcodec_jax.losses.ftp import ftp_loss, future_targets, targets_cross_entropy

CONFIG = LMConfig(
    vocab_size=16, width=32, layers=2, heads=2, kv_heads=1, head_dim=16, ffn_width=64,
    qk_norm=True, tied=True,
)  # fmt: skip
HORIZONS = 3


def plain(hidden, heads, targets):
    labels, valid = targets.labels[:, 0], targets.valid[:, 0]
    logits = jnp.einsum("bth,kvh->kbtv", hidden[:, 0], heads)
    chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), labels[..., None], axis=-1)[..., 0]
    right = (jnp.argmax(logits, axis=-1) == labels) * valid
    return -(chosen * valid).sum((1, 2)), right.sum((1, 2)).astype(jnp.float32)


def problem(frames=37, codes=4500, width=16):
    keys = jax.random.split(jax.random.key(0), 3)
    hidden = jax.random.normal(keys[0], (3, frames, width))
    heads = 0.3 * jax.random.normal(keys[1], (HORIZONS, codes, width))
    ids = jax.random.randint(keys[2], (3, frames), 0, codes)
    mask = jnp.arange(frames) < jnp.array([frames, frames // 2, 2])[:, None]
    return hidden, heads, ids, mask


@pytest.mark.parametrize("rows", [20, 1000])
def test_fused_equals_plain(rows):
    """Values and gradients, with uneven padding, a last block of codes and any block size."""
    hidden, heads, ids, mask = problem()
    targets = future_targets(ids, mask, HORIZONS)
    scale = jnp.array([0.5, 2.0, -1.0])

    def total(form):
        def loss(hidden, heads):
            sums, correct = form(hidden[:, None], heads, targets)
            return jnp.sum(scale * sums), (sums, correct)

        return jax.value_and_grad(loss, (0, 1), has_aux=True)(hidden, heads)

    ours = total(lambda *args: targets_cross_entropy(*args, rows=rows))
    theirs = total(plain)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-5)


def test_bfloat16_states_give_float32_head_gradients():
    hidden, heads, ids, mask = problem(frames=8, codes=64)
    targets = future_targets(ids, mask, HORIZONS)

    def loss(hidden, heads):
        return targets_cross_entropy(hidden[:, None], heads, targets)[0].sum()

    value, (d_hidden, d_heads) = jax.value_and_grad(loss, (0, 1))(
        hidden.astype(jnp.bfloat16), heads
    )
    assert d_hidden.dtype == jnp.bfloat16
    assert d_heads.dtype == jnp.float32
    np.testing.assert_allclose(value, plain(hidden[:, None], heads, targets)[0].sum(), rtol=2e-2)


def test_horizons_only_see_targets_that_exist():
    _, _, ids, mask = problem(frames=6)
    labels, valid, _ = future_targets(ids, mask, HORIZONS)
    assert valid[:, 0].sum((1, 2)).tolist() == [6 + 3 + 2, 5 + 2 + 1, 4 + 1 + 0]
    assert labels[2, 0, 0, 1] == ids[0, 3]


def test_losses_add_up_over_micro_batches():
    hidden, heads, ids, mask = problem(frames=12, codes=50)
    whole = ftp_loss(hidden, heads, ids, mask)
    parts = [ftp_loss(hidden[i], heads, ids[i], mask[i]) for i in (np.s_[:1], np.s_[1:])]
    for name, (total, count) in whole.items():
        np.testing.assert_allclose(sum(p[name][0] for p in parts), total, rtol=1e-5)
        assert sum(p[name][1] for p in parts) == count


def read(params, begin, embeds):
    """hidden[:, t] after the begin position and codes < t, as the trainer builds it."""
    first = jnp.broadcast_to(begin, (embeds.shape[0], 1, embeds.shape[2]))
    return decoder.forward(CONFIG, params, jnp.concatenate([first, embeds], axis=1)).hidden[:, :-1]


def test_no_leak():
    """The loss at t has no gradient into the embedding of code t or later, and some into t-1."""
    params = decoder.init_params(CONFIG, jax.random.key(0))
    params = jax.tree.map(lambda x: x * 5 if x.ndim > 1 else x, params)
    keys = jax.random.split(jax.random.key(1), 3)
    embeds = jax.random.normal(keys[0], (1, 8, CONFIG.width))
    heads = jax.random.normal(keys[1], (1, 20, CONFIG.width))
    codes = jax.random.randint(keys[2], (1, 8), 0, 20)

    def loss_at(embeds, frame):
        hidden = read(params, decoder.embed_text(params, jnp.array(0)), embeds)
        targets = future_targets(codes, jnp.ones((1, 8), bool), 1)
        only = targets._replace(valid=targets.valid & (jnp.arange(8) == frame))
        return targets_cross_entropy(hidden[:, None], heads, only)[0].sum()

    sensitivity = jax.jit(jax.grad(loss_at))
    for frame in range(8):
        gradient = np.abs(sensitivity(embeds, frame)[0]).max(axis=-1)
        assert (gradient[frame:] == 0).all()
        assert (gradient[:frame] > 0).all()


def test_head_k_learns_offset_k():
    """On a periodic stream every head finds its own offset, through the frozen model."""
    period = 7
    params = decoder.init_params(CONFIG, jax.random.key(0))
    table = jax.random.normal(jax.random.key(1), (period, CONFIG.width))
    start = jax.random.randint(jax.random.key(2), (8, 1), 0, period)
    codes = (start + jnp.arange(20)) % period
    hidden = read(params, decoder.embed_text(params, jnp.array(0)), table[codes])
    mask = jnp.ones(codes.shape, bool)
    heads = lm_heads.repeat_rows(table, HORIZONS)
    adam = optax.adam(0.05)

    @jax.jit
    def step(heads, state):
        def loss(heads):
            losses = ftp_loss(hidden, heads, codes, mask)
            return sum(losses[f"ftp/{k}"][0] / losses[f"ftp/{k}"][1] for k in (1, 2, 3))

        updates, state = adam.update(jax.grad(loss)(heads), state)
        return optax.apply_updates(heads, updates), state

    state = adam.init(heads)
    for _ in range(60):
        heads, state = step(heads, state)
    predicted = jnp.argmax(jnp.einsum("bth,kvh->kbtv", hidden, heads), axis=-1)
    for k in range(HORIZONS):
        # hidden[:, t] has just seen code t - 1; head k + 1 names the code k + 1 places on.
        expected = (codes[:, :-1] + k + 1) % period
        np.testing.assert_array_equal(predicted[k][:, 1:], expected)


def test_heads_start_as_copies():
    rows = jax.random.normal(jax.random.key(0), (9, 4))
    heads = lm_heads.repeat_rows(rows, 5)
    assert heads.shape == (5, 9, 4)
    np.testing.assert_array_equal(heads, np.broadcast_to(rows, heads.shape))
    weights = lm_heads.horizon_weights(5)
    np.testing.assert_allclose(weights.sum(), 1.0, rtol=1e-6)
    np.testing.assert_allclose(weights[0] / weights, [1, 2, 3, 4, 5], rtol=1e-5)
