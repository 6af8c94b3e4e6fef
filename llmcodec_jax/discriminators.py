"""Waveform discriminators (method.md 6): multi-period, 33.2 M parameters; multi-scale, 101.4 M.

Plain convolutions, as in the published model (no weight norm: its parameter counts are those of
plain ones). Their start is He-scaled rather than the published N(0, 0.01), under which
the multi-period logits start at 1e-6 of the signal and a narrow model never leaves zero.
"""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from llmcodec_jax.errors import UsageError
from llmcodec_jax.losses import adversarial
from llmcodec_jax.ops import fast_fir
from llmcodec_jax.ops.fields import changeable

SLOPE = 0.2  # of the leaky rectifier

Maps = list[list[jax.Array]]
"""One list per sub-discriminator; its arrays run from the first layer to the logits."""


@dataclasses.dataclass(frozen=True)
class DiscriminatorConfig:
    """The adversarial game and the size of both families of discriminators."""

    enabled: bool = True
    loss: str = changeable("hinge")  # or "lsgan"
    r1_every: int = changeable(16)  # steps between gradient penalties, weighted up by as much
    periods: tuple[int, ...] = (2, 3, 5, 7, 11)  # of the multi-period discriminator
    period_channels: tuple[int, ...] = (64, 128, 256, 512, 1024)
    scales: int = 3  # of the multi-scale discriminator, each at half the rate of the one before
    scale_channels: tuple[int, ...] = (64, 128, 256, 512, 1024)
    dtype: str = changeable("bfloat16")  # of the convolutions; parameters are float32

    def __post_init__(self):
        if self.loss not in adversarial.KINDS:
            raise UsageError(f"discriminators.loss is one of {adversarial.KINDS}")
        if self.r1_every < 1:
            raise UsageError("discriminators.r1_every is at least 1; weights.r1=0 switches it off")

    def module(self) -> Discriminators:
        """The discriminators of these sizes."""
        return Discriminators(
            periods=tuple(self.periods),
            scales=self.scales,
            period_channels=tuple(self.period_channels),
            scale_channels=tuple(self.scale_channels),
            dtype=jnp.dtype(self.dtype),
        )


class Discriminators(nn.Module):
    """All sub-discriminators on one batch of waveforms."""

    periods: tuple[int, ...]
    scales: int
    period_channels: tuple[int, ...]
    scale_channels: tuple[int, ...]
    dtype: jnp.dtype  # of the convolutions; parameters are float32

    @nn.compact
    def __call__(self, wav: jax.Array, lengths: jax.Array | None = None) -> tuple[Maps, Maps]:
        """wav float [B, N], lengths int [B] (None: all N) -> (features, masks).

        Each feature map is [B, T', C] in `dtype`, the last of each list being the logits
        [B, T', 1]; its mask bool [B, T'] is True within the clip. Every layer sees zeros past a
        clip's end, so its features depend neither on its padding nor on the padding's content.
        """
        if lengths is None:
            lengths = jnp.full(wav.shape[:1], wav.shape[1], jnp.int32)
        valid = jnp.arange(wav.shape[1]) < lengths[:, None]
        wav = jnp.where(valid, wav, 0).astype(self.dtype)[..., None]
        outputs = []
        for period in self.periods:
            judge = PeriodDiscriminator(
                period, self.period_channels, self.dtype, name=f"period_{period}"
            )
            outputs.append(judge(wav, lengths))
        for scale in range(self.scales):
            judge = ScaleDiscriminator(self.scale_channels, self.dtype, name=f"scale_{scale}")
            outputs.append(judge(wav, lengths))
            if scale + 1 < self.scales:
                wav, lengths = halve(wav, lengths)
        return [features for features, _ in outputs], [masks for _, masks in outputs]


