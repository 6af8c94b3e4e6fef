"""Goldens of Mimi: `python mimi_golden.py [--full SECONDS OUT.npz]`.

Needs torch and transformers.
"""

from __future__ import annotations

import oracle
import torch

oracle.hide("torchaudio")
from transformers import MimiConfig, MimiModel  # noqa: E402

SMALL = dict(
    num_filters=4, hidden_size=16, upsampling_ratios=[5, 4], codebook_size=64, codebook_dim=8,
    vector_quantization_hidden_dimension=8, num_quantizers=4, num_residual_layers=2,
    num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2, intermediate_size=32,
    sliding_window=10, upsample_groups=16,
)  # fmt: skip


def published(name: str) -> str:
    """The checkpoint's flat name of what transformers 5 holds in two halves."""
    for half in ("encoder", "decoder"):
        name = name.replace(f"{half}.{half}_seanet.", f"{half}.")
        name = name.replace(f"{half}.{half}_transformer.", f"{half}_transformer.")
    return name.replace("encoder.downsample", "downsample").replace("decoder.upsample", "upsample")


def straight_through(model: MimiModel, wav: torch.Tensor):
    """wav [B, 1, N] -> (latent, codes [B, Q, T], audio [B, 1, N]) with gradients to the encoder."""
    latent = model.encoder(wav).latents
    codes = model.quantizer.encode(latent).transpose(0, 1)
    quantizer, quantised = model.quantizer, 0
    split = quantizer.num_semantic_quantizers
    for part, chosen in (
        (quantizer.semantic_residual_vector_quantizer, codes[:, :split]),
        (quantizer.acoustic_residual_vector_quantizer, codes[:, split:]),
    ):
        inside = part.input_proj(latent)
        books = [layer.codebook.embed for layer in part.layers]
        total = sum(books[q][chosen[:, q]] for q in range(len(books))).transpose(1, 2)
        quantised = quantised + part.output_proj(inside + (total - inside).detach())
    return latent, codes, model.decoder(quantised).audio_values


def main() -> None:
    full = oracle.arguments(__doc__).full
    config = MimiConfig() if full else MimiConfig(**SMALL)
    model = MimiModel(config).eval()
    shapes = oracle.fill(model, published=published)
    hop = config.frame_size
    seconds, wav = oracle.clip(full, 48, hop, config.sampling_rate)
    wav = wav[:, None]
    latent, codes, audio = straight_through(model, wav)
    torch.mean(torch.square(audio - wav)).backward()
    with torch.no_grad():
        assert torch.equal(model.encode(wav).audio_codes, codes)
        torch.testing.assert_close(model.decode(codes).audio_values, audio, atol=1e-5, rtol=1e-4)
    gradients = {published(name): norm for name, norm in oracle.gradient_norms(model).items()}
    meta = dict(
        config=config.to_dict(), shapes=shapes, gradients=gradients, seconds=seconds,
        rate=config.sampling_rate,
    )  # fmt: skip
    oracle.write("mimi", full, meta, codes=codes[0].T, latent=latent[0].T, audio=audio[0])


if __name__ == "__main__":
    main()
