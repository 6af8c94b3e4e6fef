"""Speech out of a speech LM: python -m llmcodec_jax.generate --lm RUN --text "..." --output out.wav

    --voice prompt.wav          in the voice of a recording (an LM trained for tts)
    --continue clip.wav         goes on from a recording (an LM trained for continuation)
    --ask clip.wav              answers it, as it answers a --text (an LM trained for chat)
    --input many.jsonl          {"id", "text", "voice", "continue", "ask", "seed"} a line; a folder
                                comes

A chat LM answers in text, in speech, or in both: the text is printed, or beside ID.wav as ID.txt.

Files that exist are skipped with --input, so an interrupted run resumes where it stopped.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from tqdm import tqdm

from llmcodec_jax import audio
from llmcodec_jax.errors import UsageError, UserError, answer_errors
from llmcodec_jax.ops import files

if TYPE_CHECKING:
    from llmcodec_jax.speech_lm.speaker import Request, SpeechLM, Spoken

logger = logging.getLogger(__name__)


def speak(
    lm: str | Path | SpeechLM,
    texts: str | Sequence[str],
    voice: tuple[np.ndarray, int] | None = None,
    *,
    codec: str | Path | None = None,
    seed: int = 0,
    temperature: float = 0.8,
    top_k: int = 0,
    top_p: float = 0.95,
    repetition_penalty: float = 1.0,
    max_seconds: float = 10.0,
    batch_size: int = 8,
) -> np.ndarray | list[np.ndarray]:
    """Texts as speech: float32 [N] at the codec's rate, or a list for a list of texts.

    lm: a run folder of `speech_lm.train`, or what `speech_lm.speaker.load` gave. voice: (audio
    [N] or [N, channels], its rate in Hz), the first seconds of which are the prompt. Each text
    has the seed `seed`. Raises UsageError for an LM that was trained for something else, UserError
    for a chat LM that answered in text alone (`SpeechLM.speak` gives both).
    """
    from llmcodec_jax.lm.sampling import Sampling
    from llmcodec_jax.speech_lm import speaker

    model = lm if isinstance(lm, speaker.SpeechLM) else speaker.load(lm, codec)
    said = [texts] if isinstance(texts, str) else list(texts)
    heard = None if voice is None else model.codec.prepare(*voice)
    requests = [speaker.Request(text, voice=heard, seed=seed) for text in said]
    how = Sampling(temperature, top_k, top_p, repetition_penalty)
    found = list(model.speak(requests, how, max_seconds=max_seconds, batch_size=batch_size))
    if silent := [one.text for one in found if not len(one.wav)]:
        raise UserError(f"the LM answered in text alone: {silent[0]}")
    return found[0].wav if isinstance(texts, str) else [one.wav for one in found]


def read_requests(path: Path, seed: int) -> list[dict]:
    """Lines of --input. Raises UsageError naming the line."""
    rows = files.read_json_lines(path)
    if not rows:
        raise UsageError(f"{path}: no line of JSON there")
    known = {"id", "text", "voice", "continue", "ask", "seed"}
    for number, row in enumerate(rows, 1):
        if unknown := sorted(row.keys() - known):
            raise UsageError(
                f"{path}:{number}: {unknown[0]!r} is none of {', '.join(sorted(known))}"
            )
        row["id"] = str(row.get("id", f"{number:06d}"))
        row.setdefault("seed", seed)
    if len({row["id"] for row in rows}) < len(rows):
        raise UsageError(f"{path}: two lines have the same id")
    return rows


def make_request(row: dict, lm: SpeechLM, args: argparse.Namespace) -> Request:
    """A line, its recordings read: the first seconds of a voice or of what is continued."""
    from llmcodec_jax.speech_lm.speaker import Request

    rate = lm.codec.sample_rate

    def read(name: str, seconds: float) -> np.ndarray | None:
        if not row.get(name):
            return None
        return audio.load(Path(row[name]).expanduser(), rate)[: round(seconds * rate)]

    return Request(
        row.get("text"),
        read("voice", args.voice_seconds),
        read("continue", args.prompt_seconds),
        int(row["seed"]),
        read("ask", args.max_seconds),
    )


def write_all(lm: SpeechLM, rows: list[dict], args: argparse.Namespace) -> list[str]:
    """Speaks what is not there yet -> reasons of what could not be said."""
    output = Path(args.output)
    single = args.input is None
    targets = [output if single else output / f"{row['id']}.wav" for row in rows]
    # Of a chat LM the text is written last, and always.
    marks = [t.with_suffix(".txt") if lm.task == "chat" else t for t in targets]
    due = [i for i, mark in enumerate(marks) if single or not mark.exists()]
    if len(due) < len(rows):
        logger.info("%d of %d are there already", len(rows) - len(due), len(rows))
    failed, spoken, bar = [], [], tqdm(total=len(due), unit="clip", disable=None)
    with bar:
        for first in range(0, len(due), args.batch_size):
            for i in due[first : first + args.batch_size]:
                bar.set_postfix_str(rows[i]["id"], refresh=False)
            failed += _write_group(
                lm, rows, targets, due[first : first + args.batch_size], args, spoken
            )
            bar.update(len(due[first : first + args.batch_size]))
    if spoken:
        written = sum(s.codes.size for s in spoken)
        passes = sum(s.passes for s in spoken)
        ended = sum(s.ended for s in spoken)
        print(
            f"{len(spoken)} clips, {sum(len(s.wav) for s in spoken) / lm.codec.sample_rate:.1f} s; "
            f"{written / passes:.2f} tokens a pass; {ended} ended by themselves"
        )
    return failed


def _write_group(lm, rows, targets, group, args, spoken: list[Spoken]) -> list[str]:
    """One batch; what cannot be read or said is left out and named."""
    failed, requests = [], []
    for i in group:
        try:
            requests.append((i, make_request(rows[i], lm, args)))
        except (audio.AudioError, FileNotFoundError) as error:
            failed.append(f"{rows[i]['id']}: {error}")
    if not requests:
        return failed
    asked = [request for _, request in requests]
    options = (args.max_seconds, args.heads, args.batch_size)
    for (i, request), done in zip(requests, lm.write(asked, sampling(args), *options), strict=True):
        try:
            found = lm.finish(request, done)
        except UserError as error:
            failed.append(f"{rows[i]['id']}: {error}")
            continue
        write_one(lm, found, targets[i])
        if found.text and args.input is None:
            print(found.text)
        spoken.append(found)
    return failed


def write_one(lm: SpeechLM, found: Spoken, target: Path) -> None:
    """The sound, if there is any, and what a chat LM answered in text."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if len(found.wav):
        audio.write(target, found.wav, lm.codec.sample_rate)
    if lm.task == "chat":
        with files.replacing(target.with_suffix(".txt")) as partial:
            partial.write_text(found.text + "\n", encoding="utf-8")


