"""PyTorch checkpoint files (`.pt`) in and out, without PyTorch.

A `.pt` file is a zip archive: `data.pkl` describes nested containers of tensors, `data/N` holds
raw storages. Reading interprets the few pickle opcodes such descriptions consist of; nothing named
by the file is ever imported or called, so a hostile file can at worst be refused.
"""

from __future__ import annotations

import dataclasses
import io
import math
import pickletools
import struct
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from llmcodec_jax import files
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
STORAGES = {dtype: name for name, dtype in DTYPES.items()}
MAX_DESCRIPTION = 1 << 24  # bytes of data.pkl: a description, not the weights
MAX_OBJECTS = 1 << 21  # that a description may build, however small it is
MAX_AXES = 16  # of a tensor
MAX_COPIES = 4  # of a file's bytes in its tensors: tied weights share storages, bombs abound


class TorchFileError(UserError, ValueError):
    """A `.pt` file that cannot be read; the message names the file, the reason and the fix."""


@dataclasses.dataclass(frozen=True)
class _Name:
    """A global the description refers to; never resolved to a Python object."""

    path: str


@dataclasses.dataclass(frozen=True)
class _Storage:
    dtype: np.dtype
    key: str
    count: int


@dataclasses.dataclass(frozen=True)
class TensorRef:
    """A tensor's place in the archive; `Archive.tensor` reads it."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


class Archive:
    """An open `.pt` file: `contents` is its object with every tensor as a TensorRef."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        try:
            self._zip = zipfile.ZipFile(self.path)
        except (zipfile.BadZipFile, OSError) as error:
            raise TorchFileError(
                f"{path}: not a readable PyTorch archive ({error}); files of PyTorch before 1.6 "
                "must be saved again with a current version, damaged ones fetched again"
            ) from error
        names = [n for n in self._zip.namelist() if n.endswith("/data.pkl") or n == "data.pkl"]
        if len(names) != 1:
            raise TorchFileError(f"{path}: a zip archive, but not one PyTorch saved (no data.pkl)")
        self._prefix = names[0].removesuffix("data.pkl")
        order = self._prefix + "byteorder"
        if order in self._zip.namelist() and self._read(order).strip() != b"little":
            raise TorchFileError(f"{path}: holds big-endian tensors, which are not supported")
        self._storages: dict[str, bytes] = {}
        self.contents = self._describe(names[0])

    def _read(self, name: str, limit: int | None = None) -> bytes:
        try:
            size = self._zip.getinfo(name).file_size
            if limit is not None and size > limit:
                raise TorchFileError(f"{self.path}: {name} claims {size} bytes; refused")
            return self._zip.read(name)
        except (KeyError, zipfile.BadZipFile, OSError, EOFError, NotImplementedError) as error:
            raise TorchFileError(
                f"{self.path}: {name} is missing or damaged ({error}); fetch the file again"
            ) from error
        except (RuntimeError, ValueError, zipfile.zlib.error, struct.error) as error:
            if isinstance(error, TorchFileError):
                raise
            raise TorchFileError(f"{self.path}: {name} cannot be read ({error})") from error

    def _describe(self, name: str) -> Any:
        try:
            return _Machine().run(self._read(name, MAX_DESCRIPTION))
        except _RefusedError as error:
            raise TorchFileError(
                f"{self.path}: refused: {error}. Only containers of tensors are read; save the "
                "state dict alone"
            ) from error
        except (ValueError, KeyError, IndexError, TypeError, RecursionError) as error:
            if isinstance(error, TorchFileError):
                raise
            raise TorchFileError(
                f"{self.path}: its description is damaged ({error}); fetch the file again"
            ) from error

    def tensor(self, ref: TensorRef) -> np.ndarray:
        """Reads one tensor as a contiguous array of its stored dtype."""
        storage = ref.storage
        size = storage.count * storage.dtype.itemsize
        if storage.key not in self._storages:  # many tensors may be views of one
            self._storages[storage.key] = self._read(f"{self._prefix}data/{storage.key}", size)
        raw = self._storages[storage.key]
        if len(raw) != size:
            raise TorchFileError(
                f"{self.path}: storage {storage.key} has {len(raw)} bytes instead of {size}; "
                "fetch the file again"
            )
        flat = np.frombuffer(raw, storage.dtype)
        if any(n < 0 for n in (*ref.shape, *ref.stride, ref.offset)):
            raise TorchFileError(f"{self.path}: a tensor has a negative shape, stride or offset")
        if math.prod(ref.shape) == 0:
            return np.zeros(ref.shape, storage.dtype)
        last = ref.offset + sum((n - 1) * s for n, s in zip(ref.shape, ref.stride, strict=True))
        # A zero stride repeats elements; a real state dict never holds more than its storage.
        if last >= storage.count or math.prod(ref.shape) > storage.count:
            raise TorchFileError(f"{self.path}: a tensor reaches beyond its storage")
        strides = [s * storage.dtype.itemsize for s in ref.stride]
        view = np.lib.stride_tricks.as_strided(flat[ref.offset :], ref.shape, strides)
        return np.ascontiguousarray(view).reshape(ref.shape)


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

    def charge(self, objects: int) -> None:
        """Counts what is built: copies of copies grow without bound from a few bytes."""
        self.built += objects
        if self.built > MAX_OBJECTS:
            raise _RefusedError(f"it builds more than {MAX_OBJECTS} objects")

    def run(self, data: bytes) -> Any:
        for opcode, argument, _ in pickletools.genops(io.BytesIO(data)):
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
            push(_storage(self.stack.pop()))
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


