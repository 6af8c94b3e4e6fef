"""What every evaluation reports: means, intervals, JSON without NaN."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from llmcodec_jax.errors import UsageError
from llmcodec_jax.ops import files


class EvaluationError(UsageError):
    """Inputs that cannot be compared; the message names the file and the fix."""


def summarise_columns(rows: Iterable[dict[str, float | None]]) -> dict:
    """{"mean", "interval"} of every named value over rows; null values take no part."""
    rows = list(rows)
    return {"mean": means(rows), "interval": intervals(rows)}


def means(rows: Iterable[dict]) -> dict[str, float | None]:
    return {name: defined(np.mean(v) if v else math.nan) for name, v in columns(rows).items()}


def intervals(rows: Iterable[dict]) -> dict[str, float | None]:
    return {
        name: defined(1.96 * np.std(v, ddof=1) / math.sqrt(len(v)) if len(v) > 1 else math.nan)
        for name, v in columns(rows).items()
    }


def columns(rows: Iterable[dict]) -> dict[str, list[float]]:
    """Metric -> its defined values."""
    columns: dict[str, list[float]] = {}
    for row in rows:
        for name, value in row.items():
            columns.setdefault(name, []).extend([] if value is None else [value])
    return columns


def defined(value: float) -> float | None:
    """JSON has no NaN: an undefined value is null."""
    return float(value) if math.isfinite(value) else None


def plus_minus(value: float | None, half: float | None, signed: bool = False) -> str:
    """A cell: a value to three places, with half its interval or its deviation where known."""
    if value is None:
        return "–"
    shown = f"{value:+.3f}" if signed else f"{value:.3f}"
    return shown + ("" if half is None else f" ± {half:.3f}")


def write_json(path: Path, content: dict) -> None:
    """Writes JSON atomically."""
    with files.replacing(path) as partial:
        partial.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", "utf-8")


def print_failures(failed: dict[str, str], output: str) -> int:
    """Clips that could not be used, on stderr -> exit status."""
    for reason in failed.values():
        print(f"failed: {reason}", file=sys.stderr)
    if failed:
        print(f"{len(failed)} clips left out; {output} names them", file=sys.stderr)
    return 1 if failed else 0
