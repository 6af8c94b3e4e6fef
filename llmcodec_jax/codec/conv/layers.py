"""One-dimensional layers of the convolutional codecs, exact for padded batches and for streams.

Arrays are [batch, time, channels]. Every layer that looks along time is called as
`layer(x, length) -> (x, length)`: `length` int32 [B] counts each clip's valid steps (None: all
are valid). A clip's valid outputs depend on its own valid inputs alone, so a padded batch gives
what single clips give; outputs past a length are unspecified.

Causal layers stream. Applied with `mutable=["stream"]` they leave what the next call needs of
their past in the collection `stream`; applied with that collection, they go on from there
instead of padding at the left.

What follows from parameters alone is folded alike: applied with `mutable=["folded"]` layers leave
their finished kernels in that collection, and applied with it they read them there.
"""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from llmcodec_jax.ops import fast_fir

PAD_MODES = ("zero", "reflect", "replicate")
NORMS = ("none", "weight", "group")
STREAM = "stream"
FOLDED = "folded"
TORCH_UNIFORM = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
"""PyTorch's own start of linear and convolution layers: uniform within 1 / sqrt(fan-in)."""


def precision(dtype) -> jax.lax.Precision | None:
    """float32 means float32 on every accelerator: codes must not depend on where one encodes."""
    return jax.lax.Precision.HIGHEST if jnp.dtype(dtype) == jnp.float32 else None


