"""ONNX Runtime, in the worker: vectors, ranks, detection and small diffusion models, by the model's type."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aima_lib.engines.base import Builtin, Install
from aima_lib.engines.worked import WORKER_OPTIONS, Worked

ASSETS = Path(__file__).parent / "assets"
# What a model of a type does, and the worker's module that knows how.
KINDS: Mapping[str, tuple[tuple[str, ...], str]] = {
    "embedding": (("embed",), "onnx_text"),
    "rerank": (("rerank",), "onnx_text"),
    "detection": (("detect",), "onnx_detection"),
    "diffusion": (("generate_image", "generate_video"), "onnx_diffusion"),
    "video_gen": (("generate_video",), "onnx_diffusion"),
}


class Onnx(Worked):
    """One network a model; what it wants beside it (a tokenizer, labels, settings) its module says."""

    name = "onnx"
    title = "ONNX Runtime"
    formats: tuple[str, ...] = ("onnx",)
    types: tuple[str, ...] = tuple(KINDS)
    tasks: tuple[str, ...] = ("embed", "rerank", "detect", "generate_image", "generate_video")
    devices: tuple[str, ...] = ("cpu", "gpu")
    options = WORKER_OPTIONS | {"context_length", "pooling"}
    install = Install(
        ("onnxruntime==1.32.0", "numpy==2.4.6", "pillow==13.0.0", "tokenizers==0.23.3"),
        ("onnxruntime", "numpy", "PIL", "tokenizers"),
        260 << 20,
    )
    builtin = Builtin("digits8", "diffusion", "onnx", (ASSETS / "digits8.onnx", ASSETS / "digits8.json"), "apache-2.0")
    extra = "onnx"

    def tasks_for(self, model: Mapping[str, Any]) -> tuple[str, ...]:
        return KINDS[str(model["type"])][0]

    def more(self, model: Mapping[str, Any]) -> dict[str, Any]:
        return {"module": KINDS[str(model["type"])][1]}
