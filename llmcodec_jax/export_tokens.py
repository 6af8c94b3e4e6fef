"""Token files -> one JSONL or Parquet table, as language-model trainers read them.

    python -m llmcodec_jax.export_tokens --input DIR --output tokens.jsonl [--text]

One row a clip, in path order: `id` (path below the folder, without suffix), `codes` (the numbers i
of `<CODEC_i>`), `num_frames`, `num_samples`, `sample_rate`, and with --text `text`, the codes
written as `<CODEC_12><CODEC_7>...`. `datasets.load_dataset("json" | "parquet", ...)` opens it.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from tqdm import tqdm

from llmcodec_jax.codec import jobs, tokens

ROWS = 1000  # a Parquet row group


def rows(work: jobs.Work, root: Path, codebook_size: int, text: bool) -> Iterator[dict]:
    """Token files -> table rows; unreadable ones go to `work.failures`."""
    for source, _, clip in jobs.read_ahead(work, tokens.read):
        numbers = tokens.vocabulary_index(clip.codes, codebook_size).tolist()
        row = {
            "id": source.relative_to(root).with_suffix("").as_posix(),
            "codes": numbers,
            "num_frames": len(clip.codes),
            "num_samples": clip.num_samples,
            "sample_rate": clip.sample_rate,
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
    import pyarrow as pa
    from pyarrow import parquet

    fields = {"id": pa.string(), "codes": pa.list_(pa.int32()), "num_frames": pa.int64()}
    fields |= {"num_samples": pa.int64(), "sample_rate": pa.int32()}
    schema = pa.schema(fields | ({"text": pa.string()} if text else {}))
    with parquet.ParquetWriter(path, schema) as writer:
        group = []
        for row in table:
            group.append(row)
            if len(group) == ROWS:
                writer.write_table(pa.Table.from_pylist(group, schema))
                group = []
        writer.write_table(pa.Table.from_pylist(group, schema))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--input", required=True, type=Path, help="folder of .npz token files")
    parser.add_argument("--output", required=True, type=Path, help="NAME.jsonl or NAME.parquet")
    parser.add_argument("--text", action="store_true", help="add the codes as <CODEC_i> text")
    parser.add_argument(
        "--codebook-size", type=int, default=20_480, help="of residual codecs' levels"
    )
    args = parser.parse_args(argv)
    if args.output.suffix not in (".jsonl", ".parquet"):
        parser.error("--output must end in .jsonl or .parquet")
    try:
        work = jobs.plan(args.input, Path("."), ".row", (".npz",), overwrite=True)
    except FileNotFoundError as error:
        parser.error(str(error))
    root = args.input if args.input.is_dir() else args.input.parent
    args.output.parent.mkdir(parents=True, exist_ok=True)
    partial = args.output.with_name(f".{args.output.name}.{os.getpid()}.part")
    table = tqdm(rows(work, root, args.codebook_size, args.text), total=len(work.jobs), unit="clip")
    try:
        if args.output.suffix == ".jsonl":
            write_jsonl(partial, table)
        else:
            write_parquet(partial, table, args.text)
        os.replace(partial, args.output)
    finally:
        partial.unlink(missing_ok=True)
    return work.finish("exported")


if __name__ == "__main__":
    sys.exit(main())
