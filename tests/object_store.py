"""A real S3 server on the loopback, for tests of what lies in object stores."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from llmcodec_jax.data import block_cache, stores


@contextlib.contextmanager
def s3_server(cache: Path) -> Iterator[str]:
    """Its address; credentials stand in the environment, there is a bucket `corpora`."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    given = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "LLMCODEC_CACHE": str(cache),
    }
    before = {name: os.environ.get(name) for name in given}
    os.environ.update(given)
    _forget()
    try:
        stores.filesystem("s3").makedirs("corpora", exist_ok=True)
        yield given["AWS_ENDPOINT_URL"]
    finally:
        server.stop()
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
        _forget()


def _forget() -> None:
    """What a process keeps of its stores."""
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
    stores.filesystem.cache_clear()
    block_cache.shared.cache_clear()
    block_cache.size.cache_clear()
