"""Spectral losses against values computed by the published code (method.md 9, losses_*)."""

import functools
import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from llmcodec_jax.losses import spectral

DATA = Path(__file__).parent / "data"
GOLDEN = json.loads((DATA / "losses_values.json").read_text())


def _magnitude_l1(reference, estimate):
    """The transform itself, without logarithms or normalisation."""
    values = [
        jnp.mean(jnp.abs(r.magnitude - e.magnitude))
        for r, e in spectral._pairs(reference, estimate, None)
    ]
    return sum(values) / len(values)


LOSSES = {
    "mel_1024_hop320_n100": lambda r, e: spectral.mel_loss(
        r, e, sample_rate=16_000, normalise=False
    ),
    "mel_1024_hop320_n100_rmsnorm": functools.partial(spectral.mel_loss, sample_rate=16_000),
    "multi_scale_mel_n80": functools.partial(spectral.multi_scale_mel_loss, sample_rate=16_000),
    "multi_resolution_stft": lambda r, e: spectral.multi_resolution_stft_loss(
        r, e, phase_weight=0.5, convergence="batch"
    ),
    "complex_stft_phase0.5": lambda r, e: spectral.complex_stft_loss(r, e, convergence="batch"),
    "stft_magnitude_l1": _magnitude_l1,
}


def test_every_golden_value_is_covered():
    assert set(GOLDEN["batch"]) == set(LOSSES)


@pytest.mark.parametrize("part", ["batch", "item0", "item1"])
@pytest.mark.parametrize("name", sorted(LOSSES))
def test_golden(part, name):
    pairs = np.load(DATA / "losses_io.npz")
    rows = {"batch": slice(0, 2), "item0": slice(0, 1), "item1": slice(1, 2)}[part]
    value = LOSSES[name](pairs["reference"][rows], pairs["estimate"][rows])
    assert float(value) == pytest.approx(GOLDEN[part][name], rel=1e-5)


def test_per_item_convergence_is_the_published_loss_item_by_item():
    pairs = np.load(DATA / "losses_io.npz")
    values = spectral.complex_stft_loss(pairs["reference"], pairs["estimate"], reduce=False)
    expected = [GOLDEN[f"item{i}"]["complex_stft_phase0.5"] for i in range(2)]
    np.testing.assert_allclose(values, expected, rtol=1e-5)
