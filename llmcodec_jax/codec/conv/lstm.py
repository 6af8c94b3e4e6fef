"""Stacked LSTM over time as the convolutional codecs use it; streams where it looks back only."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from llmcodec_jax.codec.conv.layers import STREAM, is_streaming, matmul


def _uniform(width: int):
    """PyTorch's start of an LSTM: uniform within 1 / sqrt(hidden width)."""
    bound = width**-0.5
    return lambda key, shape, dtype: jax.random.uniform(key, shape, dtype, -bound, bound)


class LSTMLayer(nn.Module):
    """One direction of one layer; gates in the order input, forget, cell, output.

    Parameters: `input_kernel` [inputs, 4 H], `recurrent_kernel` [H, 4 H], `input_bias` and
    `recurrent_bias` [4 H] (two, as published). The input's product is taken for all steps at
    once, so that the loop holds the recurrent product alone.
    """

    inputs: int
    width: int  # H
    reverse: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, length: jax.Array | None) -> jax.Array:
        """x [B, T, inputs], length int32 [B] or None -> [B, T, H]."""
        gates, start = 4 * self.width, _uniform(self.width)
        into = self.param("input_kernel", start, (self.inputs, gates), jnp.float32)
        across = self.param("recurrent_kernel", start, (self.width, gates), jnp.float32)
        bias = self.param("input_bias", start, (gates,), jnp.float32)
        bias = bias + self.param("recurrent_bias", start, (gates,), jnp.float32)
        across = across.astype(self.dtype)
        driven = matmul(x.astype(self.dtype), into.astype(self.dtype))
        driven = (driven + bias.astype(self.dtype)).swapaxes(0, 1)
        valid = jnp.ones((x.shape[1], 1), bool)
        if length is not None and self.reverse:
            valid = (jnp.arange(x.shape[1]) < length[:, None]).swapaxes(0, 1)

        def step(state, inputs):
            hidden, cell = state
            drive, on = inputs
            z = drive + matmul(hidden[None], across)[0]
            i, f, g, o = jnp.split(z, 4, axis=-1)
            cell = nn.sigmoid(f) * cell + nn.sigmoid(i) * jnp.tanh(g)
            hidden = nn.sigmoid(o) * jnp.tanh(cell)
            # Backwards, a clip's padding comes first: the state stays at rest until its end.
            hidden, cell = (jnp.where(on[:, None], s, 0).astype(s.dtype) for s in (hidden, cell))
            return (hidden, cell), hidden

        state = (jnp.zeros((x.shape[0], self.width), self.dtype),) * 2
        streaming = is_streaming(self)
        if streaming and self.reverse:
            raise ValueError("a bidirectional LSTM cannot stream")
        if streaming and self.has_variable(STREAM, "state"):
            state = self.get_variable(STREAM, "state")
        state, y = jax.lax.scan(step, state, (driven, valid), reverse=self.reverse)
        if streaming:
            self.put_variable(STREAM, "state", state)
        return y.swapaxes(0, 1)


class LSTM(nn.Module):
    """`layers` LSTM layers, with the input added to the output if `skip`.

    Bidirectional layers put both directions side by side, [B, T, 2 H]; their skip repeats the
    input along the channels to match.
    """

    width: int
    layers: int = 2
    bidirectional: bool = False
    skip: bool = True
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, length: jax.Array | None = None):
        """x [B, T, H], length int32 [B] or None -> ([B, T, H or 2 H], length)."""
        y, inputs = x, x.shape[-1]
        for index in range(self.layers):
            name = f"layer_{index}"
            ahead = LSTMLayer(inputs, self.width, False, self.dtype, name=name)(y, length)
            if self.bidirectional:
                back = LSTMLayer(inputs, self.width, True, self.dtype, name=f"{name}_reverse")
                ahead = jnp.concatenate([ahead, back(y, length)], axis=-1)
            y, inputs = ahead, ahead.shape[-1]
        if self.skip:
            y = y + jnp.tile(x, (1, 1, 2 if self.bidirectional else 1)).astype(y.dtype)
        return y, length
