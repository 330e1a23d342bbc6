"""llama.cpp's own `llama-server`: any binary on PATH, or the one the configuration names."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Mapping
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
from aima_lib.engines.cause import illegal_instruction
from aima_lib.infra.launch import FOLDER, HOST, PORT, Launch, environment

ASK_SECONDS = 10
# What a request that says nothing gets, by the model's record and by llama-server; it takes no `stop` when it starts.
DEFAULTS = {
    "temperature": "--temp",
    "top_k": "--top-k",
    "top_p": "--top-p",
    "min_p": "--min-p",
    "repeat_penalty": "--repeat-penalty",
    "presence_penalty": "--presence-penalty",
    "frequency_penalty": "--frequency-penalty",
    "max_tokens": "--predict",
}


class LlamaServer(Engine):
    """A binary of the user's, which may know GPUs that the embedded build does not."""

    name = "llama-server"
    title = "llama.cpp (llama-server)"
    formats: tuple[str, ...] = ("gguf",)
    tasks: tuple[str, ...] = ("chat", "complete", "embed", "rerank")
    types: tuple[str, ...] = ("llm", "vlm", "embedding", "rerank")
    options = LLAMA_OPTIONS
    dialects: tuple[str, ...] = LLAMA_DIALECTS

    def __init__(self, configured: str | None) -> None:
        self._configured = configured

    @property
    def binary(self) -> str | None:
        """The binary that would be started."""
        return shutil.which(self._configured or "llama-server")

    def find(self) -> Found:
        if self.binary is None:
            named = f"engines.llama_server is {self._configured}, which cannot be run"
            where = named if self._configured else "there is no llama-server on PATH"
            return Found(None, f"{where}; put one there or set engines.llama_server in config.toml")
        try:
            answer = self._ask("--version")
        except (OSError, subprocess.TimeoutExpired) as error:
            return Found(None, f"{self.binary} --version did not answer: {error}")
        if answer.returncode == -signal.SIGILL:
            return Found(None, f"{self.binary} dies: {illegal_instruction()}")
        words = [line for line in (answer.stderr + answer.stdout).splitlines() if line.startswith("version")]
        return Found(words[0].partition(":")[2].strip() if words else None)

    def gpus(self) -> list[str] | None:
        try:
            answer = self._ask("--list-devices")
        except (OSError, subprocess.TimeoutExpired):
            return None
        rows = answer.stdout.partition("Available devices:")[2].splitlines()
        return [row.strip() for row in rows if ":" in row] if answer.returncode == 0 else None

    def suits(self, model: Mapping[str, Any]) -> str | None:
        return headless(model)

    def plan(self, model: Mapping[str, Any], path: Path, device: Mapping[str, Any], options: Mapping[str, Any]) -> Launch:
        context, tasks = context_of(model, options), tasks_of(model, options)
        parallel, batch = int(options.get("parallel", 1)), str(batch_of(context, tasks, options))
        argv = [self.binary or "llama-server", "--model", str(path), "--alias", str(model["id"]), "--host", HOST, "--port", PORT]
        argv += ["--api-key-file", f"{FOLDER}/key", "--ctx-size", str(context * parallel), "--parallel", str(parallel)]
        argv += ["--threads", str(options["threads"]), "--batch-size", batch, "--ubatch-size", batch, "--jinja", "--cache-ram", "0"]
        argv += ["--flash-attn", str(options.get("flash_attention", "auto")), "--no-slots"]
        if device.get("type") != "gpu":
            argv += ["--n-gpu-layers", "0"]
        elif "gpu_layers" in options:
            argv += ["--n-gpu-layers", str(options["gpu_layers"])]
        if "embed" in tasks:
            argv += ["--embeddings", "--pooling", str(options.get("pooling", "mean"))]
        argv += ["--reranking"] if "rerank" in tasks else []
        if template := options.get("chat_template"):
            argv += ["--chat-template-file", str(TEMPLATES / f"{template}.jinja")]
        given = defaults_of(model)
        argv += [word for name, flag in DEFAULTS.items() if name in given for word in (flag, str(given[name]))]
        if (seed := options.get("seed", given.get("seed"))) is not None:
            argv += ["--seed", str(int(seed))]
        if projector := projector_of(model, path):
            argv += ["--mmproj", str(projector)]
        if "cache_type" in options:
            argv += ["--cache-type-k", str(options["cache_type"]), "--cache-type-v", str(options["cache_type"])]
        # By its environment: an older binary refuses a flag it does not know.
        around = {"OMP_WAIT_POLICY": "passive", "LLAMA_ARG_CTX_CHECKPOINTS": str(CHECKPOINTS)} | self._libraries()
        return Launch(tuple(argv), str(model["id"]), tasks, env=around, discreet=LLAMA_DISCREET)

    def _ask(self, flag: str) -> subprocess.CompletedProcess[str]:
        around = environment() | self._libraries()
        return subprocess.run(
            [str(self.binary), flag], capture_output=True, text=True, errors="replace", timeout=ASK_SECONDS, env=around, check=False
        )

    def _libraries(self) -> dict[str, str]:
        """Release archives put the libraries beside the binary, where the loader does not look."""
        beside = str(Path(self.binary or ".").resolve().parent)
        known = os.environ.get("LD_LIBRARY_PATH")
        return {"LD_LIBRARY_PATH": f"{beside}:{known}" if known else beside}
