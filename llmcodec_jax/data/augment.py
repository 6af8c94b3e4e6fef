"""Voices, rooms and channels that the recordings do not have: changes drawn anew for every clip.

Each change is an option with the share of clips that get it (0: off, the default) and the range
its strength is drawn from. The changed clip is input and target at once: the codec learns to
carry it. Held-out clips are never changed. What is drawn depends on the clip's own key, so a run
meets the same changes at any number of workers and after any interruption.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import librosa
import numpy as np
from scipy import signal

from llmcodec_jax.errors import UsageError

Wave = np.ndarray
"""float32 [samples]."""

Companion = Callable[[np.random.Generator], Wave | None]
"""Draws another recording of the data; None where there is none that can be read."""

_ENVELOPE_SECONDS = 0.0016  # of the cepstrum kept: envelopes, not harmonics, up to 625 Hz voices
_FRAME_SECONDS = 0.032
_TELEPHONE = (300.0, 3400.0)  # Hz
_ROOM_TAIL = 3.0 * np.log(10.0)  # exp(-this) is -60 dB


@dataclasses.dataclass(frozen=True)
class Augment:
    """Share of the clips that get each change, and its range; in the order they are applied."""

    speed: float = 0.0  # played faster or slower: length, pitch and formants together
    speed_range: tuple[float, float] = (0.8, 1.25)
    pitch: float = 0.0  # pitch and formants, length kept
    pitch_range: tuple[float, float] = (0.8, 1.25)
    formants: float = 0.0  # formants alone: another vocal tract with the same melody
    formants_range: tuple[float, float] = (0.85, 1.2)
    equaliser: float = 0.0  # a smooth curve over the octaves
    equaliser_range: tuple[float, float] = (-8.0, 8.0)  # dB
    room: float = 0.0  # an exponentially decaying response
    room_range: tuple[float, float] = (0.1, 0.6)  # seconds to -60 dB
    overlap: float = 0.0  # another recording of the same source beneath
    overlap_range: tuple[float, float] = (3.0, 15.0)  # dB below
    bed: float = 0.0  # music or sound of the mixture beneath; noise where it has none
    bed_range: tuple[float, float] = (5.0, 30.0)  # dB below
    telephone: float = 0.0  # 300 to 3,400 Hz in eight bits
    gain: float = 0.0
    gain_range: tuple[float, float] = (-18.0, 6.0)  # dB, clipping avoided

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, tuple):
                if len(value) != 2 or value[0] > value[1]:
                    raise UsageError(f"data.augment.{field.name} is no range (low, high): {value}")
            elif not 0.0 <= value <= 1.0:
                raise UsageError(f"data.augment.{field.name} is a share of clips: {value}")
        for name in ("speed_range", "pitch_range", "formants_range", "room_range"):
            if getattr(self, name)[0] <= 0:
                raise UsageError(f"data.augment.{name} must be above zero")

    def any(self) -> bool:
        """Whether anything is on."""
        return any(value for value in vars(self).values() if isinstance(value, float))

    def draw_speed(self, rng: np.random.Generator) -> float:
        """How fast the recording is played: 1 for most."""
        return _ratio(rng, self.speed_range) if self.speed and rng.random() < self.speed else 1.0

    def change(
        self, wav: Wave, rate: int, rng: np.random.Generator, overlap: Companion, bed: Companion
    ) -> Wave:
        """All changes but the speed's: [N] at `rate` Hz -> [N], peak at most 1."""

        def due(share: float) -> bool:
            return bool(share) and rng.random() < share

        if due(self.pitch):
            wav = shift_pitch(wav, rate, _ratio(rng, self.pitch_range))
        if due(self.formants):
            wav = shift_formants(wav, rate, _ratio(rng, self.formants_range))
        if due(self.equaliser):
            wav = equalise(wav, rate, rng.uniform(*self.equaliser_range, 8))
        if due(self.room):
            wav = reverberate(wav, rate, rng.uniform(*self.room_range), rng)
        if due(self.overlap) and (other := overlap(rng)) is not None:
            wav = mix(wav, other, rng.uniform(*self.overlap_range))
        if due(self.bed):
            other = bed(rng)
            wav = mix(wav, coloured_noise(len(wav), rng) if other is None else other,
                      rng.uniform(*self.bed_range))  # fmt: skip
        if due(self.telephone):
            wav = telephone(wav, rate)
        if due(self.gain):
            wav = wav * 10 ** (rng.uniform(*self.gain_range) / 20)
        return (wav / max(1.0, np.abs(wav).max(initial=0.0))).astype(np.float32)


