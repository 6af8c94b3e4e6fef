"""Coherence suites in SALMon's layout, made from any transcribed multi-speaker corpus.

Both clips of a pair are spliced at the same place in the same way; only one of them changes there.
For every part there is a control whose second clip has the splice but no change: a model that
scores above chance on a control hears splices, and its score on the part means nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import scipy.signal
from tqdm import tqdm

from llmcodec_jax import audio
from llmcodec_jax.data.records import Source, stable_hash
from llmcodec_jax.evaluation.reports import EvaluationError

RATE = 16000  # Hz, of the suite
MARGIN = 0.06  # seconds of its own quiet left around an utterance
JUMP = 0.05  # seconds that a control's splice leaves out at the quietest moment
FADE = 0.01  # seconds of cross-fade at every splice
LONGEST = 5.0  # seconds of one utterance

README = """# Coherence suite

Made by `python -m llmcodec_jax.evaluate suite` from {source}, seed {seed}: the same corpus and seed
give the same files. Layout: PART/sample_INDEX_0.wav is coherent, PART/sample_INDEX_1.wav is not.

{parts}
`PART_control`: the first clip is untouched, the second is spliced as in PART without any change.
Chance is the right score there; more means that the model hears splices.

Left out: {left_out}
"""


@dataclasses.dataclass(frozen=True)
class Utterance:
    """A clip that pairs are made of."""

    index: int  # in the source
    speaker: str
    gender: str | None
    text: str | None


@dataclasses.dataclass(frozen=True)
class Corpus:
    """Utterances of a source by speaker and by text."""

    source: Source
    utterances: list[Utterance]

    def load(self, utterance: Utterance) -> np.ndarray:
        """Float32 [N] at `RATE`, at most `LONGEST` seconds, peak 0.5, silence at the ends cut."""
        sound = self.source.record(utterance.index).sound
        wav = sound.read(0, min(sound.samples, int(LONGEST * sound.rate)))
        wav = _trim(audio.resample(wav, sound.rate, RATE))
        return 0.5 * wav / max(float(np.abs(wav).max()), 1e-6)


def open_corpus(source: Source, genders: dict[str, str]) -> Corpus:
    """Reads the index of a source. Raises EvaluationError for fewer than two speakers."""
    utterances = []
    for index in range(len(source)):
        record = source.record(index)
        if record.speaker is not None and record.sound.samples >= 1.0 * record.sound.rate:
            gender = genders.get(record.speaker)
            utterances.append(Utterance(index, record.speaker, gender, record.text))
    if len({u.speaker for u in utterances}) < 2:
        raise EvaluationError(f"{source.label}: a suite needs clips of at least two speakers")
    return Corpus(source, utterances)


def read_genders(folder: Path) -> dict[str, str]:
    """`SPEAKERS.TXT` of LibriSpeech (`ID | SEX | ...`) in or above a folder: speaker -> sex."""
    for place in (folder, folder.parent):
        path = place / "SPEAKERS.TXT"
        if path.exists():
            rows = [line.split("|") for line in path.read_text().splitlines() if line[:1] != ";"]
            return {r[0].strip(): r[1].strip() for r in rows if len(r) > 1}
    return {}


def make(corpus: Corpus, output: Path, pairs: int, seed: int, noises: list[Path]) -> dict[str, int]:
    """Writes the suite below `output` -> pairs per part."""
    written, left_out, described = {}, [], []
    for name, (maker, description) in PARTS.items():
        described.append(f"`{name}`: {description}\n")
        for index in tqdm(range(pairs), name, unit="pair"):
            generator = np.random.default_rng([seed, stable_hash(name), index])
            made = maker(corpus, generator, noises)
            if made is None:
                left_out.append(f"{name} (the corpus has no such speakers)")
                break
            for part, clips in ((name, made[:2]), (f"{name}_control", made[2:])):
                for number, wav in enumerate(clips):
                    path = output / part / f"sample_{index}_{number}.wav"
                    audio.write(path, np.clip(wav, -0.99, 0.99), RATE)
                written[part] = index + 1
    (output / "README.md").write_text(
        README.format(
            source=corpus.source.label,
            seed=seed,
            parts="\n".join(described),
            left_out=", ".join(left_out) or "nothing",
        )
    )
    return written


Clips = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]
"""(coherent, incoherent, control without splice, control with splice)."""


def _voice_change(other: Callable[[Utterance, Utterance], bool]):
    """Pairs where the second utterance is by the same speaker, or by one that `other` allows."""

    def maker(corpus: Corpus, generator: np.random.Generator, noises) -> Clips | None:
        for pick in generator.permutation(len(corpus.utterances)):
            first = corpus.utterances[pick]
            same = [u for u in corpus.utterances if u.speaker == first.speaker and u != first]
            strangers = [u for u in corpus.utterances if other(first, u)]
            if not same or not strangers:
                continue
            spoken = {u.text for u in strangers if u.text}
            # The same words by both voices leave the voice as the only difference.
            shared = [u for u in same if u.text in spoken] or same
            second = shared[generator.integers(len(shared))]
            parallel = [u for u in strangers if u.text and u.text == second.text] or strangers
            stranger = parallel[generator.integers(len(parallel))]
            lead = corpus.load(first)
            return (
                *_equally_long(join(lead, corpus.load(second)), join(lead, corpus.load(stranger))),
                *_equally_long(lead, join(*_around(lead, _quietest(lead)))),
            )
        return None

    return maker


def _background_change(corpus: Corpus, generator: np.random.Generator, noises) -> Clips:
    speech = corpus.load(corpus.utterances[generator.integers(len(corpus.utterances))])
    place = _quietest(speech)
    kinds = generator.permutation(len(noises) if len(noises) > 1 else len(MADE_NOISES))[:2]

    def stretch(kind: int, samples: int) -> np.ndarray:
        if len(noises) > 1:
            wav = audio.load(noises[kind], RATE)
            start = generator.integers(max(len(wav) - samples, 0) + 1)
            wav = np.resize(wav[start:], samples)
        else:
            wav = MADE_NOISES[kind](generator, samples)
        return wav / max(float(np.sqrt(np.mean(wav**2))), 1e-6)

    level = 0.2 * np.sqrt(np.mean(speech**2))  # 14 dB below the speech
    length = len(speech)
    one, again, another = (stretch(k, length) for k in (kinds[0], kinds[0], kinds[1]))
    return (
        speech + level * cross_fade(one, again, place),
        speech + level * cross_fade(one, another, place),
        speech + level * one,
        speech + level * cross_fade(one, again, place),
    )


def _room_change(corpus: Corpus, generator: np.random.Generator, noises) -> Clips:
    speech = corpus.load(corpus.utterances[generator.integers(len(corpus.utterances))])
    place = _quietest(speech)
    times = (generator.uniform(0.15, 0.3), generator.uniform(0.6, 1.0))
    here, there = times if generator.random() < 0.5 else times[::-1]
    one, again, another = (reverberate(speech, t, generator) for t in (here, here, there))
    return (
        cross_fade(one, again, place),
        cross_fade(one, another, place),
        one,
        cross_fade(one, again, place),
    )


def _white(generator, samples):
    return generator.normal(size=samples)


def _rumble(generator, samples):
    return scipy.signal.lfilter([1], [1, -0.99], generator.normal(size=samples))


def _hum(generator, samples):
    time = np.arange(samples) / RATE
    phases = generator.uniform(0, 2 * np.pi, 12)
    return sum(np.sin(2 * np.pi * 100 * (k + 1) * time + p) / (k + 1) for k, p in enumerate(phases))


def _crackle(generator, samples):
    clicks = generator.normal(size=samples) * (generator.random(samples) < 30 / RATE)
    return scipy.signal.lfilter([1], [1, -1.6, 0.8], clicks)


def _hiss(generator, samples):
    return np.diff(generator.normal(size=samples + 1))


MADE_NOISES = (_white, _rumble, _hum, _crackle, _hiss)

PARTS = {
    "speaker_consistency": (
        _voice_change(lambda a, b: a.speaker != b.speaker and a.gender == b.gender),
        "two utterances; the second by the same speaker, or by another of the same gender "
        "(reading the same words where the corpus has them twice).",
    ),
    "gender_consistency": (
        _voice_change(lambda a, b: None not in (a.gender, b.gender) and a.gender != b.gender),
        "as before, with a speaker of the other gender.",
    ),
    "bg_all_consistency": (
        _background_change,
        "one utterance over noise that is spliced at its quietest moment: to another stretch of "
        "the same noise, or to another noise.",
    ),
    "rir_consistency": (
        _room_change,
        "one utterance in a room, spliced at its quietest moment: to another place in the same "
        "room, or to a room of another reverberation time.",
    ),
}


def join(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Two utterances after each other, cross-faded where both are quiet.

    No digital silence is put between them: it would be a token of its own, and any model that
    happens to like or dislike that token would seem to hear the change.
    """
    samples = int(FADE * RATE)
    share = np.linspace(0, 1, samples)
    overlap = (1 - share) * first[-samples:] + share * second[:samples]
    return np.concatenate([first[:-samples], overlap, second[samples:]])


