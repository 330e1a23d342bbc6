"""Which services are in memory: unloaded when nobody asks, loaded by a request, and when two do not fit together, in turns.

A service that waits for memory takes the place of others that are worth less: lowest priority first, then whoever nobody asks, then what is
cheapest to load again; never one that is pinned, and none before it has been there for the least time. So requests over two models that do
not fit together make one swap in that time at most, whatever their number. Services of one group give way to each other in the same way,
whatever the memory; and so for one that somebody starts and says that it shall make room. Who made way for one that does not come after
all is loaded again.
"""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, nullcontext, suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio

from aima_lib.errors import AimaError, NotFound, ResourceExhausted, Unavailable
from aima_lib.infra.events import Events
from aima_lib.infra.progress import Send, silent
from aima_lib.infra.store import Document, Store
from aima_lib.services.groups import Groups
from aima_lib.services.routes import Candidate

if TYPE_CHECKING:
    from aima_lib.services.serving import ServingService

TELL_SECONDS, DRAIN_SECONDS, ATTEMPTS = 2.0, 60.0, 8
USUAL: Document = {
    "replicas": 1,
    "idle_unload_seconds": None,
    "pinned": False,
    "priority": 50,
    "group": None,
    "unloaded": False,
    "autoscale": None,
}
log = logging.getLogger(__name__)


