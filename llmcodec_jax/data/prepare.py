"""Writes any source as ArrayRecord shards: fast random reads from a few large files.

    python -m llmcodec_jax.data.prepare --source librispeech:DIR --output OUT --shards 64 \\
        --sample-rate 16000

Audio is resampled to `--sample-rate`, mono, FLAC (or Opus, a tenth of the size). With limits
(--min-snr and others) all recordings are listened to first (`survey`). Finished shards are kept:
the same command again continues where it was interrupted. Unusable recordings are left out,
counted and named in OUT/skipped.txt. Read the result with arrayrecord:OUT.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import multiprocessing
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from pathlib import Path

from tqdm import tqdm

from llmcodec_jax.audio import AudioError, resample
from llmcodec_jax.data.arrayrecords import CODECS, SUFFIX, pack, shard_writer
from llmcodec_jax.data.records import Source, stable_hash
from llmcodec_jax.data.sources import open_source
from llmcodec_jax.data.survey import Heard, Limits, choose, listen, survey
from llmcodec_jax.errors import UsageError, answer_errors
from llmcodec_jax.ops import files
from llmcodec_jax.ops.cores import available

PLAN = "prepare.json"
LIMITS_HELP = {
    "min_seconds": "shortest recording",
    "max_seconds": "longest recording",
    "min_loudness": "dB below full scale, of what is no pause (-45, say)",
    "min_snr": "dB, estimated from the quietest tenth of 30 ms frames",
    "max_silence": "share of frames 40 dB below the loud ones (0.6, say)",
    "deduplicate": "keep the first of recordings with the same samples",
}


@dataclasses.dataclass(frozen=True)
class Plan:
    """What decides a shard's content: a folder holds shards of one plan only."""

    source: str
    records: int
    names: str  # digest of all names, in order
    shards: int
    sample_rate: int
    codec: str
    limits: str = ""  # on what is kept (`survey.Limits`)


@dataclasses.dataclass(frozen=True)
class Encoder:
    """Record index -> (bytes, name, speaker, error): what worker processes do."""

    source: Source
    sample_rate: int
    codec: str

    def __call__(self, index: int) -> tuple[bytes | None, str, str | None, str]:
        try:
            record = self.source.record(index)
            sound = record.sound
            wav = resample(sound.read(0, sound.samples), sound.rate, self.sample_rate)
            data = pack(record, wav, self.sample_rate, self.codec)
            return data, record.name, record.speaker, ""
        except AudioError as error:
            return None, self.source.name(index), None, str(error)

    def hear(self, index: int) -> Heard:
        """What the recording sounds like."""
        return listen(self.source, index)


def prepare(
    source: str,
    output: str | Path,
    *,
    shards: int,
    sample_rate: int,
    codec: str = "flac",
    workers: int = 0,
    cache: str | Path | None = None,
    limits: Limits | None = None,
) -> dict[str, int]:
    """Writes the shards that are not there yet; returns counts: written, skipped, kept shards, and
    what `limits` left out by reason.

    Records are dealt to shards in turn, so that shards are alike. Raises ValueError where
    `output` holds shards of another plan, AudioError where most recordings are unusable.
    """
    output, opened, limits = Path(output), open_source(source, cache=cache), limits or Limits()
    shards = max(1, min(shards, len(opened)))
    digest = stable_hash("\n".join(opened.name(i) for i in range(len(opened))), 64)
    plan = Plan(
        source, len(opened), f"{digest:016x}", shards, sample_rate, codec, limits.describe()
    )
    check_plan(output, plan)
    encoder = Encoder(opened, sample_rate, codec)
    with ExitStack() as stack:
        encode, hear = functools.partial(map, encoder), functools.partial(map, encoder.hear)
        if workers:
            context = multiprocessing.get_context("spawn")
            pool = ProcessPoolExecutor(workers, context, _install, (encoder,))
            stack.callback(pool.shutdown, cancel_futures=True)
            encode = functools.partial(pool.map, _encode, chunksize=8)
            hear = functools.partial(pool.map, _hear, chunksize=8)
        chosen, left_out = range(len(opened)), {}
        if limits.asked:
            chosen, left_out = choose(survey(opened, output, hear), limits)
        if not chosen:
            raise AudioError(f"{source}: the limits leave nothing ({left_out})")
        written = _write_shards(output, plan, chosen, encode)
    return written | {f"left out, {reason}": count for reason, count in left_out.items()}


