"""AUV as two ONNX graphs: every layer unrolled, both transforms as products, any batch and length.

    encoder   wav float32 [batch, samples] -> codes int32 [batch, frames] ([.., levels] if residual)
    decoder   codes -> wav float32 [batch, frames * hop]

Clips of a batch have one length. Any number of samples above two hops will do; the encoder pads
with zeros to whole frames itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from llmcodec_jax.codec.auv.conformer import EPSILON, ROTARY_BASE
from llmcodec_jax.codec.auv.model import AUV
from llmcodec_jax.codec.auv.stft import LOG_FLOOR, MAX_MAGNITUDE, margin, published_window
from llmcodec_jax.ops import dsp
from llmcodec_jax.portable import fourier
from llmcodec_jax.portable.graph import Graph, Value


def encoder_graph(codec: AUV, variables: Mapping[str, Any]) -> Graph:
    """The encoder and its search (see above)."""
    g = Graph("encoder")
    params, stats = (jax.device_get(variables.get(k, {})) for k in ("params", "batch_stats"))
    wav = g.input("wav", np.float32, ("batch", "samples"))
    features = _spectrum(g, _framed_margins(g, wav, codec.hop), codec.hop)
    head = params["encoder"]["stft_head"]["projection"]
    x = _dense(g, features, head)
    x = _conformer(g, x, codec, params["encoder"]["conformer"], _running(stats, "encoder"))
    codes = _search(g, x, codec, params["quantizer"])
    shape = ("batch", "frames") if codec.levels == 1 else ("batch", "frames", codec.levels)
    g.output("codes", g.op("Cast", codes, to=6), np.int32, shape)
    return g


def decoder_graph(codec: AUV, variables: Mapping[str, Any]) -> Graph:
    """The codebook, the decoder and the inverse transform (see above)."""
    g = Graph("decoder")
    params, stats = (jax.device_get(variables.get(k, {})) for k in ("params", "batch_stats"))
    shape = ("batch", "frames") if codec.levels == 1 else ("batch", "frames", codec.levels)
    codes = g.input("codes", np.int32, shape)
    x = _lookup(g, codes, codec, params["quantizer"])
    x = _conformer(g, x, codec, params["decoder"]["conformer"], _running(stats, "decoder"))
    out = _dense(g, x, params["decoder"]["istft_head"]["projection"])
    g.output("wav", _waveform(g, out, codec.hop), np.float32, ("batch", "samples"))
    return g


def _framed_margins(g: Graph, wav: Value, hop: int) -> Value:
    """[B, N] -> [B, margin + whole frames + margin], zeros to whole frames, then reflected."""
    zero, size = g.ints(0), g.ints(hop)
    length = g.op("Gather", g.op("Shape", wav), g.ints(1))
    missing = g.op("Mod", g.op("Sub", size, g.op("Mod", length, size)), size)
    wav = g.op("Pad", wav, g.op("Concat", zero, zero, zero, missing, axis=0))
    side = margin(hop)
    return g.op("Pad", wav, g.ints(0, side, 0, side), mode="reflect")


def _spectrum(g: Graph, padded: Value, hop: int) -> Value:
    """[B, margin + N + margin] -> log magnitude and angle of every bin, [B, T, 2 * bins]."""
    blocks = g.op("Reshape", padded, g.ints(0, -1, hop))
    ends = [g.ints(i - 3) if i < 3 else g.constant([np.iinfo(np.int64).max], np.int64)
            for i in range(4)]  # fmt: skip
    shifted = [g.op("Slice", blocks, g.ints(i), ends[i], g.ints(1)) for i in range(4)]
    frames = g.op("Concat", *shifted, axis=2)
    windowed = g.op("Mul", frames, g.constant(published_window(4 * hop)))
    real, imaginary = fourier.forward(g, windowed, 4 * hop)
    # The first and last bin are real.
    inner = (np.arange(2 * hop + 1) % (2 * hop) != 0).astype(np.float32)
    imaginary = g.op("Mul", imaginary, g.constant(inner))
    power = g.op("Add", g.op("Mul", real, real), g.op("Mul", imaginary, imaginary))
    level = g.op("Log", g.op("Add", g.op("Sqrt", power), g.constant(LOG_FLOOR)))
    return g.op("Concat", level, _angle(g, imaginary, real), axis=2)


def _angle(g: Graph, y: Value, x: Value) -> Value:
    """atan2, which ONNX lacks."""
    zero, pi = g.constant(0.0), np.float32(np.pi)
    flat = g.op("Equal", x, zero)
    ratio = g.op("Div", y, g.op("Where", flat, g.constant(1.0), x))
    below, above = g.op("Less", y, zero), g.op("Greater", y, zero)
    half = g.op("Where", below, g.constant(-pi), g.constant(pi))
    turned = g.op("Where", g.op("Less", x, zero), half, zero)
    quarter = g.op("Where", above, g.constant(pi / 2), zero)
    quarter = g.op("Where", below, g.constant(-pi / 2), quarter)
    return g.op("Where", flat, quarter, g.op("Add", g.op("Atan", ratio), turned))


def _waveform(g: Graph, out: Value, hop: int) -> Value:
    """[B, T, 2 * bins] -> overlap-added audio [B, T * hop]."""
    n_fft, bins = 4 * hop, 2 * hop + 1
    level, angle = g.ops("Split", 2, g.op("Transpose", out, perm=[0, 2, 1]), axis=1)
    size = g.op("Min", g.op("Exp", level), g.constant(MAX_MAGNITUDE))
    parts = [g.op("Mul", size, g.op(turn, angle)) for turn in ("Cos", "Sin")]
    turn = 2 * np.pi / n_fft * np.outer(np.arange(bins), np.arange(n_fft))
    edge = np.arange(bins)[:, None] % (n_fft // 2) == 0
    weight = np.where(edge, 1.0, 2.0) / n_fft
    window = np.asarray(dsp.hann(n_fft), np.float64)
    basis = np.concatenate([weight * np.cos(turn), np.where(edge, 0.0, -weight * np.sin(turn))])
    wav = g.op(
        "ConvTranspose", g.op("Concat", *parts, axis=1), g.constant((basis * window)[:, None]),
        strides=[hop],
    )  # fmt: skip
    first = g.op("Slice", level, g.ints(0), g.ints(1), g.ints(1))  # [B, 1, T]
    ones = g.op("Add", g.op("Mul", first, g.constant(0.0)), g.constant(1.0))
    squares = g.constant(np.square(window)[None, None])
    envelope = g.op("ConvTranspose", ones, squares, strides=[hop])
    cut = (g.ints(margin(hop)), g.ints(-margin(hop)), g.ints(2))
    wav, envelope = g.op("Slice", wav, *cut), g.op("Slice", envelope, *cut)
    scaled = g.op("Div", wav, g.op("Max", envelope, g.constant(1e-8)))
    return g.op("Squeeze", scaled, g.ints(1))


def _dense(g: Graph, x: Value, params: Mapping[str, np.ndarray]) -> Value:
    y = g.op("MatMul", x, g.constant(params["kernel"]))
    return g.op("Add", y, g.constant(params["bias"])) if "bias" in params else y


def _layer_norm(g: Graph, x: Value, params: Mapping[str, np.ndarray]) -> Value:
    scale, bias = g.constant(params["scale"]), g.constant(params["bias"])
    return g.op("LayerNormalization", x, scale, bias, axis=-1, epsilon=EPSILON)


def _gelu(g: Graph, x: Value) -> Value:
    """The tanh form."""
    cube = g.op("Mul", g.op("Mul", x, x), x)
    inner = g.op("Add", x, g.op("Mul", cube, g.constant(0.044715)))
    bent = g.op("Tanh", g.op("Mul", inner, g.constant(np.sqrt(2 / np.pi))))
    half = g.op("Mul", x, g.constant(0.5))
    return g.op("Mul", half, g.op("Add", bent, g.constant(1.0)))


def _conformer(g: Graph, x: Value, codec: AUV, params: Mapping, stats: Mapping) -> Value:
    tables = _rotary(g, x, codec.head_dim)
    layers = len(params["layers"]["final_norm"]["scale"])
    for layer in range(layers):
        own, kept = (_of_layer(tree["layers"], layer) for tree in (params, stats))
        x = _half_step(g, x, "ffn1", own)
        normed = _layer_norm(g, x, own["attention_norm"])
        x = g.op("Add", x, _attention(g, normed, own["attention"], codec, tables))
        x = g.op("Add", x, _convolution(g, x, own["convolution"], kept, codec))
        x = _half_step(g, x, "ffn2", own)
        x = _layer_norm(g, x, own["final_norm"])
    return _layer_norm(g, x, params["norm"])


def _running(stats: Mapping, part: str) -> Mapping:
    """A stack's running statistics, empty where its norms keep none."""
    return stats.get(part, {}).get("conformer", {"layers": {}})


