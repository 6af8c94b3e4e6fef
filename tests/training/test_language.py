"""The language branch: what the codec learns from the codes that were to be predicted."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llmcodec_jax import bridge as bridging
from llmcodec_jax.hardware import costs
from llmcodec_jax.losses.repeats import repeat_loss
from llmcodec_jax.training.language import (
    Branch,
    language_losses,
    read_text,
    target_gradient,
    text_buckets,
)
from llmcodec_jax.training.method import Bridge
from llmcodec_jax.training.state import init_state, stream
from llmcodec_jax.training.terms import batch_counts
from llmcodec_jax.types import CodecOutput, Search
from tests.training.test_step import lm, tiny_batch, tiny_method  # noqa: F401 (a fixture)

B, T, D, V, H, K = 2, 7, 4, 11, 6, 3
TEMPERATURE = 0.7
STREAMS = ("bridge", "bridge_targets", "jitter", "r1", "revive", "init", "disc", "eval")


@pytest.fixture
def parts():
    rng = np.random.default_rng(0)

    def normal(*shape):
        return jnp.asarray(rng.standard_normal(shape), jnp.float32)

    query, table = normal(B, T, D), normal(V, D)
    mask = jnp.arange(T) < jnp.array([[T], [4]])
    codes = jnp.argmax(query @ table.T, axis=-1)
    output = CodecOutput(
        latent=query, codes=codes, quantised=query, vq_loss=jnp.zeros(B), query=query[:, :, None],
        frame_mask=mask,
    )  # fmt: skip
    return query, table, normal(B, T, H), normal(K, V, H), output


def test_target_gradient_is_the_relaxed_cross_entropy(parts):
    """Zero in value; its gradient is that of -sum_v p_v (h W_v - log share_v), p = softmax."""
    query, table, hidden, heads, output = parts
    method = dataclasses.replace(tiny_method(), bridge=Bridge(mode="ste"))
    weights = jnp.array([0.5, 0.3, 0.2])
    share = jnp.arange(V) / 100.0  # unnormalised, as a young running mean is
    prior = jnp.log(0.9 * share / share.sum() + 0.1 / V)

    def ours(query):
        logits = bridging.Logits(query[None], table[None], jnp.zeros((1, V)))
        branch = Branch(
            params={"ftp_heads": heads}, lm_params={}, batch_stats={},
            output=method.reading.select(output), batch=None, bank=None,
            code_share=share[None], key=None, gate=1.0, temperature=TEMPERATURE,
        )  # fmt: skip
        return weights @ target_gradient(method, branch, logits, hidden)

    def plain(query):
        p = jax.nn.softmax(query @ table.T / TEMPERATURE, axis=-1)
        total = 0.0
        for t in range(T):
            for k in range(K):
                if t + k < T:
                    gain = hidden[:, t] @ heads[k].T - prior
                    score = jnp.sum(p[:, t + k] * gain, axis=-1)
                    total -= weights[k] * jnp.sum(score * output.frame_mask[:, t + k])
        return total

    assert ours(query) == 0
    np.testing.assert_allclose(jax.grad(ours)(query), jax.grad(plain)(query), rtol=1e-4, atol=1e-5)


def test_repeats_are_the_relaxations_share_of_the_code_before(parts):
    """Value and gradient beside the plain softmax; the first frame and padding count nowhere."""
    query, table, _, _, output = parts
    bias = jnp.linspace(-1.0, 1.0, V)

    def ours(query):
        logits = (query, table, bias)
        total, count = repeat_loss(
            *logits, output.codes, output.frame_mask, TEMPERATURE, chunk=512
        )["repeats"]
        assert count == (T - 1) + 3
        return total

    def plain(query):
        p = jax.nn.softmax((query @ table.T + bias) / TEMPERATURE, axis=-1)
        before = jnp.take_along_axis(p[:, 1:], output.codes[:, :-1, None], axis=-1)[..., 0]
        return jnp.sum(before * output.frame_mask[:, 1:])

    np.testing.assert_allclose(ours(query), plain(query), rtol=1e-5)
    found, wanted = jax.grad(ours)(query), jax.grad(plain)(query)
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-6)
    assert not found[:, 0].any()


def test_repeats_are_a_loss_of_their_own_that_reaches_the_codec(lm):  # noqa: F811
    """Off, it is not computed; its count is what the step divides by."""
    batch, method = tiny_batch(), tiny_method()
    state = init_state(method, lm, 0)

    def found(params, weight=0.7):
        weights = dataclasses.replace(method.weights, repeats=weight)
        variables = {"params": params["codec"], "batch_stats": state.batch_stats}
        output = method.codec.apply(variables, batch.wav, batch.wav_length, method="encode")
        branch = Branch(
            params, lm, state.batch_stats, output, batch, state.bank, state.code_shares,
            jax.random.key(0), 1.0, 0.5,
        )  # fmt: skip
        return language_losses(dataclasses.replace(method, weights=weights), branch)[0]

    assert "repeats" not in jax.eval_shape(lambda p: found(p, 0.0), state.params)
    total, count = found(state.params)["repeats"]
    assert 0 < total < count
    weights = dataclasses.replace(method.weights, repeats=0.7)
    counts = batch_counts(weights, batch, method.codec.hop, method.reading, 2)
    assert count == counts["repeats"]
    gradient = jax.jit(jax.grad(lambda params: found(params)["repeats"][0]))(state.params)
    size = lambda tree: sum(float(jnp.abs(x).sum()) for x in jax.tree.leaves(tree))  # noqa: E731
    assert size(gradient["codec"]) > 0
    assert size(gradient["ftp_heads"]) == size(gradient["audio_embedding"]) == 0


def test_target_gradient_changes_the_codec_alone(lm):  # noqa: F811
    """The same losses; another gradient for the codec, the same for heads and embeddings."""
    batch = tiny_batch()

    def gradient(share):
        method = tiny_method()
        bridge = dataclasses.replace(method.bridge, target_gradient=share)
        method = dataclasses.replace(method, bridge=bridge)
        state = init_state(method, lm, 0)

        def loss(params):
            variables = {"params": params["codec"], "batch_stats": state.batch_stats}
            output = method.codec.apply(variables, batch.wav, batch.wav_length, method="encode")
            branch = Branch(
                params,
                lm,
                state.batch_stats,
                output,
                batch,
                state.bank,
                state.code_shares,
                jax.random.key(0),
                1.0,
                0.5,
            )
            losses, _ = language_losses(method, branch)
            return losses["ftp/1"][0] + losses["ftp/2"][0]

        return jax.jit(jax.value_and_grad(loss))(state.params)

    (value, without), (same, with_extra) = gradient(0.0), gradient(1.0)
    np.testing.assert_allclose(value, same, rtol=1e-6)
    for name in ("ftp_heads", "audio_embedding"):
        np.testing.assert_allclose(without[name], with_extra[name], rtol=1e-5, atol=1e-7)
    size = lambda tree: sum(float(jnp.abs(x).sum()) for x in jax.tree.leaves(tree))  # noqa: E731
    difference = jax.tree.map(jnp.subtract, with_extra["codec"], without["codec"])
    assert size(difference) > 0.1 * size(without["codec"])


def test_detached_bridge_has_no_target_gradient():
    with pytest.raises(ValueError, match="target_gradient must be 0"):
        Bridge(mode="detach", target_gradient=1.0)


def test_bridge_relaxation_is_the_one_the_target_gradient_uses(parts):
    """`bridge` in mode "ste" and the plain form agree on rows that are heads, not embeddings."""
    query, table, _, heads, output = parts
    rows = heads.transpose(1, 0, 2).reshape(V, K * H)
    fused = bridging.bridge(
        query, table, jnp.zeros(V), rows, jax.random.key(0), TEMPERATURE,
        mode="ste", labels=output.codes,
    )  # fmt: skip
    plain = bridging.bridge_from_noise(query @ table.T, 0.0, rows, TEMPERATURE, "ste")
    np.testing.assert_allclose(fused.embeds, plain, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("logits", ["native", "projection"])
def test_gate_and_detach_spare_the_whole_codec_its_codebook_too(lm, logits):  # noqa: F811
    """What reaches the codec of the LM branch's losses: all at gate 1, else not one row of it."""
    batch = tiny_batch()

    def reached(mode, gate):
        method = tiny_method()
        bridge = dataclasses.replace(method.bridge, logits=logits, mode=mode)
        groups = tuple(g for g in method.groups if g.name != "bridge" or logits == "projection")
        method = dataclasses.replace(method, bridge=bridge, groups=groups)
        state = init_state(method, lm, 0)

        def loss(codec, gate):
            variables = {"params": codec, "batch_stats": state.batch_stats}
            output = method.codec.apply(variables, batch.wav, batch.wav_length, method="encode")
            branch = Branch(
                state.params | {"codec": codec}, lm, state.batch_stats, output, batch, state.bank,
                state.code_shares, jax.random.key(0), gate, 1.0,
            )  # fmt: skip
            losses, _ = language_losses(method, branch)
            return losses["ftp/1"][0] + losses["bridge"][0]

        gradient = jax.jit(jax.grad(loss))
        codec = state.params["codec"]
        return [gradient(codec, jnp.float32(value)) for value in gate]

    size = lambda tree: sum(float(jnp.abs(x).sum()) for x in jax.tree.leaves(tree))  # noqa: E731
    opened, closed = reached("ste", (1.0, 0.0))
    (detached,) = reached("detach", (1.0,))
    assert size(closed) == size(detached) == 0
    assert size(opened["encoder"]) > 0
    if logits == "native":  # of the quantised latent only the encoder's part has a gradient
        assert size(opened["quantizer"]["level_0"]["codebook"]) > 0


