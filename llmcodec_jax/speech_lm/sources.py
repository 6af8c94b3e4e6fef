"""Sources of a speech LM by name: audio, token tables, dialogues."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

from llmcodec_jax.data.cache import cache_dir
from llmcodec_jax.data.sources import open_source
from llmcodec_jax.speech_lm import corpus, dialogues, hub_tokens
from llmcodec_jax.speech_lm.corpus import Clip


def read(
    spec: str,
    codec,
    levels: int,
    cache: str | Path | None = None,
    speeds: Sequence[float] = (),
) -> list[Clip]:
    """A source of audio, "tokens:PATH" or "dialogues:FILE" -> clips of the first `levels` levels.

    `codec` is an `inference.Codec`; `speeds`: at which audio is coded beside 1. Raises UsageError,
    AudioError or CorpusError; single clips that cannot be used are counted and named in the log.
    """
    kind, _, path = spec.partition(":")
    if kind == "tokens" and (found := hub_tokens.find(path)):
        return list(hub_tokens.read(found, codec, levels))
    if kind == "tokens":
        return list(corpus.read_table(path, codec, levels))
    if kind == "dialogues":
        return list(dialogues.read(Path(path).expanduser(), codec, levels, cache_dir(cache)))
    source = open_source(spec, cache=cache)
    read_at = functools.partial(corpus.read_coded, source, codec, levels, cache_dir(cache))
    return [clip for speed in (1.0, *speeds) for clip in read_at(speed)]
