"""Prepared TensorFlow Datasets audio sets, read without TensorFlow.

`tfds:NAME[:SPLIT]` reads what TFDS itself wrote in array_record format under $TFDS_DATA_DIR
(~/tensorflow_datasets, or gs://BUCKET/FOLDER), for example
`tfds:librispeech:train_clean100+train_clean360` or `tfds:librispeech/default:2.1.1:dev_clean`;
NAME may also be the version's own folder or URI. Without a split, all splits whose names start
with "train" are read. Preparing a set needs TensorFlow, once, in an environment of its own:

    pip install tensorflow tensorflow-datasets
    python -c "import tensorflow_datasets as tfds
    tfds.builder('librispeech', file_format='array_record').download_and_prepare()"

TFDS's own reader constructs its audio feature with TensorFlow, so the set's `features.json` and
`dataset_info.json` are read here; records are `tf.train.Example` messages.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np

from llmcodec_jax.audio import AudioError
from llmcodec_jax.data import stores
from llmcodec_jax.data.records import (
    SPEAKER_NAMES,
    TEXT_NAMES,
    ArraySound,
    EncodedSound,
    Record,
    Sound,
)
from llmcodec_jax.data.shards import open_shards
from llmcodec_jax.errors import UsageError

_FULL_SCALE = 32768.0  # TFDS decodes to 16-bit values whatever integer type it keeps them in


class TfdsSource:
    """Records of one or several splits; the name is `DATASET/SPLIT/NUMBER` (ids lie inside).

    Speakers are not known before a record is opened: hold out data by naming a split of its own
    rather than with `by="speaker"`.
    """

    def __init__(self, spec: str, data_dir: str | Path | None = None):
        """Raises AudioError where the set is not prepared, has no audio, or lacks a split."""
        name, splits = _parse(spec)
        self.folder = _find(name, str(data_dir or os.environ.get("TFDS_DATA_DIR") or _HOME))
        info = _read_json(stores.join(self.folder, _INFO))
        if info.get("fileFormat") != "array_record":
            raise AudioError(
                f"{self.folder}: is prepared as {info.get('fileFormat', 'tfrecord')}, which cannot "
                "be read at random; prepare it again, into another data_dir, with "
                "tfds.builder(NAME, file_format='array_record', data_dir=..)"
            )
        self.label = info["name"]
        self._fields = _Fields(stores.join(self.folder, "features.json"))
        paths: list[str] = []
        self.shards: list[int] = []  # records of each file
        self._starts: list[tuple[int, str]] = []  # (first index, split), ascending
        count = 0
        for split in _chosen(info["splits"], splits, self.folder):
            lengths = [int(length) for length in split["shardLengths"]]
            self._starts.append((count, split["name"]))
            paths += _shards(self.folder, info["name"], split, len(lengths))
            self.shards += lengths
            count += sum(lengths)
        self._reader = open_shards(paths, "prepare the set again")
        if len(self._reader) != count:
            raise AudioError(f"{self.folder}: {len(self._reader)} records instead of {count}")

    def __len__(self) -> int:
        return len(self._reader)

    def name(self, index: int) -> str:
        start, split = next(entry for entry in reversed(self._starts) if entry[0] <= index)
        return f"{self.label}/{split}/{index - start}"

    def group(self, index: int) -> str:
        return self.name(index)

    def record(self, index: int) -> Record:
        from google.protobuf.message import DecodeError
        from tensorflow_datasets.proto import tf_example_pb2

        name = self.name(index)
        try:
            example = tf_example_pb2.Example.FromString(self._reader.read(index, name))
        except DecodeError as error:
            raise AudioError(f"{name}: is not a tf.train.Example ({error})") from error
        return self._fields.record(example.features.feature, name)


_HOME = Path("~/tensorflow_datasets").expanduser()
_INFO = "dataset_info.json"


class _Fields:
    """Which features of a set are its audio, text and speaker, and how the audio is kept."""

    def __init__(self, path: str):
        features = _read_json(path).get("featuresDict", {}).get("features", {})
        kinds = {k: v.get("pythonClassName", "").rpartition(".")[2] for k, v in features.items()}
        audio = [name for name, kind in kinds.items() if kind == "Audio"]
        if len(audio) != 1:
            raise AudioError(f"{path}: needs one audio feature at the top level, has {audio}")
        self.audio = audio[0]
        settings: dict[str, Any] = features[self.audio]["audio"]
        if "sampleRate" not in settings:
            raise AudioError(f"{path}: the set does not state the sample rate of {self.audio!r}")
        if settings.get("encoding", "NONE").upper() != "NONE":
            raise AudioError(f"{path}: audio in {settings['encoding']} encoding is not supported")
        self.rate = int(settings["sampleRate"])
        self.lazy = bool(settings.get("lazyDecode"))
        self.integer = "float" not in settings["dtype"]
        dimensions = settings.get("shape", {}).get("dimensions", [-1])
        self.channels = int(dimensions[1]) if len(dimensions) > 1 else 1
        texts = [name for name, kind in kinds.items() if kind == "Text"]
        named = [name for name in TEXT_NAMES if name in kinds]
        self.text = named[0] if named else texts[0] if len(texts) == 1 else None
        self.speaker = next((name for name in SPEAKER_NAMES if name in kinds), None)

    def record(self, features: Any, name: str) -> Record:
        """tf.train.Features.feature map -> Record."""
        text = _first(features, self.text)
        speaker = _first(features, self.speaker)
        sound = self._sound(features[self.audio], name)
        return Record(name, sound, text, (), None, speaker, _first(features, "id"))

    def _sound(self, feature: Any, name: str) -> Sound:
        if self.lazy:
            if not feature.bytes_list.value:
                raise AudioError(f"{name}: holds no audio")
            return EncodedSound(feature.bytes_list.value[0], name)
        if self.integer:
            values = np.array(feature.int64_list.value, np.int64)
            if len(values) and max(-int(values.min()), int(values.max())) > _FULL_SCALE:
                raise AudioError(f"{name}: its integer samples need more than 16 bits")
        else:
            values = np.array(feature.float_list.value, np.float32)
        if self.channels > 1:
            values = values[: len(values) // self.channels * self.channels]
            values = values.reshape(-1, self.channels)
        return ArraySound(values, self.rate, name, _FULL_SCALE if self.integer else 1.0)


def _first(features: Any, key: str | None) -> str | None:
    """A feature's first value as text, or None."""
    if key is None or key not in features:
        return None
    feature = features[key]
    for values in (feature.bytes_list.value, feature.int64_list.value):
        if values:
            value = values[0]
            return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
    return None


