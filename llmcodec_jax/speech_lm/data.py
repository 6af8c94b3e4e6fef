"""From clips to the sequences of a run's task."""

from __future__ import annotations

import collections
import functools
import logging
from collections.abc import Callable, Sequence

import numpy as np

from llmcodec_jax.data.records import stable_hash
from llmcodec_jax.errors import UsageError
from llmcodec_jax.speech_lm import template
from llmcodec_jax.speech_lm.config import SpeechConfig, SpeechData
from llmcodec_jax.speech_lm.corpus import Clip
from llmcodec_jax.speech_lm.template import Document, Turn, Vocabulary

logger = logging.getLogger(__name__)

ReadText = Callable[[str], Sequence[int]]


def bytes_of(text: str) -> list[int]:
    """How an LM from scratch reads text: UTF-8 bytes."""
    return list(text.encode())


def text_of(ids: Sequence[int]) -> str:
    """Bytes that an LM wrote -> text; what is no UTF-8 becomes a replacement character."""
    return bytes(ids).decode(errors="replace")


def split(clips: Sequence[Clip], data: SpeechData) -> tuple[list[Clip], list[Clip]]:
    """-> (training, held-out) clips, by a hash of name, voice or text that never changes.

    A clip at another speed trains with its original, or neither does; none is held out.
    """
    if data.split_by not in ("name", "speaker", "text"):
        raise UsageError("data.split_by is 'name', 'speaker' or 'text'")
    keys = [getattr(clip, data.split_by) or clip.name for clip in clips]
    hashes = [stable_hash(key, 64) for key in keys]
    bound = int(data.eval_fraction * 2**64)
    held = [i for i, h in enumerate(hashes) if h < bound]
    originals = [i for i in held if clips[i].speed == 1]
    kept = sorted(originals, key=lambda i: (hashes[i], clips[i].name))[: data.eval_max]
    # A clip past `eval_max` is no one's: its voice or its text is held out.
    out = set(kept if data.split_by == "name" else held)
    names = {clips[i].name for i in kept}
    out |= {i for i in held if clips[i].speed != 1 and clips[i].name in names}
    return [c for i, c in enumerate(clips) if i not in out], [clips[i] for i in sorted(kept)]


def usable(clips: Sequence[Clip], config: SpeechConfig, frame_tokens: float) -> list[Clip]:
    """Clips that the task can use, the others counted; `frame_tokens`: tokens a second."""
    data, counts, kept = config.data, collections.Counter(), []
    for clip in clips:
        seconds = len(clip.codes) / frame_tokens
        if clip.turns and config.task != "chat":
            counts["a dialogue, which only the chat task reads"] += 1
        elif seconds < data.min_seconds and not clip.turns:
            counts["shorter than data.min_seconds"] += 1
        elif config.task != "continuation" and seconds > data.max_seconds:
            counts["longer than data.max_seconds"] += 1
        elif config.task != "continuation" and not clip.text and not clip.turns:
            counts["without text"] += 1
        else:
            kept.append(clip)
    for reason, count in counts.items():
        logger.info("%d of %d clips left out: %s", count, len(clips), reason)
    return kept


class Sequences:
    """Makes a task's sequence of a clip; the same clip and generator give the same one."""

    def __init__(
        self,
        config: SpeechConfig,
        vocabulary: Vocabulary,
        tokens_per_second: float,
        read_text: ReadText,
        clips: Sequence[Clip],
    ):
        """`clips`: among which a voice prompt is looked for."""
        self._task, self._data, self._vocabulary = config.task, config.data, vocabulary
        self._read_text = read_text
        self._longest = self._whole_frames(config.data.max_seconds * tokens_per_second)
        self._voice = self._whole_frames(config.data.voice_seconds * tokens_per_second)
        self._by_speaker = collections.defaultdict(list)
        for clip in clips:
            if clip.speaker:
                self._by_speaker[clip.speaker, clip.speed].append(clip)

    def _whole_frames(self, tokens: float) -> int:
        return max(round(tokens) // self._vocabulary.levels, 1) * self._vocabulary.levels

    def __call__(self, clip: Clip, generator: np.random.Generator) -> Document:
        if self._task == "continuation":
            return self._continuation(clip, generator)
        if self._task == "tts":
            voice = self.voice(clip, generator)
            return template.tts(self._vocabulary, self.text(clip.text), clip.codes, voice)
        return self._chat(clip, generator)

    def text(self, text: str) -> Sequence[int]:
        """As the LM reads it."""
        return self._read_text(text.lower() if self._data.lowercase else text)

    def voice(self, clip: Clip, generator: np.random.Generator) -> np.ndarray | None:
        """A few seconds of another clip of the same voice, or None."""
        others = self._by_speaker.get((clip.speaker, clip.speed), ())
        others = [c for c in others if c.name != clip.name]
        if not others or generator.random() >= self._data.voice_share:
            return None
        return self._crop(others[generator.integers(len(others))].codes, self._voice, generator)

    def _crop(self, codes: np.ndarray, size: int, generator: np.random.Generator) -> np.ndarray:
        room = max(len(codes) - size, 0) // self._vocabulary.levels
        start = int(generator.integers(room + 1)) * self._vocabulary.levels
        return codes[start : start + size]

    def _continuation(self, clip: Clip, generator: np.random.Generator) -> Document:
        if len(clip.codes) <= self._longest:
            return template.continuation(self._vocabulary, clip.codes, ends=True)
        codes = self._crop(clip.codes, self._longest, generator)
        return template.continuation(self._vocabulary, codes, ends=False)

    def _chat(self, clip: Clip, generator: np.random.Generator) -> Document:
        """A dialogue as it is; of a clip heard speech is written down, or written text is said."""
        if clip.turns:
            said = [Turn(turn.role, self.text(turn.text), turn.codes) for turn in clip.turns]
            return template.chat(self._vocabulary, said)
        text = self.text(clip.text)
        if generator.random() < 0.5:
            turns = [Turn("user", codes=clip.codes), Turn("assistant", text)]
        else:
            turns = [Turn("user", text), Turn("assistant", codes=clip.codes)]
        return template.chat(self._vocabulary, turns)


def held_out_documents(make: Sequences, clips: Sequence[Clip]) -> list[Document]:
    """Each held-out clip's sequence, always the same."""
    seeds = (np.random.default_rng([2, stable_hash(clip.name)]) for clip in clips)
    return [make(clip, generator) for clip, generator in zip(clips, seeds, strict=True)]


def reader(tokenizer) -> ReadText:
    """How a run's LM reads text: its tokenizer's, or bytes where it has none."""
    return bytes_of if tokenizer is None else functools.partial(_encode, tokenizer)


def _encode(tokenizer, text: str) -> list[int]:
    return tokenizer.encode(text)


def speller(tokenizer) -> Callable[[Sequence[int]], str]:
    """The way back from what `reader` gives."""
    return text_of if tokenizer is None else tokenizer.decode
