"""Seconds to encode and decode a 4-second clip, compilation apart.

    python -m llmcodec_jax.benchmarks codec [--codec CODEC] [--batch 1 8]

Without --codec: the published architecture with random weights (speed does not depend on them).
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from llmcodec_jax.codec import store
from llmcodec_jax.codec.auv.model import AUV


def measure(codec: AUV, variables, batch: int, seconds: float, repeats: int) -> dict[str, float]:
    """Encodes and decodes `batch` clips -> compile seconds; best and median seconds per clip."""
    samples = int(seconds * codec.sample_rate) // codec.hop * codec.hop
    noise = np.random.default_rng(0).standard_normal((batch, samples))
    wav = jnp.asarray(0.1 * noise, jnp.float32)

    def encode(variables, wav):
        return codec.apply(variables, wav, method="encode").codes

    def decode(variables, codes):
        return codec.apply(variables, codes, method="decode_codes")

    start = time.perf_counter()
    encode = jax.jit(encode).lower(variables, wav).compile()
    codes = encode(variables, wav)
    decode = jax.jit(decode).lower(variables, codes).compile()
    compiled = time.perf_counter() - start
    decode(variables, codes).block_until_ready()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        decode(variables, encode(variables, wav)).block_until_ready()
        times.append((time.perf_counter() - start) / batch)
    return {"compile": compiled, "best": min(times), "median": statistics.median(times)}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--codec", type=Path, help="CODEC to measure instead of random weights")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8], help="clips at once")
    parser.add_argument("--seconds", type=float, default=4.0, help="length of a clip")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    args = parser.parse_args(argv)
    if args.codec:
        codec, variables = store.load(args.codec)
        codec = codec.clone(dtype=args.dtype)
    else:
        codec = AUV(dtype=args.dtype)
        shortest = jnp.zeros((1, 4 * codec.hop))
        variables = jax.jit(lambda key: codec.init(key, shortest, method="reconstruct"))(
            jax.random.key(0)
        )
    variables = jax.device_put(variables)
    count = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    device = jax.devices()[0].device_kind
    print(f"{count:,} parameters, {args.dtype}, {device}, {os.cpu_count()} processors")
    for batch in args.batch:
        result = measure(codec, variables, batch, args.seconds, args.repeats)
        print(
            f"batch {batch}: {result['best']:.3f} s per {args.seconds:g}-s clip (median "
            f"{result['median']:.3f}), {args.seconds / result['best']:.1f} x real time; "
            f"compilation {result['compile']:.1f} s"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
