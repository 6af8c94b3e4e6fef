"""The frozen decoder: pooling, padding, precision, adapters, generation, identity."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llmcodec_jax.lm import decoder
from llmcodec_jax.lm import lora as adapters
from llmcodec_jax.lm.config import (
    FAMILIES,
    ConfigError,
    LMConfig,
    from_huggingface,
    small_config,
    to_huggingface,
)
from llmcodec_jax.lm.generate import generate
from llmcodec_jax.lm.weights import digest

CONFIG = LMConfig(
    vocab_size=40, width=32, layers=6, heads=4, kv_heads=2, head_dim=8, ffn_width=48,
    qk_norm=True, tied=False,
)  # fmt: skip


@pytest.fixture(scope="module")
def params():
    """Weights large enough that attention is far from uniform."""
    params = decoder.init_params(CONFIG, jax.random.key(0))
    return jax.tree.map(lambda x: x * 8 if x.ndim > 1 and x.shape[-1] != 8 else x, params)


@pytest.fixture(scope="module")
def embeds():
    return jax.random.normal(jax.random.key(1), (3, 9, CONFIG.width))


def test_pooled_states_are_hidden_states_at_one_position(params, embeds):
    lengths = jnp.array([9, 4, 1])
    start, stop = CONFIG.aligned_layers
    assert (start, stop) == (2, 4)
    output = decoder.forward(CONFIG, params, embeds, lengths, pool_layers=(start, stop))
    states = decoder.hidden_states(CONFIG, params, embeds, lengths)
    expected = states[start:stop, jnp.arange(3), lengths - 1]
    np.testing.assert_allclose(output.pooled, expected, atol=1e-5)
    np.testing.assert_allclose(output.hidden, states[-1], atol=1e-5)


def test_what_layers_add_does_not_hide_the_tokens_where_training_starts():
    """At width 192 and three layers; with `init_params` they add 2.8 times an embedding."""
    config = small_config(50, 192, 3)

    def added(start):
        params = start(config, jax.random.key(0))
        embeds = decoder.embed_text(params, jnp.arange(50)[None])
        states = decoder.hidden_states(config, params, embeds)
        return float(jnp.linalg.norm(states[-2] - states[0]) / jnp.linalg.norm(states[0]))

    assert 0.05 < added(decoder.init_to_train) < 0.5  # small, but not nothing
    assert added(decoder.init_params) > 2


def test_paper_layers():
    """36 layers align 12..27."""
    paper = LMConfig(**{**CONFIG.__dict__, "layers": 36})
    assert paper.aligned_layers == (12, 28)


def test_layers_outside_the_model_are_refused(params, embeds):
    with pytest.raises(ValueError, match="6 layers"):
        decoder.forward(CONFIG, params, embeds, pool_layers=(3, 8))


def test_padding_never_matters(params, embeds):
    lengths = jnp.array([9, 4, 6])
    padding = jnp.arange(9)[:, None] >= lengths[:, None, None]
    disturbed = jnp.where(padding, 100.0, embeds)
    a, b = (decoder.forward(CONFIG, params, x, lengths).hidden for x in (embeds, disturbed))
    np.testing.assert_allclose(jnp.where(padding, 0, a), jnp.where(padding, 0, b), atol=1e-5)


def test_empty_item_stays_finite(params, embeds):
    lengths = jnp.array([9, 0, 3])

    def total(x):
        output = decoder.forward(CONFIG, params, x, lengths, pool_layers=(1, 3))
        return output.hidden.sum() + output.pooled.sum()

    assert np.isfinite(jax.grad(total)(embeds)).all()


@pytest.mark.parametrize("remat", [True, False])
def test_backward_makes_no_weight_gradient(params, embeds, remat):
    """Frozen parameters cost no matrix product of a weight's own shape in the backward pass."""

    def total(x):
        frozen = jax.lax.stop_gradient(params)
        output = decoder.forward(CONFIG, frozen, x, pool_layers=(1, 3), remat=remat)
        return jnp.sum(jnp.square(output.hidden))

    produced = set()

    def walk(jaxpr):
        for equation in jaxpr.eqns:
            if equation.primitive.name == "dot_general":
                produced.add(equation.outvars[0].aval.shape)
            for value in jax.tree.leaves(list(equation.params.values()), is_leaf=is_jaxpr):
                if is_jaxpr(value):
                    walk(getattr(value, "jaxpr", value))

    def is_jaxpr(value):
        return hasattr(value, "eqns") or hasattr(value, "jaxpr")

    walk(jax.make_jaxpr(jax.grad(total))(embeds).jaxpr)
    weights = {leaf.shape[1:] for leaf in jax.tree.leaves(params["blocks"]) if leaf.ndim == 3}
    assert produced
    assert not {s for s in produced if s in weights or s[::-1] in weights}


def test_bfloat16_is_close_and_keeps_its_dtype(params, embeds):
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    output = decoder.forward(CONFIG, half, embeds, pool_layers=(1, 3))
    assert output.hidden.dtype == jnp.bfloat16
    assert output.pooled.dtype == jnp.float32
    exact = decoder.forward(CONFIG, params, embeds).hidden
    assert jnp.abs(output.hidden - exact).mean() < 0.05 * jnp.abs(exact).mean()


