"""transformers serve: any model that transformers knows, slowly and with no key of its own, so that a relay stands in front."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aima_lib.engines.base import Install
from aima_lib.engines.remote import RELAY
from aima_lib.engines.servers import PythonServer
from aima_lib.infra.launch import FOLDER, Launch

INNER = "{inner}"
START = "from transformers.cli.transformers import main; main()"


class Transformers(PythonServer):
    """Its server of OpenAI's API. Behind the relay's key it listens on a loopback port that other users of the machine can reach."""

    name = "transformers"
    title = "transformers serve"
    options = frozenset({"dtype"})
    announces: bool = True
    install = Install(("transformers[serving]==5.19.0", "torch==2.13.0"), ("transformers", "torch", "fastapi"), 6 << 30)

    def plan(self, model: Mapping[str, Any], path: Path, device: Mapping[str, Any], options: Mapping[str, Any]) -> Launch:
        on = "gpu" if device.get("type") == "gpu" else "cpu"
        child = [self.python, "-P", "-c", START, "serve", "--host", "127.0.0.1", "--port", INNER]
        child += ["--device", "cuda" if on == "gpu" else "cpu", "--dtype", str(options.get("dtype", "auto"))]
        spec = {
            "alias": str(model["id"]),
            "model": str(path.parent),
            "base_url": f"http://127.0.0.1:{INNER}/v1",
            "secret": "none",
            "tasks": list(self.tasks),
            "port": options.get("port") or 0,
            "probe": "chat",
            "context_length": model.get("context_length"),
            "child": child,
            "on": on,
        }
        return Launch(
            argv=(sys.executable, "-P", str(RELAY), FOLDER),
            alias=str(model["id"]),
            tasks=self.tasks,
            env={"HF_HUB_OFFLINE": "1"},
            files={"spec.json": json.dumps(spec)},
            announces=True,
            probe="/probe",
        )
