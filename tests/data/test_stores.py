"""Object stores: a real S3 server on the loopback, with files, shards, failures and refusals."""

import shutil
import threading

import numpy as np
import pytest

pytest.importorskip("s3fs", reason="s3:// needs s3fs: pip install 'llmcodec-jax[stores]'")
pytest.importorskip("moto", reason="the S3 server of these tests is moto's: pip install moto flask")

from llmcodec_jax.audio import AudioError
from llmcodec_jax.data import stores
from llmcodec_jax.data.block_cache import BlockCache
from llmcodec_jax.data.prepare import prepare
from llmcodec_jax.data.remote_shards import RemoteShards
from llmcodec_jax.data.shards import ShardReader
from llmcodec_jax.data.sources import open_source
from llmcodec_jax.data.stores import StoreError
from tests.data.test_data_sources import TFDS_SETS, samples
from tests.object_store import s3_server
from tests.tiny import TONE_RATE, make_loader, write_corpus

BUCKET = "s3://corpora"


@pytest.fixture(scope="module")
def s3(tmp_path_factory):
    """A server, its credentials in the environment, and a bucket."""
    with s3_server(tmp_path_factory.mktemp("cache")) as address:
        yield address


def upload(folder, name: str) -> str:
    stores.filesystem("s3").put(str(folder), f"corpora/{name}", recursive=True)
    return f"{BUCKET}/{name}"


@pytest.fixture(scope="module")
def corpus(s3, tmp_path_factory):
    """(local folder, the same in the bucket)."""
    folder = write_corpus(tmp_path_factory.mktemp("corpus") / "speech", speakers=2)
    (folder / "1/7/1-7-0002.words.tsv").write_text("0.1\t0.4\tone\n")
    (folder / "1/7/1-7-0000.txt").write_text("what it says\n")
    return folder, upload(folder, "speech")


@pytest.fixture(scope="module")
def shards(corpus, tmp_path_factory):
    """(local shards, the same in the bucket)."""
    folder = tmp_path_factory.mktemp("prepared") / "set"
    prepare(f"librispeech:{corpus[0]}", folder, shards=3, sample_rate=TONE_RATE)
    return folder, upload(folder, "set")


def assert_same(local, remote):
    assert [local.name(i) for i in range(len(local))] == [
        remote.name(i) for i in range(len(remote))
    ]
    for index in range(len(local)):
        one, other = local.record(index), remote.record(index)
        assert (one.name, one.text, one.words) == (other.name, other.text, other.words)
        assert (one.speaker, one.domain) == (other.speaker, other.domain)
        np.testing.assert_array_equal(samples(one), samples(other))


@pytest.mark.parametrize("kind", ["librispeech", "folder"])
def test_trees_read_alike_here_and_in_a_bucket(corpus, kind):
    folder, uri = corpus
    assert_same(open_source(f"{kind}:{folder}"), open_source(f"{kind}:{uri}"))
    assert open_source(f"{kind}:{uri}").record(0).uri.startswith(f"{uri}/1/7/")


def test_shards_read_alike_here_and_in_a_bucket(shards):
    folder, uri = shards
    assert_same(open_source(f"arrayrecord:{folder}"), open_source(f"arrayrecord:{uri}"))


@pytest.mark.parametrize("options", ["group_size:1,uncompressed", "group_size:3", "brotli:3"])
def test_every_record_of_an_array_record_file(s3, tmp_path, options):
    """What the library writes is read here byte for byte, across the format's own blocks."""
    from array_record.python import array_record_module

    rng = np.random.default_rng(0)
    records = [rng.bytes(size) for size in (0, 1, 65_512, 65_513, 200_000, 127, 128, 300_001)]
    writer = array_record_module.ArrayRecordWriter(str(tmp_path / "x.array_record"), options)
    for record in records:
        writer.write(record)
    writer.close()
    uri = f"{BUCKET}/{options.replace(':', '').replace(',', '')}.array_record"
    stores.write(uri, (tmp_path / "x.array_record").read_bytes())
    local = ShardReader([str(tmp_path / "x.array_record")], "")
    remote = RemoteShards([uri, uri], "")
    assert len(remote) == 2 * len(local) == 16
    assert [remote.read(i, "") for i in range(16)] == 2 * [local.read(i, "") for i in range(8)]
    stores.write(f"{BUCKET}/cut.array_record", stores.read(uri)[: 65536 * 3])
    with pytest.raises(AudioError, match="no whole shard"):
        RemoteShards([f"{BUCKET}/cut.array_record"], "")


