"""Which clips make up batch `n`, and what happens to those that cannot be used.

Everything about a batch is a function of (sources, seed, n): no order of calls, worker or
process count has a say. A process reads its own slice of each global batch, so the batch is the
same set of clips whether 1, 2 or 64 processes share it.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Sequence

import grain
import numpy as np

from llmcodec_jax.audio import AudioError
from llmcodec_jax.data.examples import Example, ExampleMaker
from llmcodec_jax.data.records import stable_hash
from llmcodec_jax.data.sources import Part, shard_numbers
from llmcodec_jax.errors import UsageError, UserError

logger = logging.getLogger(__name__)

_CANDIDATES = 64  # records tried for one place before the data is declared unusable
_BEDS = ("music", "audio")  # domains whose recordings may lie beneath others
_COMPANIONS = 4  # recordings tried for what lies beneath
_ENDLESS = 2**40  # batches: grain wants a length


Spoken = tuple[str, str]
"""A clip's name and its transcript, "" where there is none."""


class DataError(UserError, RuntimeError):
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
        by_shard: bool = False,
    ):
        """`batch_size` is global and a multiple of `process_count`; `start` is batch 0's number.

        `by_shard`: every file of a source is read by one process alone (`_Rows`).
        """
        if batch_size % process_count or not 0 <= process_index < process_count:
            raise UsageError(
                f"a global batch of {batch_size} cannot be shared by {process_count} processes "
                f"(this is number {process_index})"
            )
        self.parts, self.maker, self.seed, self.start = tuple(parts), maker, seed, start
        self.batch_size, self.local_size = batch_size, batch_size // process_count
        self._offset = process_index * self.local_size
        self._beds = [i for i, part in enumerate(self.parts) if part.domain in _BEDS]
        self.by_shard = by_shard
        groups = _group_count(self.parts, batch_size, process_count) if by_shard else 1
        mine = {(self._offset + row) * groups // batch_size for row in range(self.local_size)}
        self._rows = batch_size // groups  # of a batch, to a group of shards
        self._groups = {
            group: _Rows.of(self.parts, seed, group, groups if by_shard else 0) for group in mine
        }

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
        number, row = divmod(position, self.batch_size)
        group, place = divmod(row, self._rows)
        rows = self._groups[group]
        which, epoch, index = rows.order[number * self._rows + place]
        part = self.parts[which]
        index = rows.record(which, index)
        rng = np.random.default_rng([self.seed, which, epoch, index])
        for _ in range(_CANDIDATES):
            try:
                record = part.source.record(index)
                return self.maker.make(
                    record,
                    rng,
                    part.domain_index(record),
                    part.source.label,
                    overlap=functools.partial(self._companion, rows, [which], skipped),
                    bed=functools.partial(self._companion, rows, self._beds, skipped),
                )
            except AudioError as error:
                skipped.append(str(error))
                index = rows.record(which, int(rng.integers(rows.length(which, part))))
        raise DataError(
            f"{part.source.label}: {_CANDIDATES} records in a row are unusable, such as:\n  "
            + "\n  ".join(skipped[-5:])
        )

    def _companion(
        self, rows: _Rows, parts: Sequence[int], skipped: list[str], rng: np.random.Generator
    ) -> np.ndarray | None:
        """A crop of any recording of the parts of these numbers; None where none can be read."""
        for _ in range(_COMPANIONS if parts else 0):
            which = parts[int(rng.integers(len(parts)))]
            part = self.parts[which]
            try:
                index = rows.record(which, int(rng.integers(rows.length(which, part))))
                record = part.source.record(index)
                return self.maker.crop(record, rng)[0]
            except AudioError as error:
                skipped.append(str(error))
        return None


@dataclasses.dataclass(frozen=True)
class _Rows:
    """The order of the records that some rows of every batch are drawn from."""

    order: grain.MapDataset
    records: list[np.ndarray] | None  # of each part, which ones; None: all

    @classmethod
    def of(cls, parts: Sequence[Part], seed: int, group: int, groups: int) -> _Rows:
        """Of `groups` groups of shards the one that is numbered `group`; 0 groups: all records.

        A group's shards are read by whichever process has its rows, once an epoch of its own; which
        clips are in a batch does not depend on how many processes there are.
        """
        weights = [part.weight for part in parts]
        if not groups:
            return cls(_order([len(part.source) for part in parts], weights, seed), None)
        records = [np.flatnonzero(shard_numbers(p.source) % groups == group) for p in parts]
        for part, own in zip(parts, records, strict=True):
            if not len(own):
                raise UsageError(
                    f"{part.source.label}: no record for group {group} of {groups} of its shards; "
                    "write more shards, or leave data.shards_by_host off"
                )
        own_seed = stable_hash(f"group {seed} {group}")
        return cls(_order([len(own) for own in records], weights, own_seed), records)

    def record(self, which: int, index: int) -> int:
        """The record of part `which` that is number `index` here."""
        return index if self.records is None else int(self.records[which][index])

    def length(self, which: int, part: Part) -> int:
        """How many records of part `which` there are here."""
        return len(part.source) if self.records is None else len(self.records[which])


def _group_count(parts: Sequence[Part], batch_size: int, process_count: int) -> int:
    """The most groups of shards that rows can be dealt to evenly. Raises UsageError."""
    fewest = min(int(shard_numbers(part.source).max()) + 1 for part in parts)
    groups = max(n for n in range(1, batch_size + 1) if batch_size % n == 0 and n <= fewest)
    if groups % process_count:
        raise UsageError(
            f"data.shards_by_host: {process_count} processes cannot share {fewest} shards of the "
            f"smallest source in a batch of {batch_size}: {groups} groups; write more shards"
        )
    return groups


def _order(lengths: list[int], weights: list[float], seed: int) -> grain.MapDataset:
    """Position in the endless stream -> (part, epoch, record index).

    Every part is shuffled anew each epoch; parts are interleaved by weight so evenly that each
    batch has their proportions.
    """
    streams = []
    for which, length in enumerate(lengths):
        own_seed = stable_hash(f"order {seed} {which}")
        shuffled = grain.MapDataset.range(length).seed(own_seed).shuffle().repeat()
        label = functools.partial(_labelled, which, length)
        streams.append(shuffled.map_with_index(label))
    return grain.MapDataset.mix(streams, weights)


def _labelled(which: int, length: int, place: int, index: int) -> tuple[int, int, int]:
    return which, place // length, int(index)


def fixed_rows(
    part: Part, parts: Sequence[Part], maker: ExampleMaker, count: int, seed: int
) -> list[tuple[Example, Spoken]]:
    """A part's share of the evaluation clips: those whose names have the smallest hashes."""
    share = max(1, round(count * part.weight / sum(p.weight for p in parts)))
    source, rows = part.source, []
    for index in sorted(range(len(source)), key=lambda i: stable_hash(source.name(i), 64)):
        if len(rows) == share:
            break
        try:
            record = source.record(index)
            rng = np.random.default_rng([seed, stable_hash(record.name)])
            example = maker.make(record, rng, part.domain_index(record), source.label)
            rows.append((example, (f"{source.label}/{record.name}", record.text or "")))
        except AudioError as error:
            logger.warning("evaluation leaves out %s", error)
    return rows
