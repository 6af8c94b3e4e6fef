"""Memory of the LM's side of a step for streams of several levels: the compiler's own numbers.

    python -m llmcodec_jax.benchmarks reads [--clips 10 --seconds 4 --width 2560]

Bridge, future-token loss and target gradient with all their gradients, as one compiled program for
each codec and each of `lm.reads`; the language model between them is left out. Nothing is run.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
from tqdm import tqdm

from llmcodec_jax.codec.search import Logits
from llmcodec_jax.lm.config import small_config
from llmcodec_jax.lm.reading import READS
from llmcodec_jax.losses.ftp import ftp_loss
from llmcodec_jax.training.config import default_codec, default_config, group, read_config
from llmcodec_jax.training.language import Branch, bridge_levels, target_gradient
from llmcodec_jax.training.method import Method
from llmcodec_jax.types import CodecOutput

CODECS = {"auv": {}, "mimi": {"levels": 8}, "encodec": {"levels": 8}}
"""Family -> fields of its module; the others are its defaults."""
DIM = 8  # channels of the searches: of no weight beside the LM's


class Row(NamedTuple):
    """One line of the table, sizes in MiB."""

    codec: str
    reads: str
    positions: float  # the LM reads a second
    temporary: float  # beyond inputs and outputs
    states: float  # one array [B, positions, H], float32
    logits: float  # what logits of every position that predicts, level and head would take


def method_of(family: str, reads: str, horizons: int) -> Method:
    """The method of a run on that codec."""
    config = default_config(family)
    config.codec = ConfigDict(default_codec(family) | CODECS[family])
    config.lm.update(reads=reads, horizons=horizons)
    config.bridge.target_gradient = 1.0
    config.optim.groups = ConfigDict({"discriminators": group(".*", "")})
    return Method.from_config(read_config(config), small_config(1, 64, 1))


def measure(family: str, reads: str, clips: int, seconds: float, width: int, horizons: int) -> Row:
    """Compiles the program of one codec and reading."""
    method = method_of(family, reads, horizons)
    codec, read = method.codec, method.reading
    frames = round(seconds * codec.sample_rate / codec.hop)
    levels, size = read.levels, codec.codebook_size
    key = jax.random.key(0)

    def loss(logits, embedding, heads, codes, mask, share):
        query = jnp.zeros((clips, frames, levels, DIM))
        output = CodecOutput(query, codes, query, query, jnp.zeros(clips), mask)
        params = {"audio_embedding": embedding, "ftp_heads": heads}
        branch = Branch(params, {}, {}, output, None, None, share, key, 1.0, 0.5)  # ty: ignore
        bridged = bridge_levels(method, branch, logits, key, "gumbel")
        losses = ftp_loss(bridged.embeds, heads, codes, mask)
        extra = target_gradient(method, branch, logits, bridged.embeds)
        losses = sum(losses[f"ftp/{k}"][0] for k in range(1, horizons + 1))
        return losses + extra.sum() + jnp.sum(bridged.nll)

    def shape(*sizes, dtype=jnp.float32):
        return jax.ShapeDtypeStruct(sizes, dtype)

    shapes = (
        Logits(shape(levels, clips, frames, DIM), shape(levels, size, DIM), shape(levels, size)),
        shape(levels * size, width),
        shape(horizons, levels * size, width),
        shape(clips, frames, levels, dtype=jnp.int32),
        shape(clips, frames, dtype=bool),
        shape(levels, size),
    )
    program = jax.jit(jax.grad(loss, (0, 1, 2))).lower(*shapes).compile()
    mebi = 2.0**20
    positions = clips * frames * read.places
    return Row(
        f"{family} {codec.levels} x {size:,}",
        reads,
        codec.sample_rate / codec.hop * read.places,
        program.memory_analysis().temp_size_in_bytes / mebi,
        positions * width * 4 / mebi,
        clips * frames * levels * size * horizons * 4 / mebi,
    )


def rows(**sizes) -> Iterator[Row]:
    """One for each codec and reading; a codec of one level has one."""
    for family, fields in tqdm(CODECS.items(), unit="codec"):
        for reads in READS if fields else READS[:1]:
            yield measure(family, reads, **sizes)


def main(argv: list[str] | None = None) -> int:
    """Command line: prints one Markdown table."""
    parser = argparse.ArgumentParser(
        prog="python -m llmcodec_jax.benchmarks reads", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--clips", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--width", type=int, default=2560, help="of the language model")
    parser.add_argument("--horizons", type=int, default=5)
    options = vars(parser.parse_args(argv))
    found = list(rows(**options))
    print(", ".join(f"{name} {value}" for name, value in options.items()))
    print("| codec | reads | positions/s | temporary MiB | one [B, T P, H] | all logits |")
    print("|---|---|---|---|---|---|")
    for row in found:
        sizes = (f"{x:,.0f}" for x in row[3:])
        print(f"| {row.codec} | `{row.reads}` | {row.positions:g} | {' | '.join(sizes)} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
