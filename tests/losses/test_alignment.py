"""Semantic alignment: the bank's order and masks, the loss against a plain computation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llmcodec_jax.losses import alignment as module
from llmcodec_jax.losses.alignment import init_bank, text_hash

alignment, enqueue = jax.jit(module.alignment), jax.jit(module.enqueue)

LAYERS, WIDTH = 2, 8


def states(count: int, seed: int = 0):
    return jax.random.normal(jax.random.key(seed), (LAYERS, count, WIDTH))


def hashes(*values: int):
    return jnp.array(values, jnp.uint32)


def test_only_valid_items_take_slots_in_order():
    bank = init_bank(LAYERS, 5, WIDTH)
    new = states(3)
    bank = enqueue(bank, new, hashes(1, 2, 3), jnp.array([True, False, True]))
    assert bank.filled.tolist() == [True, True, False, False, False]
    assert bank.text_hash[:2].tolist() == [1, 3]
    assert int(bank.cursor) == 2
    unit = new / jnp.linalg.norm(new, axis=-1, keepdims=True)
    np.testing.assert_allclose(bank.states[:, :2], unit[:, [0, 2]], rtol=1e-5)


def test_the_oldest_leave_first_and_it_never_freezes():
    bank = init_bank(LAYERS, 4, WIDTH)
    for number in range(1, 12):
        bank = enqueue(bank, states(1, number), hashes(number), jnp.array([True]))
    assert sorted(bank.text_hash.tolist()) == [8, 9, 10, 11]


def test_more_items_than_slots_keeps_the_last():
    bank = init_bank(LAYERS, 3, WIDTH)
    bank = enqueue(bank, states(5), hashes(1, 2, 3, 4, 5), jnp.ones(5, bool))
    assert sorted(bank.text_hash.tolist()) == [3, 4, 5]


def reference(audio, text, negatives, scale, smoothing):
    """One item at one layer: cross-entropy against smoothed labels."""
    unit = [x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (audio, text)]
    candidates = np.concatenate([unit[1][None], negatives])
    logits = scale * candidates @ unit[0]
    target = np.full(len(logits), smoothing / len(logits))
    target[0] += 1 - smoothing
    return np.sum(target * (np.log(np.sum(np.exp(logits))) - logits))


def test_loss_masks_empty_slots_equal_texts_and_items_without_text():
    bank = enqueue(
        init_bank(LAYERS, 6, WIDTH), states(4, 1), hashes(10, 11, 12, 13), jnp.ones(4, bool)
    )
    audio, text = np.asarray(states(3, 2)), np.asarray(states(3, 3))
    valid = jnp.array([True, True, False])
    losses = alignment(audio, text, hashes(11, 99, 10), valid, bank)
    allowed = {0: [0, 2, 3], 1: [0, 1, 2, 3]}
    expected = np.mean(
        [
            [
                reference(audio[p, b], text[p, b], np.asarray(bank.states[p, allowed[b]]), 5.0, 0.1)
                for b in allowed
            ]
            for p in range(LAYERS)
        ],
        axis=0,
    ).sum()
    np.testing.assert_allclose(losses["sa_contrastive"][0], expected, rtol=1e-5)
    assert losses["sa_contrastive"][1] == 2
    cosine = np.sum(audio * text, -1) / (
        np.linalg.norm(audio, axis=-1) * np.linalg.norm(text, axis=-1)
    )
    np.testing.assert_allclose(losses["sa_cosine"][0], (1 - cosine[:, :2]).mean(0).sum(), rtol=1e-5)


def test_empty_bank_is_finite_and_counts_no_retrieval():
    audio, text = states(2), states(2, 1)
    bank = init_bank(LAYERS, 4, WIDTH)

    def total(audio):
        losses = alignment(audio, text, hashes(1, 2), jnp.array([True, False]), bank)
        return losses["sa_cosine"][0] + losses["sa_contrastive"][0], losses

    gradient, losses = jax.grad(total, has_aux=True)(audio)
    assert np.isfinite(gradient).all()
    assert np.abs(gradient[:, 0]).min() > 0
    assert (gradient[:, 1] == 0).all()
    np.testing.assert_allclose(losses["sa_contrastive"][0], 0.0, atol=1e-6)
    assert losses["accuracy/retrieval"][1] == 0


@pytest.mark.parametrize(("noise", "expected"), [(0.0, 1.0), (50.0, 0.5)])
def test_retrieval(noise, expected):
    text = states(6, 1)
    bank = enqueue(
        init_bank(LAYERS, 6, WIDTH), text, jnp.arange(6, dtype=jnp.uint32), jnp.ones(6, bool)
    )
    audio = text + noise * states(6, 2)
    losses = alignment(audio, text, jnp.arange(6, dtype=jnp.uint32), jnp.ones(6, bool), bank)
    total, count = losses["accuracy/retrieval"]
    assert (total / count == expected) if noise == 0 else (total / count < expected)


def test_no_gradient_into_text_or_bank():
    bank = enqueue(init_bank(LAYERS, 4, WIDTH), states(3), hashes(1, 2, 3), jnp.ones(3, bool))

    def total(text, slots):
        losses = alignment(
            states(2, 5), text, hashes(7, 8), jnp.ones(2, bool), bank.replace(states=slots)
        )
        return losses["sa_cosine"][0] + losses["sa_contrastive"][0]

    for gradient in jax.grad(total, (0, 1))(states(2, 4), bank.states):
        assert (np.asarray(gradient) == 0).all()


def test_text_hash_is_blind_to_padding_and_to_nothing_else():
    ids = jnp.array([[5, 6, 7, 0], [5, 6, 7, 9], [5, 6, 8, 0], [6, 5, 7, 0], [5, 6, 7, 0]])
    length = jnp.array([3, 3, 3, 3, 4])
    first, same, *others = text_hash(ids, length).tolist()
    assert first == same
    assert first not in others
    assert text_hash(ids[:, :3], jnp.array([3] * 5)).tolist()[0] == first
    many = text_hash(jnp.arange(20000)[:, None] % 200 + jnp.arange(2) * 0, jnp.full(20000, 2))
    assert len(set(many.tolist())) == 200
