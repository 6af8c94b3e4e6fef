"""The token table: what is written comes back, row by row, from one file or many."""

import math
import pickle

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from llmcodec_jax import evaluate
from llmcodec_jax.audio import AudioError
from llmcodec_jax.data import token_table
from llmcodec_jax.data.token_table import TokenTable
from llmcodec_jax.evaluation import streams


def rows(count, levels=1, size=32, first=0, codec="abc"):
    rng = np.random.default_rng(first)
    for index in range(first, first + count):
        frames = int(rng.integers(40, 90))
        codes = rng.integers(0, size, (frames, levels)) + np.arange(levels) * size
        yield {
            "id": f"clip-{index:04d}",
            "codes": codes.reshape(-1).tolist(),
            "num_frames": frames,
            "num_samples": frames * 320,
            "sample_rate": 16_000,
            "levels": levels,
            "codebook_size": size,
            "codec": codec,
            "hop": 320,
            "duration": frames * 0.02,
            "speaker": f"s{index % 3}" if index % 2 else None,
            "transcript": f"word {index}",
        }


@pytest.mark.parametrize("levels", [1, 3])
def test_rows_come_back_from_shards(tmp_path, levels):
    expected = [*rows(300, levels), *rows(20, levels, first=300)]
    token_table.write(tmp_path / "a.parquet", expected[:300], token_table.schema())
    token_table.write(tmp_path / "b.parquet", expected[300:], token_table.schema())
    table = pickle.loads(pickle.dumps(TokenTable(tmp_path)))
    assert len(table) == 320
    assert (table.levels, table.codebook_size, table.codec, table.hop) == (levels, 32, "abc", 320)
    assert (table.frame_rate, table.vocabulary) == (50, 32 * levels)
    for index in (0, 7, 255, 256, 299, 300, 319):  # on both sides of row groups and files
        row = expected[index]
        assert table.name(index) == row["id"]
        np.testing.assert_array_equal(table.numbers(index), row["codes"])
        codes = table.codes(index)
        assert codes.dtype == np.int32
        assert codes.shape == ((row["num_frames"], levels) if levels > 1 else (row["num_frames"],))
        assert codes.max() < 32
        assert table.seconds(index) == pytest.approx(row["duration"])
        assert table.transcript(index) == row["transcript"]
        assert table.group(index) == (row["speaker"] or row["id"])
    assert [name for name, _ in table] == [row["id"] for row in expected]


def test_what_is_no_table_is_refused(tmp_path):
    with pytest.raises(AudioError, match=r"no \.parquet token table"):
        TokenTable(tmp_path)
    (tmp_path / "x.parquet").write_bytes(b"PAR1 and nothing")
    with pytest.raises(AudioError, match="cannot be read as Parquet"):
        TokenTable(tmp_path)
    parquet.write_table(pa.table({"id": ["a"]}), tmp_path / "x.parquet")
    with pytest.raises(AudioError, match="is no token table, it lacks codes"):
        TokenTable(tmp_path)
    token_table.write(tmp_path / "x.parquet", rows(2), token_table.schema())
    token_table.write(tmp_path / "y.parquet", rows(2, codec="other"), token_table.schema())
    with pytest.raises(AudioError, match="of 2 codecs"):
        TokenTable(tmp_path)


def test_token_lm_reads_it(tmp_path, capsys):
    (tmp_path / "t").mkdir()
    token_table.write(tmp_path / "t" / "x.parquet", rows(20, 2), token_table.schema())
    found = streams.from_table(str(tmp_path / "t"))
    assert (found.levels, found.codebook_size, found.tokens_per_second) == (2, 32, 100)
    options = "--steps 2 --width 32 --layers 1 --batch 4 --seeds 1 --seconds 1"
    command = ["token_lm", "--codec", f"tokens:{tmp_path / 't'}", "--output", str(tmp_path / "r")]
    assert evaluate.main([*command, *options.split()]) == 0
    assert "bits/s" in capsys.readouterr().out
    assert math.isfinite(found.frame_rate)
