"""The codec in daily use: any audio in, tokens out, and back.

Clips are padded to one of a few lengths so that compilations stay few: `len(BUCKETS)` programs to
encode and as many to decode. Audio longer than the last bucket goes through overlapping windows.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from llmcodec_jax import audio, types
from llmcodec_jax.codec import registry, store, windows
from llmcodec_jax.codec.streaming import Stream

BUCKET_SECONDS = (2.0, 6.0, 15.0, 30.0)
"""Padded lengths; at 50 Hz 100, 300, 750 and 1500 frames."""
FADE_SECONDS = 0.2
"""Over which two windows' audio is blended where they meet."""


class Codec:
    """A codec ready to use; make one with `llmcodec_jax.load_codec`.

    Every call of one bucket runs the same compiled program with `batch_size` rows, so a clip's
    codes are the same alone, in a list, and in any company.
    """

    def __init__(
        self,
        module: types.Codec,
        variables: dict,
        batch_size: int | None = None,
        buckets: Sequence[int] | None = None,
    ):
        """`batch_size`: clips computed at once; by default 8 on accelerators, 1 on CPUs, where
        it brings little and pads much. `buckets`: padded lengths in frames, ascending; by default
        BUCKET_SECONDS at the codec's frame rate, or its own `window_seconds` alone."""
        if batch_size is not None and batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; it must be at least 1")
        self.module = module
        self.variables = jax.device_put(variables)
        self.batch_size = batch_size or (1 if jax.default_backend() == "cpu" else 8)
        window = getattr(module, "window_seconds", 0.0)
        seconds = (window,) if window else BUCKET_SECONDS
        frames = (math.ceil(s * self.frame_rate) for s in seconds)
        self.buckets = tuple(frames if buckets is None else buckets)
        self._encode = jax.jit(self._encode_program, static_argnums=3)
        self._decode = jax.jit(self._decode_program)

    @property
    def sample_rate(self) -> int:
        """Hz, of what `decode` returns and of what the codec works on."""
        return self.module.sample_rate

    @property
    def codebook_size(self) -> int:
        """Codes are in [0, codebook_size)."""
        return self.module.codebook_size

    @property
    def levels(self) -> int:
        """Residual codebooks; codes are [T] with one, [T, levels] with more."""
        return self.module.levels

    @property
    def hop(self) -> int:
        """Samples per frame."""
        return self.module.hop

    @property
    def frame_rate(self) -> float:
        """Frames (codes of one level) per second."""
        return self.sample_rate / self.hop

    @property
    def architecture(self) -> str:
        """The family's name."""
        return registry.family_of(self.module).name

    @functools.cached_property
    def digest(self) -> str:
        """Which codec this is: equal for equal parameters, whatever file they came from."""
        return store.digest(self.module, self.variables)

    def describe(self) -> dict[str, Any]:
        """What pages and exported folders say of the codec, as plain JSON values."""
        return {
            "architecture": self.architecture,
            "digest": self.digest,
            "sample_rate": self.sample_rate,
            "hop": self.hop,
            "frame_rate": self.frame_rate,
            "codebook_size": self.codebook_size,
            "levels": self.levels,
            "bits_per_second": self.frame_rate * self.levels * math.log2(self.codebook_size),
        }

    @functools.cached_property
    def _ready(self) -> dict:
        """The variables as programs take them: with what a family finishes once (`fold`)."""
        return getattr(self.module, "fold", dict)(self.variables)

    @property
    def compilations(self) -> int:
        """Programs compiled so far."""
        compiled: list[Any] = [self._encode, self._decode]
        return sum(program._cache_size() for program in compiled)

    def encode(self, wav, sample_rate: int | None = None, levels: int | None = None):
        """Audio -> codes int32 [T], T = ceil(N / hop) after resampling; [T, levels] if residual.

        `wav`: [N] or [N, channels], float in [-1, 1] or integer PCM; or a list of such arrays of
        any lengths, which gives a list of codes. `sample_rate` in Hz, by default the codec's.
        `levels`: use the first so many codebooks only, for fewer bits; by default all.
        Raises ValueError for audio that is empty, not finite, or has another number of axes, for a
        path and for a rate that is none.
        """
        if levels is not None and not 1 <= levels <= self.levels:
            raise ValueError(f"{levels} levels asked of a codec with 1 to {self.levels}")
        clips = wav if isinstance(wav, list | tuple) else [wav]
        clips = [self.prepare(clip, sample_rate) for clip in clips]
        results: list = [None] * len(clips)
        for rows in self._groups([-(-len(clip) // self.hop) for clip in clips]):
            coded = self._encode_rows([clips[r] for r in rows], levels)
            for row, codes in zip(rows, coded, strict=True):
                results[row] = codes
        for row, clip in enumerate(clips):
            if results[row] is None:
                size = self.buckets[-1] * self.hop
                blocks = (clip[start : start + size] for start in range(0, len(clip), size))
                results[row] = np.concatenate(list(self.encode_stream(blocks, levels)))
        return results if isinstance(wav, list | tuple) else results[0]

    def decode(self, codes):
        """Codes [T] or [T, levels] -> float32 [T * hop]; a list of them gives a list.

        A list of plain integers is one clip of a codec with one level.
        Raises ValueError for codes of another shape, not integers, or out of range.
        """
        if isinstance(codes, list | tuple) and codes and all(map(_is_number, codes)):
            codes = np.asarray(codes)
        clips = codes if isinstance(codes, list | tuple) else [codes]
        clips = [self.check_codes(clip) for clip in clips]
        results: list = [None] * len(clips)
        for rows in self._groups([len(clip) for clip in clips]):
            for row, wav in zip(rows, self._decode_rows([clips[r] for r in rows]), strict=True):
                results[row] = wav
        for row, clip in enumerate(clips):
            if results[row] is None:
                results[row] = np.concatenate(list(self.decode_stream(clip)))
        return results if isinstance(codes, list | tuple) else results[0]

    def encode_stream(
        self, blocks: Iterable[np.ndarray], levels: int | None = None
    ) -> Iterator[np.ndarray]:
        """Consecutive mono float32 blocks at the codec's rate -> consecutive pieces of codes.

        Memory does not grow with the audio's length.
        """
        window = self.buckets[-1]
        return windows.encode(
            blocks,
            lambda wav: self._encode_rows([wav], levels)[0],
            window,
            self._context,
            self.hop,
        )

    def decode_stream(self, codes: np.ndarray) -> Iterator[np.ndarray]:
        """Codes of any length -> consecutive pieces of audio, joined without seams."""
        window = self.buckets[-1]
        return windows.decode(
            codes,
            lambda part: self._decode_rows([part])[0],
            window,
            self._context,
            self.hop,
            fade=round(FADE_SECONDS * self.frame_rate),
        )

    def stream(self, frames: int = 1, levels: int | None = None) -> Stream:
        """Live coding in chunks of `frames` frames, for causal codecs (see `Stream`).

        `levels`: codebooks used, by default all. Raises UsageError for a codec that cannot stream.
        """
        return Stream(self.module, self.variables, frames, levels)

    def prepare(self, wav, sample_rate: int | None = None) -> np.ndarray:
        """Any audio -> mono float32 [N] at the codec's rate. Raises ValueError."""
        if isinstance(wav, str | bytes | Path):
            raise ValueError(
                f"{wav!r} is a file's name, not its samples: wav, rate = soundfile.read(name), "
                "then encode(wav, rate); `llmcodec encode` takes whole folders"
            )
        rate = self.sample_rate if sample_rate is None else sample_rate
        if not _is_number(rate) or not 1 <= rate < math.inf:
            raise ValueError(f"sample_rate is {rate!r}; give the audio's own in Hz, such as 16000")
        try:
            wav = np.asarray(wav)
        except ValueError as error:
            raise ValueError(f"audio must be numbers [N] or [N, channels] ({error})") from error
        if wav.dtype.kind not in "if":
            raise ValueError(f"audio must be floats or signed integers, got {wav.dtype}")
        if wav.ndim not in (1, 2) or wav.size == 0:
            raise ValueError(f"audio must be [N] or [N, channels] and not empty, got {wav.shape}")
        if wav.ndim == 2 and wav.shape[1] > 64:
            raise ValueError(f"audio {wav.shape} looks like [channels, N]; pass [N, channels]")
        if np.issubdtype(wav.dtype, np.integer):
            wav = wav.astype(np.float32) / -float(np.iinfo(wav.dtype).min)
        wav = wav.astype(np.float32)
        if not np.isfinite(wav).all():
            raise ValueError("audio holds NaN or infinite samples")
        mono = wav.mean(axis=1) if wav.ndim == 2 else wav
        mono = audio.resample(mono, rate, self.sample_rate)
        return mono if len(mono) else np.zeros(1, np.float32)

    def check_codes(self, codes) -> np.ndarray:
        """Any integer array -> int32 codes of this codec's shape and range. Raises ValueError.

        Of a residual codec's levels the first few are enough.
        """
        if isinstance(codes, str | bytes | Path):
            raise ValueError(
                f"{codes!r} is a file's name, not codes: numpy.load(name)['codes'] reads a token "
                "file; `llmcodec decode` takes whole folders"
            )
        try:
            codes = np.asarray(codes)
        except ValueError as error:
            raise ValueError(f"codes must be one array of integers ({error})") from error
        fits = codes.ndim == 1 if self.levels == 1 else codes.ndim == 2
        fits = fits and codes.size and (codes.ndim == 1 or codes.shape[1] <= self.levels)
        if not fits or not np.issubdtype(codes.dtype, np.integer):
            wanted = "[T]" if self.levels == 1 else f"[T, {self.levels}]"
            raise ValueError(f"codes must be integers {wanted}, got {codes.dtype} {codes.shape}")
        if codes.min() < 0 or codes.max() >= self.codebook_size:
            raise ValueError(
                f"codes reach from {codes.min()} to {codes.max()}; this codec has "
                f"{self.codebook_size}: were they made by another one?"
            )
        return codes.astype(np.int32)

    @property
    def _context(self) -> int:
        """Frames at a window's ends that only inform the rest: 2.5 s of 30 s windows."""
        return self.buckets[-1] // 12

    def _bucket(self, frames: int) -> int | None:
        return next((bucket for bucket in self.buckets if frames <= bucket), None)

    def _groups(self, frames: list[int]) -> Iterator[list[int]]:
        """Rows to compute together: same bucket, at most `batch_size`; long clips left out."""
        for bucket in self.buckets:
            rows = [row for row, count in enumerate(frames) if self._bucket(count) == bucket]
            for start in range(0, len(rows), self.batch_size):
                yield rows[start : start + self.batch_size]

    def _encode_rows(self, clips: list[np.ndarray], levels: int | None = None) -> list[np.ndarray]:
        """Clips of one bucket -> their codes, in one call."""
        longest = max(-(-len(clip) // self.hop) for clip in clips)
        bucket = next(b for b in self.buckets if longest <= b)
        wav = np.zeros((self.batch_size, bucket * self.hop), np.float32)
        length = np.zeros((self.batch_size,), np.int32)
        for row, clip in enumerate(clips):
            wav[row, : len(clip)], length[row] = clip, len(clip)
        codes = np.asarray(self._encode(self._ready, wav, length, levels))
        return [codes[row, : -(-len(clip) // self.hop)] for row, clip in enumerate(clips)]

    def _decode_rows(self, clips: list[np.ndarray]) -> list[np.ndarray]:
        """Codes of one bucket -> their audio, in one call."""
        longest = max(map(len, clips))
        bucket = next(b for b in self.buckets if longest <= b)
        codes = np.zeros((self.batch_size, bucket, *clips[0].shape[1:]), np.int32)
        frames = np.zeros((self.batch_size,), np.int32)
        for row, clip in enumerate(clips):
            codes[row, : len(clip)], frames[row] = clip, len(clip)
        wav = np.asarray(self._decode(self._ready, codes, frames))
        return [wav[row, : len(clip) * self.hop] for row, clip in enumerate(clips)]

    def _encode_program(self, variables, wav, length, levels=None):
        return self.module.apply(variables, wav, length, levels=levels, method="encode").codes

    def _decode_program(self, variables, codes, frames):
        mask = jnp.arange(codes.shape[1]) < frames[:, None]
        return self.module.apply(variables, codes, mask, method="decode_codes")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.number) and not isinstance(value, bool)


def load(path: str | Path, dtype: str = "float32", batch_size: int | None = None) -> Codec:
    """CODEC -> Codec (see `llmcodec_jax.load_codec`)."""
    module, variables = store.load(path)
    recompute = {"remat": False} if hasattr(module, "remat") else {}
    return Codec(module.clone(dtype=dtype, **recompute), variables, batch_size)
