"""How the sets in this folder were prepared: by TFDS 4.9.10 itself, with TensorFlow.

    pip install tensorflow-cpu tensorflow-datasets array_record pydub soundfile
    python make.py .          # then delete tiny_speech's train_other shard: one test misses it

The audio is tones. TensorFlow is needed to write TFDS audio, not to read it here.
"""

import io
import sys

import numpy as np
import soundfile
import tensorflow_datasets as tfds


def tone(samples: int, pitch: float, rate: int) -> np.ndarray:
    return (0.3 * 32767 * np.sin(2 * np.pi * pitch * np.arange(samples) / rate)).astype(np.int64)


class _Tiny(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")
    features = None
    splits = ()  # (name, first, count)

    def _info(self):
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(self.features())
        )

    def _split_generators(self, _):
        return {name: self._examples(first, count) for name, first, count in self.splits}

    def _examples(self, first, count):
        for number in range(first, first + count):
            yield number, self.example(number)

    def _generate_examples(self):
        pass


class TinySpeech(_Tiny):
    """16-bit integers kept as int64, as LibriSpeech is."""

    splits = (("train_clean", 0, 5), ("train_other", 5, 3), ("test", 8, 2))

    @staticmethod
    def features():
        text = tfds.features.Text
        audio = tfds.features.Audio(sample_rate=8000)
        return {"speech": audio, "text": text(), "speaker_id": np.int64, "id": text()}

    @staticmethod
    def example(i):
        speech = tone(2400 + 80 * i, 300 + 50 * i, 8000)
        ids = {"speaker_id": i % 3, "id": f"{i % 3}-1-{i:04d}"}
        return {"speech": speech, "text": f"tone number {i}"} | ids


class TinyLazy(_Tiny):
    """Whole FLAC files, decoded when read."""

    splits = (("train", 0, 2),)

    @staticmethod
    def features():
        audio = tfds.features.Audio(
            sample_rate=16000, file_format="flac", dtype=np.int16, lazy_decode=True
        )
        return {"audio": audio, "transcription": tfds.features.Text()}

    @staticmethod
    def example(i):
        file = io.BytesIO()
        soundfile.write(file, tone(4000 + i, 440, 16000).astype(np.int16), 16000, format="FLAC")
        file.seek(0)
        return {"audio": file, "transcription": f"lazy {i}"}


class TinyFloat(_Tiny):
    """Stereo floats without text."""

    splits = (("train", 0, 2),)

    @staticmethod
    def features():
        audio = tfds.features.Audio(sample_rate=16000, dtype=np.float32, shape=(None, 2))
        return {"audio": audio, "label": tfds.features.ClassLabel(names=["a", "b"])}

    @staticmethod
    def example(i):
        wav = (tone(4000 + i, 440, 16000) / 32768).astype(np.float32)
        return {"audio": np.stack([wav, wav * 0.5], 1), "label": i % 2}


if __name__ == "__main__":
    for builder in (TinySpeech, TinyLazy, TinyFloat):
        builder(data_dir=sys.argv[1], file_format="array_record").download_and_prepare()
