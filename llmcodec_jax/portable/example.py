"""Encodes and decodes a .wav with encoder.onnx and decoder.onnx: numpy and onnxruntime, no more.

python example.py in.wav tokens.npy out.wav     # 16-bit .wav at the rate that codec.json names
"""

import json
import sys
import wave
from pathlib import Path

import numpy as np
import onnxruntime

here = Path(__file__).parent
about = json.loads((here / "codec.json").read_text())
options = onnxruntime.SessionOptions()
options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # half the CPU time
encoder = onnxruntime.InferenceSession(here / "encoder.onnx", options)
decoder = onnxruntime.InferenceSession(here / "decoder.onnx", options)


def encode(wav: np.ndarray) -> np.ndarray:
    """float32 [samples] in [-1, 1] -> codes int32 [frames] or [frames, levels]."""
    return encoder.run(None, {"wav": wav[None].astype(np.float32)})[0][0]


def decode(codes: np.ndarray) -> np.ndarray:
    """Codes -> float32 [frames * hop]."""
    return decoder.run(None, {"codes": codes[None].astype(np.int32)})[0][0]


if __name__ == "__main__":
    source, tokens, target = sys.argv[1:]
    with wave.open(source) as file:
        if (file.getframerate(), file.getsampwidth()) != (about["sample_rate"], 2):
            sys.exit(f"{source}: not a 16-bit .wav of {about['sample_rate']} Hz")
        pcm = np.frombuffer(file.readframes(file.getnframes()), "<i2")
        wav = pcm.reshape(-1, file.getnchannels()).mean(axis=1) / 32768
    codes = encode(wav)
    np.save(tokens, codes)
    made = np.clip(decode(codes)[: len(wav)], -1, 1)
    with wave.open(target, "wb") as file:
        file.setparams((1, 2, about["sample_rate"], 0, "NONE", ""))
        file.writeframes((32767 * made).round().astype("<i2").tobytes())
