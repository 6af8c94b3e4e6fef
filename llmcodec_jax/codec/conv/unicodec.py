"""UniCodec: one partitioned codebook for speech, music and sound (Jiang et al. 2025, 2502.20067).

WavTokenizer's convolutions and decoder; between them a transformer whose feed-forward part mixes
one of three experts with a shared one, and a codebook that learns through one linear map of fixed
vectors (SimVQ). Speech has the first quarter of the codes, music the second, sound the rest.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from llmcodec_jax.codec import layout, vocos
from llmcodec_jax.codec.conv import wavtokenizer
from llmcodec_jax.codec.conv.family import count, size, told
from llmcodec_jax.codec.conv.layers import TORCH_UNIFORM, mask_time, precision
from llmcodec_jax.codec.conv.residual_vq import Quantised
from llmcodec_jax.codec.conv.rows import SEANetRows, seanet_sizes
from llmcodec_jax.codec.conv.seanet import SEANetConfig, SEANetEncoder
from llmcodec_jax.codec.conv.transformer import Linear
from llmcodec_jax.codec.conv.wavtokenizer import ENCODEC, PARTS, VocosCodec
from llmcodec_jax.codec.layout import Tensor
from llmcodec_jax.codec.quantizer import EXACT, nearest
from llmcodec_jax.types import DOMAINS, Search

THETA = 10_000.0
EPSILON = 1e-5
COMMITMENT, LEARNING = 1.0, 0.25  # of the encoder's pull and of the codebook's
PARTITIONS = {"speech": (0.0, 0.25), "music": (0.25, 0.5), "audio": (0.5, 1.0)}
"""Shares of the codebook; the other domains have all of it."""


def rotate(x: jax.Array) -> jax.Array:
    """Rotary positions, neighbouring channels in pairs: x [B, T, heads, d] -> the same shape."""
    half = x.shape[-1] // 2
    rate = THETA ** (-np.arange(half, dtype=np.float32) / half)
    angle = np.arange(x.shape[1], dtype=np.float32)[:, None] * rate
    cosine, sine = (jnp.asarray(f(angle)[:, None, :], x.dtype) for f in (np.cos, np.sin))
    real, imaginary = x[..., 0::2], x[..., 1::2]
    turned = (real * cosine - imaginary * sine, real * sine + imaginary * cosine)
    return jnp.stack(turned, axis=-1).reshape(x.shape)


class Attention(nn.Module):
    """Self-attention over all valid steps: x [B, T, D], length int32 [B] or None -> [B, T, D]."""

    heads: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, length: jax.Array | None) -> jax.Array:
        width, exact = x.shape[-1], precision(self.dtype)
        parts = jnp.split(Linear(3 * width, self.dtype, name="qkv")(x), 3, axis=-1)
        query, key, value = (p.reshape(*p.shape[:2], self.heads, -1) for p in parts)
        query, key = rotate(query), rotate(key)
        scores = jnp.einsum("bthd,bshd->bhts", query, key, precision=exact).astype(jnp.float32)
        scores = scores * query.shape[-1] ** -0.5
        if length is not None:
            valid = jnp.arange(x.shape[1]) < length[:, None]
            scores = jnp.where(valid[:, None, None], scores, jnp.finfo(jnp.float32).min)
        weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
        mixed = jnp.einsum("bhts,bshd->bthd", weights, value, precision=exact)
        return Linear(width, self.dtype, name="out")(mixed.reshape(x.shape))


class Expert(nn.Module):
    """down(silu(gate x) * up x): [B, T, D] -> [B, T, D]."""

    hidden: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        gate = nn.silu(Linear(self.hidden, self.dtype, name="gate")(x))
        return Linear(x.shape[-1], self.dtype, name="down")(
            gate * Linear(self.hidden, self.dtype, name="up")(x)
        )


class Mixture(nn.Module):
    """The likeliest of `experts`, weighted by its probability, and a shared one: [B, T, D].

    Every expert is computed for every frame and all but one are weighted zero: with three of them
    that costs less than gathering, and shapes stay fixed.
    """

    experts: int
    hidden: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        router = Linear(self.experts, jnp.float32, name="router")
        share = jax.nn.softmax(router(x.astype(jnp.float32)), axis=-1)
        best = jax.nn.one_hot(jnp.argmax(share, axis=-1), self.experts, dtype=share.dtype)
        y = Expert(self.hidden, self.dtype, name="shared")(x)
        for i in range(self.experts):
            weight = (share * best)[..., i, None].astype(y.dtype)
            y = y + weight * Expert(self.hidden, self.dtype, name=f"expert_{i}")(x)
        return y


class Layer(nn.Module):
    """x + scale attention(norm x), then x + mixture(norm x): [B, T, D]."""

    heads: int
    experts: int
    hidden: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, length: jax.Array | None) -> jax.Array:
        def norm(name: str) -> nn.LayerNorm:
            return nn.LayerNorm(EPSILON, dtype=self.dtype, use_fast_variance=False, name=name)

        start = nn.initializers.constant(0.01)
        scale = self.param("attention_scale", start, (x.shape[-1],), jnp.float32)
        attention = Attention(self.heads, self.dtype, name="attention")
        x = x + scale.astype(x.dtype) * attention(norm("attention_norm")(x), length)
        mixture = Mixture(self.experts, self.hidden, self.dtype, name="mixture")
        return x + mixture(norm("mixture_norm")(x))


class Encoder(nn.Module):
    """Audio [B, N, 1], length int32 [B] or None -> latent [B, N / hop, D]."""

    seanet: SEANetConfig
    layers: int
    heads: int
    experts: int
    hidden: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, length: jax.Array | None) -> jax.Array:
        x, length = SEANetEncoder(self.seanet, self.dtype, name="seanet")(x, length)
        x = mask_time(x, length)
        for i in range(self.layers):
            layer = Layer(self.heads, self.experts, self.hidden, self.dtype, name=f"layer_{i}")
            x = layer(x, length)
        return x


class SimVQ(nn.Module):
    """One codebook, a learnt linear map of fixed vectors, searched by Euclidean distance; float32.

    Parameters: `kernel` [D, D], `bias` [D]; `batch_stats`: `embedding` [V, D], which never changes.
    """

    width: int
    codebook_size: int
    chunk: int

    def setup(self):
        shape = (self.codebook_size, self.width)
        start = nn.initializers.normal(self.width**-0.5)
        self.embedding = self.variable(
            "batch_stats", "embedding", lambda: start(self.make_rng("params"), shape, jnp.float32)
        )
        square = (self.width, self.width)
        self.kernel = self.param("kernel", TORCH_UNIFORM, square, jnp.float32)
        self.bias = self.param("bias", nn.initializers.zeros, (self.width,), jnp.float32)

    def table(self) -> jax.Array:
        """The codebook [V, D]."""
        return jnp.dot(self.embedding.value, self.kernel, precision=EXACT) + self.bias

    def lookup(self, codes: jax.Array) -> jax.Array:
        """codes [B, T, 1] -> [B, T, D]."""
        rows = jnp.asarray(self.embedding.value)[codes[..., 0]]
        return jnp.dot(rows, self.kernel, precision=EXACT) + self.bias

    def __call__(self, latent: jax.Array, mask: jax.Array, bounds: jax.Array | None) -> Quantised:
        """latent [B, T, D], mask bool [B, T], bounds int32 [B, 2] or None -> Quantised."""
        latent = latent.astype(jnp.float32)
        fixed, table = jax.lax.stop_gradient((latent, self.table()))
        # The nearest row has the largest product less half its square: one more dimension.
        query = jnp.concatenate([fixed, jnp.ones_like(fixed[..., :1])], axis=-1)
        half = 0.5 * jnp.sum(jnp.square(table), axis=-1, keepdims=True)
        rows = jnp.concatenate([table, -half], axis=-1)
        codes = jnp.where(mask, nearest(query, rows, bounds, self.chunk), 0)
        chosen = self.lookup(codes[..., None])
        loss = COMMITMENT * jnp.square(latent - jax.lax.stop_gradient(chosen))
        loss = jnp.mean(loss + LEARNING * jnp.square(chosen - fixed), axis=-1)
        frames = jnp.maximum(jnp.sum(mask, axis=1), 1)
        loss = jnp.sum(jnp.where(mask, loss, 0.0), axis=1) / frames
        quantised = latent + jax.lax.stop_gradient(chosen - latent)
        return Quantised(quantised, codes[..., None], latent[:, :, None], loss)


class UniCodec(VocosCodec):
    """The published codec at any size; satisfies `types.Codec`. The defaults are the release."""

    transformer_layers: int = 8
    heads: int = 8
    experts: int = 3
    expert_hidden: int = 2048
    codebook_size: int = 16_384  # V
    search_chunk: int = 4096  # codes compared at once: memory, never the result

    @property
    def seanet(self) -> SEANetConfig:
        """The sizes of the encoder's convolutions: a transformer stands where others recur."""
        return SEANetConfig.of(self, causal=False, lstm_layers=0)

    def setup(self):
        self.encoder = Encoder(
            self.seanet,
            self.transformer_layers,
            self.heads,
            self.experts,
            self.expert_hidden,
            jnp.dtype(self.dtype),
        )
        self.quantizer = SimVQ(self.width, self.codebook_size, self.search_chunk)
        self.decoder = self.vocos()

    def domain_bounds(self) -> np.ndarray:
        """Codes [lo, hi) open to each of DOMAINS, int32 [5, 2]."""
        shares = [PARTITIONS.get(name, (0.0, 1.0)) for name in DOMAINS]
        return np.round(np.array(shares) * self.codebook_size).astype(np.int32)

    def analyse(self, wav, length):
        """wav [B, N] -> latent [B, T, D]."""
        return self.encoder(wav[..., None], length)

    def quantise(self, latent, mask, domain, levels, train):
        """latent [B, T, D] -> Quantised."""
        bounds = None if domain is None else jnp.asarray(self.domain_bounds())[domain]
        return self.quantizer(latent, mask, bounds)

    def search(self, level: int = 0) -> Search:
        """The codebook, float32 [V, D]."""
        return Search(self.quantizer.table(), "euclidean")


