"""The study's audio: every sub-folder of one folder is a source, a part of each is held out."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tqdm import tqdm

from llmcodec_jax import audio
from llmcodec_jax.codec.tokens import vocabulary_index
from llmcodec_jax.data.sources import open_mixture, open_source
from llmcodec_jax.errors import UsageError
from llmcodec_jax.evaluation.sampling import by_hash
from llmcodec_jax.evaluation.streams import StartEncoder, Streams, encode_starts
from llmcodec_jax.ops import files
from llmcodec_jax.types import DOMAINS

HELD_OUT = "heldout/"
"""Names of token streams of clips that no codec was trained on start so."""
UNSEEN = "unseen"
"""Sub-folders of --data whose names start so hold voices that nothing is trained on; so do names
of their token streams."""
GROUP = 64  # clips encoded together: few are waiting in memory


@dataclasses.dataclass(frozen=True)
class Clip:
    """One recording."""

    name: str  # SOURCE/ID
    wav: np.ndarray  # float32 [N]
    text: str  # "" where unknown


@dataclasses.dataclass(frozen=True)
class Material:
    """Where the clips come from and which are held out."""

    sources: tuple[tuple[str, float, str], ...]  # for config.data.sources
    sample_rate: int
    split: dict  # options of data.sources.split_source
    unseen: tuple[str, ...] = ()  # sources of the voices that nothing is trained on

    def clips(self, part: str) -> Iterator[Clip]:
        """Every clip of the "train" or "eval" part, in a fixed order; unreadable ones left out.

        "unseen": of the voices that are tested on apart.
        """
        for source in self._open(part):
            for index in tqdm(range(len(source)), f"{source.label} ({part})", leave=False):
                try:
                    record = source.record(index)
                    wav = record.sound.read(0, record.sound.samples)
                except audio.AudioError as error:
                    tqdm.write(f"left out: {error}")
                    continue
                wav = audio.resample(wav, record.sound.rate, self.sample_rate)
                if len(wav):
                    yield Clip(f"{source.label}/{record.name}", wav, record.text or "")

    def _open(self, part: str) -> list:
        if part == UNSEEN:
            return [open_source(spec) for spec in self.unseen]
        return [entry.source for entry in open_mixture(self.sources, part, **self.split)]

    def write_held_out(self, folder: Path, limit: int, part: str = "eval") -> None:
        """Held-out clips, at most `limit` of each source by hash, as folder/SOURCE/ID.wav."""
        names: dict[str, list[str]] = {}
        for clip in self.clips(part):
            if len(clip.wav) >= 0.5 * self.sample_rate:
                names.setdefault(clip.name.split("/")[0], []).append(clip.name)
        chosen = {name for found in names.values() for name in by_hash(found, limit)}
        for clip in self.clips(part):
            if clip.name in chosen:
                path = (folder / clip.name).with_suffix(".wav")
                audio.write(path, clip.wav, self.sample_rate, exact=True)
                if clip.text:
                    path.with_suffix(".txt").write_text(clip.text + "\n", "utf-8")

    def streams(self, codec) -> Streams:
        """Tokens of every clip; development and test clips of a token LM are held-out ones."""
        tokens = {}
        parts = {"train/": "train", HELD_OUT: "eval", f"{UNSEEN}/": UNSEEN}
        for prefix, part in parts.items():
            for group in _grouped(self.clips(part)):
                coded = codec.encode([clip.wav for clip in group], self.sample_rate)
                for clip, codes in zip(group, coded, strict=True):
                    flat = vocabulary_index(np.asarray(codes), codec.codebook_size)
                    tokens[prefix + clip.name] = flat
        held_out = frozenset(name for name in tokens if name.startswith(HELD_OUT))
        unseen = frozenset(name for name in tokens if name.startswith(f"{UNSEEN}/"))
        return Streams(
            tokens, codec.codebook_size, codec.levels, codec.frame_rate, held_out, unseen
        )

    def start_encoder(self, codec) -> StartEncoder:
        """Encodes beginnings of the held-out clips that `streams` names."""
        places = {
            f"{HELD_OUT}{entry.source.label}/{entry.source.name(index)}": (entry.source, index)
            for entry in open_mixture(self.sources, "eval", **self.split)
            for index in range(len(entry.source))
        }

        def load(name: str) -> np.ndarray:
            source, index = places[name]
            sound = source.record(index).sound
            return audio.resample(sound.read(0, sound.samples), sound.rate, self.sample_rate)

        return encode_starts(codec, load)

    def texts(self) -> dict[str, str]:
        """Name of a training token stream -> transcript, where there is one."""
        texts = {}
        for entry in open_mixture(self.sources, "train", **self.split):
            for index in range(len(entry.source)):
                try:
                    record = entry.source.record(index)
                except audio.AudioError:  # `clips` has named it
                    continue
                if record.text:
                    texts[f"train/{entry.source.label}/{record.name}"] = record.text
        return texts


def _grouped(clips: Iterator[Clip]) -> Iterator[list[Clip]]:
    group: list[Clip] = []
    for clip in clips:
        group.append(clip)
        if len(group) == GROUP:
            yield group
            group = []
    if group:
        yield group


def find_sources(folder: Path, shares: dict[str, float]) -> tuple[tuple[str, float, str], ...]:
    """DIR -> (source, weight, domain) of each sub-folder, for `config.data.sources`.

    A sub-folder with transcripts in LibriSpeech's layout is read with them. Its domain is the one
    whose name its own name starts with (music, audio, vocal; "sound" is audio), else speech.
    `shares`: of each domain in a batch; within a domain every clip is equally likely.
    Raises FileNotFoundError where there is nothing to hear, ValueError for an unknown domain.
    """
    unknown = set(shares) - set(DOMAINS)
    if unknown:
        raise UsageError(f"shares names domains {sorted(unknown)}; known: {', '.join(DOMAINS)}")
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder of audio")
    found = []
    for place in sub_folders(folder):
        if place.name.startswith(UNSEEN):
            continue
        clips = len(files.find(place, audio.EXTENSIONS)[0])
        domain = _domain(place.name)
        if clips and shares.get(domain):
            found.append((as_source(place), clips, domain))
    if not found:
        raise FileNotFoundError(f"{folder}: no sub-folder with audio in it")
    totals = {d: sum(n for _, n, other in found if other == d) for d in shares}
    return tuple((spec, shares[d] * n / totals[d], d) for spec, n, d in found)


def find_unseen(folder: Path) -> tuple[str, ...]:
    """DIR -> sources of the sub-folders that are tested on apart, none where there is none."""
    return tuple(as_source(p) for p in sub_folders(folder) if p.name.startswith(UNSEEN))


def sub_folders(folder: Path) -> list[Path]:
    """Folders in a folder, by name."""
    return sorted(p for p in folder.iterdir() if p.is_dir())


def as_source(place: Path) -> str:
    """A folder of audio as a source: with transcripts in LibriSpeech's layout, or plain."""
    kind = "librispeech" if any(place.rglob("*.trans.txt")) else "folder"
    return f"{kind}:{place}"


def _domain(name: str) -> str:
    """Sub-folder name -> one of DOMAINS."""
    if name.startswith("sound"):
        return "audio"
    return next((d for d in DOMAINS if name.startswith(d)), "speech")
