"""`encode --engine local|ray`: a corpus of any kind -> one token table, by many workers."""

from __future__ import annotations

import argparse
import logging

from llmcodec_jax.codec import jobs
from llmcodec_jax.corpus import plan as planning
from llmcodec_jax.corpus import shard, summary
from llmcodec_jax.corpus.plan import Task
from llmcodec_jax.corpus.shard import Engine
from llmcodec_jax.data import stores
from llmcodec_jax.data.sources import open_source

logger = logging.getLogger(__name__)


def open_engine(name: str, address: str | None) -> Engine:
    """The engine of a name. Raises UserError where Ray is not installed."""
    if name == "local":
        from llmcodec_jax.corpus import local

        return local.run
    from llmcodec_jax.corpus import ray_engine

    return ray_engine.open_engine(address)


def run(args: argparse.Namespace) -> int:
    """Makes the shards that are missing -> exit status."""
    spec = planning.spec_of(args.input)
    if not stores.is_remote(args.input) and ":" not in args.input:
        jobs.Path(args.input).stat()  # a path that is not there is told as such
    source = open_source(spec)
    engine = open_engine(args.engine, args.address)  # Ray forks: before JAX has threads
    codec = jobs.open_codec(args)
    output = args.output.rstrip("/")
    if not stores.is_remote(output):
        output = str(jobs.Path(output).expanduser().resolve())
    plan = planning.make_plan(spec, source, codec, args.clips_per_shard)
    del codec, source
    missing = planning.settle(output, plan)
    totals = summary.Totals(plan)
    if args.overwrite:
        missing = list(range(plan.shards))
    for number in sorted(set(range(plan.shards)) - set(missing)):
        part = shard.read_part(output, plan, number)
        if part is None:
            logger.warning("%s: damaged, made again", plan.shard_name(number))
            missing.append(number)
        else:
            totals.add(part)
    skipped = totals.shards
    if missing:
        task = Task(plan, output, args.codec, args.dtype, args.batch_size)
        summary.follow(engine(task, sorted(missing), args.workers), plan, totals)
    return summary.finish(output, plan, totals, skipped)
