"""A light look at reconstruction quality during training."""

from __future__ import annotations

import numpy as np

from llmcodec_jax.evaluation import codec_superb


def quick_metrics(
    reference: np.ndarray, estimate: np.ndarray, sample_rate: int
) -> dict[str, float]:
    """Codec-SUPERB's mel, stft, and where installed pesq and stoi, of two mono clips float [N].

    Values that are not defined for the pair (PESQ without speech) are NaN: average with nanmean.
    Six decimals: STOI's last digits depend on BLAS's order of summation, which differs between
    runs, and a resumed run's rows shall equal an undisturbed one's.
    """
    pair = codec_superb.match_lengths(np.atleast_2d(reference), np.atleast_2d(estimate))
    values = codec_superb.spectral_distances(*pair, sample_rate)
    speech = [codec_superb.sinc_resample(x, sample_rate, codec_superb.SPEECH_RATE) for x in pair]
    missing = codec_superb.absent()
    for name in ("pesq", "stoi"):
        if name not in missing:
            values[name] = getattr(codec_superb, name)(*speech)
    return {name: round(float(value), 6) for name, value in values.items()}
