"""What a chat LM answers in text, before it speaks or instead (SpeechGPT, arXiv 2305.11000).

The assistant's turn is `[<text> text] [<audio> codes] <end>`. Here all of it up to `<audio>` or
`<end>` is written: marks and text tokens, whose rows follow the codes'. Speech then goes on from
there (`speaker`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from llmcodec_jax.lm import decoder, generate
from llmcodec_jax.lm.sampling import Sampling
from llmcodec_jax.speech_lm.method import embed
from llmcodec_jax.speech_lm.template import MARKS, Vocabulary
from llmcodec_jax.speech_lm.writing import padded

LONGEST = 256
"""Tokens of a reply at most, marks included; one that is cut there is not spoken."""
OWN_KEYS = 2**31 - 1
"""Folded into an item's key: text is drawn apart from the speech that follows it."""


class Reply(NamedTuple):
    """One turn's beginning."""

    ids: np.ndarray  # int32 [n], as they stand in the sequence
    text: str
    speaks: bool  # whether `<audio>` came
    passes: int  # of the decoder


class Replies:
    """Writes the text of the assistant's turns."""

    def __init__(
        self, speech: generate.Writer, vocabulary: Vocabulary, spell: Callable[[Sequence[int]], str]
    ):
        """`speech`: the LM as it writes codes; `spell`: text tokens -> text."""
        self._speech, self._words, self._spell = speech, vocabulary, spell
        self._writer = text_writer(speech, vocabulary)

    def write(
        self, prompts: Sequence[np.ndarray], keys: jax.Array, sampling: Sampling
    ) -> list[Reply]:
        """Prompts int32 [S], each up to `<assistant>`, in as many rows as there are keys."""
        ids, lengths = padded(prompts, len(keys))
        embeds = embed(self._speech.params, self._speech.embedding, jnp.asarray(ids))
        keys = jax.vmap(jax.random.fold_in, (0, None))(keys, OWN_KEYS)
        progress = generate.start(self._writer, embeds, lengths, keys, sampling, LONGEST)
        stops = jnp.array([MARKS.index("<audio>"), MARKS.index("<end>")])
        limits = jnp.where(jnp.arange(len(keys)) < len(prompts), LONGEST, 1)
        progress = generate.extend(self._writer, progress, sampling, LONGEST, stops, limits)
        written, counts, passes = jax.device_get((progress.ids, progress.count, progress.passes))
        return [
            self._read(written[row, : counts[row]], int(passes[row])) for row in range(len(prompts))
        ]

    def _read(self, ids: np.ndarray, passes: int) -> Reply:
        text = self._spell((ids[ids >= len(MARKS)] - len(MARKS)).tolist())
        speaks = bool(ids[-1] == MARKS.index("<audio>"))
        return Reply((ids + self._words.codes).astype(np.int32), text, speaks, passes)


def text_writer(speech: generate.Writer, words: Vocabulary) -> generate.Writer:
    """The same LM over marks and text tokens: a turn opens with <text> or <audio>."""
    table = decoder.embed_text(speech.params, slice(None))
    output = decoder.head_rows(speech.config, speech.params)
    embedding = jnp.concatenate([speech.embedding[words.codes :], table])
    head = jnp.concatenate([speech.heads[0, words.codes :], output.astype(speech.heads.dtype)])
    allowed = np.zeros((LONGEST, len(embedding)), bool)
    opening, going_on = ("<text>", "<audio>"), ("<audio>", "<end>")
    allowed[0, [MARKS.index(mark) for mark in opening]] = True
    allowed[1:, [MARKS.index(mark) for mark in going_on]] = True
    allowed[1:, len(MARKS) : len(MARKS) + words.text] = True
    return speech.replace(embedding=embedding, heads=head[None], allowed=jnp.asarray(allowed))
