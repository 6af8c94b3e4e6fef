"""What a speech LM's prompt and each pass of its decoder cost, random weights.

    python -m llmcodec_jax.benchmarks writing [--width 192 --layers 4 --rows 1282 --heads 1 4]

Milliseconds to read `--prompt` tokens and of a pass that follows, the least of the repeats; a pass
of K heads verifies K tokens of every clip. Divided by the tokens that stay of a pass, which random
weights cannot tell (`generate --compare` does), that is the time of a token.
"""

from __future__ import annotations

import argparse
import sys

import jax
import jax.numpy as jnp

from llmcodec_jax.benchmarks.codec import clock
from llmcodec_jax.errors import answer_errors
from llmcodec_jax.lm import generate
from llmcodec_jax.lm.config import small_config
from llmcodec_jax.lm.decoder import init_params
from llmcodec_jax.lm.sampling import Sampling


def random_writer(width: int, layers: int, rows: int, heads: int) -> generate.Writer:
    """A decoder from scratch and its heads."""
    config = small_config(256, width, layers)
    body, embedding, head = jax.random.split(jax.random.key(0), 3)
    return generate.Writer(
        init_params(config, body),
        0.02 * jax.random.normal(embedding, (rows, width)),
        0.05 * jax.random.normal(head, (heads, rows, width)),
        jnp.ones((1, rows), bool),
        None,
        config,
    )


def measure(
    writer: generate.Writer, batch: int, prompt: int, passes: int, sampling: Sampling, repeats: int
) -> tuple[float, float]:
    """-> milliseconds of CPU time for the prompts and for a pass."""
    ids = jnp.arange(batch * prompt).reshape(batch, prompt) % len(writer.embedding)
    embeds, lengths = writer.embedding[ids], jnp.full(batch, prompt)
    keys = jax.random.split(jax.random.key(1), batch)
    tokens = passes * len(writer.heads)
    limits = jnp.full(batch, tokens)

    def read():
        return generate.start(writer, embeds, lengths, keys, sampling, tokens)

    reading = min(cpu for _, cpu in clock(read, repeats))
    ready = iter([read() for _ in range(repeats)])  # each is given up to the passes that follow

    def write():
        return generate.extend(writer, next(ready), sampling, passes, -1, limits)

    writing = min(cpu for _, cpu in clock(write, repeats))
    return 1e3 * reading, 1e3 * writing / passes


@answer_errors
def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--width", type=int, default=192, help="of the decoder")
    add("--layers", type=int, default=4, help="of the decoder")
    add("--rows", type=int, default=1282, help="tokens that may be written")
    add("--heads", type=int, nargs="+", default=[1, 4], help="tokens a pass")
    add("--batch", type=int, nargs="+", default=[1, 4], help="clips at once")
    add("--prompt", type=int, default=256, help="tokens")
    add("--passes", type=int, default=60, help="measured passes")
    add("--temperature", type=float, default=0.8, help="0 takes the likeliest")
    add("--top-p", type=float, default=0.95, help="the likeliest that hold this share compete")
    add("--repeats", type=int, default=7, help="of which the least is shown")
    args = parser.parse_args(argv)
    sampling = Sampling(args.temperature, 0, args.top_p).check()
    print(f"{'heads':>5} {'clips':>5} {'prompt, ms':>11} {'pass, ms':>9}")
    for heads in args.heads:
        writer = random_writer(args.width, args.layers, args.rows, heads)
        for batch in args.batch:
            reading, writing = measure(
                writer, batch, args.prompt, args.passes, sampling, args.repeats
            )
            print(f"{heads:5} {batch:5} {reading:11.2f} {writing:9.3f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
