"""Token files -> one JSONL or Parquet table, as language-model trainers read them.

    python -m llmcodec_jax.export_tokens --input DIR --output tokens.jsonl [--text]

One row a clip, in path order: `id` (path below the folder, without suffix), `codes` (the numbers i
of `<CODEC_i>`), `num_frames`, `num_samples`, `sample_rate`, `levels`, `codebook_size`, `codec`
(digest of the codec that made them), `hop` and with --text `text`, the codes written as
`<CODEC_12><CODEC_7>...`. `datasets.load_dataset("json" | "parquet", ...)` opens it.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path

from tqdm import tqdm

from llmcodec_jax.codec import jobs, tokens
from llmcodec_jax.errors import answer_errors
from llmcodec_jax.ops import files

FIELDS = ("sample_rate", "levels", "codebook_size", "codec")
"""In which all rows of a table agree: numbers of two codecs must not stand in one column."""


def rows(work: jobs.Work, root: Path, codebook_size: int | None, text: bool) -> Iterator[dict]:
    """Token files -> table rows; unreadable ones go to `work.failures`.

    So do files of another codec than the first, and those of several levels where neither they
    nor `codebook_size` say how many codes a level has.
    """
    first: tuple[Path, tuple] | None = None
    for source, _, clip in jobs.read_ahead(work, tokens.read):
        size = clip.codebook_size or codebook_size
        if clip.levels > 1 and not size:
            work.failures.append(
                f"{source}: {clip.levels} levels of unknown size; give --codebook-size"
            )
            continue
        kind = (clip.sample_rate, clip.levels, size, clip.codec)
        first = first or (source, kind)
        if kind != first[1]:
            differing = [f for f, a, b in zip(FIELDS, kind, first[1], strict=True) if a != b]
            work.failures.append(
                f"{source}: made by another codec than {first[0]} ({', '.join(differing)})"
            )
            continue
        numbers = tokens.vocabulary_index(clip.codes, size or 0).tolist()
        row = {
            "id": jobs.printable(source.relative_to(root).with_suffix("").as_posix()),
            "codes": numbers,
            "num_frames": len(clip.codes),
            "num_samples": clip.num_samples,
            "sample_rate": clip.sample_rate,
            "levels": clip.levels,
            "codebook_size": size,
            "codec": clip.codec,
            "hop": clip.hop,
        }
        if text:
            row["text"] = "".join(f"<CODEC_{number}>" for number in numbers)
        work.done += 1
        yield row


def write_jsonl(path: Path, table: Iterator[dict]) -> None:
    with open(path, "w") as file:
        for row in table:
            file.write(json.dumps(row) + "\n")


def write_parquet(path: Path, table: Iterator[dict], text: bool) -> None:
    from llmcodec_jax.data import token_table

    token_table.write(path, table, token_table.schema(origin=False, text=text))


@answer_errors
def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--input", required=True, type=Path, help="folder of .npz token files")
    parser.add_argument("--output", required=True, type=Path, help="NAME.jsonl or NAME.parquet")
    parser.add_argument("--text", action="store_true", help="add the codes as <CODEC_i> text")
    parser.add_argument(
        "--codebook-size",
        type=jobs.positive,
        help="codes of a level, for files of residual codecs that do not say",
    )
    args = parser.parse_args(argv)
    if args.output.suffix not in (".jsonl", ".parquet"):
        parser.error("--output must end in .jsonl or .parquet")
    work = jobs.plan(args.input, Path("."), ".row", (".npz",), overwrite=True)
    root = args.input if args.input.is_dir() else args.input.parent
    table = tqdm(rows(work, root, args.codebook_size, args.text), total=len(work.jobs), unit="clip")
    try:
        with files.replacing(args.output) as partial:
            if args.output.suffix == ".jsonl":
                write_jsonl(partial, table)
            else:
                write_parquet(partial, table, args.text)
    except OSError as error:
        work.done = 0
        work.failures.append(f"{args.output}: cannot be written ({error.strerror or error})")
    return work.finish("exported")


if __name__ == "__main__":
    sys.exit(main())
