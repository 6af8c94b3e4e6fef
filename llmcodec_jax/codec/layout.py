"""Published layouts: which foreign tensor is which of our parameters, both ways, every bit kept.

A family describes the layout it was published in as one table of `Tensor` rows, made from its
module; import, export and the architecture check all walk that table.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from llmcodec_jax.errors import UserError


class LayoutError(UserError, ValueError):
    """Tensors that are not this architecture; the message names the first that differ."""


Shape = tuple[int, ...]


def _same(x: np.ndarray, shape: Shape) -> np.ndarray:
    return x


def _reverse_axes(x: np.ndarray, shape: Shape) -> np.ndarray:
    return np.transpose(x)


def _reshape(x: np.ndarray, shape: Shape) -> np.ndarray:
    return x.reshape(shape)


def _to_frames(x: np.ndarray, shape: Shape) -> np.ndarray:
    into, out, taps = x.shape
    frames = x.reshape(into, out, 2, taps // 2)[:, :, ::-1]
    return frames.transpose(2, 0, 3, 1).reshape(2, into, taps // 2 * out)


def _from_frames(x: np.ndarray, shape: Shape) -> np.ndarray:
    into, out, taps = shape
    frames = x.reshape(2, into, taps // 2, out).transpose(1, 3, 0, 2)
    return frames[:, :, ::-1].reshape(shape)


# kind -> (published array to ours, ours to published); each is also told the published shape
KINDS: dict[str, tuple[Callable, Callable]] = {
    "same": (_same, _same),
    "flat": (lambda x, shape: x.reshape(-1), _reshape),  # [n], whatever axes of one are around it
    "linear": (_reverse_axes, _reverse_axes),  # [out, in] <-> [in, out]
    "conv": (_reverse_axes, _reverse_axes),  # [out, in, taps] <-> [taps, in, out]
    # A transposed convolution's [in, out, taps] <-> [taps, in, out], taps in their own order.
    "conv_transposed": (
        lambda x, shape: x.transpose(2, 0, 1),
        lambda x, shape: x.transpose(1, 2, 0),
    ),
    # The same where taps are two strides: [in, out, 2 * stride] <-> [2, in, stride * out], the
    # older frame first (`conv.layers.ConvTranspose1d`).
    "conv_frames": (_to_frames, _from_frames),
    "pointwise": (lambda x, shape: x[:, :, 0].T, lambda x, shape: x.T[:, :, None]),  # [out, in, 1]
    "depthwise": (lambda x, shape: x[:, 0].T, lambda x, shape: x.T[:, None]),  # [D, 1, taps]
    "count": (lambda x, shape: x.astype(np.int32), lambda x, shape: x.astype(np.int64)),
}


@dataclasses.dataclass(frozen=True)
class Tensor:
    """One published tensor: its name and shape there, its path, form and layer here."""

    name: str
    shape: tuple[int, ...]
    path: tuple[str, ...]  # ("params", ..., leaf) or ("batch_stats", ...); () for a constant
    kind: str = "same"  # one of KINDS
    layer: int | None = None  # index on the leading axis of a parameter stacked over layers
    constant: Callable[[], np.ndarray] | None = None  # a buffer that is computed, never stored


def affine(name: str, path: tuple[str, ...], width: int) -> list[Tensor]:
    """A norm's weight and bias, here `scale` and `bias`."""
    return [
        Tensor(f"{name}.weight", (width,), (*path, "scale")),
        Tensor(f"{name}.bias", (width,), (*path, "bias")),
    ]


def linear(
    name: str, path: tuple[str, ...], out: int, into: int, bias: bool = True
) -> list[Tensor]:
    """A linear map's weight [out, in] and bias, here `kernel` [in, out] and `bias`."""
    tensors = [Tensor(f"{name}.weight", (out, into), (*path, "kernel"), "linear")]
    return tensors + [Tensor(f"{name}.bias", (out,), (*path, "bias"))] * bias


