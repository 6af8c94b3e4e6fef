"""A page to try codecs on: python -m llmcodec_jax.demo [--codec C ...]

Record or drop a sound in the browser and hear what each codec makes of it, side by side. Everything
stays on this computer: the page is served to it alone unless --host says otherwise.
"""

from __future__ import annotations

import argparse
import sys
import webbrowser

from llmcodec_jax.errors import UserError, answer_errors


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
    parser.add_argument("--host", default="127.0.0.1", help="address to serve on")
    parser.add_argument("--port", type=int, default=7860, help="0 takes a free one")
    parser.add_argument("--no-browser", action="store_true", help="do not open the page")
    args = parser.parse_args(argv)

    import llmcodec_jax
    from llmcodec_jax.codec import store
    from llmcodec_jax.web.server import PageServer

    chosen = args.codec or ["mini"]
    codecs = {store.short_name(codec): llmcodec_jax.load_codec(codec) for codec in chosen}
    try:
        server = PageServer((args.host, args.port), codecs)
    except (OSError, OverflowError) as error:
        raise UserError(f"{args.host}:{args.port}: {error}; try --port 0") from error
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


if __name__ == "__main__":
    sys.exit(main())
