"""Token corpora as Hugging Face `datasets` keeps them."""

import json
import types

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from llmcodec_jax.speech_lm import hub_tokens, sources
from llmcodec_jax.speech_lm.corpus import CorpusError

ONE = types.SimpleNamespace(digest="me", codebook_size=32, levels=1)
TWO = types.SimpleNamespace(digest="me", codebook_size=32, levels=2)


def save(folder, rows):
    """The files of `Dataset.save_to_disk`, in two shards; a cache that no list names beside."""
    folder.mkdir(parents=True)
    names = []
    for number, part in enumerate((rows[:1], rows[1:])):
        names.append(f"data-{number:05d}-of-00002.arrow")
        table = pa.Table.from_pylist(part)
        with pa.ipc.new_stream(folder / names[-1], table.schema) as writer:
            writer.write_table(table)
    (folder / "cache-1.arrow").write_bytes(b"not to be read")
    state = {"_data_files": [{"filename": name} for name in names], "_split": "train"}
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "dataset_info.json").write_text("{}")


def test_a_saved_set_is_read_with_what_it_says(tmp_path):
    rows = [
        {"codes": [1, 2, 3], "sentence": "hello", "speaker_id": 7, "id": "a"},
        {"codes": [4], "sentence": None, "speaker_id": 8, "id": "b"},
    ]
    save(tmp_path / "set" / "train", rows)
    first, second = sources.read(f"tokens:{tmp_path / 'set'}", ONE, 1)
    assert first[:3] == ("a", "7", "hello")
    assert first.codes.tolist() == [1, 2, 3]
    assert first.codes.dtype == np.int32
    assert second[:3] == ("b", "8", "")


def test_parquet_rows_of_any_layout_are_frames(tmp_path):
    wanted = np.array([[0, 5], [1, 6], [2, 7]])
    for layout in (wanted, wanted.T, (wanted + np.array([0, 32])).reshape(-1)):
        path = tmp_path / "train-00000.parquet"
        parquet.write_table(pa.table({"audio_codes": [layout.tolist()]}), path)
        (clip,) = sources.read(f"tokens:{tmp_path}", TWO, 2)
        assert clip.codes.reshape(-1, 2).tolist() == (wanted + np.array([0, 32])).tolist()
        assert clip.name == f"{tmp_path.name}/train-00000:0"
        (clip,) = sources.read(f"tokens:{tmp_path}", TWO, 1)
        assert clip.codes.tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("codes", "reason"),
    [
        ([0, 99], "whole numbers in"),
        ([0.5, 1.0], "whole numbers"),
        ([[0, 1], [2, 3]], "no frames of 1 levels"),
    ],
)
def test_what_the_codec_cannot_have_made_is_named(codes, reason):
    with pytest.raises(ValueError, match=reason):
        hub_tokens.flatten(np.array(codes), ONE, 1)


def test_other_codecs_and_other_columns_are_refused(tmp_path):
    path = tmp_path / "x.parquet"
    parquet.write_table(pa.table({"codes": [[1]], "codec": ["you"]}), path)
    with pytest.raises(CorpusError, match="made by another codec"):
        sources.read(f"tokens:{path}", ONE, 1)
    parquet.write_table(pa.table({"words": ["a"]}), path)
    with pytest.raises(CorpusError, match=r"no column of codes \(codes, tokens"):
        sources.read(f"tokens:{path}", ONE, 1)
    parquet.write_table(pa.table({"codes": [[64]]}), path)
    with pytest.raises(CorpusError, match=r"x\.parquet: row 0: codes are whole numbers"):
        sources.read(f"tokens:{path}", ONE, 1)
