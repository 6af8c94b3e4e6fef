"""llmcodec COMMAND: one name for every command; the same as python -m llmcodec_jax.COMMAND.

Nothing heavy is imported before a command is chosen, so `llmcodec --help` answers at once.
"""

from __future__ import annotations

import importlib
import sys
from typing import NamedTuple


class Command(NamedTuple):
    """Where a command lives and what it needs."""

    module: str  # below llmcodec_jax
    summary: str
    extra: str = ""  # of pyproject.toml: what `pip install` needs beyond the core
    takes_config: bool = False  # parses absl flags (--config) instead of argparse options


COMMANDS = {
    "encode": Command("encode", "audio files -> token files"),
    "decode": Command("decode", "token files -> audio files"),
    "codecs": Command("codecs", "the codecs that are read here: rates, sizes, licences"),
    "stream": Command("stream", "raw audio through a causal codec and back, live"),
    "demo": Command("demo", "a page to speak and hear codecs on"),
    "evaluate": Command("evaluate", "reconstruction, token LM, coherence, consistency", "eval"),
    "export_tokens": Command("export_tokens", "token files -> Parquet or JSON lines", "eval"),
    "convert": Command("convert", "published codec or LM weights -> a folder of ours", "train"),
    "export": Command("export", "a run's codec or merged LM for other systems", "train"),
    "train": Command("train", "train a codec from a config", "train", takes_config=True),
    "watch": Command("training.watch", "a page that follows a run while it goes on", "train"),
    "compile_check": Command(
        "compile_check", "does a config fit a machine: memory, times", "train", takes_config=True
    ),
    "speech_train": Command(
        "speech_lm.train", "train a speech LM on a codec's tokens", "train", takes_config=True
    ),
    "generate": Command("generate", "speech out of a speech LM: text, voices, clips", "train"),
    "reproduce": Command("reproduce", "the study in miniature", "train", takes_config=True),
    "rates": Command("study.rates", "a codec's levels: bits a second against quality", "train"),
    "prepare": Command("data.prepare", "a corpus -> shards that load fast", "train"),
    "units": Command("semantics.units", "k-means units of a speech encoder's layer"),
    "embedded": Command("data.embedded", "fetch the quickstart's speech and LM", "train"),
    "public_audio": Command("study.public_audio", "fetch the study's public audio", "train"),
    "benchmarks": Command("benchmarks.__main__", "what things cost on this machine", "train"),
}


def usage() -> str:
    """The text of `llmcodec --help`."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {command.summary}" for name, command in COMMANDS.items()]
    return "\n".join(
        ["usage: llmcodec COMMAND [OPTIONS]", "", *lines, "", "llmcodec COMMAND --help says more."]
    )


def main(argv: list[str] | None = None) -> int:
    """Hands the arguments after COMMAND to that command -> the process's exit code."""
    arguments = sys.argv[1:] if argv is None else argv
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(usage())
        return 0 if arguments else 2
    if arguments[0] in ("-V", "--version"):
        from llmcodec_jax import __version__

        print(f"llmcodec {__version__}")
        return 0
    name, rest = arguments[0].replace("-", "_"), arguments[1:]
    if name not in COMMANDS:
        print(f"llmcodec: no command {arguments[0]!r}\n\n{usage()}", file=sys.stderr)
        return 2
    return _run(name, COMMANDS[name], rest)


def _run(name: str, command: Command, arguments: list[str]) -> int:
    module_name = f"llmcodec_jax.{command.module}"
    # absl lists a command's own flags under its module, argparse its options under this name.
    sys.argv = [module_name if command.takes_config else f"llmcodec {name}", *arguments]
    try:
        module = importlib.import_module(module_name)
        if not command.takes_config:
            return module.main() or 0
        from llmcodec_jax.training import command_line

        sys.modules["__main__"].__doc__ = module.__doc__  # what absl prints above the flags
        command_line.start(module.main)
    except ModuleNotFoundError as error:
        if not command.extra or (error.name or "").startswith("llmcodec_jax"):
            raise
        print(
            f"error: llmcodec {name} needs {error.name}, which is not installed: "
            f'pip install "llmcodec-jax[{command.extra}]"',
            file=sys.stderr,
        )
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