def _storage(identity: Any) -> _Storage:
    """The persistent id ("storage", type, key, device, element count) of a storage."""
    kind, dtype, key, _, count = identity
    path = dtype.path if isinstance(dtype, _Name) else f"a {type(dtype).__name__}"
    name = path.removeprefix("torch.")
    if not isinstance(kind, str) or kind != "storage" or name not in DTYPES:
        raise _RefusedError(f"it refers to a storage of type {path[:100]}")
    if not isinstance(key, str) or type(count) is not int or count < 0:
        raise ValueError("a storage has no name or size")
    return _Storage(DTYPES[name], key, count)


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
    if name == "torch._utils._rebuild_tensor_v2" and isinstance(arguments[0], _Storage):
        storage, offset, shape, stride, *_ = arguments
        return TensorRef(storage, *_sizes((offset,)), _sizes(shape), _sizes(stride))
    if name == "torch._utils._rebuild_parameter":
        return arguments[0]
    if name == "collections.OrderedDict":
        return dict(_pairs(*arguments)) if arguments else {}
    if name == "torch.Size":
        return _sizes(*arguments)
    raise _RefusedError(f"it asks to call {name[:100]}")


WRAPPERS = ("auv", "state_dict", "model_state_dict", "best_state", "model", "generator")
"""Keys under which training checkpoints keep the one state dict that is of use."""
MAX_DEPTH = 8  # of state dicts within state dicts


def read_state_dict(path: str | Path) -> dict[str, np.ndarray]:
    """`.pt` -> name -> array. State dicts of several parts get dotted names, "PART.NAME".

    A training checkpoint's state dict is found by itself (WRAPPERS). Raises TorchFileError for a
    file that is damaged, hostile or holds no state dict.
    """
    archive = Archive(path)
    found = archive.contents
    if not isinstance(found, Mapping):
        raise TorchFileError(f"{path}: holds a {type(found).__name__}, not a state dict")
    inner = next((found[key] for key in WRAPPERS if isinstance(found.get(key), Mapping)), found)
    tensors = dict(_tensors(inner, "", MAX_DEPTH))
    if not tensors:
        raise TorchFileError(
            f"{path}: holds no tensors at its top level; its keys: {list(found)[:8]}"
        )
    storages = {ref.storage for ref in tensors.values()}
    claimed = max(
        sum(math.prod(ref.shape) * ref.storage.dtype.itemsize for ref in tensors.values()),
        sum(storage.count * storage.dtype.itemsize for storage in storages),
    )
    size = archive.path.stat().st_size
    if claimed > MAX_COPIES * size:
        raise TorchFileError(
            f"{path}: its tensors claim {claimed} bytes, the file has {size}; refused"
        )
    return {name: archive.tensor(ref) for name, ref in tensors.items()}


def _tensors(found: Mapping, prefix: str, depth: int) -> Iterator[tuple[str, TensorRef]]:
    """Every tensor below a mapping with its dotted name; what is no tensor is left out."""
    for name, value in found.items():
        if isinstance(name, str) and isinstance(value, TensorRef):
            yield prefix + name, value
        elif isinstance(name, str) and isinstance(value, Mapping) and depth:
            yield from _tensors(value, f"{prefix}{name}.", depth - 1)


class _Writer:
    """Emits the pickle of a flat state dict, protocol 2."""

    def __init__(self):
        self.out = bytearray(b"\x80\x02ccollections\nOrderedDict\n)R(")

    def text(self, value: str) -> None:
        raw = value.encode()
        self.out += b"X" + struct.pack("<I", len(raw)) + raw

    def integer(self, value: int) -> None:
        if 0 <= value < 2**31:
            self.out += b"J" + struct.pack("<i", value)
        else:
            raw = value.to_bytes(9, "little", signed=True)
            self.out += b"\x8a" + bytes([len(raw)]) + raw

    def integers(self, values: tuple[int, ...]) -> None:
        self.out += b"("
        for value in values:
            self.integer(value)
        self.out += b"t"

    def tensor(self, name: str, array: np.ndarray, key: str) -> None:
        self.text(name)
        self.out += b"ctorch._utils\n_rebuild_tensor_v2\n(("
        self.text("storage")
        self.out += f"ctorch\n{STORAGES[array.dtype]}\n".encode()
        self.text(key)
        self.text("cpu")
        self.integer(array.size)
        self.out += b"tQ"
        self.integer(0)
        self.integers(array.shape)
        self.integers(tuple(math.prod(array.shape[i + 1 :]) for i in range(array.ndim)))
        self.out += b"\x89ccollections\nOrderedDict\n)RtR"

    def finish(self) -> bytes:
        return bytes(self.out + b"u.")


def write_state_dict(path: str | Path, tensors: Mapping[str, np.ndarray]) -> None:
    """name -> array to a `.pt` that `torch.load(weights_only=True)` opens; atomic, repeatable."""
    writer = _Writer()
    with (
        files.replacing(path) as partial,
        zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED) as archive,
    ):

        def add(name: str, data) -> None:
            archive.writestr(zipfile.ZipInfo(f"archive/{name}"), data)

        for index, (name, value) in enumerate(tensors.items()):
            array = np.ascontiguousarray(value).reshape(np.shape(value))
            writer.tensor(name, array, str(index))
            add(f"data/{index}", array.tobytes())
        add("data.pkl", writer.finish())
        add("byteorder", b"little")
        add("version", b"3\n")
