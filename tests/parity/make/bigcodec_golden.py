"""Goldens of BigCodec: `python bigcodec_golden.py [--full SECONDS OUT.npz]`.

Needs torch, einops, huggingface_hub and the PyPI package `bigcodec`.
"""

from __future__ import annotations

import numpy as np
import oracle
import torch

SMALL = dict(filters=4, strides=(2, 5), width=24, decoder_width=32, codebook=256, code_dim=4)
FULL = dict(
    filters=48, strides=(2, 2, 2, 5, 5), width=1024, decoder_width=1536, codebook=8192, code_dim=8
)


def main() -> None:
    full = oracle.arguments(__doc__).full
    oracle.without("torchaudio")
    from bigcodec.modules import CodecDecoder, CodecEncoder

    size = FULL if full else SMALL
    model = torch.nn.ModuleDict(
        dict(
            encoder=CodecEncoder(
                ngf=size["filters"], up_ratios=size["strides"], out_channels=size["width"]
            ),
            decoder=CodecDecoder(
                in_channels=size["width"],
                upsample_initial_channel=size["decoder_width"],
                up_ratios=size["strides"][::-1],
                vq_dim=size["width"],
                codebook_size=size["codebook"],
                codebook_dim=size["code_dim"],
            ),
        )
    )
    shapes = oracle.fill(model, keep=("filter",))
    hop = int(np.prod(size["strides"]))
    seconds, wav = oracle.clip(full, 96, hop, 16_000)
    latent = model["encoder"](wav[:, None])
    quantised, codes, losses = model["decoder"](latent, vq=True)
    audio = model["decoder"](quantised, vq=False)[:, 0]
    (torch.mean(torch.square(audio - wav)) + losses.sum()).backward()
    meta = dict(config={}, rate=16_000, seconds=seconds, shapes=shapes)
    meta.update(kept=oracle.kept(model, ("filter",)), gradients=oracle.gradient_norms(model))
    oracle.write(
        "bigcodec",
        full,
        meta,
        codes=codes[0, 0, :, None],
        latent=latent[0].T,
        audio=audio,
        vq_loss=losses.sum(),
    )


if __name__ == "__main__":
    main()
