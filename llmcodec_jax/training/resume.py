"""What may change between a checkpoint and the run that goes on from it."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from typing import Any

from llmcodec_jax.errors import UserError
from llmcodec_jax.training.config import may_change
from llmcodec_jax.training.notes import Leaf

logger = logging.getLogger(__name__)


class CheckpointError(UserError, RuntimeError):
    """A run folder that cannot be resumed or written; the message says what to do."""


def flatten(config: dict, prefix: str = "") -> dict[str, Any]:
    """Nested dict -> {"a.b.c": leaf}."""
    flat = {}
    for name, value in config.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = _as_saved(value)
    return flat


def _as_saved(value: Any) -> Any:
    """Tuples as the lists that JSON brings back, at any depth: a mixture's parts are tuples."""
    return [_as_saved(v) for v in value] if isinstance(value, tuple | list) else value


def differences(saved: dict, current: dict) -> dict[str, tuple[Any, Any]]:
    """Fields whose values differ: {"a.b.c": (saved, current)}."""
    old, new = flatten(saved), flatten(current)
    return {
        name: (old.get(name), new.get(name))
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name)
    }


def _listed(changed: dict[str, tuple[Any, Any]]) -> str:
    lines = [
        f"  {name}: {old!r} in the checkpoint, {new!r} now" for name, (old, new) in changed.items()
    ]
    return "\n".join(lines)


def codec_option_may_change(current: dict) -> Callable[[str], bool]:
    """Whether an option of a codec's run, by its path, may differ when the run resumes."""
    family = current.get("codec", {}).get("name", "auv")
    return lambda path: may_change(path, family)


def check_config(
    saved: dict, current: dict, folder: os.PathLike, may_change: Callable[[str], bool]
) -> None:
    """Raises CheckpointError when a difference would break the state or the order of the data."""
    old, new = flatten(saved), flatten(current)
    breaking = {
        name: values
        for name, values in differences(saved, current).items()
        if name in old and name in new and not may_change(name)
    }
    if breaking:
        raise CheckpointError(
            f"{folder} was written by a run whose config differs where the state depends on it:\n"
            f"{_listed(breaking)}\nUse another --workdir, or restore these fields."
        )


def check_structure(
    saved: dict[str, Leaf], current: dict[str, Leaf], changed: dict, folder: os.PathLike
) -> None:
    """Raises CheckpointError when the state holds other arrays than this run's, naming them."""
    old = {name: (leaf.dtype, list(leaf.shape)) for name, leaf in saved.items()}
    new = {name: (leaf.dtype, list(leaf.shape)) for name, leaf in current.items()}
    names = [name for name in sorted(old.keys() | new.keys()) if old.get(name) != new.get(name)]
    if not names:
        return
    shown = [
        f"  {n}: {_shown(old.get(n))} in the checkpoint, {_shown(new.get(n))} now" for n in names
    ]
    more = [f"  and {len(names) - 8} more"] if len(names) > 8 else []
    fields = _listed(changed) or "  none: it was written by another version of the program"
    raise CheckpointError(
        f"{folder} holds another state than this run's:\n"
        + "\n".join(shown[:8] + more)
        + f"\nConfig fields that differ:\n{fields}\nUse another --workdir, or restore these fields."
    )


def _shown(leaf: tuple[str, list[int]] | None) -> str:
    return f"{leaf[0]}{leaf[1]}" if leaf else "absent"


def log_changes(saved: dict, current: dict) -> None:
    """One warning for each harmless change."""
    for name, (old, new) in differences(saved, current).items():
        logger.warning("config changed since the checkpoint: %s was %r, now %r", name, old, new)
