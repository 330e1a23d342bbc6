"""Python engines with an HTTP server of their own, each in its own environment: what vLLM, SGLang and transformers share."""

from __future__ import annotations

import importlib.util
import sys
from importlib import metadata
from pathlib import Path

from aima_lib.engines.base import Engine, Found
from aima_lib.infra.environments import Environments

KEYED = Path(__file__).parents[1] / "worker" / "keyed.py"


class PythonServer(Engine):
    """A server of the environment that `engine.install` made, or of AIMA's own."""

    formats: tuple[str, ...] = ("safetensors",)
    types: tuple[str, ...] = ("llm", "vlm")
    tasks: tuple[str, ...] = ("chat", "complete")
    asked: tuple[str, ...] = ("json_schema", "tools")

    def __init__(self, environments: Environments) -> None:
        self._environments = environments

    def find(self) -> Found:
        if (own := self._environments.find(self.name)) is not None:
            return Found(own.version)
        assert self.install is not None
        if all(importlib.util.find_spec(name) for name in self.install.modules):
            return Found(metadata.version(self.install.packages[0].partition("==")[0]))
        return Found(None, f"{', '.join(self.install.modules)} cannot be imported: engine.install gives it an environment of its own")

    def gpus(self) -> list[str] | None:
        return None

    @property
    def python(self) -> str:
        """The interpreter that has it."""
        own = self._environments.find(self.name)
        return str(own.python) if own else sys.executable
