"""What the language model reads of a codec: its levels of codes as one sequence of positions.

    first   the first level alone (of Mimi and SpeechTokenizer the semantic one)
    flat    every level, one position each, frame by frame; code i of level q is `<CODEC_{q V + i}>`
    sum     every level, one position a frame: the sum of their embeddings in, a head a level out

With one level all three are the same. Everything behind sees a single stream; where a level's
codes compete, only those of that level do.

Shapes: B clips, T frames, L levels that are read, P positions of a frame, V codes of a level,
H language-model width.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from llmcodec_jax.errors import UsageError
from llmcodec_jax.types import CodecOutput

READS = ("first", "flat", "sum")


def check_reads(name: str, where: str) -> None:
    """Raises UsageError unless `name` is one of READS."""
    if name not in READS:
        raise UsageError(f"{where} is one of {', '.join(READS)}; not {name!r}")


@dataclasses.dataclass(frozen=True)
class Reading:
    """How levels become positions."""

    levels: int = 1  # L
    places: int = 1  # P: L where each level has a position of its own, else 1

    def select(self, output: CodecOutput) -> CodecOutput:
        """The levels that are read: codes [B, T, L], query [B, T, L, d]."""
        codes = output.codes if output.codes.ndim == 3 else output.codes[..., None]
        return dataclasses.replace(
            output, codes=codes[..., : self.levels], query=output.query[:, :, : self.levels]
        )

    def positions(self, frames: jax.Array) -> jax.Array:
        """Numbers of frames -> numbers of positions."""
        return frames * self.places

    def targets(self, frames: jax.Array, horizon: int) -> jax.Array:
        """How many codes are the `horizon`-th after what was read, in clips of so many frames."""
        per_position = self.levels // self.places
        return jnp.maximum(self.positions(frames) - (horizon - 1), 0) * per_position


def reading(reads: str, levels: int) -> Reading:
    """The Reading that one of READS means for a codec of so many levels."""
    check_reads(reads, "lm.reads")
    read = 1 if reads == "first" else levels
    return Reading(levels=read, places=read if reads == "flat" else 1)
