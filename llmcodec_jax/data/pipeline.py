"""The loader: shuffled, sharded, resumable batches whose whole state is one number.

Batch `n` does not depend on what came before it (`batches.Batches`), so a run may resume with
another number of workers or processes and meet the same clips.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import threading
import time
from collections.abc import Iterable, Iterator, Sequence

import grain
import numpy as np
from absl import flags

from llmcodec_jax.data.batches import Batches, DataError, Spoken, fixed_rows
from llmcodec_jax.data.examples import ExampleMaker
from llmcodec_jax.data.records import stable_hash
from llmcodec_jax.data.sources import Part
from llmcodec_jax.errors import UsageError
from llmcodec_jax.types import Batch

logger = logging.getLogger(__name__)

_JUDGED_AFTER = 64  # attempts before "most of the data is bad" can be said


def _begin_worker(_index: int, _count: int) -> None:
    """Makes a loader process live exactly as long as the one it works for.

    Signals that go to the whole process group (Ctrl-C, a scheduler's SIGTERM) are the parent's
    to answer: it may still want batches. A parent that was killed cannot tell its workers.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()


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
                ),
                _begin_worker,
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
        settings += ["by shard"] if self._batches.by_shard else []
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


class HeldOut(list[Batch]):
    """Held-out batches, and what is said in their clips, in the order of the global batches."""

    def __init__(self, batches: Iterable[Batch] = (), spoken: Sequence[Spoken] = ()):
        super().__init__(batches)
        self.spoken = list(spoken)


def eval_batches(
    parts: Sequence[Part],
    maker: ExampleMaker,
    *,
    count: int,
    batch_size: int,
    seed: int = 0,
    process_index: int = 0,
    process_count: int = 1,
) -> HeldOut:
    """A fixed list of numpy batches of up to `count` different clips, held out by their parts.

    Parts of a mixture share `count` by weight. `batch_size` is global; the last batch is filled up
    with rows of wav_length 0. Unusable records are left out and logged. Each process gets its own
    rows. Raises DataError where no clip is usable.
    """
    if batch_size % process_count:
        raise UsageError(f"{process_count} processes cannot share a batch of {batch_size}")
    found = [row for part in parts for row in fixed_rows(part, parts, maker, count, seed)]
    rows = [row for row, _ in found]
    if not rows:
        names = ", ".join(part.source.label for part in parts)
        raise DataError(f"{names}: no usable clip to hold out")
    local = batch_size // process_count
    batches = HeldOut(spoken=[spoken for _, spoken in found])
    for first in range(0, len(rows), batch_size):
        batch = rows[first : first + batch_size]
        batch += [maker.blank()] * (batch_size - len(batch))
        mine = batch[process_index * local : (process_index + 1) * local]
        batches.append(Batch(**{key: np.stack([row[key] for row in mine]) for key in mine[0]}))
    return batches
