"""The engines AIMA knows, by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aima_lib.engines.base import Engine
from aima_lib.engines.llama_server import LlamaServer
from aima_lib.engines.llamacpp import LlamaCpp


def roster(config: Mapping[str, Any]) -> dict[str, Engine]:
    """One adapter each; the first that is installed and fits is the default."""
    engines: list[Engine] = [LlamaCpp(), LlamaServer(config["engines"]["llama_server"])]
    return {engine.name: engine for engine in engines}
