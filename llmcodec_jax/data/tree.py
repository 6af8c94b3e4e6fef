"""A tree of files on this machine or in an object store, by names relative to its root."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from llmcodec_jax.audio import AudioError
from llmcodec_jax.data import stores
from llmcodec_jax.data.records import EncodedSound, read_text
from llmcodec_jax.ops import files


class Tree:
    """What lies below a folder; of a store's folder the names are listed once. Picklable."""

    def __init__(self, root: str | Path):
        """Raises AudioError where there is no such folder."""
        self.root = str(root).rstrip("/")
        self._listed: frozenset[str] | None = None
        if stores.is_remote(root):
            found = stores.find(self.root, ("",))
            self._listed = frozenset(uri[len(self.root) + 1 :] for uri in found)
            self.label = self.root.rpartition("/")[2]
        else:
            self.root = str(Path(root).expanduser())
            self.label = Path(self.root).resolve().name
        if not (self._listed if self._listed is not None else Path(self.root).is_dir()):
            raise AudioError(f"{root}: no such folder")

    def find(self, suffixes: Sequence[str]) -> tuple[list[str], list[str]]:
        """Names that end in one of `suffixes`, sorted; and what is left out (`files.find`)."""
        if self._listed is None:
            found, left_out = files.find(self.root, suffixes)
            return [str(path.relative_to(self.root)) for path in found], left_out
        endings = tuple(suffix.lower() for suffix in suffixes)
        return sorted(name for name in self._listed if name.lower().endswith(endings)), []

    def has(self, name: str) -> bool:
        """Whether there is such a file."""
        return self.place(name).is_file() if self._listed is None else name in self._listed

    def place(self, name: str) -> Path:
        """A local file's path."""
        return Path(self.root, name)

    def uri(self, name: str) -> str:
        """A file's absolute path or URI."""
        if self._listed is None:
            return str(self.place(name).absolute())
        return f"{self.root}/{name}"

    def text(self, name: str) -> str:
        """A UTF-8 file's text. Raises AudioError."""
        return read_text(self.place(name) if self._listed is None else self.uri(name))

    def label_of(self, name: str) -> str:
        """How errors name a file."""
        return str(self.place(name)) if self._listed is None else self.uri(name)

    def sound(self, name: str) -> EncodedSound:
        """An audio file, opened. Raises AudioError."""
        return EncodedSound(self.place(name) if self._listed is None else self.uri(name))