def shift_pitch(wav: Wave, rate: int, ratio: float) -> Wave:
    """[N] -> [N]: all frequencies times `ratio`, length kept."""
    moved = librosa.effects.pitch_shift(wav, sr=rate, n_steps=12 * np.log2(ratio))
    return moved.astype(np.float32)


def shift_formants(wav: Wave, rate: int, ratio: float) -> Wave:
    """[N] -> [N]: the spectral envelope stretched by `ratio` over the same harmonics.

    The envelope is the smooth part of each frame's log spectrum (its first cepstral values).
    """
    window = 2 ** round(np.log2(_FRAME_SECONDS * rate))
    spectrum = librosa.stft(wav, n_fft=window)
    log = np.log(np.abs(spectrum) + 1e-5)
    cepstrum = np.fft.irfft(log, axis=0)
    kept = round(_ENVELOPE_SECONDS * rate)
    cepstrum[kept : window - kept + 1] = 0.0
    envelope = np.fft.rfft(cepstrum, axis=0).real
    bins = np.arange(len(envelope)) / ratio
    low = np.minimum(bins.astype(int), len(envelope) - 2)
    share = np.clip(bins - low, 0.0, 1.0)[:, None]
    stretched = (1 - share) * envelope[low] + share * envelope[low + 1]
    moved = spectrum * np.exp(np.clip(stretched - envelope, -5.0, 5.0))
    return librosa.istft(moved, n_fft=window, length=len(wav)).astype(np.float32)


def equalise(wav: Wave, rate: int, decibels: np.ndarray) -> Wave:
    """[N] -> [N]: gains at points spread evenly over log frequency, 60 Hz to half the rate."""
    spectrum = np.fft.rfft(wav)
    points = np.geomspace(60.0, rate / 2, len(decibels))
    frequency = np.fft.rfftfreq(len(wav), 1 / rate)
    curve = np.interp(np.log(np.maximum(frequency, 1.0)), np.log(points), decibels)
    return np.fft.irfft(spectrum * 10 ** (curve / 20), len(wav)).astype(np.float32)


def reverberate(wav: Wave, rate: int, seconds: float, rng: np.random.Generator) -> Wave:
    """[N] -> [N] in a room whose response falls by 60 dB in `seconds`; the direct sound stays."""
    time = np.arange(1, round(seconds * rate)) / rate
    tail = rng.standard_normal(len(time)) * np.exp(-_ROOM_TAIL * time / seconds)
    tail *= rng.uniform(0.2, 0.8) / np.sqrt(np.sum(tail**2) + 1e-12)
    wet = signal.fftconvolve(wav, np.concatenate([[1.0], tail]))[: len(wav)]
    return wet.astype(np.float32)


def coloured_noise(samples: int, rng: np.random.Generator) -> Wave:
    """Noise whose power falls with frequency, between white and brown: [samples]."""
    spectrum = np.fft.rfft(rng.standard_normal(samples))
    falls = np.arange(1, len(spectrum) + 1) ** -rng.uniform(0.0, 1.0)
    return np.fft.irfft(spectrum * falls, samples).astype(np.float32)


def mix(wav: Wave, other: Wave, decibels: float) -> Wave:
    """[N] with `other` [M], repeated or cut, `decibels` below it in mean power."""
    other = np.resize(other, len(wav)) if len(other) else np.zeros_like(wav)
    own, beneath = (np.sqrt(np.mean(np.square(x)) + 1e-12) for x in (wav, other))
    return (wav + other * (own / beneath * 10 ** (-decibels / 20))).astype(np.float32)


def telephone(wav: Wave, rate: int) -> Wave:
    """[N] -> [N] as a line of 300 to 3,400 Hz with eight mu-law bits carries it."""
    high = min(_TELEPHONE[1], 0.45 * rate)
    bands = signal.butter(4, (_TELEPHONE[0], high), "bandpass", fs=rate, output="sos")
    narrow = np.clip(signal.sosfilt(bands, wav), -1.0, 1.0)
    coded = librosa.mu_compress(narrow, mu=255, quantize=True)
    return librosa.mu_expand(coded, mu=255, quantize=True).astype(np.float32)


def _ratio(rng: np.random.Generator, low_high: tuple[float, float]) -> float:
    """Log-uniform, so that up and down are as likely."""
    return float(np.exp(rng.uniform(*np.log(low_high))))
