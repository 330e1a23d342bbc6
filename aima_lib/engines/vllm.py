"""vLLM: models as the hub has them, many requests at a time, on a GPU."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aima_lib.engines.base import Install, context_of
from aima_lib.engines.servers import KEYED, PythonServer
from aima_lib.infra.launch import FOLDER, HOST, PORT, Launch


class Vllm(PythonServer):
    """Its server of OpenAI's API. Ready in minutes: it compiles for the model."""

    name = "vllm"
    title = "vLLM"
    types: tuple[str, ...] = ("llm", "vlm", "embedding", "rerank")
    tasks: tuple[str, ...] = ("chat", "complete", "embed", "rerank")
    dialects: tuple[str, ...] = ("openai", "responses", "anthropic")
    options = frozenset({"context_length", "parallel", "seed", "dtype", "memory_fraction", "tensor_parallel"})
    install = Install(("vllm==0.32.0",), ("vllm",), 12 << 30)

    def plan(self, model: Mapping[str, Any], path: Path, device: Mapping[str, Any], options: Mapping[str, Any]) -> Launch:
        kind = model.get("type")
        tasks = {"embedding": ("embed",), "rerank": ("rerank",)}.get(str(kind), ("chat", "complete"))
        argv = [self.python, "-P", str(KEYED), FOLDER, "vllm.entrypoints.cli.main", "serve", str(path.parent)]
        argv += ["--served-model-name", str(model["id"]), "--host", HOST, "--port", PORT]
        argv += ["--max-model-len", str(context_of(model, options)), "--max-num-seqs", str(options.get("parallel", 16))]
        argv += ["--dtype", str(options.get("dtype", "auto")), "--tensor-parallel-size", str(options.get("tensor_parallel", 1))]
        if "memory_fraction" in options:
            argv += ["--gpu-memory-utilization", str(options["memory_fraction"])]
        if "seed" in options:
            argv += ["--seed", str(options["seed"])]
        if tasks == ("chat", "complete"):
            argv += ["--enable-auto-tool-choice", "--tool-call-parser", "hermes"]
        around = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
        around |= {} if device.get("type") == "gpu" else {"VLLM_TARGET_DEVICE": "cpu", "VLLM_CPU_KVCACHE_SPACE": "1"}
        return Launch(tuple(argv), str(model["id"]), tasks, env=around)
