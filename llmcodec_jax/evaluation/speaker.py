"""Speaker similarity: the cosine between two clips' voices, as Resemblyzer hears them.

The encoder is GE2E's (Wan et al., arXiv 1710.10467): three LSTM layers over 40 mel bands, a
rectified projection to 256 values of unit length. Only the weights of the package `resemblyzer`
are read (Apache-2.0); neither it nor PyTorch is imported.
"""

from __future__ import annotations

import functools
import importlib.util
import math
from pathlib import Path

import numpy as np

from llmcodec_jax.codec import torch_file
from llmcodec_jax.evaluation.reports import EvaluationError
from llmcodec_jax.ops import dsp

RATE = 16_000  # Hz
WEIGHTS = "resemblyzer"
LAYERS = 3
WINDOW, HOP, BANDS = 400, 160, 40  # 25 ms, 10 ms
PART = 160  # frames the encoder hears at once: 1.6 s
STEP = 77  # frames between parts: 1.3 parts a second
COVERAGE = 0.75  # of a last part that is kept
LEVEL = -30.0  # dB full scale that quieter clips are raised to


def similarity(reference: np.ndarray, estimate: np.ndarray) -> float:
    """Mono float32 [N] at 16 kHz each -> cosine of their voices in [0, 1]; NaN for silence."""
    if not np.any(reference) or not np.any(estimate):
        return math.nan
    return float(embed(reference) @ embed(estimate))


def embed(wav: np.ndarray) -> np.ndarray:
    """A clip's voice: mono float32 [N] at 16 kHz, not silent -> float32 [256] of unit length."""
    wav = _raise_level(np.asarray(wav, np.float32))
    starts = part_starts(len(wav))
    wav = np.pad(wav, (0, max(0, (starts[-1] + PART) * HOP - len(wav))))
    mel = mel_spectrogram(wav)
    parts = encode(np.stack([mel[start : start + PART] for start in starts]), weights())
    mean = parts.mean(axis=0)
    return mean / np.linalg.norm(mean)


def part_starts(samples: int) -> list[int]:
    """First frames of the parts of a clip of that many samples: at least one."""
    frames = -(-(samples + 1) // HOP)
    starts = list(range(0, max(1, frames - PART + STEP + 1), STEP))
    covered = (samples / HOP - starts[-1]) / PART
    return starts[:-1] if covered < COVERAGE and len(starts) > 1 else starts


def mel_spectrogram(wav: np.ndarray) -> np.ndarray:
    """float32 [N] -> power in mel bands, float32 [1 + N // 160, 40]; zeros beyond both ends."""
    power = np.abs(dsp.host_stft(np.pad(wav, WINDOW // 2), WINDOW, HOP)) ** 2
    return (power @ dsp.mel_filterbank(RATE, WINDOW, BANDS, "slaney")).astype(np.float32)


def encode(mels: np.ndarray, tensors: dict[str, np.ndarray]) -> np.ndarray:
    """Parts float32 [P, frames, 40] and the published tensors -> voices [P, 256], unit length."""
    hidden = mels
    for layer in range(LAYERS):
        bias = tensors[f"lstm.bias_ih_l{layer}"] + tensors[f"lstm.bias_hh_l{layer}"]
        matrices = (tensors[f"lstm.weight_{kind}_l{layer}"] for kind in ("ih", "hh"))
        hidden = lstm(hidden, *matrices, bias)
    voice = np.maximum(hidden[:, -1] @ tensors["linear.weight"].T + tensors["linear.bias"], 0)
    return voice / np.linalg.norm(voice, axis=1, keepdims=True)


def lstm(
    inputs: np.ndarray, weight: np.ndarray, recurrent: np.ndarray, bias: np.ndarray
) -> np.ndarray:
    """[P, T, in], weights [4 H, in] and [4 H, H], bias [4 H] -> hidden states [P, T, H].

    bias: both of PyTorch's added up. Gates in PyTorch's order: input, forget, cell, out.
    """
    driven, recurrent = inputs @ weight.T + bias, recurrent.T
    state = cell = np.zeros((len(inputs), len(recurrent)), np.float32)
    states = []
    for step in range(inputs.shape[1]):
        entry, forget, new, out = np.split(driven[:, step] + state @ recurrent, 4, axis=1)
        cell = _sigmoid(forget) * cell + _sigmoid(entry) * np.tanh(new)
        state = _sigmoid(out) * np.tanh(cell)
        states.append(state)
    return np.stack(states, axis=1)


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 0.5 * (1 + np.tanh(0.5 * x))


def _raise_level(wav: np.ndarray) -> np.ndarray:
    """Quiet clips at LEVEL; louder ones as they are."""
    level = 10 * np.log10(np.mean(np.square(wav, dtype=np.float64)))
    return wav if level >= LEVEL else wav * np.float32(10 ** ((LEVEL - level) / 20))


@functools.cache
def weights() -> dict[str, np.ndarray]:
    """The encoder's tensors by published name. Raises EvaluationError where they are missing."""
    spec = importlib.util.find_spec(WEIGHTS)
    if spec is None or not spec.submodule_search_locations:
        raise EvaluationError("no speaker encoder: pip install --no-deps resemblyzer")
    path = Path(spec.submodule_search_locations[0]) / "pretrained.pt"
    tensors = torch_file.read_state_dict(path)
    expected = {"linear.weight": (256, 256), "lstm.weight_ih_l0": (1024, BANDS)}
    for name, shape in expected.items():
        if name not in tensors or tensors[name].shape != shape:
            raise EvaluationError(f"{path}: not the published speaker encoder ({name} {shape})")
    return tensors
