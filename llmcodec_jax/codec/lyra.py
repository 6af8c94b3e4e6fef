"""Lyra V2: Google's published SoundStream, through its own TensorFlow Lite graphs.

Three files, as github.com/google/lyra publishes them in `lyra/model_coeffs`: 16 kHz, 50 frames a
second, up to 46 residual levels of 16 codes (184 bits a frame; 16, 30 and 46 levels are Lyra's
3.2, 6 and 9.2 kbit/s). They run in `ai-edge-litert` (pip install 'llmcodec-jax[lyra]'), partly in
8-bit integers, so they encode and decode but do not train. Every clip starts from silence; Lyra's
noise gate, its concealment of lost packets and its resampling are no part of this.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib
from pathlib import Path
from typing import Any

import numpy as np

from llmcodec_jax.codec.inference import Codec
from llmcodec_jax.errors import UsageError

ENCODER, QUANTIZER, DECODER = FILES = (
    "soundstream_encoder.tflite",
    "quantizer.tflite",
    "lyragan.tflite",
)
LARGEST = 1 << 26  # bytes of one file; the published ones are below 2 MiB
UNUSED = -1  # the index of a level that a frame does without


class LyraError(UsageError):
    """Files that are not Lyra V2's, or no library to run them."""


@dataclasses.dataclass(frozen=True)
class Description:
    """What the graphs are, in the words of `types.Codec`."""

    sample_rate: int = 16_000  # Hz
    hop: int = 320  # samples per frame
    codebook_size: int = 16  # V
    levels: int = 46
    width: int = 64  # features of a frame


def is_folder(path: str | Path) -> bool:
    """Whether this folder holds the three files."""
    return all((Path(path) / name).is_file() for name in FILES)


class Lyra(Codec):
    """The published graphs as a codec in use, with the calls of any (`inference.Codec`)."""

    def __init__(self, folder: str | Path):
        """Raises LyraError naming the file that cannot be run."""
        description: Any = Description()
        super().__init__(description, {}, batch_size=1)
        self.folder = Path(folder)
        hop, width = description.hop, description.width
        self._graph(ENCODER, [1, hop], [1, 1, width])
        self._graph(DECODER, [1, 1, width], [1, hop])
        if set(self._interpreter(QUANTIZER).get_signature_list()) != {"encode", "decode"}:
            raise LyraError(f"{self.folder / QUANTIZER}: not Lyra V2's quantiser")

    @property
    def architecture(self) -> str:
        """No family of modules: what the files are called by."""
        return "lyra"

    @functools.cached_property
    def digest(self) -> str:
        """Of the three files' bytes."""
        parts = (hashlib.sha256((self.folder / name).read_bytes()).digest() for name in FILES)
        return hashlib.sha256(b"".join(parts)).hexdigest()[:16]

    @property
    def compilations(self) -> int:
        """None: graphs are run as they are."""
        return 0

    def stream(self, frames: int = 1, levels: int | None = None):
        """Refused: the files' state cannot be taken out and put back. Raises UsageError."""
        raise UsageError("Lyra V2 is run on whole clips here; EnCodec 24 kHz and Mimi stream")

    def _interpreter(self, name: str) -> Any:
        path = self.folder / name
        if path.stat().st_size > LARGEST:
            raise LyraError(f"{path}: more than {LARGEST} bytes, not Lyra V2's")
        try:
            litert: Any = importlib.import_module("ai_edge_litert.interpreter")
        except ImportError as error:
            raise LyraError(
                f"{self.folder}: Lyra V2 runs in ai-edge-litert, which is not here ({error}): "
                "pip install 'llmcodec-jax[lyra]'"
            ) from error
        try:
            interpreter = litert.Interpreter(str(path), num_threads=1)
            interpreter.allocate_tensors()
        except (ValueError, RuntimeError) as error:
            raise LyraError(f"{path}: not a graph that runs ({error})") from error
        return interpreter

    def _graph(self, name: str, shape: list[int], result: list[int]):
        """A function of one frame, its state at rest: float32 `shape` -> float32 `result`."""
        graph = self._interpreter(name)
        (source, *more), (sink, *others) = graph.get_input_details(), graph.get_output_details()
        if more or others or list(source["shape"]) != shape or list(sink["shape"]) != result:
            raise LyraError(f"{self.folder / name}: not the shapes of Lyra V2's")

        def run(frame: np.ndarray) -> np.ndarray:
            graph.set_tensor(source["index"], frame.reshape(shape).astype(np.float32))
            graph.invoke()
            return graph.get_tensor(sink["index"])

        return run

    def _encode_rows(self, clips: list[np.ndarray], levels: int | None = None) -> list[np.ndarray]:
        return [self._encode_clip(clip, levels or self.levels) for clip in clips]

    def _encode_clip(self, wav: np.ndarray, levels: int) -> np.ndarray:
        """Audio float32 [N] -> codes int32 [T, levels]."""
        hop, width = self.hop, self.module.width
        features = self._graph(ENCODER, [1, hop], [1, 1, width])
        quantise = self._interpreter(QUANTIZER).get_signature_runner("encode")
        frames = np.pad(wav, (0, -len(wav) % hop)).reshape(-1, hop)
        codes = np.zeros((len(frames), levels), np.int32)
        for row, frame in enumerate(frames):
            found = quantise(input_frames=features(frame), num_quantizers=np.int32(levels))
            codes[row] = found["output_0"].reshape(-1)[:levels]
        return codes

    def _decode_rows(self, clips: list[np.ndarray]) -> list[np.ndarray]:
        return [self._decode_clip(clip) for clip in clips]

    def _decode_clip(self, codes: np.ndarray) -> np.ndarray:
        """Codes int32 [T, q], q <= levels -> audio float32 [T * hop]."""
        hop, width = self.hop, self.module.width
        sound = self._graph(DECODER, [1, 1, width], [1, hop])
        look_up = self._interpreter(QUANTIZER).get_signature_runner("decode")
        wav = np.zeros((len(codes), hop), np.float32)
        for row, frame in enumerate(codes):
            indices = np.full((self.levels, 1, 1), UNUSED, np.int32)
            indices[: len(frame), 0, 0] = frame
            wav[row] = sound(look_up(encoding_indices=indices)["output_0"]).reshape(-1)
        return wav.reshape(-1)