def _parse(spec: str) -> tuple[str, list[str]]:
    """`NAME[:VERSION][:SPLIT+SPLIT]` -> (name with /version, splits)."""
    scheme, separator, spec = spec.rpartition("://")
    name, *rest = spec.split(":")
    name = scheme + separator + name
    if rest and re.fullmatch(r"\d+\.\d+\.\d+", rest[0]):
        name = f"{name}/{rest.pop(0)}"
    if len(rest) > 1 or (rest and "[" in rest[0]):
        raise UsageError(f"tfds:{spec}: expected tfds:NAME[:SPLIT+SPLIT], whole splits")
    return name, [split for split in "".join(rest).split("+") if split]


def _find(name: str, data_dir: str) -> str:
    """The folder of the newest prepared version. Raises AudioError saying how to prepare it."""
    for root in (name, stores.join(data_dir, name)):
        root = root if stores.is_remote(root) else str(Path(root).expanduser())
        found = [path.removesuffix(f"/{_INFO}") for path in stores.expand(root, _INFO)]
        configs = {folder.rpartition("/")[0] for folder in found}
        if len(configs) > 1:
            names = ", ".join(sorted(config.rpartition("/")[2] for config in configs))
            raise AudioError(f"{root}: several configurations are prepared ({names}); name one")
        if found:
            return max(found, key=_version)
    raise AudioError(
        f"{stores.join(data_dir, name)}: no prepared TFDS set. Prepare it once where "
        f"TensorFlow is installed: tfds.builder({name!r}, file_format='array_record')"
        ".download_and_prepare(), then set TFDS_DATA_DIR to its data_dir"
    )


def _version(folder: str) -> list[int]:
    return [int(n) for n in re.findall(r"\d+", folder.rpartition("/")[2])]


def _chosen(splits: list[dict], wanted: list[str], folder: str) -> list[dict]:
    by_name = {split["name"]: split for split in splits}
    names = wanted or sorted(name for name in by_name if name.startswith("train"))
    missing = [name for name in names if name not in by_name]
    if missing or not names:
        raise AudioError(
            f"{folder}: has no split {' or '.join(missing) or 'for training'}; "
            f"it has {', '.join(by_name)}"
        )
    return [by_name[name] for name in names]


def _shards(folder: str, dataset: str, split: dict, count: int) -> list[str]:
    template = split.get("filepathTemplate", "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}")
    paths = []
    for index in range(count):
        numbers = {"SHARD_INDEX": f"{index:05d}", "NUM_SHARDS": f"{count:05d}"}
        numbers["SHARD_X_OF_Y"] = f"{index:05d}-of-{count:05d}"
        file = template.format(
            DATASET=dataset, SPLIT=split["name"], FILEFORMAT="array_record", **numbers
        )
        path = stores.join(folder, file)
        if not stores.exists(path):
            raise AudioError(f"{path}: this shard is missing; prepare the set again")
        paths.append(path)
    return paths


def _read_json(path: str) -> dict[str, Any]:
    try:
        return json.loads(stores.read(path).decode("utf-8"))
    except (OSError, ValueError) as error:
        raise AudioError(f"{path}: cannot be read ({error})") from error
