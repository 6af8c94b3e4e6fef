"""The loader: records -> shuffled, sharded, resumable batches that any worker count agrees on.

Everything about batch `n` is a function of (sources, seed, n), so the loader's whole state is
one number. A process reads its own slice of each global batch: the batch is the same set of
clips whether 1, 2 or 64 processes share it, and a run may resume with another number.
"""

from __future__ import annotations

import functools
import json
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

import grain
import numpy as np
from absl import flags

from llmcodec_jax.audio import AudioError
from llmcodec_jax.data.examples import Example, ExampleMaker
from llmcodec_jax.data.records import stable_hash
from llmcodec_jax.data.sources import Part, SourceSpec, open_mixture
from llmcodec_jax.data.text import Tokenizer
from llmcodec_jax.types import Batch

logger = logging.getLogger(__name__)

_CANDIDATES = 64  # records tried for one place before the data is declared unusable
_JUDGED_AFTER = 64  # attempts before "most of the data is bad" can be said
_ENDLESS = 2**40  # batches: grain wants a length


class DataError(RuntimeError):
    """Most of the data is unusable; the message counts the reasons and names examples."""


class Batches:
    """Random access to one process's slice of every global batch; picklable for workers."""

    def __init__(
        self,
        parts: Sequence[Part],
        maker: ExampleMaker,
        *,
        batch_size: int,
        seed: int,
        process_index: int = 0,
        process_count: int = 1,
        start: int = 0,
    ):
        """`batch_size` is global and a multiple of `process_count`; `start` is batch 0's number."""
        if batch_size % process_count or not 0 <= process_index < process_count:
            raise ValueError(
                f"a global batch of {batch_size} cannot be shared by {process_count} processes "
                f"(this is number {process_index})"
            )
        self.parts, self.maker, self.seed, self.start = tuple(parts), maker, seed, start
        self.batch_size, self.local_size = batch_size, batch_size // process_count
        self._offset = process_index * self.local_size
        self._order = _order([len(part.source) for part in parts], [p.weight for p in parts], seed)

    def __len__(self) -> int:
        return _ENDLESS

    def __getitem__(self, index: int) -> dict:
        """Batch `start + index` as {field: array [local, ...]} and what was `skipped`, `read`."""
        first = (self.start + int(index)) * self.batch_size + self._offset
        skipped: list[str] = []
        rows = [self.example(first + i, skipped) for i in range(self.local_size)]
        fields = {key: np.stack([row[key] for row in rows]) for key in rows[0]}
        return {"fields": fields, "skipped": tuple(skipped), "read": len(rows) + len(skipped)}

    def example(self, position: int, skipped: list[str]) -> Example:
        """The clip at one place of the endless stream.

        An unusable record's place goes to another of its source, drawn by the place's own
        generator: no other place changes, whatever was skipped.
        """
        which, epoch, index = self._order[position]
        part = self.parts[which]
        rng = np.random.default_rng([self.seed, which, epoch, index])
        for _ in range(_CANDIDATES):
            try:
                record = part.source.record(index)
                return self.maker.make(record, rng, part.domain_index(record), part.source.label)
            except AudioError as error:
                skipped.append(str(error))
                index = int(rng.integers(len(part.source)))
        raise DataError(
            f"{part.source.label}: {_CANDIDATES} records in a row are unusable, such as:\n  "
            + "\n  ".join(skipped[-5:])
        )


def _order(lengths: list[int], weights: list[float], seed: int) -> grain.MapDataset:
    """Position in the endless stream -> (part, epoch, record index).

    Every part is shuffled anew each epoch; parts are interleaved by weight so evenly that each
    batch has their proportions.
    """
    streams = []
    for which, length in enumerate(lengths):
        shuffled = grain.MapDataset.range(length).seed(seed * 1009 + which).shuffle().repeat()
        label = functools.partial(_labelled, which, length)
        streams.append(shuffled.map_with_index(label))
    return grain.MapDataset.mix(streams, weights)


def _labelled(which: int, length: int, place: int, index: int) -> tuple[int, int, int]:
    return which, place // length, int(index)