def test_native_temperature_acts_on_noise_and_relaxation():
    """Scores are logits / tau + gumbel: the picks sharpen with tau, and so does the relaxation."""
    keys = jax.random.split(jax.random.key(0), 3)
    table = jax.random.normal(keys[0], (64, 4))
    query = table[jax.random.randint(keys[1], (1, 4000), 0, 64)] + 0.1
    codes = jnp.argmin(jnp.sum(jnp.square(query[..., None, :] - table), -1), -1)
    output = CodecOutput(query, codes, query, query[:, :, None], jnp.zeros(1), codes >= 0)
    native = bridging.Native(0.5)
    logits = native({}, output, Search(table, "euclidean"), 1.0)
    found = {}
    for tau in (1.0, 0.1):
        args = (*logits, jnp.eye(64), keys[2], tau)
        found[tau] = bridging.bridge(*args, mode="gumbel", labels=codes, noise=native.noise(tau))
    agreement = {tau: float((o.ids == codes).mean()) for tau, o in found.items()}
    assert agreement[0.1] > agreement[1.0] + 0.05
    clean = jnp.einsum("btd,vd->btv", logits.query, logits.weight) + logits.bias
    picks = jax.nn.softmax(clean / 0.1, axis=-1)
    expected = float(jnp.take_along_axis(picks, codes[..., None], axis=-1).mean())
    assert agreement[0.1] == pytest.approx(expected, abs=0.03)
    # A projection's picks, as published, do not change with the temperature.
    assert bridging.Projection().noise(0.1) == bridging.Projection().noise(1.0) == 1.0


