"""UTMOS: how natural speech sounds, 1 to 5, without a reference (Saeki et al., arXiv 2204.02152).

The strong learner of VoiceMOS 2022: wav2vec 2.0 base, two embeddings (of the listening test and
of the listener, whose published choices are kept), a bidirectional LSTM, two dense layers. Only
its weights are needed: LLMCODEC_UTMOS names the file. No PyTorch.
"""

from __future__ import annotations

import functools
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np

from llmcodec_jax.codec import layout, torch_file
from llmcodec_jax.codec.layout import LayoutError
from llmcodec_jax.evaluation.reports import EvaluationError
from llmcodec_jax.evaluation.speaker import lstm
from llmcodec_jax.semantics import published
from llmcodec_jax.semantics.encoder import SpeechEncoder

RATE = 16_000  # Hz
VARIABLE = "LLMCODEC_UTMOS"
TEST, LISTENER = 0, 288  # rows of the two embeddings that the published scores are of
HEAD_DIM = 64  # of wav2vec 2.0's attention at every size
ENCODER = "feature_extractors.0.ssl_model."
_BLOCK = RATE // 2  # samples that clips are padded to a multiple of: few compilations
_NAMES = (  # fairseq's -> transformers'
    (r"(conv_layers\.\d+)\.0\.", r"\1.conv."),
    (r"(conv_layers\.\d+)\.2\.", r"\1.layer_norm."),
    (r"^layer_norm\.", "feature_projection.layer_norm."),
    (r"^post_extract_proj\.", "feature_projection.projection."),
    (r"pos_conv\.0\.", "pos_conv_embed.conv."),
    (r"self_attn\.", "attention."),
    (r"self_attn_layer_norm\.", "layer_norm."),
    (r"fc1\.", "feed_forward.intermediate_dense."),
    (r"fc2\.", "feed_forward.output_dense."),
)


def missing() -> str | None:
    """Why the measure cannot be computed here, and what helps; None where it can."""
    named = os.environ.get(VARIABLE)
    if named and Path(named).expanduser().is_file():
        return None
    return (
        f"{VARIABLE} names no file: download utmos_state_dict.pt of hf:Blinorot/UTMOS-PyTorch "
        "(docs/evaluation.md) and set it to the path"
    )


def score(wav: np.ndarray) -> float:
    """Mono float32 [N] at 16 kHz -> 1 (bad) to 5; NaN for silence and for less than 25 ms.

    Raises EvaluationError where there are no weights.
    """
    if reason := missing():
        raise EvaluationError(reason)
    return model(Path(os.environ[VARIABLE]).expanduser())(wav)


@functools.cache
def model(path: Path) -> UTMOS:
    """The published file, opened. Raises EvaluationError for another one."""
    try:
        return UTMOS(torch_file.read_state_dict(path))
    except (LayoutError, KeyError) as error:
        raise EvaluationError(f"{path}: not UTMOS's weights ({error})") from error


class UTMOS:
    """A scorer; call it with a clip."""

    def __init__(self, tensors: Mapping[str, np.ndarray]):
        """`tensors` by published name. Raises KeyError or LayoutError for other models'."""
        self.encoder, variables = read_encoder(tensors)
        self._variables = jax.device_put(variables)
        self._apply = jax.jit(lambda v, wav, length: self.encoder.apply(v, wav, length)[0][-1])
        test = tensors["feature_extractors.1.embedding.weight"][TEST]
        listener = tensors["output_layers.0.judge_embedding.weight"][LISTENER]
        self._given = np.concatenate([test, listener])
        rnn = "output_layers.0.decoder_rnn"
        self._ways = [
            (
                tensors[f"{rnn}.weight_ih_l0{way}"],
                tensors[f"{rnn}.weight_hh_l0{way}"],
                tensors[f"{rnn}.bias_ih_l0{way}"] + tensors[f"{rnn}.bias_hh_l0{way}"],
            )
            for way in ("", "_reverse")
        ]
        self._dense = [
            (tensors[f"output_layers.1.net.{i}.weight"], tensors[f"output_layers.1.net.{i}.bias"])
            for i in (0, 3)
        ]

    def __call__(self, wav: np.ndarray) -> float:
        """As `score`."""
        frames = self.encoder.frames(len(wav))
        if frames < 1 or not np.any(wav):
            return math.nan
        padded = np.pad(np.asarray(wav, np.float32), (0, -len(wav) % _BLOCK))[None]
        features = self._apply(self._variables, padded, np.array([len(wav)], np.int32))
        heard = np.asarray(features[0, :frames])
        heard = np.concatenate([heard, np.broadcast_to(self._given, (frames, len(self._given)))], 1)
        forward, backward = self._ways
        states = np.concatenate(
            [lstm(heard[None], *forward)[0], lstm(heard[None, ::-1], *backward)[0, ::-1]], axis=1
        )
        (first, first_bias), (second, second_bias) = self._dense
        out = np.maximum(states @ first.T + first_bias, 0) @ second.T + second_bias
        return float(out.mean() * 2 + 3)


def read_encoder(tensors: Mapping[str, np.ndarray]) -> tuple[SpeechEncoder, dict]:
    """UTMOS's wav2vec 2.0, in fairseq's names -> (module of the tensors' sizes, {"params"})."""
    found = {}
    for name, value in tensors.items():
        if name.startswith(ENCODER) and not name.endswith("mask_emb"):
            bare = name.removeprefix(ENCODER)
            for theirs, ours in _NAMES:
                bare = re.sub(theirs, ours, bare)
            found[bare] = value
    found = layout.modern_names(found)
    kernels = [found[f"feature_extractor.conv_layers.{i}.conv.weight"] for i in range(7)]
    width = len(found["feature_projection.projection.bias"])
    position = found["encoder.pos_conv_embed.conv.parametrizations.weight.original1"]
    encoder = SpeechEncoder(
        family="wav2vec2",
        conv_channels=tuple(len(kernel) for kernel in kernels),
        conv_kernels=tuple(kernel.shape[2] for kernel in kernels),
        width=width,
        layers=sum(name.endswith("q_proj.weight") for name in found),
        heads=width // HEAD_DIM,
        ffn_width=len(found["encoder.layers.0.feed_forward.intermediate_dense.bias"]),
        position_kernel=position.shape[2],
        position_groups=width // position.shape[1],
        standardise=False,
    )
    return encoder, published.from_published(encoder, found)
