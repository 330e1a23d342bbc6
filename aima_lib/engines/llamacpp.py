"""llama.cpp inside Python (xllamacpp), in a child process: what kills it cannot kill AIMA."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from aima_lib.engines.base import (
    CHECKPOINTS,
    LLAMA_DIALECTS,
    LLAMA_DISCREET,
    LLAMA_OPTIONS,
    TEMPLATES,
    Engine,
    Found,
    batch_of,
    context_of,
    defaults_of,
    headless,
    projector_of,
    tasks_of,
)
from aima_lib.infra.launch import FOLDER, Launch

SERVER = Path(__file__).with_name("llamacpp_server.py")


class LlamaCpp(Engine):
    """The default engine: one `pip install` away, no binary to look for."""

    name = "llamacpp"
    title = "llama.cpp (embedded)"
    formats: tuple[str, ...] = ("gguf",)
    tasks: tuple[str, ...] = ("chat", "complete", "embed", "rerank")
    types: tuple[str, ...] = ("llm", "vlm", "embedding", "rerank")
    options = LLAMA_OPTIONS
    dialects: tuple[str, ...] = LLAMA_DIALECTS
    announces: bool = True

    def find(self) -> Found:
        if importlib.util.find_spec("xllamacpp") is None:
            return Found(None, "the package xllamacpp is not installed: pip install 'aima[llamacpp]'")
        return Found(metadata.version("xllamacpp"))

    def gpus(self) -> list[str] | None:
        return None  # its own server says so when it is ready

    def suits(self, model: Mapping[str, Any]) -> str | None:
        return headless(model)

    def plan(self, model: Mapping[str, Any], path: Path, device: Mapping[str, Any], options: Mapping[str, Any]) -> Launch:
        context, tasks = context_of(model, options), tasks_of(model, options)
        template = options.get("chat_template")
        spec = {
            "model": str(path),
            "alias": model["id"],
            "port": options.get("port") or 0,
            "context_length": context,
            "parallel": options.get("parallel", 1),
            "threads": options["threads"],
            "gpu_layers": options.get("gpu_layers") if device.get("type") == "gpu" else 0,
            "batch_size": batch_of(context, tasks, options),
            "flash_attention": options.get("flash_attention", "auto"),
            "embedding": "embed" in tasks,
            "rerank": "rerank" in tasks,
            "pooling": options.get("pooling"),
            "chat_template": str(TEMPLATES / f"{template}.jinja") if template else None,
            "seed": options.get("seed", defaults_of(model).get("seed")),
            "defaults": dict(defaults_of(model)),
            "projector": str(projector) if (projector := projector_of(model, path)) else None,
            "cache_type": options.get("cache_type", "f16"),
            "checkpoints": CHECKPOINTS,
        }
        return Launch(
            # -P keeps this folder's module names (llamacpp, base …) from hiding installed packages.
            argv=(sys.executable, "-P", str(SERVER), FOLDER),
            alias=str(model["id"]),
            tasks=tasks,
            env={"OMP_WAIT_POLICY": "passive"},
            files={"spec.json": json.dumps(spec)},
            announces=True,
            discreet=LLAMA_DISCREET,
        )
