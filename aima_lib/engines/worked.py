"""Engines that have no HTTP server of their own: each runs in our worker, in its own environment or in AIMA's."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, ClassVar

from aima_lib.engines.base import Engine, Found
from aima_lib.infra.environments import Environments
from aima_lib.infra.launch import FOLDER, Launch

SERVER = Path(__file__).parents[1] / "worker" / "server.py"
WORKER_OPTIONS = frozenset({"parallel", "threads"})


class Worked(Engine):
    """What those adapters share. `module` is the file beside the worker that knows the engine; `extra` puts it into AIMA's environment."""

    dialects: tuple[str, ...] = ("openai", "worker")
    devices: tuple[str, ...] = ("cpu",)
    options: frozenset[str] = WORKER_OPTIONS
    announces: bool = True
    module: ClassVar[str] = ""
    extra: ClassVar[str | None] = None

    def __init__(self, environments: Environments) -> None:
        self._environments = environments

    def find(self) -> Found:
        if (own := self._environments.find(self.name)) is not None:
            return Found(own.version)
        if self.install is not None and all(importlib.util.find_spec(name) for name in self.install.modules):
            return Found(metadata.version(self.install.packages[0].partition("==")[0]))
        names = ", ".join(self.install.modules) if self.install else "it"
        return Found(
            None, f"{names} cannot be imported: engine.install gives it an environment of its own, or pip install 'aima[{self.extra}]'"
        )

    def gpus(self) -> list[str] | None:
        return []  # the worker itself says where it computes

    def plan(self, model: Mapping[str, Any], path: Path, device: Mapping[str, Any], options: Mapping[str, Any]) -> Launch:
        tasks, own = self.tasks_for(model), self._environments.find(self.name)
        spec = {
            **{name: value for name, value in options.items() if name != "port"},
            "module": self.module,
            "path": str(path),
            "files": [str(path.with_name(str(file["name"]))) for file in model.get("files", ())],
            "alias": str(model["id"]),
            "tasks": list(tasks),
            "port": options.get("port") or 0,
            "parallel": int(options.get("parallel", 1)),
            "device": "gpu" if device.get("type") == "gpu" and "gpu" in self.devices else "cpu",
            **self.more(model),
        }
        return Launch(
            argv=(str(own.python) if own else sys.executable, "-P", str(SERVER), FOLDER),
            alias=str(model["id"]),
            tasks=tasks,
            env={"OMP_WAIT_POLICY": "passive", "HF_HUB_OFFLINE": "1"},
            files={"spec.json": json.dumps(spec)},
            announces=True,
            probe="/probe",
        )

    def tasks_for(self, model: Mapping[str, Any]) -> tuple[str, ...]:  # noqa: ARG002
        """What it will do with this model."""
        return self.tasks

    def more(self, model: Mapping[str, Any]) -> dict[str, Any]:  # noqa: ARG002
        """What its module must know besides."""
        return {}
