"""The one protocol under which token language models are compared (method.md 8)."""

from __future__ import annotations

import dataclasses

from llmcodec_jax.lm.reading import check_reads


@dataclasses.dataclass(frozen=True)
class TokenLMProtocol:
    """What all codecs have in common. Change it and numbers are no longer comparable."""

    steps: int = 1000
    batch: int = 16  # stretches a step
    seconds: float = 4.0  # of audio in a stretch, whatever the token rate
    width: int = 256  # of the small model
    layers: int = 4
    learning_rate: float = 1e-3  # small model; cosine to 0 after 10 % warm-up
    lora_learning_rate: float = 2e-4
    weight_decay: float = 0.01
    evaluations: int = 10  # looks at the development split, the untrained model included
    held_out_stretches: int = 256  # at most, of each held-out split, chosen by hash
    probes: int = 128  # places at which the codes before are made without the audio after; 0: none
    # Of a codec with several levels, what the LM reads (lm/reading.py): the first alone, all one
    # after the other, or all at once, the sum of their embeddings.
    reads: str = "flat"
    seeds: tuple[int, ...] = (0, 1, 2)

    def __post_init__(self):
        check_reads(self.reads, "reads")
