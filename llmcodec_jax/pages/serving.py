"""A page served from this computer until Ctrl-C, and the browser that shows it."""

from __future__ import annotations

import webbrowser
from collections.abc import Callable
from typing import Protocol

from llmcodec_jax.errors import UserError


class Server(Protocol):
    """What `serve` asks of an HTTP server of `http.server`'s kind."""

    @property
    def url(self) -> str: ...
    def serve_forever(self) -> None: ...
    def server_close(self) -> None: ...


def serve(open_server: Callable[[], Server], place: str, greeting: str, browser: bool) -> None:
    """Serves until Ctrl-C; `greeting` holds {url}, `browser` opens it.

    Raises UserError naming `place`, HOST:PORT, where that cannot be served on.
    """
    try:
        server = open_server()
    except (OSError, OverflowError) as error:
        raise UserError(f"{place}: {error}; try --port 0") from error
    print(greeting.replace("{url}", server.url), flush=True)
    if browser:
        webbrowser.open(server.url)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        print()
    finally:
        server.server_close()
