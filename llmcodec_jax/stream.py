"""Raw audio through a causal codec and back, live: 16-bit mono PCM on stdin and stdout.

    python -m llmcodec_jax.stream --codec CODEC < in.pcm > out.pcm

Audio is at the codec's rate, little-endian. Each chunk is written as soon as it is heard; at the
end the latency and the real-time factor are told on stderr (seconds computed per second of audio).
"""

from __future__ import annotations

import argparse
import sys
import time
from typing import BinaryIO

import numpy as np

from llmcodec_jax.codec import store
from llmcodec_jax.codec.streaming import Stream
from llmcodec_jax.errors import UsageError, answer_errors

FULL_SCALE = 32768.0  # of 16-bit samples


def warm_up(stream: Stream) -> None:
    """Compiles all that the stream runs, then forgets the silence it ran on."""
    silence = np.zeros((stream.lead + stream.frames) * stream.module.hop, np.float32)
    stream.decode(stream.encode(silence))
    stream.reset()


def run(stream: Stream, source: BinaryIO, sink: BinaryIO) -> tuple[int, float, float]:
    """Codes all of `source` into `sink` -> (samples, wall and CPU seconds spent on them).

    A last odd byte is half a sample and is left out.
    """
    size, samples, wall, cpu = 2 * stream.frames * stream.module.hop, 0, 0.0, 0.0
    heard = 0
    while True:
        data = source.read(size)
        started, busy = time.perf_counter(), time.process_time()
        pcm = np.frombuffer(data[: len(data) // 2 * 2], "<i2")
        samples += len(pcm)
        out = stream.decode(stream.encode(pcm.astype(np.float32) / FULL_SCALE))
        if len(data) < size:
            codes = stream.flush_encoder()
            out = np.concatenate([out, stream.decode(codes), stream.flush_decoder()])
            out = out[: samples - heard]  # without what fills the last frame
        heard += len(out)
        wall, cpu = wall + time.perf_counter() - started, cpu + time.process_time() - busy
        sink.write((np.clip(out, -1, 1 - 1 / FULL_SCALE) * FULL_SCALE).round().astype("<i2"))
        sink.flush()
        if len(data) < size:
            return samples, wall, cpu


@answer_errors
def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--codec", required=True, help="a causal codec: EnCodec 24 kHz or Mimi")
    parser.add_argument("--frames", type=int, default=1, help="frames of a chunk (default 1)")
    parser.add_argument("--levels", type=int, help="codebooks to use (default all)")
    args = parser.parse_args(argv)
    module, variables = store.load(args.codec)
    if args.frames < 1:
        raise UsageError(f"--frames is {args.frames}; a chunk has at least one")
    if args.levels is not None and not 1 <= args.levels <= module.levels:
        raise UsageError(f"--levels is {args.levels}; this codec has 1 to {module.levels}")
    if sys.stdin.isatty():
        raise UsageError("give raw 16-bit mono audio on stdin: < in.pcm")
    stream = Stream(module, variables, args.frames, args.levels)
    warm_up(stream)
    try:
        samples, wall, cpu = run(stream, sys.stdin.buffer, sys.stdout.buffer)
    except BrokenPipeError:  # whoever listened has gone
        sys.stderr.write("error: the output was closed\n")
        return 1
    seconds = max(samples / module.sample_rate, 1e-9)
    print(
        f"{seconds:.1f} s at {module.sample_rate} Hz; real-time factor {wall / seconds:.3f} "
        f"({cpu / seconds:.3f} CPU seconds a second); latency {1000 * stream.latency:.0f} ms, "
        f"first sound after {1000 * stream.start:.0f} ms",
        file=sys.stderr,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
