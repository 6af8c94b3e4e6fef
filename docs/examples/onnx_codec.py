"""A codec exported as ONNX, with numpy, onnxruntime and soundfile alone (no JAX, not this package).

    python onnx_codec.py FOLDER input.wav output.wav

FOLDER is what `llmcodec export --codec CODEC --format onnx --output FOLDER` wrote. The recording
has the codec's sample rate; what is longer than the largest bucket is coded in pieces.
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import soundfile


class OnnxCodec:
    def __init__(self, folder):
        self.folder, self.sessions = Path(folder), {}
        self.about = json.loads((self.folder / "codec.json").read_text())

    def _run(self, half, frames, array, valid):
        bucket = next(b for b in self.about["buckets"] if frames <= b["frames"])
        name = bucket[half]
        if name not in self.sessions:
            self.sessions[name] = onnxruntime.InferenceSession(self.folder / name)
        padding = bucket["frames"] * (len(array) // frames) - len(array)
        padded = np.pad(array, [(0, padding)] + [(0, 0)] * (array.ndim - 1))[None]
        names = [given.name for given in self.sessions[name].get_inputs()]
        inputs = dict(zip(names, (padded, np.array([valid], np.int32)), strict=True))
        return self.sessions[name].run(None, inputs)[0][0]

    def encode(self, wav):
        """float [N] at the codec's rate -> int32 [T] or [T, levels]."""
        hop, size = self.about["hop"], self.about["buckets"][-1]["frames"] * self.about["hop"]
        pieces = []
        for piece in (wav[i : i + size].astype(np.float32) for i in range(0, len(wav), size)):
            frames = -(-len(piece) // hop)
            whole = np.pad(piece, (0, frames * hop - len(piece)))
            pieces.append(self._run("encoder", frames, whole, len(piece))[:frames])
        return np.concatenate(pieces)

    def decode(self, codes):
        """int [T] or [T, levels] -> float32 [T * hop]."""
        hop, size = self.about["hop"], self.about["buckets"][-1]["frames"]
        pieces = (codes[i : i + size].astype(np.int32) for i in range(0, len(codes), size))
        return np.concatenate(
            [self._run("decoder", len(p), p, len(p))[: len(p) * hop] for p in pieces]
        )


if __name__ == "__main__":
    codec = OnnxCodec(sys.argv[1])
    wav, rate = soundfile.read(sys.argv[2])
    assert rate == codec.about["sample_rate"], f"resample to {codec.about['sample_rate']} Hz first"
    codes = codec.encode(wav if wav.ndim == 1 else wav.mean(axis=1))
    print(codes.shape, "codes")
    soundfile.write(sys.argv[3], codec.decode(codes)[: len(wav)], rate)
