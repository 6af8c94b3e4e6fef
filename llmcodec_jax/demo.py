"""A page to try codecs on: python -m llmcodec_jax.demo [--codec C ...]

Record or drop a sound in the browser and hear what each codec makes of it, side by side. Everything
stays on this computer: the page is served to it alone unless --host says otherwise.
"""

from __future__ import annotations

import argparse
import sys
import webbrowser
from pathlib import Path


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
    parser.add_argument("--host", default="127.0.0.1", help="address to serve on")
    parser.add_argument("--port", type=int, default=7860, help="0 takes a free one")
    parser.add_argument("--no-browser", action="store_true", help="do not open the page")
    args = parser.parse_args(argv)

    import llmcodec_jax
    from llmcodec_jax.web.server import PageServer

    try:
        codecs = {name_of(c): llmcodec_jax.load_codec(c) for c in args.codec or ["mini"]}
    except (ValueError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    try:
        server = PageServer((args.host, args.port), codecs)
    except (OSError, OverflowError) as error:
        print(f"error: {args.host}:{args.port}: {error}; try --port 0", file=sys.stderr)
        return 1
    print(f"{', '.join(codecs)}: {server.url} (Ctrl-C ends it)", flush=True)
    if not args.no_browser:
        webbrowser.open(server.url)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        print()
    finally:
        server.server_close()
    return 0


def name_of(codec: str) -> str:
    """A short name for a CODEC: what its path or repository is called."""
    return codec.removeprefix("hf:") if codec.startswith("hf:") else Path(codec).name or codec


if __name__ == "__main__":
    sys.exit(main())