class Loader:
    """Endless iterator over this process's part of each global batch.

    `state()` / `restore(state)`: what `state()` says before `next()` is what brings the same
    batch again, at any number of workers and processes. Skipped records are logged once each
    and counted in `skipped()`.
    """

    def __init__(self, batches: Batches, *, workers: int = 0, threads: int = 2, buffer: int = 4):
        """`workers` processes (0: `threads` threads of this one) keep `buffer` batches ready."""
        self._batches, self._workers = batches, workers
        self._threads, self._buffer = threads, buffer
        self._next = 0
        self._iterator: Iterator | None = None
        self._skips: dict[str, int] = {}
        self._read = 0

    @property
    def epoch(self) -> float:
        """How often the data has been gone through on average; fractional."""
        clips = self._next * self._batches.batch_size
        return clips / sum(len(part.source) for part in self._batches.parts)

    def __iter__(self) -> Loader:
        return self

    def __next__(self) -> Batch:
        """numpy Batch of this process's rows. Raises DataError where most data is unusable."""
        if self._iterator is None:
            self._iterator = self._open()
        item = next(self._iterator)
        self._next += 1
        self._note(item["skipped"], item["read"])
        # Workers may hand over views of shared memory that is freed with the item.
        return Batch(**{key: np.array(value) for key, value in item["fields"].items()})

    def _open(self) -> Iterator:
        self._batches.start = self._next
        dataset = grain.MapDataset.source(self._batches)
        options = grain.ReadOptions(
            num_threads=1 if self._workers else self._threads,
            prefetch_buffer_size=1 if self._workers else self._buffer,
        )
        stream = dataset.to_iter_dataset(options)
        if self._workers:
            if not flags.FLAGS.is_parsed():  # grain asks a flag of its own, in libraries too
                flags.FLAGS.mark_as_parsed()
            per_worker = max(1, self._buffer // self._workers)
            stream = stream.mp_prefetch(
                grain.MultiprocessingOptions(
                    num_workers=self._workers, per_worker_buffer_size=per_worker
                )
            )
        return iter(stream)

    def _note(self, skipped: Sequence[str], read: int) -> None:
        self._read += read
        for reason in skipped:
            if reason not in self._skips:
                logger.warning("skipped %s", reason)
            self._skips[reason] = self._skips.get(reason, 0) + 1
        count = sum(self._skips.values())
        if self._read >= _JUDGED_AFTER and count > self._read / 2:
            raise DataError(
                f"{count} of {self._read} records read are unusable, such as:\n  "
                + "\n  ".join(list(self._skips)[:5])
            )

    def skipped(self) -> dict:
        """{"read": records tried, "count": skipped, "reasons": {message: times}} so far."""
        return {
            "read": self._read,
            "count": sum(self._skips.values()),
            "reasons": dict(self._skips),
        }

    def fingerprint(self) -> str:
        """Identifies what decides the order of clips: sources, weights, batch size, seed."""
        parts = [[p.source.label, len(p.source), p.weight] for p in self._batches.parts]
        settings = [parts, self._batches.batch_size, self._batches.seed]
        return f"{stable_hash(json.dumps(settings), 64):016x}"

    def state(self) -> dict:
        """JSON-able; independent of workers and processes."""
        return {"batches": self._next, "fingerprint": self.fingerprint()}

    def restore(self, state: dict) -> None:
        """Continues where `state` was taken; warns where the data is not the same any more."""
        if state["fingerprint"] != self.fingerprint():
            logger.warning(
                "the sources, batch size or seed have changed since the checkpoint: "
                "the clips that follow are not those of the interrupted run"
            )
        self.close()
        self._next = int(state["batches"])

    def close(self) -> None:
        """Ends worker processes and threads; the loader can be used again afterwards."""
        if self._iterator is not None and hasattr(self._iterator, "close"):
            self._iterator.close()
        self._iterator = None

    def __enter__(self) -> Loader:
        return self

    def __exit__(self, *_) -> None:
        self.close()


def make_loader(
    sources: SourceSpec | Sequence[SourceSpec],
    *,
    sample_rate: int,
    batch_size: int,
    clip_samples: int,
    hop: int = 320,
    text_tokenizer: Tokenizer | None = None,
    max_text: int = 128,
    text_policy: str = "aligned",
    seed: int = 0,
    split: str = "train",
    eval_fraction: float = 0.02,
    eval_max: int = 256,
    split_by: str = "name",
    min_seconds: float = 0.3,
    silence_peak: float = 1e-3,
    workers: int = 0,
    threads: int = 2,
    buffer: int = 4,
    process_index: int = 0,
    process_count: int = 1,
    cache: str | Path | None = None,
) -> Loader:
    """Opens the sources and returns the loader; `ExampleMaker` and `split_source` explain fields.

    `batch_size` is global: each process gets batch_size / process_count rows.
    """
    parts = open_mixture(
        sources, split, cache=cache, eval_fraction=eval_fraction, eval_max=eval_max, by=split_by
    )
    maker = ExampleMaker(
        sample_rate=sample_rate,
        clip_samples=clip_samples,
        hop=hop,
        tokenizer=text_tokenizer,
        max_text=max_text,
        text_policy=text_policy,
        min_seconds=min_seconds,
        silence_peak=silence_peak,
    )
    batches = Batches(
        parts,
        maker,
        batch_size=batch_size,
        seed=seed,
        process_index=process_index,
        process_count=process_count,
    )
    return Loader(batches, workers=workers, threads=threads, buffer=buffer)


def eval_batches(
    sources: SourceSpec | Sequence[SourceSpec],
    *,
    count: int,
    sample_rate: int,
    batch_size: int,
    clip_samples: int,
    hop: int = 320,
    text_tokenizer: Tokenizer | None = None,
    max_text: int = 128,
    text_policy: str = "aligned",
    seed: int = 0,
    split: str = "eval",
    eval_fraction: float = 0.02,
    eval_max: int = 256,
    split_by: str = "name",
    min_seconds: float = 0.3,
    silence_peak: float = 1e-3,
    process_index: int = 0,
    process_count: int = 1,
    cache: str | Path | None = None,
) -> list[Batch]:
    """A fixed list of numpy batches of up to `count` different held-out clips.

    Parts of a mixture share `count` by weight. The last batch is filled up with rows of
    wav_length 0. Unusable records are left out and logged. Each process gets its own rows.
    """
    parts = open_mixture(
        sources, split, cache=cache, eval_fraction=eval_fraction, eval_max=eval_max, by=split_by
    )
    maker = ExampleMaker(
        sample_rate=sample_rate,
        clip_samples=clip_samples,
        hop=hop,
        tokenizer=text_tokenizer,
        max_text=max_text,
        text_policy=text_policy,
        min_seconds=min_seconds,
        silence_peak=silence_peak,
    )
    if batch_size % process_count:
        raise ValueError(f"{process_count} processes cannot share a batch of {batch_size}")
    rows = [row for part in parts for row in _fixed_rows(part, parts, maker, count, seed)]
    if not rows:
        raise DataError(f"{sources!r}: no usable clip in the {split!r} split")
    local = batch_size // process_count
    batches = []
    for first in range(0, len(rows), batch_size):
        batch = rows[first : first + batch_size]
        batch += [maker.blank()] * (batch_size - len(batch))
        mine = batch[process_index * local : (process_index + 1) * local]
        batches.append(Batch(**{key: np.stack([row[key] for row in mine]) for key in mine[0]}))
    return batches


def _fixed_rows(
    part: Part, parts: Sequence[Part], maker: ExampleMaker, count: int, seed: int
) -> list[Example]:
    """A part's share of the evaluation clips: those whose names have the smallest hashes."""
    share = max(1, round(count * part.weight / sum(p.weight for p in parts)))
    source, rows = part.source, []
    for index in sorted(range(len(source)), key=lambda i: stable_hash(source.name(i), 64)):
        if len(rows) == share:
            break
        try:
            record = source.record(index)
            rng = np.random.default_rng([seed, stable_hash(record.name)])
            rows.append(maker.make(record, rng, part.domain_index(record), source.label))
        except AudioError as error:
            logger.warning("evaluation leaves out %s", error)
    return rows
