"""One run at a time in a folder: a file that says who is at work, renewed while they are.

No clock is compared with another: a holder on another machine counts as gone once its file has
stayed the same for `PATIENCE` seconds. So it works on local disks, network folders and object
stores alike.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from etils import epath

from llmcodec_jax.errors import FAILED, UserError

logger = logging.getLogger(__name__)

NAME = "run.lock"
RENEW = 15.0  # seconds between two renewals
PATIENCE = 60.0  # seconds without one after which a holder elsewhere is gone
READS = 5  # attempts to read an object that is being renewed
SETTLE = 2.0  # seconds until of two that wrote at the same time the last is seen by both


class LockedError(UserError):
    """Another process is at work in the folder."""


def this_host() -> str:
    """Machine and, on Linux, process-id namespace: where a process id means the same process."""
    namespace = Path("/proc/self/ns/pid")
    inside = f" ({namespace.readlink()})" if namespace.exists() else ""
    return socket.gethostname() + inside


def started(pid: int) -> str:
    """When a process of this host began, in ticks since boot; "" if there is none."""
    try:
        state, *rest = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return "" if state == "Z" else rest[18]  # a zombie has ended
    except (FileNotFoundError, ProcessLookupError):
        pass
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return ""
    except PermissionError:
        pass  # someone else's, and alive
    return "" if Path("/proc/self/stat").exists() else "unknown"


class FolderLock:
    """Holds a folder while it is entered. Raises LockedError where another process does."""

    def __init__(
        self, folder: str | Path, *, renew: float = RENEW, patience: float = PATIENCE
    ) -> None:
        self._file = epath.Path(folder) / NAME
        self._renew, self._patience = renew, patience
        self._remote = "://" in str(folder)
        self._mine = {
            "host": this_host(),
            "pid": os.getpid(),
            "started": started(os.getpid()),
            "token": secrets.token_hex(8),
        }
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="lock-renewal", daemon=True)

    def __enter__(self) -> FolderLock:
        self._file.parent.mkdir(parents=True, exist_ok=True)
        with self._one_at_a_time():
            self._wait_for_holder()
            self._write()
        if self._remote:
            time.sleep(SETTLE)
        holder = self._holder()
        if holder.get("token") != self._mine["token"]:
            raise self._refusal(holder)
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._done.set()
        self._thread.join()
        if self._holder().get("token") == self._mine["token"]:
            self._file.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _one_at_a_time(self) -> Iterator[None]:
        """Two that start at the same moment on one machine look one after the other."""
        if self._remote:
            yield
            return
        folder = os.open(self._file.parent, os.O_RDONLY)
        try:
            with contextlib.suppress(OSError):  # network folders may know no flock
                fcntl.flock(folder, fcntl.LOCK_EX)
            yield
        finally:
            os.close(folder)

    def _wait_for_holder(self) -> None:
        """Returns once nobody holds the folder. Raises LockedError if somebody goes on doing so."""
        first = self._holder()
        if not first:
            return
        if first.get("host") == self._mine["host"]:
            alive = started(int(first["pid"]))
            if alive and alive == first.get("started"):
                raise self._refusal(first)
            logger.warning("%s: process %s is gone; taking its place", self._file, first["pid"])
            return
        logger.warning(
            "%s is held by process %s on %s; watching for %.0f s whether it is alive",
            *(self._file, first.get("pid"), first.get("host"), self._patience),
        )
        deadline = time.monotonic() + self._patience
        while time.monotonic() < deadline:
            time.sleep(min(1.0, self._patience / 10))
            now = self._holder()
            if not now:
                return
            if now != first:
                raise self._refusal(now)

    def _refusal(self, holder: dict) -> LockedError:
        return LockedError(
            f"{self._file.parent} is in use by process {holder.get('pid')} on "
            f"{holder.get('host')}: stop it, or use another --workdir"
        )

    def _holder(self) -> dict:
        """What the file says, {} where there is none or it says nothing."""
        try:
            found = json.loads(self._read())
        except (FileNotFoundError, json.JSONDecodeError):
            return {}
        return found if isinstance(found, dict) and "pid" in found else {}

    def _read(self) -> str:
        for _ in range(READS - 1):
            try:
                return self._file.read_text()
            except OSError as error:
                if error.errno != errno.EBUSY:
                    raise
                # An object that was renewed between being opened and being read.
        return self._file.read_text()

    def _write(self, beats: int = 0) -> None:
        text = json.dumps(self._mine | {"beats": beats})
        if self._remote:
            self._file.write_text(text)
            return
        partial = self._file.with_name(f".{NAME}.{self._mine['token']}")
        partial.write_text(text)
        partial.replace(self._file)

    def _keep(self) -> None:
        beats = 0
        while not self._done.wait(self._renew):
            try:
                if self._holder().get("token") != self._mine["token"]:
                    logger.error("%s: another process has taken this folder; leaving", self._file)
                    os._exit(FAILED)  # at once: a save would go over the other's
                self._write(beats + 1)
                beats += 1
            except OSError as error:  # of a network that may be back before anyone's patience ends
                logger.warning("%s could not be renewed (%s); trying again", self._file, error)
