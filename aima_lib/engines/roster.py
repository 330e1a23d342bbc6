"""The engines AIMA knows, by name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aima_lib.engines.base import Engine
from aima_lib.engines.espeak import Espeak
from aima_lib.engines.faster_whisper import FasterWhisper
from aima_lib.engines.kokoro import Kokoro
from aima_lib.engines.llama_server import LlamaServer
from aima_lib.engines.llamacpp import LlamaCpp
from aima_lib.engines.onnx import Onnx
from aima_lib.engines.piper import Piper
from aima_lib.engines.remote import Ollama, Remote
from aima_lib.engines.sglang import Sglang
from aima_lib.engines.transformers import Transformers
from aima_lib.engines.vllm import Vllm
from aima_lib.infra.environments import Environments


def roster(config: Mapping[str, Any], home: Path) -> dict[str, Engine]:
    """One adapter each; the first that is installed and fits is the default."""
    engines: list[Engine] = [LlamaCpp(), LlamaServer(config["engines"]["llama_server"], config["engines"]["rpc_servers"])]
    own = Environments(home / "engines")
    engines += [FasterWhisper(own), Onnx(own), Piper(own), Kokoro(own), Espeak(own, config["engines"]["espeak_ng"])]
    engines += [Vllm(own), Sglang(own), Transformers(own), Remote(config["engines"]["remotes"]), Ollama(config["engines"]["remotes"])]
    return {engine.name: engine for engine in engines}
