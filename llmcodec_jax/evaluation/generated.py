"""Generated speech, heard: are the words right, is it the voice, how good does it sound?

The rows are those of `generate --input`: "id", and "text" and "voice", or "continue". What is said
is compared with the text; the voice with the recording that was given, and as a yardstick with a
stranger's: the recording of the next row that names another one. A continuation is also held
against how its recording really goes on.
"""

from __future__ import annotations

import argparse
import collections
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from llmcodec_jax import audio
from llmcodec_jax.codec import inference
from llmcodec_jax.evaluation import additional, generated_page, speaker, utmos, whisper
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
    codec=None,
) -> dict:
    """`folder` holds ID.wav (or .flac) of each row -> the report.

    {"mean", "interval"} over clips of wer, cer, speaker, stranger, margin (the one less the other),
    dnsmos, utmos; "pooled" error rates (all edits by all words); "items" with what was heard;
    "failed", and the measures that are "absent" with their install line. Of a continuation only
    what is new is judged, against its first `prompt_seconds`; "speaker_original" is the similarity
    of what the recording itself holds there. With a `codec`, that is coded first, and "repeats" and
    "loops" of codes are counted in both.
    """
    absent = additional.absent(measures)
    measures = [name for name in measures if name not in absent]
    strangers = _strangers([row.get("voice") or row.get("continue") for row in rows])
    items, failed = {}, {}
    for row, stranger in tqdm(list(zip(rows, strangers, strict=True)), "hearing", unit="clip"):
        seconds = voice_seconds if row.get("voice") else prompt_seconds
        try:
            wav = audio.load(generated_page.wav_of(folder, row["id"]), RATE)
            original = None
            if row.get("continue"):
                wav = wav[round(prompt_seconds * RATE) :]
                original = _rest(row["continue"], prompt_seconds, len(wav))
            given = row.get("voice") or row.get("continue")
            voices = [_head(path, seconds) for path in (given, stranger)]
        except (audio.AudioError, FileNotFoundError) as error:
            failed[row["id"]] = str(error)
            continue
        values = score(wav, row.get("text"), *voices, measures)
        if original is not None:
            values |= against_original(wav, original, voices[0], measures, codec)
        items[row["id"]] = {
            name: defined(v) if isinstance(v, float) else v for name, v in values.items()
        }
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
        if len(values.keys() & {"speaker", "stranger"}) == 2:
            values["margin"] = values["speaker"] - values["stranger"]
    if "dnsmos" in measures:
        values["dnsmos"] = additional.dnsmos(wav)
    if "utmos" in measures:
        values["utmos"] = utmos.score(wav)
    return values


def against_original(
    wav: np.ndarray, original: np.ndarray, voice: np.ndarray, measures: Sequence[str], codec
) -> dict[str, float]:
    """A continuation and the recording's own, float32 [N] at 16 kHz, after the prompt `voice`."""
    values = {}
    if codec is not None:
        written, real = (codec.encode(x, RATE) for x in (wav, original))
        original = audio.resample(codec.decode(real), codec.sample_rate, RATE)
        for name, codes in (("", written), ("_original", real)):
            values |= {f"repeats{name}": repeats(codes), f"loops{name}": loops(codes)}
    if "speaker" in measures:
        values["speaker_original"] = speaker.similarity(voice, original)
    return values


def repeats(codes: np.ndarray) -> float:
    """Share of frames [T] or [T, Q] that equal the one before; NaN for fewer than two."""
    frames = np.asarray(codes).reshape(len(codes), -1)
    return float((frames[1:] == frames[:-1]).all(1).mean()) if len(frames) > 1 else math.nan


def loops(codes: np.ndarray, length: int = 5) -> float:
    """Share of runs of `length` frames that stood before in the same clip; NaN where there is one.

    A run of one frame again and again is `repeats`' and not counted.
    """
    frames = np.asarray(codes).reshape(len(codes), -1)
    frames = frames[np.append(True, (frames[1:] != frames[:-1]).any(1))]
    runs = [frames[i : i + length].tobytes() for i in range(len(frames) - length + 1)]
    return 1 - len(set(runs)) / len(runs) if len(runs) > 1 else math.nan


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
    """The measures of an item, null where one is not defined."""
    return {name: v for name, v in item.items() if v is None or isinstance(v, float)}


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


