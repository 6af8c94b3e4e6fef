"""A page to try codecs on: python -m llmcodec_jax.demo [--codec C ...]

Record or drop a sound in the browser and hear what each codec makes of it, side by side. Everything
stays on this computer: the page is served to it alone unless --host says otherwise.
"""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

import numpy as np

from llmcodec_jax.errors import answer_errors

if TYPE_CHECKING:
    from llmcodec_jax.web.server import Voice


def open_voice(run: str) -> Voice:
    """A run of `speech_train` -> what says a text. Raises FileNotFoundError, UsageError."""
    from llmcodec_jax import generate
    from llmcodec_jax.speech_lm import speaker
    from llmcodec_jax.web.server import Voice

    lm = speaker.load(run)

    def speak(text: str) -> np.ndarray:
        wav = generate.speak(lm, text)
        assert isinstance(wav, np.ndarray)  # a list for a list of texts alone
        return wav

    return Voice(speak, lm.codec.sample_rate)


@answer_errors
def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m llmcodec_jax.demo",
        description=__doc__.partition("\n\n")[2],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "--codec",
        action="append",
        metavar="CODEC",
        help="codec to offer, repeatable; else mini",
    )
    parser.add_argument("--lm", metavar="RUN", help="a tts run of speech_train that speaks")
    parser.add_argument("--host", default="127.0.0.1", help="address to serve on")
    parser.add_argument("--port", type=int, default=7860, help="0 takes a free one")
    parser.add_argument("--no-browser", action="store_true", help="do not open the page")
    args = parser.parse_args(argv)

    import llmcodec_jax
    from llmcodec_jax.codec import store
    from llmcodec_jax.pages.serving import serve
    from llmcodec_jax.web.server import PageServer

    voice = open_voice(args.lm) if args.lm else None
    chosen = args.codec or ["mini"]
    codecs = {store.short_name(codec): llmcodec_jax.load_codec(codec) for codec in chosen}
    serve(
        lambda: PageServer((args.host, args.port), codecs, voice),
        f"{args.host}:{args.port}",
        f"{', '.join(codecs)}: {{url}} (Ctrl-C ends it)",
        browser=not args.no_browser,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
