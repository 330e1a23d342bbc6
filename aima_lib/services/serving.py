"""Services: models served for as long as they are wanted. What is wanted is in the store; a reconciler makes it so."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import anyio

from aima_lib.errors import AimaError, FailedPrecondition, NotFound
from aima_lib.infra.clock import now
from aima_lib.infra.events import Events
from aima_lib.infra.progress import Send, silent
from aima_lib.infra.store import Document, Store
from aima_lib.names import instance_id, slug
from aima_lib.services.autoscale import Autoscaler
from aima_lib.services.engine import EngineService
from aima_lib.services.launching import is_on_ray
from aima_lib.services.meter import Meter
from aima_lib.services.model import ModelService
from aima_lib.services.reconciler import Reconciler
from aima_lib.services.replicas import Replica, asked, definition, wanted
from aima_lib.services.residence import Residence
from aima_lib.services.rollout import Rollout
from aima_lib.services.routes import Candidate, Routes
from aima_lib.services.service_calls import call_of, how_to_go_on, refuse_other
from aima_lib.services.turns import Turns
from aima_lib.services.views import Views

log = logging.getLogger(__name__)
DRAIN_SECONDS = 30.0
ALIVE = ("starting", "ready")


class ServingService:
    """Keeps services running. A record says what is wanted; status and health are read off the instance, never remembered."""

    def __init__(self, config: Mapping[str, Any], store: Store, events: Events, models: ModelService, engines: EngineService) -> None:
        self._store, self._events, self._models, self._engines = store, events, models, engines
        self.locks: defaultdict[str, anyio.Lock] = defaultdict(anyio.Lock)
        self.ending: set[str] = set()
        self.routes = Routes(store, engines)
        self.turns = Turns(config, store, self.routes, engines.wire, self.why_not)
        self.residence = Residence(config, store, events, self)
        self.reconciler = Reconciler(config, store, events, engines, self)
        self.rollout = Rollout(store, events, engines, self)
        self.autoscaler = Autoscaler(config, store, events, self)
        self.meters: defaultdict[str, Meter] = defaultdict(Meter)
        self._views = Views(self.routes, self.turns, self.meters, lambda record: self.residence.settings(record, shown=True))

    # Reading

    def get(self, service_id: str) -> Document:
        """One service, as it is now.

        Raises:
            NotFound: there is none; the nearest are named.
        """
        return self._views.view(self._store.get("service", service_id))

    def list(
        self, status: str | None = None, model_id: str | None = None, limit: int = 100, offset: int = 0
    ) -> tuple[Sequence[Document], int]:
        """A page of services, oldest first, and how many there are in all."""
        rows = [self._views.view(record) for record in self._store.find("service", model_id=model_id)]
        chosen = [row for row in rows if status is None or row["status"] == status]
        return chosen[offset : offset + limit], len(chosen)

    async def status(self, service_id: str) -> Document:
        """A service and its instance, and what the last minute showed."""
        service = self.get(service_id)
        deaths = self.reconciler.deaths(self.replicas(service, most=True))
        queue = self.turns.of_service(service_id).state()
        return {
            "service": service,
            "instance": self._instance(service),
            "instances": self._instances(service),
            "metrics": service["metrics"],
            "queue": queue,
            "restarts": deaths,
        }

    async def logs(self, service_id: str, tail: int = 100, since: str | None = None) -> Sequence[str]:
        """The last lines its engine wrote."""
        service = self.get(service_id)
        try:
            return await self._engines.logs(service["instance_id"], tail, since)
        except NotFound:
            return []  # it never got as far as an engine

    # Changing

    async def foresee(
        self, model_id: str, name: str | None, engine: str | None, options: Mapping[str, Any]
    ) -> tuple[str, Document | None, int | None]:
        """What `create` would make: the service's id, the service if it is there already, and the memory it would take (None: unknown)."""
        model = self._model(model_id)
        chosen = engine or await self._engines.catalog.fitting(model)
        id = slug(name or model_id)
        old = self._store.peek("service", id)
        if old and self._views.view(old)["status"] != "failed":
            refuse_other(old, {"model_id": model_id, "engine": chosen, "options": dict(options)})
        _, _, needed = self._engines.foresee(chosen, model_id, options)
        return id, self._views.view(old) if old else None, needed

    async def create(
        self,
        model_id: str,
        name: str | None = None,
        engine: str | None = None,
        options: Mapping[str, Any] | None = None,
        send: Send = silent,
        *,
        make_room: bool = False,
        **more: Any,
    ) -> Document:
        """Serve a model from now on, over crashes and restarts; returns when it is ready. The same call again changes nothing.

        make_room: where memory is short, unload others as for a request.
        more: replicas, idle_unload_seconds, pinned, priority and group; what is left out is as the configuration says.

        Raises:
            NotFound: no such model or engine.
            InvalidArgument: an option the engine does not understand, or a model that it cannot read.
            AlreadyExists: a service of that name serves something else. One that has failed serves nothing, and is replaced.
            FailedPrecondition, ResourceExhausted, DeadlineExceeded: it did not start; it stays, as failed, and the error says how to go on.
            Of a group whose place somebody pinned has, nothing is started, and what was not there is not made.
        """
        model = self._model(model_id)
        chosen = engine or await self._engines.catalog.fitting(model)
        self._engines.refuse_unfit(chosen, model_id, options or {})
        id = slug(name or model_id)
        defined = {"model_id": model_id, "engine": chosen, "options": dict(options or {})}
        kept = _given(more)
        async with self.locks[id]:
            old = self._store.peek("service", id)
            self.leaving(id, kept.get("group", (old or {}).get("group")))
            if old and self._views.view(old)["status"] == "failed":  # it serves nothing: what the error advised may take its place
                await self._store.update("service", id, **defined, **kept, numbers=[], instance_id=instance_id(chosen, id))
            elif old:
                refuse_other(old, defined)
                await self._hold_to(id, kept, send)
            else:
                settings = self.residence.settings(kept)
                replicas = settings["replicas"]
                record = {
                    "id": id,
                    "name": name or model_id,
                    **defined,
                    **settings,
                    "desired_replicas": 0 if settings["group"] else replicas,  # of a group, who is in its way leaves before
                    "error": None,
                    "created_at": now(),
                }
                await self._store.insert("service", record | {"instance_id": instance_id(chosen, id)})
                self._events.publish("service.created", {"service_id": id, **defined}, subject=id)
            return await self.start_held(id, send, make_room)

    async def start(self, service_id: str, send: Send = silent, make_room: bool = False) -> Document:
        """Want it to run, and return when it does. Clears a failure and its count of restarts. Raises as `create` does."""
        self._store.get("service", service_id)
        async with self.locks[service_id]:
            return await self.start_held(service_id, send, make_room)

    async def start_held(self, service_id: str, send: Send, make_room: bool = False) -> Document:
        """As `start`, for who holds the service's lock."""
        record = self._store.get("service", service_id)
        self.reconciler.forget(self.replicas(record, most=True))
        async with self.residence.place(service_id, record.get("group"), send, make_room):
            record = await self._wanted(service_id)
            try:
                bring_up = partial(self.bring_up_replicas, record, send)
                await (self.residence.fitted(service_id, bring_up, send) if make_room else bring_up())
            except AimaError as error:
                await self.fail(record, str(error))
                raise how_to_go_on(self.residence.advised(service_id, error), service_id, self.residence.gave_way(service_id)) from error
            except anyio.get_cancelled_exc_class():
                with anyio.CancelScope(shield=True):  # nobody wants it any more, so nobody shall start it behind their back
                    await self._store.update("service", service_id, desired_replicas=0)
                raise
        return self.get(service_id)

    async def update(
        self,
        service_id: str,
        changes: Mapping[str, Any],
        settings: Mapping[str, Any],
        send: Send = silent,
        *,
        probe_seconds: float = 30.0,
        drain_seconds: float = 60.0,
    ) -> Document:
        """Change what a service serves (model_id, engine, options) or is held to (settings); None leaves one as it is.

        Raises as Rollout.update, and FailedPrecondition where it would join a group whose place somebody pinned has.
        """
        kept = _given(settings)
        self.leaving_to_join(service_id, kept.get("group"))
        await self.rollout.update(service_id, changes, probe_seconds, drain_seconds, send)
        if kept:
            async with self.locks[service_id]:
                await self._hold_to(service_id, kept, send)
        return self.get(service_id)

    async def _hold_to(self, service_id: str, kept: Document, send: Send) -> None:
        """Hold a service to other settings; if it is loaded and joins a group, others leave that. For who holds its lock."""
        group = kept.get("group") if self.residence.groups.is_loaded(self._store.get("service", service_id)) else None
        async with self.residence.place(service_id, group, send):
            await self._store.update("service", service_id, **kept)

    def leaving(self, service_id: str, group: str | None) -> Sequence[str]:
        """Who would leave a group for a service of it. Raises FailedPrecondition where that is pinned."""
        return self.residence.groups.leaving(service_id, group) if group else []

    async def making_way(
        self, model_id: str, service_id: str, engine: str | None, options: Mapping[str, Any], priority: int | None
    ) -> tuple[int | None, Sequence[str]]:
        """How much memory a service so defined would lack now (None: unknown), and who would be unloaded if it is to make room."""
        if is_on_ray(options):
            return 0, []
        chosen = engine or await self._engines.catalog.fitting(self._model(model_id))
        if priority is None:
            priority = self.residence.settings(self._store.peek("service", service_id) or {})["priority"]
        missing = await self._engines.missing_bytes(chosen, model_id, options, int(priority))
        if not missing:
            return missing, []
        return missing, self.residence.making_way(service_id, int(priority), missing, self._engines.device_of(chosen, options))

    def leaving_to_join(self, service_id: str, group: str | None) -> Sequence[str]:
        """As `leaving`, for a service that would join the group as it is: nobody, if it is not loaded."""
        return self.leaving(service_id, group) if self.residence.groups.is_loaded(self._store.get("service", service_id)) else []

    async def foresee_update(self, service_id: str, changes: Mapping[str, Any]) -> tuple[Document, int | None, bool | None] | None:
        """The service, and of one engine of what `update` would make of it the memory and whether it fits beside the others. None: nothing
        would be replaced."""
        record = self._store.get("service", service_id)
        target = self.rollout.target(record, changes)
        if not record["desired_replicas"] or definition(record) == target:
            return None
        return self._views.view(record), *await self.rollout.foresee(target, int(self.residence.settings(record)["priority"]))

    async def scale(self, service_id: str, replicas: int, send: Send = silent) -> Document:
        """Run a service with so many engines, and return when that is so. One that is stopped has them when it starts. It is not scaled by
        itself any more.

        Raises as `start` does; the engines that did start stay.
        """
        async with self.locks[service_id]:
            old = self._store.get("service", service_id)
            try:
                await self._resize(old, replicas, send, autoscale=None)
            finally:
                self._announce(old, replicas, None)
        return self.get(service_id)

    async def step(self, service_id: str, before: int, after: int, why: str) -> None:
        """Have so many engines if it has `before` still; those it had where one more does not start. Raises what kept it from that."""
        async with self.locks[service_id]:
            record = self._store.peek("service", service_id)
            if record is None or record["desired_replicas"] != before or not record.get("autoscale"):
                return
            try:
                await self._resize(record, after, silent)
            except AimaError:
                if self._store.get("service", service_id)["desired_replicas"]:
                    kept = await self._store.update("service", service_id, replicas=before, desired_replicas=before)
                    await self._end_surplus(kept, DRAIN_SECONDS)
                raise
            self._announce(record, after, why)

    async def _resize(self, old: Document, replicas: int, send: Send, **changes: Any) -> None:
        desired = {"desired_replicas": replicas} if old["desired_replicas"] else {}
        record = await self._store.update("service", old["id"], replicas=replicas, **desired, **changes)
        if record["desired_replicas"] and not record["error"]:
            await self._end_surplus(record, DRAIN_SECONDS)
            await self.bring_up_replicas(record, send)

    def _announce(self, old: Document, replicas: int, why: str | None) -> None:
        id, before = old["id"], wanted_replicas(old)
        if before != replicas:
            payload = {"service_id": id, "model_id": old["model_id"], "old_replicas": before, "new_replicas": replicas, "cause": why}
            self._events.publish("service.scaled", payload, subject=id)

    async def stop(self, service_id: str, timeout_seconds: float = 10.0) -> Document:
        """Want it not to run, and return when it does not. What is being answered may end within the time, what waits is turned away."""
        before = self.get(service_id)
        freed = await self.put_down(service_id, timeout_seconds, unloaded=False)
        if before["status"] != "stopped":
            payload = {"service_id": service_id, "model_id": before["model_id"], "freed_bytes": freed}
            self._events.publish("service.stopped", payload, subject=service_id)
        return self.get(service_id)

    async def put_down(self, service_id: str, timeout_seconds: float, *, unloaded: bool) -> int:
        """Want no engine, let what is being answered end, and end the engines; the bytes freed. unloaded: a request wants it again."""
        self.ending.add(service_id)
        try:
            await self._store.update("service", service_id, desired_replicas=0, unloaded=unloaded, error=None)
            await self.turns.of_service(service_id).emptied(timeout_seconds)
            return await self._end(self.get(service_id), timeout_seconds)
        finally:
            self.ending.discard(service_id)

    async def delete(self, service_id: str) -> int:
        """Stop it and forget it; the bytes of memory that were freed. Its model and its log stay."""
        before = self.get(service_id)
        await self._store.update("service", service_id, desired_replicas=0, unloaded=False)
        freed = await self._end(before, 10.0)
        async with self.locks[service_id]:
            freed += await self._end(before, 10.0)  # somebody who waited for the lock before us may have started it again
            if not await self._store.delete("service", service_id):
                raise self._store.missing("service", service_id)
            for id in self.replicas(before, most=True):
                await self._engines.forget(id)
        if before["status"] != "stopped":
            payload = {"service_id": service_id, "model_id": before["model_id"], "freed_bytes": freed}
            self._events.publish("service.stopped", payload, subject=service_id)
        self.reconciler.forget(self.replicas(before, most=True))
        self.meters.pop(service_id, None)
        self.turns.forget(service_id)
        self.autoscaler.forget(service_id)
        return freed

    async def _end(self, service: Document, timeout_seconds: float) -> int:
        self.ending.add(service["id"])
        try:
            return sum([await self._engines.end(each["id"], timeout_seconds) for each in self._instances(service)])
        finally:
            self.ending.discard(service["id"])

    async def _end_surplus(self, record: Document, timeout_seconds: float) -> None:
        """End the engines beyond what is wanted, once nobody is being answered there or the time is over."""
        known = set(self.replicas(record))
        for each in self._instances(record):
            if each["id"] not in known and each["status"] in ALIVE:
                await self.turns.of_service(record["id"]).left_by(each["id"], timeout_seconds)
                await self._engines.end(each["id"], timeout_seconds)

    # For requests

    async def register(self, model_id: str, idle_unload_seconds: float) -> str:
        """A service of a model that a request named, not running yet. Raises FailedPrecondition where no engine here reads it."""
        model = self._model(model_id)
        chosen, id = await self._engines.catalog.fitting(model), slug(model_id)
        settings = self.residence.settings({"idle_unload_seconds": idle_unload_seconds, "unloaded": True})
        defined = {"model_id": model_id, "engine": chosen, "options": {}}
        record = {"id": id, "name": model_id, **defined, **settings, "desired_replicas": 0, "error": None, "created_at": now()}
        async with self.locks[id]:
            if not self._store.peek("service", id):
                await self._store.insert("service", record | {"instance_id": instance_id(chosen, id)})
                self._events.publish("service.created", {"service_id": id, **defined}, subject=id)
        return id

    def memory_bytes(self, service: Mapping[str, Any], device_id: str) -> int:
        """What its engines take of a device, as admission reckons it."""
        books = self._engines.books
        among = books.sharing(device_id)
        alive = [each for each in self._instances(service) if each["status"] in ALIVE and each["device"] in among]
        return sum(books.planned_bytes(each) or 0 for each in alive)

    async def summon(self, model: str, task: str, candidates: Sequence[Candidate]) -> str | None:
        """Which service a request for `model` shall wait for, brought on its way if need be; None when it need not wait."""
        return await self.residence.summon(model, task, candidates)

    async def awaited(self, service_id: str, caller: str, send: Send) -> None:
        """Return when the service answers. Raises what keeps it from that."""
        await self.residence.awaited(service_id, caller, send)

    def why_not(self, service_id: str) -> AimaError | None:
        """Why a request cannot wait for a service: None when it can."""
        record = self._store.peek("service", service_id)
        if record is None:
            return NotFound(f"no service called {service_id!r}", next=[{"unit": "inference.models", "arguments": {}}])
        if self.residence.is_coming(service_id):
            return None
        service = self._views.view(record)
        if service["status"] in ("starting", "running"):
            return None
        said = {"said": service["error"]} if service["error"] else {}
        why = f": {service['error']}" if service["error"] else ""
        explain = [{"unit": "event.explain", "arguments": {"subject": service_id}}] if service["error"] else []
        calls = [call_of("service.start", service_id), *explain]
        return FailedPrecondition(f"the service {service_id} is {service['status']}{why}", hint="start it", next=calls, details=said)

    async def bring_up(self, service_id: str) -> None:
        """Want a service again and start it. Raises as `start` does; it is not failed by that, only not wanted any more."""
        async with self.locks[service_id], self.residence.place(service_id, self._store.get("service", service_id).get("group")):
            record = await self._wanted(service_id)
            succeeded = False
            try:
                await self.bring_up_replicas(record, silent)
                succeeded = True
            finally:
                if not succeeded:
                    with anyio.CancelScope(shield=True):
                        await self._store.update("service", service_id, desired_replicas=0, unloaded=True)

    async def start_replica(self, service_id: str, each: Replica, send: Send) -> Document:
        """Start one of its engines. Raises as EngineService.start."""
        order = each.engine, each.model_id, each.options, None, send
        return await self._engines.start(*order, service_id=service_id, replica=each.number)

    async def bring_up_replicas(self, record: Document, send: Send, only: Replica | None = None) -> None:
        was_ready = bool(self._views.view(record)["ready_replicas"])
        for each in asked(record) if only is None else (only,):
            await self.start_replica(record["id"], each, send)
        current = self._store.get("service", record["id"])
        if not current["desired_replicas"]:
            await self._end(self._views.view(record), 10.0)  # stopped while it started
            call = call_of("service.start", record["id"])
            raise FailedPrecondition(f"the service {record['id']} was stopped while it started", next=[call])
        self.residence.loaded(record["id"])
        if not was_ready:
            payload = {"service_id": record["id"], "model_id": record["model_id"], "endpoints": self._views.view(current)["endpoints"]}
            self._events.publish("service.started", payload, subject=record["id"])

    async def _wanted(self, service_id: str) -> Document:
        """The record of a service that is wanted from now on."""
        replicas = wanted_replicas(self._store.get("service", service_id))
        return await self._store.update("service", service_id, desired_replicas=replicas, unloaded=False, error=None)

    async def fail(self, record: Document, why: str) -> None:
        current = self._store.peek("service", record["id"])
        if current is None or not current["desired_replicas"]:
            return
        await self._store.update("service", record["id"], error=why)
        payload = {"service_id": record["id"], "model_id": record["model_id"], "cause": why}
        self._events.publish("service.failed", payload, subject=record["id"])

    # Small things

    def replicas(self, record: Mapping[str, Any], *, most: bool = False) -> Sequence[str]:
        """The ids of the engines it is to have now, or (most) of all that it may have had."""
        ids = [each.id for each in wanted(record)]
        return [*dict.fromkeys([*ids, record["instance_id"], *(each["id"] for each in self._instances(record))])] if most else ids

    def _instances(self, record: Mapping[str, Any]) -> Sequence[Document]:
        return self.routes.instances(record["id"])

    def _instance(self, record: Mapping[str, Any]) -> Document | None:
        return self._store.peek("instance", record["instance_id"])

    def _model(self, model_id: str) -> Document:
        try:
            return self._store.get("model", model_id)
        except NotFound as error:
            repo = {"unit": "model.pull", "arguments": {"repo": model_id}}
            raise NotFound(str(error), hint=error.hint, next=[*error.next, repo], details=error.details) from error


def wanted_replicas(record: Mapping[str, Any]) -> int:
    """How many engines it has when it runs."""
    return int(record.get("replicas") or 1)


def _given(settings: Mapping[str, Any]) -> Document:
    """Those that were given; a group without a name is none."""
    return {key: (value or None) if key == "group" else value for key, value in settings.items() if value is not None}
