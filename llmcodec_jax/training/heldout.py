"""The fixed held-out set: the same clips, scored and kept for listening at every evaluation."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np

from llmcodec_jax import audio
from llmcodec_jax.evaluation.quick import quick_metrics
from llmcodec_jax.training import metrics
from llmcodec_jax.types import Batch

logger = logging.getLogger(__name__)


def evaluate(
    eval_step: Callable[[Batch], dict],
    batches: Sequence[Batch],
    sample_rate: int,
    keep: int,
) -> tuple[dict, list[tuple[np.ndarray, np.ndarray]], np.ndarray]:
    """Runs `eval_step` over the held-out batches.

    Returns ({"eval/name": mean}, the first `keep` (reference, reconstruction) pairs as float [N],
    code counts [Q, V]). Waveform metrics are those of `evaluation.quick_metrics`, averaged over
    clips; the others are summed over batches before they are divided.
    """
    totals: dict = {}
    histogram, scores, pairs = np.zeros(()), [], []
    for batch in batches:
        result = jax.device_get(eval_step(batch))
        for name, (total, count) in result["losses"].items():
            old = totals.get(name, (0.0, 0.0))
            totals[name] = (old[0] + total, old[1] + count)
        histogram = histogram + result["histogram"]
        for reference, estimate, length in zip(
            batch.wav, result["wav"], batch.wav_length, strict=True
        ):
            if length:
                pair = (np.asarray(reference[:length]), np.asarray(estimate[:length]))
                scores.append(quick_metrics(*pair, sample_rate))
                pairs += [pair] * (len(pairs) < keep)
    report = {name: float(v) for name, v in metrics.means(totals).items()}
    if "accuracy/bridge_entropy" in report:
        report["bridge_effective_codes"] = float(np.exp(report.pop("accuracy/bridge_entropy")))
    report |= {k: float(v) for k, v in metrics.code_statistics(histogram).items()}
    for name in scores[0]:
        report[name] = float(np.nanmean([score[name] for score in scores]))
    return {f"eval/{name}": value for name, value in report.items()}, pairs, histogram


def keep_sound(folder: Path, pairs, sample_rate: int) -> None:
    """Writes the listening examples as reference-I.flac and codec-I.flac."""
    for index, (reference, estimate) in enumerate(pairs):
        audio.write(folder / f"reference-{index}.flac", reference, sample_rate)
        audio.write(folder / f"codec-{index}.flac", estimate, sample_rate)
