"""The one door from a CODEC string to (module, variables), and back onto disk.

A codec folder is `codec.json` (architecture and every field of the module) and
`codec.safetensors` (every tensor under its Flax path). Training writes one into its run; `convert`
writes one from a published checkpoint. Published layouts are for import and export alone.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
from flax.traverse_util import flatten_dict, unflatten_dict

from llmcodec_jax import types
from llmcodec_jax.codec import hub, layout, registry, torch_file
from llmcodec_jax.codec.layout import LayoutError
from llmcodec_jax.ops import files

CONFIG_NAME, WEIGHTS_NAME = "codec.json", "codec.safetensors"
HF_CONFIG_NAME, HF_WEIGHTS_NAMES = "config.json", ("model.safetensors", "pytorch_model.bin")
SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")
SHIPPED = {name: Path(__file__).parents[1] / name for name in ("mini", "mini-0.1")}
"""Codecs that come with the package, by name; each folder holds its model card."""
FORMAT = 1
"""Of codec.json. 1: tensors by Flax path; a file without it holds published names."""
MAX_CONFIG = 1 << 20  # bytes of a codec.json or config.json
TALLIES = ("usage", "cluster_size", "embed_sum")  # leaves that training keeps and nothing reads
NOT_MATRICES = ("bias", "scale", "alpha", "beta", "gamma")  # leaves that bfloat16 files keep whole


class Source(NamedTuple):
    """Where a codec's tensors are, and what stands beside them."""

    weights: Path
    config: dict  # of `codec.json`, a sidecar or a Hugging Face `config.json`; {} without
    ours: bool  # whether `config` holds fields of one of our modules


def load(codec: str | Path, expect: types.Codec | None = None) -> tuple[types.Codec, dict]:
    """Any CODEC -> (module, {"params", ...} of numpy arrays).

    `codec`: a run folder, a codec folder, a `.safetensors` or `.pt` file, a Hugging Face model
    folder, `hf:OWNER/NAME[@REVISION][/FILE]`, or a shipped name (a path of that name wins). With
    `expect` the parameters must be that module's (LayoutError names those that differ) and that
    module is returned; otherwise the architecture is the file's.

    Raises FileNotFoundError, LayoutError, `torch_file.TorchFileError` or `hub.HubError`, each
    naming the file and what is wrong with it.
    """
    source = locate(codec)
    tensors, embedded = read_tensors(source.weights)
    if embedded is not None and not source.config:
        source = source._replace(config=embedded, ours=True)
    module, variables = _build(source, tensors)
    check_finite(variables, source.weights)
    if expect is not None:
        if type(expect) is not type(module):
            raise LayoutError(
                f"{source.weights}: a codec of architecture {registry.family_of(module).name}, "
                f"not {registry.family_of(expect).name}"
            )
        check_variables(expect, variables, source.weights)
        rate = source.config.get("sample_rate", expect.sample_rate) if source.ours else None
        if rate is not None and rate != expect.sample_rate:
            raise LayoutError(
                f"{source.weights}: a codec of {rate} Hz, not {expect.sample_rate} Hz"
            )
        module = expect
    return module, variables


def short_name(codec: str | Path) -> str:
    """What a CODEC is called for short: its file or folder without the path, or OWNER/NAME."""
    text = str(codec)
    return text.removeprefix(hub.PREFIX) if text.startswith(hub.PREFIX) else Path(text).name


def locate(codec: str | Path) -> Source:
    """CODEC -> its weights and their description. Raises FileNotFoundError."""
    text, path = str(codec), Path(codec)
    if text.startswith(hub.PREFIX):
        path = hub.fetch(text)
    elif not path.exists() and text in SHIPPED:
        path = SHIPPED[text]
    if path.is_file():
        sidecar = path.with_suffix(".json")
        beside = sidecar.is_file() and sidecar != path
        return Source(path, read_config(sidecar) if beside else {}, ours=True)
    for folder in (path / "codec", path):
        if (folder / CONFIG_NAME).is_file():
            return Source(folder / WEIGHTS_NAME, read_config(folder / CONFIG_NAME), ours=True)
    if (path / HF_CONFIG_NAME).is_file():
        for name in HF_WEIGHTS_NAMES:
            if (path / name).is_file():
                return Source(path / name, read_config(path / HF_CONFIG_NAME), ours=False)
    if path.is_dir():
        return _only_weights(path)
    raise FileNotFoundError(
        f"{codec}: no such codec; give {', '.join(SHIPPED)}, a run or codec folder, a .safetensors "
        "or .pt file, a Hugging Face model folder, or hf:OWNER/NAME"
    )


