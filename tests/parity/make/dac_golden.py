"""Goldens of DAC: `python dac_golden.py [--full SECONDS OUT.npz]`.

Needs torch and transformers.
"""

from __future__ import annotations

import oracle
import torch

oracle.hide("torchaudio")
from transformers import DacConfig, DacModel  # noqa: E402

SMALL = dict(
    encoder_hidden_size=4, decoder_hidden_size=32, downsampling_ratios=[2, 5], n_codebooks=4,
    codebook_size=64, codebook_dim=4, sampling_rate=16_000,
)  # fmt: skip
FULL = dict(downsampling_ratios=[2, 4, 8, 8], n_codebooks=9, sampling_rate=44_100)


def main() -> None:
    full = oracle.arguments(__doc__).full
    config = DacConfig(**FULL) if full else DacConfig(**SMALL)
    model = DacModel(config).eval()
    shapes = oracle.fill(model)
    hop = config.hop_length
    seconds, wav = oracle.clip(full, 64, hop, config.sampling_rate)
    wav = wav[:, None]
    latent = model.encoder(wav)
    quantised, codes, _, commitment, codebook = model.quantizer(latent)
    audio = model.decoder(quantised)
    loss = torch.mean(torch.square(audio - wav[..., : audio.shape[-1]]))
    loss = loss * audio.shape[-1] / wav.shape[-1]
    vq_loss = config.commitment_loss_weight * commitment + config.codebook_loss_weight * codebook
    (loss + vq_loss.sum()).backward()
    meta = dict(
        config=config.to_dict(), shapes=shapes, gradients=oracle.gradient_norms(model),
        seconds=seconds, rate=config.sampling_rate,
    )  # fmt: skip
    oracle.write(
        "dac",
        full,
        meta,
        codes=codes[0].T,
        latent=latent[0].T,
        audio=audio[0],
        vq_loss=vq_loss.sum(),
    )


if __name__ == "__main__":
    main()
