"""A running service made another, engine by engine: the new one is tried before anybody is sent to it, and the old one ends after that.

How far it has come is in the service's record, so that a host that dies in the middle goes on, or goes back, when it is there again.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from itertools import count
from typing import TYPE_CHECKING, Any

from aima_lib.errors import AimaError, FailedPrecondition, InvalidArgument, ResourceExhausted
from aima_lib.infra.events import Events
from aima_lib.infra.progress import Send, silent
from aima_lib.infra.store import Document, Store
from aima_lib.names import replica_id
from aima_lib.services.engine import EngineService
from aima_lib.services.launching import is_on_ray
from aima_lib.services.replicas import Replica, asked, definition, numbers, replica

if TYPE_CHECKING:
    from aima_lib.services.serving import ServingService

log = logging.getLogger(__name__)
DRAIN_SECONDS = 30.0  # on the way back, where nobody said how long


class Rollout:
    """Changes what services serve, and goes back where the new does not pass."""

    def __init__(self, store: Store, events: Events, engines: EngineService, serving: ServingService) -> None:
        self._store, self._events, self._engines, self._serving = store, events, engines, serving

    def target(self, record: Document, changes: Mapping[str, Any]) -> Document:
        """What a service would serve with these changes of model_id, engine or options.

        Raises:
            NotFound: no such model or engine.
            InvalidArgument: the engine does not read the model, or does not understand an option, or the model is of another type.
        """
        target = definition(record) | {key: value for key, value in changes.items() if value is not None}
        model = self._engines.refuse_unfit(**target)
        known = self._store.peek("model", record["model_id"]) or model
        if known.get("type") != model.get("type"):
            message = f"{record['id']} serves {known['id']}, which is {known.get('type')}; {model['id']} is {model.get('type')}"
            call = {"unit": "service.create", "arguments": {"model_id": model["id"]}}
            raise InvalidArgument(message, hint="who asks it would be answered no more: serve that one beside it", next=[call])
        return target

    async def foresee(self, target: Document, priority: int) -> tuple[int | None, bool | None]:
        """The memory that one more engine would take, and whether it fits beside those that run (None: unknown)."""
        order = (target["engine"], target["model_id"], target["options"])
        elsewhere = is_on_ray(target["options"])  # where it is not ours to say
        missing = None if elsewhere else await self._engines.missing_bytes(*order, priority)
        return self._engines.needed_bytes(*order), None if missing is None else not missing

    async def update(self, service_id: str, changes: Mapping[str, Any], probe_seconds: float, drain_seconds: float, send: Send) -> None:
        """Change what a service serves; returns when that is so. A service that does not run only has another definition then.

        Raises:
            AimaError: as `target`; or the new one did not start, did not pass, or does not fit: the service is what it was.
        """
        async with self._serving.locks[service_id]:
            record = self._store.get("service", service_id)
            target, rollout = self.target(record, changes), record.get("rollout")
            if rollout and definition(rollout) != target:
                await self._go_back(record, "another update took its place")
                record, rollout = self._store.get("service", service_id), None
            if not rollout and definition(record) == target:
                return
            if not record["desired_replicas"] or record["error"]:
                await self._define(record, target, [])
                if record["error"]:
                    await self._serving.start_held(service_id, send)
                return
            try:
                await self._roll(service_id, target, probe_seconds, drain_seconds, send)
            except AimaError as error:
                await self._go_back(self._store.get("service", service_id), str(error))
                raise _not_updated(service_id, self._serving.residence.advised(service_id, error)) from error

    async def abandon(self, service_id: str) -> None:
        """Go back, where nobody is at it any more."""
        async with self._serving.locks[service_id]:
            record = self._store.peek("service", service_id)
            if record and record.get("rollout"):
                await self._go_back(record, "it was given up half way")

    # Forward

    async def _roll(self, id: str, target: Document, probe_seconds: float, drain_seconds: float, send: Send) -> None:
        record = self._store.get("service", id)
        if not record.get("rollout"):
            await self._note(id, **target, numbers=[], tried=None, replaced=0)
        while len((rollout := self._rollout(id))["numbers"]) < (record := self._store.get("service", id))["desired_replicas"]:
            taken = {*numbers(record), *rollout["numbers"]}
            number = next(each for each in count(1) if each not in taken)
            fresh = replica(record, number, target)
            place = len(rollout["numbers"])
            old = replica(record, numbers(record)[place])
            await self._note(id, tried=number)
            await self._bring_up(fresh, old, place, drain_seconds, send, id)
            await send({"phase": "probing", "message": f"probing {fresh.id}", "completed": None, "total": None})
            await self._engines.pass_probe(fresh.id, probe_seconds)
            self._refuse_stopped(id)
            await self._note(id, numbers=[*rollout["numbers"], number], tried=None, replaced=place + 1)
            await self._retire(id, old.id, drain_seconds)
            await send({"phase": "replaced", "message": f"{fresh.id} took the place of {old.id}", "completed": None, "total": None})
        self._refuse_stopped(id)
        await self._define(record, target, rollout["numbers"])

    async def _bring_up(self, fresh: Replica, old: Replica, place: int, drain_seconds: float, send: Send, id: str) -> None:
        """Start it beside the old one; where both do not fit, in its place."""
        try:
            await self._serving.start_replica(id, fresh, send)
        except ResourceExhausted as error:
            needed, usable = error.details.get("needed_bytes"), error.details.get("usable_bytes")
            freed = self._engines.needed_bytes(old.engine, old.model_id, old.options)
            if needed is None or usable is None or freed is None or needed - usable > freed:
                raise
            message = f"both do not fit into memory: {old.id} ends first"
            await send({"phase": "making room", "message": message, "completed": None, "total": None})
            await self._note(id, replaced=place + 1)
            await self._retire(id, old.id, drain_seconds)
            await self._serving.start_replica(id, fresh, send)
        self._refuse_stopped(id)

    def _refuse_stopped(self, id: str) -> None:
        if not self._store.get("service", id)["desired_replicas"]:
            raise FailedPrecondition(f"the service {id} was stopped while it was updated")

    async def _define(self, record: Document, target: Document, kept: list[int]) -> None:
        """It serves that from now on."""
        first = replica_id(target["engine"], record["id"], kept[0] if kept else 1)
        await self._store.update("service", record["id"], **target, numbers=kept, rollout=None, instance_id=first, error=None)
        payload = {"service_id": record["id"], **target, "old": definition(record)}
        self._events.publish("service.updated", payload, subject=record["id"])

    # Back

    async def _go_back(self, record: Document, why: str) -> None:
        """Serve what was served before; whoever of the new passed answers until the old are there again."""
        id, rollout = record["id"], record["rollout"]
        fresh = [replica(record, number, rollout) for number in (*rollout["numbers"], *([rollout["tried"]] if rollout["tried"] else []))]
        if rollout["tried"]:
            await self._engines.end(fresh.pop().id, 0.0)
        await self._note(id, tried=None, replaced=0)
        for number in numbers(record):
            await self._restore(id, replica(record, number), fresh)
        await self._store.update("service", id, rollout=None)
        for each in self._serving.routes.instances(id):
            if each["id"] not in {kept.id for kept in asked(self._store.get("service", id))}:
                await self._retire(id, each["id"], DRAIN_SECONDS)
        log.warning("service %s was not updated: %s", id, why)
        payload = {"service_id": id, "model_id": record["model_id"], "cause": why}
        self._events.publish("service.rolled_back", payload, subject=id)

    async def _restore(self, id: str, old: Replica, fresh: list[Replica]) -> None:
        """Have an old engine run again; where memory is short, one of the new ends first."""
        while self._store.get("service", id)["desired_replicas"]:
            try:
                await self._serving.start_replica(id, old, silent)
                return
            except AimaError as error:
                if not isinstance(error, ResourceExhausted) or not fresh:
                    log.warning("%s does not come back at once: %s", old.id, error)  # the reconciler tries on, and says when it gives up
                    return
                last = fresh.pop()
                await self._note(id, numbers=[each.number for each in fresh])
                await self._retire(id, last.id, DRAIN_SECONDS)

    # Small things

    async def _retire(self, service_id: str, instance_id: str, drain_seconds: float) -> None:
        """Nobody is sent there any more: let what is being answered end, then the engine."""
        await self._serving.turns.of_service(service_id).left_by(instance_id, drain_seconds)
        await self._engines.end(instance_id)
        if self._store.peek("instance", instance_id):
            await self._engines.forget(instance_id)
        self._serving.reconciler.forget([instance_id])

    def _rollout(self, id: str) -> Document:
        found: Document = self._store.get("service", id)["rollout"]
        return found

    async def _note(self, id: str, **changes: Any) -> None:
        before = self._store.get("service", id).get("rollout") or {}
        await self._store.update("service", id, rollout={**before, **changes})


def _not_updated(service_id: str, error: AimaError) -> AimaError:
    """The same error, which also says that the service is what it was."""
    hint = f"{error.hint or 'mend the cause'}; {service_id} serves what it served before"
    calls = [*error.next, {"unit": "event.explain", "arguments": {"subject": service_id}}]
    return type(error)(f"service {service_id} was not updated: {error}", hint=hint, next=calls, details=error.details)
