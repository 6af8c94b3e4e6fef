"""SALMon: does a language model over a codec's tokens prefer coherent audio? (method.md 8)

A part is a folder of `sample_INDEX_*.wav`; of the two files of an index the first by name is the
coherent one. The official parts and any of `evaluation.suite` are read alike.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from llmcodec_jax import audio
from llmcodec_jax.codec import tokens
from llmcodec_jax.evaluation import audio_lm
from llmcodec_jax.evaluation.reports import EvaluationError

OFFICIAL = (
    "bg_alignment",
    "bg_all_consistency",
    "bg_domain_consistency",
    "gender_consistency",
    "rir_consistency",
    "sentiment_alignment",
    "sentiment_consistency",
    "speaker_consistency",
)
GROUP = 16  # pairs encoded together
BUCKET = 128  # frames; sequences are padded to multiples, so that few programs are compiled


def find_parts(folder: str | Path) -> dict[str, list[tuple[Path, Path]]]:
    """Part -> its (coherent, incoherent) pairs, official parts first.

    Raises EvaluationError where there is no part, or an index has not exactly two files.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise EvaluationError(f"{folder}: no such folder")
    found = {p.name: _pairs(p) for p in sorted(folder.iterdir()) if p.is_dir()}
    found = {name: pairs for name, pairs in found.items() if pairs}
    if not found:
        raise EvaluationError(f"{folder}: no PART/sample_INDEX_*.wav below this folder")
    return {name: found[name] for name in sorted(found, key=_official_first)}


def _official_first(name: str) -> tuple:
    """Official parts in their order, then others; a control right after its part."""
    part = name.removesuffix("_control")
    return (part not in OFFICIAL, part, name)


def _pairs(part: Path) -> list[tuple[Path, Path]]:
    files = sorted(part.glob("sample_*.wav")) or sorted(part.glob("before/sample_*.wav"))
    indexed: dict[int, list[Path]] = {}
    for path in files:
        number = path.stem.split("_")[1]
        if not number.isdigit():
            raise EvaluationError(f"{path}: expected sample_INDEX_*.wav")
        indexed.setdefault(int(number), []).append(path)
    for number, paths in indexed.items():
        if len(paths) != 2:
            raise EvaluationError(f"{part}: sample {number} has {len(paths)} files instead of 2")
    return [tuple(indexed[number]) for number in sorted(indexed)]


def evaluate(
    parts: dict[str, list[tuple[Path, Path]]],
    codec,
    log_likelihood: Callable[[list[np.ndarray]], np.ndarray],
) -> dict:
    """Scores every part -> {"parts": {name: {"pairs", "summed", "normalised"}}, "mean": ...}.

    `codec`: as `load_codec` gives it; `log_likelihood(codes) -> [len(codes)]` of token sequences.
    Each accuracy is 1, 0.5 or 0 a pair for a higher, equal or lower likelihood of the coherent
    clip, with a 95 % interval; "summed" compares whole clips, "normalised" means per token.
    """
    report = {}
    for name, pairs in parts.items():
        points = np.array(
            [
                _points(log_likelihood, codes)
                for codes in tqdm(_encoded(codec, pairs), name, len(pairs), unit="pair")
            ]
        )
        report[name] = {
            "pairs": len(pairs),
            "summed": _accuracy(points[:, 0]),
            "normalised": _accuracy(points[:, 1]),
        }
    coherence = [v for name, v in report.items() if not name.endswith("_control")]
    mean = {
        kind: float(np.mean([part[kind]["accuracy"] for part in coherence]))
        for kind in ("summed", "normalised")
        if coherence
    }
    return {"parts": report, "mean": mean}


def _encoded(codec, pairs: list[tuple[Path, Path]]) -> Iterator[list[np.ndarray]]:
    """Both token sequences of each pair."""
    for start in range(0, len(pairs), GROUP):
        files = [path for pair in pairs[start : start + GROUP] for path in pair]
        clips = [audio.load(path, codec.sample_rate) for path in files]
        codes = [
            tokens.vocabulary_index(np.asarray(c), codec.codebook_size)
            for c in codec.encode(clips, codec.sample_rate)
        ]
        for first in range(0, len(codes), 2):
            yield codes[first : first + 2]


def _points(log_likelihood, codes: list[np.ndarray]) -> tuple[float, float]:
    if np.array_equal(*codes):
        return 0.5, 0.5
    summed = log_likelihood(codes)
    normalised = summed / [len(c) for c in codes]
    return tuple(0.5 * (1 + np.sign(s[0] - s[1])) for s in (summed, normalised))


def _accuracy(points: np.ndarray) -> dict:
    """Mean with its 95 % Wilson interval."""
    count, share, z = len(points), float(np.mean(points)), 1.96
    centre = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + (z / (2 * count)) ** 2)
    return {"accuracy": share, "interval": [centre - half, centre + half]}


def likelihood_of(
    model: audio_lm.AudioLM, levels: int | None = None
) -> Callable[[list[np.ndarray]], np.ndarray]:
    """An audio LM as the function that `evaluate` asks for; of codes [frames * levels] it scores
    those that it reads, all by default."""
    levels = levels or model.levels

    def log_likelihood(codes: list[np.ndarray]) -> np.ndarray:
        codes = [c.reshape(-1, levels)[:, : model.levels].reshape(-1) for c in codes]
        bucket = BUCKET * model.levels
        size = -(-max(map(len, codes)) // bucket) * bucket
        lengths = np.array([len(c) for c in codes], np.int32)
        padded = np.stack([np.pad(c, (0, size - len(c))) for c in codes])
        return np.asarray(_summed(model, padded, lengths))

    return log_likelihood


@jax.jit
def _summed(model: audio_lm.AudioLM, codes, lengths):
    log_probs = audio_lm.token_log_probs(model, codes, lengths)
    return jnp.sum(log_probs * (jnp.arange(codes.shape[1]) < lengths[:, None]), axis=1)


def table(report: dict) -> Iterator[str]:
    """The parts as lines of text, accuracies in percent."""
    yield f"{'part':32s} {'pairs':>5s}  {'summed':>20s}  {'per token':>20s}"
    for name, part in report["parts"].items():
        cells = []
        for kind in ("summed", "normalised"):
            share, (low, high) = part[kind]["accuracy"], part[kind]["interval"]
            cells.append(f"{100 * share:5.1f} [{100 * low:4.1f}, {100 * high:5.1f}]")
        yield f"{name:32s} {part['pairs']:5d}  {cells[0]:>20s}  {cells[1]:>20s}"