def _of_layer(stacked: Mapping, layer: int) -> Any:
    return jax.tree.map(lambda leaf: leaf[layer], stacked)


def _half_step(g: Graph, x: Value, name: str, params: Mapping) -> Value:
    hidden = _gelu(g, _dense(g, _layer_norm(g, x, params[f"{name}_norm"]), params[name]["up"]))
    return g.op("Add", x, g.op("Mul", _dense(g, hidden, params[name]["down"]), g.constant(0.5)))


def _rotary(g: Graph, x: Value, head_dim: int) -> tuple[Value, Value]:
    """Cosine and sine of the positions, [T, head_dim // 2]."""
    rate = ROTARY_BASE ** (-np.arange(0, head_dim, 2, dtype=np.float32) / head_dim)
    frames = g.op("Squeeze", g.op("Gather", g.op("Shape", x), g.ints(1)), g.ints(0))
    zero, one = g.constant(0, np.int64), g.constant(1, np.int64)
    position = g.op("Cast", g.op("Range", zero, frames, one), to=1)
    angle = g.op("Mul", g.op("Unsqueeze", position, g.ints(1)), g.constant(rate[None]))
    return g.op("Cos", angle), g.op("Sin", angle)


def _attention(g: Graph, x: Value, params: Mapping, codec: AUV, tables) -> Value:
    width, head_dim = codec.width, codec.head_dim
    split = g.ints(0, 0, width // head_dim, head_dim)
    parts = g.ops("Split", 3, _dense(g, x, params["qkv"]), axis=2)
    heads = [g.op("Transpose", g.op("Reshape", p, split), perm=[0, 2, 1, 3]) for p in parts]
    query, key = (_rotate(g, part, *tables) for part in heads[:2])
    scores = g.op("MatMul", query, g.op("Transpose", key, perm=[0, 1, 3, 2]))
    scaled = g.op("Mul", scores, g.constant(head_dim**-0.5))
    mixed = g.op("MatMul", g.op("Softmax", scaled, axis=-1), heads[2])
    joined = g.op("Reshape", g.op("Transpose", mixed, perm=[0, 2, 1, 3]), g.ints(0, 0, width))
    return _dense(g, joined, params["out"])


def _rotate(g: Graph, x: Value, cosine: Value, sine: Value) -> Value:
    first, second = g.ops("Split", 2, x, axis=-1)
    turned = [
        g.op(sign, g.op("Mul", a, cosine), g.op("Mul", b, sine))
        for sign, a, b in (("Sub", first, second), ("Add", second, first))
    ]
    return g.op("Concat", *turned, axis=-1)


def _convolution(g: Graph, x: Value, params: Mapping, stats: Mapping, codec: AUV) -> Value:
    gated = _dense(g, _layer_norm(g, x, params["norm"]), params["pointwise1"])
    value, gate = g.ops("Split", 2, gated, axis=2)
    x = g.op("Transpose", g.op("Mul", value, g.op("Sigmoid", gate)), perm=[0, 2, 1])
    taps, half = params["depthwise"], codec.conv_kernel // 2
    x = g.op(
        "Conv", x, g.constant(taps.T[:, None]), group=codec.width,
        pads=[half, codec.conv_kernel - 1 - half],
    )  # fmt: skip
    x = g.op("Transpose", x, perm=[0, 2, 1])
    norm = params["conv_norm"]
    if codec.conv_norm == "batch":
        kept = stats["convolution"]["conv_norm"]
        factor = norm["scale"] / np.sqrt(kept["var"] + EPSILON)
        shift = norm["bias"] - kept["mean"] * factor
        x = g.op("Add", g.op("Mul", x, g.constant(factor)), g.constant(shift))
    else:
        square = g.op("ReduceMean", g.op("Mul", x, x), axes=[-1])
        size = g.op("Sqrt", g.op("Add", square, g.constant(EPSILON)))
        x = g.op("Mul", g.op("Div", x, size), g.constant(norm["scale"]))
    return _dense(g, _gelu(g, x), params["pointwise2"])


def _plain_kernel(params: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A weight-normed projection as a plain one."""
    size = np.linalg.norm(params["direction"], axis=0)
    return {"kernel": params["direction"] * (params["scale"] / size), "bias": params["bias"]}


def _search(g: Graph, latent: Value, codec: AUV, params: Mapping) -> Value:
    """[B, T, D] -> codes int64 [B, T] or [B, T, levels]."""
    codes = []
    for level in range(codec.levels):
        own = params[f"level_{level}"]
        query = _dense(g, latent, _plain_kernel(own["in_proj"]))
        size = g.op("Max", g.op("ReduceL2", query, axes=[-1]), g.constant(1e-12))
        book = own["codebook"]
        table = book / np.maximum(np.linalg.norm(book, axis=-1, keepdims=True), 1e-12)
        scores = g.op("MatMul", g.op("Div", query, size), g.constant(table.T))
        codes.append(g.op("ArgMax", scores, axis=-1, keepdims=0))
        if level + 1 < codec.levels:
            latent = g.op("Sub", latent, _vectors(g, codes[-1], own))
    if codec.levels == 1:
        return codes[0]
    return g.op("Concat", *(g.op("Unsqueeze", c, g.ints(2)) for c in codes), axis=2)


def _vectors(g: Graph, codes: Value, level: Mapping) -> Value:
    chosen = g.op("Gather", g.constant(level["codebook"]), codes)
    return _dense(g, chosen, _plain_kernel(level["out_proj"]))


def _lookup(g: Graph, codes: Value, codec: AUV, params: Mapping) -> Value:
    """Codes -> what the decoder reads, [B, T, D]."""
    if codec.levels == 1:
        return _vectors(g, codes, params["level_0"])
    total = ""
    for level in range(codec.levels):
        own = g.op("Gather", codes, g.constant(level, np.int64), axis=2)
        part = _vectors(g, own, params[f"level_{level}"])
        total = g.op("Add", total, part) if total else part
    return total
