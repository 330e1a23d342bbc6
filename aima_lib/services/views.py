"""Services as they are shown: what is wanted of them, and what their engines are now. Read off both, never remembered."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from aima_lib.infra.store import Document
from aima_lib.services.meter import Meter
from aima_lib.services.replicas import asked
from aima_lib.services.routes import Routes
from aima_lib.services.turns import Turns

ALIVE = ("starting", "ready")
FIRST = ("id", "name", "model_id", "engine", "options")  # what a reader wants first
INNER = ("replicas", "numbers", "rollout")  # of a record, what is shown by other names


class Views:
    """`meters` by service; `settings` gives what a service is held to, with what is usual filled in."""

    def __init__(self, routes: Routes, turns: Turns, meters: Mapping[str, Meter], settings: Callable[[Document], Document]) -> None:
        self._routes, self._turns, self._meters, self._settings = routes, turns, meters, settings

    def view(self, record: Document) -> Document:
        """A service, from its record."""
        instances, known = self._routes.instances(record["id"]), {each.id for each in asked(record)}
        ready = [each for each in instances if each["status"] == "ready" and each["id"] in known]
        if record["desired_replicas"]:
            status = "failed" if record["error"] else "running" if ready else "starting"
        else:
            status = "stopping" if any(each["status"] in ALIVE for each in instances) else "stopped"
        lane = self._turns.lanes.get(record["id"])
        metrics = self._meters[record["id"]].read() | {"retried": self._turns.retried[record["id"]], "waiting": lane.waiting if lane else 0}
        shown = {key: value for key, value in record.items() if key not in INNER}
        now = {
            "status": status,
            "health": self._health(record, ready),
            "ready_replicas": len(ready),
            "endpoints": [{"base_url": each["base_url"], "instance_id": each["id"], "tasks": each["tasks"]} for each in ready],
            "placement": ready[0]["placement"] if ready else None,
            "metrics": metrics,
        }
        first = {key: shown[key] for key in FIRST}
        return {**first, **now, **self._settings(record), **shown, **now}

    def _health(self, record: Document, ready: Sequence[Document]) -> str:
        """Of all its engines: as probes saw them, and degraded where one is missing, or does not answer, beside others that do."""
        seen = [each["health"] for each in ready]
        if not seen:
            return "unknown"
        if "healthy" in seen and ("unhealthy" in seen or len(seen) < record["desired_replicas"] or self._meters[record["id"]].is_slow):
            return "degraded"
        return "unhealthy" if "unhealthy" in seen else seen[0]
