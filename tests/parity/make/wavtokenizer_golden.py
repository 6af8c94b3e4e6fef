"""Goldens of WavTokenizer: `python wavtokenizer_golden.py CHECKOUT [--full SECONDS OUT.npz]`.

CHECKOUT: a checkout of github.com/jishengpeng/WavTokenizer. Needs torch, einops, scipy, yaml.
"""

from __future__ import annotations

import sys

import oracle
import torch

SMALL = dict(filters=4, width=8, strides=(5, 4, 2), codebook=256, dim=64, hidden=96, layers=2)
FULL = dict(
    filters=32, width=512, strides=(8, 5, 4, 2), codebook=4096, dim=768, hidden=2304, layers=12
)


def build(size: dict) -> torch.nn.Module:
    """The published model at any size: its own classes, put together as its config does."""
    oracle.without("torchaudio", "torchaudio.functional", "torchaudio.functional.functional")
    functional = sys.modules["torchaudio.functional.functional"]
    functional._hz_to_mel = functional._mel_to_hz = None
    sys.modules["torchaudio"].transforms = None
    from decoder.feature_extractors import EncodecFeatures
    from decoder.heads import ISTFTHead
    from decoder.models import VocosBackbone
    from decoder.pretrained import WavTokenizer
    from encoder import EncodecModel
    from encoder.modules import SEANetDecoder, SEANetEncoder
    from encoder.quantization import ResidualVectorQuantizer

    hop = int(torch.tensor(size["strides"]).prod())
    bandwidths = [6.6] * 4
    features = EncodecFeatures(
        bandwidths=bandwidths, dowmsamples=list(size["strides"]), vq_bins=size["codebook"]
    )
    shared = dict(
        causal=False, norm="weight_norm", pad_mode="reflect", lstm=2, dimension=size["width"],
        n_filters=size["filters"], true_skip=False,
    )  # fmt: skip
    features.encodec = EncodecModel(
        encoder=SEANetEncoder(ratios=list(size["strides"]), **shared),
        decoder=SEANetDecoder(ratios=[8, 5, 4, 2], **shared),
        quantizer=ResidualVectorQuantizer(
            dimension=size["width"], n_q=1, bins=size["codebook"], kmeans_init=True
        ),
        target_bandwidths=bandwidths,
        sample_rate=24_000,
        channels=1,
    )
    backbone = VocosBackbone(
        size["width"], size["dim"], size["hidden"], size["layers"], adanorm_num_embeddings=4
    )
    return WavTokenizer(features, backbone, ISTFTHead(size["dim"], 4 * hop, hop, "same"))


def main() -> None:
    full = oracle.arguments(__doc__, checkout=True).full
    size = FULL if full else SMALL
    model = build(size).eval()
    shapes = oracle.fill(model, keep=("window",))
    hop = int(torch.tensor(size["strides"]).prod())
    seconds, wav = oracle.clip(full, 96, hop, 24_000)
    # The quantiser is straight-through and has a loss in training mode alone.
    model.feature_extractor.encodec.quantizer.train()
    model.feature_extractor.encodec.quantizer.vq.layers[0]._codebook.eval()
    emb = model.feature_extractor.encodec.encoder(wav[:, None])
    quantised, codes, losses = model.feature_extractor.encodec.quantizer.vq(emb, n_q=1)
    audio = model.head(model.backbone(quantised, bandwidth_id=torch.tensor([0])))
    (torch.mean(torch.square(audio - wav)) + losses.mean()).backward()
    meta = dict(config={}, rate=24_000, seconds=seconds, shapes=shapes)
    meta.update(kept=oracle.kept(model, ("window",)), gradients=oracle.gradient_norms(model))
    oracle.write(
        "wavtokenizer",
        full,
        meta,
        codes=codes[0, 0, :, None],
        latent=emb[0].T,
        audio=audio,
        vq_loss=losses.mean(),
    )


if __name__ == "__main__":
    main()
