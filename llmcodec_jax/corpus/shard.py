"""One shard of a corpus: its clips read, coded in batches of like length, and written.

What cannot be read goes to the shard's list of failures with its reason; nothing is dropped.
"""

from __future__ import annotations

import base64
import io
import itertools
import json
import zlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from llmcodec_jax import audio
from llmcodec_jax.codec import tokens
from llmcodec_jax.corpus.plan import Plan, Task
from llmcodec_jax.data import stores, token_table
from llmcodec_jax.data.records import Source

LONG = 300.0  # seconds from which a clip is streamed instead of read whole
BLOCK = 10.0  # seconds a streamed block
HELD = 1800.0  # seconds of audio that a shard's read clips may add up to before they are coded
_META = b"llmcodec"


class Clip(NamedTuple):
    """A record on its way to the codec."""

    index: int
    name: str
    wav: np.ndarray | None = None  # float32 [N] at the codec's rate; None: too long to be held
    uri: str | None = None
    transcript: str | None = None
    speaker: str | None = None
    failure: str = ""  # why it cannot be coded


class Part(NamedTuple):
    """What has become of a shard, without its tokens."""

    shard: int
    clips: int
    failed: int
    seconds: float  # of audio coded
    counts: np.ndarray  # int64 [levels * V], how often each number occurs


Engine = Callable[[Task, list[int], int | None], Iterator[Part]]
"""(task, shards to make, workers) -> each shard's outcome as it is made, in any order."""


def read_clip(source: Source, index: int, rate: int) -> Clip:
    """Opens and resamples one record; what is wrong with it stands in `failure`."""
    name = source.name(index)
    try:
        record = source.record(index)
        about = dict(uri=record.uri, transcript=record.text, speaker=record.speaker)
        sound = record.sound
        if sound.rate < rate:
            audio.warn_of_low_rate(sound.rate, rate)
        if sound.samples > LONG * sound.rate:
            return Clip(index, name, None, **about)
        wav = audio.resample(sound.read(0, sound.samples), sound.rate, rate)
        failure = "" if len(wav) else f"{name}: too short to resample"
        return Clip(index, name, wav, **about, failure=failure)
    except (audio.AudioError, FileNotFoundError) as error:
        return Clip(index, name, failure=str(error))


def read_clips(
    source: Source, indices: Iterable[int], rate: int, told: Callable[[int], None] | None = None
) -> Iterator[Clip]:
    """`read_clip` of each, a few ahead in a thread; `told(index)` before a record is opened."""

    def read(index: int) -> Clip:
        if told is not None:
            told(index)
        return read_clip(source, index, rate)

    with ThreadPoolExecutor(1) as thread:
        remaining = iter(indices)
        waiting = [thread.submit(read, index) for index in itertools.islice(remaining, 16)]
        while waiting:
            clip = waiting.pop(0).result()
            waiting += [thread.submit(read, index) for index in itertools.islice(remaining, 1)]
            yield clip


def code_clips(codec, source: Source, clips: Iterable[Clip]) -> Iterator[tuple[Clip, dict | None]]:
    """Each clip with its row of the token table, or None where it failed; in no set order."""
    held: list[Clip] = []
    seconds = 0.0
    for clip in clips:
        if clip.failure:
            yield clip, None
        elif clip.wav is None:
            yield _code_long(codec, source, clip)
        else:
            held.append(clip)
            seconds += len(clip.wav) / codec.sample_rate
        if len(held) >= 32 * codec.batch_size or seconds > HELD:
            yield from _code_held(codec, held)
            held, seconds = [], 0.0
    yield from _code_held(codec, held)


def _code_held(codec, clips: list[Clip]) -> Iterator[tuple[Clip, dict]]:
    wavs = [clip.wav for clip in clips if clip.wav is not None]
    for clip, wav, codes in zip(clips, wavs, codec.encode(wavs) if wavs else [], strict=True):
        yield clip, _row(codec, clip, codes, len(wav))


