"""How far apart two systems lie that were measured on the same things."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from typing import Any

import scipy.stats


def difference(runs: Mapping[Any, dict], control: Mapping[Any, dict], name: str) -> dict | None:
    """Mean of `runs` - `control` over the keys both have, with its 95 % t-interval and p-value.

    Keys are what pairs them: a seed, whose runs share start, order of data and noise; or a clip.
    {"mean", "half_width", "relative", "p", "pairs"}; None where nothing is in both.
    """
    pairs = [(runs[key].get(name), control[key].get(name)) for key in runs if key in control]
    known = [(a, b) for a, b in pairs if a is not None and b is not None]
    if not known:
        return None
    changes = [a - b for a, b in known]
    mean, half, p = statistics.fmean(changes), None, None
    if len(changes) > 1:
        spread = statistics.stdev(changes) / math.sqrt(len(changes))
        half = float(scipy.stats.t.ppf(0.975, len(changes) - 1) * spread)
        ratio = abs(mean) / spread if spread else (math.inf if mean else 0.0)
        p = float(2 * scipy.stats.t.sf(ratio, len(changes) - 1))
    level = statistics.fmean(b for _, b in known)
    return {
        "mean": mean, "half_width": half, "relative": mean / level if level else None, "p": p,
        "pairs": len(changes),
    }  # fmt: skip
