"""WebDataset: tar files in which members of one name but for their suffixes are one sample.

`webdataset:PATTERN` reads a tar, a folder of them, a glob or `shard-{000..127}.tar`, here or in a
store. A sample's audio is its member `.wav .flac .ogg .opus .mp3`; its text `.txt`, or the fields
`text`, `speaker` of `.json`. Where each member lies is found once and kept in the cache folder,
so that records are read at random, a range of bytes each.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import posixpath
import re
import tarfile
from pathlib import Path
from typing import NamedTuple

from llmcodec_jax import audio
from llmcodec_jax.audio import AudioError
from llmcodec_jax.data import block_cache, stores
from llmcodec_jax.data.cache import cache_dir
from llmcodec_jax.data.records import SPEAKER_NAMES, TEXT_NAMES, EncodedSound, Record
from llmcodec_jax.ops import files

SUFFIX = ".tar"
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")


class Member(NamedTuple):
    """A file in a tar."""

    name: str
    start: int
    size: int


class WebDatasetSource:
    """All samples with audio of the tars that a pattern names, in order; picklable.

    A record's name is `TAR/KEY`, without suffixes.
    """

    def __init__(self, pattern: str):
        """Raises AudioError where no tar is found, or one is damaged or without audio."""
        self.paths = [path for one in braces(pattern) for path in stores.expand(one, SUFFIX)]
        if not self.paths:
            raise AudioError(f"{pattern}: no {SUFFIX} file matches")
        self.label = stores.folder_name(self.paths[0])
        self.shards: list[int] = []  # records of each tar
        self._samples: list[tuple[int, str, tuple[Member, ...]]] = []
        for number, path in enumerate(self.paths):
            found = _samples(members(path))
            self._samples += [(number, key, sample) for key, sample in found]
            self.shards.append(len(found))
        if not self._samples:
            kinds = ", ".join(audio.EXTENSIONS)
            raise AudioError(f"{pattern}: no sample with audio ({kinds}) in these tars")

    def __len__(self) -> int:
        return len(self._samples)

    def name(self, index: int) -> str:
        number, key, _ = self._samples[index]
        return f"{posixpath.basename(self.paths[number]).removesuffix(SUFFIX)}/{key}"

    def group(self, index: int) -> str:
        return self.name(index)

    def record(self, index: int) -> Record:
        number, _, sample = self._samples[index]
        path, name = self.paths[number], self.name(index)
        parts = {_suffix(member.name): member for member in sample}
        sounding = next(parts[suffix] for suffix in audio.EXTENSIONS if suffix in parts)
        about = _about(path, parts)
        sound = EncodedSound(_bytes(path, sounding), f"{path}#{sounding.name}")
        uri = f"{path}#{sounding.name}"
        return Record(name, sound, about.get("text"), speaker=about.get("speaker"), uri=uri)


def open_member(path: str, name: str) -> EncodedSound:
    """The audio member of a tar. Raises AudioError."""
    found = next((member for member in members(path) if member.name == name), None)
    if found is None:
        raise AudioError(f"{path}: has no member {name}")
    return EncodedSound(_bytes(path, found), f"{path}#{name}")


def _bytes(path: str, member: Member) -> bytes:
    return block_cache.read(path, member.start, member.start + member.size)


def _about(path: str, parts: dict[str, Member]) -> dict[str, str]:
    """Text and speaker of a sample, as far as it says. Raises AudioError."""
    found: dict[str, str] = {}
    try:
        if ".json" in parts:
            fields = json.loads(_bytes(path, parts[".json"]))
            for key, names in (("text", TEXT_NAMES), ("speaker", SPEAKER_NAMES)):
                value = next((fields[n] for n in names if fields.get(n) is not None), None)
                found |= {key: str(value)} if value is not None else {}
        if ".txt" in parts:
            found["text"] = _bytes(path, parts[".txt"]).decode("utf-8-sig").strip()
    except (ValueError, AttributeError) as error:
        member = parts.get(".json") or parts[".txt"]
        raise AudioError(f"{path}#{member.name}: cannot be read ({error})") from error
    return {key: text for key, text in found.items() if text}


def braces(pattern: str) -> list[str]:
    """`a-{000..012}.tar` -> its thirteen names; anything else -> itself."""
    match = _RANGE.search(pattern)
    if match is None:
        return [pattern]
    first, last = match.groups()
    return [
        name
        for number in range(int(first), int(last) + 1)
        for name in braces(
            f"{pattern[: match.start()]}{number:0{len(first)}d}{pattern[match.end() :]}"
        )
    ]


def _suffix(name: str) -> str:
    return "." + posixpath.basename(name).partition(".")[2].lower()


def _samples(found: list[Member]) -> list[tuple[str, tuple[Member, ...]]]:
    """Neighbouring members of one key -> (key, members), those with audio."""

    def key(member: Member) -> str:
        folder, base = posixpath.split(member.name)
        return posixpath.join(folder, base.partition(".")[0])

    groups = ((name, tuple(group)) for name, group in itertools.groupby(found, key))
    return [
        (name, group)
        for name, group in groups
        if any(_suffix(member.name) in audio.EXTENSIONS for member in group)
    ]


_open = functools.partial(open, mode="rb")


def members(path: str) -> list[Member]:
    """Where a tar's files lie, in order; from the cache folder where it is known already.

    Raises AudioError for a missing, damaged or compressed tar.
    """
    try:
        size = stores.size(path)
        remote = stores.is_remote(path)
        stamp = "" if remote else Path(path).stat().st_mtime_ns
    except FileNotFoundError as error:
        raise AudioError(f"{path}: no such file") from error
    name = hashlib.blake2b(f"{path}\0{size}\0{stamp}".encode(), digest_size=16).hexdigest()
    kept = cache_dir() / "tar-members" / f"{name}.json"
    if kept.is_file():
        return [Member(*entry) for entry in json.loads(kept.read_text())]
    try:
        with (
            (block_cache.open_ranged if remote else _open)(path) as file,
            tarfile.open(fileobj=file, mode="r:") as archive,
        ):
            found = [Member(m.name, m.offset_data, m.size) for m in archive if m.isfile()]
    except (tarfile.TarError, EOFError) as error:
        raise AudioError(f"{path}: is no whole, uncompressed tar file ({error})") from error
    if found and found[-1].start + found[-1].size > size:
        raise AudioError(f"{path}: truncated, its last member is not whole; copy it again")
    with files.replacing(kept) as partial:
        partial.write_text(json.dumps(found))
    return found
