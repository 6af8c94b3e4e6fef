"""Every codec architecture by name: the one place that a new family is entered."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from llmcodec_jax.codec import layout
from llmcodec_jax.codec.auv import published as auv
from llmcodec_jax.codec.auv.model import AUV
from llmcodec_jax.codec.conv import (
    bigcodec,
    dac,
    encodec,
    mimi,
    speechtokenizer,
    unicodec,
    wavtokenizer,
)
from llmcodec_jax.errors import UsageError
from llmcodec_jax.ops.fields import options
from llmcodec_jax.types import Codec

Shapes = Mapping[str, tuple[int, ...]]
Config = Mapping[str, Any]


LARGEST = {"levels": 64, "layers": 1024}
"""Bounds of fields that end so: a description must not decide how long its reading takes."""


class FieldError(UsageError):
    """A description that names an unknown architecture or field, or gives one a wrong value."""


@dataclasses.dataclass(frozen=True)
class Family:
    """One architecture: its module, and the published layout it is imported from and exported to.

    `config` is what stands beside published tensors: a Hugging Face `config.json`, or fields of
    the module that their shapes cannot tell; it may be empty.
    """

    name: str  # `codec.name` of a config, "architecture" of a codec.json
    module: type[Codec]  # satisfies `types.Codec`; a dataclass of plain fields
    recognises: Callable[[Shapes, Config], bool]
    # (tensors, config) -> (module, {"params", ...} of numpy arrays); raises layout.LayoutError
    from_published: Callable[[Mapping[str, np.ndarray], Config], tuple[Codec, dict]]
    to_published: Callable[[Any, Mapping], dict[str, np.ndarray]]
    # Every tensor of the published layout, where one list says so: what sizes are counted from.
    tensor_table: Callable[[Any], list[layout.Tensor]] | None = None


def _entry(name: str, module: Any, published: types.ModuleType) -> Family:
    """A family whose published layout is three functions of one file."""
    return Family(
        name,
        module,
        published.recognises,
        published.from_published,
        published.to_published,
        published.tensor_table,
    )


FAMILIES = {
    family.name: family
    for family in (
        _entry("auv", AUV, auv),
        _entry("bigcodec", bigcodec.BigCodec, bigcodec),
        _entry("dac", dac.DAC, dac),
        _entry("encodec", encodec.EnCodec, encodec),
        _entry("mimi", mimi.Mimi, mimi),
        _entry("speechtokenizer", speechtokenizer.SpeechTokenizer, speechtokenizer),
        _entry("unicodec", unicodec.UniCodec, unicodec),
        _entry("wavtokenizer", wavtokenizer.WavTokenizer, wavtokenizer),
    )
}  # fmt: skip


def family(name: str) -> Family:
    """The family of this name. Raises FieldError listing those there are."""
    if not isinstance(name, str) or name not in FAMILIES:
        raise FieldError(f"no codec architecture {name!r}; there are {', '.join(FAMILIES)}")
    return FAMILIES[name]


def family_of(module: Codec) -> Family:
    """The family a module belongs to. Raises ValueError for a class that is not registered."""
    for found in FAMILIES.values():
        if type(module) is found.module:
            return found
    raise ValueError(f"{type(module).__name__} is no registered codec architecture")


def to_fields(module: Codec) -> dict[str, Any]:
    """The module's fields as plain JSON values."""
    fields = {name: getattr(module, name) for name in _hints(type(module))}
    return {**fields, "dtype": jnp.dtype(fields["dtype"]).name}


def check_fields(cls: type[Codec], fields: Mapping[str, Any]) -> dict[str, Any]:
    """JSON values -> values of the module's fields. Raises FieldError naming the field."""
    hints = _hints(cls)
    unknown = sorted(set(fields) - set(hints))
    if unknown:
        raise FieldError(f"a codec has no fields {', '.join(unknown)}")
    checked = {}
    for name, value in fields.items():
        checked[name] = _tuples(value)
        largest = next((most for end, most in LARGEST.items() if name.endswith(end)), None)
        if not _fits(checked[name], hints[name]):
            wanted = getattr(hints[name], "__name__", str(hints[name]))
            raise FieldError(f"{name} is {value!r}, not a valid {wanted}")
        if largest is not None and isinstance(value, int) and value > largest:
            raise FieldError(f"{name} is {value}, more than {largest}")
    return checked


def from_fields(cls: type[Codec], fields: Mapping[str, Any]) -> Codec:
    """The module that `to_fields` described. Raises FieldError naming the field."""
    return cls(**check_fields(cls, fields))


def _hints(cls: type[Codec]) -> dict[str, Any]:
    own = options(cls).keys()
    return {name: hint for name, hint in typing.get_type_hints(cls).items() if name in own}


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list | tuple) else value


def _fits(value: Any, hint: Any) -> bool:
    """Whether a plain value is of the annotated type; sizes are neither negative nor absurd."""
    origin = typing.get_origin(hint)
    if hint is Any:
        return isinstance(value, str | int | float | bool | None)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, option) for option in typing.get_args(hint))
    if origin is tuple:
        arguments = typing.get_args(hint)
        if not isinstance(value, tuple):
            return False
        if len(arguments) == 2 and arguments[1] is Ellipsis:
            return all(_fits(item, arguments[0]) for item in value)
        return len(value) == len(arguments) and all(map(_fits, value, arguments))
    if hint is int:
        return type(value) is int and 0 <= value < 1 << 24
    if hint is float:
        return type(value) in (int, float) and np.isfinite(value)
    return isinstance(value, hint)