def conv(name: str, path: tuple[str, ...], out: int, into: int, taps: int) -> list[Tensor]:
    """A convolution's weight [out, into, taps] and bias, here `kernel` and `bias`."""
    return [
        Tensor(f"{name}.weight", (out, into, taps), (*path, "kernel"), "conv"),
        Tensor(f"{name}.bias", (out,), (*path, "bias")),
    ]


def modern_names(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Older exports write weight norm as `weight_g`, `weight_v`; the names of newer ones."""
    renamed = {}
    for name, value in tensors.items():
        name = re.sub(r"\.weight_g$", ".parametrizations.weight.original0", name)
        renamed[re.sub(r"\.weight_v$", ".parametrizations.weight.original1", name)] = value
    return renamed


def older_names(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `modern_names`, for codes that were published with the older ones."""
    renamed = {}
    for name, value in tensors.items():
        name = name.replace(".parametrizations.weight.original0", ".weight_g")
        renamed[name.replace(".parametrizations.weight.original1", ".weight_v")] = value
    return renamed


def shapes_of(tensors: Mapping[str, np.ndarray]) -> dict[str, tuple[int, ...]]:
    """name -> shape."""
    return {name: tuple(np.shape(value)) for name, value in tensors.items()}


def check_layout(table: Sequence[Tensor], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raises LayoutError naming the first tensors that differ from the table."""
    check_shapes({tensor.name: tensor.shape for tensor in table}, shapes)


def check_shapes(
    expected: Mapping[str, tuple[int, ...]],
    shapes: Mapping[str, tuple[int, ...]],
    source: str = "",
) -> None:
    """Raises LayoutError naming the first missing, misshapen and foreign tensors."""
    problems = []
    for name, shape in expected.items():
        if name not in shapes:
            problems.append(f"{name}: missing")
        elif tuple(shapes[name]) != tuple(shape):
            problems.append(f"{name}: {tuple(shapes[name])} instead of {tuple(shape)}")
    extra = [name for name in shapes if name not in expected]
    problems += [f"{name}: not part of this architecture" for name in extra]
    if problems:
        more = f"\n  ... and {len(problems) - 5} more" * (len(problems) > 5)
        listed = "\n  ".join(problems[:5])
        where = f"{source}: " if source else ""
        raise LayoutError(f"{where}not the expected architecture:\n  {listed}{more}")


def to_variables(table: Sequence[Tensor], tensors: Mapping[str, np.ndarray]) -> dict:
    """Published names -> {"params", ...} of numpy arrays, float32. Raises LayoutError."""
    tensors = modern_names(tensors)
    check_layout(table, shapes_of(tensors))
    flat: dict[tuple[str, ...], Any] = {}
    for tensor in table:
        value = np.asarray(tensors[tensor.name])
        if tensor.constant is not None:
            if not np.abs(value.astype(np.float32) - tensor.constant()).max() < 1e-5:
                raise LayoutError(f"{tensor.name} does not hold what is computed here")
            continue
        value = value.astype(np.int64 if tensor.kind == "count" else np.float32)
        ours = KINDS[tensor.kind][0](value, tensor.shape)
        if tensor.layer is None:
            flat[tensor.path] = np.array(ours)
        else:
            flat.setdefault(tensor.path, []).append(ours)
    return unflatten_dict({p: np.stack(v) if isinstance(v, list) else v for p, v in flat.items()})


def to_state_dict(table: Sequence[Tensor], variables: Mapping) -> dict[str, np.ndarray]:
    """{"params", ...} -> published names in the published order; a pure copy."""
    flat = flatten_dict(jax.device_get(dict(variables)))
    result = {}
    for tensor in table:
        if tensor.constant is not None:
            result[tensor.name] = tensor.constant()
            continue
        value = np.asarray(flat[tensor.path])
        value = value if tensor.layer is None else value[tensor.layer]
        published = KINDS[tensor.kind][1](value, tensor.shape)
        result[tensor.name] = np.array(published, order="C")
    return result
