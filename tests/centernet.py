"""CenterNet as `@vladmandic/human` ships it (a tfjs graph model, COCO's 80 classes, MIT) as ONNX: each operation by its own name there."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import numpy
import onnx
from onnx import TensorProto, helper, numpy_helper

Node = dict[str, Any]


class Graph:
    """One conversion: tfjs keeps images as NHWC, ONNX computes in NCHW."""

    def __init__(self, source: Path) -> None:
        said = json.loads(source.with_suffix(".json").read_text(encoding="utf-8"))
        self.known: dict[str, Node] = {node["name"]: node for node in said["modelTopology"]["node"]}
        self.weights = _weights(said["weightsManifest"], source.with_suffix(".bin").read_bytes())
        self.nodes: list[onnx.NodeProto] = []
        self.fixed: dict[str, onnx.TensorProto] = {}
        self.done: dict[str, str] = {}

    def constant(self, name: str, value: Any) -> str:
        self.fixed[name] = numpy_helper.from_array(numpy.ascontiguousarray(value), name)
        return name

    def add(self, kind: str, inputs: list[str], name: str, **settings: Any) -> str:
        self.nodes.append(helper.make_node(kind, inputs, [name], name=name, **settings))
        return name

    def take(self, name: str) -> str:
        """The node of that name, and all before it."""
        if name not in self.done:
            self.done[name] = self._take(self.known[name], name)
        return self.done[name]

    def _take(self, node: Node, name: str) -> str:
        kind, inputs = node["op"], node.get("input", [])
        if kind == "Placeholder":
            return self.add("Transpose", ["images"], name, perm=[0, 3, 1, 2])
        if kind.endswith(("Conv2D", "Conv2dNative")):
            return self._convolve(node, name, depthwise="Depthwise" in kind)
        if kind in ("Add", "AddV2", "Mul", "Sub"):
            return self.add(kind.replace("V2", ""), [self._operand(each) for each in inputs], name)
        if kind in ("Relu", "Sigmoid", "Identity"):
            return self.add(kind, [self.take(inputs[0])], name)
        if kind == "Relu6":
            return self._clip(self.take(inputs[0]), name)
        if kind == "ConcatV2":
            return self.add("Concat", [self.take(each) for each in inputs[:-1]], name, axis=1)
        if kind == "Mean":
            return self.add("ReduceMean", [self.take(inputs[0])], name, axes=[2, 3], keepdims=1)
        if kind == "ResizeBilinear":
            twice = self.constant("twice", numpy.array([1, 1, 2, 2], "f4"))
            settings = {"mode": "linear", "coordinate_transformation_mode": "asymmetric"}
            return self.add("Resize", [self.take(inputs[0]), "", twice], name, **settings)
        raise SystemExit(f"{name}: no word for {kind}")

    def _operand(self, name: str) -> str:
        if self.known.get(name, {}).get("op") != "Const":
            return self.take(name)
        value = self.weights[name].astype("f4")
        shaped = value.reshape(1, -1, 1, 1) if value.ndim == 1 else value.transpose(0, 3, 1, 2) if value.ndim == 4 else value
        return self.constant(name, shaped)

    def _convolve(self, node: Node, name: str, depthwise: bool) -> str:
        settings, weight = node["attr"], self.weights[node["input"][1]]
        height, width, inner, outer = weight.shape
        shaped = weight.transpose(2, 3, 0, 1).reshape(inner * outer, 1, height, width) if depthwise else weight.transpose(3, 2, 0, 1)
        fused = [base64.b64decode(each).decode() for each in settings.get("fused_ops", {}).get("list", {}).get("s", [])]
        inputs = [self.take(node["input"][0]), self.constant(f"{name}/w", shaped)]
        if "BiasAdd" in fused:
            inputs.append(self.constant(f"{name}/b", self.weights[node["input"][2]]))
        after = [each for each in fused if each != "BiasAdd"]
        same = base64.b64decode(settings["padding"]["s"]).decode() == "SAME"
        strides = [int(step) for step in settings["strides"]["list"]["i"]][1:3]
        made = self.add(
            "Conv",
            inputs,
            f"{name}/conv" if after else name,
            auto_pad="SAME_UPPER" if same else "VALID",
            strides=strides,
            group=inner if depthwise else 1,
        )
        if not after:
            return made
        return self.add("Relu", [made], name) if after == ["Relu"] else self._clip(made, name)

    def _clip(self, source: str, name: str) -> str:
        return self.add("Clip", [source, self.constant("zero", numpy.float32(0)), self.constant("six", numpy.float32(6))], name)


def _weights(manifest: list[Node], data: bytes) -> dict[str, Any]:
    found, at = {}, 0
    for group in manifest:
        for entry in group["weights"]:
            kind = numpy.dtype(entry.get("quantization", entry)["dtype"]).newbyteorder("<")
            count = int(numpy.prod(entry["shape"])) if entry["shape"] else 1
            value = numpy.frombuffer(data, kind, count, at).reshape(entry["shape"])
            at += count * kind.itemsize
            found[entry["name"]] = value.astype(entry["dtype"])
    return found


def convert(source: Path, target: Path) -> None:
    """`source`.json and `source`.bin as one ONNX file."""
    graph = Graph(source)
    outputs = [("tower_0/keypoints", 80), ("tower_0/wh", 4)]
    for name, _ in outputs:
        graph.take(name)
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, count, 128, 128]) for name, count in outputs]
    images = helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 512, 512, 3])
    made = helper.make_graph(graph.nodes, "centernet", [images], ends, list(graph.fixed.values()))
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    onnx.save(model, target)
