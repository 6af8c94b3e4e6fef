"""What a tokenised corpus amounts to: live while it is made, and as a page at the end."""

from __future__ import annotations

import collections
import json
import sys
import time
from collections.abc import Iterable, Iterator

import numpy as np
from tqdm import tqdm

from llmcodec_jax.codec.jobs import printable
from llmcodec_jax.corpus.plan import Plan
from llmcodec_jax.corpus.shard import Part
from llmcodec_jax.data import stores
from llmcodec_jax.pages import html

FAILURES = "failures.jsonl"
REPORT = "report.html"
SUMMARY = "summary.json"
_SHOWN = 20  # failures named on the terminal and on the page


class Totals:
    """Sums over shards, of a size that does not grow with them."""

    def __init__(self, plan: Plan):
        self._plan = plan
        self.clips = self.failed = self.shards = 0
        self.seconds = 0.0
        self.counts = np.zeros(plan.levels * plan.codebook_size, np.int64)

    def add(self, part: Part) -> None:
        """Counts one shard in."""
        self.clips += part.clips
        self.failed += part.failed
        self.seconds += part.seconds
        self.shards += 1
        self.counts += part.counts

    def describe(self) -> dict:
        """What `summary.json` and the page say: hours, code use, entropy, rates."""
        plan = self._plan
        counts = self.counts.reshape(plan.levels, plan.codebook_size).astype(float)
        total = counts.sum(axis=1, keepdims=True)
        share = counts / np.maximum(total, 1)
        entropy = -np.sum(share * np.log2(np.maximum(share, 1e-30)), axis=1)
        frame_rate = plan.sample_rate / plan.hop
        return {
            "clips": self.clips,
            "failed": self.failed,
            "hours": self.seconds / 3600,
            "tokens": int(self.counts.sum()),
            "codes_used": [float(used) for used in (counts > 0).mean(axis=1)],
            "unigram_entropy_bits": [float(bits) for bits in entropy],
            "bits_per_second": frame_rate * plan.levels * float(np.log2(plan.codebook_size)),
            "entropy_bits_per_second": frame_rate * float(entropy.sum()),
        }


def follow(parts: Iterable[Part], plan: Plan, totals: Totals) -> None:
    """Adds parts up as they come, with a bar: clips, hours, times real time, failures."""
    begun, before = time.perf_counter(), totals.seconds
    with tqdm(total=plan.records, initial=totals.clips + totals.failed, unit="clip") as bar:
        for part in parts:
            totals.add(part)
            speed = (totals.seconds - before) / (time.perf_counter() - begun)
            bar.set_postfix_str(
                f"{totals.seconds / 3600:.3g} h, {speed:.0f} x real time, {totals.failed} failed"
            )
            bar.update(part.clips + part.failed)


def failures(output: str, plan: Plan) -> Iterator[bytes]:
    """The lists of failures of all shards that have any, in order."""
    present = stores.names(stores.join(output, "failures"))
    for shard in range(plan.shards):
        name = plan.failures_name(shard)
        if name.rpartition("/")[2] in present:
            yield stores.read(stores.join(output, name))


def finish(output: str, plan: Plan, totals: Totals, skipped: int) -> int:
    """Writes the dead-letter table, summary and page, prints them -> exit status."""
    about = totals.describe()
    letters = b"".join(failures(output, plan))
    stores.write(stores.join(output, FAILURES), letters)
    stores.write(stores.join(output, SUMMARY), (json.dumps(about, indent=1) + "\n").encode())
    lines = [json.loads(line) for line in letters.splitlines()]
    stores.write(stores.join(output, REPORT), _page(plan, about, lines).encode("utf-8", "replace"))
    for line in lines[:_SHOWN]:
        print(f"failed: {printable(line['reason'])}", file=sys.stderr)
    if len(lines) > _SHOWN:
        more = stores.join(output, FAILURES)
        print(f"... and {len(lines) - _SHOWN} more: {more}", file=sys.stderr)
    print(
        f"encoded: {totals.clips} clips, {about['hours']:.3g} h, {totals.failed} failed; "
        f"{totals.shards} shards, {skipped} of them already there; tokens:{output}"
    )
    return 1 if totals.failed else 0


def _page(plan: Plan, about: dict, lines: list[dict]) -> str:
    levels = [
        [f"level {level}", f"{used:.1%}", bits]
        for level, (used, bits) in enumerate(
            zip(about["codes_used"], about["unigram_entropy_bits"], strict=True)
        )
    ]
    numbers = [
        ["clips", about["clips"]],
        ["failed", about["failed"]],
        ["hours", about["hours"]],
        ["tokens", about["tokens"]],
        ["bits a second, as coded", about["bits_per_second"]],
        ["bits a second, unigram entropy", about["entropy_bits_per_second"]],
    ]
    sections = [
        ("What is there", html.table(["", ""], numbers)),
        ("Code use", html.table(["", "codes used", "unigram entropy, bits"], levels)),
    ]
    if lines:
        rows = [[line["id"], line["reason"]] for line in lines[:_SHOWN]]
        kinds = collections.Counter(line["reason"].rpartition(": ")[2][:60] for line in lines)
        reasons = html.table(["reason", "clips"], kinds.most_common(_SHOWN))
        sections.append(("Failures", reasons + html.table(["clip", "reason"], rows)))
    lead = f"{plan.source}, coded by the {plan.architecture} codec {plan.codec}"
    return html.page("Tokenised corpus", lead, sections)
