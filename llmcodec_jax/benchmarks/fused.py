"""Memory and time of the fused bridge and future-token loss beside their plain forms.

    python -m llmcodec_jax.benchmarks bridge
    python -m llmcodec_jax.benchmarks ftp --codes 4096 --repeats 5

Both forms compute the same values and gradients from the same inputs. Memory is what the
compiler's own analysis reports as temporary, beyond inputs and outputs.
"""

from __future__ import annotations

import argparse
import platform
import sys
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
from tqdm import tqdm

from llmcodec_jax.bridge import LOGIT_LIMIT, bridge
from llmcodec_jax.losses.ftp import fused_linear_cross_entropy, future_targets


class Sizes(NamedTuple):
    """The problem's size; the defaults are the paper's."""

    clips: int = 10
    frames: int = 200
    codes: int = 20480
    width: int = 2560  # of the language model
    latent: int = 512  # of the codec
    horizons: int = 5


class Row(NamedTuple):
    """One line of the table; the times are None where it was only compiled."""

    name: str
    temporary: float  # MiB
    seconds: float | None  # best of the repeats, by the clock
    processor: float | None  # best of the repeats, of all cores together


def bridge_forms(sizes: Sizes) -> tuple[dict[str, Callable], tuple]:
    """({"plain", "fused"} -> function returning gradients, inputs) for the Gumbel bridge."""
    keys = jax.random.split(jax.random.key(0), 6)
    shape = sizes.clips, sizes.frames
    query = jax.random.normal(keys[0], (*shape, sizes.latent))
    weight = jax.random.normal(keys[1], (sizes.codes, sizes.latent)) * sizes.latent**-0.5
    embedding = jax.random.normal(keys[2], (sizes.codes, sizes.width)) * 0.02
    upstream = jax.random.normal(keys[3], (*shape, sizes.width))
    labels = jax.random.randint(keys[4], shape, 0, sizes.codes)
    inputs = (query, weight, jnp.zeros(sizes.codes), embedding, upstream, labels, keys[5])

    def total(embeds, nll, upstream):
        return jnp.sum(embeds * upstream) + jnp.sum(nll)

    def plain(query, weight, bias, embedding, upstream, labels, key):
        logits = jnp.clip(
            jnp.einsum("btd,vd->btv", query, weight) + bias, -LOGIT_LIMIT, LOGIT_LIMIT
        )
        scores = (logits + jax.random.gumbel(key, logits.shape)) / 0.5
        soft = jax.nn.softmax(scores)
        hard = jax.nn.one_hot(jnp.argmax(scores, axis=-1), sizes.codes)
        embeds = (hard - jax.lax.stop_gradient(soft) + soft) @ embedding
        picked = jnp.take_along_axis(logits, labels[..., None], axis=-1)[..., 0]
        return total(embeds, jax.nn.logsumexp(logits, axis=-1) - picked, upstream)

    def fused(query, weight, bias, embedding, upstream, labels, key):
        output = bridge(query, weight, bias, embedding, key, 0.5, mode="gumbel", labels=labels)
        return total(output.embeds, output.nll, upstream)

    forms = {"plain": plain, "fused": fused}
    return {name: jax.grad(f, argnums=(0, 1, 2, 3)) for name, f in forms.items()}, inputs


def ftp_forms(sizes: Sizes) -> tuple[dict[str, Callable], tuple]:
    """({"plain", "fused"} -> function returning gradients, inputs) for the K-head loss."""
    keys = jax.random.split(jax.random.key(0), 3)
    shape = sizes.clips, sizes.frames
    hidden = jax.random.normal(keys[0], (*shape, sizes.width))
    heads = jax.random.normal(keys[1], (sizes.horizons, sizes.codes, sizes.width)) * 0.02
    codes = jax.random.randint(keys[2], shape, 0, sizes.codes)
    targets = future_targets(codes, jnp.ones(shape, bool), sizes.horizons)
    labels, valid = targets.labels[:, 0], targets.valid[:, 0]

    def plain(hidden, heads, labels, valid):
        logits = jnp.einsum("bth,kvh->kbtv", hidden, heads)
        picked = jnp.take_along_axis(logits, labels[..., None], axis=-1)[..., 0]
        return jnp.sum(valid * (jax.nn.logsumexp(logits, axis=-1) - picked))

    def fused(hidden, heads, labels, valid):
        return jnp.sum(fused_linear_cross_entropy(hidden, heads, labels, valid)[0])

    forms = {"plain": plain, "fused": fused}
    inputs = (hidden, heads, labels, valid)
    return {name: jax.grad(f, argnums=(0, 1)) for name, f in forms.items()}, inputs


FORMS = {"bridge": bridge_forms, "ftp": ftp_forms}


def measure(name: str, sizes: Sizes, repeats: int = 3) -> Iterator[Row]:
    """Compiles both forms and, with `repeats` above 0, times them in turns: a row for each."""
    forms, inputs = FORMS[name](sizes)
    compiled = {form: jax.jit(f).lower(*inputs).compile() for form, f in forms.items()}
    clock: dict[str, list[float]] = {form: [] for form in forms}
    processor: dict[str, list[float]] = {form: [] for form in forms}
    for index in range(repeats + 1 if repeats else 0):  # the first one only warms up
        for form, function in compiled.items():
            start, busy = time.perf_counter(), time.process_time()
            jax.block_until_ready(function(*inputs))
            if index:
                clock[form].append(time.perf_counter() - start)
                processor[form].append(time.process_time() - busy)
    for form, function in compiled.items():
        temporary = function.memory_analysis().temp_size_in_bytes / 2**20
        times = min(clock[form], default=None), min(processor[form], default=None)
        yield Row(f"{name}, {form}", temporary, *times)


def table(rows: list[Row]) -> str:
    """Rows in pairs (plain, fused) -> a Markdown table, shares of the plain form in brackets.

    Processor seconds say what a form costs even on a machine busy with other work; they mean
    nothing on an accelerator.
    """
    lines = ["| | temporary memory, MiB | seconds | processor seconds |", "|---|---|---|---|"]
    for index, row in enumerate(rows):
        plain = rows[index - index % 2]
        pairs = zip(row[1:], plain[1:], strict=True)
        cells = ["-" if own is None else f"{own:,.2f} ({own / base:.2f})" for own, base in pairs]
        lines.append(f"| {row.name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Command line: prints one Markdown table, with the machine it was measured on."""
    parser = argparse.ArgumentParser(
        prog="python -m llmcodec_jax.benchmarks fused",
        description="Memory and time of the fused operations beside their plain forms.",
    )
    parser.add_argument("names", nargs="*", default=list(FORMS), help=f"of {', '.join(FORMS)}")
    parser.add_argument("--repeats", type=int, default=3, help="timed runs; 0 only compiles")
    for field, default in Sizes._field_defaults.items():
        parser.add_argument(f"--{field}", type=int, default=default)
    options = vars(parser.parse_args(argv))
    names, repeats = options.pop("names"), options.pop("repeats")
    if unknown := set(names) - set(FORMS):
        parser.error(f"unknown benchmark {', '.join(sorted(unknown))}")
    sizes = Sizes(**options)
    rows = []
    for name in tqdm(names, unit="benchmark"):
        rows += measure(name, sizes, repeats)
    device = jax.devices()[0]
    print(f"{device.platform} ({device.device_kind}), {platform.machine()}, jax {jax.__version__}")
    print(", ".join(f"{field} {value}" for field, value in sizes._asdict().items()))
    print(table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
