"""A request's way to an engine: a seat in its service's lane, and another try elsewhere as long as nothing of an answer has come."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

import anyio

from aima_lib.errors import AimaError, FailedPrecondition, Unavailable
from aima_lib.infra.pool import Line, Lost
from aima_lib.infra.store import Store
from aima_lib.services.affinity import marks
from aima_lib.services.answer import BYTES_A_TOKEN
from aima_lib.services.engine_calls import logs_call
from aima_lib.services.keys import PRIORITIES, USUAL_PRIORITY
from aima_lib.services.lane import Lane, Limits, Seat
from aima_lib.services.routes import Endpoint, Routes
from aima_lib.services.wire import Wire, encoded

TRIES = 3
DEADLY = 2  # engines that went away under one request: there shall be no third
USUAL_TOKENS = 256  # of an answer whose length nobody limited
AGAIN = (429, 502, 503, 504)  # an engine that cannot just now; what it says otherwise is its answer
ALONE = "instance "  # before the name of an instance that belongs to no service
WhyNot = Callable[[str], AimaError | None]


class Turns:
    """The lanes of every service, and of instances that belong to none."""

    def __init__(self, config: Mapping[str, Any], store: Store, routes: Routes, wire: Wire, why_not: WhyNot) -> None:
        settings = config["inference"]
        self._limits = Limits(int(settings["queue_limit"]), int(settings["queue_limit_per_caller"]), float(settings["queue_seconds"]))
        self._store, self._routes, self._wire, self._why_not = store, routes, wire, why_not
        self.lanes: dict[str, Lane] = {}
        self.retried: defaultdict[str, int] = defaultdict(int)
        store.watch(self._changed)

    def lane(self, endpoint: Endpoint) -> Lane:
        """The lane that leads to an endpoint."""
        if endpoint.service:
            return self.of_service(endpoint.service["id"])
        name = f"{ALONE}{endpoint.instance['id']}"
        lane = self.lanes.get(name)
        if lane is None:
            lane = self.lanes[name] = Lane(endpoint.instance["id"], self._limits, self._rank)
            self._update(name, lane)
        return lane

    def of_service(self, service_id: str) -> Lane:
        """The lane of a service, also of one that is not ready."""
        lane = self.lanes.get(service_id)
        if lane is None:
            lane = self.lanes[service_id] = Lane(service_id, self._limits, self._rank)
            self._update(service_id, lane)
        return lane

    def forget(self, service_id: str) -> None:
        """The service is gone."""
        self.lanes.pop(service_id, None)

    async def begun(self, lane: Lane, caller: str, path: str, request: Mapping[str, Any], data: bytes | None = None) -> tuple[Seat, Line]:
        """A seat, and the answer there, of which something has come: the first bytes of a stream, or the head; `ended` must follow. Where
        an engine fails before that, another is asked, or the same once it is back. `data` is the request where it goes on as it came.

        Raises:
            AimaError: as `Lane.enter`; Unavailable when engines failed.
            FailedPrecondition: two went away while they had it, so that it seems to be the cause.
        """
        data, kind = encoded(request) if data is None else (data, None)
        longest = request.get("max_tokens")
        tokens = (len(data) // BYTES_A_TOKEN if kind is None else 0) + (longest if isinstance(longest, int) else USUAL_TOKENS)
        read = marks(request) if lane.is_wide else ()
        tried, gone = list[tuple[str, str]](), dict[tuple[str, str], None]()
        while True:
            seat = await lane.enter(caller, tokens, read, tried, again=bool(tried))
            tried.append(seat.place.start)
            line: Line | None = None
            try:
                line = await self._first(lane, seat, path, data, kind, is_last=len(tried) == TRIES)
            except Lost as error:
                lane.failed(seat, unreachable=not error.heard)
                gone |= {seat.place.start: None} if error.gone else {}
                if len(gone) == DEADLY:
                    raise _deadly([id for id, _ in gone]) from error
                if len(tried) == TRIES:
                    raise Unavailable(f"{seat.endpoint.instance['id']} cannot be reached: {error}") from error
            finally:
                if line is None:
                    lane.leave(seat)
            if line is not None:
                return seat, line
            self.retried[lane.name] += 1

    def ended(self, lane: Lane, seat: Seat, line: Line) -> None:
        """Done with the answer, whole or not: the seat is the next one's."""
        self._wire.end(line)
        lane.leave(seat)

    async def _first(self, lane: Lane, seat: Seat, path: str, data: bytes, kind: str | None, *, is_last: bool) -> Line:
        """The answer, when something of it is here. Raises Lost."""
        line = None
        if not lane.is_wide:
            line = await self._heard(seat, path, data, kind)
        else:
            with anyio.CancelScope() as seat.scope:
                line = await self._heard(seat, path, data, kind)
        if line is None:
            raise Lost("it answers neither this nor its probes", heard=False)
        if line.status in AGAIN and not is_last:
            self._wire.end(line)
            raise Lost(f"it answered {line.status}")
        if line.status < 500:
            lane.answered(seat)
        else:
            lane.failed(seat, unreachable=False)
        seat.scope = None
        return line

    async def _heard(self, seat: Seat, path: str, data: bytes, kind: str | None) -> Line:
        line = await self._wire.begin(seat.endpoint.address, path, data, kind)
        if line.status != 200 or line.content_type != "text/event-stream":
            return line
        begun = False
        try:
            await line.first()
            begun = True
        finally:
            if not begun:
                self._wire.end(line)
        return line

    def _rank(self, caller: str) -> int:
        key = self._store.peek("key", caller) or {}
        return PRIORITIES.index(key.get("priority") or USUAL_PRIORITY)

    def _changed(self, kinds: set[str]) -> None:
        """Services or instances are others now, or otherwise."""
        if kinds & {"service", "instance"}:
            for name, lane in list(self.lanes.items()):
                self._update(name, lane)

    def _update(self, name: str, lane: Lane) -> None:
        if name.startswith(ALONE):
            endpoints = self._routes.alone(name.removeprefix(ALONE))
            if not endpoints and not lane.open:
                del self.lanes[name]
        else:
            endpoints = self._routes.ready(name)
        lane.update(endpoints, lambda: self._why_not(name.removeprefix(ALONE)))


def _deadly(ids: list[str]) -> FailedPrecondition:
    """Two starts of engines ended under one request."""
    which = f"{ids[0]} went away twice" if ids[0] == ids[1] else f"{ids[0]} went away, and then {ids[1]},"
    message = f"{which} with this request and no word of an answer: the request itself seems to be the cause, and is not tried again"
    hint = "change it (a shorter prompt, fewer or smaller files, other options); engine.logs says what they died of"
    return FailedPrecondition(message, hint=hint, next=[logs_call(id) for id in dict.fromkeys(ids)], details={"instances": ids})
