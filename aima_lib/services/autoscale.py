"""More engines for a service whose requests wait, fewer for one that has too many; off unless a service has bounds for it.

It is slow on purpose: what it acts on must hold for a while, having less to do counts only from half as much, and after each step it looks
anew. It asks for memory as every start does, and takes none from others.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from aima_lib.errors import AimaError
from aima_lib.infra.events import Events
from aima_lib.infra.store import Document, Store

if TYPE_CHECKING:
    from aima_lib.services.serving import ServingService

log = logging.getLogger(__name__)
SEEN_SECONDS, LEAST_SEEN = 15.0, 5  # of times to first token: how far back, and how many say something
REFUSED_SECONDS = 60.0  # before what did not start is asked for again
USUAL: Document = {"min": 1, "waiting": 4, "ttft_ms": None}


class Autoscaler:
    """Looks at each service as often as the reconciler does."""

    def __init__(self, config: Mapping[str, Any], store: Store, events: Events, serving: ServingService) -> None:
        settings = config["inference"]
        self._up, self._down = float(settings["autoscale_up_seconds"]), float(settings["autoscale_down_seconds"])
        self._store, self._events, self._serving = store, events, serving
        self._since: dict[str, tuple[int, float]] = {}  # which way it wants, and since when
        self._stepped: dict[str, float] = {}
        self._refused: dict[str, float] = {}
        self._busy: set[str] = set()

    def forget(self, service_id: str) -> None:
        """It is gone."""
        for known in (self._since, self._stepped, self._refused):
            known.pop(service_id, None)

    def consider(self, record: Document) -> None:
        """Take a step, where it is time for one."""
        id, bounds = record["id"], record.get("autoscale")
        if not bounds or not record["desired_replicas"] or id in self._busy:
            return
        way, why = self._wanted(record, bounds)
        if not way:
            self._since.pop(id, None)
            return
        known, since = self._since.get(id, (0, 0.0))
        if known != way:
            known, since = self._since[id] = way, time.monotonic()
        is_outside = not bounds["min"] <= record["desired_replicas"] <= bounds["max"]
        if is_outside or time.monotonic() - since >= (self._up if way > 0 else self._down):
            self._since.pop(id)
            self._busy.add(id)
            self._serving.reconciler.spawn(self._step, id, record["desired_replicas"], way, why)

    def _wanted(self, record: Document, bounds: Mapping[str, Any]) -> tuple[int, str]:
        """One more (1), one less (-1) or as it is (0), and why."""
        id, has = record["id"], int(record["desired_replicas"])
        ready = len(self._serving.routes.ready(id))
        if has < bounds["min"] or has > bounds["max"]:
            way, why = (1 if has < bounds["min"] else -1), f"it is to have {bounds['min']} to {bounds['max']}"
        elif ready < has:
            return 0, ""  # one comes, or is being restarted: what it will change is not known yet
        else:
            way, why = self._pressed(id, ready, bounds)
        if way > 0 and (has >= bounds["max"] or time.monotonic() < self._refused.get(id, 0.0)):
            return 0, ""
        if way < 0 and (has <= bounds["min"] or record.get("pinned")):
            return 0, ""
        return way, why

    def _pressed(self, id: str, ready: int, bounds: Mapping[str, Any]) -> tuple[int, str]:
        state, most = self._serving.turns.of_service(id).state(), bounds["ttft_ms"]
        waiting, under_way = int(state["queue_depth"]), int(state["under_way"])
        since = max(self._stepped.get(id, 0.0), time.monotonic() - SEEN_SECONDS)
        first = self._serving.meters[id].ttft_since(since, LEAST_SEEN) if most else None
        if waiting > bounds["waiting"] * ready:
            return 1, f"{waiting} requests wait for {ready} engines"
        if most and first is not None and first > most:
            return 1, f"its time to first token is {first:.0f} ms, where {most:g} are wanted"
        is_slow = bool(most and first is not None and first > most / 2)
        if not waiting and not is_slow and under_way * 2 <= state["slots"] * (ready - 1) / max(1, ready):
            return -1, f"{under_way} requests are under way at {ready} engines"
        return 0, ""

    async def _step(self, service_id: str, before: int, way: int, why: str) -> None:
        try:
            await self._serving.step(service_id, before, before + way, why)
        except AimaError as error:
            log.warning("service %s stays as it is: %s", service_id, error)
            self._refused[service_id] = time.monotonic() + REFUSED_SECONDS
            if record := self._store.peek("service", service_id):
                cause = f"{why}, and one more does not start: {error}"
                payload = {"service_id": service_id, "model_id": record["model_id"], "cause": cause}
                self._events.publish("service.degraded", payload, subject=service_id)
        finally:
            self._stepped[service_id] = time.monotonic()
            self._busy.discard(service_id)
