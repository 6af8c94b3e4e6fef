"""Takes what a run learned elsewhere; the run itself is only read.

python -m llmcodec_jax.export --run RUN --format auv|safetensors|hf --output PATH

    auv          the codec as a .pt in the published layout (torch.load opens it)
    safetensors  the codec as one .safetensors, which load_codec and encode read
    hf           the language model with <CODEC_i> merged into table, head and tokenizer
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import orbax.checkpoint as ocp

from llmcodec_jax.codec import store
from llmcodec_jax.codec.store import save_safetensors, save_torch
from llmcodec_jax.data.embedded import lm_path
from llmcodec_jax.lm import huggingface
from llmcodec_jax.lm.load import load_lm


def newest_checkpoint(run: Path) -> Path:
    """The run's newest complete checkpoint. Raises FileNotFoundError."""
    found = [p for p in (run / "checkpoints").glob("*") if p.name.isdigit()]
    if not found:
        raise FileNotFoundError(f"{run / 'checkpoints'}: no checkpoint; is this a run folder?")
    return max(found, key=lambda p: int(p.name))


def audio_rows(checkpoint: Path) -> tuple[np.ndarray, np.ndarray]:
    """(input rows [V, H], head rows [V, H]) out of a checkpoint, nothing else being read.

    The first future-token head predicts the next code: it is the language model's audio head.
    Raises ValueError where the run had no language model.
    """
    handler = ocp.PyTreeCheckpointHandler()
    with ocp.Checkpointer(handler) as checkpointer:
        folder = (checkpoint / "state").resolve()
        saved = checkpointer.metadata(folder).item_metadata.tree["params"]
        names = ("audio_embedding", "ftp_heads")
        if not all(name in saved for name in names):
            raise ValueError(f"{checkpoint}: this run trained no language model's audio rows")
        wanted = {"params": {name: saved[name] for name in names}}
        as_numpy = {"params": {n: ocp.RestoreArgs(restore_type=np.ndarray) for n in names}}
        restored = checkpointer.restore(
            folder,
            args=ocp.args.PyTreeRestore(wanted, restore_args=as_numpy, partial_restore=True),
        )["params"]
    return restored["audio_embedding"], restored["ftp_heads"][0]


def export_language_model(run: Path, output: Path) -> None:
    """Merges the run's audio rows into its frozen LM: a Hugging Face folder, written whole."""
    checkpoint = newest_checkpoint(run)
    embedding, head = audio_rows(checkpoint)
    about = json.loads((checkpoint / "about" / "metadata").read_text())
    lm = about["config"]["lm"]
    path = lm_path(lm["path"])
    config, params, tokenizer = load_lm(path, lm["dtype"])
    partial = output.with_name(f".{output.name}.part")
    shutil.rmtree(partial, ignore_errors=True)
    huggingface.export(partial, config, params, tokenizer, embedding, head)
    os.rename(partial, output)


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
    try:
        if args.format == "hf":
            export_language_model(args.run, args.output)
        else:
            write = {"auv": save_torch, "safetensors": save_safetensors}[args.format]
            write(args.output, *store.load(args.run))
    except (ValueError, FileNotFoundError) as error:
        parser.error(str(error))
    print(args.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
