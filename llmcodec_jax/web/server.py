"""The page on which one speaks and hears every codec, served from this process.

    GET  /                                the page and its files (web/page)
    GET  /api/codecs                      JSON: what each codec is
    POST /api/encode?codec=NAME&rate=HZ   mono float32 samples -> int32 codes, X-Num-Samples
    POST /api/decode?codec=NAME           int32 codes -> float32 samples at the codec's rate
    GET  /api/speech                      JSON: {"sample_rate": HZ} if a speech LM speaks, else null
    POST /api/speak                       text -> float32 samples at that rate

Numbers travel as little-endian bytes.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple
from urllib.parse import parse_qs, urlsplit

import numpy as np

from llmcodec_jax.codec.inference import Codec
from llmcodec_jax.errors import UserError

logger = logging.getLogger(__name__)

PAGE = Path(__file__).parent / "page"
KINDS = {".html": "text/html", ".js": "text/javascript", ".css": "text/css"}
MAX_BYTES = 64 << 20  # of a request: some six minutes of 48 kHz sound
MAX_TEXT = 4000  # bytes
LOOPBACK = ("127.0.0.1", "localhost", "::1")
POLICY = (
    "default-src 'self'; connect-src 'self' blob:; media-src blob:; img-src 'self' data:; "
    "script-src 'self' blob: 'wasm-unsafe-eval'"
)


class RequestError(ValueError):
    """A request that cannot be answered; the message is for the person at the page."""


class Voice(NamedTuple):
    """What says a text."""

    speak: Callable[[str], np.ndarray]  # -> float32 [N]; ValueError or UserError in words
    sample_rate: int  # Hz


class PageServer(ThreadingHTTPServer):
    """Serves the page for codecs by name; one request at a time reaches a codec."""

    daemon_threads = True

    def __init__(
        self, address: tuple[str, int], codecs: Mapping[str, Codec], voice: Voice | None = None
    ):
        """`address`: (host, port), port 0 for a free one. Raises OSError where it is taken.

        `voice`: what says a text, if anything does.
        """
        self.voice = voice
        self.codecs = dict(codecs)
        self.descriptions = [{"name": n, **c.describe()} for n, c in codecs.items()]
        self.computing = threading.Lock()
        super().__init__(address, Handler)
        self.loopback_only = address[0] in LOOPBACK

    @property
    def url(self) -> str:
        """Where to look."""
        host = str(self.server_address[0])
        shown = "localhost" if host in (*LOOPBACK, "0.0.0.0", "::") else host
        return f"http://{shown}:{self.server_address[1]}/"


class Handler(BaseHTTPRequestHandler):
    """One request."""

    server: PageServer
    protocol_version = "HTTP/1.1"
    timeout = 60  # seconds a client may be silent

    def do_GET(self):
        """The page's files, and what the codecs are."""
        self._answer(self._get)

    def do_POST(self):
        """Encoding and decoding."""
        self._answer(self._post)

    def _answer(self, make) -> None:
        try:
            self._check_origin()
            make()
        except RequestError as error:
            self.close_connection = True  # what is left of the request is not read
            self._send(HTTPStatus.BAD_REQUEST, "text/plain; charset=utf-8", str(error).encode())

    def _check_origin(self) -> None:
        """Other sites must not reach a server that was meant for this computer alone."""
        if not self.server.loopback_only:
            return
        asked = [f"//{self.headers.get('Host', '')}"]
        asked += [self.headers["Origin"]] if "Origin" in self.headers else []
        if any(urlsplit(place).hostname not in LOOPBACK for place in asked):
            raise RequestError("this page answers to its own computer only")

    def _get(self) -> None:
        path = urlsplit(self.path).path
        if path == "/api/codecs":
            body = json.dumps(self.server.descriptions).encode()
            return self._send(HTTPStatus.OK, "application/json", body)
        if path == "/api/speech":
            voice = self.server.voice
            about = {"sample_rate": voice.sample_rate} if voice else None
            return self._send(HTTPStatus.OK, "application/json", json.dumps(about).encode())
        name = {"/": "index.html", "/backend.js": "http_backend.js"}.get(path, path[1:])
        files = {file.name: file for file in PAGE.iterdir() if file.suffix in KINDS}
        if name not in files:
            return self._send(HTTPStatus.NOT_FOUND, "text/plain", b"no such page")
        kind = f"{KINDS[files[name].suffix]}; charset=utf-8"
        return self._send(HTTPStatus.OK, kind, files[name].read_bytes())

    def _post(self) -> None:
        url = urlsplit(self.path)
        if url.path == "/api/speak":
            return self._speak()
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        codec = self.server.codecs.get(query.get("codec", ""))
        if codec is None or url.path not in ("/api/encode", "/api/decode"):
            raise RequestError(f"no codec {query.get('codec', '')!r} here")
        body = self._body()
        try:
            with self.server.computing:
                if url.path == "/api/encode":
                    self._encode(codec, np.frombuffer(body, "<f4"), query.get("rate", ""))
                else:
                    self._decode(codec, np.frombuffer(body, "<i4"))
        except ValueError as error:  # the codec's own word on the sound or the tokens
            raise RequestError(str(error)) from error
        return None

    def _speak(self) -> None:
        if self.server.voice is None:
            raise RequestError("nothing speaks here: start the page with --lm RUN")
        text = self._body(1, MAX_TEXT).decode("utf-8", "replace").strip()
        if not text:
            raise RequestError("write what is to be said")
        try:
            with self.server.computing:
                wav = self.server.voice.speak(text)
        except (ValueError, UserError) as error:
            raise RequestError(str(error)) from error
        self._send_numbers(np.asarray(wav, "<f4"), {})

    def _body(self, unit: int = 4, most: int = MAX_BYTES) -> bytes:
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or int(length) > most or int(length) % unit:
            wanted = f"{most >> 20} MiB of numbers of four bytes" if unit > 1 else f"{most} bytes"
            raise RequestError(f"send up to {wanted}")
        return self.rfile.read(int(length))

    def _encode(self, codec: Codec, wav: np.ndarray, rate: str) -> None:
        if not rate.isdecimal() or not 1000 <= int(rate) <= 384_000:
            raise RequestError(f"a sample rate of {rate!r} cannot be heard; give it in Hz")
        wav = codec.prepare(wav, int(rate))
        codes = np.asarray(codec.encode(wav, codec.sample_rate), "<i4")
        self._send_numbers(codes, {"X-Num-Samples": str(len(wav))})

    def _decode(self, codec: Codec, codes: np.ndarray) -> None:
        if codec.levels > 1:
            codes = codes.reshape(-1, codec.levels)
        self._send_numbers(np.asarray(codec.decode(codes), "<f4"), {})

    def _send_numbers(self, values: np.ndarray, headers: Mapping[str, str]) -> None:
        self._send(HTTPStatus.OK, "application/octet-stream", values.tobytes(), headers)

    def _send(self, status, kind: str, body: bytes, headers: Mapping[str, str] = {}) -> None:
        self.send_response(status)
        fixed = {
            "Content-Type": kind,
            "Content-Length": str(len(body)),
            "Cache-Control": "no-store",
        }
        policy = {"Content-Security-Policy": POLICY, "X-Content-Type-Options": "nosniff"}
        for name, value in (fixed | policy | dict(headers)).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format, *args):
        logger.debug(format, *args)
