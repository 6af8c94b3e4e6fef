"""The six Codec-SUPERB metrics of one pair of clips, as the benchmark defines them (method.md 8).

Everything here is numpy on the host: it scores files, it trains nothing. Clips are float32
[channels, samples]; channels are scored apart and averaged. A value that is not defined (PESQ
without speech, a pitch correlation without voiced frames) is NaN, never a stand-in score.
"""

from __future__ import annotations

import functools
import importlib.util
import math
import warnings

import numpy as np
import scipy.sparse

from llmcodec_jax.ops import dsp

METRICS = ("mel", "stft", "waveform", "pesq", "stoi", "f0corr")

WINDOWS = {2048: 150, 512: 80}  # window size -> mel bands
FLOOR = 1e-5  # of magnitudes, before the logarithm
SPEECH_RATE = 16000  # Hz, what PESQ, STOI and the pitch tracker hear
PITCH_RATE = 22050  # Hz, the rate the pitch tracker is told, whatever it hears
PITCH_RANGE = (50.0, 1100.0)  # Hz

NEEDS = {"pesq": "pesq", "stoi": "pystoi", "f0corr": "parselmouth"}  # metric -> module
PACKAGES = {"pesq": "pesq", "pystoi": "pystoi", "parselmouth": "praat-parselmouth"}


def absent() -> dict[str, str]:
    """Metrics that cannot be computed here -> the reason and the fix."""
    return {
        metric: f"{module} is not installed: pip install {PACKAGES[module]}"
        for metric, module in NEEDS.items()
        if importlib.util.find_spec(module) is None
    }


def score(
    reference: np.ndarray, reference_rate: int, estimate: np.ndarray, estimate_rate: int
) -> dict[str, float]:
    """All metrics that can be computed here, of float [channels, N] pairs at their own rates.

    The estimate is brought to the reference's rate, the shorter clip zero-padded at its end; clips
    of different channel counts are compared as mono. As in the benchmark, the speech metrics hear
    16 kHz audio.
    """
    reference, estimate = np.atleast_2d(reference), np.atleast_2d(estimate)
    if len(reference) != len(estimate):
        reference, estimate = (x.mean(axis=0, keepdims=True) for x in (reference, estimate))
    pair = match_lengths(reference, sinc_resample(estimate, estimate_rate, reference_rate))
    values = spectral_distances(*pair, reference_rate)
    values["waveform"] = float(np.mean(np.abs(pair[0] - pair[1])))
    speech = [sinc_resample(x, reference_rate, SPEECH_RATE) for x in pair]
    missing = absent()
    for name, metric in (("pesq", pesq), ("stoi", stoi), ("f0corr", f0_correlation)):
        if name not in missing:
            values[name] = metric(*speech)
    return {name: values[name] for name in METRICS if name in values}


