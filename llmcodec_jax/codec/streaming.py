"""Causal codecs on live audio: chunk by chunk, equal to coding the whole clip at once.

A family that streams has `stream_lead`: how many frames its first call must see. One where the
start is padded with zeros; more where the start is padded with a reflection of what follows. From
then on every `frames` frames of audio give as many frames of codes: the latency is one chunk.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from llmcodec_jax import types
from llmcodec_jax.codec.conv.layers import STREAM
from llmcodec_jax.errors import UsageError


class State(NamedTuple):
    """All that a stream remembers: a pytree, so it can be copied, saved and restored."""

    encoder: Any  # the collection `stream` of the encoder, None before its first call
    decoder: Any
    samples: np.ndarray  # float32 [n] audio that makes no whole chunk yet
    codes: np.ndarray  # int32 [n, Q] codes that make no whole chunk yet


@functools.partial(jax.jit, static_argnums=(0, 3))
def _encode(module: types.Codec, variables, wav, levels, length=None):
    output, state = module.apply(
        variables, wav, length, levels=levels, method="encode", mutable=[STREAM]
    )
    return output.codes, state[STREAM]


@functools.partial(jax.jit, static_argnums=0)
def _decode(module: types.Codec, variables, codes, mask=None):
    wav, state = module.apply(variables, codes, mask, method="decode_codes", mutable=[STREAM])
    return wav, state[STREAM]


class Stream:
    """`encode(chunk) -> codes` and `decode(codes) -> chunk` of one mono stream.

    Audio and codes may come in pieces of any size; what makes no whole chunk waits for more, and
    `flush_encoder` and `flush_decoder` end a stream as the whole clip would end: with zeros up to
    a whole frame. Both directions compile once for their first chunk and once for all others.
    """

    def __init__(
        self, module: types.Codec, variables: dict, frames: int = 1, levels: int | None = None
    ):
        """`frames`: of a chunk; `levels`: how many codebooks are used, by default all.

        Raises UsageError for a codec that cannot stream.
        """
        self.module, self.frames = module, frames
        self.levels = levels or module.levels
        self.lead = max(stream_lead(module), frames)
        self.variables = jax.device_put(getattr(module, "fold", dict)(variables))
        self.reset()

    @property
    def latency(self) -> float:
        """Seconds from a sample to the codes that hold it, once started: one chunk."""
        return self.frames * self.module.hop / self.module.sample_rate

    @property
    def start(self) -> float:
        """Seconds of audio before the first codes."""
        return self.lead * self.module.hop / self.module.sample_rate

    def reset(self) -> None:
        """Forgets everything: the next chunk begins a new stream."""
        none = np.zeros((0, self.levels), np.int32)
        self.state = State(None, None, np.zeros(0, np.float32), none)

    def encode(self, chunk) -> np.ndarray:
        """Audio float32 [n] at the codec's rate -> codes int32 [m, Q] that are ready, [m] with one
        level. Raises ValueError for another shape."""
        chunk = np.asarray(chunk, np.float32)
        if chunk.ndim != 1:
            raise ValueError(f"a chunk of audio is [n], got {chunk.shape}")
        waiting = np.concatenate([self.state.samples, chunk])
        ready = [np.zeros((0, self.levels), np.int32)]
        while len(waiting) >= (size := self._chunk(self.state.encoder) * self.module.hop):
            ready.append(self._encode(waiting[:size]))
            waiting = waiting[size:]
        self.state = self.state._replace(samples=waiting)
        return self._levels(np.concatenate(ready))

    def decode(self, codes) -> np.ndarray:
        """Codes int [m, Q], or [m] with one level -> audio float32 [n] that is ready."""
        codes = np.asarray(codes, np.int32).reshape(len(codes), self.levels)
        waiting = np.concatenate([self.state.codes, codes])
        ready = [np.zeros(0, np.float32)]
        while len(waiting) >= (size := self._chunk(self.state.decoder)):
            ready.append(self._decode(waiting[:size]))
            waiting = waiting[size:]
        self.state = self.state._replace(codes=waiting)
        return np.concatenate(ready)

    def flush_encoder(self) -> np.ndarray:
        """Codes of the audio that still waits, zeros after it; the next chunk begins anew."""
        rest, size = self.state.samples, self._chunk(self.state.encoder) * self.module.hop
        codes = np.zeros((0, self.levels), np.int32)
        if len(rest):
            frames = -(-len(rest) // self.module.hop)
            codes = self._encode(np.pad(rest, (0, size - len(rest))), len(rest))[:frames]
        self.state = self.state._replace(encoder=None, samples=rest[:0])
        return self._levels(codes)

    def flush_decoder(self) -> np.ndarray:
        """Audio of the codes that still wait; the next codes begin anew."""
        rest, size = self.state.codes, self._chunk(self.state.decoder)
        wav = np.zeros(0, np.float32)
        if len(rest):
            padded = np.pad(rest, ((0, size - len(rest)), (0, 0)))
            wav = self._decode(padded, len(rest))[: len(rest) * self.module.hop]
        self.state = self.state._replace(decoder=None, codes=rest[:0])
        return wav

    def _chunk(self, state: Any) -> int:
        """Frames of the next call."""
        return self.lead if state is None else self.frames

    def _levels(self, codes: np.ndarray) -> np.ndarray:
        return codes[:, 0] if self.module.levels == 1 else codes

    def _encode(self, wav: np.ndarray, length: int | None = None) -> np.ndarray:
        past = self.state.encoder
        variables = self.variables if past is None else {**self.variables, STREAM: past}
        # The first call is told its length: a clip shorter than the lead has a start of its own.
        known = jnp.asarray([len(wav) if length is None else length], jnp.int32)
        known = known if past is None else None
        codes, state = _encode(self.module, variables, wav[None], self.levels, known)
        self.state = self.state._replace(encoder=state)
        return np.asarray(codes).reshape(-1, self.levels)

    def _decode(self, codes: np.ndarray, frames: int | None = None) -> np.ndarray:
        past = self.state.decoder
        variables = self.variables if past is None else {**self.variables, STREAM: past}
        mask = np.arange(len(codes))[None] < (len(codes) if frames is None else frames)
        codes = codes[..., 0] if self.module.levels == 1 else codes
        wav, state = _decode(self.module, variables, codes[None], mask if past is None else None)
        self.state = self.state._replace(decoder=state)
        return np.asarray(wav)[0]


def stream_lead(module: types.Codec) -> int:
    """Frames that the first call of a stream must see. Raises UsageError for one that cannot."""
    name = type(module).__name__
    lead: int | None = getattr(module, "stream_lead", None)
    if lead is None:
        raise UsageError(f"{name} cannot stream: its frames read what comes after them")
    return lead
