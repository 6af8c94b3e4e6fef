"""Everything a run carries from step to step, and how it starts."""

from __future__ import annotations

import zlib
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from llmcodec_jax.lm import heads, vocab
from llmcodec_jax.losses.alignment import Bank, init_bank
from llmcodec_jax.training.method import Method
from llmcodec_jax.training.optim import optimiser


@flax.struct.dataclass
class TrainState:
    """The checkpointed state. The frozen LM is not part of it: only its digest is kept."""

    step: jax.Array  # int32 []
    # codec; with an LM that reads L levels audio_embedding [L V, H], ftp_heads [K, L V, H] and
    # bridge; with a teacher its map.
    params: dict
    batch_stats: dict  # the codec's running statistics
    discriminator: dict  # discriminator parameters, {} without
    opt_state: Any
    discriminator_opt_state: Any
    bank: Bank | None  # negatives of the contrastive loss
    code_share: jax.Array  # float32 [V], [Q, V] with several levels: counts (`count_lately`)
    skipped: jax.Array  # int32 [], non-finite updates so far
    bad_streak: jax.Array  # int32 [], non-finite updates in a row
    key: jax.Array  # uint32 [2], the root key: never changes

    @property
    def code_shares(self) -> jax.Array:
        """`code_share` as [Q, V] with one level too."""
        return self.code_share.reshape(-1, self.code_share.shape[-1])


def stream(key, step, name: str) -> jax.Array:
    """The key of one named stream of randomness at one step: a pure function of both."""
    return jax.random.fold_in(jax.random.fold_in(key, step), zlib.crc32(name.encode()))


def init_params(method: Method, lm_params, key) -> tuple[dict, dict]:
    """Fresh parameters -> (params, batch_stats). The codec starts from its own initialiser."""
    codec_key, bridge_key, embedding_key = jax.random.split(key, 3)
    codec = method.codec
    wav = jnp.zeros((1, 8 * codec.hop), jnp.float32)
    variables = codec.init(codec_key, wav, jnp.full((1,), wav.shape[1]), method="reconstruct")
    params = {"codec": variables["params"]}
    if method.distillation.teacher:
        shape = (codec.width, method.distillation.width)
        start = jax.nn.initializers.lecun_normal()
        params["distillation"] = {"kernel": start(jax.random.fold_in(codec_key, 1), shape)}
    if method.lm:
        rows = codec.codebook_size * method.reading.levels
        embedding = vocab.audio_embedding_init(
            lm_params["embed"]["embedding"],
            rows,
            embedding_key,
            kind=method.lm.embedding_start,
        )
        head_rows = vocab.audio_head_init(
            lm_params, embedding, embedding_key, kind=method.lm.embedding_start
        )
        params["audio_embedding"] = embedding
        params["ftp_heads"] = heads.start_heads(
            head_rows, method.lm.horizons, method.lm.embedding_start
        )
        learned = method.bridge.logits_of().init(bridge_key, codec.width, rows)
        params |= {"bridge": learned} if learned else {}
    return params, variables.get("batch_stats", {})


def init_state(method: Method, lm_params, seed: int) -> TrainState:
    """The state before the first step; jit it (or `jax.eval_shape` it) to build it sharded."""
    key, codec = jax.random.key(seed), method.codec
    levels = (codec.levels,) if codec.levels > 1 else ()
    params, batch_stats = init_params(method, lm_params, stream(key, 0, "init"))
    discriminator: Any = {}
    discriminator_opt_state: Any = ()
    if method.discriminators is not None:
        wav = jnp.zeros((1, 8192), jnp.float32)
        variables = method.discriminators.init(stream(key, 0, "disc"), wav)
        discriminator = variables["params"]
        transform = optimiser(discriminator, (method.discriminator_group,), method.schedule)
        discriminator_opt_state = transform.init(discriminator)
    bank = None
    if method.align and method.lm is not None:
        lm = method.lm.architecture
        first, last = lm.aligned_layers
        bank = init_bank(last - first, method.lm.bank, lm.width)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=batch_stats,
        discriminator=discriminator,
        opt_state=optimiser(params, method.groups, method.schedule).init(params),
        discriminator_opt_state=discriminator_opt_state,
        bank=bank,
        code_share=jnp.zeros((*levels, codec.codebook_size), jnp.float32),
        skipped=jnp.zeros((), jnp.int32),
        bad_streak=jnp.zeros((), jnp.int32),
        key=jax.random.key_data(key),
    )