def match_lengths(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Zero-pads the shorter of two [channels, N] clips at its end."""
    samples = max(first.shape[1], second.shape[1])
    return tuple(np.pad(x, ((0, 0), (0, samples - x.shape[1]))) for x in (first, second))


def spectral_distances(reference: np.ndarray, estimate: np.ndarray, rate: int) -> dict[str, float]:
    """{"mel", "stft"}: L1 of log10 squared and of plain magnitudes, summed over two windows."""
    mel = stft = 0.0
    for window, bands in WINDOWS.items():
        filters = dsp.mel_filterbank(rate, window, bands, "slaney")
        magnitudes = [_magnitudes(x, window, window // 4) for x in (reference, estimate)]
        stft += _distance(*magnitudes)
        mel += _distance(*(_bands(m, filters) for m in magnitudes))
    return {"mel": mel, "stft": stft}


def _bands(magnitudes: np.ndarray, filters: np.ndarray) -> np.ndarray:
    """[channels, frames, bins] x [bins, bands], summed in one fixed order.

    BLAS chooses its order by memory alignment, which varies between runs: a resumed run's report
    would differ in the last digits. The filters are nearly empty, so this is no slower.
    """
    rows = magnitudes.reshape(-1, magnitudes.shape[-1])
    mel = scipy.sparse.csr_array(filters.T) @ rows.T
    return mel.T.reshape(*magnitudes.shape[:-1], -1)


def _distance(first: np.ndarray, second: np.ndarray) -> float:
    logs = [2 * np.log10(np.maximum(m, FLOOR)) for m in (first, second)]
    return float(np.mean(np.abs(logs[0] - logs[1])) + np.mean(np.abs(first - second)))


def _magnitudes(clip: np.ndarray, window: int, hop: int) -> np.ndarray:
    """Centred, reflected STFT magnitudes of [channels, N]: float32 [channels, frames, bins]."""
    padded = np.pad(clip, ((0, 0), (window // 2, window // 2)), mode="reflect")
    return np.abs(dsp.host_stft(padded, window, hop))


def pesq(reference: np.ndarray, estimate: np.ndarray) -> float:
    """Wideband PESQ of 16 kHz clips [channels, N]; NaN where it finds no speech."""
    import pesq as package

    def one(clean, coded):
        if not (clean.any() and coded.any()):
            return math.nan
        try:
            return float(package.pesq(SPEECH_RATE, clean, coded, "wb"))
        except package.PesqError:  # no utterance found, or too short for one
            return math.nan

    return float(np.mean([one(*pair) for pair in zip(reference, estimate, strict=True)]))


def stoi(reference: np.ndarray, estimate: np.ndarray) -> float:
    """STOI of 16 kHz clips [channels, N]; NaN where too little is left without the pauses."""
    import pystoi

    def one(clean, coded):
        if not clean.any():
            return math.nan
        with warnings.catch_warnings():
            warnings.simplefilter("error", RuntimeWarning)
            try:
                return float(np.clip(pystoi.stoi(clean, coded, SPEECH_RATE), 0, 1))
            except (RuntimeWarning, ValueError):  # shorter than its analysis window
                return math.nan

    return float(np.mean([one(*pair) for pair in zip(reference, estimate, strict=True)]))


def f0_correlation(reference: np.ndarray, estimate: np.ndarray) -> float:
    """Pearson correlation of the two pitch tracks in cents, time-warped onto each other."""
    tracks = [_pitch_cents(x) for x in (reference, estimate)]
    if min(map(len, tracks)) < 2:
        return math.nan
    import librosa

    _, path = librosa.sequence.dtw(*tracks, backtrack=True)
    aligned = [track[path[:, i]] for i, track in enumerate(tracks)]
    if min(np.ptp(track) for track in aligned) == 0:
        return math.nan
    return float(np.corrcoef(*aligned)[0, 1])


def _pitch_cents(clip: np.ndarray) -> np.ndarray:
    """Voiced frames of Praat's autocorrelation pitch, in cents around their median."""
    import parselmouth

    floor, ceiling = PITCH_RANGE
    try:
        track = parselmouth.Sound(clip.astype(np.float64), PITCH_RATE).to_pitch_ac(
            time_step=256 / PITCH_RATE,
            voicing_threshold=0.6,
            pitch_floor=floor,
            pitch_ceiling=ceiling,
        )
    except parselmouth.PraatError:  # shorter than one pitch window
        return np.zeros(0)
    frequency = track.selected_array["frequency"]
    cents = 1200 * np.log2(frequency[frequency > 0] / 440)
    return cents - np.median(cents) if len(cents) else cents


def sinc_resample(clip: np.ndarray, source_rate: int, target_rate: int) -> np.ndarray:
    """Band-limited sinc resampling of [channels, N] -> [channels, N * target // source].

    24 zero crossings, roll-off 0.945, cosine-squared window, edges replicated: the filter of the
    benchmark's implementation, because PESQ notices another one.
    """
    if source_rate == target_rate:
        return clip
    common = math.gcd(source_rate, target_rate)
    source, target = source_rate // common, target_rate // common
    kernels, width = _sinc_kernels(source, target)
    padded = np.pad(clip, ((0, 0), (width, width + source)), mode="edge")
    frames = np.lib.stride_tricks.sliding_window_view(padded, kernels.shape[1], axis=1)
    resampled = (frames[:, ::source] @ kernels.T).reshape(len(clip), -1)
    return resampled[:, : clip.shape[1] * target // source]


@functools.lru_cache(maxsize=16)
def _sinc_kernels(source: int, target: int) -> tuple[np.ndarray, int]:
    """One filter per output phase, float32 [target, 2 * width + source]; and the width."""
    zeros, cutoff = 24, 0.945 * min(source, target)
    width = math.ceil(zeros * source / cutoff)
    position = np.arange(-width, width + source)[None, :] / source
    time = np.clip((position - np.arange(target)[:, None] / target) * cutoff, -zeros, zeros)
    kernels = np.sinc(time) * np.cos(np.pi * time / zeros / 2) ** 2
    return (kernels / kernels.sum(axis=1, keepdims=True)).astype(np.float32), width
