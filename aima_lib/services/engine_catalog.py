"""Which engines there are, whether they are installed, and what they can do."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import anyio

from aima_lib.engines.base import Engine, Found, misfit
from aima_lib.errors import FailedPrecondition, NotFound, Unavailable
from aima_lib.infra.kinds import ABILITIES
from aima_lib.infra.store import Document, Store
from aima_lib.names import did_you_mean, nearest
from aima_lib.services.containers import Containers, is_contained
from aima_lib.services.wire import Address, Wire

FOUND_SECONDS = 30.0
ALIVE = ("starting", "ready")
# The types of model by what they answer: the other way round of what each type can do.
TASK_TYPES = {
    ability: tuple(kind for kind, abilities in ABILITIES.items() if ability in abilities)
    for ability in dict.fromkeys(name for names in ABILITIES.values() for name in names)
} | {"chat": ("llm", "vlm")}


class EngineCatalog:
    """The adapters, and what is known of each on this machine."""

    def __init__(self, engines: Mapping[str, Engine], store: Store, wire: Wire, containers: Containers) -> None:
        self._engines, self._store, self._wire, self._containers = engines, store, wire, containers
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
        found, contained = await self.find(name), await self._containers.found(name)
        instances = self._store.find("instance", engine=name)
        running = any(instance["status"] in ALIVE for instance in instances)
        installed = found.installed or bool(contained and contained["available"])
        return {
            "name": name,
            "title": engine.title,
            "version": found.version,
            "installed": installed,
            "status": "running" if running else "available" if installed else "unavailable",
            "reason": found.reason,
            "formats": [*engine.formats],
            "tasks": [*engine.tasks],
            "launchers": self._containers.launchers(name, found.installed),
            "container": contained,
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

    async def compatibility(self, devices: Sequence[Mapping[str, Any]]) -> list[Document]:
        """Engine × format × task × device, as the adapters declare it and this machine allows it."""
        rows: list[Document] = []
        for name, engine in self._engines.items():
            found = await self.find(name)
            gpus = await anyio.to_thread.run_sync(engine.gpus) if found.installed else []
            for device in devices:
                usable, reason = _usable(engine, found, device, gpus)
                rows += [
                    {"engine": name, "version": found.version, "format": format, "task": task, "types": _types(engine, task),
                     "device_id": device["id"], "usable": usable, "reason": reason}
                    for format in engine.formats for task in engine.tasks
                ]  # fmt: skip
        return rows

    def version(self, name: str, options: Mapping[str, Any]) -> str | None:
        """The version that was found last, or the image of a container; None before anybody looked."""
        if is_contained(options):
            return self._containers.image(name)
        known = self._found.get(name)
        return known[1].version if known else None

    async def refuse_absent(self, engine: Engine, options: Mapping[str, Any]) -> None:
        """Raise FailedPrecondition, with the reason, when the engine is not installed now; Unavailable when the Docker it needs is away."""
        if is_contained(options):
            await self._containers.refuse_absent(engine.name)
            return
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


def _usable(engine: Engine, found: Found, device: Mapping[str, Any], gpus: Sequence[str] | None) -> tuple[bool | None, str | None]:
    """Whether an engine can compute on a device, and why not."""
    kinds = getattr(engine, "devices", ("cpu", "gpu"))  # what an adapter does not say, its build does
    if not found.installed:
        return False, found.reason
    if device["type"] not in kinds:
        return False, f"{engine.name} computes on {', '.join(kinds)} only"
    if device["type"] != "gpu":
        return True, None
    if gpus is None:
        return None, f"{engine.name} says which GPUs it can use when it runs"
    return bool(gpus), None if gpus else f"this build of {engine.name} lists no GPU it can use"


def _types(engine: Engine, task: str) -> list[str]:
    """Types of model that do a task, of those the engine serves."""
    served = getattr(engine, "types", ())
    doing = TASK_TYPES.get(task, ())
    return [kind for kind in doing if not served or kind in served]


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
