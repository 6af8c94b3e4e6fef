"""What a tokenised corpus consists of: its source, its codec, and which clip is in which shard.

A shard holds the same clips whoever makes it, and is there whole or not at all: so work may be
done in any order, twice, by any number of machines, and be taken up again.
"""

from __future__ import annotations

import dataclasses
import json
from typing import NamedTuple

from llmcodec_jax.data import stores
from llmcodec_jax.data.records import Source, stable_hash
from llmcodec_jax.data.sources import KINDS, open_source
from llmcodec_jax.data.token_table import SUFFIX
from llmcodec_jax.errors import UsageError

MANIFEST = "manifest.json"
FORMAT = 1


@dataclasses.dataclass(frozen=True)
class Plan:
    """What decides the content of every shard: an output folder holds shards of one plan only."""

    source: str  # as `open_source` takes it
    records: int
    names: str  # digest of all names, in order
    clips: int  # a shard
    codec: str  # digest
    architecture: str
    sample_rate: int  # Hz
    hop: int
    codebook_size: int
    levels: int

    @property
    def shards(self) -> int:
        """Number of shards."""
        return -(-self.records // self.clips)

    def indices(self, shard: int) -> range:
        """Records of a shard."""
        return range(shard * self.clips, min((shard + 1) * self.clips, self.records))

    def shard_name(self, shard: int) -> str:
        """Its file in the output folder."""
        return f"tokens-{shard:05d}-of-{self.shards:05d}{SUFFIX}"

    def failures_name(self, shard: int) -> str:
        """Where the shard's clips that could not be coded are told."""
        return f"failures/{shard:05d}-of-{self.shards:05d}.jsonl"


class Task(NamedTuple):
    """What every worker is told."""

    plan: Plan
    output: str
    codec: str  # as `load_codec` takes it
    dtype: str
    batch_size: int | None


def make_plan(spec: str, source: Source, codec, clips: int) -> Plan:
    """The plan of coding `source`, opened from `spec`, with an `inference.Codec`."""
    digest = stable_hash("\n".join(source.name(i) for i in range(len(source))), 64)
    about = codec.describe()
    fields = ("architecture", "sample_rate", "hop", "codebook_size", "levels")
    return Plan(
        source=spec,
        records=len(source),
        names=f"{digest:016x}",
        clips=clips,
        codec=about["digest"],
        **{name: about[name] for name in fields},
    )


def settle(output: str, plan: Plan) -> list[int]:
    """Writes the manifest, or compares it with the one there -> the shards that are missing.

    Raises UsageError where `output` holds shards of another plan.
    """
    file = stores.join(output, MANIFEST)
    stated = {"format": FORMAT, "shards": plan.shards, **dataclasses.asdict(plan)}
    present = stores.names(output)
    if MANIFEST in present:
        try:
            found = json.loads(stores.read(file))
        except ValueError as error:
            raise UsageError(f"{file}: is damaged ({error}); choose another folder") from error
        differing = [
            f"{name} is {found.get(name)!r} there and {value!r} now"
            for name, value in stated.items()
            if found.get(name) != value
        ]
        if differing:
            raise UsageError(f"{file}: another corpus ({'; '.join(differing)}); choose another")
    elif any(name.endswith(SUFFIX) for name in present):
        raise UsageError(f"{output}: holds {SUFFIX} files but no {MANIFEST}; choose another folder")
    else:
        stores.write(file, (json.dumps(stated, indent=2) + "\n").encode())
    return [shard for shard in range(plan.shards) if plan.shard_name(shard) not in present]


def spec_of(given: str) -> str:
    """What --input names, as `open_source` takes it: KIND:..., or the kind is seen from the files.

    Raises FileNotFoundError for a path that is not there.
    """
    if given.partition(":")[0] in KINDS:
        return given
    if given.endswith(".tar"):
        return f"webdataset:{given}"
    if given.endswith(SUFFIX):
        return f"parquet:{given}"
    for suffix, kind in (
        (".trans.txt", "librispeech"),
        (".tar", "webdataset"),
        (SUFFIX, "parquet"),
    ):
        if stores.expand(given, suffix):
            return f"{kind}:{given}"
    return f"folder:{given}"


def open_planned(plan: Plan) -> Source:
    """The plan's source, for a process that works on it. Raises UsageError if it has changed."""
    source = open_source(plan.source)
    if len(source) != plan.records:
        raise UsageError(
            f"{plan.source}: has {len(source)} records, {plan.records} when the work began"
        )
    return source
