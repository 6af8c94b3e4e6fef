"""Takes what a run learned, or any codec, elsewhere; what is exported is only read.

python -m llmcodec_jax.export --run RUN --format auv|safetensors|hf --output PATH
python -m llmcodec_jax.export --codec CODEC --format onnx|stablehlo --output DIR

    auv          the codec as a .pt in the published layout (torch.load opens it)
    safetensors  the codec as one .safetensors, which load_codec and encode read
    hf           the language model with <CODEC_i> merged into table, head and tokenizer
    onnx         encoder and decoder for ONNX runtimes, checked against JAX (extra: onnx)
    stablehlo    the same as serialised StableHLO for CPU, CUDA and TPU
"""

from __future__ import annotations

import argparse
import math
import os
import shutil
import sys
from pathlib import Path

import numpy as np

from llmcodec_jax import audio, load_codec
from llmcodec_jax.codec import portable, store
from llmcodec_jax.codec.store import save_safetensors, save_torch
from llmcodec_jax.data.embedded import lm_path
from llmcodec_jax.errors import UsageError, answer_errors
from llmcodec_jax.lm import huggingface
from llmcodec_jax.lm.load import load_lm
from llmcodec_jax.training.checkpoint import Checkpoints
from llmcodec_jax.training.notes import Notes
from llmcodec_jax.training.resume import CheckpointError

OF_RUNS, OF_CODECS = ("auv", "safetensors", "hf"), ("onnx", "stablehlo")
CHECKED = 32  # clips of --check that are compared at most


def audio_rows(run: Path) -> tuple[Notes, np.ndarray, np.ndarray]:
    """The newest checkpoint's (notes, input rows [V, H], head rows [V, H]), nothing else read.

    The first future-token head predicts the next code: it is the language model's audio head.
    Raises CheckpointError where there is no checkpoint or the run had no language model.
    """
    checkpoints = Checkpoints.of_run(run)
    about, found = checkpoints.read_arrays(("audio_embedding", "ftp_heads"))
    if len(found) < 2:
        raise CheckpointError(
            f"{checkpoints.folder}: this run trained no language model's audio rows"
        )
    return about, found["audio_embedding"], found["ftp_heads"][0]


def export_language_model(run: Path, output: Path) -> None:
    """Merges the run's audio rows into its frozen LM: a Hugging Face folder, written whole."""
    about, embedding, head = audio_rows(run)
    lm = about.config["lm"]
    config, params, tokenizer = load_lm(lm_path(lm["path"]), lm["dtype"])
    partial = output.with_name(f".{output.name}.{os.getpid()}.part")
    try:
        huggingface.export(partial, config, params, tokenizer, embedding, head)
        os.rename(partial, output)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def export_codec(args: argparse.Namespace) -> None:
    """Writes --codec for other runtimes; says how closely the result agrees with JAX."""
    codec = load_codec(args.codec, batch_size=1)
    buckets = codec.buckets
    if args.seconds:
        buckets = sorted({math.ceil(s * codec.sample_rate / codec.hop) for s in args.seconds})
        if buckets[0] < 1:
            raise UsageError("--seconds: lengths are positive")
    if args.format == "stablehlo":
        portable.export_stablehlo(codec, args.output, buckets)
        return
    rate, limit = codec.sample_rate, buckets[-1] * codec.hop
    if args.check:
        clips = [audio.load(path, rate)[:limit] for path in audio.find(args.check)[:CHECKED]]
    else:
        clips = portable.test_signals(rate)
    found = portable.export_onnx(codec, args.output, clips, buckets)
    print(
        f"checked on {len(clips)} {'clips' if args.check else 'made signals'}: "
        f"{found['equal_codes']:.2%} of the codes equal, audio within {found['audio_error']:.1e}"
    )


@answer_errors
def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--run", type=Path, help="run folder of the trainer")
    source.add_argument("--codec", help="any codec (onnx, stablehlo)")
    parser.add_argument("--format", required=True, choices=(*OF_RUNS, *OF_CODECS))
    parser.add_argument("--output", required=True, type=Path, help="file or folder to write")
    parser.add_argument(
        "--seconds",
        nargs="+",
        type=float,
        help="lengths that clips are padded to, a pair of files each (default: the codec's own)",
    )
    parser.add_argument("--check", type=Path, help="folder of clips to compare onnx with JAX on")
    args = parser.parse_args(argv)
    if args.output.exists():
        parser.error(f"{args.output} exists; name another or remove it")
    if (args.format in OF_RUNS) != (args.run is not None):
        parser.error(f"{', '.join(OF_RUNS)} take --run, {', '.join(OF_CODECS)} take --codec")
    args.output.parent.mkdir(parents=True, exist_ok=True)
    if args.format in OF_CODECS:
        export_codec(args)
    elif args.format == "hf":
        export_language_model(args.run, args.output)
    else:
        write = {"auv": save_torch, "safetensors": save_safetensors}[args.format]
        write(args.output, *store.load(args.run))
    print(args.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
