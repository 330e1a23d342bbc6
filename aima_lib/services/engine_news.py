"""What happens to engines, as events."""

from __future__ import annotations

from typing import Any

from aima_lib.infra.events import Event, Events
from aima_lib.infra.lineage import Notice
from aima_lib.infra.progress import Send
from aima_lib.infra.store import Document


class EngineNews:
    """Publishes the engine.* events; each is about one instance."""

    def __init__(self, events: Events) -> None:
        self._events = events

    async def progress(self, instance: Document, phase: str, message: str, send: Send) -> None:
        """A step of a start, for the log and for who waits."""
        self._publish("engine.start_progress", instance, phase=phase, message=message)
        await send({"phase": phase, "message": message, "completed": None, "total": None})

    def begun(self, instance: Document) -> Event | None:
        """The last step of its start that is known."""
        return self._events.latest("engine.start_progress", instance["id"])

    def started(self, instance: Document, adopted: bool) -> None:
        """It answers."""
        facts = {key: instance[key] for key in ("pid", "base_url", "placement")}
        self._publish("engine.started", instance, **facts, adopted=adopted)

    def stopped(self, instance: Document, reason: str, freed: int | None) -> None:
        """It runs no more."""
        self._publish("engine.stopped", instance, reason=reason, freed_bytes=freed)

    def error(self, instance: Document, why: str) -> Notice:
        """It died, or did not start."""
        return self._publish("engine.error", instance, cause=why)

    def health(self, instance: Document, health: str) -> None:
        """A probe judged it otherwise than before."""
        self._publish("engine.health_changed", instance, old_status=instance["health"], new_status=health)

    def _publish(self, type: str, instance: Document, **facts: Any) -> Notice:
        who = {"instance_id": instance["id"], "engine": instance["engine"], "model_id": instance["model_id"]}
        return self._events.publish(type, who | facts, subject=instance["id"])