def _expert(name: str, path: tuple[str, ...], width: int, hidden: int) -> list[Tensor]:
    sizes = (
        ("w1", "gate", hidden, width),
        ("w2", "down", width, hidden),
        ("w3", "up", hidden, width),
    )
    return [
        tensor
        for theirs, ours, out, into in sizes
        for tensor in layout.linear(f"{name}.{theirs}", (*path, ours), out, into, bias=False)
    ]


def _layer(codec: UniCodec, name: str, path: tuple[str, ...]) -> list[Tensor]:
    width, hidden, mixture = codec.width, codec.expert_hidden, (*path, "mixture")
    attention, square = (*path, "attention"), (3 * width, width)
    rows = [
        Tensor(f"{name}.layer_scale_1.scale", (width,), (*path, "attention_scale")),
        Tensor(f"{name}.self_attn.in_proj_weight", square, (*attention, "qkv", "kernel"), "linear"),
        *layout.linear(f"{name}.self_attn.out_proj", (*attention, "out"), width, width, bias=False),
        *layout.affine(f"{name}.norm1", (*path, "attention_norm"), width),
        *layout.affine(f"{name}.norm2", (*path, "mixture_norm"), width),
        *layout.linear(
            f"{name}.FFNMOE.gate", (*mixture, "router"), codec.experts, width, bias=False
        ),
        *_expert(f"{name}.FFNMOE.shared_experts", (*mixture, "shared"), width, hidden),
    ]
    for i in range(codec.experts):
        rows += _expert(f"{name}.FFNMOE.experts.{i}", (*mixture, f"expert_{i}"), width, hidden)
    return rows


