"""Services: models served for as long as they are wanted. What is wanted is in the store; a reconciler makes it so."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import anyio
from anyio.abc import TaskStatus

from aima_lib.engines.base import refuse_unknown
from aima_lib.errors import AimaError, AlreadyExists, FailedPrecondition, NotFound
from aima_lib.infra import lineage
from aima_lib.infra.clock import now
from aima_lib.infra.events import Events
from aima_lib.infra.progress import Send, silent
from aima_lib.infra.store import Document, Store
from aima_lib.names import instance_id, slug
from aima_lib.services.engine import EngineService
from aima_lib.services.meter import Meter
from aima_lib.services.model import ModelService
from aima_lib.services.restarts import Restarts

log = logging.getLogger(__name__)
RECONCILE_SECONDS = 0.25


class ServingService:
    """Keeps services running. A record says what is wanted; status and health are read off the instance, never remembered."""

    def __init__(self, config: Mapping[str, Any], store: Store, events: Events, models: ModelService, engines: EngineService) -> None:
        self._store, self._events, self._models, self._engines = store, events, models, engines
        limits = config["engines"]
        self._restarts = Restarts(int(limits["restart_limit"]), float(limits["restart_window_seconds"]))
        self._locks: defaultdict[str, anyio.Lock] = defaultdict(anyio.Lock)
        self._ending: set[str] = set()
        self.meters: defaultdict[str, Meter] = defaultdict(Meter)

    # Reading

    def get(self, service_id: str) -> Document:
        """One service, as it is now.

        Raises:
            NotFound: there is none; the nearest are named.
        """
        return self._view(self._store.get("service", service_id))

    def list(
        self, status: str | None = None, model_id: str | None = None, limit: int = 100, offset: int = 0
    ) -> tuple[Sequence[Document], int]:
        """A page of services, oldest first, and how many there are in all."""
        rows = [self._view(record) for record in self._store.find("service", model_id=model_id)]
        chosen = [row for row in rows if status is None or row["status"] == status]
        return chosen[offset : offset + limit], len(chosen)

    async def status(self, service_id: str) -> Document:
        """A service and its instance, and what the last minute showed."""
        service = self.get(service_id)
        instance = self._instance(service)
        return {"service": service, "instance": instance, "metrics": service["metrics"], "restarts": self._restarts.deaths(service_id)}

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
        if old and self._view(old)["status"] != "failed":
            self._refuse_other(old, {"model_id": model_id, "engine": chosen, "options": dict(options)})
        _, _, needed = self._engines.foresee(chosen, model_id, options)
        return id, self._view(old) if old else None, needed

    async def create(
        self,
        model_id: str,
        name: str | None = None,
        engine: str | None = None,
        options: Mapping[str, Any] | None = None,
        send: Send = silent,
    ) -> Document:
        """Serve a model from now on, over crashes and restarts; returns when it is ready. The same call again changes nothing.

        Raises:
            NotFound: no such model or engine.
            InvalidArgument: an option the engine does not understand.
            AlreadyExists: a service of that name serves something else. One that has failed serves nothing, and is replaced.
            FailedPrecondition, ResourceExhausted, DeadlineExceeded: it did not start; it stays, as failed, and the error says how to go on.
        """
        model = self._model(model_id)
        chosen = engine or await self._engines.catalog.fitting(model)
        refuse_unknown(self._engines.catalog.adapter(chosen), options or {})
        id = slug(name or model_id)
        wanted = {"model_id": model_id, "engine": chosen, "options": dict(options or {})}
        async with self._locks[id]:
            old = self._store.peek("service", id)
            if old and self._view(old)["status"] == "failed":  # it serves nothing: what the error advised may take its place
                await self._store.update("service", id, **wanted, instance_id=instance_id(chosen, id))
            elif old:
                self._refuse_other(old, wanted)
            else:
                record = {"id": id, "name": name or model_id, **wanted, "desired_replicas": 1, "error": None, "created_at": now()}
                await self._store.insert("service", record | {"instance_id": instance_id(chosen, id)})
                self._events.publish("service.created", {"service_id": id, **wanted}, subject=id)
            return await self._start(id, send)

    async def start(self, service_id: str, send: Send = silent) -> Document:
        """Want it to run, and return when it does. Clears a failure and its count of restarts. Raises as `create` does."""
        self._store.get("service", service_id)
        async with self._locks[service_id]:
            return await self._start(service_id, send)

    async def _start(self, service_id: str, send: Send) -> Document:
        self._restarts.forget(service_id)
        record = await self._store.update("service", service_id, desired_replicas=1, error=None)
        try:
            await self._bring_up(record, send)
        except AimaError as error:
            await self._fail(record, str(error))
            raise _how_to_go_on(error, service_id) from error
        except anyio.get_cancelled_exc_class():
            with anyio.CancelScope(shield=True):  # nobody wants it any more, so nobody shall start it behind their back
                await self._store.update("service", service_id, desired_replicas=0)
            raise
        return self.get(service_id)

    async def stop(self, service_id: str, timeout_seconds: float = 10.0) -> Document:
        """Want it not to run, and return when it does not. Nothing happens to one that is stopped."""
        before = self.get(service_id)
        await self._store.update("service", service_id, desired_replicas=0, error=None)
        freed = await self._end(before, timeout_seconds)
        if before["status"] != "stopped":
            payload = {"service_id": service_id, "model_id": before["model_id"], "freed_bytes": freed}
            self._events.publish("service.stopped", payload, subject=service_id)
        return self.get(service_id)

    async def delete(self, service_id: str) -> int:
        """Stop it and forget it; the bytes of memory that were freed. Its model and its log stay."""
        before = self.get(service_id)
        await self._store.update("service", service_id, desired_replicas=0)
        freed = await self._end(before, 10.0)
        async with self._locks[service_id]:
            freed += await self._end(before, 10.0)  # somebody who waited for the lock before us may have started it again
            if not await self._store.delete("service", service_id):
                raise self._store.missing("service", service_id)
            await self._engines.forget(before["instance_id"])
        if before["status"] != "stopped":
            payload = {"service_id": service_id, "model_id": before["model_id"], "freed_bytes": freed}
            self._events.publish("service.stopped", payload, subject=service_id)
        self._restarts.forget(service_id)
        self.meters.pop(service_id, None)
        return freed

    async def _end(self, service: Document, timeout_seconds: float) -> int:
        if not self._instance(service):
            return 0
        self._ending.add(service["id"])
        try:
            return await self._engines.end(service["instance_id"], timeout_seconds)
        finally:
            self._ending.discard(service["id"])

    # Reconciling

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Compare what is wanted with what runs, until cancelled; each repair goes its own way, so none waits for another."""
        task_status.started()
        async with anyio.create_task_group() as repairs:
            while True:
                for record in self._store.find("service"):
                    if not self._locks[record["id"]].locked():
                        self._consider(record, repairs)
                await anyio.sleep(RECONCILE_SECONDS)

    def _consider(self, record: Document, repairs: anyio.abc.TaskGroup) -> None:
        instance = self._instance(record)
        status = instance["status"] if instance else "stopped"
        if not record["desired_replicas"]:
            if (
                status in ("ready", "starting") and record["id"] not in self._ending
            ):  # nobody waits for its end: a caller left, or a host died
                repairs.start_soon(self._end, record, 10.0)
            return
        if record["error"] or status in ("ready", "starting"):
            return
        if instance and status == "failed":
            self._restarts.note(record["id"], instance["started_at"])
        if self._restarts.is_due(record["id"]):
            repairs.start_soon(self._repair, record["id"])

    async def _repair(self, service_id: str) -> None:
        async with self._locks[service_id]:
            record = self._store.peek("service", service_id)
            if record is None or not record["desired_replicas"] or record["error"]:
                return
            instance = self._instance(record)
            if instance and instance["status"] in ("ready", "starting"):
                return
            died = self._events.latest("engine.error", record["instance_id"]) if instance and instance["status"] == "failed" else None
            with lineage.after(died):
                await self._revive(record, instance)

    async def _revive(self, record: Document, instance: Document | None) -> None:
        service_id = record["id"]
        why = instance["error"] if instance and instance["error"] else "it did not run, though it is wanted"
        if self._restarts.is_spent(service_id):
            deaths, window = self._restarts.deaths(service_id), self._restarts.window_seconds
            await self._fail(record, f"{deaths} deaths in {window:g} s; the last: {why}")
            return
        payload = {"service_id": service_id, "model_id": record["model_id"], "cause": why, **self._restarts.attempt(service_id)}
        self._events.publish("service.restarted", payload, subject=service_id)
        try:
            await self._bring_up(record, silent)
        except AimaError as error:
            log.warning("service %s: %s", service_id, error)
            after = self._instance(record)
            is_new = after is not None and after != instance
            self._restarts.note(service_id, after["started_at"] if after and is_new else None)

    async def _bring_up(self, record: Document, send: Send) -> None:
        was_ready = bool(self._view(record)["ready_replicas"])
        await self._engines.start(record["engine"], record["model_id"], record["options"], None, send, service_id=record["id"])
        service = self._view(record)
        if not self._store.get("service", record["id"])["desired_replicas"]:
            await self._end(service, 10.0)  # stopped while it started
            call = _call("service.start", record["id"])
            raise FailedPrecondition(f"the service {record['id']} was stopped while it started", next=[call])
        if not was_ready:
            payload = {"service_id": record["id"], "model_id": record["model_id"], "endpoints": service["endpoints"]}
            self._events.publish("service.started", payload, subject=record["id"])

    async def _fail(self, record: Document, why: str) -> None:
        current = self._store.peek("service", record["id"])
        if current is None or not current["desired_replicas"]:
            return
        await self._store.update("service", record["id"], error=why)
        payload = {"service_id": record["id"], "model_id": record["model_id"], "cause": why}
        self._events.publish("service.failed", payload, subject=record["id"])

    # Small things

    def _view(self, record: Document) -> Document:
        instance = self._instance(record)
        state = instance["status"] if instance else "stopped"
        ready = instance if instance and state == "ready" and record["desired_replicas"] else None
        if record["desired_replicas"]:
            status = "failed" if record["error"] else "running" if ready else "starting"
        else:
            status = "stopping" if state in ("ready", "starting") else "stopped"
        endpoints = [{"base_url": ready["base_url"], "instance_id": ready["id"], "tasks": ready["tasks"]}] if ready else []
        return {
            **record,
            "status": status,
            "health": ready["health"] if ready else "unknown",
            "ready_replicas": 1 if ready else 0,
            "endpoints": endpoints,
            "placement": ready["placement"] if ready else None,
            "metrics": self.meters[record["id"]].read(),
        }

    def _instance(self, record: Mapping[str, Any]) -> Document | None:
        return self._store.peek("instance", record["instance_id"])

    def _model(self, model_id: str) -> Document:
        try:
            return self._store.get("model", model_id)
        except NotFound as error:
            repo = {"unit": "model.pull", "arguments": {"repo": model_id}}
            raise NotFound(str(error), hint=error.hint, next=[*error.next, repo], details=error.details) from error

    def _refuse_other(self, old: Document, wanted: Mapping[str, Any]) -> None:
        different = [key for key in wanted if old[key] != wanted[key]]
        if different:
            said = ", ".join(f"{key} is {old[key]!r}, not {wanted[key]!r}" for key in different)
            raise AlreadyExists(
                f"there is a service called {old['id']!r} already: {said}",
                hint="give this one another name, or delete that one",
                next=[_call("service.get", old["id"])],
            )


def _how_to_go_on(error: AimaError, service_id: str) -> AimaError:
    """The same error, which also names the calls that lead on from a failed service."""
    explain = {"unit": "event.explain", "arguments": {"subject": service_id}}
    calls = [*error.next, explain, _call("service.start", service_id), _call("service.delete", service_id)]
    hint = f"{error.hint or 'mend the cause'}; the service {service_id} stays as failed until it is started or deleted"
    return type(error)(f"service {service_id}: {error}", hint=hint, next=calls, details=error.details)


def _call(unit: str, service_id: str) -> Document:
    return {"unit": unit, "arguments": {"service_id": service_id}}