def test_tfds_on_a_bucket(s3, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(TFDS_SETS))
    spec = "tfds:tiny_speech:train_clean"
    local = open_source(spec)
    monkeypatch.setenv("TFDS_DATA_DIR", upload(TFDS_SETS, "tfds"))
    assert_same(local, open_source(spec))
    assert_same(local, open_source(f"tfds:{BUCKET}/tfds/tiny_speech/1.0.0:train_clean"))


def test_batches_from_a_bucket_are_those_from_the_disk(shards):
    folder, uri = shards
    clip = dict(sample_rate=TONE_RATE, clip_samples=8000, hop=320)
    found = []
    for source in (f"arrayrecord:{folder}", f"arrayrecord:{uri}"):
        with make_loader(source, batch_size=4, split="all", seed=1, **clip) as loader:
            found.append([next(loader) for _ in range(5)])
    for one, other in zip(*found, strict=True):
        np.testing.assert_array_equal(one.wav, other.wav)
        np.testing.assert_array_equal(one.example_id, other.example_id)


def test_what_is_not_there_is_told(s3):
    with pytest.raises(AudioError, match="no such folder"):
        open_source(f"folder:{BUCKET}/nothing")
    with pytest.raises(AudioError, match=r"no \.array_record"):
        open_source(f"arrayrecord:{BUCKET}/nothing")
    with pytest.raises(FileNotFoundError):
        stores.read(f"{BUCKET}/nothing.wav")


def test_missing_libraries_and_credentials_are_told_with_the_fix(monkeypatch):
    stores.filesystem.cache_clear()
    with pytest.raises(StoreError, match=r"pip install 'llmcodec-jax\[stores\]'"):
        stores.filesystem("nosuchstore")

    def refuse():
        raise PermissionError("Forbidden")

    with pytest.raises(StoreError, match="AWS_ACCESS_KEY_ID"):
        stores.retrying("s3://b/x", refuse)
    with pytest.raises(StoreError, match="gcloud auth"):
        stores.retrying("gs://b/x", refuse)


def test_what_fails_in_passing_is_tried_again_later_and_later():
    pauses, left = [], [3]

    def flaky():
        left[0] -= 1
        if left[0] >= 0:
            raise ConnectionResetError("reset")
        return "there"

    assert stores.retrying("s3://b/x", flaky, pauses.append) == "there"
    assert len(pauses) == 3
    assert pauses[2] > pauses[0] / 3 * 2
    left[0] = 99
    with pytest.raises(StoreError, match="tried 8 times"):
        stores.retrying("s3://b/x", flaky, pauses.append)


def test_no_credentials_is_one_line(s3, monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nonexistent")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
    stores.filesystem.cache_clear()
    try:
        with pytest.raises(StoreError, match="access is refused"):
            stores.read(f"{BUCKET}/set/prepare.json")
    finally:
        s3fs.S3FileSystem.clear_instance_cache()
        stores.filesystem.cache_clear()


def test_blocks_are_fetched_once_ahead_and_within_the_limit(s3, tmp_path, monkeypatch):
    data = np.random.default_rng(0).bytes(10_000)
    uri = f"{BUCKET}/blob"
    stores.write(uri, data)
    asked, lock = [], threading.Lock()
    fetch = stores.read_range

    def counted(uri, start, stop):
        with lock:
            asked.append(start)
        return fetch(uri, start, stop)

    monkeypatch.setattr(stores, "read_range", counted)
    cache = BlockCache(tmp_path / "blocks", limit=100_000, block=1000)
    assert cache.read(uri, 2500, 2600, 10_000) == data[2500:2600]
    assert asked == [2000]
    assert cache.read(uri, 2900, 3100, 10_000) == data[2900:3100]
    cache._threads.shutdown(wait=True)
    assert sorted(asked) == [2000, 3000, 4000, 5000]  # one after the other: two more ahead
    again = BlockCache(tmp_path / "blocks", limit=4000, block=1000)
    assert again.read(uri, 2000, 6000, 10_000) == data[2000:6000]
    assert len(asked) == 4, "all came from the disk"
    assert again.read(uri, 6000, 10_000, 10_000) == data[6000:]
    again._threads.shutdown(wait=True)
    kept = [path.stat().st_size for path in (tmp_path / "blocks").rglob("*-*")]
    assert sum(kept) <= 4000
    shutil.rmtree(tmp_path / "blocks")