LAYERS = f"{ENCODEC}.encoder.transformer_enocoder.transformer.layers"  # spelt as published


def tensor_table(codec: UniCodec) -> list[Tensor]:
    """Every tensor that the codec runs on, in the published names."""
    width, encoder = codec.width, ("params", "encoder")
    book = f"{ENCODEC}.quantizer.vq.embedding"
    rows = SEANetRows(codec.seanet, f"{ENCODEC}.encoder", (*encoder, "seanet")).encoder()
    for i in range(codec.transformer_layers):
        rows += _layer(codec, f"{LAYERS}.{i}", (*encoder, f"layer_{i}"))
    kept = ("batch_stats", "quantizer", "embedding")
    return [
        *rows,
        Tensor(f"{book}.weight", (codec.codebook_size, width), kept),
        *layout.linear(f"{book}_proj", ("params", "quantizer"), width, width),
        *vocos.tensor_table(codec.vocos(), width, ("params", "decoder")),
    ]


def unused(codec: UniCodec) -> dict[str, tuple[int, ...]]:
    """Published tensors that nothing runs at inference, name -> shape."""
    shapes = {f"{ENCODEC}.encoder.mask_emb": (codec.width,)}
    for i in range(codec.transformer_layers):
        shapes[f"{LAYERS}.{i}.linear1.weight"] = (4 * codec.width, codec.width)
        shapes[f"{LAYERS}.{i}.linear2.weight"] = (codec.width, 4 * codec.width)
        shapes[f"{LAYERS}.{i}.layer_scale_2.scale"] = (codec.width,)
    return shapes | wavtokenizer.unused(codec)