def _write_shards(output: Path, plan: Plan, chosen: Sequence[int], encode) -> dict[str, int]:
    """Writes the shards that are missing; `encode` maps indices to records, in order."""
    shards = plan.shards
    paths = [output / f"data-{i:05d}-of-{shards:05d}{SUFFIX}" for i in range(shards)]
    todo = [i for i, path in enumerate(paths) if not path.is_file()]
    counts = {"written": 0, "skipped": 0, "kept_shards": shards - len(todo)}
    total = sum(len(chosen[i::shards]) for i in todo)
    with tqdm(total=total, desc=output.name, unit="clip", disable=None) as bar:
        for shard in todo:
            _write_shard(paths[shard], encode(chosen[shard::shards]), bar, counts)
            if counts["skipped"] > max(16, counts["written"]):
                raise AudioError(
                    f"{plan.source}: most recordings are unusable ({counts['skipped']} so far); "
                    f"{output / 'skipped.txt'} names them"
                )
    return counts


def check_plan(output: Path, plan: Plan) -> None:
    """Writes the plan, or compares it with the one that is there."""
    output.mkdir(parents=True, exist_ok=True)
    for stale in output.glob(".*.part"):  # of a process that was killed
        stale.unlink()
    file = output / PLAN
    if not file.is_file():
        if any(output.glob(f"*{SUFFIX}")):
            raise UsageError(f"{output}: holds shards but no {PLAN}; choose another folder")
        with files.replacing(file) as partial:
            partial.write_text(json.dumps(dataclasses.asdict(plan), indent=2) + "\n")
        return
    before = json.loads(file.read_text())
    differing = [k for k, v in dataclasses.asdict(plan).items() if before.get(k, "") != v]
    if differing:
        raise UsageError(
            f"{output}: was begun with another "
            + ", ".join(f"{k} ({before.get(k)!r}, now {getattr(plan, k)!r})" for k in differing)
            + "; choose another folder or delete this one"
        )


def _install(encoder: Encoder) -> None:
    """Keeps the encoder in a worker process, so that tasks carry only an index."""
    global _encoder
    _encoder = encoder


def _encode(index: int):
    return _encoder(index)


def _hear(index: int) -> Heard:
    return _encoder.hear(index)


def _write_shard(path: Path, items: Iterator, bar: tqdm, counts: dict[str, int]) -> None:
    problems = []
    with shard_writer(path) as write:
        for data, name, speaker, error in items:
            bar.update()
            if data is None:
                problems.append(f"{name}\t{error}\n")
                continue
            write(data, name, speaker)
            counts["written"] += 1
    counts["skipped"] += len(problems)
    if problems:
        with open(path.parent / "skipped.txt", "a", encoding="utf-8") as log:
            log.writelines(problems)


@answer_errors
def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--source", required=True, help="librispeech:DIR, folder:DIR, tfds:NAME")
    parser.add_argument("--output", required=True, help="folder for the shards")
    parser.add_argument("--shards", type=int, default=16, help="number of files")
    parser.add_argument("--sample-rate", type=int, required=True, help="Hz, the codec's")
    parser.add_argument("--codec", choices=sorted(CODECS), default="flac")
    parser.add_argument("--workers", type=int, default=len(available()), help="processes")
    parser.add_argument("--cache", help="cache folder of the embedded source")
    limits = parser.add_argument_group("what is kept (every recording is listened to first)")
    for field in dataclasses.fields(Limits):
        name = f"--{field.name.replace('_', '-')}"
        if field.default is False:
            limits.add_argument(name, action="store_true", help=LIMITS_HELP[field.name])
        else:
            limits.add_argument(name, type=float, help=LIMITS_HELP[field.name])
    arguments = vars(parser.parse_args())
    asked = Limits(**{name: arguments.pop(name) for name in LIMITS_HELP})
    counts = prepare(arguments.pop("source"), arguments.pop("output"), **arguments, limits=asked)
    print(", ".join(f"{key} {value}" for key, value in counts.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
