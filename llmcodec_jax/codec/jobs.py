"""Whole folders: what is to be done, what is done already, what could not be read."""

from __future__ import annotations

import argparse
import collections
import dataclasses
import itertools
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from llmcodec_jax import audio
from llmcodec_jax.codec.tokens import TokenError


@dataclasses.dataclass
class Work:
    """Files to convert, and the outcome so far."""

    jobs: list[tuple[Path, Path]]  # (source, target)
    skipped: int = 0  # targets that existed
    done: int = 0
    failures: list[str] = dataclasses.field(default_factory=list)  # one message a file

    def finish(self, what: str) -> int:
        """Prints the summary, every failure by name -> exit code: 1 if anything failed."""
        for failure in self.failures:
            print(f"failed: {failure}", file=sys.stderr)
        print(
            f"{what}: {self.done} done, {self.skipped} already there, {len(self.failures)} failed"
        )
        return 1 if self.failures else 0


def plan(
    source: Path, output: Path, suffix: str, extensions: tuple[str, ...], overwrite: bool
) -> Work:
    """Pairs every input file with its output: DIR/a/b.wav -> OUTPUT/a/b + suffix.

    Raises FileNotFoundError for a missing input or a folder without matching files. Two inputs
    that would share an output (`x.wav`, `x.flac`) fail by name instead of overwriting each other.
    """
    if source.is_file():
        files, root = [source], source.parent
    elif source.is_dir():
        found = (p for p in source.rglob("*") if p.suffix.lower() in extensions and p.is_file())
        files, root = sorted(p for p in found if not p.name.startswith(".")), source
    else:
        raise FileNotFoundError(f"{source}: no such file or folder")
    if not files:
        raise FileNotFoundError(f"{source}: no file ({', '.join(extensions)}) below this folder")
    work, taken = Work([]), {}
    for file in files:
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
            yield source, target, content


def arguments(description: str, output_help: str) -> argparse.ArgumentParser:
    """The options that encoding and decoding share."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument(
        "--codec",
        required=True,
        type=Path,
        help="mini (shipped), run folder, converted folder, .safetensors export or published .pt",
    )
    parser.add_argument("--input", required=True, type=Path, help="a file, or a folder of files")
    parser.add_argument("--output", required=True, type=Path, help=output_help)
    parser.add_argument(
        "--overwrite", action="store_true", help="redo files whose output exists already"
    )
    parser.add_argument(
        "--batch-size", type=int, help="clips computed at once; by default 1 on CPUs, else 8"
    )
    parser.add_argument(
        "--dtype",
        default="float32",
        choices=("float32", "bfloat16"),
        help="of matrix products; the code search is float32 either way",
    )
    return parser