def _only_weights(folder: Path) -> Source:
    found = sorted(p for p in folder.iterdir() if p.suffix in SUFFIXES and p.is_file())
    if len(found) == 1:
        return Source(found[0], {}, ours=True)
    names = f" but {', '.join(p.name for p in found[:5])}: name one of them" if found else ""
    raise FileNotFoundError(
        f"{folder}: no {CONFIG_NAME} here or in its codec/ folder, and no {HF_CONFIG_NAME} with "
        f"{HF_WEIGHTS_NAMES[0]}{names}"
    )


def read_config(path: Path) -> dict[str, Any]:
    """A JSON object from a file. Raises LayoutError naming the file."""
    try:
        with open(path, "rb") as file:
            text = file.read(MAX_CONFIG + 1)
        if len(text) > MAX_CONFIG:
            raise LayoutError(f"{path}: more than {MAX_CONFIG} bytes, no description of a codec")
        return _object(json.loads(text), str(path))
    except (ValueError, RecursionError) as error:
        if isinstance(error, LayoutError):
            raise
        raise LayoutError(f"{path}: not readable as JSON ({error})") from error


def _object(value: Any, source: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise LayoutError(f"{source}: holds a {type(value).__name__}, not the fields of a codec")
    return value


def read_tensors(path: Path) -> tuple[dict[str, np.ndarray], dict | None]:
    """.pt or .safetensors -> (name -> array, codec fields if the file carries them).

    Raises LayoutError or TorchFileError naming the file, FileNotFoundError where it is missing.
    """
    if path.suffix != ".safetensors":
        return torch_file.read_state_dict(path), None
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        embedded = json.loads(metadata["codec"]) if "codec" in metadata else None
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path}: no such file") from error
    except (safetensors.SafetensorError, OSError, ValueError, TypeError, KeyError) as error:
        raise LayoutError(
            f"{path}: not a readable safetensors file ({error}); fetch it again"
        ) from error
    return tensors, None if embedded is None else _object(embedded, str(path))


def _build(source: Source, tensors: Mapping[str, np.ndarray]) -> tuple[types.Codec, dict]:
    """Tensors and their description -> (module, variables). Raises LayoutError."""
    config, where = dict(source.config), str(source.weights)
    version = config.pop("format", None) if source.ours else None
    if version not in (None, FORMAT):
        raise LayoutError(
            f"{where}: codec format {version!r}; this version reads up to {FORMAT}, update it"
        )
    try:
        family = _family(config, tensors, source)
        if source.ours:
            config = registry.check_fields(family.module, config)
        if version is None:
            return _imported(family, tensors, config)
        module = family.module(**config)
        variables = unflatten_dict({tuple(name.split("/")): tensors[name] for name in tensors})
        shipped = source.weights.parent in SHIPPED.values()
        if not shipped:  # those are tested, and tracing a module takes a second
            check_variables(module, variables)
    except registry.FieldError as error:
        beside = source.weights.with_name(CONFIG_NAME)
        raise LayoutError(f"{beside if beside.is_file() else where}: {error}") from error
    except LayoutError as error:
        raise LayoutError(f"{where}: {error}") from error
    return module, jax.tree.map(_widened, variables)


def _imported(family: registry.Family, tensors, config) -> tuple[types.Codec, dict]:
    try:
        return family.from_published(tensors, config)
    except KeyError as error:
        raise LayoutError(f"its description lacks the field {error}") from error


def _family(config: dict, tensors: Mapping[str, np.ndarray], source: Source) -> registry.Family:
    """The family that a codec.json names, or whose published layout the tensors have."""
    named = config.pop("architecture", None) if source.ours else None
    if named is not None:
        return registry.family(named)
    if source.weights.name == WEIGHTS_NAME:  # codec folders were AUV's before they said so
        return registry.family("auv")
    shapes = layout.shapes_of(layout.modern_names(tensors))
    for family in registry.FAMILIES.values():
        if family.recognises(shapes, config):
            return family
    first, known = ", ".join(list(shapes)[:3]), ", ".join(registry.FAMILIES)
    raise LayoutError(f"tensors of no known codec ({known}); it begins with {first}")


def _widened(value: np.ndarray) -> np.ndarray:
    return value.astype(np.float32) if value.dtype == jnp.bfloat16 else value


