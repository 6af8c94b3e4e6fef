"""The codec that a run starts from: as it is, with more codes, or with more levels."""

from __future__ import annotations

import logging

import jax
import jax.numpy as jnp
import numpy as np

from llmcodec_jax.codec import registry, store
from llmcodec_jax.codec.auv.model import AUV
from llmcodec_jax.codec.quantizer import FactorisedLevel, grow_codebook
from llmcodec_jax.errors import UsageError
from llmcodec_jax.training.method import Method

logger = logging.getLogger(__name__)


def read_codec(path: str, method: Method) -> dict:
    """The variables (numpy) of the codec to start from; of fewer codes or levels, grown.

    Raises UsageError if it has more, LayoutError if the architecture differs in anything else.
    """
    wanted = method.codec
    source = store.locate(path)
    family = registry.family_of(wanted).name
    alike = source.ours and source.config.get("architecture", "auv") == family
    grows = {}
    for name in ("codebook_size", "levels"):
        want = getattr(wanted, name, 0)
        held = source.config.get(name, want) if alike else want
        if not isinstance(held, int) or held < 1 or held == want:
            continue
        if held > want:
            raise UsageError(
                f"{path} has {name} {held}, the config {want}: add --config.codec.{name}={held}"
            )
        grows[name] = held
    if not grows:
        return store.load(path, expect=wanted)[1]
    if not isinstance(wanted, AUV):
        raise UsageError(f"codec.{', codec.'.join(grows)}: only AUV's can be more than `init` has")
    for name, held in grows.items():
        logger.info("%s: %s %d, grown to %d", path, name, held, getattr(wanted, name))
    _, variables = store.load(path, expect=wanted.clone(**grows))
    return add_levels(grow_codebooks(variables, wanted.codebook_size), wanted)


def put_codec(variables: dict, state):
    """Puts a codec's weights into a fresh state. All processes must call it."""
    put = lambda new, old: jax.device_put(new, old.sharding)  # noqa: E731
    params = state.params | {"codec": jax.tree.map(put, variables["params"], state.params["codec"])}
    stats = jax.tree.map(put, variables.get("batch_stats", {}), state.batch_stats)
    return state.replace(params=params, batch_stats=stats)


def grow_codebooks(variables: dict, size: int) -> dict:
    """A codec's variables with every codebook grown to `size` rows, all codes equally used.

    One of that size already stays as it is.
    """
    levels = variables["params"]["quantizer"]
    if all(len(level["codebook"]) == size for level in levels.values()):
        return variables
    params = {
        name: {**level, "codebook": grow_codebook(np.asarray(level["codebook"]), size)}
        for name, level in levels.items()
    }
    usage = {name: {"usage": np.full(size, 1 / size, np.float32)} for name in levels}
    return _with_quantizer(variables, params, usage)


def add_levels(variables: dict, codec: AUV, seed: int = 0) -> dict:
    """A codec's variables with fresh residual levels, up to the `levels` of `codec`.

    A fresh level's output is scaled by zero, so the codec sounds as it did until it learns; none of
    its codes counts as used, so the first revival (step 0) places all of them on the data.
    """
    latent = jnp.zeros((1, 1, codec.width), jnp.float32)
    params = dict(variables["params"]["quantizer"])
    counted = dict(variables["batch_stats"]["quantizer"])
    for q in range(len(params), codec.levels):
        level = FactorisedLevel(
            codec.width, codec.codebook_size, codec.code_dim, codec.search_chunk
        )
        key = jax.random.fold_in(jax.random.key(seed), q)
        fresh = level.init(key, latent, jnp.ones((1, 1), bool), None, False)
        fresh = jax.device_get(fresh["params"])
        silent = {**fresh["out_proj"], "scale": np.zeros_like(fresh["out_proj"]["scale"])}
        params[f"level_{q}"] = {**fresh, "out_proj": silent}
        counted[f"level_{q}"] = {"usage": np.zeros(codec.codebook_size, np.float32)}
    return _with_quantizer(variables, params, counted)


def _with_quantizer(variables: dict, params: dict, counted: dict) -> dict:
    """The variables with another quantiser's parameters and statistics."""
    return {
        **variables,
        "params": {**variables["params"], "quantizer": params},
        "batch_stats": {**variables["batch_stats"], "quantizer": counted},
    }