def test_entropy_of_the_relaxation_is_that_of_its_softmax(parts):
    query, table, _, _, output = parts
    for chunk in (128, 4096):
        fused = bridging.bridge(
            query, table, jnp.zeros(V), jnp.eye(V), jax.random.key(0), TEMPERATURE,
            mode="ste", labels=output.codes, chunk=chunk,
        )  # fmt: skip
        p = jax.nn.softmax(query @ table.T / TEMPERATURE, axis=-1)
        np.testing.assert_allclose(fused.entropy, -jnp.sum(p * jnp.log(p), -1), atol=1e-5)


def test_streams_are_keyed_by_their_whole_names():
    keys = {n: jax.random.key_data(stream(jax.random.key(0), 3, n)).tolist() for n in STREAMS}
    assert len({str(key) for key in keys.values()}) == len(STREAMS)


def test_text_is_read_at_the_shortest_bucket_that_holds_it(lm):  # noqa: F811
    """The same states at every bucket, and half the work where the longest text is half as long."""
    assert text_buckets(128) == (32, 64, 128)
    assert text_buckets(1) == (1,)
    method, batch = tiny_method(), tiny_batch()
    batch = batch.replace(text_ids=np.pad(batch.text_ids, ((0, 0), (0, 26))))  # 6 of 32
    short = batch.replace(text_ids=batch.text_ids[:, :8])
    read = jax.jit(lambda batch: read_text(method, lm, batch))
    padded, bare = read(batch), read(short)
    np.testing.assert_allclose(padded.states, bare.states, atol=1e-5)
    np.testing.assert_array_equal(padded.text_hash, bare.text_hash)
    branches = [
        equation.params["branches"]
        for equation in jax.make_jaxpr(lambda b: read_text(method, lm, b))(batch).jaxpr.eqns
        if equation.primitive.name == "cond"
    ]
    assert [len(b) for b in branches] == [3]
    first, second, third = (costs.work(b.jaxpr).flops for b in branches[0])
    assert first < 0.6 * second < 0.36 * third
