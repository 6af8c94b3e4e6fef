"""The pickles inside PyTorch's checkpoint files, read without running them.

Such a pickle describes nested containers of tensors. Only the few opcodes such a description needs
are interpreted; nothing it names is ever imported or called, so a hostile one can at worst be
refused.
"""

from __future__ import annotations

import dataclasses
import pickletools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

from llmcodec_jax.errors import UserError

DTYPES = {
    "FloatStorage": np.dtype(np.float32),
    "DoubleStorage": np.dtype(np.float64),
    "HalfStorage": np.dtype(np.float16),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "LongStorage": np.dtype(np.int64),
    "IntStorage": np.dtype(np.int32),
    "ShortStorage": np.dtype(np.int16),
    "CharStorage": np.dtype(np.int8),
    "ByteStorage": np.dtype(np.uint8),
    "BoolStorage": np.dtype(np.bool_),
}
MAX_OBJECTS = 1 << 21  # that a description may build, however small it is
MAX_AXES = 16  # of a tensor


class TorchFileError(UserError, ValueError):
    """A `.pt` file that cannot be read; the message names the file, the reason and the fix."""


@dataclasses.dataclass(frozen=True)
class _Name:
    """A global the description refers to; never resolved to a Python object."""

    path: str


@dataclasses.dataclass(frozen=True)
class Storage:
    dtype: np.dtype
    key: str
    count: int