class PeriodDiscriminator(nn.Module):
    """Judges every `period`-th sample: each phase of the period is a sequence of its own."""

    period: int
    channels: tuple[int, ...]
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, wav: jax.Array, lengths: jax.Array):
        batch, samples, _ = wav.shape
        p = self.period
        rows = -(-samples // p)
        folded = jnp.pad(wav, ((0, 0), (0, rows * p - samples), (0, 0))).reshape(batch, rows, p)
        folded = folded.swapaxes(1, 2).reshape(batch * p, rows, 1)
        left = lengths[:, None] - jnp.arange(p)  # samples from each phase's first one on
        count = len(self.channels)
        layers = list(zip(self.channels, [5] * count, [1] + [3] * (count - 1), strict=True))
        layers += [(self.channels[-1], 3, 1), (1, 3, 1)]
        features, masks = ConvStack(layers, self.dtype, name="layers")(folded, left.reshape(-1), p)
        features = [f.reshape(batch, -1, f.shape[-1]) for f in features]
        return features, [m.reshape(batch, -1) for m in masks]


class ScaleDiscriminator(nn.Module):
    """Judges the waveform itself with long kernels."""

    channels: tuple[int, ...]
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, wav: jax.Array, lengths: jax.Array):
        count = len(self.channels) - 1
        layers = [(self.channels[0], 15, 1)]
        layers += list(zip(self.channels[1:], [41] * count, [2] * count, strict=True))
        layers += [(self.channels[-1], 5, 1), (1, 3, 1)]
        return ConvStack(layers, self.dtype, name="layers")(wav, lengths)


class ConvStack(nn.Module):
    """ "Same" convolutions with leaky rectifiers between them; keeps every layer's output."""

    layers: list[tuple[int, int, int]]  # (channels, kernel, stride) each; the last gives logits
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, lengths: jax.Array, spacing: int = 1):
        """x [B, T, 1], zero past lengths int [B] -> (feature maps, their masks).

        `spacing`: samples between steps of x, in the unit of lengths.
        """
        start = nn.initializers.variance_scaling(2 / (1 + SLOPE**2), "fan_in", "normal")
        features, masks = [], []
        for index, (channels, size, stride) in enumerate(self.layers):
            kernel = self.param(f"kernel_{index}", start, (size, x.shape[-1], channels))
            bias = self.param(f"bias_{index}", nn.initializers.zeros_init(), (channels,))
            x = strided_conv(x, kernel.astype(self.dtype), stride) + bias.astype(self.dtype)
            if index + 1 < len(self.layers):
                x = nn.leaky_relu(x, SLOPE)
            spacing *= stride
            mask = spacing * jnp.arange(x.shape[1]) < lengths[:, None]  # its first sample is one
            x = jnp.where(mask[..., None], x, 0)
            features.append(x)
            masks.append(mask)
        return features, masks


def strided_conv(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """ "Same" convolution: x [B, T, I], kernel [K odd, I, O] -> [B, ceil(T / stride), O].

    Strides are folded into channels ([B, T/s, s*I] with a kernel of ceil(K/s) taps): the same
    sums, but neither direction needs a dilated convolution, which XLA runs several times slower
    on CPU, and the folded input fills a TPU's lanes better. The first layer's single channel
    becomes one matrix product over its taps, for the same two reasons. On CPU long kernels of many
    channels are split (`ops/fast_fir.py`), which nearly halves their time.
    """
    size, channels, outputs = kernel.shape
    steps, taps = -(-x.shape[1] // stride), -(-size // stride)
    left = (size - 1) // 2
    total = (steps + taps - 1) * stride
    x = jnp.pad(x, ((0, 0), (left, max(total - left - x.shape[1], 0)), (0, 0)))[:, :total]
    x = x.reshape(x.shape[0], steps + taps - 1, stride * channels)
    kernel = jnp.pad(kernel, ((0, taps * stride - size), (0, 0), (0, 0)))
    kernel = kernel.reshape(taps, stride * channels, outputs)
    if stride * channels == 1:
        columns = jnp.concatenate([x[:, tap : tap + steps] for tap in range(taps)], axis=-1)
        return columns @ kernel[:, 0]
    return fast_fir.convolve(x, kernel)


def halve(wav: jax.Array, lengths: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Half the rate by averaging 4 samples around each pair: [B, T, 1] -> [B, T // 2, 1].

    Samples outside the clip take no part in an average.
    """
    valid = (jnp.arange(wav.shape[1]) < lengths[:, None])[..., None].astype(wav.dtype)

    def windows(x):
        steps = x.shape[1] // 2
        x = jnp.pad(x, ((0, 0), (1, 2), (0, 0)))
        return sum(x[:, i : i + 2 * steps : 2] for i in range(4))

    lengths = lengths >> 1
    halved = windows(wav * valid) / jnp.maximum(windows(valid), 1)
    return jnp.where(
        (jnp.arange(halved.shape[1]) < lengths[:, None])[..., None], halved, 0
    ), lengths
