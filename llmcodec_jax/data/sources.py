"""Sources by name, held-out splits, and mixtures.

librispeech:DIR      LibriSpeech's own layout (speaker/chapter/ID.flac + .trans.txt)
folder:DIR           any tree of audio; text from NAME.txt or manifest.tsv
arrayrecord:GLOB     shards that `python -m llmcodec_jax.data.prepare` wrote
webdataset:PATTERN   tar files, shard-{000..127}.tar
parquet:PATTERN      Parquet files with audio bytes, as the Hugging Face Hub keeps them
tokens:TABLE         the recordings that a token table was made of
tfds:NAME[:SPLIT]    a prepared TensorFlow Datasets audio set (array_record files)
embedded             real recorded speech that needs no account (data/embedded.py)

DIR, GLOB, PATTERN and TABLE may be s3://, gs:// or hf:// URIs (`stores`).
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from llmcodec_jax.audio import AudioError
from llmcodec_jax.data.records import Record, Source, stable_hash
from llmcodec_jax.data.words import Aligned
from llmcodec_jax.errors import UsageError
from llmcodec_jax.types import DOMAINS

logger = logging.getLogger(__name__)

KINDS = {
    "librispeech": ("llmcodec_jax.data.folders", "LibriSpeechSource"),
    "folder": ("llmcodec_jax.data.folders", "FolderSource"),
    "arrayrecord": ("llmcodec_jax.data.arrayrecords", "ArrayRecordSource"),
    "webdataset": ("llmcodec_jax.data.webdataset", "WebDatasetSource"),
    "parquet": ("llmcodec_jax.data.parquet_audio", "ParquetAudioSource"),
    "tokens": ("llmcodec_jax.data.token_table", "TokenTable"),
    "tfds": ("llmcodec_jax.data.tfds", "TfdsSource"),
    "embedded": ("llmcodec_jax.data.embedded", "fetch_speech"),
}
"""Where each kind is opened: a folder of audio needs neither array_record nor Parquet."""
SourceSpec = str | tuple[str, float] | tuple[str, float, str]
"""A spec, (spec, weight) or (spec, weight, domain)."""


def open_source(spec: str, *, cache: str | Path | None = None) -> Source:
    """Opens a source by name. `cache` is where `embedded` keeps what it fetched.

    Raises ValueError for an unknown kind, AudioError where there is no data.
    """
    kind, _, rest = spec.partition(":")
    if kind not in KINDS or not (rest or kind == "embedded"):
        raise UsageError(
            f"source {spec!r}: expected one of librispeech:DIR, folder:DIR, arrayrecord:GLOB, "
            "webdataset:PATTERN, parquet:PATTERN, tokens:TABLE, tfds:NAME[:SPLIT], embedded"
        )
    module, name = KINDS[kind]
    opener = getattr(importlib.import_module(module), name)
    if kind == "embedded":
        return open_source(f"librispeech:{opener(cache)}")
    return opener(rest)


class Subset:
    """Some of a source's records, by index."""

    def __init__(self, source: Source, indices: np.ndarray):
        self.label = source.label
        self._source, self._indices = source, np.asarray(indices, np.int64)

    def __len__(self) -> int:
        return len(self._indices)

    def name(self, index: int) -> str:
        return self._source.name(int(self._indices[index]))

    def group(self, index: int) -> str:
        return self._source.group(int(self._indices[index]))

    def record(self, index: int) -> Record:
        return self._source.record(int(self._indices[index]))

    def shard_numbers(self) -> np.ndarray:
        """Of each record, the file it lies in."""
        return shard_numbers(self._source)[self._indices]


def shard_numbers(source) -> np.ndarray:
    """int [len(source)]: the number of the file each record lies in; without large files its own.

    Sources of several records a file have `shards`, how many each file holds.
    """
    if hasattr(source, "shard_numbers"):
        return source.shard_numbers()
    counts = getattr(source, "shards", None)
    return np.arange(len(source)) if counts is None else np.repeat(np.arange(len(counts)), counts)