def cross_fade(first: np.ndarray, second: np.ndarray, place: int) -> np.ndarray:
    """`first` until `place`, then `second` of the same length, cross-faded."""
    half = int(FADE * RATE) // 2
    share = np.clip((np.arange(len(first)) - place + half) / (2 * half), 0, 1)
    return (1 - share) * first + share * second


def reverberate(wav: np.ndarray, seconds: float, generator: np.random.Generator) -> np.ndarray:
    """A direct path and a noise tail that falls by 60 dB in `seconds`; the level is kept."""
    time = np.arange(int(seconds * RATE)) / RATE
    tail = generator.normal(size=len(time)) * 10 ** (-3 * time / seconds)
    tail *= 0.7 / np.sqrt(np.sum(tail**2))
    tail[0] = 1.0
    wet = scipy.signal.fftconvolve(wav, tail)[: len(wav)]
    return wet * np.sqrt(np.mean(wav**2) / max(np.mean(wet**2), 1e-12))


def _equally_long(*clips: np.ndarray) -> list[np.ndarray]:
    """Cuts all to 0.1 s less than the shortest: length and ending must not tell them apart."""
    samples = max(min(map(len, clips)) - RATE // 10, 1)
    return [clip[:samples] for clip in clips]


def _around(wav: np.ndarray, place: int) -> tuple[np.ndarray, np.ndarray]:
    """What comes before and after a short gap at `place`."""
    half = int(JUMP * RATE) // 2
    return wav[: place - half], wav[place + half :]


def _quietest(wav: np.ndarray) -> int:
    """Sample in the middle half around which 20 ms are quietest."""
    window = int(0.02 * RATE)
    energy = np.convolve(wav**2, np.ones(window), mode="same")
    start, stop = len(wav) // 4, 3 * len(wav) // 4
    return start + int(np.argmin(energy[start:stop]))


def _trim(wav: np.ndarray) -> np.ndarray:
    """Cuts what is 40 dB below the peak at both ends, but for a margin."""
    loud = np.flatnonzero(np.abs(wav) > 0.01 * np.abs(wav).max())
    margin = int(MARGIN * RATE)
    return wav[max(loud[0] - margin, 0) : loud[-1] + margin] if len(loud) else wav
