"""How long the train step took to compile last time, so that a wait is no riddle."""

from __future__ import annotations

import hashlib
import json
import logging
import time

import jax

from llmcodec_jax.data.cache import cache_dir
from llmcodec_jax.ops import files

logger = logging.getLogger(__name__)

SLOW = 60  # seconds: from here on XLA prints starred lines of its own


class CompileTimes:
    """Around a compilation: says what to expect, and notes what it took."""

    def __init__(self, config: dict, phase):
        shape = {name: config.get(name) for name in ("codec", "discriminators", "lm", "mesh")}
        shape["data"] = {n: config["data"].get(n) for n in ("batch_size", "clip_seconds")}
        device = jax.devices()[0]
        described = [shape, list(phase), device.device_kind, jax.device_count()]
        self._key = hashlib.sha256(json.dumps(described, default=str).encode()).hexdigest()[:16]
        self._path = cache_dir() / "compile_seconds.json"
        self._phase = phase

    def _read(self) -> dict:
        try:
            found = json.loads(self._path.read_text())
        except (OSError, json.JSONDecodeError):
            return {}  # only a courtesy
        return found if isinstance(found, dict) else {}

    def __enter__(self) -> None:
        last = self._read().get(self._key)
        took = f"{last:.0f} s without the cache" if last else "minutes the first time"
        stars = "" if last and last < SLOW else '; XLA\'s "very slow compile" means no harm'
        logger.info("compiling the step that trains %s (%s%s)", self._phase, took, stars)
        self._start = time.perf_counter()

    def __exit__(self, kind, *_) -> None:
        seconds = time.perf_counter() - self._start
        if kind is None:
            logger.info("compiled in %.0f s", seconds)
        known = self._read()
        if kind is None and jax.process_index() == 0 and seconds > known.get(self._key, 1.0):
            with files.replacing(self._path) as partial:
                partial.write_text(json.dumps(known | {self._key: round(seconds, 1)}))
