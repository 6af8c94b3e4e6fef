"""Published checkpoints -> this project's folders.

python -m llmcodec_jax.convert codec --input auv.pt --output DIR
python -m llmcodec_jax.convert qwen3 --input HF_DIR --output DIR
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from llmcodec_jax.errors import answer_errors


def convert_codec(source: str, output: Path, dtype: str) -> None:
    """Any CODEC (published .pt, .safetensors, run, folder) -> a converted folder."""
    from llmcodec_jax.codec import store
    from llmcodec_jax.codec.store import save_codec_folder

    codec, variables = store.load(source)
    save_codec_folder(output, codec, variables, dtype)
    print(f"{output}: {codec}")


def convert_qwen3(source: Path, output: Path, dtype: str) -> None:
    """A Hugging Face folder or .gguf file -> a Hugging Face folder of one dtype."""
    import jax.numpy as jnp

    from llmcodec_jax.lm import huggingface
    from llmcodec_jax.lm.load import load_lm

    config, params, tokenizer = load_lm(source, jnp.dtype(dtype))
    huggingface.export(output, config, params, tokenizer)
    print(f"{output}: {config}")


@answer_errors
def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    codec = commands.add_parser("codec", aliases=["auv"], help="codec weights of any known family")
    codec.add_argument("--input", required=True, help="any CODEC (see load_codec)")
    qwen3 = commands.add_parser("qwen3", help="frozen language model")
    qwen3.add_argument("--input", required=True, type=Path, help="Hugging Face folder or .gguf")
    for command, usual in ((codec, "float32"), (qwen3, "bfloat16")):
        command.add_argument(
            "--dtype", default=usual, choices=("bfloat16", "float32"), help=f"default: {usual}"
        )
        command.add_argument("--output", required=True, type=Path, help="folder to write")
    args = parser.parse_args(argv)
    if args.command != "qwen3":
        convert_codec(args.input, args.output, args.dtype)
    else:
        convert_qwen3(args.input, args.output, args.dtype)
    return 0


if __name__ == "__main__":
    sys.exit(main())
