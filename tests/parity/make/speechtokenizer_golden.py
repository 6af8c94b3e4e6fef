"""Goldens of SpeechTokenizer: `python speechtokenizer_golden.py [--full SECONDS OUT.npz]`.

Needs torch, einops and the PyPI package `speechtokenizer`.
"""

from __future__ import annotations

import sys

import numpy as np
import oracle
import torch

SMALL = dict(
    sample_rate=16_000, n_filters=4, strides=[4, 5, 2], dimension=32, semantic_dimension=24,
    bidirectional=True, dilation_base=2, residual_kernel_size=3, n_residual_layers=1,
    lstm_layers=2, activation="ELU", codebook_size=64, n_q=3,
)  # fmt: skip
FULL = dict(
    SMALL, n_filters=64, strides=[8, 5, 4, 2], dimension=1024, semantic_dimension=768,
    codebook_size=1024, n_q=8,
)  # fmt: skip


def main() -> None:
    full = oracle.arguments(__doc__).full
    oracle.without("torchaudio", "speechtokenizer.trainer")
    sys.modules["speechtokenizer.trainer"].SpeechTokenizerTrainer = None
    from speechtokenizer.model import SpeechTokenizer

    config = FULL if full else SMALL
    model = SpeechTokenizer(config).eval()
    shapes = oracle.fill(model)
    hop = int(np.prod(config["strides"]))
    seconds, wav = oracle.clip(full, 64, hop, 16_000)
    # Straight-through and its loss exist in training mode alone; the codebooks stay as they are.
    model.quantizer.train()
    for layer in model.quantizer.vq.layers:
        layer._codebook.eval()
    latent = model.encoder(wav[:, None])
    quantised, codes, _, first = model.quantizer.vq(latent, layers=[0])
    audio = model.decoder(quantised)[:, 0]
    semantic = model.transform(first[0].transpose(1, 2))
    (torch.mean(torch.square(audio - wav)) + torch.mean(torch.square(semantic))).backward()
    meta = dict(config=config, rate=16_000, seconds=seconds, shapes=shapes)
    meta.update(gradients=oracle.gradient_norms(model))
    oracle.write(
        "speechtokenizer",
        full,
        meta,
        codes=codes[:, 0].T,
        latent=latent[0].T,
        audio=audio,
        semantic=semantic[0],
    )


if __name__ == "__main__":
    main()
