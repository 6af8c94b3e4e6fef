"""What one accelerator does with this package, unattended, in one report: under eight minutes.

    python -m llmcodec_jax.benchmarks gpu --output report.json [--published step.py --python PYTHON]

Random weights at the paper's scale (configs/base.py): the matrix products' own speed; the training
step at several batch sizes, with the language model's products kept and recomputed; blocks of the
bridge and of the future-token loss; the fused forms beside the plain ones; the codec in float32,
with TF32 products and in bfloat16. MFU is the step's FLOPs without dead code over the speed of
products that was measured here. What does not fit says so; what --minutes leaves no time for too.

--published FILE names a script of yours around other code, not part of this package. It runs in
its own process (--python says with what), once a batch size, as
    FILE --batch B --seconds S --part step|codec
and prints one JSON object as its last line, such as {"step_seconds": 1.2} or {"encode_seconds":
0.1, "decode_seconds": 0.1}; for variants (TF32, bfloat16, torch.compile) as many keys as it likes.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import importlib
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
from tqdm import tqdm

from llmcodec_jax.benchmarks import fused
from llmcodec_jax.benchmarks.codec import measure as measure_codec
from llmcodec_jax.benchmarks.codec import random_variables
from llmcodec_jax.benchmarks.step import a_batch
from llmcodec_jax.bridge import bridge
from llmcodec_jax.errors import answer_errors
from llmcodec_jax.hardware import chips, costs
from llmcodec_jax.lm import decoder
from llmcodec_jax.losses.ftp import fused_linear_cross_entropy
from llmcodec_jax.ops import files
from llmcodec_jax.training import sharding
from llmcodec_jax.training.config import RunConfig, read_config
from llmcodec_jax.training.method import Method
from llmcodec_jax.training.schedules import Phase
from llmcodec_jax.training.state import init_state
from llmcodec_jax.training.tracing import compile_step, device_capacity, needed_bytes

Row = dict[str, Any]
PAPER = fused.Sizes()


@dataclasses.dataclass(frozen=True)
class Sizes:
    """What is measured; `toy` is for trying the command out."""

    config: RunConfig
    batches: tuple[int, ...] = (10, 4, 20, 40)
    matmul: int = 8192
    fused: fused.Sizes = PAPER
    bridge_chunks: tuple[int, ...] = (256, 512, 1024, 2048, 4096)
    ftp_rows: tuple[int, ...] = (128, 256, 512, 1024, 2048)
    codec_batches: tuple[int, ...] = (1, 8, 32)
    repeats: int = 5


def toy(config: RunConfig) -> Sizes:
    """The same measurements on shapes that any machine does at once."""
    small = fused.Sizes(clips=2, frames=12, codes=256, width=32, latent=16, horizons=2)
    return Sizes(config, (2,), 128, small, (128, 256), (8, 24), (1,), repeats=1)


def timed(call: Callable[[], Any], repeats: int) -> float:
    """Median seconds of a call, after one that warms up."""
    jax.block_until_ready(call())
    taken = []
    for _ in range(repeats):
        begin = time.perf_counter()
        jax.block_until_ready(call())
        taken.append(time.perf_counter() - begin)
    return statistics.median(taken)


def matmul(sizes: Sizes) -> Iterator[Row]:
    """Speed of one large product, in the forms that a step uses."""
    n = sizes.matmul
    for name, dtype, precision in (
        ("bfloat16", jnp.bfloat16, None),
        ("float32", jnp.float32, "highest"),
        ("float32 as TF32", jnp.float32, "default"),
    ):
        x = jax.random.normal(jax.random.key(0), (n, n), dtype)
        product = jax.jit(functools.partial(jnp.matmul, precision=precision))
        seconds = timed(lambda x=x, product=product: product(x, x), sizes.repeats)
        yield {"what": f"product {n} x {n}, {name}", "tflops": 2 * n**3 / seconds / 1e12}


def steps(sizes: Sizes, peak: float) -> Iterator[Row]:
    """The training step: phases, batch sizes, the LM's products kept or recomputed."""
    config = sizes.config
    lm_config, lm = config.lm.config, None
    if lm_config is not None:
        lm = decoder.init_params(lm_config, jax.random.key(1), jnp.dtype(config.lm.dtype))
    mesh = sharding.make_mesh(1, 1, 1)
    for batch in sizes.batches:
        own = dataclasses.replace(config, data=dataclasses.replace(config.data, batch_size=batch))
        phases = {"codec": Phase(True, False, False), "+ discriminators": Phase(True, True, False)}
        rows = [(name, phase, "never") for name, phase in phases.items()]
        if lm is not None:
            rows += [("whole", Phase(True, True, True), remat) for remat in ("never", "always")]
        if batch != sizes.batches[0]:
            rows = rows[2:] or rows[-1:]
        for name, phase, remat in rows:
            yield _step(own, lm_config, lm, mesh, name, phase, remat, peak, sizes.repeats)


