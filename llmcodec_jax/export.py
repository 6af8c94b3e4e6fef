"""Takes what a run learned elsewhere; the run itself is only read.

python -m llmcodec_jax.export --run RUN --format auv|safetensors|hf --output PATH

    auv          the codec as a .pt in the published layout (torch.load opens it)
    safetensors  the codec as one .safetensors, which load_codec and encode read
    hf           the language model with <CODEC_i> merged into table, head and tokenizer
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from pathlib import Path

import numpy as np

from llmcodec_jax.codec import store
from llmcodec_jax.codec.store import save_safetensors, save_torch
from llmcodec_jax.data.embedded import lm_path
from llmcodec_jax.errors import answer_errors
from llmcodec_jax.lm import huggingface
from llmcodec_jax.lm.load import load_lm
from llmcodec_jax.training.checkpoint import Checkpoints
from llmcodec_jax.training.notes import Notes
from llmcodec_jax.training.resume import CheckpointError


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


@answer_errors
def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", required=True, type=Path, help="run folder of the trainer")
    parser.add_argument("--format", required=True, choices=("auv", "safetensors", "hf"))
    parser.add_argument("--output", required=True, type=Path, help="file (hf: folder) to write")
    args = parser.parse_args(argv)
    if args.output.exists():
        parser.error(f"{args.output} exists; name another or remove it")
    args.output.parent.mkdir(parents=True, exist_ok=True)
    if args.format == "hf":
        export_language_model(args.run, args.output)
    else:
        write = {"auv": save_torch, "safetensors": save_safetensors}[args.format]
        write(args.output, *store.load(args.run))
    print(args.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
