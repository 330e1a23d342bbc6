"""ONNX Runtime: a network opened where it shall compute."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from aima_lib.worker.base import Spec, Wrong


def session(spec: Spec) -> tuple[Any, str]:
    """The network of a spec, and where it computes: cpu or gpu."""
    import onnxruntime
    from onnxruntime.capi import onnxruntime_pybind11_state as errors

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = int(spec["threads"]), 1
    options.log_severity_level = 4  # what it logs of a failed run may quote the request
    wanted = (
        ["CUDAExecutionProvider"] if spec["device"] == "gpu" and "CUDAExecutionProvider" in onnxruntime.get_available_providers() else []
    )
    try:
        opened = onnxruntime.InferenceSession(spec["path"], options, providers=[*wanted, "CPUExecutionProvider"])
    except (
        errors.Fail,
        errors.InvalidArgument,
        errors.InvalidGraph,
        errors.InvalidProtobuf,
        errors.NoSuchFile,
        errors.NotImplemented,
    ) as error:
        raise Wrong(f"ONNX Runtime cannot load it: {str(error)[:300]}") from error
    return opened, "gpu" if "CUDAExecutionProvider" in opened.get_providers() else "cpu"


def beside(spec: Spec, *suffixes: str) -> Path | None:
    """The first file of the model whose name ends so."""
    return next((Path(file) for suffix in suffixes for file in spec["files"] if file.endswith(suffix)), None)
