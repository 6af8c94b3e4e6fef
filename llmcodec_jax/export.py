"""Takes a codec, or what a run learned, elsewhere; runs and codecs are only read.

python -m llmcodec_jax.export --run RUN --format pt|safetensors|hf --output PATH
python -m llmcodec_jax.export --codec CODEC --format hub|onnx|stablehlo|web|... --output PATH

    pt           the codec as a .pt in its family's published layout (torch.load opens it);
                 "auv" is an older name of it
    safetensors  the codec as one .safetensors, which load_codec and encode read
    hf           the language model with <CODEC_i> merged into table, head and tokenizer
    hub          the codec as a folder to upload: weights, config, card, example; load_codec reads
                 it back, from the Hub as hf:OWNER/NAME
    onnx         encoder.onnx, decoder.onnx and an example that needs numpy and onnxruntime alone
    stablehlo    programs for CPUs, GPUs and TPUs that JAX loads without this package's modules
    web          a static page that runs the codec in the browser; needs npm once, to build it
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

from llmcodec_jax.codec import store
from llmcodec_jax.codec.store import save_safetensors, save_torch
from llmcodec_jax.data.embedded import lm_path
from llmcodec_jax.errors import answer_errors
from llmcodec_jax.lm import huggingface
from llmcodec_jax.lm.load import load_lm
from llmcodec_jax.ops import files
from llmcodec_jax.training.checkpoint import Checkpoints
from llmcodec_jax.training.notes import Notes
from llmcodec_jax.training.resume import CheckpointError

PROGRAMS = ("onnx", "stablehlo", "web")


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
    with files.building(output) as folder:
        huggingface.export(folder, config, params, tokenizer, embedding, head)


def export_programs(args: argparse.Namespace) -> None:
    """Writes a folder of programs and says how far they agree with JAX."""
    import llmcodec_jax
    from llmcodec_jax.portable import onnx, stablehlo
    from llmcodec_jax.web import site

    source = str(args.run or args.codec)
    codec, name = llmcodec_jax.load_codec(source), store.short_name(source)
    if args.format == "stablehlo":
        return stablehlo.export(codec, name, args.output)
    rate = codec.sample_rate
    clips = onnx.read_clips(args.clips, rate) if args.clips else onnx.made_up_clips(rate)
    if args.format == "web":
        found = site.build(codec, name, args.output, clips)
    else:
        found = onnx.export(codec, name, args.output, clips, args.int8)
    sounds = "clips" if args.clips else "made-up sounds (--clips DIR takes real ones)"
    print(
        f"{found.codes:.2%} of {found.frames} frames of {found.clips} {sounds} have JAX's codes; "
        f"audio within {found.audio:.1e}"
    )


def export_hub(args: argparse.Namespace) -> None:
    """Writes a folder to upload, with the scores and the licence that were given."""
    from llmcodec_jax.portable import hub

    source = str(args.run or args.codec)
    reports = hub.read_reports(args.report)
    hub.export(source, *store.load(source), args.output, args.licence, reports)
    if not args.licence:
        print("The card names no licence of the weights; --licence cc-by-4.0 would.")
    print(f"upload it: hf upload OWNER/NAME {args.output}")


@answer_errors
def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--run", type=Path, help="run folder of the trainer")
    source.add_argument("--codec", help="any codec that load_codec takes")
    formats = ("pt", "auv", "safetensors", "hf", "hub", *PROGRAMS)
    parser.add_argument("--format", required=True, choices=formats)
    parser.add_argument("--output", required=True, type=Path, help="file or folder to write")
    parser.add_argument("--clips", type=Path, help="onnx, web: sounds to compare with JAX on")
    parser.add_argument("--int8", action="store_true", help="onnx: matrices as 8-bit integers")
    parser.add_argument(
        "--report", type=Path, action="append", default=[],
        help="hub: a report of `evaluate reconstruction` for the card, repeatable",
    )  # fmt: skip
    parser.add_argument("--licence", default="", help="hub: of the weights, such as cc-by-4.0")
    args = parser.parse_args(argv)
    if args.output.exists():
        parser.error(f"{args.output} exists; name another or remove it")
    if args.int8 and args.format != "onnx":
        parser.error("--int8 belongs to --format onnx")
    if args.format == "hf" and args.run is None:
        parser.error("--format hf takes a language model's rows out of a --run")
    if args.format != "hub" and (args.report or args.licence):
        parser.error("--report and --licence belong to --format hub")
    args.output.parent.mkdir(parents=True, exist_ok=True)
    if args.format == "hf":
        export_language_model(args.run, args.output)
    elif args.format == "hub":
        export_hub(args)
    elif args.format in PROGRAMS:
        export_programs(args)
    else:
        write = {"pt": save_torch, "auv": save_torch, "safetensors": save_safetensors}[args.format]
        write(args.output, *store.load(args.run or args.codec))
    print(args.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
