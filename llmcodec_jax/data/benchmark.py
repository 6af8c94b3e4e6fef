"""How fast the loader is, against how fast a training step eats.

    python -m llmcodec_jax.data.benchmark --source librispeech:DIR --workers 0 2 4
        [--batch-size 10 --clip-seconds 4 --step-seconds 0.5]

For each number of workers: clips per second, and seconds of audio per second (the real-time
factor), in all and per core of this process and its workers. A step of `--step-seconds` consumes
batch x clip seconds in that time; the last column says how many such consumers 8 cores like these
would feed, at the measured rate per core.
"""

from __future__ import annotations

import argparse
import os
import sys
import time

from tqdm import tqdm

from llmcodec_jax.audio import AudioError
from llmcodec_jax.data.packages import FetchError
from llmcodec_jax.data.pipeline import Loader, make_loader


def measure(loader: Loader, batches: int, warmup: int = 2) -> dict[str, float]:
    """Rates of a loader over `batches` after `warmup`: clips, audio and CPU seconds, per second.

    The warm-up is not only the start of the workers: batches that were prefetched before the
    clock started are drawn, too, so that only steady work is measured.
    """
    for _ in range(warmup):
        next(loader)
    clips, seconds = 0, 0.0
    start = time.perf_counter()
    for _ in tqdm(range(batches), unit="batch", leave=False, disable=None):
        batch = next(loader)
        clips += len(batch.wav_length)
        seconds += float(batch.wav_length.sum())
    elapsed = time.perf_counter() - start
    return {"clips": clips / elapsed, "samples": seconds / elapsed, "elapsed": elapsed}


def main() -> None:
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
    arguments = parser.parse_args()
    hop, rate = 320, arguments.sample_rate
    clip = max(hop, round(arguments.clip_seconds * rate / hop) * hop)
    demand = arguments.batch_size * clip / rate / arguments.step_seconds
    print(f"a step consumes {demand:.0f} s of audio per second; {os.cpu_count()} cores here")
    print(
        f"{'workers':>8} {'cores':>6} {'clips/s':>9} {'x real time':>12} {'per core':>9} "
        f"{'8 cores / step':>15}"
    )
    for workers in arguments.workers:
        try:
            loader = make_loader(
                arguments.source,
                sample_rate=rate,
                batch_size=arguments.batch_size,
                clip_samples=clip,
                split="all",
                workers=workers,
                threads=arguments.threads,
                cache=arguments.cache,
            )
            with loader:
                warmup = max(2, 2 * workers)
                rates = measure(loader, arguments.batches, warmup)
        except (AudioError, FetchError, ValueError) as error:
            sys.exit(str(error))
        cores = min(workers or arguments.threads, os.cpu_count() or 1)
        factor = rates["samples"] / rate
        print(
            f"{workers:8d} {cores:6d} {rates['clips']:9.1f} {factor:12.0f} {factor / cores:9.0f} "
            f"{8 * factor / cores / demand:14.1f}x"
        )


if __name__ == "__main__":
    main()
