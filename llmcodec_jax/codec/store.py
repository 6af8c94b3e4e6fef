"""The door between a CODEC on disk and (module, variables): shipped, run, folder or single file.

A codec folder is `codec.json` (every field of the module) and `codec.safetensors`. Training
writes one into its run; `convert` writes one from a published checkpoint.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
from flax.traverse_util import flatten_dict

from llmcodec_jax.codec import layout, registry, torch_file
from llmcodec_jax.codec.layout import LayoutError

CONFIG_NAME, WEIGHTS_NAME = "codec.json", "codec.safetensors"
SHIPPED = {"mini": Path(__file__).parents[1] / "mini"}
"""Codecs that come with the package, by name; each folder holds its model card."""


def load(path: str | Path, expect: nn.Module | None = None) -> tuple[nn.Module, dict]:
    """Any CODEC path -> (module, {"params", ...} of numpy arrays).

    `path`: "mini" (shipped), a run folder, a converted folder, a `.safetensors` export or a
    published `.pt`. With `expect` the parameters must be that module's (LayoutError names those
    that differ) and that module is returned; otherwise the architecture is the file's.
    """
    weights, fields = find_weights(path)
    tensors, embedded = read_tensors(weights)
    config = dict(fields or embedded or {})
    shapes = layout.shapes_of(layout.modern_names(tensors))
    named = config.pop("architecture", None)
    family = registry.family(named) if named else recognise(shapes, config, str(weights))
    config = registry.check_fields(family.module, config, str(weights))
    try:
        module, variables = family.from_published(tensors, config)
    except LayoutError as error:
        raise LayoutError(f"{weights}: {error}") from error
    if expect is not None:
        check_variables(expect, variables, str(weights))
    return module if expect is None else expect, variables


def recognise(shapes: registry.Shapes, config: registry.Config, source: str) -> registry.Family:
    """The family whose published layout these tensors have. Raises LayoutError."""
    for family in registry.FAMILIES.values():
        if family.recognises(shapes, config):
            return family
    first = ", ".join(list(shapes)[:3])
    raise LayoutError(
        f"{source}: tensors of no known codec ({', '.join(registry.FAMILIES)}); it holds {first}"
    )


def check_variables(module: nn.Module, variables: Mapping, source: str) -> None:
    """Raises LayoutError where variables are not the module's own, naming the first."""
    found = {"/".join(path): np.shape(x) for path, x in flatten_dict(dict(variables)).items()}
    layout.check_shapes(variable_shapes(module), found, source)


def variable_shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    """Path ("params/...") -> shape of everything the module carries; nothing is computed."""
    wav = jax.ShapeDtypeStruct((1, 8 * module.hop), jnp.float32)
    key = jax.random.key(0)
    abstract = jax.eval_shape(lambda x: module.init(key, x, method="reconstruct"), wav)
    shapes = {"/".join(path): leaf.shape for path, leaf in flatten_dict(dict(abstract)).items()}
    return dict(sorted(shapes.items(), key=lambda item: not item[0].startswith("params/")))


def read_tensors(path: str | Path) -> tuple[dict[str, np.ndarray], dict | None]:
    """.pt or .safetensors -> (published names -> arrays, codec fields if the file carries them).

    A training checkpoint's state dict under the key `auv` is found by itself.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        return torch_file.read_state_dict(path, key="auv"), None
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (safetensors.SafetensorError, OSError) as error:
        raise LayoutError(f"{path}: not a readable safetensors file ({error})") from error
    return tensors, json.loads(metadata["codec"]) if "codec" in metadata else None


def find_weights(path: str | Path) -> tuple[Path, dict | None]:
    """CODEC -> (weight file, fields its codec.json or sidecar gives). Raises FileNotFoundError."""
    path = SHIPPED.get(str(path), Path(path))
    if path.is_file():
        sidecar = path.with_suffix(".json")
        return path, json.loads(sidecar.read_text()) if sidecar.is_file() else None
    for folder in (path / "codec", path):
        if (folder / CONFIG_NAME).is_file():
            return folder / WEIGHTS_NAME, json.loads((folder / CONFIG_NAME).read_text())
    if path.is_dir():
        raise FileNotFoundError(f"{path}: no {CONFIG_NAME} here or in its codec/ folder")
    raise FileNotFoundError(
        f"{path}: no such codec (mini, a run, a converted folder, .safetensors, .pt)"
    )


def describe(module: nn.Module) -> dict:
    """What a codec.json says: the architecture's name and every field of the module."""
    return {"architecture": registry.family_of(module).name, **registry.to_fields(module)}


def save_codec_folder(
    path: str | Path, codec: nn.Module, variables: Mapping, dtype: str = "float32"
) -> None:
    """Writes `codec.json` and `codec.safetensors` into the folder `path`, each atomically."""
    path = Path(path)
    path.mkdir(parents=True, exist_ok=True)
    save_safetensors(path / WEIGHTS_NAME, codec, variables, dtype)
    text = json.dumps(describe(codec), indent=2) + "\n"
    _replace(path / CONFIG_NAME, text.encode())


def save_safetensors(
    path: str | Path, codec: nn.Module, variables: Mapping, dtype: str = "float32"
) -> None:
    """Writes one `.safetensors` of published names that carries the codec's fields with it.

    `dtype` "bfloat16" halves the file: weight matrices are rounded, while codebooks, biases,
    norms and running statistics, which are small, keep float32.
    """
    metadata = {"format": "np", "codec": json.dumps(describe(codec))}
    tensors = registry.family_of(codec).to_published(codec, variables)
    for name, value in tensors.items():
        if value.ndim > 1 and "codebook" not in name:
            tensors[name] = value.astype(jnp.dtype(dtype))
    _replace(Path(path), safetensors.numpy.save(tensors, metadata))


def save_torch(path: str | Path, codec: nn.Module, variables: Mapping) -> None:
    """Writes a `.pt` in the published layout, which `torch.load(weights_only=True)` opens."""
    torch_file.write_state_dict(path, registry.family_of(codec).to_published(codec, variables))


def _replace(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        partial.write_bytes(data)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
