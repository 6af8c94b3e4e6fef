"""Measures beside the six of Codec-SUPERB; reported apart, never mixed with them."""

from __future__ import annotations

import functools
import importlib.util
import math

import numpy as np
import scipy.fft

from llmcodec_jax import audio
from llmcodec_jax.ops import dsp

OPTIONAL = {"dnsmos": ("speechmos", "onnxruntime"), "wer": ("whisper",)}
"""Measures that need more than this project's requirements -> the modules they need."""


def absent(names) -> dict[str, str]:
    """Requested optional measures that cannot be computed here -> the reason and the fix."""
    missing = {
        name: [m for m in OPTIONAL[name] if importlib.util.find_spec(m) is None] for name in names
    }
    package = {"whisper": "openai-whisper"}
    return {
        name: f"{', '.join(modules)} not installed: pip install "
        + " ".join(package.get(m, m) for m in modules)
        for name, modules in missing.items()
        if modules
    }


def score(reference: np.ndarray, estimate: np.ndarray, rate: int, optional=()) -> dict[str, float]:
    """Mono float [N] pairs of one rate and length -> {"si_sdr": dB, "mcd": dB, ...}."""
    values = {
        "si_sdr": si_sdr(reference, estimate),
        "mcd": mel_cepstral_distance(reference, estimate, rate),
    }
    speech = [audio.resample(x, rate, 16000) for x in (reference, estimate)]
    if "dnsmos" in optional:
        values["dnsmos"] = dnsmos(speech[1])
    if "wer" in optional:
        values["wer"] = word_error_rate(*speech)
    return values


def si_sdr(reference: np.ndarray, estimate: np.ndarray) -> float:
    """Scale-invariant signal-to-distortion ratio in dB, means removed; NaN for silence."""
    reference, estimate = (x.astype(np.float64) - np.mean(x) for x in (reference, estimate))
    energy = reference @ reference
    if energy == 0 or not estimate.any():
        return math.nan
    target = (estimate @ reference) / energy * reference
    noise = estimate - target
    return float(10 * np.log10(max(target @ target, 1e-20) / max(noise @ noise, 1e-20)))


def mel_cepstral_distance(reference: np.ndarray, estimate: np.ndarray, rate: int) -> float:
    """Mean over frames of the 13-coefficient mel-cepstral distance in dB, level left out."""
    window, hop = 2 ** round(math.log2(0.032 * rate)), round(0.01 * rate)
    filters = dsp.mel_filterbank(rate, window, 40)

    def cepstrum(wav):
        frames = np.lib.stride_tricks.sliding_window_view(np.pad(wav, window // 2), window)[::hop]
        power = np.abs(scipy.fft.rfft(frames * dsp.hann(window), axis=-1)) ** 2
        mel = power @ filters
        log_mel = np.log(np.maximum(mel, max(1e-6 * mel.max(), 1e-12)))  # 60 dB deep
        return scipy.fft.dct(log_mel, axis=-1, norm="ortho")[:, 1:14]

    difference = cepstrum(reference) - cepstrum(estimate)
    return float(10 / math.log(10) * np.mean(np.sqrt(2 * np.sum(difference**2, axis=1))))


def dnsmos(wav: np.ndarray) -> float:
    """Overall DNSMOS of a 16 kHz clip, a reference-free estimate of speech quality (1 to 5)."""
    from speechmos import dnsmos as package

    peak = max(float(np.abs(wav).max()), 1.0)
    return float(package.run(wav / peak, 16000)["ovrl_mos"])


def word_error_rate(reference: np.ndarray, estimate: np.ndarray) -> float:
    """Words that Whisper (tiny.en) hears differently after coding, per word heard before it."""
    before, after = (_whisper().transcribe(x, fp16=False)["text"] for x in (reference, estimate))
    words = [[w.strip(".,!?;:\"'").lower() for w in text.split()] for text in (before, after)]
    return edit_distance(*words) / len(words[0]) if words[0] else math.nan


def edit_distance(first, second) -> int:
    """Fewest insertions, deletions and substitutions that turn one sequence into the other."""
    first, second = (list(x) for x in (first, second))
    codes = {value: index for index, value in enumerate(dict.fromkeys(first + second))}
    row_values = np.array([codes[v] for v in second], dtype=np.int64)
    offset = np.arange(len(second) + 1)
    row = offset.copy()
    for position, value in enumerate(first):
        best = np.empty_like(row)
        best[0] = position + 1
        best[1:] = np.minimum(row[1:] + 1, row[:-1] + (row_values != codes[value]))
        # Insertions run along the row: a running minimum of (cost - column).
        row = np.minimum.accumulate(best - offset) + offset
    return int(row[-1])


@functools.cache
def _whisper():
    import whisper

    return whisper.load_model("tiny.en")