def matmul(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """x [B, T, I] times kernel [I, O], in their type -> [B, T, O].

    Written as a convolution of one tap, which every backend turns into a product: XLA's CPU
    backend packs the kernel of a plain one anew at each call, which takes two to three times as
    long where few steps meet a large kernel, as in a stream or a recurrent layer.
    """
    return fast_fir.plain(x, kernel[None], 1, precision(x.dtype))


def elu(x: jax.Array) -> jax.Array:
    """x above 0, e^x - 1 below: without `expm1`, which takes twice as long on CPUs. Absolute
    precision is all that an activation of unit size needs."""
    low = jnp.where(x > 0, 0, x)  # of which the gradient at 0 is 1, as it should be
    return jnp.where(x > 0, x, jnp.exp(low) - 1)


def sine_squared(x: jax.Array) -> jax.Array:
    """sin^2(x) within 4e-7, float32 inside: a polynomial of what is left of x beside multiples of
    pi. Vectorises everywhere; on CPUs it takes an eighth of the time of `jnp.sin`."""
    turn = jnp.asarray(x, jnp.float32)
    count = jnp.round(turn * np.float32(1 / np.pi))
    for part in PI_PARTS:
        turn = turn - count * part
    square = jnp.square(turn)
    series = jnp.full_like(square, SINE_SQUARED[-1])
    for coefficient in SINE_SQUARED[-2::-1]:
        series = series * square + coefficient
    return (series * square).astype(x.dtype)


PI_PARTS = (3.140625, 9.67502593994140625e-4, 1.509957990978376432e-7)
"""pi in three parts, the first two with few bits, so that multiples of them are exact."""
SINE_SQUARED = (1, -1 / 3, 2 / 45, -1 / 315, 2 / 14175, -2 / 467775, 4 / 42567525, -1 / 638512875)
"""sin^2(x) / x^2 as a series in x^2, the last term below 4e-7 at pi / 2."""


def is_streaming(module: nn.Module) -> bool:
    """Whether this call keeps the module's past for the next chunk."""
    return module.is_mutable_collection(STREAM) and not module.is_initializing()


def mask_time(x: jax.Array, length: jax.Array | None) -> jax.Array:
    """x [B, T, C] with zeros at and past `length` int32 [B] (None: unchanged)."""
    if length is None:
        return x
    valid = jnp.arange(x.shape[1]) < length[:, None]
    return jnp.where(valid[..., None], x, jnp.zeros((), x.dtype))


def pad_time(x: jax.Array, length: jax.Array | None, left: int, right: int, mode: str) -> jax.Array:
    """Extends every clip at its own two ends: x [B, T, C] -> [B, left + T + right, C].

    Clip b occupies [left, left + length[b]); its right margin follows directly, zeros after that.
    "reflect" on clips no longer than a margin first extends them with zeros to one step more than
    the margin, as EnCodec publishes it.
    """
    if mode not in PAD_MODES:
        raise ValueError(f"pad mode {mode!r} is not one of {', '.join(PAD_MODES)}")
    time = x.shape[1]
    if mode == "zero":
        x = mask_time(x, length) if right else x
        return jnp.pad(x, ((0, 0), (left, right), (0, 0)))
    most = max(left, right)
    if mode == "replicate":
        head = jnp.repeat(x[:, :1], left, axis=1)
    else:
        start = mask_time(x[:, 1 : left + 1], None if length is None else length - 1)
        start = jnp.pad(start, ((0, 0), (0, left - start.shape[1]), (0, 0)))
        head = start[:, ::-1]
    if right == 0:
        return jnp.concatenate([head, x], axis=1)
    ends = jnp.full(x.shape[:1], time, jnp.int32) if length is None else length
    position = ends[:, None] + jnp.arange(right)  # [B, right]
    if mode == "replicate":
        source = jnp.broadcast_to(ends[:, None] - 1, position.shape)
    else:
        top = jnp.maximum(ends - 1, most)[:, None]
        source = jnp.minimum(position, 2 * top - position)
    tail = jnp.take_along_axis(x, jnp.clip(source, 0, time - 1)[..., None], axis=1)
    tail = jnp.where((source < ends[:, None])[..., None], tail, jnp.zeros((), x.dtype))
    if length is None:
        return jnp.concatenate([head, x, tail], axis=1)
    body = jnp.pad(mask_time(x, length), ((0, 0), (0, right), (0, 0)))
    write = jax.vmap(lambda clip, end, at: jax.lax.dynamic_update_slice(clip, end, (at, 0)))
    return jnp.concatenate([head, write(body, tail, length)], axis=1)


def with_past(module: nn.Module, x: jax.Array, steps: int, padded) -> jax.Array:
    """x [B, T, C] behind its `steps` past steps: a stream's own, or else `padded(x)`.

    Keeps the last `steps` steps for the next chunk while streaming.
    """
    if steps == 0:
        return x
    if is_streaming(module) and module.has_variable(STREAM, "past"):
        x = jnp.concatenate([module.get_variable(STREAM, "past").astype(x.dtype), x], axis=1)
    else:
        x = padded(x)
    if is_streaming(module):
        module.put_variable(STREAM, "past", x[:, x.shape[1] - steps :])
    return x


class _Kernel(nn.Module):
    """What both convolutions share: a kernel, plain or weight-normed, a bias, a norm."""

    inputs: int
    features: int
    kernel: int  # taps
    stride: int = 1
    groups: int = 1
    causal: bool = False
    bias: bool = True
    norm: str = "none"  # "weight": g v / |v|; "group": over a clip's time and channels
    dtype: Any = jnp.float32

    def _weights(self, shape: tuple[int, ...], gain_axis: int) -> jax.Array:
        """The kernel; under weight norm one gain for each index of `gain_axis`."""
        if self.norm not in NORMS:
            raise ValueError(f"norm {self.norm!r} is not one of {', '.join(NORMS)}")
        if self.norm != "weight":
            return self.param("kernel", TORCH_UNIFORM, shape, jnp.float32).astype(self.dtype)
        if self.has_variable(FOLDED, "kernel"):
            return self.get_variable(FOLDED, "kernel")
        direction = self.param("direction", TORCH_UNIFORM, shape, jnp.float32)
        axes = tuple(axis for axis in range(len(shape)) if axis != gain_axis)
        size = jnp.sqrt(jnp.sum(jnp.square(direction), axis=axes, keepdims=True))
        scale = self.param("scale", lambda _: size.reshape(-1).astype(jnp.float32))
        kernel = (direction * (scale.reshape(size.shape) / size)).astype(self.dtype)
        if self.is_mutable_collection(FOLDED) and not self.is_initializing():
            self.put_variable(FOLDED, "kernel", kernel)
        return kernel

    def _finish(self, y: jax.Array, length: jax.Array | None) -> jax.Array:
        """Adds the bias and applies the group norm."""
        if self.bias:
            y = y + self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32).astype(
                self.dtype
            )
        if self.norm == "group":
            scale = self.param("norm_scale", nn.initializers.ones, (self.features,), jnp.float32)
            shift = self.param("norm_bias", nn.initializers.zeros, (self.features,), jnp.float32)
            y = (normalise_clip(y, length) * scale + shift).astype(self.dtype)
        return y


