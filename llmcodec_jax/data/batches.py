"""Which clips make up batch `n`, and what happens to those that cannot be used.

Everything about a batch is a function of (sources, seed, n): no order of calls, worker or
process count has a say. A process reads its own slice of each global batch, so the batch is the
same set of clips whether 1, 2 or 64 processes share it.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence

import grain
import numpy as np

from llmcodec_jax.audio import AudioError
from llmcodec_jax.data.examples import Example, ExampleMaker
from llmcodec_jax.data.records import stable_hash
from llmcodec_jax.data.sources import Part
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
    ):
        """`batch_size` is global and a multiple of `process_count`; `start` is batch 0's number."""
        if batch_size % process_count or not 0 <= process_index < process_count:
            raise UsageError(
                f"a global batch of {batch_size} cannot be shared by {process_count} processes "
                f"(this is number {process_index})"
            )
        self.parts, self.maker, self.seed, self.start = tuple(parts), maker, seed, start
        self.batch_size, self.local_size = batch_size, batch_size // process_count
        self._offset = process_index * self.local_size
        self._beds = [p for p in self.parts if p.domain in _BEDS]
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
                return self.maker.make(
                    record,
                    rng,
                    part.domain_index(record),
                    part.source.label,
                    overlap=functools.partial(self._companion, [part], skipped),
                    bed=functools.partial(self._companion, self._beds, skipped),
                )
            except AudioError as error:
                skipped.append(str(error))
                index = int(rng.integers(len(part.source)))
        raise DataError(
            f"{part.source.label}: {_CANDIDATES} records in a row are unusable, such as:\n  "
            + "\n  ".join(skipped[-5:])
        )

    def _companion(
        self, parts: Sequence[Part], skipped: list[str], rng: np.random.Generator
    ) -> np.ndarray | None:
        """A crop of any recording of `parts`; None where none can be read."""
        for _ in range(_COMPANIONS if parts else 0):
            part = parts[int(rng.integers(len(parts)))]
            try:
                record = part.source.record(int(rng.integers(len(part.source))))
                return self.maker.crop(record, rng)[0]
            except AudioError as error:
                skipped.append(str(error))
        return None


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
