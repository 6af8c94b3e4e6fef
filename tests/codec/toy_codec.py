"""A codec unlike AUV in all that a trainer could take for granted; 24 kHz, 50 frames a second.

Strided convolutions with context, three residual Euclidean codebooks, no running statistics.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from llmcodec_jax.codec.registry import Family
from llmcodec_jax.types import CodecOutput, Search

STRIDES = (8, 10, 6)


class Stack(nn.Module):
    """Convolutions that change the rate by each stride; frames past `lengths` stay zero."""

    channels: tuple[int, ...]
    strides: tuple[int, ...]
    up: bool

    @nn.compact
    def __call__(self, x, lengths):
        kind = nn.ConvTranspose if self.up else nn.Conv
        for index, (width, stride) in enumerate(zip(self.channels, self.strides, strict=True)):
            x = kind(width, (2 * stride,), (stride,), name=f"conv_{index}", precision="highest")(x)
            x = x if index == len(self.strides) - 1 else nn.gelu(x)
            lengths = lengths * stride if self.up else lengths // stride
            x = jnp.where((jnp.arange(x.shape[1]) < lengths[:, None])[..., None], x, 0.0)
        return x


class ToyCodec(nn.Module):
    sample_rate: int = 24_000
    hop: int = 480
    width: int = 12
    codebook_size: int = 24
    levels: int = 3
    dtype: str = "float32"

    def setup(self):
        self.encoder = Stack((4, 8, self.width), STRIDES, up=False)
        self.decoder = Stack((8, 4, 1), STRIDES[::-1], up=True)
        shape = (self.levels, self.codebook_size, self.width)
        start = nn.initializers.normal(0.02)
        own = self.param("quantizer", lambda key: {"codebooks": start(key, shape)})
        self.codebooks = own["codebooks"]

    def encode(self, wav, wav_length=None, domain=None, train=False, levels=None):
        length = jnp.full(len(wav), wav.shape[1]) if wav_length is None else wav_length
        wav = jnp.where(jnp.arange(wav.shape[1]) < length[:, None], wav, 0.0)
        frames = -(-length // self.hop)
        latent = self.encoder(wav[..., None], frames * self.hop)
        mask = jnp.arange(latent.shape[1]) < frames[:, None]
        residual, codes, queries, loss = latent, [], [], 0.0
        for table in self.codebooks[:levels]:
            distance = jnp.sum(jnp.square(residual[:, :, None] - table), axis=-1)
            codes.append(jnp.where(mask, jnp.argmin(distance, axis=-1), 0))
            queries.append(residual)
            chosen = table[codes[-1]]
            fixed = [jax.lax.stop_gradient(x) for x in (residual, chosen)]
            error = jnp.square(chosen - fixed[0]) + 0.25 * jnp.square(residual - fixed[1])
            loss += jnp.sum(error.mean(-1) * mask, axis=1) / jnp.maximum(frames, 1)
            residual = residual - fixed[1]
        quantised = sum(t[c] for t, c in zip(self.codebooks, codes, strict=False))
        quantised = latent + jax.lax.stop_gradient(quantised - latent)
        queries = jnp.stack(queries, axis=2)
        return CodecOutput(latent, jnp.stack(codes, -1), quantised, queries, loss, mask)

    def decode(self, quantised, frame_mask=None, train=False):
        if frame_mask is None:
            frame_mask = jnp.ones(quantised.shape[:2], bool)
        quantised = jnp.where(frame_mask[..., None], quantised, 0.0)
        return self.decoder(quantised, frame_mask.sum(axis=1))[..., 0]

    def reconstruct(self, wav, wav_length=None, domain=None, train=False):
        output = self.encode(wav, wav_length)
        return output, self.decode(output.quantised, output.frame_mask)

    def lookup(self, codes):
        return sum(self.codebooks[q][codes[..., q]] for q in range(codes.shape[-1]))

    def decode_codes(self, codes, frame_mask=None):
        return self.decode(self.lookup(codes), frame_mask)

    def search(self, level=0):
        return Search(self.codebooks[level], "euclidean")


def from_published(tensors, config):
    codec = ToyCodec(**{"levels": len(tensors["params.quantizer.codebooks"]), **config})
    return codec, unflatten_dict({tuple(k.split(".")): v for k, v in tensors.items()})


def to_published(codec, variables):
    return {".".join(path): value for path, value in flatten_dict(dict(variables)).items()}


def recognises(shapes, config):
    return "params.quantizer.codebooks" in shapes


TOY = Family("toy", ToyCodec, recognises, from_published, to_published)
