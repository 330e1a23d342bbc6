"""Which engines there are, whether they are installed, and what they can do."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import anyio

from aima_lib.engines.base import Engine, Found, misfit
from aima_lib.errors import FailedPrecondition, NotFound, Unavailable
from aima_lib.infra.store import Document, Store
from aima_lib.names import did_you_mean, nearest
from aima_lib.services.wire import Address, Wire

FOUND_SECONDS = 30.0
ALIVE = ("starting", "ready")


class EngineCatalog:
    """The adapters, and what is known of each on this machine."""

    def __init__(self, engines: Mapping[str, Engine], store: Store, wire: Wire) -> None:
        self._engines, self._store, self._wire = engines, store, wire
        self._found: dict[str, tuple[float, Found]] = {}

    def adapter(self, name: str) -> Engine:
        """The engine called `name`.

        Raises:
            NotFound: AIMA knows none; the nearest are named.
        """
        if name not in self._engines:
            hint = did_you_mean(name, self._engines) or f"there are: {', '.join(self._engines)}"
            details = {"nearest": nearest(name, self._engines)}
            raise NotFound(f"no engine called {name!r}", hint=hint, next=[{"unit": "engine.list", "arguments": {}}], details=details)
        return self._engines[name]

    async def all(self, type: str | None, status: str | None) -> list[Document]:
        """See EngineService.list_engines."""
        rows = [await self.get(name) for name in self._engines]
        return [row for row in rows if (type is None or type in row["tasks"]) and (status is None or status == row["status"])]

    async def get(self, name: str) -> Document:
        """See EngineService.engine."""
        engine = self.adapter(name)
        found = await self.find(name)
        instances = self._store.find("instance", engine=name)
        running = any(instance["status"] in ALIVE for instance in instances)
        return {
            "name": name,
            "title": engine.title,
            "version": found.version,
            "installed": found.installed,
            "status": "running" if running else "available" if found.installed else "unavailable",
            "reason": found.reason,
            "formats": [*engine.formats],
            "tasks": [*engine.tasks],
            "launchers": ["process"],
            "instances": instances,
        }

    async def find(self, name: str) -> Found:
        """Whether an engine is installed; asked again at most every 30 s."""
        known = self._found.get(name)
        if known is None or time.monotonic() - known[0] > FOUND_SECONDS:
            known = self._found[name] = (time.monotonic(), await anyio.to_thread.run_sync(self.adapter(name).find))
        return known[1]

    def forget(self, name: str) -> None:
        """Ask again whether an engine is installed, the next time."""
        self._found.pop(name, None)

    async def refuse_absent(self, engine: Engine) -> None:
        """Raise FailedPrecondition, with the reason, when the engine is not installed now."""
        self.forget(engine.name)
        found = await self.find(engine.name)
        if not found.installed:
            raise FailedPrecondition(f"{engine.name} cannot be started: {found.reason}", next=[mending(engine)])

    async def fitting(self, model: Mapping[str, Any]) -> str:
        """The engine to take for a model when nobody names one.

        Raises:
            FailedPrecondition: none that is installed serves its kind.
        """
        readers = [name for name, engine in self._engines.items() if misfit(engine, model) is None]
        reasons = {name: (await self.find(name)).reason for name in readers}
        for name, reason in reasons.items():
            if reason is None:
                return name
        if not readers:
            raise self._unreadable(model)
        hint = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
        calls = [mending(self._engines[name]) for name in readers[:1]]
        raise FailedPrecondition(f"no engine that reads {model['id']} is installed", hint=hint, next=calls)

    def _unreadable(self, model: Mapping[str, Any]) -> FailedPrecondition:
        near = [engine for engine in self._engines.values() if model.get("format") in engine.formats]
        reasons = [misfit(engine, model) for engine in near]
        hint = "; ".join(reason for reason in reasons if reason) or "import it as GGUF"
        return FailedPrecondition(f"no engine reads {model['id']}, whose format is {model.get('format')}", hint=hint)

    async def features(self, name: str, running: Sequence[tuple[Document, Address]]) -> Document:
        """See EngineService.features."""
        engine = self.adapter(name)
        declared = {
            "name": name,
            "source": "declared",
            "instance_id": None,
            "formats": [*engine.formats],
            "tasks": [*engine.tasks],
            "options": sorted(engine.options),
            "dialects": [*engine.dialects],
            "modalities": ["text"],
            "context_length": None,
            "parallel": None,
            "tools": None,
        }
        for instance, address in running:
            try:
                status, answer = await self._wire.get(address, "/props", timeout=5)
            except Unavailable:
                continue
            if status == 200:
                return declared | _observed(instance, answer)
        return declared


def mending(engine: Engine) -> Document:
    """The call that may bring an engine here, else the one that says what there is."""
    if engine.install is not None or engine.builtin is not None:
        return {"unit": "engine.install", "arguments": {"name": engine.name}}
    return {"unit": "engine.list", "arguments": {}}


def _observed(instance: Document, properties: Mapping[str, Any]) -> Document:
    heard = properties.get("modalities") or {}
    settings = properties.get("default_generation_settings") or {}
    return {
        "source": "engine",
        "instance_id": instance["id"],
        "tasks": instance["tasks"],
        "modalities": ["text", *(name for name, there in heard.items() if there)],
        "context_length": settings.get("n_ctx"),
        "parallel": properties.get("total_slots"),
        "tools": calls_tools(properties),
    }


def calls_tools(properties: Mapping[str, Any]) -> bool | None:
    """Whether the chat template shows tools to the model, as the engine's properties say; None when they do not."""
    found = (properties.get("chat_template_caps") or {}).get("supports_tools")
    return None if found is None else bool(found)
