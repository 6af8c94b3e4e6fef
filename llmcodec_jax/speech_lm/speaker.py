"""A trained speech LM with its codec: text, voices and clips in, speech out."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from llmcodec_jax.codec import inference, tokens
from llmcodec_jax.data.embedded import lm_path
from llmcodec_jax.errors import UsageError, UserError
from llmcodec_jax.lm import generate, lora
from llmcodec_jax.lm.config import LMConfig, RopeScaling
from llmcodec_jax.lm.load import load_lm
from llmcodec_jax.lm.sampling import Sampling
from llmcodec_jax.speech_lm import data, template
from llmcodec_jax.speech_lm.reply import Replies, Reply
from llmcodec_jax.speech_lm.run import ABOUT_NAME
from llmcodec_jax.speech_lm.template import Turn, Vocabulary
from llmcodec_jax.speech_lm.writing import Frames, Turns, last_frames, padded
from llmcodec_jax.training.checkpoint import CONFIG_NAME, Checkpoints

logger = logging.getLogger(__name__)

PASSES = 32  # of the decoder between two looks at who has stopped


class Request(NamedTuple):
    """What to say, to answer, or to go on from: one of these. Audio is float32 [N], at the
    codec's rate."""

    text: str | None = None  # said; by a chat LM answered
    voice: np.ndarray | None = None  # whose voice says the text
    start: np.ndarray | None = None  # what is continued
    seed: int = 0
    question: np.ndarray | None = None  # what a chat LM hears and answers


class Written(NamedTuple):
    """What the LM wrote, not yet sound."""

    ids: np.ndarray  # int32 [n], codes and <end>
    passes: int  # of the decoder
    text: str = ""  # of a chat LM, before it speaks or instead


class Spoken(NamedTuple):
    """What came out."""

    wav: np.ndarray  # float32 [N] at the codec's rate; a continuation's prompt is part of it;
    # empty where a chat LM answered in text alone
    codes: np.ndarray  # int32 [T] or [T, Q], without the prompt's
    passes: int  # of the decoder
    ended: bool  # by the LM itself, not by the limit
    text: str = ""  # of a chat LM