def _step(config, lm_config, lm, mesh, name, phase, remat, peak, repeats) -> Row:
    method = Method.from_config(config, lm_config)
    if method.lm is not None:
        method = dataclasses.replace(method, lm=dataclasses.replace(method.lm, remat=remat))
    clips = config.data.batch_size
    row: Row = {"what": f"step, {name}, batch {clips}, lm.remat {remat}", "clips": clips}
    begin = time.perf_counter()
    with jax.set_mesh(mesh):
        state = jax.jit(lambda lm: init_state(method, lm, 0))(lm)
        batch = jax.device_put(a_batch(config, lm_config.vocab_size if lm_config else 2))
        compiled = compile_step(method, phase, mesh, state, lm, batch, device_capacity(mesh))
        row |= {"compile_seconds": time.perf_counter() - begin}
        row |= {"gib": needed_bytes(compiled.call) / 2**30}
        # Not one at which the R1 penalty is due: that is one of `r1_every`.
        state = state.replace(step=jnp.int32(1_000 * max(method.game.r1_every, 1) + 1))

        def run():
            nonlocal state  # donated: each call takes the last one's
            state, report = compiled.call(state, lm, batch)
            return report

        seconds = timed(run, repeats)
    flops = costs.work(compiled.jaxpr).flops
    row |= {"seconds": seconds, "clips_per_second": clips / seconds, "tflop": flops / 1e12}
    return row | ({"mfu": flops / seconds / peak} if peak else {})


def blocks(sizes: Sizes) -> Iterator[Row]:
    """Bridge and future-token loss with gradients, by the size of their blocks."""
    _, inputs = fused.bridge_forms(sizes.fused)
    *arrays, upstream, labels, key = inputs

    def bridged(chunk, *arrays):
        output = bridge(*arrays, key, 0.5, mode="gumbel", labels=labels, chunk=chunk)
        return jnp.sum(output.embeds * upstream) + jnp.sum(output.nll)

    for chunk in sizes.bridge_chunks:
        call = jax.jit(jax.grad(functools.partial(bridged, chunk), argnums=(0, 1, 2, 3)))
        yield _row(f"bridge, {chunk} codes a block", call, arrays, sizes.repeats)
    _, (hidden, heads, labels, valid) = fused.ftp_forms(sizes.fused)

    def predicted(rows, hidden, heads):
        return jnp.sum(fused_linear_cross_entropy(hidden, heads, labels, valid, rows)[0])

    for rows in sizes.ftp_rows:
        call = jax.jit(jax.grad(functools.partial(predicted, rows), argnums=(0, 1)))
        yield _row(f"future tokens, {rows} frames at once", call, (hidden, heads), sizes.repeats)


def _row(what: str, call, arguments, repeats: int) -> Row:
    compiled = call.lower(*arguments).compile()
    temporary = compiled.memory_analysis().temp_size_in_bytes / 2**30
    return {"what": what, "seconds": timed(lambda: compiled(*arguments), repeats), "gib": temporary}


def forms(sizes: Sizes) -> Iterator[Row]:
    """The fused operations beside their plain forms."""
    for name in fused.FORMS:
        for row in fused.measure(name, sizes.fused, sizes.repeats):
            yield {"what": row.name, "seconds": row.seconds, "gib": row.temporary / 1024}


def codec(sizes: Sizes) -> Iterator[Row]:
    """Encoding and decoding 4-second clips."""
    for batch in sizes.codec_batches:
        for name, dtype, precision in (
            ("float32", "float32", "highest"),
            ("TF32", "float32", "default"),
            ("bfloat16", "bfloat16", "default"),
        ):
            module = sizes.config.codec.clone(dtype=dtype)  # ty: ignore[unresolved-attribute]
            variables = jax.device_put(random_variables(module))
            with jax.default_matmul_precision(precision):
                seconds = sizes.config.data.clip_seconds
                found = measure_codec(module, variables, batch, seconds, sizes.repeats)
            clip = {"seconds": found["best"], "compile_seconds": found["compile"]}
            yield {"what": f"codec there and back, batch {batch}, {name}, a clip"} | clip


