"""The corpus engine of one machine: worker processes, each with a codec and a shard at a time.

A worker that dies gives its shard to another. The record that it was opening is noted; one at
which two workers died is left out, so that no file can stop a corpus.
"""

from __future__ import annotations

import collections
import dataclasses
import glob
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

from llmcodec_jax.corpus import plan as planning
from llmcodec_jax.corpus import shard
from llmcodec_jax.corpus.plan import Task
from llmcodec_jax.corpus.shard import Clip, Part
from llmcodec_jax.errors import UserError
from llmcodec_jax.ops.cores import available, limit_to

DEATHS = 2  # of workers at one record, before it is left out
MOST = 8  # workers by default: each holds the codec


class WorkerError(UserError):
    """Workers die without a record to blame."""


@dataclasses.dataclass
class _Worker:
    process: Any
    pipe: Any
    shard: int | None = None
    reading: int | None = None  # the record it last said it opens


def run(task: Task, shards: list[int], workers: int | None) -> Iterator[Part]:
    """Makes `shards`; see `tokenise.Engine`. Raises UserErrors of the workers."""
    gpus = len(glob.glob("/dev/nvidia[0-9]*"))
    cores = available()
    count = min(workers or gpus or min(len(cores), MOST), len(shards))
    waiting = collections.deque(shards)
    died: collections.Counter[int] = collections.Counter()  # workers, by record
    blameless = 0
    pool: dict[int, _Worker] = {}
    try:
        while waiting or any(worker.shard is not None for worker in pool.values()):
            for slot in range(count):
                if slot not in pool and waiting:
                    pool[slot] = _start(task, slot, cores[slot::count], gpus)
                worker = pool.get(slot)
                if worker and worker.shard is None and waiting:
                    worker.shard, worker.reading = waiting.popleft(), None
                    worker.pipe.send((worker.shard, sorted(r for r in died if died[r] >= DEATHS)))
            for slot, message in _listen(pool):
                worker = pool[slot]
                match message:
                    case ("reading", index):
                        worker.reading = index
                    case ("made", part):
                        worker.shard = None
                        yield part
                    case ("failed", error):
                        raise error
                    case None:
                        del pool[slot]
                        blameless += _note_death(worker, waiting, died)
                        if blameless > 3 * count:
                            raise WorkerError(
                                f"{blameless} workers ended without a record to blame, the last "
                                f"with status {worker.process.exitcode}: is the memory enough for "
                                f"{count} of them? --workers says how many"
                            )
    finally:
        for worker in pool.values():
            worker.process.kill()
            worker.process.join()


def _note_death(worker: _Worker, waiting: collections.deque, died: collections.Counter) -> int:
    """Gives the shard back -> 1 if no record is to blame."""
    worker.process.join()
    if worker.shard is not None:
        waiting.appendleft(worker.shard)
    if worker.reading is None:
        return 1
    died[worker.reading] += 1
    return 0


def _listen(pool: dict[int, _Worker]) -> Iterator[tuple[int, Any]]:
    """(slot, message) of every worker that has something to say; None of one that has died."""
    pipes = {worker.pipe: slot for slot, worker in pool.items()}
    for pipe in multiprocessing.connection.wait(list(pipes)):
        try:
            yield pipes[pipe], pipe.recv()
        except (EOFError, ConnectionResetError):
            yield pipes[pipe], None


def _start(task: Task, slot: int, cores: list[int], gpus: int) -> _Worker:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(
        target=_work, args=(task, theirs, cores, slot % gpus if gpus else None), daemon=True
    )
    process.start()
    theirs.close()
    return _Worker(process, ours)


def _work(task: Task, pipe, cores: list[int], gpu: int | None) -> None:
    """A worker process: makes the shards that it is told to, until its parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent's to answer
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    limit_to(cores, gpu)
    try:
        maker = Maker(task)
        while True:
            shard, left_out = pipe.recv()
            pipe.send(("made", maker.make(shard, left_out, lambda i: pipe.send(("reading", i)))))
    except UserError as error:
        pipe.send(("failed", error))
    except (EOFError, BrokenPipeError):
        pass


class Maker:
    """A codec and a source, opened once in a process that makes shards."""

    def __init__(self, task: Task):
        import llmcodec_jax
        from llmcodec_jax.data.cache import keep_compilations

        self.task = task
        self.source = planning.open_planned(task.plan)
        keep_compilations(min_seconds=0.1)
        self.codec = llmcodec_jax.load_codec(
            task.codec, dtype=task.dtype, batch_size=task.batch_size
        )
        if self.codec.digest != task.plan.codec:
            raise UserError(f"{task.codec}: has changed since the work began")

    def make(self, number: int, left_out: list[int], told) -> Part:
        """Reads, codes and writes one shard."""
        task = self.task
        indices = [i for i in task.plan.indices(number) if i not in left_out]
        clips = shard.read_clips(self.source, indices, task.plan.sample_rate, told)

        def all_clips() -> Iterator[Clip]:
            yield from clips
            for index in set(left_out) & set(task.plan.indices(number)):
                name = self.source.name(index)
                reason = f"{name}: {DEATHS} processes ended while reading it"
                yield Clip(index, name, failure=reason)

        return shard.make_shard(
            self.codec, self.source, task.output, task.plan, number, all_clips()
        )