def _code_long(codec, source: Source, clip: Clip) -> tuple[Clip, dict | None]:
    """Streams one long recording through the codec in flat memory."""
    samples = 0

    def counted() -> Iterator[np.ndarray]:
        nonlocal samples
        sound = source.record(clip.index).sound
        size = int(BLOCK * sound.rate)
        blocks = (
            sound.read(start, min(start + size, sound.samples))
            for start in range(0, sound.samples, size)
        )
        for block in audio.resample_blocks(blocks, sound.rate, codec.sample_rate):
            samples += len(block)
            yield block

    try:
        codes = np.concatenate(list(codec.encode_stream(counted())))
    except (audio.AudioError, FileNotFoundError) as error:
        return clip._replace(failure=str(error)), None
    return clip, _row(codec, clip, codes, samples)


def _row(codec, clip: Clip, codes: np.ndarray, samples: int) -> dict:
    return {
        "id": _text(clip.name),
        "codes": tokens.vocabulary_index(codes, codec.codebook_size),
        "num_frames": len(codes),
        "num_samples": samples,
        "sample_rate": codec.sample_rate,
        "levels": codec.levels,
        "codebook_size": codec.codebook_size,
        "codec": codec.digest,
        "hop": codec.hop,
        "source": _text(clip.uri),
        "duration": samples / codec.sample_rate,
        "transcript": _text(clip.transcript),
        "speaker": _text(clip.speaker),
    }


def _text(value: str | None) -> str | None:
    """Names of files need not be text; columns must be."""
    return None if value is None else value.encode("utf-8", "backslashreplace").decode()


def make_shard(codec, source: Source, output: str, plan: Plan, shard: int, clips) -> Part:
    """Codes `clips`, all of a shard's, and writes it: failures first, so that a shard is whole."""
    rows, failures = {}, []
    counts = np.zeros(plan.levels * plan.codebook_size, np.int64)
    for clip, row in code_clips(codec, source, clips):
        if row is None:
            failures.append((clip.index, {"id": _text(clip.name), "reason": _text(clip.failure)}))
        else:
            rows[clip.index] = row
            counts += np.bincount(row["codes"], minlength=len(counts))
    missing = set(plan.indices(shard)) - rows.keys() - {index for index, _ in failures}
    if missing:
        raise RuntimeError(f"shard {shard}: records {sorted(missing)[:5]} were not given")
    if failures:
        lines = (json.dumps(row) + "\n" for _, row in sorted(failures, key=lambda f: f[0]))
        stores.write(stores.join(output, plan.failures_name(shard)), "".join(lines).encode())
    seconds = float(sum(row["duration"] for row in rows.values()))
    part = Part(shard, len(rows), len(failures), seconds, counts)
    data = io.BytesIO()
    kind = token_table.schema().with_metadata({_META: _pack(part)})
    token_table.write(data, (rows[index] for index in sorted(rows)), kind)
    stores.write(stores.join(output, plan.shard_name(shard)), data.getvalue())
    return part


def _pack(part: Part) -> bytes:
    counts = base64.b64encode(zlib.compress(part.counts.astype("<i8").tobytes())).decode()
    return json.dumps(part._replace(counts=counts)._asdict()).encode()  # ty: ignore


def read_part(output: str, plan: Plan, shard: int) -> Part | None:
    """What a written shard says of itself; None where it is damaged and is to be made again."""
    file = stores.join(output, plan.shard_name(shard))
    try:
        if stores.is_remote(file):
            found = parquet.read_schema(pa.BufferReader(stores.read(file)))
        else:
            found = parquet.read_schema(file)
        fields = json.loads((found.metadata or {})[_META])
        counts = zlib.decompress(base64.b64decode(fields.pop("counts")))
        return Part(**fields, counts=np.frombuffer(counts, "<i8"))
    except (OSError, pa.ArrowException, KeyError, ValueError, TypeError, zlib.error):
        return None
