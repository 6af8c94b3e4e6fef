"""Goldens of EnCodec 48 kHz: `python encodec_48khz_golden.py [--full SECONDS OUT.npz]`.

One chunk of one sound in both channels. The published code keeps its loudness beside the codes;
here it is the first level, so it is written as steps of V to 5.12 decades. Needs torch and
transformers.
"""

from __future__ import annotations

import oracle
import torch
from transformers import EncodecConfig, EncodecModel

FULL = dict(
    sampling_rate=48_000, audio_channels=2, normalize=True, chunk_length_s=1.0, overlap=0.01,
    norm_type="time_group_norm", use_causal_conv=False, target_bandwidths=[3.0, 6.0, 12.0, 24.0],
)  # fmt: skip
SMALL = dict(
    FULL, num_filters=4, hidden_size=16, upsampling_ratios=[5, 4, 2], codebook_size=64,
    codebook_dim=16, target_bandwidths=[28.8], num_residual_layers=2,
)  # fmt: skip


def main() -> None:
    full = oracle.arguments(__doc__).full
    config = EncodecConfig(**(FULL if full else SMALL))
    model = EncodecModel(config).eval()
    shapes = oracle.fill(model)
    hop, bandwidth = config.hop_length, config.target_bandwidths[-1]
    seconds, mono = oracle.clip(full, 48, hop, config.sampling_rate)
    wav = mono[:, None].expand(-1, 2, -1)

    scale = mono.square().mean(dim=1).sqrt() + 1e-8
    step = 5.12 / config.codebook_size  # decades of amplitude
    loudness = torch.round(-torch.log10(scale) / step).long()
    latent = model.encoder(wav / scale[:, None, None])
    codes = model.quantizer.encode(latent, bandwidth)
    quantised = latent + (model.quantizer.decode(codes) - latent).detach()
    kept = 10.0 ** (-loudness * step)
    audio = (model.decoder(quantised) * kept[:, None, None]).mean(dim=1)
    torch.mean(torch.square(audio - mono)).backward()

    with torch.no_grad():  # the published calls, of which the lines above are the parts
        model.config.chunk_length_s = None
        found = model.encode(wav, bandwidth=bandwidth)
        assert torch.equal(found.audio_codes[0], codes.transpose(0, 1))
        assert torch.allclose(found.audio_scales[0].flatten(), scale)
        published = model.decode(found.audio_codes, [kept[:, None]])[0]
        assert torch.allclose(published.mean(dim=1), audio, atol=1e-6)
    frames = latent.shape[-1]
    meta = dict(
        config=config.to_dict() | {"chunk_length_s": 1.0}, shapes=shapes, seconds=seconds,
        gradients=oracle.gradient_norms(model), rate=config.sampling_rate,
    )  # fmt: skip
    oracle.write(
        "encodec_48khz",
        full,
        meta,
        codes=torch.cat([loudness.expand(frames)[:, None], codes[:, 0].T], dim=1),
        latent=torch.cat([latent[0].T, torch.log10(scale).expand(frames)[:, None]], dim=1),
        audio=audio,
    )


if __name__ == "__main__":
    main()