def normalise_clip(x: jax.Array, length: jax.Array | None, epsilon: float = 1e-5) -> jax.Array:
    """Zero mean and unit variance over each clip's valid steps and all channels, float32."""
    x = x.astype(jnp.float32)
    steps = x.shape[1] if length is None else jnp.maximum(length, 1)[:, None, None]
    count = steps * x.shape[2]
    mean = jnp.sum(mask_time(x, length), axis=(1, 2), keepdims=True) / count
    centred = x - mean
    variance = jnp.sum(jnp.square(mask_time(centred, length)), axis=(1, 2), keepdims=True) / count
    return centred * jax.lax.rsqrt(variance + epsilon)


class Conv1d(_Kernel):
    """Convolution over time, T -> T / stride; T must be a multiple of the stride.

    The (kernel - 1) * dilation + 1 - stride steps of padding stand at the left if causal, else
    half at each end, the larger half at the left. Parameters: `kernel` (or `direction`, `scale`)
    [taps, inputs / groups, features], `bias` [features].
    """

    dilation: int = 1
    pad_mode: str = "zero"

    @nn.compact
    def __call__(self, x: jax.Array, length: jax.Array | None = None):
        """x [B, T, inputs], length int32 [B] or None -> ([B, T / stride, features], length)."""
        if x.shape[1] % self.stride:
            raise ValueError(f"{x.shape[1]} steps are not a multiple of stride {self.stride}")
        padding = (self.kernel - 1) * self.dilation + 1 - self.stride
        x = x.astype(self.dtype)
        if self.causal:
            x = with_past(
                self, x, padding, lambda x: pad_time(x, length, padding, 0, self.pad_mode)
            )
        elif is_streaming(self) and padding:
            raise ValueError("a convolution that is not causal cannot stream")
        elif padding:
            right = padding // 2
            x = pad_time(x, length, padding - right, right, self.pad_mode)
        kernel = self._weights((self.kernel, self.inputs // self.groups, self.features), 2)
        y = self._products(x, kernel)
        length = None if length is None else length // self.stride
        return self._finish(y, length), length

    def _products(self, x: jax.Array, kernel: jax.Array) -> jax.Array:
        """x [B, T + padding, inputs] -> [B, T / stride, features]."""
        if self.inputs == self.stride == 1:
            # One channel is no matrix product, and fuses into one pass as a sum.
            steps = x.shape[1] - (self.kernel - 1) * self.dilation
            taps = (x[:, i * self.dilation :][:, :steps] for i in range(self.kernel))
            return functools.reduce(jnp.add, map(jnp.multiply, taps, kernel))
        plain = self.groups == 1 and self.dilation == 1 and self.kernel % self.stride == 0
        if plain and self.stride > 1:  # one over blocks of a stride's steps
            blocks = x.reshape(x.shape[0], -1, self.stride * self.inputs)
            kernel = kernel.reshape(-1, blocks.shape[-1], self.features)
            return fast_fir.convolve(blocks, kernel, 1, precision(self.dtype))
        if self.groups == self.stride == 1:
            return fast_fir.convolve(x, kernel, self.dilation, precision(self.dtype))
        return jax.lax.conv_general_dilated(
            x,
            kernel,
            (self.stride,),
            "VALID",
            rhs_dilation=(self.dilation,),
            dimension_numbers=("NWC", "WIO", "NWC"),
            feature_group_count=self.groups,
            precision=precision(self.dtype),
        )


class ConvTranspose1d(_Kernel):
    """Transposed convolution, T -> (T - 1) * stride + kernel - sum(trim) steps.

    Computed as a convolution over whole frames whose channels are `stride` output steps, which
    multiplies no inserted zeros. `trim` steps are cut at the left and right: by default
    kernel - stride in all, at the right if causal, else half at each end, the larger half at
    the left. The kernel must be a multiple of the stride. Parameters: `kernel` (or `direction`,
    `scale` [inputs]) [kernel / stride, inputs / groups, stride * features] with the oldest frame
    first and channels in the order (group, step, feature of the group); [kernel / stride,
    inputs, stride] where every channel is a group; `bias` [features].
    """

    trim: tuple[int, int] | None = None

    @nn.compact
    def __call__(self, x: jax.Array, length: jax.Array | None = None):
        """x [B, T, inputs], length int32 [B] or None -> ([B, T', features], length)."""
        if self.kernel % self.stride:
            raise ValueError(f"kernel {self.kernel} is not a multiple of stride {self.stride}")
        if self.groups > 1 and self.norm == "weight":
            raise ValueError("a grouped transposed convolution has no weight norm")
        frames, spare = self.kernel // self.stride, self.kernel - self.stride
        half = (spare - spare // 2, spare // 2)
        left, right = self.trim or ((0, spare) if self.causal else half)
        x = x.astype(self.dtype)
        # Frames past the last: what the trim leaves of them, all of them for a group norm, whose
        # statistics are published to count the steps that are cut afterwards.
        after = frames - 1 if self.norm == "group" else -(-(spare - right) // self.stride)
        if after and is_streaming(self):
            raise ValueError("a transposed convolution that is not causal cannot stream")
        x = with_past(self, x, frames - 1, lambda x: pad_time(x, length, frames - 1, 0, "zero"))
        if after:
            x = mask_time(x, None if length is None else length + frames - 1)
            x = jnp.pad(x, ((0, 0), (0, after), (0, 0)))
        y = self._products(x, frames)
        steps = (x.shape[1] - frames + 1 - after) * self.stride + spare - left - right
        whole = None if length is None else length * self.stride + spare
        length = None if whole is None else whole - left - right
        if self.norm == "group":
            return self._finish(y, whole)[:, left : left + steps], length
        return self._finish(y[:, left : left + steps], length), length

    def _products(self, x: jax.Array, frames: int) -> jax.Array:
        """x [B, frames - 1 + T, inputs] -> [B, T * stride, features]."""
        if self.groups == self.inputs == self.features:
            # A channel on its own is no matrix product, and fuses into one pass as a sum.
            kernel = self._weights((frames, self.inputs, self.stride), 1).swapaxes(1, 2)
            steps = x.shape[1] - frames + 1
            y = x[:, :steps, None] * kernel[0]
            for i in range(1, frames):
                y += x[:, i : i + steps, None] * kernel[i]
            return y.reshape(x.shape[0], -1, self.features)
        shape = (frames, self.inputs // self.groups, self.stride * self.features)
        kernel, exact = self._weights(shape, 1), precision(self.dtype)
        if self.groups == 1:
            y = fast_fir.convolve(x, kernel, 1, exact)
        else:
            y = jax.lax.conv_general_dilated(
                x,
                kernel,
                (1,),
                "VALID",
                dimension_numbers=("NWC", "WIO", "NWC"),
                feature_group_count=self.groups,
                precision=exact,
            )
        y = y.reshape(*y.shape[:2], self.groups, self.stride, -1)
        return y.swapaxes(2, 3).reshape(y.shape[0], -1, self.features)


class Snake(nn.Module):
    """x + sin^2(alpha x) / alpha with one learnt alpha per channel (BigVGAN, DAC)."""

    channels: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        alpha = self.param("alpha", nn.initializers.ones, (self.channels,), jnp.float32)
        alpha = alpha.astype(x.dtype)
        return x + sine_squared(alpha * x) / (alpha + 1e-9)