def _rest(path: str, seconds: float, samples: int) -> np.ndarray | None:
    """What comes after, at most `samples`; None for less than a second."""
    start = round(seconds * RATE)
    found = audio.load(Path(path).expanduser(), RATE)[start : start + samples]
    return found if len(found) >= RATE else None


def run(args: argparse.Namespace) -> int:
    """Words, voice and quality of speech that `generate --input` made, and a page to hear it."""
    measures = additional.requested(args.additional)
    rows = read_rows(Path(args.list))
    seconds = {"prompt_seconds": args.prompt_seconds, "voice_seconds": args.voice_seconds}
    given = [_named(entry) for entry in args.audio]
    if len(args.codec) not in (0, 1, len(given)):
        raise EvaluationError(f"--codec: give one, or one for each of {len(given)} --audio")
    generated_page.check_seeds(collections.Counter(name for name, _ in given))
    codecs = args.codec if len(args.codec) == len(given) else args.codec * len(given)
    systems: dict[str, list[dict]] = {}
    folders: dict[str, Path] = {}
    for n, (name, folder) in enumerate(given):
        codec = inference.load(codecs[n]) if codecs else None
        report = evaluate(rows, folder, measures, **seconds, codec=codec)
        systems.setdefault(name, []).append(report)
        folders.setdefault(name, folder)
        print(f"{name}: {folder}" if len(given) > 1 else f"{folder}")
        _print(report)
    every = [report for reports in systems.values() for report in reports]
    compared = generated_page.compare(systems)
    output = Path(args.output)
    write_json(output, every[0] if len(every) == 1 else {"systems": systems} | compared)
    page = output.with_suffix(".html")
    generated_page.write(page, rows, systems, compared, folders, args.prompt_seconds)
    print(f"{output}, and to listen to: {page}")
    failed = {f"{n} {name}": why for n, r in enumerate(every) for name, why in r["failed"].items()}
    return print_failures(failed, args.output)


def _named(entry: str) -> tuple[str, Path]:
    """FOLDER or NAME=FOLDER -> its name, the path as given where there is none, and the folder."""
    name, equals, folder = entry.partition("=")
    path = Path(folder if equals else entry)
    if not path.is_dir():
        raise EvaluationError(f"--audio {entry}: no folder {path}; give FOLDER or NAME=FOLDER")
    return (name if equals else entry), path


def _print(report: dict) -> None:
    """A report's means on the terminal, with intervals and what is missing."""
    for name, value in report["mean"].items():
        interval = report["interval"][name]
        shown = "undefined on every clip" if value is None else f"{value:.4f}"
        print(f"{name:16s} {shown}" + ("" if interval is None else f" ± {interval:.4f}"))
    if report["pooled"]:
        print(f"wer        {report['pooled']['wer']:.4f} pooled, {report['pooled']['words']} words")
    for name, reason in report["absent"].items():
        print(f"{name:10s} absent: {reason}")


def add_parser(commands) -> None:
    """The sub-command `generated` of `evaluate`."""
    parser = commands.add_parser(
        "generated",
        help="generated speech: words, voice, quality (docs/speech.md)",
        description="Scores what `generate --input` wrote, and makes a page to listen to beside "
        "the report. Several systems are compared with the first; the same NAME again is another "
        "seed of it.",
    )
    parser.add_argument("--list", required=True, help="the JSON lines that generate --input read")
    parser.add_argument(
        "--audio",
        required=True,
        nargs="+",
        metavar="[NAME=]FOLDER",
        help="the folder that it wrote; any number of them",
    )
    parser.add_argument(
        "--codec",
        nargs="+",
        default=[],
        metavar="CODEC",
        help="counts repeats and loops of its codes in continuations; one for all, or for each",
    )
    parser.add_argument("--output", default="generated.json", help="default: generated.json")
    parser.add_argument(
        "--additional", nargs="+", default=["wer,speaker,dnsmos"], metavar="NAME", help="measures"
    )
    for name in ("prompt", "voice"):
        parser.add_argument(f"--{name}-seconds", type=float, default=3.0, help="as given there")
    parser.set_defaults(run=run)
