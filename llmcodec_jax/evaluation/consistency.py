"""Do tokens stay the same when the sound does? Small changes that a language model must survive."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from tqdm import tqdm

from llmcodec_jax import audio
from llmcodec_jax.evaluation.additional import edit_distance
from llmcodec_jax.evaluation.reports import EvaluationError, summarise_columns
from llmcodec_jax.evaluation.sampling import from_every_folder

SHIFT = 24  # samples, either way
NOISE = 30.0  # dB below the clip


def changes(wav: np.ndarray, rate: int, seed: int) -> dict[str, np.ndarray]:
    """Versions of a clip float [N] that sound the same."""
    noise = np.random.default_rng(seed).normal(size=len(wav))
    level = np.sqrt(np.mean(wav**2)) * 10 ** (-NOISE / 20)
    there = audio.resample(wav, rate, 44100 if rate != 44100 else 48000)
    back = audio.resample(there, 44100 if rate != 44100 else 48000, rate)
    return {
        "shift_later": np.pad(wav, (SHIFT, 0))[: len(wav)],
        "shift_earlier": np.pad(wav, (0, SHIFT))[SHIFT:],
        "noise_30db": (wav + level * noise).astype(np.float32),
        "resampled": np.pad(back, (0, max(len(wav) - len(back), 0)))[: len(wav)],
    }


def evaluate(codec, folder: Path, limit: int | None = None) -> dict:
    """Token edit distance per token between each clip and its changed versions.

    "reencoded" codes the codec's own reconstruction; "truncated" codes the first half alone and
    compares it with the first half of the whole. 0 is unchanged, 1 is entirely different.
    Residual codebooks are averaged. `limit` clips at most, the same number from every sub-folder.
    -> {"mean", "interval", "items", "failed": {name: reason}}.
    """
    paths = {path.relative_to(folder).as_posix(): path for path in audio.find(folder)}
    items, failed = {}, {}
    names = from_every_folder(list(paths), limit)
    for index, name in enumerate(tqdm(names, "consistency", unit="clip")):
        try:
            wav = audio.load(paths[name], codec.sample_rate)
        except audio.AudioError as error:
            failed[name] = str(error)
            continue
        if len(wav) < 2 * codec.sample_rate / codec.frame_rate:
            failed[name] = f"{paths[name]}: shorter than two frames"
        else:
            items[name] = _clip(codec, wav, index)
    if not items:
        raise EvaluationError("no clip can be used:\n  " + "\n  ".join(list(failed.values())[:5]))
    return {"items": items, "failed": failed} | summarise_columns(items.values())


def _clip(codec, wav: np.ndarray, seed: int) -> dict[str, float]:
    versions = changes(wav, codec.sample_rate, seed)
    hop = round(codec.sample_rate / codec.frame_rate)
    half = math.ceil(len(wav) / hop) // 2
    coded = codec.encode([wav, wav[: half * hop], *versions.values()], codec.sample_rate)
    whole, part, *others = (np.asarray(c) for c in coded)
    made = np.asarray(codec.decode(whole), np.float32)[: len(wav)]
    again = np.asarray(codec.encode(made, codec.sample_rate))
    distances = dict(zip(versions, (_distance(whole, c) for c in others), strict=True))
    return distances | {
        "reencoded": _distance(whole, again),
        "truncated": _distance(whole[:half], part),
    }


def _distance(first: np.ndarray, second: np.ndarray) -> float:
    """Edit distance per token, averaged over codebooks."""
    first, second = (c.reshape(len(c), -1) for c in (first, second))
    return float(
        np.mean([edit_distance(a, b) / len(a) for a, b in zip(first.T, second.T, strict=True)])
    )
