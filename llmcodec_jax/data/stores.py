"""Files on this machine and in object stores by one name: paths, and s3://, gs://, hf:// URIs.

Stores are reached through fsspec. What fails in passing (a dropped connection, a busy server) is
tried again, ever later and at random times, so that the hosts of a pod do not ask in step. What a
person must mend (credentials, a bucket's name) is a StoreError at once.
"""

from __future__ import annotations

import functools
import glob
import logging
import posixpath
import random
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from llmcodec_jax.errors import UserError
from llmcodec_jax.ops import files

T = TypeVar("T")

logger = logging.getLogger(__name__)

TRIES = 8
FIRST_PAUSE, LONGEST_PAUSE = 0.2, 20.0  # seconds; about a minute in all
LIBRARIES = {"s3": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "hf": "huggingface_hub"}
CREDENTIALS = {
    "s3": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE; AWS_ENDPOINT_URL for a "
    "store of your own",
    "gs": "run `gcloud auth application-default login`, or set GOOGLE_APPLICATION_CREDENTIALS",
    "hf": "set HF_TOKEN",
}
"""What to do where a store does not know who asks."""


class StoreError(UserError):
    """An object store that cannot be used as asked, or not at the moment."""


def is_remote(path: str | Path) -> bool:
    """Whether a name is a URI and no path."""
    return "://" in str(path)


def join(folder: str, *names: str) -> str:
    """FOLDER/NAME/..., of a path or a URI."""
    return posixpath.join(str(folder), *names)


def folder_name(uri: str) -> str:
    """Name of the folder that a file lies in."""
    folder = posixpath.dirname(uri) if is_remote(uri) else str(Path(uri).resolve().parent)
    return posixpath.basename(folder)


@functools.cache
def filesystem(scheme: str) -> Any:
    """The fsspec file system of a scheme, one a process. Raises StoreError where it is missing."""
    try:
        import fsspec

        return fsspec.filesystem(scheme)
    except (ImportError, ValueError) as error:
        library = LIBRARIES.get(scheme, "fsspec")
        raise StoreError(
            f"{scheme}:// needs the package {library}: pip install 'llmcodec-jax[stores]' ({error})"
        ) from error


def _scheme(uri: str) -> str:
    return uri.partition("://")[0]


def _passing() -> tuple[type[BaseException], ...]:
    """Errors of the libraries that have been loaded which may be gone the next time."""
    names = {
        "botocore.exceptions": ("BotoCoreError", "HTTPClientError"),
        "aiohttp": ("ClientError",),
        "google.auth.exceptions": ("TransportError",),
    }
    found = [getattr(sys.modules[m], n) for m, ns in names.items() if m in sys.modules for n in ns]
    return (OSError, TimeoutError, *found)


def _refusals() -> tuple[type[BaseException], ...]:
    """Errors that no second try mends."""
    names = {
        "botocore.exceptions": ("NoCredentialsError", "PartialCredentialsError"),
        "google.auth.exceptions": ("DefaultCredentialsError", "RefreshError"),
    }
    found = [getattr(sys.modules[m], n) for m, ns in names.items() if m in sys.modules for n in ns]
    return (PermissionError, *found)


def retrying(uri: str, action: Callable[[], T], sleep: Callable[[float], None] = time.sleep) -> T:
    """`action()` on a store's object, tried TRIES times with growing, random pauses.

    Raises FileNotFoundError where there is no such object, StoreError for anything else.
    """
    pause = FIRST_PAUSE
    for attempt in range(1, TRIES + 1):
        try:
            return action()
        except (FileNotFoundError, IsADirectoryError):
            raise
        except _passing() as error:
            if isinstance(error, _refusals()):
                hint = CREDENTIALS.get(_scheme(uri).replace("gcs", "gs"), "check who may read it")
                raise StoreError(f"{uri}: access is refused ({error}); {hint}") from error
            if attempt == TRIES:
                raise StoreError(
                    f"{uri}: cannot be reached, tried {TRIES} times ({error or type(error)})"
                ) from error
            logger.debug("%s: %s; trying again", uri, error)
            sleep(pause * random.uniform(0.5, 1.5))
            pause = min(2 * pause, LONGEST_PAUSE)
    raise AssertionError("unreachable")


def find(folder: str, suffixes: Sequence[str]) -> list[str]:
    """URIs below a store's folder whose names end in one of `suffixes`, sorted; hidden ones not."""
    fs, endings = filesystem(_scheme(folder)), tuple(suffix.lower() for suffix in suffixes)
    found = retrying(folder, lambda: fs.find(folder))
    named = [fs.unstrip_protocol(path) for path in found if path.lower().endswith(endings)]
    return sorted(uri for uri in named if not posixpath.basename(uri).startswith("."))


def expand(pattern: str, suffix: str) -> list[str]:
    """The files that a folder, a glob or a file name stands for, sorted; [] where none match."""
    if is_remote(pattern):
        if any(sign in pattern for sign in "*?["):
            fs = filesystem(_scheme(pattern))
            found = retrying(pattern, lambda: fs.glob(pattern))
            return sorted(fs.unstrip_protocol(path) for path in found if path.endswith(suffix))
        return [pattern] if pattern.endswith(suffix) else find(pattern, (suffix,))
    path = Path(pattern).expanduser()
    if path.is_dir():
        return [str(file) for file in files.find(path, (suffix,))[0]]
    return sorted(name for name in glob.glob(str(path)) if name.endswith(suffix))


def size(uri: str) -> int:
    """Bytes of a file. Raises FileNotFoundError, StoreError."""
    if not is_remote(uri):
        return Path(uri).stat().st_size
    return int(retrying(uri, lambda: filesystem(_scheme(uri)).size(uri)))


def exists(uri: str) -> bool:
    """Whether there is such a file."""
    if not is_remote(uri):
        return Path(uri).is_file()
    return bool(retrying(uri, lambda: filesystem(_scheme(uri)).isfile(uri)))


def read(uri: str) -> bytes:
    """A file's bytes. Raises FileNotFoundError, StoreError."""
    if not is_remote(uri):
        return Path(uri).read_bytes()
    return retrying(uri, lambda: filesystem(_scheme(uri)).cat_file(uri))


def read_range(uri: str, start: int, stop: int) -> bytes:
    """Bytes [start, stop) of a file: one request. Raises FileNotFoundError, StoreError."""
    if not is_remote(uri):
        with open(uri, "rb") as file:
            file.seek(start)
            return file.read(stop - start)
    fs = filesystem(_scheme(uri))
    return retrying(uri, lambda: fs.cat_file(uri, start=start, end=stop))


def write(uri: str, data: bytes) -> None:
    """Writes a file whole or not at all."""
    if is_remote(uri):
        retrying(uri, lambda: filesystem(_scheme(uri)).pipe_file(uri, data))
        return
    with files.replacing(uri) as partial:
        partial.write_bytes(data)


def remove(uri: str) -> None:
    """Removes a file, if it is there."""
    if is_remote(uri):
        if exists(uri):
            retrying(uri, lambda: filesystem(_scheme(uri)).rm_file(uri))
        return
    Path(uri).unlink(missing_ok=True)


def names(folder: str) -> set[str]:
    """Names of the files directly in a folder; empty where there is none."""
    if not is_remote(folder):
        path = Path(folder)
        return {entry.name for entry in path.iterdir()} if path.is_dir() else set()
    fs = filesystem(_scheme(folder))
    fs.invalidate_cache()
    try:
        found = retrying(folder, lambda: fs.ls(folder, detail=False))
    except FileNotFoundError:
        return set()
    return {posixpath.basename(path.rstrip("/")) for path in found}
