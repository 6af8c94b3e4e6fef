"""Goldens of EnCodec: `python encodec_golden.py [--full SECONDS OUT.npz]`.

Needs torch and transformers.
"""

from __future__ import annotations

import oracle
import torch
from transformers import EncodecConfig, EncodecModel

SMALL = dict(
    num_filters=4, hidden_size=16, upsampling_ratios=[5, 4, 2], codebook_size=64,
    num_residual_layers=2, target_bandwidths=[14.4], codebook_dim=16,
)  # fmt: skip


def straight_through(model: EncodecModel, wav: torch.Tensor):
    """wav [B, 1, N] -> (latent, codes [B, Q, T], audio [B, 1, N]) with gradients to the encoder."""
    latent = model.encoder(wav)
    codes = model.quantizer.encode(latent, model.config.target_bandwidths[-1])
    chosen = model.quantizer.decode(codes)
    quantised = latent + (chosen - latent).detach()
    return latent, codes.transpose(0, 1), model.decoder(quantised)


def main() -> None:
    full = oracle.arguments(__doc__).full
    config = EncodecConfig() if full else EncodecConfig(**SMALL)
    model = EncodecModel(config).eval()
    shapes = oracle.fill(model)
    hop = config.hop_length
    seconds, wav = oracle.clip(full, 48, hop, config.sampling_rate)
    wav = wav[:, None]
    latent, codes, audio = straight_through(model, wav)
    torch.mean(torch.square(audio - wav)).backward()
    with torch.no_grad():
        bandwidth = config.target_bandwidths[-1]
        published = model.encode(wav, bandwidth=bandwidth).audio_codes[0]
        assert torch.equal(published, codes)
    meta = dict(
        config=config.to_dict(), shapes=shapes, gradients=oracle.gradient_norms(model),
        seconds=seconds, rate=config.sampling_rate,
    )  # fmt: skip
    oracle.write("encodec", full, meta, codes=codes[0].T, latent=latent[0].T, audio=audio[0])


if __name__ == "__main__":
    main()
