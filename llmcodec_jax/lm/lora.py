"""Low-rank adapters on the language model's linear layers.

y = x W + (alpha / rank) * dropout(x) A B, with A [in, rank] random and B [rank, out] zero, so
that an adapter starts as the identity. The frozen W never receives a gradient; only the tree
`LoRA.weights` is trained. Adapters of scanned layers are stacked like the layers.
"""

from __future__ import annotations

import re
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict


@flax.struct.dataclass
class LoRA:
    """Adapter weights and how they are applied. `LoRA()` is no adapter."""

    weights: Any = None  # tree mirroring `params`: .../{q_proj,...}/{a [L,in,r], b [L,r,out]}
    alpha: float = flax.struct.field(pytree_node=False, default=16.0)
    dropout: float = flax.struct.field(pytree_node=False, default=0.0)


class Linear(nn.Module):
    """x @ kernel (+ bias), plus its adapter where the `lora` collection holds one."""

    features: int
    use_bias: bool
    lora: LoRA

    @nn.compact
    def __call__(self, x):
        init = nn.initializers.normal(0.02)
        kernel = self.param("kernel", init, (x.shape[-1], self.features))
        y = x @ kernel
        if self.use_bias:
            y = y + self.param("bias", nn.initializers.zeros, (self.features,))
        if self.has_variable("lora", "a"):
            a, b = self.get_variable("lora", "a"), self.get_variable("lora", "b")
            training = self.has_rng("dropout")
            dropped = nn.Dropout(self.lora.dropout, deterministic=not training)(x)
            update = (dropped @ a.astype(x.dtype)) @ b.astype(x.dtype)
            y = y + (self.lora.alpha / a.shape[-1]) * update
        return y


def init_lora(
    params: Any,
    key: jax.Array,
    rank: int,
    alpha: float = 16.0,
    dropout: float = 0.0,
    targets: str = r"(q|k|v|o)_proj",
) -> LoRA:
    """Adapters for every linear layer whose name fully matches the pattern `targets`.

    `params` are the model's (shapes suffice); weights come out in float32. Raises ValueError
    where nothing matches.
    """
    flat = flatten_dict(params)
    chosen = sorted(
        path[:-1] for path in flat if path[-1] == "kernel" and re.fullmatch(targets, path[-2])
    )
    if not chosen:
        names = sorted({path[-2] for path in flat if path[-1] == "kernel"})
        raise ValueError(f"targets {targets!r} match none of the linear layers {names}")
    weights = {}
    for index, path in enumerate(chosen):
        *stack, size_in, size_out = flat[(*path, "kernel")].shape
        a = jax.random.normal(jax.random.fold_in(key, index), (*stack, size_in, rank))
        weights[(*path, "a")] = a / jnp.sqrt(size_in)
        weights[(*path, "b")] = jnp.zeros((*stack, rank, size_out))
    return LoRA(unflatten_dict(weights), alpha, dropout)


def merge(params: Any, lora: LoRA) -> Any:
    """Folds the adapters into the kernels, for export or for faster inference."""
    flat, adapters = flatten_dict(params), flatten_dict(lora.weights)
    for path in {path[:-1] for path in adapters}:
        a, b = adapters[(*path, "a")], adapters[(*path, "b")]
        kernel = flat[(*path, "kernel")]
        update = (lora.alpha / a.shape[-1]) * (a @ b)
        flat[(*path, "kernel")] = (kernel.astype(jnp.float32) + update).astype(kernel.dtype)
    return unflatten_dict(flat)