def recognises(shapes: Mapping[str, tuple[int, ...]], config: Mapping[str, Any]) -> bool:
    """Whether these tensors' names are UniCodec's."""
    codebook = f"{ENCODEC}.quantizer.vq.embedding_proj.weight"
    return {codebook, "backbone.pos_net.2.q.weight", "head.out.weight"} <= set(shapes)


def infer_fields(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """Every field that shapes tell: all but the sample rate, the heads and the condition."""
    seanet = seanet_sizes(shapes, f"{ENCODEC}.encoder")
    mixture = f"{LAYERS}.0.FFNMOE"
    return dict(
        {name: seanet[name] for name in ("strides", "filters", "width")},
        **vocos.infer_fields(shapes),
        transformer_layers=count(shapes, LAYERS + ".{}.self_attn.in_proj_weight"),
        experts=size(shapes, f"{mixture}.gate.weight", 0),
        expert_hidden=size(shapes, f"{mixture}.shared_experts.w1.weight", 0),
        codebook_size=size(shapes, f"{ENCODEC}.quantizer.vq.embedding.weight", 0),
    )


def from_published(
    tensors: Mapping[str, np.ndarray], config: Mapping[str, Any]
) -> tuple[UniCodec, dict]:
    """Published names -> (UniCodec, {"params", "batch_stats"} of numpy arrays), every bit kept.

    Discriminators and what inference does not run are left out. Raises LayoutError.
    """
    tensors = {n: x for n, x in layout.modern_names(tensors).items() if n.startswith(PARTS)}
    fields = infer_fields(layout.shapes_of(tensors))
    codec = UniCodec(**{**fields, **told(UniCodec, config)})
    spare = unused(codec)
    tensors = {name: value for name, value in tensors.items() if name not in spare}
    return codec, layout.to_variables(tensor_table(codec), tensors)


def to_published(codec: UniCodec, variables: Mapping) -> dict[str, np.ndarray]:
    """{"params", "batch_stats"} -> published names; what inference does not run as zeros."""
    tensors = layout.to_state_dict(tensor_table(codec), variables)
    zeros = {name: np.zeros(shape, np.float32) for name, shape in unused(codec).items()}
    return layout.older_names({**tensors, **zeros})
