"""The cache folder: every entry is there whole or not at all, whoever else is filling it."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from pathlib import Path

from llmcodec_jax.ops import files

ENVIRONMENT = "LLMCODEC_CACHE"


def cache_dir(cache: str | Path | None = None) -> Path:
    """The argument, else $LLMCODEC_CACHE, else ~/.cache/llmcodec_jax."""
    return Path(cache or os.environ.get(ENVIRONMENT) or "~/.cache/llmcodec_jax").expanduser()


def build_once(target: Path, build: Callable[[Path], None]) -> Path:
    """Returns `target`, a folder that `build(empty folder)` has filled, now or earlier.

    Processes that ask at the same time wait for the one that builds. A build that fails or is
    killed leaves no `target`; what it left in its temporary folder goes with the next build.
    """
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with open(target.parent / f".{target.name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if target.is_dir():
            return target
        files.remove_unfinished(target)
        with files.building(target) as partial:
            build(partial)
    return target


def keep_compilations(min_seconds: float | None = None) -> None:
    """Compiled programs stay in the cache folder, unless JAX_COMPILATION_CACHE_DIR says where.

    `min_seconds`: programs that compiled faster are not kept; JAX's own limit by default. Commands
    that a person waits for keep more of them than a training run needs to.
    """
    import jax

    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        jax.config.update("jax_compilation_cache_dir", str(cache_dir() / "compiled"))
    if min_seconds is not None:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", min_seconds)
