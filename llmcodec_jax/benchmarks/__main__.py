"""What things cost here.

python -m llmcodec_jax.benchmarks fused|codec|data|reads|step|writing|gpu [--help]
"""

from __future__ import annotations

import importlib
import sys

NAMES = {
    "fused": "memory and time of the fused bridge and losses beside their plain forms",
    "codec": "encode, decode and stream, seconds per clip",
    "step": "a training step of any config, processor seconds and FLOPs by part",
    "writing": "what a speech LM's prompt and passes cost, with one head and with several",
    "gpu": "all of it on one accelerator, unattended, in one report",
    "reads": "memory of the LM side of a step for codecs of several levels",
    "data": "the loader, seconds of audio per second",
}


def main(argv: list[str] | None = None) -> int:
    """Hands the arguments to one benchmark; each has its own --help."""
    arguments = sys.argv[1:] if argv is None else argv
    if not arguments or arguments[0] in ("-h", "--help"):
        print(__doc__)
        width = max(map(len, NAMES))
        print("\n".join(f"  {name:{width}}  {what}" for name, what in NAMES.items()))
        return 0 if arguments else 2
    name, *rest = arguments
    if name not in NAMES:
        print(f"no benchmark {name!r}: one of {', '.join(NAMES)}", file=sys.stderr)
        return 2
    return importlib.import_module(f"llmcodec_jax.benchmarks.{name}").main(rest)


if __name__ == "__main__":
    sys.exit(main())
