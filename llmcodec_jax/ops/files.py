"""Files that are there whole or not at all, and folders read without silent omissions."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import secrets
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A new, empty file beside `path` that takes its place once the block ends well.

    Readers of `path` never see half a file, and nothing is left behind on failure. The temporary
    name cannot be foreseen and is short, so that any name that fits the file system can be written.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{secrets.token_hex(8)}.part")
    os.close(os.open(partial, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


@contextlib.contextmanager
def building(path: str | Path) -> Iterator[Path]:
    """A new, empty folder beside `path` that becomes `path` once the block ends well.

    As with `replacing`, there is nothing or all of it, under a name that cannot be foreseen. Raises
    FileExistsError where `path` is there already, unless as an empty folder.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{_unfinished(path)}{secrets.token_hex(8)}")
    partial.mkdir()
    try:
        yield partial
        if path.is_dir() and any(path.iterdir()):
            raise FileExistsError(f"{path} is there already")
        os.rename(partial, path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def remove_unfinished(path: str | Path) -> None:
    """Removes what a killed `building(path)` left; for those who know that no other is at work."""
    path = Path(path)
    for stale in path.parent.iterdir():
        if stale.name.startswith(_unfinished(path)):
            shutil.rmtree(stale)


def _unfinished(path: Path) -> str:
    return f".{path.name[:64]}.part."


def read_json_lines(path: str | Path) -> list[dict]:
    """Rows of a file of one JSON object a line; [] where there is none.

    A line that an interruption cut short, or that is no object, is left out.
    """
    path, rows = Path(path), []
    for line in path.read_text("utf-8", "replace").splitlines() if path.exists() else ():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            row = None
        if isinstance(row, dict):
            rows.append(row)
        else:
            logger.warning("%s: a torn line is left out", path)
    return rows


def find(folder: str | Path, suffixes: Sequence[str]) -> tuple[list[Path], list[str]]:
    """Files below `folder` that end in one of `suffixes` (any case), sorted; and what is left out.

    Left out are hidden files (a Mac's copy holds a `._a.wav` for every `a.wav`), links to folders
    (they can lead in circles, or to clips that are there already), links to nothing and folders
    that may not be read: a sentence for each kind that occurs, with its count and an example.
    """
    folder, found = Path(folder), []
    omitted: dict[str, list[Path]] = {
        "hidden files": [],
        "linked folders, which are not followed": [],
        "links to nothing": [],
        "folders that may not be read": [],
    }
    hidden, linked, broken, closed = omitted.values()
    endings = tuple(suffix.lower() for suffix in suffixes)
    for place, folders, files in os.walk(folder, onerror=lambda e: closed.append(Path(e.filename))):
        here = Path(place)
        linked += [here / name for name in folders if (here / name).is_symlink()]
        secret = any(part.startswith(".") for part in here.relative_to(folder).parts)
        for name in files:
            if name.lower().endswith(endings):
                path = here / name
                kind = hidden if secret or name.startswith(".") else found
                (kind if path.is_file() else broken).append(path)
    left_out = [
        f"{len(paths)} {kind} (such as {min(paths).relative_to(folder)})"
        for kind, paths in omitted.items()
        if paths
    ]
    return sorted(found), left_out
