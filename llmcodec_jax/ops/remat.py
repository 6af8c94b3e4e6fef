"""What a scanned layer keeps for its backward pass.

`lax.scan` would keep every intermediate array of every layer, elementwise ones included: 31 of
[B, T, D] and 11 of [B, T, 4 D] in a Conformer layer. Recomputing those costs less than storing
and reading them back, so only the weights' products are kept.
"""

from __future__ import annotations

import flax.linen as nn
import jax


def recomputing(layer: type[nn.Module], everything: bool) -> type[nn.Module]:
    """`layer` that recomputes all but its products with weights; with `everything`, those too."""
    products = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
    return nn.remat(layer, prevent_cse=False, policy=None if everything else products)
