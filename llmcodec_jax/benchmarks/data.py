"""How fast the loader is, against how fast a training step eats.

    python -m llmcodec_jax.benchmarks data --source librispeech:DIR --workers 0 2 4
        [--batch-size 10 --clip-seconds 4 --step-seconds 0.5]

For each number of workers: clips per second and seconds of audio per second (x real time) by the
clock, and per core: per second of CPU time, which other programs on the machine do not disturb
(0 workers only). A step of `--step-seconds` consumes batch x clip seconds in that time; the last
line says how many such consumers 8 cores like these would feed.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
import time

from tqdm import tqdm

from llmcodec_jax.data.batches import Batches
from llmcodec_jax.data.examples import ExampleMaker
from llmcodec_jax.data.pipeline import Loader
from llmcodec_jax.data.sources import open_mixture
from llmcodec_jax.errors import answer_errors


@dataclasses.dataclass(frozen=True)
class Rates:
    """What a loader did: clips and audio seconds, and the time it took by clock and CPU."""

    clips: int
    audio: float
    clock: float
    cpu: float  # of this process: all of the loading where there are no worker processes


def measure(loader: Loader, sample_rate: int, batches: int, warmup: int) -> Rates:
    """Draws `batches` after `warmup` others, which start the workers and empty their buffers."""
    for _ in range(warmup):
        next(loader)
    clips, samples = 0, 0
    clock, cpu = time.perf_counter(), time.process_time()
    for _ in tqdm(range(batches), unit="batch", leave=False, disable=None):
        batch = next(loader)
        clips += len(batch.wav_length)
        samples += int(batch.wav_length.sum())
    clock, cpu = time.perf_counter() - clock, time.process_time() - cpu
    return Rates(clips, samples / sample_rate, clock, cpu)


@answer_errors
def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--source", required=True, nargs="+", help="one or more sources")
    parser.add_argument("--workers", type=int, nargs="+", default=[0], help="process counts to try")
    parser.add_argument("--threads", type=int, default=2, help="threads where workers are 0")
    parser.add_argument("--batches", type=int, default=100, help="measured batches")
    parser.add_argument("--batch-size", type=int, default=10, help="clips a batch")
    parser.add_argument("--clip-seconds", type=float, default=4.0, help="longest clip")
    parser.add_argument("--sample-rate", type=int, default=16_000, help="Hz")
    parser.add_argument(
        "--step-seconds", type=float, default=0.5, help="time of the training step to compare with"
    )
    parser.add_argument("--cache", help="cache folder of the embedded source")
    arguments = parser.parse_args(argv)
    rate = arguments.sample_rate
    hop = max(rate // 50, 1)  # frames as long as most codecs' own; only the clip is made of them
    clip = max(hop, round(arguments.clip_seconds * rate / hop) * hop)
    maker = ExampleMaker(sample_rate=rate, clip_samples=clip, hop=hop)
    demand = arguments.batch_size * clip / rate / arguments.step_seconds
    print(f"a step consumes {demand:.0f} s of audio per second; {os.cpu_count()} cores here")
    print(f"{'workers':>8} {'clips/s':>9} {'x real time':>12} {'per core':>9}")
    per_core = None
    for workers in arguments.workers:
        parts = open_mixture(arguments.source, cache=arguments.cache)
        batches = Batches(parts, maker, batch_size=arguments.batch_size, seed=0)
        with Loader(batches, workers=workers, threads=arguments.threads) as loader:
            rates = measure(loader, rate, arguments.batches, max(2, 4 * workers))
        if not workers:
            per_core = rates.audio / rates.cpu
        core = "-" if workers else f"{per_core:.0f}"
        speed = rates.audio / rates.clock
        print(f"{workers:8d} {rates.clips / rates.clock:9.1f} {speed:12.0f} {core:>9}")
    if per_core is not None:
        print(f"8 cores would feed {8 * per_core / demand:.0f} such steps")
    return 0


if __name__ == "__main__":
    sys.exit(main())
