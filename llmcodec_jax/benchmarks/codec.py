"""Seconds to encode and decode a 4-second clip, compilation apart, and to stream it.

    python -m llmcodec_jax.benchmarks codec [--family auv | --codec CODEC] [--batch 1 8] [--stream]
        [--onnx FOLDER]

Without --codec: the published architecture of a family with random weights, on which speed does
not depend. CPU seconds add up all cores, so other work on the machine weighs little in them.
`--output` writes what was measured as a report that `evaluate compare` sets beside the others.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from llmcodec_jax.codec import registry, store
from llmcodec_jax.codec.streaming import Stream, stream_lead
from llmcodec_jax.errors import answer_errors
from llmcodec_jax.ops import files
from llmcodec_jax.portable import onnx


def random_variables(codec: nn.Module) -> dict:
    """Weights that keep signals near unit size, drawn without compiling anything."""
    rng = np.random.default_rng(0)
    wav = jax.ShapeDtypeStruct((1, 8 * codec.hop), jnp.float32)
    shapes = jax.eval_shape(lambda x: codec.init(jax.random.key(0), x, method="reconstruct"), wav)

    def draw(leaf):
        scale = float(np.prod(leaf.shape[:-1])) ** -0.5 if leaf.ndim > 1 else 1.0
        return (scale * (0.5 + rng.random(leaf.shape))).astype(leaf.dtype)

    return jax.tree.map(draw, shapes)


def clock(call, repeats: int) -> list[tuple[float, float]]:
    """(wall seconds, CPU seconds) of each of `repeats` calls."""
    times = []
    for _ in range(repeats):
        wall, cpu = time.perf_counter(), time.process_time()
        jax.block_until_ready(call())
        times.append((time.perf_counter() - wall, time.process_time() - cpu))
    return times


def noise(batch: int, seconds: float, rate: int, hop: int) -> np.ndarray:
    """float32 [batch, samples] of whole frames."""
    samples = int(seconds * rate) // hop * hop
    drawn = np.random.default_rng(0).standard_normal((batch, samples))
    return (0.1 * drawn).astype(np.float32)


def there_and_back(encode, decode, batch: int, repeats: int) -> dict[str, float]:
    """Seconds and CPU seconds per clip of two calls on `batch` clips."""
    there, back = clock(encode, repeats), clock(decode, repeats)
    walls = [(a[0] + b[0]) / batch for a, b in zip(there, back, strict=True)]
    return {
        "best": min(walls),
        "median": statistics.median(walls),
        "encode_cpu": min(cpu for _, cpu in there) / batch,
        "decode_cpu": min(cpu for _, cpu in back) / batch,
    }


def measure(codec: nn.Module, variables, batch: int, seconds: float, repeats: int) -> dict:
    """Encodes and decodes `batch` clips -> compile seconds; seconds and CPU seconds per clip."""
    wav = jnp.asarray(noise(batch, seconds, codec.sample_rate, codec.hop))

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
    costs = there_and_back(
        lambda: encode(variables, wav), lambda: decode(variables, codes), batch, repeats
    )
    return {"compile": compiled} | costs


def measure_onnx(folder: Path, batch: int, seconds: float, repeats: int) -> dict:
    """As `measure`, of the graphs that `export --format onnx` wrote into `folder`."""
    about = json.loads((folder / "codec.json").read_text())
    encoder, decoder = onnx.sessions(folder / f"{name}.onnx" for name in ("encoder", "decoder"))
    wav = {"wav": noise(batch, seconds, about["sample_rate"], about["hop"])}
    codes = {"codes": encoder.run(None, wav)[0]}
    decoder.run(None, codes)
    return there_and_back(
        lambda: encoder.run(None, wav), lambda: decoder.run(None, codes), batch, repeats
    )


def measure_stream(
    codec: nn.Module, variables, seconds: float, repeats: int, frames: int
) -> list[float]:
    """CPU seconds that a second of audio takes there and back, `frames` at a time, by repeat."""
    wav = noise(1, seconds, codec.sample_rate, codec.hop)[0]
    stream, factors = Stream(codec, variables, frames), []
    stream.decode(stream.encode(wav))  # compiles both kinds of step
    for _ in range(repeats):
        stream.reset()
        busy = time.process_time()
        for chunk in np.split(wav, range(frames * codec.hop, len(wav), frames * codec.hop)):
            stream.decode(stream.encode(chunk))
        factors.append((time.process_time() - busy) * codec.sample_rate / len(wav))
    return factors


def describe_stream(codec: nn.Module, factors: list[float], frames: int) -> dict:
    """What `evaluate compare` shows of a stream, in seconds; CPU seconds for a second of audio."""
    hop = codec.hop / codec.sample_rate
    lead = max(stream_lead(codec), frames)
    return {"latency": frames * hop, "start": lead * hop, "cpu": min(factors)}


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--codec", help="CODEC to measure instead of random weights")
    parser.add_argument("--family", default="auv", choices=sorted(registry.FAMILIES))
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8], help="clips at once")
    parser.add_argument("--seconds", type=float, default=4.0, help="length of a clip")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--stream", action="store_true", help="also in chunks")
    parser.add_argument("--frames", type=int, default=1, help="of a chunk")
    parser.add_argument("--onnx", type=Path, help="folder of `export --format onnx`, also measured")
    parser.add_argument("--output", type=Path, help="write a report (.json)")
    return parser.parse_args(argv)


@answer_errors
def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    if args.codec:
        codec, variables = store.load(args.codec)
        codec = codec.clone(dtype=args.dtype)
    else:
        codec = registry.FAMILIES[args.family].module(dtype=args.dtype)
        variables = random_variables(codec)
    variables = jax.device_put(variables)
    ready = getattr(codec, "fold", dict)(variables)  # as `load_codec` has them
    count = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    device = f"{jax.devices()[0].device_kind}, {os.cpu_count()} processors"
    print(f"{count:,} parameters, {args.dtype}, {device}")
    report = {"device": device, "dtype": args.dtype, "seconds": args.seconds, "speed": {}}
    for batch in args.batch:
        result = measure(codec, ready, batch, args.seconds, args.repeats)
        report["speed"][str(batch)] = result
        print(
            f"batch {batch}: {result['best']:.3f} s per {args.seconds:g}-s clip (median "
            f"{result['median']:.3f}), {args.seconds / result['best']:.1f} x real time; CPU "
            f"seconds {result['encode_cpu']:.3f} to encode, {result['decode_cpu']:.3f} to decode; "
            f"compilation {result['compile']:.1f} s",
            flush=True,
        )
        if args.onnx:
            found = measure_onnx(args.onnx, batch, args.seconds, args.repeats)
            print(
                f"batch {batch}, ONNX: {found['best']:.3f} s; CPU seconds "
                f"{found['encode_cpu']:.3f} to encode, {found['decode_cpu']:.3f} to decode",
                flush=True,
            )
    if args.stream:
        factors = measure_stream(codec, variables, args.seconds, args.repeats, args.frames)
        report["stream"] = describe_stream(codec, factors, args.frames)
        print(
            f"stream, {args.frames} frames at a time: {min(factors):.3f} CPU seconds per second "
            f"of audio (median {statistics.median(factors):.3f})"
        )
    if args.output:
        with files.replacing(args.output) as path:
            path.write_text(json.dumps(report, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
