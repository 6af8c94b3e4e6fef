"""Tars and Parquet files with audio: the same records as the folder they were made of."""

import io
import json
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from llmcodec_jax.audio import AudioError
from llmcodec_jax.data import token_table
from llmcodec_jax.data.parquet_audio import ParquetAudioSource
from llmcodec_jax.data.sources import open_source
from llmcodec_jax.data.webdataset import WebDatasetSource, braces
from tests.data.test_data_sources import samples
from tests.tiny import write_corpus


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LLMCODEC_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def speech(tmp_path_factory):
    return open_source(f"librispeech:{write_corpus(tmp_path_factory.mktemp('speech'), 2)}")


def add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    about = tarfile.TarInfo(name)
    about.size = len(data)
    archive.addfile(about, io.BytesIO(data))


@pytest.fixture
def tars(speech, tmp_path) -> str:
    """Twelve samples in two tars: text beside some, JSON beside the others."""
    for number in range(2):
        with tarfile.open(tmp_path / f"set-00{number}.tar", "w") as archive:
            for index in range(6 * number, 6 * number + 6):
                record = speech.record(index)
                add(archive, f"a/{record.name}.flac", Path(record.uri).read_bytes())
                if index % 2:
                    about = {"text": record.text, "speaker": 7, "other": 1}
                    add(archive, f"a/{record.name}.json", json.dumps(about).encode())
                else:
                    add(archive, f"a/{record.name}.txt", record.text.encode())
            add(archive, "a/only-text.txt", b"no audio beside it")
    return f"{tmp_path}/set-{{000..001}}.tar"


def test_tars(speech, tars, tmp_path):
    assert braces("x-{08..11}.tar") == ["x-08.tar", "x-09.tar", "x-10.tar", "x-11.tar"]
    for source in (WebDatasetSource(tars), open_source(f"webdataset:{tmp_path}")):
        source = pickle.loads(pickle.dumps(source))
        assert (len(source), source.shards) == (12, [6, 6])
        for index in range(12):
            one, other = speech.record(index), source.record(index)
            assert other.name == f"set-00{index // 6}/a/{one.name}" == source.name(index)
            assert other.text == one.text
            assert other.speaker == ("7" if index % 2 else None)
            np.testing.assert_array_equal(samples(one), samples(other))
            again = token_table.open_sound(other.uri)
            np.testing.assert_array_equal(again.read(0, again.samples), samples(one))
    # The second time the index comes from the cache folder.
    assert len(list((tmp_path / "cache/tar-members").iterdir())) == 2


def test_damaged_tars_are_named(tars, tmp_path):
    path = tmp_path / "set-000.tar"
    path.write_bytes(path.read_bytes()[:20_000])
    with pytest.raises(AudioError, match=r"set-000\.tar: (truncated|is no whole)"):
        WebDatasetSource(tars)
    path.write_bytes(b"no tar at all" * 100)
    with pytest.raises(AudioError, match="is no whole, uncompressed tar"):
        WebDatasetSource(tars)
    with pytest.raises(AudioError, match=r"no \.tar file"):
        WebDatasetSource(str(tmp_path / "nothing*.tar"))


@pytest.mark.parametrize("named", [True, False])
def test_parquet_of_the_hub(speech, tmp_path, named):
    for number in range(2):
        rows = []
        for index in range(6 * number, 6 * number + 6):
            record = speech.record(index)
            data = Path(record.uri).read_bytes()
            rows.append(
                {"audio": {"bytes": data, "path": f"{record.name}.flac" if named else None}}
            )
            rows[-1] |= {"sentence": record.text, "client_id": record.speaker, "up_votes": 3}
        table = pa.Table.from_pylist(rows)
        parquet.write_table(table, tmp_path / f"train-{number}.parquet", row_group_size=4)
    source = pickle.loads(pickle.dumps(open_source(f"parquet:{tmp_path}/train-*.parquet")))
    assert (len(source), source.shards) == (12, [6, 6])
    for index in (0, 3, 4, 5, 6, 11):
        one, other = speech.record(index), source.record(index)
        assert other.name == (one.name if named else f"train-{index // 6}/{index % 6}")
        assert (other.text, other.speaker) == (one.text, one.speaker)
        assert source.group(index) == one.speaker
        np.testing.assert_array_equal(samples(one), samples(other))
        again = token_table.open_sound(other.uri)
        np.testing.assert_array_equal(again.read(0, again.samples), samples(one))


def test_parquet_without_audio_is_named(tmp_path):
    parquet.write_table(pa.table({"text": ["a"]}), tmp_path / "x.parquet")
    with pytest.raises(AudioError, match="no column of audio bytes; it has text"):
        ParquetAudioSource(str(tmp_path))
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    table = pa.table({"audio": pa.array([{"bytes": None, "path": "a.flac"}], kind)})
    parquet.write_table(table, tmp_path / "y.parquet")
    with pytest.raises(AudioError, match="only a path"):
        ParquetAudioSource(str(tmp_path / "y.parquet")).record(0)
