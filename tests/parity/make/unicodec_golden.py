"""Goldens of UniCodec: `python unicodec_golden.py CHECKOUT [--full SECONDS OUT.npz]`.

CHECKOUT: a checkout of github.com/Jiang-Yidi/UniCodec. Needs torch, einops, scipy, yaml; fairseq,
whose masking inference never calls, is stood in for.
"""

from __future__ import annotations

import sys
from unittest import mock

import numpy as np
import oracle
import torch

SMALL = dict(
    filters=4, width=8, strides=[5, 4, 2], codebook=2048, dim=64, hidden=96, layers=2,
    transformer=2, heads=2, expert=24,
)  # fmt: skip
FULL = dict(
    filters=32, width=512, strides=[8, 5, 4, 2], codebook=16_384, dim=768, hidden=2304, layers=12,
    transformer=8, heads=8, expert=2048,
)  # fmt: skip


def build(size: dict) -> torch.nn.Module:
    """The published parts at any size, under the names of the release."""
    for name in ("", ".functional", ".functional.functional"):
        sys.modules["torchaudio" + name] = mock.MagicMock()
    for name in ("models", "models.wav2vec", "dataclass", "data", "data.data_utils", "modules"):
        sys.modules[f"fairseq.{name}"] = mock.MagicMock()
    sys.modules["fairseq"] = sys.modules["fairseq.models.wav2vec.wav2vec2"] = mock.MagicMock()
    sys.modules["omegaconf"] = mock.MagicMock()
    sys.modules["fairseq.dataclass"].FairseqDataclass = object
    oracle.without("encodec_edit", "encodec_edit.compile")  # the name of `encoder` at its authors'
    sys.modules["encodec_edit.compile"].torch_compile_lazy = lambda function: function
    import decoder

    sys.modules["vocos"] = decoder
    for part in ("modules", "spectral_ops"):
        sys.modules[f"vocos.{part}"] = __import__(f"decoder.{part}", fromlist=[part])
    from decoder.heads import ISTFTHead
    from decoder.models import VocosBackbone
    from encoder.modules import mimi_transformer, seanet
    from encoder.quantization.simvq_moe import SimVQ1D

    width, hop = size["width"], int(np.prod(size["strides"]))
    seanet._transformer_kwargs.update(
        d_model=width, num_heads=size["heads"], num_layers=size["transformer"],
        dim_feedforward=4 * width, input_dimension=width, output_dimensions=[width],
    )  # fmt: skip
    seanet.HubertConfig.encoder_embed_dim = width
    mimi_transformer.ModelArgs.dim = width
    mimi_transformer.ModelArgs.moe_inter_dim = size["expert"]
    shared = dict(
        causal=False, norm="weight_norm", pad_mode="reflect", lstm=2, dimension=width,
        n_filters=size["filters"], true_skip=False,
    )  # fmt: skip
    encodec = torch.nn.Module()
    encodec.encoder = seanet.SEANetEncoder(
        ratios=size["strides"], use_transformer=True, mask=False, **shared
    )
    encodec.decoder = seanet.SEANetDecoder(ratios=[8, 5, 4, 2], **shared)
    encodec.quantizer = torch.nn.Module()
    encodec.quantizer.vq = SimVQ1D(n_e=size["codebook"], e_dim=width, beta=0.25, legacy=True)
    model = torch.nn.Module()
    model.feature_extractor = torch.nn.Module()
    model.feature_extractor.encodec = encodec
    model.backbone = VocosBackbone(
        width, size["dim"], size["hidden"], size["layers"], adanorm_num_embeddings=4
    )
    model.head = ISTFTHead(size["dim"], 4 * hop, hop, "same")
    return model


def main() -> None:
    full = oracle.arguments(__doc__, checkout=True).full
    size = FULL if full else SMALL
    model = build(size).eval()
    shapes = oracle.fill(model, keep=("window",))
    hop = int(np.prod(size["strides"]))
    seconds, wav = oracle.clip(full, 96, hop, 24_000)
    encodec = model.feature_extractor.encodec
    latent = encodec.encoder(wav[:, None])[2]
    by_domain = {d: encodec.quantizer.vq(latent, [d], n_q=1)[1][0, 0].tolist() for d in "012"}
    quantised, codes, loss = encodec.quantizer.vq(latent, ["all"], n_q=1)
    audio = model.head(model.backbone(quantised, bandwidth_id=torch.tensor([0])))
    (torch.mean(torch.square(audio - wav)) + loss).backward()
    meta = dict(config={} if full else {"heads": 2}, rate=24_000, seconds=seconds)
    meta.update(shapes=shapes, kept=oracle.kept(model, ("window",)), by_domain=by_domain)
    meta.update(gradients=oracle.gradient_norms(model))
    oracle.write(
        "unicodec",
        full,
        meta,
        codes=codes[0].T,
        latent=latent[0].T,
        audio=audio,
        vq_loss=loss,
    )


if __name__ == "__main__":
    main()
