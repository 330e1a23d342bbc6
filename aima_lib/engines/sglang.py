"""SGLang: models as the hub has them, with prefixes shared between requests, on a GPU."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aima_lib.engines.base import Install, context_of
from aima_lib.engines.servers import KEYED, PythonServer
from aima_lib.infra.launch import FOLDER, HOST, PORT, Launch


class Sglang(PythonServer):
    """Its server of OpenAI's API."""

    name = "sglang"
    title = "SGLang"
    types: tuple[str, ...] = ("llm", "vlm", "embedding")
    tasks: tuple[str, ...] = ("chat", "complete", "embed")
    devices: tuple[str, ...] = ("gpu", "cpu")
    options = frozenset({"context_length", "parallel", "seed", "dtype", "memory_fraction", "tensor_parallel"})
    install = Install(("sglang==0.5.23",), ("sglang",), 14 << 30)

    def plan(self, model: Mapping[str, Any], path: Path, device: Mapping[str, Any], options: Mapping[str, Any]) -> Launch:
        embeds = model.get("type") == "embedding"
        argv = [self.python, "-P", str(KEYED), FOLDER, "sglang.launch_server", "--model-path", str(path.parent)]
        argv += ["--served-model-name", str(model["id"]), "--host", HOST, "--port", PORT, "--log-level", "warning"]
        argv += ["--context-length", str(context_of(model, options)), "--max-running-requests", str(options.get("parallel", 16))]
        argv += ["--dtype", str(options.get("dtype", "auto")), "--tp-size", str(options.get("tensor_parallel", 1))]
        if "memory_fraction" in options:
            argv += ["--mem-fraction-static", str(options["memory_fraction"])]
        if "seed" in options:
            argv += ["--random-seed", str(options["seed"])]
        argv += ["--is-embedding"] if embeds else []
        argv += [] if device.get("type") == "gpu" else ["--device", "cpu"]
        return Launch(tuple(argv), str(model["id"]), ("embed",) if embeds else ("chat", "complete"), env={"HF_HUB_OFFLINE": "1"})