def estimate_hours(source: Source, sample: int = 256) -> float:
    """Hours of audio, from the durations of the records whose names have the smallest hashes.

    The same on every machine; exact where there are no more than `sample`. Raises AudioError
    where none of them can be opened.
    """
    ranked = sorted(range(len(source)), key=lambda i: stable_hash(source.name(i), 64))
    seconds, problem = [], None
    for index in ranked[:sample]:
        try:
            sound = source.record(index).sound
            seconds.append(sound.samples / sound.rate)
        except AudioError as error:
            problem = error
    if not seconds:
        raise AudioError(f"{source.label}: no record can be opened ({problem})")
    return len(source) * float(np.mean(seconds)) / 3600


def split_source(
    source: Source,
    split: str,
    *,
    eval_fraction: float = 0.02,
    eval_max: int = 256,
    by: str = "name",
) -> Source:
    """The "train", "eval" or "all" part of a source, by a hash that never changes.

    A record is held out where the hash of its name falls below `eval_fraction`; of those, at
    most `eval_max` with the smallest hashes. Adding records never moves another one from
    held-out to training except through `eval_max`. `by="speaker"` hashes the speaker (the name
    where none is known) and ignores `eval_max`, so that held-out voices are never trained on.
    Sentences spoken by several voices are not kept apart by either.
    """
    if split == "all":
        return source
    if split not in ("train", "eval"):
        raise UsageError(f"split {split!r} is not one of train, eval, all")
    if by not in ("name", "speaker"):
        raise UsageError(f"by {by!r} is not one of name, speaker")
    key = source.name if by == "name" else source.group
    hashes = np.array([stable_hash(key(i), 64) for i in range(len(source))], np.uint64)
    held = hashes < np.uint64(int(eval_fraction * 2**64) if eval_fraction < 1 else 2**64 - 1)
    if by == "name" and held.sum() > eval_max:
        held = hashes <= np.partition(hashes, eval_max - 1)[eval_max - 1]
    chosen = np.flatnonzero(held if split == "eval" else ~held)
    if not len(chosen):
        raise AudioError(
            f"{source.label}: its {len(source)} records leave none for {split!r} at "
            f"eval_fraction={eval_fraction} by {by}; change the fraction or name a separate source"
        )
    return Subset(source, chosen)


@dataclass(frozen=True)
class Part:
    """One part of a mixture: a source, its share, and the domain its clips belong to."""

    source: Source
    weight: float
    domain: str | None

    def domain_index(self, record: Record) -> int:
        """Index into DOMAINS: the mixture's word, else the record's, else speech."""
        return DOMAINS.index(self.domain or record.domain or "speech")


def open_mixture(
    sources: SourceSpec | Sequence[SourceSpec],
    split: str = "all",
    *,
    cache: str | Path | None = None,
    alignments: str | Path | None = None,
    temperature: float | None = None,
    **split_options,
) -> list[Part]:
    """Opens every source of a mixture; `split_options` go to `split_source`.

    Weights are relative shares of the clips in a batch. With a `temperature` T they are multiplied
    by hours^(1 / T): at 1 every hour of audio counts alike, at large T every source.
    `alignments` is a folder of word times for recordings that have none beside them
    (`words.Aligned`).
    """
    if isinstance(sources, str):
        sources = [sources]
    if temperature is not None and not temperature > 0:
        raise UsageError(f"the mixture's temperature must be positive, not {temperature}")
    parts = []
    for entry in sources:
        spec, weight, domain = (entry, 1.0, None) if isinstance(entry, str) else _three(entry)
        if domain is not None and domain not in DOMAINS:
            raise UsageError(f"{spec}: domain {domain!r} is not one of {', '.join(DOMAINS)}")
        if not weight > 0 or not np.isfinite(weight):
            raise UsageError(f"{spec}: the weight must be positive, not {weight}")
        source = open_source(spec, cache=cache)
        source = Aligned(source, alignments) if alignments else source
        source = split_source(source, split, **split_options)
        if temperature is not None:
            hours = estimate_hours(source)
            logger.info("%s: about %.1f hours", spec, hours)
            weight = weight * hours ** (1 / temperature)
        parts.append(Part(source, float(weight), domain))
    if not parts:
        raise UsageError("no source of data is named")
    return parts


def _three(entry) -> tuple[str, float, str | None]:
    if not 1 <= len(entry) <= 3 or not isinstance(entry[0], str):
        raise UsageError(f"{entry!r}: expected (source, weight, domain)")
    spec, weight, domain = (*entry, *(1.0, None)[len(entry) - 1 :])
    return spec, weight, domain