class SpeechLM:
    """Make one with `load`; `speak` turns requests into speech."""

    def __init__(
        self,
        writer: generate.Writer,
        vocabulary: Vocabulary,
        task: str,
        read_text: Callable[[str], Sequence[int]],
        codec,
        spell: Callable[[Sequence[int]], str] = data.text_of,
    ):
        """`read_text`: text -> ids, as the run read them; `spell`: ids -> text."""
        self.writer, self.vocabulary, self.task, self.codec = writer, vocabulary, task, codec
        self._read_text = read_text
        self._replies = Replies(writer, vocabulary, spell) if task == "chat" else None

    def prompt(self, request: Request) -> np.ndarray:
        """All that is read before the LM writes, ids int32 [S]. Raises UsageError."""
        vocabulary = self.vocabulary
        given = (request.text, request.start, request.question)
        if sum(part is not None for part in given) != 1:
            raise UsageError("give a text, a clip to continue or a question to answer, one of them")
        if request.question is not None and self.task != "chat":
            raise UsageError(f"this speech LM was trained for {self.task}: it answers nothing")
        if request.start is not None:
            if self.task != "continuation":
                raise UsageError(
                    f"this speech LM was trained for {self.task}: it continues nothing"
                )
            codes = self._codes(request.start)
            return template.continuation(vocabulary, codes, ends=False).ids
        if self.task == "continuation":
            raise UsageError("this speech LM was trained for continuation: it reads no text")
        text = () if request.text is None else self._read_text(request.text)
        if self.task == "tts":
            voice = None if request.voice is None else self._codes(request.voice)
            return template.tts_prompt(vocabulary, text, voice).done().ids
        if request.voice is not None:
            raise UsageError("a chat LM takes no voice prompt")
        heard = None if request.question is None else self._codes(request.question)
        asked = template.chat(vocabulary, [Turn("user", text, heard)]).ids
        return np.append(asked, vocabulary.mark("<assistant>")).astype(np.int32)

    def _codes(self, wav: np.ndarray) -> np.ndarray:
        codes = np.asarray(self.codec.encode(wav))
        codes = codes if codes.ndim == 1 else codes[:, : self.vocabulary.levels]
        return tokens.vocabulary_index(codes, self.vocabulary.size)

    def speak(
        self,
        requests: Sequence[Request],
        sampling: Sampling,
        *,
        max_seconds: float = 10.0,
        heads: int | None = None,
        batch_size: int = 8,
    ) -> Iterator[Spoken]:
        """Answers in the order of the requests, `batch_size` computed at once.

        heads: how many of the LM's heads write, 1 for one token a pass, by default all: what is
        written is distributed alike. The same request with the same seed gives the same speech in
        any company. Raises UserError for a request that ends before it begins.
        """
        for first in range(0, len(requests), batch_size):
            group = requests[first : first + batch_size]
            for request, done in zip(
                group, self.write(group, sampling, max_seconds, heads, batch_size), strict=True
            ):
                yield self.finish(request, done)

    def write(
        self,
        requests: Sequence[Request],
        sampling: Sampling,
        max_seconds: float = 10.0,
        heads: int | None = None,
        batch_size: int | None = None,
        prompts: Sequence[np.ndarray] | None = None,
    ) -> list[Written]:
        """One batch; a chat LM's text first. `prompts`: those of the requests, made before."""
        count, limit = batch_size or len(requests), self._limit(max_seconds)
        prompts = [self.prompt(r) for r in requests] if prompts is None else prompts
        keys = _keys(requests, count)
        replies = self._reply(prompts, keys, sampling)
        speaks = np.zeros(count, bool)
        speaks[: len(requests)] = [reply.speaks for reply in replies]
        if not speaks.any():
            return [Written(np.zeros(0, np.int32), r.passes, r.text) for r in replies]
        prompts = [np.concatenate([p, r.ids]) for p, r in zip(prompts, replies, strict=True)]
        way, progress = self._begin(prompts, requests, keys, sampling, limit, heads)
        limits = jnp.where(speaks, limit, 1)
        while not progress.stopped.all():
            progress = way.extend(progress, sampling, PASSES, limits)
        progress = jax.device_get(progress.replace(cache=None, keys=None))
        return [
            Written(
                way.read(progress, i) if reply.speaks else np.zeros(0, np.int32),
                reply.passes + int(progress.passes[i]) * reply.speaks,
                reply.text,
            )
            for i, reply in enumerate(replies)
        ]

    def stream(
        self, request: Request, sampling: Sampling, *, max_seconds: float = 10.0, frames: int = 4
    ) -> Iterator[np.ndarray]:
        """One request's audio float32 [n] as it is written, `frames` frames a time.

        For causal codecs. Raises UsageError for one that cannot stream, UserError for an answer in
        text alone.
        """
        stream = self.codec.stream(frames=frames, levels=self.vocabulary.levels)
        limit, end = self._limit(max_seconds), self.vocabulary.mark("<end>")
        prompt, keys = self.prompt(request), _keys([request], 1)
        reply = self._reply([prompt], keys, sampling)[0]
        if not reply.speaks:
            raise UserError(f"the LM answered in text alone: {reply.text}")
        prompt = np.concatenate([prompt, reply.ids])
        way, progress = self._begin([prompt], [request], keys, sampling, limit, None)
        limits, heard, levels = jnp.full(1, limit), 0, self.vocabulary.levels
        while True:
            ids = way.read(progress, 0)
            whole = len(ids) // levels * levels
            ids, heard = ids[heard:whole], whole
            ids = ids[ids != end]
            if len(ids):
                yield stream.decode(self._frames(ids))
            if progress.stopped[0]:
                break
            progress = way.extend(progress, sampling, way.passes(frames), limits)
        yield stream.flush_decoder()

    def _reply(self, prompts: Sequence[np.ndarray], keys, sampling: Sampling) -> list[Reply]:
        """What is answered in text; of an LM that only speaks, nothing."""
        if self._replies is not None:
            return self._replies.write(prompts, keys, sampling.check())
        return [Reply(p[:0], "", speaks=True, passes=0) for p in prompts]

    def _limit(self, seconds: float) -> int:
        """Frames."""
        return max(round(seconds * self.codec.frame_rate), 1)

    def _begin(
        self,
        prompts: Sequence[np.ndarray],
        requests: Sequence[Request],
        keys: jax.Array,
        sampling: Sampling,
        limit: int,
        heads: int | None,
    ):
        """Reads the prompts in as many rows as there are keys -> (way of writing, progress)."""
        words = self.vocabulary
        ids, lengths = padded(prompts, len(keys))
        before = np.stack([last_frames(None, words)] * len(keys))
        for row, request in enumerate(requests):
            if request.start is not None and words.delays[-1]:
                before[row] = last_frames(self._codes(request.start), words)
        writer = self.writer.replace(heads=self.writer.heads[:heads])
        way = (Frames if words.stacked else Turns)(writer, words, limit)
        return way, way.begin(ids, lengths, before, keys, sampling.check())

    def _frames(self, ids: np.ndarray) -> np.ndarray:
        """Indices of `<CODEC_i>` -> codes [T] or [T, Q]."""
        levels = self.vocabulary.levels
        if self.codec.levels == 1:
            return ids
        return ids.reshape(-1, levels) - np.arange(levels, dtype=np.int32) * self.vocabulary.size

    def finish(self, request: Request, written: Written) -> Spoken:
        """What `write` wrote, as speech. Raises UserError where that is nothing."""
        ids = written.ids
        ended = len(ids) > 0 and ids[-1] == self.vocabulary.mark("<end>")
        ids = ids[:-1] if ended else ids
        ids = ids[: len(ids) // self.vocabulary.levels * self.vocabulary.levels]
        if not len(ids):
            if written.text:
                return Spoken(np.zeros(0, np.float32), ids, written.passes, True, written.text)
            raise UserError(f"the LM ended at once (seed {request.seed}): try another seed")
        codes = self._frames(ids)
        start = request.start
        whole = (
            codes if start is None else np.concatenate([self._frames(self._codes(start)), codes])
        )
        wav = self.codec.decode(whole)
        return Spoken(wav, codes, written.passes, ended, written.text)


def _keys(requests: Sequence[Request], rows: int) -> jax.Array:
    """A random key for each row, by the request's seed."""
    seeds = [r.seed for r in requests] + [0] * (rows - len(requests))
    return jnp.stack([jax.random.key(seed) for seed in seeds])


def load(run: str | Path, codec: str | Path | None = None) -> SpeechLM:
    """A run folder of `speech_lm.train` -> SpeechLM.

    `codec`: by default the one that the run names; it must be the one whose codes were learned.
    Raises FileNotFoundError, UsageError, or CheckpointError.
    """
    run = Path(run)
    if not (run / ABOUT_NAME).is_file():
        raise FileNotFoundError(f"{run}: no {ABOUT_NAME} there; name a run of speech_lm.train")
    about = json.loads((run / ABOUT_NAME).read_text())
    config = json.loads((run / CONFIG_NAME).read_text())
    opened = inference.load(codec or about["codec"])
    wanted = about["codec_facts"]["digest"]
    if opened.digest != wanted:
        raise UsageError(
            f"{run} learned the codes of codec {wanted[:12]}, and {codec or about['codec']} is "
            f"{opened.digest[:12]}: name the right one by --codec"
        )
    names = ("embedding", "heads", "body", "lora")
    notes, params = Checkpoints.of_run(run).read_arrays(names)
    logger.info("%s: step %d", run, notes.step)
    params: Any = jax.tree.map(jnp.asarray, params)
    body, tokenizer = params.get("body"), None
    if config["lm"]["path"]:
        _, pretrained, tokenizer = load_lm(lm_path(config["lm"]["path"]), jnp.float32)
        if body is None:
            adapters = lora.LoRA(params["lora"], config["lm"]["alpha"])
            body = lora.merge(pretrained, adapters)
    vocabulary = Vocabulary(**about["vocabulary"])
    read_text = data.reader(tokenizer)
    lower = config["data"]["lowercase"]
    writer = generate.Writer(
        params=body,
        embedding=params["embedding"],
        heads=params["heads"],
        allowed=jnp.asarray(vocabulary.allowed()),
        lora=None,
        config=_architecture(about["lm"]),
    )
    read = (lambda text: read_text(text.lower())) if lower else read_text
    return SpeechLM(writer, vocabulary, about["task"], read, opened, data.speller(tokenizer))


def _architecture(values: dict[str, Any]) -> LMConfig:
    scaling = values.pop("rope_scaling")
    return LMConfig(**values, rope_scaling=RopeScaling(**scaling) if scaling else None)


class Speed(NamedTuple):
    """Several tokens a pass beside one, on the same requests."""

    tokens_per_pass: float
    seconds: float
    plain_seconds: float

    @property
    def speed_up(self) -> float:
        """Of the wall clock, per token."""
        return self.plain_seconds / self.seconds


def measure_speed(
    lm: SpeechLM, requests: Sequence[Request], sampling: Sampling, **options
) -> Speed:
    """Seconds a token of both ways of decoding, compiled before; the requests one after another.

    From the prompt's tokens to the last one written: the codec's own time is not decoding.
    Raises UserError where nothing is spoken.
    """
    found, prompts = [], [lm.prompt(request) for request in requests]
    for heads in (None, 1):
        lm.write(requests[:1], sampling, heads=heads, prompts=prompts[:1], **options)  # compiles
        start, written, passes = time.perf_counter(), 0, 0
        for request, prompt in zip(requests, prompts, strict=True):
            done = lm.write([request], sampling, heads=heads, prompts=[prompt], **options)[0]
            written, passes = written + len(done.ids), passes + done.passes
        if not written:
            raise UserError("nothing was spoken, so no speed can be told")
        found.append(((time.perf_counter() - start) / written, written / passes))
    (seconds, per_pass), (plain, _) = found
    return Speed(per_pass, seconds, plain)