class Residence:
    """Loads and unloads services. `swaps` counts those that had to give way."""

    def __init__(self, config: Mapping[str, Any], store: Store, events: Events, serving: ServingService) -> None:
        settings = config["inference"]
        self._on_request, self._idle = bool(settings["load_on_request"]), float(settings["idle_unload_seconds"])
        self._least, self._patience = float(settings["residence_seconds"]), float(settings["queue_seconds"])
        self._store, self._events, self._serving = store, events, serving
        self.groups = Groups(settings["groups"], store, self._worth)
        self._coming: set[str] = set()
        self._gave_way: defaultdict[str, list[str]] = defaultdict(list)  # for whom
        self._refused: dict[str, AimaError] = {}
        self._since: dict[str, float] = {}
        self._slow: set[str] = set()
        self._loading = anyio.Lock()
        self._news = anyio.Event()
        self.swaps = 0
        store.watch(self._changed)

    # What is wanted of a service

    def settings(self, given: Mapping[str, Any], *, shown: bool = False) -> Document:
        """What a service is held to, with what is usual filled in. `shown` leaves out what its record shows by another name."""
        found = {key: given.get(key, usual) for key, usual in USUAL.items()}
        return {key: value for key, value in found.items() if key != "replicas"} if shown else found

    def is_coming(self, service_id: str) -> bool:
        """Whether it is being loaded, or will be in its turn."""
        return service_id in self._coming

    def loaded(self, service_id: str) -> None:
        """It is there."""
        self._since[service_id] = time.monotonic()

    # Requests

    async def summon(self, model: str, task: str, candidates: Sequence[Candidate]) -> str | None:
        """See ServingService.summon."""
        if any(
            instance and instance["status"] == "ready" and (service or {}).get("desired_replicas", 1) for instance, service in candidates
        ):
            return None  # it answers, and cannot do what was asked
        services = list({service["id"]: service for _, service in candidates if service}.values())
        for service in services:
            if self.is_coming(service["id"]) or (service["desired_replicas"] and not service["error"]):
                return str(service["id"])
        if not self._on_request:
            return None
        for service in services:
            if service.get("unloaded"):
                return self._call(service["id"])
        if candidates or task == "embed":  # which takes an option that somebody must have chosen
            return None
        if (found := self._store.peek("model", model)) and found.get("status", "ready") == "ready":
            return self._call(await self._serving.register(model, self._idle))
        return None

    async def awaited(self, service_id: str, caller: str, send: Send) -> None:
        """See ServingService.awaited."""
        lane = self._serving.turns.of_service(service_id)
        lane.expect(caller)
        try:
            with anyio.fail_after(self._patience):
                while not self._serving.routes.ready(service_id):
                    error = self._serving.why_not(service_id)
                    if error is not None:
                        raise _again(self._refused.get(service_id) or error)
                    news = self._news
                    with anyio.move_on_after(TELL_SECONDS) as waiting:
                        await news.wait()
                    if waiting.cancelled_caught:
                        message = f"{service_id} is being loaded; {lane.expected} requests wait for it"
                        await send({"delta": {}, "loading": {"service_id": service_id, "message": message}})
        except TimeoutError as error:
            message = f"{service_id} was not ready within {self._patience:g} s"
            raise Unavailable(message, hint="ask again later", details=lane.state()) from error
        finally:
            lane.expected -= 1

    def _call(self, service_id: str) -> str:
        if service_id not in self._coming:
            self._serving.reconciler.spawn(self._load, service_id)
            self._coming.add(service_id)
            self._refused.pop(service_id, None)
        return service_id

    async def _load(self, service_id: str) -> None:
        try:
            async with self._loading:
                await self.fitted(service_id, partial(self._serving.bring_up, service_id))
            self._gave_way.pop(service_id, None)
        except AimaError as error:
            log.warning("%s cannot be loaded: %s", service_id, error)
            self._refused[service_id] = error = self.advised(service_id, error)
            self._serving.turns.of_service(service_id).give_up(error)
        finally:
            self._coming.discard(service_id)
            self._put_back(service_id)
            self._changed({"service"})

    async def fitted(self, service_id: str, bring_up: Callable[[], Awaitable[None]], send: Send = silent) -> None:
        """Bring a service up; where memory is short others give way first. Raises as `bring_up`."""
        for attempt in range(ATTEMPTS):
            try:
                await bring_up()
                return
            except ResourceExhausted as error:
                victims = self._victims(service_id, error)
                if not victims or attempt == ATTEMPTS - 1:
                    raise
                for victim in victims:
                    message = f"{victim} leaves: {service_id} takes its memory"
                    await send({"phase": "making room", "message": message, "completed": None, "total": None})
                    with suppress(NotFound):  # it was deleted meanwhile
                        await self._evict(victim, service_id, "evicted")

    @asynccontextmanager
    async def _coming_in(self, service_id: str) -> AsyncIterator[None]:
        """While a service is on its way; who made way for it is loaded again when the block fails."""
        is_mine = service_id not in self._coming  # a request's, or an outer block's, is settled once all was tried
        self._coming.add(service_id)
        try:
            yield
            if is_mine:
                self._gave_way.pop(service_id, None)
        finally:
            if is_mine:
                self._coming.discard(service_id)
                self._put_back(service_id)

    # Groups

    @asynccontextmanager
    async def place(self, service_id: str, group: str | None, send: Send = silent, make_room: bool = False) -> AsyncIterator[None]:
        """A place in a group for a service that is loaded in the block; whoever was in its way has left. For who holds the service's lock.

        make_room: who leaves for it in the block, by `fitted`, comes back as well if it fails.

        Raises:
            FailedPrecondition: who is in its way is pinned.
        """
        if not group:
            async with self._coming_in(service_id) if make_room else nullcontext():
                yield
            return
        async with self._coming_in(service_id), self.groups.locks[group]:
            while leaving := self.groups.leaving(service_id, group):
                message = f"{leaving[0]} leaves: {service_id} takes its place in the group {group}"
                await send({"phase": "making room", "message": message, "completed": None, "total": None})
                with suppress(NotFound):  # it was deleted meanwhile
                    await self._evict(leaving[0], service_id, "group")
            for record in self.groups.lingering(service_id, group):  # being stopped, or its host died over it
                with suppress(NotFound):
                    await self._serving.put_down(record["id"], DRAIN_SECONDS, unloaded=bool(record.get("unloaded")))
            yield

    def gave_way(self, service_id: str) -> list[str]:
        """Who has left for a service that is not there yet."""
        return list(self._gave_way.get(service_id, ()))

    def _put_back(self, service_id: str) -> None:
        """Load again who left for a service that has not come."""
        for each in self._gave_way.pop(service_id, ()):
            record = self._store.peek("service", each)
            group = (record or {}).get("group")
            taken = group and self.groups.locks[group].locked()  # by somebody else who was asked for after it
            if record and record.get("unloaded") and not taken:  # and nobody stopped it meanwhile
                with suppress(Unavailable):  # the host ends: a request will bring it back
                    self._call(each)

    async def thin_out(self) -> None:
        """Unload whoever is beyond what its group may have since the host was started with another configuration."""
        for service_id in self.groups.beyond():
            await self._put_down(service_id, "group", 0.0)

    # Memory

    def advised(self, service_id: str, error: AimaError) -> AimaError:
        """The refusal, with the services that would have to be stopped for it to fit."""
        if not isinstance(error, ResourceExhausted):
            return error
        victims = self._victims(service_id, error)
        if not victims:
            return error
        make_room = {"unit": "service.start", "arguments": {"service_id": service_id, "make_room": True}}
        calls = [make_room, *({"unit": "service.stop", "arguments": {"service_id": victim}} for victim in victims)]
        details = error.details | {"would_fit_without": victims}
        hint = f"{error.hint}; or it fits once {', '.join(victims)} {'is' if len(victims) == 1 else 'are'} unloaded, as make_room has it"
        return ResourceExhausted(str(error), hint=hint, next=[*error.next, *calls], details=details)

    def _victims(self, service_id: str, error: AimaError) -> list[str]:
        """Who would have to give way: none, where that would not be enough, or nobody knows how much is missing."""
        needed, usable = error.details.get("needed_bytes"), error.details.get("usable_bytes")
        mine = self._store.peek("service", service_id)
        if needed is None or usable is None or mine is None:
            return []
        return self.making_way(service_id, self.settings(mine)["priority"], needed - usable, error.details["device_id"])

    def making_way(self, service_id: str, priority: int, missing: int, device_id: str) -> list[str]:
        """Who would be unloaded so that a service of this priority has so many bytes more of a device: nobody, where that would not be
        enough."""
        chosen = list[str]()
        for victim in sorted(self._others(service_id, priority), key=self._worth):
            if missing <= 0:
                break
            if taken := self._serving.memory_bytes(victim, device_id):  # of others nothing would come free there
                chosen.append(victim["id"])
                missing -= taken
        return chosen if missing <= 0 else []

    def _others(self, service_id: str, priority: int) -> list[Document]:
        found = [self._serving.get(record["id"]) for record in self._store.find("service") if record["id"] != service_id]
        return [each for each in found if each["ready_replicas"] and not each["pinned"] and each["priority"] <= priority]

    def _worth(self, service: Document) -> tuple[int, bool, int, float]:
        lane = self._serving.turns.of_service(service["id"])
        model = self._store.peek("model", service["model_id"]) or {}
        return self.settings(service)["priority"], bool(lane.open), int(model.get("size_bytes") or 0), lane.last_used

    async def _evict(self, service_id: str, coming: str, reason: str) -> None:
        """Let a service give way, once it has been there for the least time. Who waits for it waits on, and it comes back in its turn."""
        await anyio.sleep(max(0.0, self._since.get(service_id, 0.0) + self._least - time.monotonic()))
        record = self._store.peek("service", service_id)
        if record is None or not record["desired_replicas"] or record.get("pinned"):
            return  # it was deleted, stopped or pinned meanwhile
        self.swaps += 1
        self._gave_way[coming].append(service_id)
        self._coming.add(service_id)
        try:
            await self._put_down(service_id, reason, DRAIN_SECONDS)
        finally:
            self._coming.discard(service_id)
            lane = self._serving.turns.lanes.get(service_id)
            if lane and (lane.waiting or lane.expected):
                self._call(service_id)

    async def _put_down(self, service_id: str, reason: str, drain_seconds: float) -> None:
        record = self._store.get("service", service_id)
        lane = self._serving.turns.of_service(service_id)
        idle = round(time.monotonic() - lane.last_used, 1)
        freed = await self._serving.put_down(service_id, drain_seconds, unloaded=True)
        payload = {"service_id": service_id, "model_id": record["model_id"], "reason": reason, "freed_bytes": freed, "idle_seconds": idle}
        self._events.publish("service.unloaded", payload, subject=service_id)

    # Idleness and speed

    def consider(self, record: Document) -> None:
        """Unload a service that nobody has asked for so long, and say when one answers far more slowly than it used to."""
        self._judge_speed(record)
        wanted, id = self.settings(record), record["id"]
        if (
            not record["desired_replicas"]
            or wanted["pinned"]
            or wanted["idle_unload_seconds"] is None
            or not self._serving.routes.ready(id)
        ):
            return
        lane, now = self._serving.turns.of_service(id), time.monotonic()
        last = max(lane.last_used, self._since.setdefault(id, now))
        if not lane.open and not lane.expected and now - last >= wanted["idle_unload_seconds"]:
            self._coming.add(id)
            self._serving.reconciler.spawn(self._unload, id)

    async def _unload(self, service_id: str) -> None:
        try:
            await self._put_down(service_id, "idle", 0.0)
        except AimaError as error:  # it was deleted meanwhile
            log.info("%s is not unloaded: %s", service_id, error)
        finally:
            self._coming.discard(service_id)
            lane = self._serving.turns.lanes.get(service_id)
            if lane and (lane.waiting or lane.expected) and self._store.peek("service", service_id):
                self._call(service_id)

    def _judge_speed(self, record: Document) -> None:
        id, meter = record["id"], self._serving.meters[record["id"]]
        if meter.is_slow and id not in self._slow:
            self._slow.add(id)
            recent, usual = meter.speeds
            cause = f"{recent:.1f} tokens/s, where {usual:.1f} are usual for it"
            self._events.publish("service.degraded", {"service_id": id, "model_id": record["model_id"], "cause": cause}, subject=id)
        elif not meter.is_slow:
            self._slow.discard(id)

    def _changed(self, kinds: set[str]) -> None:
        if kinds & {"service", "instance"}:
            news, self._news = self._news, anyio.Event()
            news.set()


def _again(error: AimaError) -> AimaError:
    """The same error for somebody else: each has a trace of its own."""
    return type(error)(str(error), hint=error.hint, next=error.next, details=error.details)
