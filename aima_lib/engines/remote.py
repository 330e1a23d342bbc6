"""Engines elsewhere that speak OpenAI's API: any base URL that config.toml names, and Ollama's. A relay stands for each here."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from aima_lib.engines.base import Engine, Found
from aima_lib.infra.launch import FOLDER, Launch

RELAY = Path(__file__).parents[1] / "launchers" / "relay.py"
TASKS: Mapping[str, tuple[str, ...]] = {
    "llm": ("chat", "complete"),
    "vlm": ("chat", "complete"),
    "embedding": ("embed",),
    "rerank": ("rerank",),
    "asr": ("transcribe",),
    "tts": ("synthesize",),
    "diffusion": ("generate_image",),
}
OLLAMA = "ollama"


def remote_of(model: Mapping[str, Any]) -> tuple[str, str]:
    """The endpoint's name in config.toml, and the model's name there."""
    name, _, there = str(model["source"]["path"]).partition(":")
    return name, there


class Remote(Engine):
    """A model of an endpoint: its record says which (`model.create` with path NAME:MODEL). The key is the secret remote_NAME."""

    name = "openai"
    title = "Remote, by OpenAI's API"
    formats: tuple[str, ...] = ("remote",)
    types: tuple[str, ...] = tuple(TASKS)
    tasks: tuple[str, ...] = ("chat", "complete", "embed", "rerank", "transcribe", "synthesize", "generate_image")
    devices: tuple[str, ...] = ("cpu",)
    announces: bool = True
    asked: tuple[str, ...] = ()  # a try there costs money
    unload: ClassVar[str | None] = None

    def __init__(self, remotes: Mapping[str, str]) -> None:
        self._remotes = remotes

    def find(self) -> Found:
        names = [name for name in self._remotes if name != OLLAMA]
        return Found(None) if names else Found(None, "config.toml names no endpoint under [engines.remotes]")

    def gpus(self) -> list[str] | None:
        return []

    def suits(self, model: Mapping[str, Any]) -> str | None:
        name, _ = remote_of(model)
        if name == OLLAMA:
            return f"{model['id']} is Ollama's"
        return None if name in self._remotes else f"config.toml names no {name} under [engines.remotes]"

    def plan(
        self,
        model: Mapping[str, Any],
        path: Path,  # noqa: ARG002
        device: Mapping[str, Any],  # noqa: ARG002
        options: Mapping[str, Any],
    ) -> Launch:
        name, there = remote_of(model)
        tasks, secret = TASKS[str(model["type"])], f"remote_{name.replace('-', '_')}"
        spec = {
            "alias": str(model["id"]),
            "model": there,
            "base_url": self._remotes[name],
            "secret": secret,
            "tasks": list(tasks),
            "port": options.get("port") or 0,
            "probe": "models",
            "unload": self.unload,
            "on": "elsewhere",
        }
        return Launch(
            argv=(sys.executable, "-P", str(RELAY), FOLDER),
            alias=str(model["id"]),
            tasks=tasks,
            files={"spec.json": json.dumps(spec)},
            secrets={"remote_key": secret},
            announces=True,
            probe="/probe",
        )


class Ollama(Remote):
    """The Ollama server of this machine, or of another: `[engines.remotes] ollama` says where it is not at its usual place."""

    name = OLLAMA
    title = "Ollama"
    types: tuple[str, ...] = ("llm", "vlm", "embedding")
    tasks: tuple[str, ...] = ("chat", "complete", "embed")
    unload: ClassVar[str | None] = "/api/generate"

    def __init__(self, remotes: Mapping[str, str]) -> None:
        super().__init__({OLLAMA: "http://127.0.0.1:11434/v1", **remotes})

    def find(self) -> Found:
        return Found(None)  # whether it listens, the start says

    def suits(self, model: Mapping[str, Any]) -> str | None:
        return None if remote_of(model)[0] == OLLAMA else f"{model['id']} is no model of Ollama's"
