"""Packed batches of a speech LM: sequences end to end in rows, none of which sees another.

Sequence number d of a run is a function of (clips, seed, d); a batch is as many of them, in
order, as fit. The position of a run is the number of its next sequence.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterator, Sequence

import flax.struct
import jax
import numpy as np

from llmcodec_jax.errors import UserError
from llmcodec_jax.speech_lm.corpus import Clip
from llmcodec_jax.speech_lm.template import Document

logger = logging.getLogger(__name__)

Make = Callable[[Clip, np.random.Generator], Document]
"""A clip and what chance decides -> its sequence."""


@flax.struct.dataclass
class PackedBatch:
    """Sequences in rows; what is no sequence's is segment 0."""

    ids: jax.Array | np.ndarray  # int32 [B, L], or [B, L, Q] of stacked levels; see `template`
    segments: jax.Array | np.ndarray  # int32 [B, L]: 1, 2, ... in each row; 0 is padding
    positions: jax.Array | np.ndarray  # int32 [B, L], within a sequence
    predicted: jax.Array | np.ndarray  # bool like `ids`, what the model learns to write


def pack(documents: Iterator[Document], rows: int, length: int) -> tuple[PackedBatch, int]:
    """Puts sequences into the first row that has room, until one fits in none.

    -> (batch, how many were put in). Sequences are no longer than `length`.
    """
    documents = iter(documents)
    first = next(documents, None)
    shape = (rows, length)
    full = (*shape, *(() if first is None else first.ids.shape[1:]))
    batch = PackedBatch(
        np.zeros(full, np.int32), np.zeros(shape, np.int32), np.zeros(shape, np.int32),
        np.zeros(full, bool),
    )  # fmt: skip
    used, counts, packed = np.zeros(rows, int), np.zeros(rows, int), 0
    for document in itertools.chain([] if first is None else [first], documents):
        size = len(document.ids)
        fits = np.flatnonzero(used + size <= length)
        if not len(fits):
            break
        row = fits[0]
        place = (row, slice(used[row], used[row] + size))
        batch.ids[place], batch.predicted[place] = document
        counts[row] += 1
        batch.segments[place], batch.positions[place] = counts[row], np.arange(size)
        used[row] += size
        packed += 1
    return batch, packed


class PackedBatches:
    """Endless batches of one process's rows; `state` and `restore` tell and set the position."""

    def __init__(
        self,
        clips: Sequence[Clip],
        make: Make,
        *,
        rows: int,
        length: int,
        seed: int,
        process_index: int = 0,
        process_count: int = 1,
    ):
        """`rows` are the global batch's. Raises UserError where no clip gives a sequence."""
        self._clips, self._make, self._seed = clips, make, seed
        self._rows, self._length = rows, length
        share = rows // process_count
        self._mine = slice(process_index * share, (process_index + 1) * share)
        self._next, self._batches, self._too_long = 0, 0, 0
        if not clips:
            raise UserError("no clip is left to train on")

    def document(self, number: int) -> Document:
        """Sequence `number`: every clip once an epoch, in an order of its own."""
        epoch, place = divmod(number, len(self._clips))
        order = np.random.default_rng([self._seed, 0, epoch]).permutation(len(self._clips))
        generator = np.random.default_rng([self._seed, 1, number])
        return self._make(self._clips[order[place]], generator)

    def __iter__(self) -> PackedBatches:
        return self

    def __next__(self) -> PackedBatch:
        taken = 0

        def documents() -> Iterator[Document]:
            nonlocal taken
            while taken < 100 * len(self._clips):
                document = self.document(self._next + taken)
                taken += 1
                if len(document.ids) <= self._length:
                    yield document
                else:
                    self._count_long()

        batch, packed = pack(documents(), self._rows, self._length)
        if not packed:
            raise UserError(
                f"every sequence is longer than data.length={self._length}; raise it, or lower "
                "data.max_seconds"
            )
        self._next += taken - 1  # the last one fitted nowhere: it opens the next batch
        self._batches += 1
        return PackedBatch(
            *(getattr(batch, name)[self._mine] for name in ("ids", "segments", "positions")),
            predicted=batch.predicted[self._mine],
        )

    def _count_long(self) -> None:
        self._too_long += 1
        if self._too_long & (self._too_long - 1) == 0:  # at 1, 2, 4, ... times
            logger.warning(
                "%d sequences so far were longer than data.length=%d and were left out",
                self._too_long,
                self._length,
            )

    def state(self) -> dict:
        """Where the next batch begins."""
        return {"batches": self._batches, "sequence": self._next}

    def restore(self, position: dict) -> None:
        """Goes on from a `state`."""
        self._batches, self._next = position["batches"], position["sequence"]

    def close(self) -> None:
        """Nothing is held."""

    def __enter__(self) -> PackedBatches:
        return self

    def __exit__(self, *_) -> None:
        self.close()


def held_out(documents: Sequence[Document], rows: int, length: int) -> list[PackedBatch]:
    """All sequences that fit a row, in as few batches as first-fit makes."""
    waiting = [d for d in documents if len(d.ids) <= length]
    found = []
    while waiting:
        batch, packed = pack(iter(waiting), rows, length)
        found.append(batch)
        waiting = waiting[packed:]
    return found
