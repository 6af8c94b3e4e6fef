"""What every codec module of this package does alike of `types.Codec`."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp


class CodecModule(nn.Module):
    """Base of a family: it has `hop`, `encode`, `lookup` and the method below.

    `synthesise(quantised [B, T, D], mask, train) -> wav float32 [B, T * hop]`, `mask` bool [B, T]
    of valid frames or None.
    """

    def decode(self, quantised, frame_mask=None, train: bool = False) -> jax.Array:
        """quantised [B, T, D], frame_mask bool [B, T] or None -> wav float32 [B, T * hop]."""
        own: Any = self
        wav = own.synthesise(quantised, frame_mask, train)
        if frame_mask is None:
            return wav
        return jnp.where(jnp.repeat(frame_mask, own.hop, axis=1), wav, 0.0)

    def reconstruct(self, wav, wav_length=None, domain=None, train: bool = False, levels=None):
        """Encode and decode in one pass -> (CodecOutput, wav float32 [B, N])."""
        own: Any = self
        output = own.encode(wav, wav_length, domain, train, levels)
        mask = None if wav_length is None else output.frame_mask
        return output, self.decode(output.quantised, mask, train)

    def decode_codes(self, codes, frame_mask=None) -> jax.Array:
        """codes [B, T] or [B, T, q] -> wav float32 [B, T * hop]."""
        own: Any = self
        return self.decode(own.lookup(codes), frame_mask)
