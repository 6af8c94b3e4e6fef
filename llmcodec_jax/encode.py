"""Audio files -> token files: one NAME.npz per clip (codes, sample_rate, num_samples).

    python -m llmcodec_jax.encode --codec CODEC --input FILE_OR_DIR --output DIR

Files that exist are skipped, so an interrupted run resumes where it stopped. Unreadable files are
named at the end and make the exit code 1; all others are done. With --engine local or ray a corpus
of any size and kind becomes one token table instead (`corpus/`).
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tqdm import tqdm

from llmcodec_jax import audio
from llmcodec_jax.codec import jobs, tokens
from llmcodec_jax.errors import UsageError, answer_errors

LONG = 300.0  # seconds from which a file is streamed instead of read whole
BLOCK = 10.0  # seconds a streamed block


def read(path: Path, sample_rate: int, work: jobs.Work) -> np.ndarray | Path:
    """Mono audio [N] at the codec's rate, or the path itself where the file is to be streamed.

    Counts files of a lower rate, which lack what the codec could code.
    """
    with audio.open_file(path) as file:
        if file.samplerate < sample_rate:
            work.below_rate += 1
            audio.warn_of_low_rate(file.samplerate, sample_rate)
        if file.frames > LONG * file.samplerate:
            return path
    wav = audio.load(path, sample_rate)
    if not len(wav):
        raise audio.AudioError(f"{path}: too short to resample")
    return wav


def stream(path: Path, sample_rate: int) -> Iterator[np.ndarray]:
    """A long file as mono float32 blocks at `sample_rate`. Raises AudioError."""

    def blocks(file) -> Iterator[np.ndarray]:
        heard = 0
        while len(block := file.read(int(BLOCK * file.samplerate), "float32", always_2d=True)):
            heard += len(block)
            mono = block.mean(axis=1)
            if not np.isfinite(mono).all():
                raise audio.AudioError(f"{path}: holds NaN or infinite samples")
            yield mono
        audio.check_length(heard, file.frames, str(path))

    try:
        with audio.open_file(path) as file:
            yield from audio.resample_blocks(blocks(file), file.samplerate, sample_rate)
    except audio.LIBRARY_ERRORS as error:
        raise audio.AudioError(f"{path}: cannot be decoded ({error})") from error


def encode_long(codec, path: Path) -> tokens.Tokens:
    """Streams one long file through the codec in flat memory."""
    samples = 0

    def counted():
        nonlocal samples
        with tqdm(desc=path.name, unit="s", unit_scale=True, leave=False) as bar:
            for block in stream(path, codec.sample_rate):
                samples += len(block)
                bar.update(round(len(block) / codec.sample_rate, 1))
                yield block

    codes = np.concatenate(list(codec.encode_stream(counted())))
    return tokens.of_codec(codec, codes, samples)


def encode_corpus(codec, work: jobs.Work) -> None:
    """Does every job of `work`, updating its outcome; writes each clip as soon as it is coded."""
    # Groups let clips of one length share a batch; at batch size 1 there is nothing to share.
    group_size = codec.batch_size if codec.batch_size == 1 else 8 * codec.batch_size
    clips = jobs.read_ahead(work, lambda path: read(path, codec.sample_rate, work), 2 * group_size)
    with tqdm(total=len(work.jobs), desc="encode", unit="file") as bar:
        while group := list(itertools.islice(clips, group_size)):
            short = [item for item in group if not isinstance(item[2], Path)]
            coded = codec.encode([wav for _, _, wav in short])
            for (_, target, wav), codes in zip(short, coded, strict=True):
                with work.attempt(target):
                    tokens.write(target, tokens.of_codec(codec, codes, len(wav)))
            for source, target, wav in group:
                if isinstance(wav, Path):
                    with work.attempt(target):
                        tokens.write(target, encode_long(codec, source))
            bar.update(work.done + len(work.failures) - bar.n)


@answer_errors
def main(argv: list[str] | None = None) -> int:
    parser = jobs.arguments(
        __doc__.splitlines()[0], "folder for the token files, or for the shards", str
    )
    table = parser.add_argument_group("corpora as a token table")
    table.add_argument(
        "--engine",
        default="files",
        choices=("files", "local", "ray"),
        help="files: one .npz a clip. local, ray: Parquet shards of any source (docs/corpora.md), "
        "made by processes here or by a Ray cluster",
    )
    table.add_argument("--address", help="of a running Ray cluster, or auto; by default one here")
    table.add_argument("--workers", type=jobs.positive, help="processes; by default one a device")
    table.add_argument(
        "--clips-per-shard", type=jobs.positive, default=256, help="of the Parquet files"
    )
    args = parser.parse_args(argv)
    if args.engine != "files":
        try:
            from llmcodec_jax.corpus import tokenise
        except ModuleNotFoundError as error:
            raise UsageError(
                f"--engine {args.engine} needs {error.name}: pip install 'llmcodec-jax[ray]'"
            ) from error
        return tokenise.run(args)
    source, output = Path(args.input), Path(args.output)
    work = jobs.plan(source, output, ".npz", audio.EXTENSIONS, args.overwrite)
    if work.jobs:
        encode_corpus(jobs.open_codec(args), work)
    return work.finish("encoded")


if __name__ == "__main__":
    sys.exit(main())
