"""What to learn from and how it is read: the `data` section of a config."""

from __future__ import annotations

import dataclasses

from llmcodec_jax.data.augment import Augment
from llmcodec_jax.ops.fields import changeable


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Sources, split, clips and loader of a run."""

    # One source or a mixture of (source, weight, domain). A source is tfds:NAME[:SPLIT],
    # librispeech:DIR, folder:DIR, arrayrecord:GLOB, webdataset:TARS, parquet:GLOB or embedded.
    sources: tuple = ("embedded",)
    mixture: str = "weights"  # or "hours": weights are multiplied by hours^(1 / temperature)
    temperature: float = 1.0  # 1: every hour counts alike; large: every source
    shards_by_host: bool = False  # each file of records is read by one process, once an epoch
    eval_sources: tuple = ()  # held-out audio; empty takes `eval_fraction` out of `sources`
    eval_fraction: float = 0.02  # of the records, by the hash of what `split_by` names ...
    eval_max: int = 256  # ... but not more than this
    split_by: str = "name"  # or "speaker": no held-out speaker is heard in training
    batch_size: int = 10  # clips per update, over all devices and processes
    eval_batch_size: int = changeable(8)
    clip_seconds: float = 4.0  # longer recordings are cropped at random, shorter ones padded
    max_text: int = 128  # tokens; longer transcripts are left out
    # "aligned": the text of whole clips and of words inside a crop; "transcript" pairs the whole
    # text with any crop, as published.
    text_policy: str = "aligned"
    alignments: str = ""  # folder of LibriSpeech word times (*.alignment.txt): crops keep words
    min_seconds: float = 0.3  # shorter clips are skipped
    silence_peak: float = 1e-3  # quieter clips are skipped
    augment: Augment = changeable(Augment)  # of training clips; all off
    workers: int = changeable(0)  # loader processes; 0 uses threads
    threads: int = changeable(2)
    buffer: int = changeable(4)  # batches ready on the host
    prefetch: int = changeable(2)  # batches ready on the devices

    def clip_samples(self, sample_rate: int, hop: int) -> int:
        """`clip_seconds` in samples, whole frames."""
        samples = round(self.clip_seconds * sample_rate)
        return samples - samples % hop
