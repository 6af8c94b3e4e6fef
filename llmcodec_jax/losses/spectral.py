"""Spectral losses between two waveforms (method.md 6): log-mel and STFT distances, in float32.

All take `reference` and `estimate` float [B, N] and optional `lengths` int [B]: samples past a
clip's length are padding and change nothing, so a padded clip scores what the bare clip scores.
Results are the mean over clips, or one value per clip [B] with `reduce=False`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from typing import NamedTuple

import jax
import jax.numpy as jnp

from llmcodec_jax.errors import UsageError
from llmcodec_jax.ops import dsp

SCALES = (512, 1024, 2048)
"""FFT sizes of the multi-scale losses; each hops by a quarter of its size."""

LOG_MEL_FLOOR = 1e-5
MAGNITUDE_FLOOR = 1e-7  # clamp of |X|, as in the published losses
RMS_FLOOR = 1e-4  # of the signal: silence is amplified by 80 dB at most
SILENT_RMS = 1e-3  # of |X|: below this (about -85 dBFS) spectral convergence stops being relative
CLIP = 1.2  # amplitude at which `acoustic_losses` clips both signals


ACOUSTIC = ("mel", "multi_scale_mel", "multi_resolution_stft", "complex_stft")
"""What `acoustic_losses` knows."""


@dataclasses.dataclass(frozen=True)
class SpectralConfig:
    """The published STFT losses and their gentler variants (`multi_resolution_stft_loss`)."""

    phase: str = "unit"  # as published; "magnitude" bounds the phase term's gradient in silence
    phase_weight: float = 0.5  # of the phase term in complex_stft
    convergence: str = "item"  # each clip by its own energy; "batch" as published

    def __post_init__(self):
        if self.phase not in ("unit", "magnitude"):
            raise UsageError("spectral.phase is 'unit' or 'magnitude'")
        if self.convergence not in ("item", "batch"):
            raise UsageError("spectral.convergence is 'item' or 'batch'")


class Spectrum(NamedTuple):
    """One clip batch at one resolution."""

    value: jax.Array  # complex64 [B, F, bins]
    magnitude: jax.Array  # float32 [B, F, bins], at least MAGNITUDE_FLOOR
    mask: jax.Array  # float32 [B, F, 1], 1 on valid frames


def analyse(wav: jax.Array, lengths: jax.Array | None, n_fft: int, hop: int) -> Spectrum:
    """Centred Hann STFT of float [B, N] with its valid-frame mask."""
    value = dsp.centred_stft(wav, lengths, n_fft, hop)
    if lengths is None:
        mask = jnp.ones((*value.shape[:2], 1), jnp.float32)
    else:
        frames = dsp.centred_frames(lengths, hop)
        mask = (jnp.arange(value.shape[1]) < frames[:, None]).astype(jnp.float32)[..., None]
    return Spectrum(value, dsp.magnitude(value, MAGNITUDE_FLOOR**2), mask)


def mel_loss(
    reference: jax.Array,
    estimate: jax.Array,
    lengths: jax.Array | None = None,
    *,
    sample_rate: int,
    n_fft: int = 1024,
    hop: int = 320,
    bands: int = 100,
    normalise: bool = True,
    reduce: bool = True,
) -> jax.Array:
    """L1 between log-mel spectra; `normalise` first brings both signals to unit RMS per clip."""
    if normalise:
        reference, estimate = (_unit_rms(wav, lengths) for wav in (reference, estimate))
    spectra = (analyse(wav, lengths, n_fft, hop) for wav in (reference, estimate))
    return _reduced(_mel_distance(*spectra, sample_rate, bands), reduce)


def multi_scale_mel_loss(
    reference: jax.Array,
    estimate: jax.Array,
    lengths: jax.Array | None = None,
    *,
    sample_rate: int,
    bands: int = 80,
    reduce: bool = True,
) -> jax.Array:
    """Mean over `SCALES` of the L1 between log-mel spectra (levels kept)."""
    scales = _pairs(reference, estimate, lengths)
    return _reduced(_mean([_mel_distance(r, e, sample_rate, bands) for r, e in scales]), reduce)


def multi_resolution_stft_loss(
    reference: jax.Array,
    estimate: jax.Array,
    lengths: jax.Array | None = None,
    *,
    phase_weight: float = 0.0,
    phase: str = SpectralConfig.phase,
    convergence: str = SpectralConfig.convergence,
    reduce: bool = True,
) -> jax.Array:
    """Mean over `SCALES` of spectral convergence + L1 of log magnitude + weighted phase distance.

    `phase`: "unit" is the published L1 between unit phasors, whose gradient is as large in silence
    as it is in speech; "magnitude" weights each bin by the quieter of the two magnitudes, which
    bounds the gradient. `convergence`: "item" normalises each clip by its own energy; "batch" is
    the published form, where a loud clip hides the error of a quiet one.
    """
    scales = _pairs(reference, estimate, lengths)
    loss = _mean([_magnitude_distance(r, e, convergence) for r, e in scales])
    if phase_weight:
        loss += phase_weight * _mean([_phase_distance(r, e, phase) for r, e in scales])
    return _reduced(loss, reduce)


def complex_stft_loss(
    reference: jax.Array,
    estimate: jax.Array,
    lengths: jax.Array | None = None,
    *,
    phase_weight: float = SpectralConfig.phase_weight,
    **options,
) -> jax.Array:
    """`multi_resolution_stft_loss` with its phase term on: the same figure, phase included."""
    return multi_resolution_stft_loss(
        reference, estimate, lengths, phase_weight=phase_weight, **options
    )


def acoustic_losses(
    reference: jax.Array,
    estimate: jax.Array,
    lengths: jax.Array | None = None,
    *,
    sample_rate: int,
    names: Collection[str] = ACOUSTIC,
    phase_weight: float = SpectralConfig.phase_weight,
    phase: str = SpectralConfig.phase,
    convergence: str = SpectralConfig.convergence,
) -> dict[str, jax.Array]:
    """Those of the trainer's acoustic losses that `names` lists, each [B].

    From one analysis per resolution, and equal to `mel_loss`, `multi_scale_mel_loss`,
    `multi_resolution_stft_loss` and `complex_stft_loss` of the signals clipped to +-1.2. The
    reference receives no gradient.
    """
    reference = jax.lax.stop_gradient(jnp.clip(reference, -CLIP, CLIP))
    estimate = jnp.clip(estimate, -CLIP, CLIP)
    losses = {}
    if "mel" in names:
        losses["mel"] = mel_loss(
            reference, estimate, lengths, sample_rate=sample_rate, reduce=False
        )
    if not set(names) & set(ACOUSTIC[1:]):
        return losses
    scales = _pairs(reference, estimate, lengths)
    if "multi_scale_mel" in names:
        losses["multi_scale_mel"] = _mean([_mel_distance(r, e, sample_rate, 80) for r, e in scales])
    if "multi_resolution_stft" in names or "complex_stft" in names:
        magnitude = _mean([_magnitude_distance(r, e, convergence) for r, e in scales])
    if "multi_resolution_stft" in names:
        losses["multi_resolution_stft"] = magnitude
    if "complex_stft" in names:
        phases = _mean([_phase_distance(r, e, phase) for r, e in scales])
        losses["complex_stft"] = magnitude + phase_weight * phases
    return losses


def _pairs(reference, estimate, lengths) -> list[tuple[Spectrum, Spectrum]]:
    """Both signals at every scale."""
    return [
        (analyse(reference, lengths, n, n // 4), analyse(estimate, lengths, n, n // 4))
        for n in SCALES
    ]


def _mel_distance(reference: Spectrum, estimate: Spectrum, sample_rate: int, bands: int):
    """[B]: mean over valid frames and bands of |log mel difference| (power mel, HTK)."""
    n_fft = 2 * (reference.value.shape[-1] - 1)
    filters = dsp.mel_filterbank(sample_rate, n_fft, bands, "htk")
    log_mel = [
        jnp.log(jnp.matmul(jnp.square(s.magnitude), filters, precision="highest") + LOG_MEL_FLOOR)
        for s in (reference, estimate)
    ]
    return _item_mean(jnp.abs(log_mel[0] - log_mel[1]), reference.mask)


def _magnitude_distance(reference: Spectrum, estimate: Spectrum, convergence: str):
    """[B]: spectral convergence plus L1 of log magnitude."""
    mask = reference.mask
    difference = jnp.square(reference.magnitude - estimate.magnitude) * mask
    error = jnp.sum(difference, axis=(1, 2))
    energy = jnp.sum(jnp.square(reference.magnitude) * mask, axis=(1, 2))
    floor = SILENT_RMS**2 * _elements(difference, mask)
    if convergence == "batch":
        error, energy, floor = (jnp.full_like(v, jnp.sum(v)) for v in (error, energy, floor))
    elif convergence != "item":
        raise ValueError(f"convergence is 'item' or 'batch', got {convergence!r}")
    # The square root's gradient is infinite at an exact match, hence a floor.
    relative = jnp.sqrt(jnp.maximum(error / jnp.maximum(energy, floor), 1e-12))
    log_ratio = jnp.log(reference.magnitude) - jnp.log(estimate.magnitude)
    return relative + _item_mean(jnp.abs(log_ratio), mask)


def _phase_distance(reference: Spectrum, estimate: Spectrum, weighting: str):
    """[B]: mean L1 between the real and imaginary parts of the two unit phasors."""
    unit = [s.value / s.magnitude for s in (reference, estimate)]
    distance = unit[0] - unit[1]
    distance = 0.5 * (jnp.abs(distance.real) + jnp.abs(distance.imag))
    if weighting == "unit":
        return _item_mean(distance, reference.mask)
    if weighting != "magnitude":
        raise ValueError(f"phase is 'unit' or 'magnitude', got {weighting!r}")
    quieter = jnp.minimum(reference.magnitude, jax.lax.stop_gradient(estimate.magnitude))
    level = jnp.maximum(_item_mean(reference.magnitude, reference.mask), SILENT_RMS)
    return _item_mean(quieter * distance, reference.mask) / level


def _unit_rms(wav: jax.Array, lengths: jax.Array | None) -> jax.Array:
    """Each clip of [B, N] divided by its RMS over its valid samples."""
    wav = wav.astype(jnp.float32)
    if lengths is None:
        power = jnp.mean(jnp.square(wav), axis=1)
    else:
        valid = jnp.arange(wav.shape[1]) < lengths[:, None]
        power = jnp.sum(jnp.square(wav) * valid, axis=1) / jnp.maximum(lengths, 1)
    return wav / jnp.sqrt(power + RMS_FLOOR**2)[:, None]


def _elements(values: jax.Array, mask: jax.Array) -> jax.Array:
    """[B]: valid frames times channels of [B, F, C]."""
    return jnp.maximum(jnp.sum(mask, axis=(1, 2)), 1) * values.shape[-1]


def _item_mean(values: jax.Array, mask: jax.Array) -> jax.Array:
    """[B]: mean of [B, F, C] over valid frames and all channels."""
    return jnp.sum(values * mask, axis=(1, 2)) / _elements(values, mask)


def _mean(values: list[jax.Array]) -> jax.Array:
    return sum(values, jnp.float32(0)) / len(values)


def _reduced(per_item: jax.Array, reduce: bool) -> jax.Array:
    return jnp.mean(per_item) if reduce else per_item
