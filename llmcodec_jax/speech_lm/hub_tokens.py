"""Tokens as Hugging Face `datasets` keeps them, read as they are: `tokens:FOLDER`.

FOLDER is what `save_to_disk` wrote (one set, or its splits side by side: Arrow files that
`state.json` names), or Parquet files as on the Hub. Each row holds codes, in a column of one of
CODES: [T], or [T, Q] or [Q, T] of a residual codec; its text, voice and name are taken from the
usual columns where they are there.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from llmcodec_jax.codec import tokens
from llmcodec_jax.data import stores, token_table
from llmcodec_jax.data.records import SPEAKER_NAMES, TEXT_NAMES
from llmcodec_jax.speech_lm.corpus import Clip, CorpusError

logger = logging.getLogger(__name__)

CODES = ("codes", "tokens", "audio_codes", "audio_tokens", "units")
STATE_NAME = "state.json"
_OTHER = {
    "text": ("transcript", *TEXT_NAMES),
    "speaker": SPEAKER_NAMES,
    "name": ("id", "name", "utt_id", "file"),
}


def find(path: str) -> list[str]:
    """Files of a `datasets` folder or of Parquet rows with codes; [] for a token table of ours."""
    folder = Path(path).expanduser()
    states = sorted(folder.rglob(STATE_NAME)) if folder.is_dir() else []
    if states:
        return [
            str(state.parent / file["filename"])
            for state in states
            for file in json.loads(state.read_text())["_data_files"]
        ]
    found = stores.expand(path, token_table.SUFFIX)
    return found if found and not token_table.is_table(found[0]) else []


def read(files: Sequence[str], codec, levels: int) -> Iterator[Clip]:
    """Rows of the files that `find` found -> clips of the first `levels` levels.

    Raises CorpusError for files without codes, and for codes that this codec cannot have made.
    """
    for file in files:
        number = 0
        for batch in _batches(file):
            names = batch.schema.names
            column = next((name for name in CODES if name in names), None)
            if column is None:
                raise CorpusError(
                    f"{file}: no column of codes ({', '.join(CODES)}); it has {', '.join(names)}"
                )
            _check_codec(file, batch, codec)
            others = {key: _column(batch, known) for key, known in _OTHER.items()}
            for row, codes in enumerate(batch[column]):
                where = f"{Path(file).parent.name}/{Path(file).stem}:{number}"
                try:
                    found = flatten(np.array(codes.as_py()), codec, levels)
                except ValueError as error:
                    raise CorpusError(f"{file}: row {number}: {error}") from error
                name = others["name"][row] or where
                yield Clip(name, others["speaker"][row], others["text"][row], found)
                number += 1


def flatten(codes: np.ndarray, codec, levels: int) -> np.ndarray:
    """Codes [T], [T, Q] or [Q, T] -> indices of `<CODEC_i>` int32 [T * levels], frame by frame.

    A row of a residual codec counts them as `<CODEC_i>` does. Raises ValueError.
    """
    size, held = codec.codebook_size, codec.levels
    if codes.ndim == 1 and held > 1:
        codes = codes.reshape(-1, held) - np.arange(held) * size
    elif codes.ndim == 1:
        codes = codes[:, None]
    # A clip of exactly Q frames reads [T, Q] either way: too short to matter.
    elif codes.ndim == 2 and codes.shape[1] != held and codes.shape[0] == held:
        codes = codes.T
    if codes.ndim != 2 or codes.shape[1] != held:
        raise ValueError(f"codes of shape {codes.shape} are no frames of {held} levels")
    if not np.issubdtype(codes.dtype, np.integer) or not ((codes >= 0) & (codes < size)).all():
        raise ValueError(f"codes are whole numbers in [0, {size}), level by level")
    found = codes[:, :levels].astype(np.int32)
    return tokens.vocabulary_index(found if held > 1 else found[:, 0], size)


def _check_codec(file: str, batch: pa.RecordBatch, codec) -> None:
    """Raises CorpusError where a column says that the codes are another codec's."""
    for name, mine in (("codec", codec.digest), ("codebook_size", codec.codebook_size)):
        values = set(batch[name].to_pylist()) if name in batch.schema.names else set()
        if values - {mine, None}:
            raise CorpusError(
                f"{file} was made by another codec: {name} {values - {mine}}, this one's is {mine}"
            )


def _batches(file: str) -> Iterator[pa.RecordBatch]:
    """Rows of an Arrow or Parquet file, some at a time."""
    try:
        if file.endswith(token_table.SUFFIX):
            source = pa.BufferReader(stores.read(file)) if stores.is_remote(file) else file
            yield from parquet.ParquetFile(source).iter_batches()
            return
        with pa.memory_map(file) as source:
            yield from pa.ipc.open_stream(source)
    except (OSError, pa.ArrowException) as error:
        raise CorpusError(f"{file}: cannot be read ({error})") from error


def _column(batch: pa.RecordBatch, names: Sequence[str]) -> list[str]:
    """The first of the columns that is there, as text; "" for what is not."""
    present = next((name for name in names if name in batch.schema.names), None)
    values = [None] * batch.num_rows if present is None else batch[present].to_pylist()
    texts = ["" if value is None else str(value) for value in values]
    return ["" if text.startswith("<CODEC_") else text for text in texts]  # codes, not words
