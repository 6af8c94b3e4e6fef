"""A small corpus in LibriSpeech's layout, made of tones."""

from pathlib import Path

import numpy as np
import pytest

from llmcodec_jax import audio

RATE = 8000


def tone(seconds: float, pitch: float = 220.0, rate: int = RATE) -> np.ndarray:
    time = np.arange(round(seconds * rate)) / rate
    return (0.4 * np.sin(2 * np.pi * pitch * time)).astype(np.float32)


def write_corpus(folder: Path, speakers: int = 3, clips: int = 6) -> Path:
    """Clips of 0.5 to 2.25 s at 8 kHz with a transcript each."""
    for speaker in range(1, 1 + speakers):
        chapter = folder / str(speaker) / "7"
        lines = []
        for number in range(clips):
            name = f"{speaker}-7-{number:04d}"
            seconds = 0.5 + 0.35 * number
            audio.write(chapter / f"{name}.flac", tone(seconds, 100 * speaker + 10 * number), RATE)
            lines.append(f"{name} SPEAKER {speaker} SAYS {number}\n")
        (chapter / f"{speaker}-7.trans.txt").write_text("".join(lines))
    return folder


class Letters:
    """A tokenizer: one token per character."""

    def encode(self, text: str) -> list[int]:
        return [ord(letter) for letter in text]


def spell(ids, length) -> str:
    return "".join(chr(i) for i in ids[:length])


@pytest.fixture(scope="session")
def corpus(tmp_path_factory) -> str:
    return f"librispeech:{write_corpus(tmp_path_factory.mktemp('corpus'))}"
