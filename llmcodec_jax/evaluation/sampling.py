"""Which clips stand for many: chosen by hash, so that no alphabet has a say."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from llmcodec_jax.data.records import stable_hash

T = TypeVar("T")


def by_hash(items: Sequence[T], limit: int | None, name: Callable[[T], str] = str) -> list[T]:
    """At most `limit` items, those whose names have the smallest hashes, in their given order."""
    if limit is None or len(items) <= limit:
        return list(items)
    ranked = sorted(range(len(items)), key=lambda i: stable_hash(name(items[i]), 64))
    return [items[i] for i in sorted(ranked[:limit])]


def from_every_folder(names: Sequence[str], limit: int | None) -> list[str]:
    """At most `limit` of `FOLDER/NAME`, the same number from every first folder (at least one).

    A folder that has fewer gives all it has. Which ones is decided by hash.
    """
    folders: dict[str, list[str]] = {}
    for name in names:
        folders.setdefault(name.partition("/")[0] if "/" in name else "", []).append(name)
    share = None if limit is None else max(limit // max(len(folders), 1), 1)
    return [name for group in folders.values() for name in by_hash(group, share)]
