"""Dataclasses as configs: their fields are the options, their defaults the only defaults.

A section of a config is a mapping of a dataclass's (or Flax module's) field names. `defaults`
writes it, `build` reads it back, naming the nearest field where a name is unknown.
"""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from llmcodec_jax.errors import UsageError

T = TypeVar("T")


def changeable(default: Any = dataclasses.MISSING) -> Any:
    """A field (or a whole section) that a run may change when it resumes."""
    return _marked(default, "changeable")


def fixed(default: Any = dataclasses.MISSING) -> Any:
    """A field that shapes the state or the order of the data, in a section that may change."""
    return _marked(default, "fixed")


def _marked(default: Any, mark: str) -> Any:
    metadata = {"resume": mark}
    if isinstance(default, type):  # a section: a fresh instance of its dataclass
        return dataclasses.field(default_factory=default, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def options(cls: Any) -> dict[str, dataclasses.Field]:
    """The fields that are options: all but those that Flax adds to a module."""
    of_flax = ("parent", "name") if hasattr(cls, "apply") else ()
    return {f.name: f for f in dataclasses.fields(cls) if f.name not in of_flax}


def defaults(cls: Any) -> dict[str, Any]:
    """{field: default} of a dataclass, sections as nested dicts; required fields are left out."""
    found: dict[str, Any] = {}
    for name, field in options(cls).items():
        if field.default is not dataclasses.MISSING:
            found[name] = field.default
        elif field.default_factory is not dataclasses.MISSING:
            value = field.default_factory()
            found[name] = defaults(type(value)) if dataclasses.is_dataclass(value) else value
    return found


def build(cls: type[T], values: Mapping[str, Any], where: str, **given: Any) -> T:
    """A dataclass from a section of a config; `where` names it in errors ("lm.config").

    Sections become their own dataclasses and lists tuples; `given` are fields that no section
    states. Raises UsageError for unknown, missing or impossible fields.
    """
    known = {name: f for name, f in options(cls).items() if name not in given}
    check_names(values, known, where)
    hints = typing.get_type_hints(cls)
    read = {
        name: _read(hints.get(name), value, f"{where}.{name}".lstrip("."))
        for name, value in values.items()
    }
    try:
        return cls(**read, **given)
    except TypeError as error:  # a required field is missing
        raise UsageError(f"config.{where}: {error}") from error


def _read(hint: Any, value: Any, where: str) -> Any:
    """One value as its field's type has it."""
    section = next((c for c in _choices(hint) if dataclasses.is_dataclass(c)), None)
    if isinstance(value, Mapping):
        if section is not None:
            return build(section, value, where) if value else None
        return {name: _read(None, item, f"{where}.{name}") for name, item in value.items()}
    if isinstance(value, list | tuple):
        return tuple(_read(None, item, where) for item in value)
    return value


def _choices(hint: Any) -> tuple:
    """The types of a union, or the type itself."""
    is_union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    return typing.get_args(hint) if is_union else (hint,)


def check_names(given: Iterable[str], known: Iterable[str], where: str) -> None:
    """Raises UsageError for the first name that is not known, with the nearest that is."""
    known = list(known)
    for name in given:
        if name not in known:
            raise UsageError(unknown(name, known, where))


def unknown(name: str, known: Iterable[str], where: str) -> str:
    """ "config.lm.horizon is unknown; the nearest is horizons"."""
    known = sorted(known)
    nearest = difflib.get_close_matches(name, known, 1, 0.5)
    advice = f"the nearest is {nearest[0]}" if nearest else f"known are {', '.join(known)}"
    return f"{'.'.join(filter(None, ('config', where, name)))} is unknown; {advice}"


def may_change(config: Any, path: str, allowed: bool = False) -> bool:
    """Whether the option "a.b.c" of a config may differ when a run resumes; unknown ones may.

    The mark nearest to the option decides: its own, else that of the section it stands in, else
    `allowed`.
    """
    for name in path.split("."):
        if isinstance(config, Mapping):
            config = config.get(name)
            continue
        if not dataclasses.is_dataclass(config):
            break  # the option ends here: its mark holds
        field = options(type(config)).get(name)
        if field is None:
            return True
        mark = field.metadata.get("resume")
        allowed = allowed if mark is None else mark == "changeable"
        config = getattr(config, name)
    return allowed
