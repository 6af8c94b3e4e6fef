"""Token files -> audio: NAME.npz becomes NAME.wav, as long as the clip it came from.

The files hold what the codec made, unrounded: 32-bit float .wav, or 24-bit .flac.

    python -m llmcodec_jax.decode --codec CODEC --input FILE_OR_DIR --output DIR

Files that exist are skipped, so an interrupted run resumes where it stopped. Unreadable files are
named at the end and make the exit code 1; all others are done.
"""

from __future__ import annotations

import dataclasses
import itertools
import sys
from pathlib import Path

from tqdm import tqdm

from llmcodec_jax import audio
from llmcodec_jax.codec import jobs, tokens
from llmcodec_jax.errors import answer_errors


def check(codec, path: Path, force: bool = False) -> tokens.Tokens:
    """Reads a token file and makes sure this codec made it. Raises TokenError.

    With `force` it is enough that this codec could have made it.
    """
    found = tokens.read(path)
    if found.codec not in (None, codec.digest) and not force:
        raise tokens.TokenError(
            f"{path}: made by the {found.architecture or 'unknown'} codec {found.codec}, not by "
            f"this {codec.architecture} codec {codec.digest}; --force decodes it all the same"
        )
    try:
        codes = codec.check_codes(found.codes)
    except ValueError as error:
        raise tokens.TokenError(f"{path}: {error}") from error
    if found.sample_rate != codec.sample_rate or -(-found.num_samples // codec.hop) != len(codes):
        raise tokens.TokenError(
            f"{path}: {len(codes)} codes for {found.num_samples} samples at {found.sample_rate} "
            f"Hz; this codec has {codec.hop} samples a code at {codec.sample_rate} Hz"
        )
    return dataclasses.replace(found, codes=codes)


def write_long(codec, clip: tokens.Tokens, target: Path) -> None:
    """Decodes one long clip piece by piece into its file: flat memory, atomic."""
    left = clip.num_samples
    with audio.create(target, codec.sample_rate, exact=True) as file:
        for piece in codec.decode_stream(clip.codes):
            file.write(piece[:left])
            left -= len(piece[:left])


def decode_corpus(codec, work: jobs.Work, force: bool = False) -> None:
    """Does every job of `work`, updating its outcome; `force` takes codes of other codecs."""
    group_size = codec.batch_size if codec.batch_size == 1 else 8 * codec.batch_size
    clips = jobs.read_ahead(work, lambda path: check(codec, path, force), 2 * group_size)
    with tqdm(total=len(work.jobs), desc="decode", unit="file") as bar:
        while group := list(itertools.islice(clips, group_size)):
            short = [item for item in group if len(item[2].codes) <= codec.buckets[-1]]
            decoded = codec.decode([clip.codes for _, _, clip in short])
            for (_, target, clip), wav in zip(short, decoded, strict=True):
                with work.attempt(target):
                    audio.write(target, wav[: clip.num_samples], codec.sample_rate, exact=True)
            for _, target, clip in group:
                if len(clip.codes) > codec.buckets[-1]:
                    with work.attempt(target):
                        write_long(codec, clip, target)
            bar.update(work.done + len(work.failures) - bar.n)


@answer_errors
def main(argv: list[str] | None = None) -> int:
    parser = jobs.arguments(__doc__.splitlines()[0], "folder for the audio")
    parser.add_argument("--format", default="wav", choices=("wav", "flac"), help="of the audio")
    parser.add_argument(
        "--force", action="store_true", help="decode tokens of another codec that fit this one"
    )
    args = parser.parse_args(argv)
    work = jobs.plan(args.input, args.output, f".{args.format}", (".npz",), args.overwrite)
    if work.jobs:
        decode_corpus(jobs.open_codec(args), work, args.force)
    return work.finish("decoded")


if __name__ == "__main__":
    sys.exit(main())
