"""A small writer of ONNX graphs: operators as method calls, names made up on the way."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from llmcodec_jax.errors import UserError

OPSET = 17
"""Old enough for every runtime of the last years, the browser's too."""

Value = str
"""The name of a tensor in the graph."""


class GraphError(UserError):
    """What keeps a codec from being written as ONNX; the message says what to do."""


class Graph:
    """One ONNX graph in the making. Inputs and outputs have named, free dimensions."""

    def __init__(self, name: str):
        try:
            import onnx
        except ImportError as error:
            raise GraphError(
                "writing ONNX needs onnx and onnxruntime: pip install 'llmcodec-jax[onnx]'"
            ) from error
        self._onnx, self._name = onnx, name
        self._nodes: list[Any] = []
        self._weights: dict[str, np.ndarray] = {}
        self._inputs: list[Any] = []
        self._outputs: list[Any] = []

    def input(self, name: str, dtype: Any, shape: Sequence[str | int]) -> Value:
        """Declares an input; strings in `shape` are free dimensions."""
        self._inputs.append(self._typed(name, dtype, shape))
        return name

    def output(self, name: str, value: Value, dtype: Any, shape: Sequence[str | int]) -> None:
        """Declares `value` as the output `name`."""
        self._nodes.append(self._onnx.helper.make_node("Identity", [value], [name]))
        self._outputs.append(self._typed(name, dtype, shape))

    def constant(self, value: Any, dtype: Any = np.float32) -> Value:
        """A tensor held by the graph; equal ones are kept once."""
        array = np.array(value, dtype, order="C")
        for name, held in self._weights.items():
            alike = held.dtype == array.dtype and held.shape == array.shape
            if alike and array.tobytes() == held.tobytes():
                return name
        name = f"constant_{len(self._weights)}"
        self._weights[name] = array
        return name

    def ints(self, *values: int) -> Value:
        """int64 [n], as shapes and axes are given."""
        return self.constant(values, np.int64)

    def op(self, kind: str, *inputs: Value, **attributes: Any) -> Value:
        """One operator with one output."""
        return self.ops(kind, 1, *inputs, **attributes)[0]

    def ops(self, kind: str, count: int, *inputs: Value, **attributes: Any) -> list[Value]:
        """One operator with `count` outputs."""
        number = len(self._nodes)
        names = [f"{kind.lower()}_{number}_{i}" if count > 1 else f"{kind.lower()}_{number}"
                 for i in range(count)]  # fmt: skip
        self._nodes.append(self._onnx.helper.make_node(kind, list(inputs), names, **attributes))
        return names

    def model(self) -> Any:
        """The checked ModelProto."""
        helper = self._onnx.helper
        weights = [self._onnx.numpy_helper.from_array(v, n) for n, v in self._weights.items()]
        graph = helper.make_graph(self._nodes, self._name, self._inputs, self._outputs, weights)
        model = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", OPSET)], producer_name="llmcodec_jax"
        )
        model.ir_version = 8  # what belongs to OPSET: newer ones are refused by older runtimes
        self._onnx.checker.check_model(model, full_check=True)
        return model

    def _typed(self, name: str, dtype: Any, shape: Sequence[str | int]) -> Any:
        kind = self._onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        return self._onnx.helper.make_tensor_value_info(name, kind, list(shape))
