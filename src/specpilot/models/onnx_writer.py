"""Collects the nodes and initializers of an ONNX graph whose weights stay in a folder's safetensors files."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from specpilot.models.safetensors_index import TensorIndex, TensorPlace

if TYPE_CHECKING:
    import onnx

CONTRIB = "com.microsoft"
_ELEMENT = {"F32": "FLOAT", "F16": "FLOAT16", "BF16": "BFLOAT16"}
_OPSET, _IR_VERSION = 18, 9  # old enough for every ONNX Runtime that has the operators used (1.22)


class GraphWriter:
    """Every method that adds something returns the name of the value that it adds.

    Raises:
        ValueError: if the ``onnx`` package is missing.
    """

    def __init__(self, index: TensorIndex) -> None:
        try:
            import onnx
            from onnx import helper, numpy_helper
        except ImportError:
            raise ValueError(
                "onnx: the package that builds the graph is not installed; pip install 'specpilot[export]'"
            ) from None
        self.types = onnx.TensorProto
        self._helper, self._numpy_helper = helper, numpy_helper
        self._index = index
        self._nodes: list[onnx.NodeProto] = []
        self._initializers: list[onnx.TensorProto] = []
        self._used: set[str] = set()

    def add(self, kind: str, inputs: Sequence[str], outputs: Sequence[str], **attributes: Any) -> None:
        """Add a node with any number of outputs; an empty name is one left out."""
        self._nodes.append(self._helper.make_node(kind, inputs, outputs, **attributes))

    def node(self, kind: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        """Add a node with one output."""
        self.add(kind, inputs, [output], **attributes)
        return output

    def constant(self, name: str, value: Any) -> str:
        """Add a small constant, which is in the graph file itself."""
        self._initializers.append(self._numpy_helper.from_array(np.asarray(value), name))
        return name

    def place(self, name: str) -> TensorPlace:
        """Where a tensor of the weights lies.

        Raises:
            ValueError: if there is no such tensor.
        """
        place = self._index.tensors.get(name)
        if place is None:
            raise ValueError(f"{name}: the weights have no such tensor; is config.json another model's?")
        return place

    def has(self, name: str) -> bool:
        """Whether the weights have such a tensor."""
        return name in self._index.tensors

    def external(self, name: str, shape: Sequence[int]) -> str:
        """An initializer whose bytes are those in the safetensors file.

        Raises:
            ValueError: if the tensor is missing or has another shape or an unknown type.
        """
        place = self.place(name)
        if place.shape != tuple(shape):
            raise ValueError(
                f"{name}: has shape {list(place.shape)}, config.json says {list(shape)}; "
                "take both from the same model"
            )
        if place.dtype not in _ELEMENT:
            raise ValueError(
                f"{name}: has type {place.dtype}, not one of {', '.join(_ELEMENT)}; convert the weights"
            )
        if name not in self._used:  # a tied head uses the embedding twice
            self._used.add(name)
            tensor = self.types(name=name, dims=shape)
            tensor.data_type = getattr(self.types, _ELEMENT[place.dtype])
            tensor.data_location = self.types.EXTERNAL
            for key, value in (("location", place.file), ("offset", place.offset), ("length", place.length)):
                entry = tensor.external_data.add()
                entry.key, entry.value = key, str(value)
            self._initializers.append(tensor)
        return name

    def floats(self, name: str, shape: Sequence[int]) -> str:
        """A weight as float32; the cast is constant, so it is folded when the graph is loaded."""
        return self.node("Cast", [self.external(name, shape)], name + ".float", to=self.types.FLOAT)

    def linear(self, value: str, name: str, shape: tuple[int, int]) -> str:
        """``value @ weight.T`` plus the bias, if there is one (Qwen2, ``attention_bias``)."""
        bias = name + ".bias"
        if not self.has(bias):
            return self.matmul(value, name + ".weight", shape, name)
        product = self.matmul(value, name + ".weight", shape, name + ".product")
        return self.node("Add", [product, self.floats(bias, shape[:1])], name)

    def matmul(self, value: str, weight: str, shape: tuple[int, int], output: str) -> str:
        """``value @ weight.T``; the transposition is folded too."""
        turned = self.node("Transpose", [self.floats(weight, shape)], weight + ".transposed", perm=[1, 0])
        return self.node("MatMul", [value, turned], output)

    def info(self, name: str, element: int, shape: Sequence[int | str]) -> onnx.ValueInfoProto:
        """Declares an input or output."""
        return self._helper.make_tensor_value_info(name, element, shape)

    def unused(self) -> list[str]:
        """Tensors of the weights that no initializer stands for."""
        return sorted(set(self._index.tensors) - self._used)

    def model(
        self,
        inputs: Sequence[onnx.ValueInfoProto],
        outputs: Sequence[onnx.ValueInfoProto],
        properties: dict[str, str],
    ) -> bytes:
        """The whole, serialised."""
        graph = self._helper.make_graph(self._nodes, "llama", inputs, outputs, self._initializers)
        model = self._helper.make_model(
            graph,
            producer_name="specpilot",
            ir_version=_IR_VERSION,
            opset_imports=[self._helper.make_opsetid("", _OPSET), self._helper.make_opsetid(CONTRIB, 1)],
        )
        self._helper.set_model_props(model, properties)
        serialised: bytes = model.SerializeToString()
        return serialised