def sampling(args: argparse.Namespace):
    """How tokens are drawn. Raises UsageError."""
    from llmcodec_jax.lm.sampling import Sampling

    found = Sampling(args.temperature, args.top_k, args.top_p, args.repetition_penalty)
    try:
        return found.check()
    except ValueError as error:
        raise UsageError(str(error)) from error


def stream(lm: SpeechLM, row: dict, args: argparse.Namespace) -> None:
    """16-bit mono PCM on standard output, as it is written."""
    request = make_request(row, lm, args)
    for piece in lm.stream(request, sampling(args), max_seconds=args.max_seconds):
        pcm = np.round(np.clip(piece, -1, 1) * 32767).astype("<i2")
        sys.stdout.buffer.write(pcm.tobytes())
        sys.stdout.buffer.flush()


def compare(lm: SpeechLM, rows: list[dict], args: argparse.Namespace) -> None:
    """Prints what the further heads bring on these requests, one at a time."""
    from llmcodec_jax.speech_lm.speaker import measure_speed

    requests = [make_request(row, lm, args) for row in rows]
    found = measure_speed(lm, requests, sampling(args), max_seconds=args.max_seconds)
    print(
        f"{len(lm.writer.heads)} heads: {found.tokens_per_pass:.2f} tokens a pass, "
        f"{1e3 * found.seconds:.2f} ms a token; one head: {1e3 * found.plain_seconds:.2f} ms; "
        f"{found.speed_up:.2f} times as fast"
    )


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m llmcodec_jax.generate",
        description=__doc__.splitlines()[0].partition(":")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--lm", required=True, help="run folder of speech_lm.train")
    add("--codec", help="by default the one the run names")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--text", help="what to say, or what a chat LM answers")
    what.add_argument("--continue", dest="start", metavar="CLIP", help="what to go on from")
    what.add_argument("--ask", metavar="CLIP", help="a spoken question, for an LM of chat")
    what.add_argument("--input", type=Path, help="JSON lines of many")
    add("--voice", help="recording of the voice to say it in")
    add("--output", help=".wav or .flac file; with --input a folder")
    add("--seed", type=int, default=0, help="of lines that name none")
    add("--temperature", type=float, default=0.8, help="0 takes the likeliest")
    add("--top-k", type=int, default=0, help="the k likeliest compete; 0 all")
    add("--top-p", type=float, default=0.95, help="the likeliest that hold this share compete")
    add("--repetition-penalty", type=float, default=1.0, help="of tokens written before; 1 none")
    add("--max-seconds", type=float, default=10.0, help="of what is written, and of --ask heard")
    add("--voice-seconds", type=float, default=3.0, help="of --voice that are heard")
    add("--prompt-seconds", type=float, default=3.0, help="of --continue that are heard")
    add("--heads", type=int, help="that write; 1: a token a pass (default: all the LM has)")
    add("--batch-size", type=int, default=4, help="clips computed at once")
    add("--stream", action="store_true", help="16-bit PCM on standard output, causal codecs only")
    add("--compare", action="store_true", help="measure all heads against one instead")
    return parser


@answer_errors
def main(argv: list[str] | None = None) -> int:
    parser = arguments()
    args = parser.parse_args(argv)
    if args.output is None and not (args.stream or args.compare):
        parser.error("--output: where to?")
    if args.heads is not None and args.heads < 1:
        parser.error("--heads is at least 1")
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    from llmcodec_jax.data.cache import keep_compilations
    from llmcodec_jax.speech_lm import speaker

    keep_compilations(min_seconds=0.1)
    own = {"id": "1", "text": args.text, "voice": args.voice, "continue": args.start}
    own["ask"] = args.ask
    rows = (
        [own | {"seed": args.seed}] if args.input is None else read_requests(args.input, args.seed)
    )
    lm = speaker.load(args.lm, args.codec)
    if args.stream:
        stream(lm, rows[0], args)
        return 0
    if args.compare:
        compare(lm, rows, args)
        return 0
    failed = write_all(lm, rows, args)
    for reason in failed:
        print(f"failed: {reason}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