def published(sizes: Sizes, script: str, python: str) -> Iterator[Row]:
    """What a script of the user's measures of other code, at the same sizes."""
    sizes_of = {"step": sizes.batches, "codec": sizes.codec_batches}
    for part, batches in sizes_of.items():
        for batch in batches:
            command = [python, script, "--batch", str(batch), "--part", part]
            command += ["--seconds", str(sizes.config.data.clip_seconds)]
            done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
            lines = done.stdout.strip().splitlines()
            try:
                found = json.loads(lines[-1])
            except (IndexError, json.JSONDecodeError):
                found = {"problem": (done.stderr.strip().splitlines() or ["it said nothing"])[-1]}
            yield {"what": f"published {part}, batch {batch}"} | found


class Report:
    """Rows by section, written after each: what a kill leaves is whole."""

    def __init__(self, output: Path, deadline: float):
        self._output, self._deadline = output, deadline
        device = jax.devices()[0]
        about = {"device": device.device_kind, "platform": device.platform, "jax": jax.__version__}
        self.content: Row = about | {"sections": {}}

    def add(self, section: str, rows: Iterator[Row]) -> list[Row]:
        """Measures a section as far as there is time and memory."""
        found: list[Row] = []
        self.content["sections"][section] = found
        bar = tqdm(desc=section, unit="row")
        while True:
            if time.monotonic() > self._deadline:
                found.append({"what": "the rest", "problem": "no time was left (--minutes)"})
                break
            try:
                row = next(rows, None)
            except jax.errors.JaxRuntimeError as error:
                reason = str(error).splitlines()[0]
                full = "RESOURCE_EXHAUSTED" in reason
                row = {"what": "the rest", "problem": "out of memory" if full else reason}
            if row is None:
                break
            found.append(row)
            bar.update()
            with files.replacing(self._output) as partial:
                partial.write_text(json.dumps(self.content, indent=1) + "\n")
        bar.close()
        return found


def table(content: Row) -> str:
    """A report as one Markdown table."""
    lines = ["| | seconds | clips/s | TFLOP/s | MFU | GiB |", "|---|---|---|---|---|---|"]
    for rows in content["sections"].values():
        for row in rows:
            speed = row.get("tflops") or (row["tflop"] / row["seconds"] if "tflop" in row else None)
            values = (row.get("seconds"), row.get("clips_per_second"), speed, row.get("mfu"))
            cells = ["" if v is None else f"{v:.4g}" for v in (*values, row.get("gib"))]
            extra = {k: v for k, v in row.items() if k.endswith("_seconds") and k[:7] != "compile"}
            note = row.get("problem", "") or ", ".join(f"{k} {v:.4g}" for k, v in extra.items())
            lines.append(f"| {row['what']}{': ' if note else ''}{note} | {' | '.join(cells)} |")
    return "\n".join(lines)


@answer_errors
def main(argv: list[str] | None = None) -> int:
    """Measures, writes --output and prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", required=True, type=Path, help="report.json")
    parser.add_argument("--config", default="base", help="of configs/: what a step is")
    parser.add_argument("--minutes", type=float, default=7.5, help="after which rows are left out")
    parser.add_argument("--toy", action="store_true", help="tiny shapes, to try the command")
    parser.add_argument("--published", help="a script of yours around other code (see above)")
    parser.add_argument("--python", default=sys.executable, help="that runs it")
    args = parser.parse_args(argv)
    deadline = time.monotonic() + 60 * args.minutes
    config = read_config(importlib.import_module(f"configs.{args.config}").get_config())
    sizes = toy(shrunk(config)) if args.toy else Sizes(config)
    report = Report(args.output, deadline)
    products = report.add("products", matmul(sizes))
    peak = max((row.get("tflops", 0.0) for row in products), default=0.0) * 1e12
    report.content["published_peak_tflops"] = chips.peak_flops(jax.devices()[:1]) / 1e12
    report.add("step", steps(sizes, peak))
    report.add("codec", codec(sizes))
    report.add("blocks", blocks(sizes))
    report.add("fused and plain", forms(sizes))
    if args.published:
        report.add("published", published(sizes, args.published, args.python))
    print(table(report.content))
    return 0


def shrunk(config: RunConfig) -> RunConfig:
    """A config with every part of it a few thousand parameters."""
    source = ConfigDict(config.source)
    source.codec.update(width=64, encoder_layers=1, decoder_layers=1, codebook_size=64)
    source.discriminators.update(periods=(2,), period_channels=(4, 8), scale_channels=(4, 8))
    if source.lm.path:
        source.lm.config.update(
            vocab_size=64, width=32, layers=2, heads=4, kv_heads=2, head_dim=8, ffn_width=48
        )
        source.lm.begin_token = 0
    source.data.update(batch_size=2, clip_seconds=0.5, max_text=8)
    return read_config(source)


if __name__ == "__main__":
    sys.exit(main())
