"""What is wanted made so: a service's engines that are missing are started, those too many ended, and one that dies too often given up."""

from __future__ import annotations

import logging
from collections.abc import Callable, Coroutine, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import anyio
from anyio.abc import TaskGroup, TaskStatus

from aima_lib.errors import AimaError, Unavailable
from aima_lib.infra import lineage
from aima_lib.infra.events import Events
from aima_lib.infra.progress import silent
from aima_lib.infra.store import Document, Store
from aima_lib.services.engine import EngineService
from aima_lib.services.replicas import Replica, asked
from aima_lib.services.restarts import Restarts

if TYPE_CHECKING:
    from aima_lib.services.serving import ServingService

log = logging.getLogger(__name__)
RECONCILE_SECONDS = 0.25
ALIVE = ("starting", "ready")


class Reconciler:
    """Compares the services that are wanted with the engines that run, for as long as the host does."""

    def __init__(self, config: Mapping[str, Any], store: Store, events: Events, engines: EngineService, serving: ServingService) -> None:
        limits = config["engines"]
        self._restarts = Restarts(int(limits["restart_limit"]), float(limits["restart_window_seconds"]))
        self._store, self._events, self._engines, self._serving = store, events, engines, serving
        self._given_up: set[str] = set()  # instances
        self._repairs: TaskGroup | None = None

    def deaths(self, instance_ids: Iterable[str]) -> int:
        """How often these died lately."""
        return sum(self._restarts.deaths(id) for id in instance_ids)

    def forget(self, instance_ids: Iterable[str]) -> None:
        """What these died of counts no more."""
        for id in instance_ids:
            self._restarts.forget(id)
            self._given_up.discard(id)

    def spawn(self, work: Callable[..., Coroutine[Any, Any, None]], *arguments: Any) -> None:
        """Do something beside whoever asked. Raises Unavailable where no loop runs."""
        if self._repairs is None:
            raise Unavailable("this process only passes by: it brings nothing up", hint="aima start hosts the home")
        self._repairs.start_soon(work, *arguments)

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Compare what is wanted with what runs, until cancelled; each repair goes its own way, so none waits for another."""
        task_status.started()
        try:
            async with anyio.create_task_group() as self._repairs:
                await self._serving.residence.thin_out()
                while True:
                    for record in self._store.find("service"):
                        if not self._serving.locks[record["id"]].locked():
                            self._consider(record, self._repairs)
                    await anyio.sleep(RECONCILE_SECONDS)
        finally:
            self._repairs = None

    def _consider(self, record: Document, repairs: TaskGroup) -> None:
        known = self._serving.replicas(record)
        for instance in self._serving.routes.instances(record["id"]):
            surplus = instance["id"] not in known and instance["status"] in ALIVE
            if surplus and record["id"] not in self._serving.ending:  # nobody waits for its end: a caller left, or a host died
                repairs.start_soon(self._engines.end, instance["id"], 10.0)
        if record.get("rollout") and not self._is_updated(record["id"]):  # its host died, or whoever wanted it has left
            repairs.start_soon(self._serving.rollout.abandon, record["id"])
        if record["error"] or self._serving.residence.is_coming(record["id"]):
            return
        self._serving.residence.consider(record)
        self._serving.autoscaler.consider(record)
        for each in asked(record):
            id = each.id
            found = self._store.peek("instance", id)
            if found and found["status"] in ALIVE:
                continue
            if found and found["status"] == "failed":
                self._restarts.note(id, found["started_at"])
            if self._engines.containers.is_away(each.options):
                continue  # once Docker is back it is started again
            if self._restarts.is_due(id) and id not in self._given_up:
                repairs.start_soon(self._repair, record["id"], each)

    def _is_updated(self, service_id: str) -> bool:
        """Whether a run is under way that changes it."""
        return any(run["input"]["service_id"] == service_id for run in self._store.find("run", unit="service.update", status="running"))

    async def _repair(self, service_id: str, each: Replica) -> None:
        async with self._serving.locks[service_id]:
            record = self._store.peek("service", service_id)
            if record is None or each not in asked(record) or record["error"]:
                return
            id = each.id
            instance = self._store.peek("instance", id)
            if id in self._given_up or (instance and instance["status"] in ALIVE):
                return
            died = self._events.latest("engine.error", id) if instance and instance["status"] == "failed" else None
            with lineage.after(died):
                await self._revive(record, each, instance)

    async def _revive(self, record: Document, each: Replica, instance: Document | None) -> None:
        id = each.id
        why = instance["error"] if instance and instance["error"] else "it did not run, though it is wanted"
        if self._restarts.is_spent(id):
            deaths, window = self._restarts.deaths(id), self._restarts.window_seconds
            await self._give_up(record, id, f"{deaths} deaths in {window:g} s; the last: {why}")
            return
        payload = {"service_id": record["id"], "model_id": record["model_id"], "cause": why, **self._restarts.attempt(id)}
        self._events.publish("service.restarted", payload, subject=record["id"])
        try:
            await self._serving.bring_up_replicas(record, silent, only=each)
        except AimaError as error:
            log.warning("service %s: %s", record["id"], error)
            if isinstance(error, Unavailable) and self._engines.containers.is_away(each.options):
                return  # not its own death
            after = self._store.peek("instance", id)
            is_new = after is not None and after != instance
            self._restarts.note(id, after["started_at"] if after and is_new else None)

    async def _give_up(self, record: Document, instance_id: str, why: str) -> None:
        """An engine died too often. The service goes on with the others; with none left it has failed."""
        self._given_up.add(instance_id)
        if all(id in self._given_up for id in self._serving.replicas(record)):
            await self._serving.fail(record, why)
        else:
            log.error("service %s goes on without %s: %s", record["id"], instance_id, why)
            payload = {"service_id": record["id"], "model_id": record["model_id"], "cause": f"{instance_id}: {why}"}
            self._events.publish("service.degraded", payload, subject=record["id"])
