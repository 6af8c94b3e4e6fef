"""Whole folders: what is to be done, what is done already, what could not be read or written."""

from __future__ import annotations

import argparse
import collections
import contextlib
import dataclasses
import itertools
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import soundfile

from llmcodec_jax import audio
from llmcodec_jax.codec.tokens import TokenError
from llmcodec_jax.ops import files


@dataclasses.dataclass
class Work:
    """Files to convert, and the outcome so far."""

    jobs: list[tuple[Path, Path]]  # (source, target)
    skipped: int = 0  # targets that existed
    done: int = 0
    failures: list[str] = dataclasses.field(default_factory=list)  # one message a file
    below_rate: int = 0  # files whose own rate is below the codec's
    notes: list[str] = dataclasses.field(default_factory=list)  # what was not even looked at

    @contextlib.contextmanager
    def attempt(self, target: Path) -> Iterator[None]:
        """Counts what the block makes as done; what it cannot read or write, as failed by name."""
        try:
            yield
        except (audio.AudioError, TokenError) as error:
            self.failures.append(str(error))
        except (OSError, soundfile.LibsndfileError) as error:
            reason = getattr(error, "strerror", None) or error
            self.failures.append(f"{target}: cannot be written ({reason})")
        else:
            self.done += 1

    def finish(self, what: str) -> int:
        """Prints the summary, every failure by name -> exit code: 1 if anything failed."""
        for note in self.notes:
            print(f"left out: {printable(note)}", file=sys.stderr)
        if self.below_rate:
            print(f"{self.below_rate} files have a lower rate than the codec", file=sys.stderr)
        for failure in self.failures:
            print(f"failed: {printable(failure)}", file=sys.stderr)
        print(
            f"{what}: {self.done} done, {self.skipped} already there, {len(self.failures)} failed"
        )
        return 1 if self.failures else 0


def printable(text: str) -> str:
    """A name as it can be shown and written: bytes that are no text, and controls, escaped."""
    text = text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def plan(
    source: Path, output: Path, suffix: str, extensions: tuple[str, ...], overwrite: bool
) -> Work:
    """Pairs every input file with its output: DIR/a/b.wav -> OUTPUT/a/b + suffix.

    Raises FileNotFoundError for a missing input or a folder without matching files. Two inputs
    that would share an output (`x.wav`, `x.flac`) fail by name instead of overwriting each other.
    Hidden files and linked folders are left out and noted.
    """
    left_out: list[str] = []
    if source.is_file():
        found, root = [source], source.parent
    elif source.is_dir():
        found, left_out = files.find(source, extensions)
        root = source
    else:
        raise FileNotFoundError(f"{source}: no such file or folder")
    if not found:
        but = f"; left out {', '.join(left_out)}" if left_out else ""
        raise FileNotFoundError(
            f"{source}: no file ({', '.join(extensions)}) below this folder{but}"
        )
    work, taken = Work([], notes=left_out), {}
    for file in found:
        target = output / file.relative_to(root).with_suffix(suffix)
        if target in taken:
            work.failures.append(f"{file}: its output would replace that of {taken[target]}")
        elif target.exists() and not overwrite:
            work.skipped += 1
        else:
            work.jobs.append((file, target))
        taken.setdefault(target, file)
    return work


def read_ahead(
    work: Work, read: Callable[[Path], Any], ahead: int = 4
) -> Iterator[tuple[Path, Path, Any]]:
    """Yields (source, target, content) in order while a thread reads the next few files.

    Files that cannot be read are added to `work.failures` instead.
    """
    with ThreadPoolExecutor(max_workers=1) as pool:
        jobs = iter(work.jobs)
        waiting = collections.deque(
            (job, pool.submit(read, job[0])) for job in itertools.islice(jobs, ahead)
        )
        while waiting:
            (source, target), future = waiting.popleft()
            for job in itertools.islice(jobs, 1):
                waiting.append((job, pool.submit(read, job[0])))
            try:
                content = future.result()
            except (audio.AudioError, TokenError) as error:
                work.failures.append(str(error))
                continue
            except OSError as error:
                work.failures.append(f"{source}: cannot be read ({error.strerror or error})")
                continue
            yield source, target, content


def positive(text: str) -> int:
    """An option's value: a whole number from 1 on."""
    if not text.isdecimal() or not 0 < int(text) <= 65_536:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1 to 65536")
    return int(text)


def open_codec(args: argparse.Namespace):
    """The codec that `arguments` named, its compiled programs kept for the next command."""
    import llmcodec_jax
    from llmcodec_jax.data.cache import keep_compilations

    keep_compilations(min_seconds=0.1)
    return llmcodec_jax.load_codec(args.codec, dtype=args.dtype, batch_size=args.batch_size)


def arguments(
    description: str, output_help: str, place: Callable[[str], Any] = Path
) -> argparse.ArgumentParser:
    """The options that encoding and decoding share; `place` is the type of --input and --output."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument(
        "--codec",
        required=True,
        help="mini (shipped), run or codec folder, .safetensors, .pt, Hugging Face model folder, "
        "or hf:OWNER/NAME",
    )
    parser.add_argument("--input", required=True, type=place, help="a file, or a folder of files")
    parser.add_argument("--output", required=True, type=place, help=output_help)
    parser.add_argument(
        "--overwrite", action="store_true", help="redo files whose output exists already"
    )
    parser.add_argument(
        "--batch-size", type=positive, help="clips computed at once; by default 1 on CPUs, else 8"
    )
    parser.add_argument(
        "--dtype",
        default="float32",
        choices=("float32", "bfloat16"),
        help="of matrix products; the code search is float32 either way",
    )
    return parser
