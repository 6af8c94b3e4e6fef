"""A small corpus with damage in it, and the codec that codes it."""

from pathlib import Path

import numpy as np
import pytest
import soundfile

from tests.tiny import RATE


@pytest.fixture(scope="session")
def codec_folder() -> str:
    """The shipped codec: it needs no initialising, which would cost more than these tests."""
    return "mini"


def write_clips(folder: Path, count: int, bad: tuple[int, ...] = ()) -> Path:
    """`count` clips of 0.05 to 0.3 s, some of them no audio."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for index in range(count):
        path = folder / f"{index // 100:02d}" / f"clip-{index:05d}.wav"
        path.parent.mkdir(exist_ok=True)
        if index in bad:
            path.write_bytes(b"RIFF and no more")
            continue
        samples = int(rng.integers(800, 4800))
        soundfile.write(path, 0.1 * rng.standard_normal(samples), RATE)
    return folder