def check_finite(variables: Mapping, source: Path) -> None:
    """Raises LayoutError naming the first tensor that holds NaN or infinite values."""
    for path, value in flatten_dict(dict(variables)).items():
        if np.issubdtype(value.dtype, np.floating) and not np.isfinite(value).all():
            raise LayoutError(f"{source}: {'/'.join(path)} holds NaN or infinite values")


def check_variables(module: types.Codec, variables: Mapping, source: Path | str = "") -> None:
    """Raises LayoutError where variables are not the module's own, naming the first."""
    found = {"/".join(path): np.shape(x) for path, x in flatten_dict(dict(variables)).items()}
    layout.check_shapes(variable_shapes(module), found, str(source))


def variable_shapes(module: types.Codec) -> dict[str, tuple[int, ...]]:
    """Path ("params/...") -> shape of everything the module carries; nothing is computed.

    Raises LayoutError for fields that make no codec.
    """
    wav = jax.ShapeDtypeStruct((1, 8 * module.hop), jnp.float32)
    key = jax.random.key(0)
    try:
        abstract = jax.eval_shape(lambda x: module.init(key, x, method="reconstruct"), wav)
    except (ValueError, TypeError, ZeroDivisionError, IndexError) as error:
        raise LayoutError(f"its fields describe no codec ({error})") from error
    shapes = {"/".join(path): leaf.shape for path, leaf in flatten_dict(dict(abstract)).items()}
    return dict(sorted(shapes.items(), key=lambda item: not item[0].startswith("params/")))


def digest(module: types.Codec, variables: Mapping) -> str:
    """Which codec made a code: 16 hexadecimal digits of architecture, parameters and statistics.

    Running counts of the codes change nothing that is computed, and are left out.
    """
    hasher = hashlib.sha256(registry.family_of(module).name.encode())
    for path, leaf in sorted(flatten_dict(dict(variables)).items()):
        if path[-1] not in TALLIES:
            value = np.ascontiguousarray(jax.device_get(leaf))
            hasher.update(f"{'/'.join(path)} {value.shape} {value.dtype}".encode())
            hasher.update(value.data)
    return hasher.hexdigest()[:16]


def describe(module: types.Codec) -> dict[str, Any]:
    """What a codec says of itself: the architecture's name and every field of the module."""
    return {"architecture": registry.family_of(module).name, **registry.to_fields(module)}


def save_codec_folder(
    path: str | Path, codec: types.Codec, variables: Mapping, dtype: str = "float32"
) -> None:
    """Writes `codec.json` and `codec.safetensors` into the folder `path`, each atomically.

    `dtype` "bfloat16" halves the file: weight matrices are rounded, while codebooks, biases,
    norms and running statistics, which are small, keep float32.
    """
    flat = flatten_dict(jax.device_get(dict(variables)))
    tensors = {"/".join(path): np.asarray(value, order="C") for path, value in flat.items()}
    for name, value in tensors.items():
        small = value.ndim < 2 or "codebook" in name or name.rsplit("/")[-1] in NOT_MATRICES
        if name.startswith("params/") and not small:
            tensors[name] = value.astype(jnp.dtype(dtype))
    description = {"format": FORMAT, **describe(codec)}
    _write_safetensors(Path(path) / WEIGHTS_NAME, tensors, description)
    with files.replacing(Path(path) / CONFIG_NAME) as partial:
        partial.write_text(json.dumps(description, indent=2) + "\n", "utf-8")


def save_safetensors(path: str | Path, codec: types.Codec, variables: Mapping) -> None:
    """Writes one `.safetensors` of published names that carries the codec's fields with it."""
    _write_safetensors(Path(path), _published(codec, variables), describe(codec))


def save_torch(path: str | Path, codec: types.Codec, variables: Mapping) -> None:
    """Writes a `.pt` in the published layout, which `torch.load(weights_only=True)` opens."""
    torch_file.write_state_dict(path, _published(codec, variables))


def _published(codec: types.Codec, variables: Mapping) -> dict[str, np.ndarray]:
    return registry.family_of(codec).to_published(codec, jax.device_get(dict(variables)))


def _write_safetensors(path: Path, tensors: dict[str, np.ndarray], description: dict) -> None:
    metadata = {"format": "np", "codec": json.dumps(description)}
    with files.replacing(path) as partial:
        partial.write_bytes(safetensors.numpy.save(tensors, metadata))