def test_generation_with_cache_equals_reading_everything_again(params, embeds):
    lengths, steps = jnp.array([9, 4, 1]), 5
    table, head = params["embed"]["embedding"], decoder.head_rows(CONFIG, params)
    ids = generate(CONFIG, params, embeds, lengths, steps, embedding=table, head=head)
    for item, length in enumerate(lengths.tolist()):
        sequence = jnp.concatenate([embeds[item, :length], table[ids[item]]])[None]
        expected = jnp.argmax(decoder.logits(CONFIG, params, sequence)[0, length - 1 : -1], axis=-1)
        assert ids[item].tolist() == expected.tolist()


def test_generation_stops_and_samples(params, embeds):
    rows = {"embedding": params["embed"]["embedding"], "head": decoder.head_rows(CONFIG, params)}
    lengths = jnp.array([9, 4, 1])
    greedy = generate(CONFIG, params, embeds, lengths, 6, **rows)
    stop = int(greedy[0, 1])
    stopped = generate(CONFIG, params, embeds, lengths, 6, stop_id=stop, **rows)
    first = greedy[0].tolist().index(stop)
    assert stopped[0].tolist() == [*greedy[0, :first].tolist(), *[stop] * (6 - first)]
    draws = [
        generate(
            CONFIG, params, embeds, lengths, 6, key=jax.random.key(k), temperature=5.0, **rows
        ).tolist()
        for k in (0, 0, 1)
    ]
    assert draws[0] == draws[1] != draws[2]
    with pytest.raises(ValueError, match="key"):
        generate(CONFIG, params, embeds, lengths, 2, temperature=1.0, **rows)


def test_lora_starts_as_identity_trains_alone_and_merges(params, embeds):
    lora = adapters.init_lora(params, jax.random.key(2), rank=2, targets=r"(q|down)_proj|lm_head")
    assert set(lora.weights["blocks"]) == {"attn", "mlp"}
    assert set(lora.weights["lm_head"]) == {"a", "b"}
    plain = decoder.forward(CONFIG, params, embeds).hidden
    np.testing.assert_allclose(
        decoder.forward(CONFIG, params, embeds, lora=lora).hidden, plain, atol=1e-4
    )

    def total(weights):
        return jnp.sum(
            jnp.square(
                decoder.forward(CONFIG, params, embeds, lora=lora.replace(weights=weights)).hidden
            )
        )

    gradient = jax.grad(total)(lora.weights)["blocks"]
    assert np.abs(gradient["attn"]["q_proj"]["b"]).max() > 0
    weights = jax.tree.map(lambda x: x + 0.1, lora.weights)
    moved = lora.replace(weights=weights)
    with_adapter = decoder.forward(CONFIG, params, embeds, lora=moved).hidden
    merged = decoder.forward(CONFIG, adapters.merge(params, moved), embeds).hidden
    assert jnp.abs(with_adapter - plain).max() > 0.01
    np.testing.assert_allclose(with_adapter, merged, atol=2e-4)


def test_lora_dropout_needs_a_key_and_targets_must_exist(params, embeds):
    lora = adapters.init_lora(params, jax.random.key(2), rank=2, dropout=0.5)
    lora = lora.replace(weights=jax.tree.map(lambda x: x + 0.1, lora.weights))
    hidden = [
        decoder.forward(CONFIG, params, embeds, lora=lora, dropout_key=key).hidden
        for key in (None, None, jax.random.key(0), jax.random.key(1))
    ]
    np.testing.assert_array_equal(hidden[0], hidden[1])
    assert jnp.abs(hidden[2] - hidden[3]).max() > 0
    with pytest.raises(ValueError, match="gate_proj"):
        adapters.init_lora(params, jax.random.key(2), rank=2, targets="nothing")


def test_digest_changes_with_one_bit_place_or_name(params):
    one = digest(params)
    assert one == digest(jax.tree.map(jnp.array, params))
    kernel = params["blocks"]["mlp"]["up_proj"]["kernel"]
    changes = [
        {**params, "norm": {"scale": params["norm"]["scale"].at[3].add(1e-7)}},
        {**params, "lm_head": {"kernel": params["lm_head"]["kernel"][::-1]}},
        {**params, "norme": params["norm"]},
    ]
    assert kernel.dtype == jnp.float32
    assert len({one, *map(digest, changes)}) == 4


def test_config_survives_its_own_description():
    assert from_huggingface(to_huggingface(CONFIG, "float32")) == CONFIG


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"model_type": "mamba"}, "mamba"),
        ({"use_sliding_window": True}, "sliding"),
        ({"hidden_act": "relu"}, "relu"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 2}}, "yarn"),
        ({"num_key_value_heads": 3}, "share"),
    ],
)
def test_what_cannot_be_honoured_is_refused(change, named):
    with pytest.raises(ConfigError, match=named):
        from_huggingface(to_huggingface(CONFIG, "float32") | change)


def test_an_unknown_family_is_never_exported_as_another():
    with pytest.raises(ConfigError, match="'gemma' is not one of llama, mistral, qwen3"):
        to_huggingface(dataclasses.replace(CONFIG, family="gemma"), "float32")


@pytest.mark.parametrize("row", FAMILIES)
def test_every_row_is_read_and_exported_as_itself(row):
    config = dataclasses.replace(CONFIG, family=row.model_type, qk_norm=row.qk_norm)
    raw = to_huggingface(config, "float32")
    assert raw["architectures"] == [row.architecture]
    assert from_huggingface(raw) == config
    windowed = raw | {"sliding_window": 512}
    if row.windowed:
        with pytest.raises(ConfigError, match="sliding"):
            from_huggingface(windowed)
    else:
        assert from_huggingface(windowed) == config
