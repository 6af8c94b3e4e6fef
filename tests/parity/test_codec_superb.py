"""The six metrics against the benchmark's own arithmetic, on made-up speech-like signals.

`codec_superb_values.jsonl` was computed in PyTorch: torch.stft, its sinc resampler, librosa's mel
filters and DTW, and the pesq, pystoi and parselmouth packages.
"""

import json
from pathlib import Path

import numpy as np
import pytest

from llmcodec_jax.evaluation import codec_superb

VALUES = (Path(__file__).parent / "data" / "codec_superb_values.jsonl").read_text().splitlines()
TOLERANCE = {
    "mel": {"rel": 1e-3},
    "stft": {"rel": 1e-3},
    "waveform": {"rel": 1e-4},
    "pesq": {"abs": 2e-3},
    "stoi": {"abs": 1e-3},
    "f0corr": {"abs": 1e-3},
}


def speechlike_pair(rate, channels=1, seed=0):
    """Harmonics of a gliding pitch with pauses, and a distorted, noisy copy: [channels, 3 s]."""
    generator = np.random.default_rng(seed)
    time = np.arange(3 * rate) / rate
    clips = []
    for channel in range(channels):
        pitch = 140 + 40 * np.sin(2 * np.pi * 0.7 * time + channel)
        phase = 2 * np.pi * np.cumsum(pitch) / rate
        voice = sum(np.sin(k * phase) / k for k in range(1, 20))
        envelope = np.clip(np.sin(2 * np.pi * 1.3 * time + channel), 0, 1)
        clips.append(0.1 * voice * envelope)
    reference = np.stack(clips)
    hiss = 0.01 * generator.normal(size=reference.shape)
    estimate = np.tanh(3 * reference) / 3 + hiss * (1 + 5 * np.abs(reference))
    reference = reference + 1e-3 * generator.normal(size=reference.shape)
    return reference.astype(np.float32), estimate.astype(np.float32)


@pytest.mark.parametrize("line", VALUES, ids=lambda line: json.loads(line)["f"])
def test_golden(line):
    expected = json.loads(line)
    name = expected.pop("f").removesuffix(".npz")
    if name == "16000_from24000":
        reference, estimate, rates = (
            speechlike_pair(16000)[0],
            speechlike_pair(24000)[1],
            (16000, 24000),
        )
    else:
        rate, channels = map(int, name.split("_"))
        reference, estimate = speechlike_pair(rate, channels)
        rates = (rate, rate)
    values = codec_superb.score(reference, rates[0], estimate, rates[1])
    absent = codec_superb.absent()
    assert set(values) | set(absent) == set(expected)
    for metric, value in values.items():
        assert value == pytest.approx(expected[metric], **TOLERANCE[metric]), metric
