"""Records by number out of ArrayRecord files, with damage told as AudioError."""

from __future__ import annotations

from collections.abc import Sequence

from array_record.python import array_record_data_source

from llmcodec_jax.audio import AudioError
from llmcodec_jax.data import stores
from llmcodec_jax.data.remote_shards import RemoteShards


class ShardReader:
    """Random access to the records of several files, in order; picklable."""

    def __init__(self, paths: Sequence[str], remedy: str):
        """Raises AudioError naming the first file that is no whole shard, and the `remedy`."""
        self._records = _open(paths, remedy)

    def __len__(self) -> int:
        return len(self._records)

    def read(self, index: int, label: str) -> bytes:
        """One record's bytes. Raises AudioError, naming `label`, where they are damaged."""
        try:
            return self._records[index]
        except RuntimeError as error:  # the file's checksums, or a shard that is gone meanwhile
            raise AudioError(f"{label}: is damaged ({_first_sentence(error)})") from error


def open_shards(paths: Sequence[str], remedy: str) -> ShardReader | RemoteShards:
    """A reader of files that lie here, or all in a store (see `ShardReader`)."""
    if any(map(stores.is_remote, paths)):
        return RemoteShards(paths, remedy)
    return ShardReader(paths, remedy)


def _open(paths: Sequence[str], remedy: str) -> array_record_data_source.ArrayRecordDataSource:
    try:
        return array_record_data_source.ArrayRecordDataSource(list(paths))
    except RuntimeError as error:  # it does not say which file
        if len(paths) > 1:
            for path in paths:
                _open([path], remedy)
        raise AudioError(
            f"{paths[0]}: is no whole shard ({_first_sentence(error)}); copy it again, or {remedy}"
        ) from error


def _first_sentence(error: Exception) -> str:
    return str(error).partition(";")[0].strip()