@dataclasses.dataclass(frozen=True)
class TensorRef:
    """A tensor's place in the archive; `TensorFile.tensor` reads it."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


class _RefusedError(ValueError):
    """The description asks for something that is not a container of tensors."""


_MARK = object()
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_LITERALS = {
    *("BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT", "BINUNICODE"),
    *("SHORT_BINUNICODE", "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
    *("BINSTRING", "SHORT_BINSTRING"),
}
_EMPTY = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class _Machine:
    """Interprets a pickle of containers and tensors; any other opcode or name is refused."""

    def __init__(self):
        self.stack: list = []
        self.memo: dict[int, Any] = {}
        self.built = 0
        self.storages: dict[str, Storage] = {}

    def charge(self, objects: int) -> None:
        """Counts what is built: copies of copies grow without bound from a few bytes."""
        self.built += objects
        if self.built > MAX_OBJECTS:
            raise _RefusedError(f"it builds more than {MAX_OBJECTS} objects")

    def run(self, stream: BinaryIO) -> Any:
        for opcode, argument, _ in pickletools.genops(stream):
            self.charge(1)
            if opcode.name == "STOP":
                return self.stack.pop()
            self.step(opcode.name, argument)
        raise ValueError("it ends early")

    def step(self, name: str, argument: Any) -> None:
        push = self.stack.append
        if name in _LITERALS:
            push(argument)
        elif name in _CONSTANTS:
            push(_CONSTANTS[name])
        elif name in _EMPTY:
            push(_EMPTY[name]())
        elif name in _TUPLES:
            push(tuple(self.pop(_TUPLES[name])))
        elif name == "MARK":
            push(_MARK)
        elif name == "TUPLE":
            push(tuple(self.pop_to_mark()))
        elif name in ("BINPUT", "LONG_BINPUT", "MEMOIZE"):
            self.memo[len(self.memo) if name == "MEMOIZE" else argument] = self.stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            push(self.memo[argument])
        elif name in ("SETITEM", "SETITEMS"):
            items = self.pop(2) if name == "SETITEM" else self.pop_to_mark()
            self.charge(len(items))
            self.container(dict).update(_pairs(zip(items[::2], items[1::2], strict=True)))
        elif name in ("APPEND", "APPENDS"):
            items = self.pop(1) if name == "APPEND" else self.pop_to_mark()
            self.charge(len(items))
            self.container(list).extend(items)
        elif name == "GLOBAL":
            push(_Name(argument.replace(" ", ".")))
        elif name == "STACK_GLOBAL":
            module, name = self.pop(2)
            if not (isinstance(module, str) and isinstance(name, str)):
                raise _RefusedError("it names something that is no name")
            push(_Name(f"{module}.{name}"))
        elif name == "BINPERSID":
            storage = _storage(self.stack.pop())
            push(self.storages.setdefault(storage.key, storage))
        elif name == "REDUCE":
            function, arguments = self.pop(2)
            sizes = (len(part) for part in arguments if isinstance(part, tuple | list | dict))
            self.charge(sum(sizes))
            push(_build(function, arguments))
        elif name == "BUILD":  # attributes of an ordered dict: PyTorch's version metadata
            self.stack.pop()
            self.container(dict)
        elif name not in ("PROTO", "FRAME"):
            raise _RefusedError(f"it uses the pickle operation {name}")

    def pop(self, count: int) -> list:
        if len(self.stack) < count:
            raise ValueError("it takes more than it holds")
        taken = self.stack[-count:]
        del self.stack[-count:]
        return taken

    def pop_to_mark(self) -> list:
        taken = []
        while (item := self.stack.pop()) is not _MARK:
            taken.append(item)
        return taken[::-1]

    def container(self, kind: type) -> Any:
        if not isinstance(self.stack[-1], kind):
            raise _RefusedError(f"it fills something that is no {kind.__name__}")
        return self.stack[-1]


def _storage(identity: Any) -> Storage:
    """The persistent id ("storage", type, key, device, element count) of a storage."""
    kind, dtype, key, _, count, *view = identity
    if any(part is not None for part in view):
        raise _RefusedError("it refers to a storage within another storage")
    path = dtype.path if isinstance(dtype, _Name) else f"a {type(dtype).__name__}"
    name = path.removeprefix("torch.")
    if not isinstance(kind, str) or kind != "storage" or name not in DTYPES:
        raise _RefusedError(f"it refers to a storage of type {path[:100]}")
    if not isinstance(key, str) or type(count) is not int or count < 0:
        raise ValueError("a storage has no name or size")
    return Storage(DTYPES[name], key, count)


def _pairs(items: Iterable[tuple[Any, Any]]) -> Iterator[tuple[Any, Any]]:
    """Entries of a dict. Hashing a key of nested tuples can take for ever, so keys are plain."""
    for key, value in items:
        if not isinstance(key, str | int):
            raise _RefusedError(f"it uses a {type(key).__name__} as a key")
        yield key, value


def _sizes(values: Any) -> tuple[int, ...]:
    if not isinstance(values, tuple | list) or len(values) > MAX_AXES:
        raise ValueError("a tensor has no shape")
    if not all(type(value) is int and abs(value) < 1 << 62 for value in values):
        raise ValueError("a tensor's shape holds something else than numbers")
    return tuple(values)


def _build(function: Any, arguments: tuple) -> Any:
    """Stands in for the few constructors that a state dict needs."""
    name = function.path if isinstance(function, _Name) else f"a {type(function).__name__}"
    if not isinstance(arguments, tuple):
        raise _RefusedError(f"it calls {name[:100]} without a tuple of arguments")
    if name == "torch._utils._rebuild_tensor_v2" and isinstance(arguments[0], Storage):
        storage, offset, shape, stride, *_ = arguments
        return TensorRef(storage, *_sizes((offset,)), _sizes(shape), _sizes(stride))
    if name == "torch._utils._rebuild_parameter":
        return arguments[0]
    if name == "collections.OrderedDict":
        return dict(_pairs(*arguments)) if arguments else {}
    if name == "torch.Size":
        return _sizes(*arguments)
    raise _RefusedError(f"it asks to call {name[:100]}")


def describe(path: Path, stream: BinaryIO) -> tuple[Any, dict[str, Storage]]:
    """The next pickle of `path` -> (its object, tensors as TensorRefs; its storages by key).

    Raises TorchFileError for a damaged description, or one of anything but containers of tensors.
    """
    machine = _Machine()
    try:
        return machine.run(stream), machine.storages
    except _RefusedError as error:
        raise TorchFileError(
            f"{path}: refused: {error}. Only containers of tensors are read; save the "
            "state dict alone"
        ) from error
    except (ValueError, KeyError, IndexError, TypeError, RecursionError) as error:
        raise TorchFileError(
            f"{path}: its description is damaged ({error}); fetch the file again"
        ) from error
