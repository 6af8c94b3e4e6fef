"""Generated speech, heard: are the words right, is it the voice, how good does it sound?

The rows are those of `generate --input`: "id", and "text" and "voice", or "continue". What is said
is compared with the text; the voice with the recording that was given, and as a yardstick with a
stranger's: the recording of the next row that names another one.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from llmcodec_jax import audio
from llmcodec_jax.evaluation import additional, speaker, whisper
from llmcodec_jax.evaluation.reports import (
    EvaluationError,
    defined,
    print_failures,
    summarise_columns,
    write_json,
)
from llmcodec_jax.ops import files

MEASURES = ("wer", "speaker", "dnsmos")
RATE = 16_000  # Hz, of all three


def read_rows(path: Path) -> list[dict]:
    """Lines of `generate --input`, each with an id. Raises EvaluationError."""
    rows = files.read_json_lines(path)
    if not rows:
        raise EvaluationError(f"{path}: no line of JSON there")
    return [row | {"id": str(row.get("id", f"{n:06d}"))} for n, row in enumerate(rows, 1)]


def evaluate(
    rows: Sequence[dict],
    folder: Path,
    measures: Sequence[str] = MEASURES,
    prompt_seconds: float = 3.0,
    voice_seconds: float = 3.0,
) -> dict:
    """`folder` holds ID.wav (or .flac) of each row -> the report.

    {"mean", "interval"} over clips of wer, cer, speaker, stranger, dnsmos; "pooled" error rates
    (all edits by all words); "items" with what was heard; "failed", and the measures that are
    "absent" with their install line. Of a continuation only what is new is judged, against its
    first `prompt_seconds`.
    """
    absent = additional.absent(measures)
    measures = [name for name in measures if name not in absent]
    strangers = _strangers([row.get("voice") or row.get("continue") for row in rows])
    items, failed = {}, {}
    for row, stranger in tqdm(list(zip(rows, strangers, strict=True)), "hearing", unit="clip"):
        seconds = voice_seconds if row.get("voice") else prompt_seconds
        try:
            wav = audio.load(_found(folder, row["id"]), RATE)
            if row.get("continue"):
                wav = wav[round(prompt_seconds * RATE) :]
            given = row.get("voice") or row.get("continue")
            voices = [_head(path, seconds) for path in (given, stranger)]
        except (audio.AudioError, FileNotFoundError) as error:
            failed[row["id"]] = str(error)
            continue
        items[row["id"]] = score(wav, row.get("text"), *voices, measures)
    report = summarise_columns([_numbers(item) for item in items.values()])
    report["clips"], report["pooled"] = len(items), pooled(list(items.values()))
    return report | {"items": items, "failed": failed, "absent": absent}


def score(
    wav: np.ndarray,
    text: str | None,
    voice: np.ndarray | None,
    stranger: np.ndarray | None,
    measures: Sequence[str],
) -> dict:
    """One clip, float32 [N] at 16 kHz, and what it should be -> its values and its hearing."""
    values: dict = {}
    if "wer" in measures and text:
        heard = whisper.transcribe(wav)
        values |= whisper.error_rates(text, heard)
        values |= {"text": text, "heard": heard, "words": whisper.count_words(text)}
    if "speaker" in measures:
        for name, other in (("speaker", voice), ("stranger", stranger)):
            if other is not None:
                values[name] = speaker.similarity(other, wav)
    if "dnsmos" in measures:
        values["dnsmos"] = additional.dnsmos(wav)
    return values


def pooled(items: Sequence[dict]) -> dict[str, float]:
    """Error rates over all words at once, the figure that papers print."""
    spoken = [item for item in items if item.get("words")]
    words = sum(item["words"] for item in spoken)
    if not words:
        return {}
    return {
        "wer": sum(item["wer"] * item["words"] for item in spoken) / words,
        "words": words,
    }


def _numbers(item: dict) -> dict[str, float | None]:
    """The measures of an item; what is not defined is null."""
    values = {name: v for name, v in item.items() if isinstance(v, float)}
    return {name: defined(v) for name, v in values.items()}


def _strangers(given: Sequence[str | None]) -> list[str | None]:
    """For each recording the next other one, going round."""
    found: list[str | None] = []
    for place, own in enumerate(given):
        after = [*given[place + 1 :], *given[:place]]
        found.append(next((other for other in after if other and other != own), None))
    return found


def _head(path: str | None, seconds: float) -> np.ndarray | None:
    """The first seconds of a recording that a row names."""
    if path is None:
        return None
    return audio.load(Path(path).expanduser(), RATE)[: round(seconds * RATE)]


def _found(folder: Path, name: str) -> Path:
    for suffix in (".wav", ".flac"):
        if (folder / f"{name}{suffix}").is_file():
            return folder / f"{name}{suffix}"
    raise FileNotFoundError(f"{folder / name}: no .wav or .flac of that name")


def run(args: argparse.Namespace) -> int:
    """Words, voice and quality of speech that `generate --input` made."""
    measures = additional.requested(args.additional)
    rows = read_rows(Path(args.list))
    seconds = {"prompt_seconds": args.prompt_seconds, "voice_seconds": args.voice_seconds}
    report = evaluate(rows, Path(args.audio), measures, **seconds)
    write_json(Path(args.output), report)
    for name, value in report["mean"].items():
        interval = report["interval"][name]
        shown = "undefined on every clip" if value is None else f"{value:.4f}"
        print(f"{name:10s} {shown}" + ("" if interval is None else f" ± {interval:.4f}"))
    if report["pooled"]:
        print(f"wer        {report['pooled']['wer']:.4f} pooled, {report['pooled']['words']} words")
    for name, reason in report["absent"].items():
        print(f"{name:10s} absent: {reason}")
    return print_failures(report["failed"], args.output)


def add_parser(commands) -> None:
    """The sub-command `generated` of `evaluate`."""
    parser = commands.add_parser(
        "generated", help="generated speech: words, voice, quality (docs/speech.md)"
    )
    parser.add_argument("--list", required=True, help="the JSON lines that generate --input read")
    parser.add_argument("--audio", required=True, help="the folder that it wrote")
    parser.add_argument("--output", default="generated.json", help="default: generated.json")
    parser.add_argument(
        "--additional", nargs="+", default=["wer,speaker,dnsmos"], metavar="NAME", help="measures"
    )
    for name in ("prompt", "voice"):
        parser.add_argument(f"--{name}-seconds", type=float, default=3.0, help="as given there")
    parser.set_defaults(run=run)
