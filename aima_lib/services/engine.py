"""Engines: which there are, and the processes that run them."""

from __future__ import annotations

import logging
import secrets
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import anyio
from anyio.abc import TaskGroup, TaskStatus

from aima_lib.engines.base import Engine, misfit, refuse_unknown
from aima_lib.engines.roster import roster
from aima_lib.errors import AimaError, FailedPrecondition, InvalidArgument, NotFound, Unavailable
from aima_lib.infra import lineage
from aima_lib.infra.clock import moment, now
from aima_lib.infra.docker import Docker
from aima_lib.infra.events import Events
from aima_lib.infra.launch import Launch
from aima_lib.infra.progress import Send, silent
from aima_lib.infra.store import Document, Store
from aima_lib.launchers import process
from aima_lib.names import did_you_mean, instance_id, replica_id, slug
from aima_lib.services import placement
from aima_lib.services.admission import Admission
from aima_lib.services.books import USUAL_PRIORITY, Books
from aima_lib.services.containers import Containers
from aima_lib.services.device import DeviceService
from aima_lib.services.engine_calls import logs_call, port_of, start_call
from aima_lib.services.engine_catalog import EngineCatalog
from aima_lib.services.engine_news import EngineNews
from aima_lib.services.launching import KINDS, Launching, is_contained, is_on_ray
from aima_lib.services.loading import GONE, Loading
from aima_lib.services.measurements import Measurements
from aima_lib.services.measuring import Measuring
from aima_lib.services.model import ModelService
from aima_lib.services.probes import Probes
from aima_lib.services.readiness import answers_a_chat, is_ours, says_a_token
from aima_lib.services.secrets import SecretService
from aima_lib.services.wire import Address, Wire

log = logging.getLogger(__name__)
WATCH_SECONDS = 0.5
BATCHED = 32
ALIVE = ("starting", "ready")


class EngineService:
    """Starts, watches, adopts and stops engine processes. What it knows of them is in the store, kind `instance`."""

    def __init__(
        self,
        config: Mapping[str, Any],
        home: Path,
        store: Store,
        events: Events,
        models: ModelService,
        devices: DeviceService,
        secrets: SecretService,
        docker: Docker,
        books: Books,
    ) -> None:
        self._settings, self._home, self._store = config["engines"], home, store
        self._models, self._devices, self._secrets = models, devices, secrets
        self._news = EngineNews(events)
        self.books, self._measurements = books, Measurements(store)
        books.reckon = self._reckoned
        self._measuring = Measuring(store, devices, self._measurements, lambda id: process.pids(home, id))
        self._admission = Admission(books, devices, self._measurements)
        self._locks: defaultdict[str, anyio.Lock] = defaultdict(anyio.Lock)
        self._probes = Probes(float(self._settings["probe_seconds"]))
        self.wire, self.containers = Wire(), Containers(config, home, store, docker, models)
        self._launching = Launching(self._settings)
        self.catalog = EngineCatalog(roster(config, home), store, self.wire, self.containers, self._launching)
        parts = self.catalog, self.containers, devices, self._measuring, self._news, self._probes
        self._loading = Loading(self._settings, home, store, self.wire, *parts)

    # What there is

    async def list_engines(self, type: str | None = None, status: str | None = None) -> list[Document]:
        """Every engine, with its instances; `type` is a task it must be able to do."""
        return await self.catalog.all(type, status)

    async def engine(self, name: str) -> Document:
        """One engine. Raises NotFound naming the nearest."""
        return await self.catalog.get(name)

    async def features(self, name: str) -> Document:
        """What an engine can do: asked of a running instance, else what its adapter declares; `source` says which."""
        running = self._store.find("instance", engine=self.catalog.adapter(name).name, status="ready")
        return await self.catalog.features(name, [(instance, self.address(instance)) for instance in running])

    def instance(self, instance_id: str) -> Document:
        """One instance.

        Raises:
            NotFound: there is none; the nearest are named.
        """
        return self._store.get("instance", instance_id)

    def key(self, instance: Mapping[str, Any]) -> str:
        """The API key of this start."""
        return process.read_key(self._home, instance["id"])

    def slots(self, instance: Mapping[str, Any]) -> int:
        """How many requests an instance answers at the same time: what it was started for, or many where the engine batches by itself."""
        given = instance["options"].get("parallel")
        if given is None:
            given = 1 if "parallel" in self.catalog.adapter(instance["engine"]).options else BATCHED
        return int(given)

    def address(self, instance: Mapping[str, Any]) -> Address:
        """Where an instance answers. Raises FailedPrecondition when it does not run."""
        if not instance["base_url"]:
            raise FailedPrecondition(f"{instance['id']} is {instance['status']}", next=[logs_call(instance["id"])])
        return Address(instance["id"], instance["base_url"], self.key(instance), self.slots(instance))

    async def logs(self, instance_id: str, tail: int = 100, since: str | None = None) -> list[str]:
        """The last lines of an instance's output, each with its time, also when it has ended.

        Raises:
            NotFound: nothing of that name ever ran here.
            InvalidArgument: `since` is no time.
        """
        path = process.log_of(self._home, instance_id)
        if slug(instance_id, len(instance_id)) != instance_id or not path.exists():
            known = [instance["id"] for instance in self._store.find("instance")]
            calls = [{"unit": "engine.list", "arguments": {}}]
            raise NotFound(f"no instance called {instance_id!r}", hint=did_you_mean(instance_id, known), next=calls)
        first = "" if since is None else moment(since)
        return [line for line in await anyio.to_thread.run_sync(process.tail, path, tail) if line >= first]

    # Starting

    async def start(
        self,
        name: str,
        model_id: str,
        options: Mapping[str, Any] | None = None,
        port: int | None = None,
        send: Send = silent,
        *,
        service_id: str | None = None,
        replica: int = 1,
    ) -> Document:
        """Start an engine for a model; returns when it has said a token. A start that already runs is joined.

        Raises:
            NotFound: no such engine or model.
            InvalidArgument: an option the engine does not understand, or a model it cannot read.
            FailedPrecondition: it is not installed, the port is taken, it runs with other options, or it died; the cause is named.
            ResourceExhausted: it would not fit into memory.
            DeadlineExceeded: no token within engines.start_timeout_seconds.
        """
        engine, chosen = self.catalog.adapter(name), dict(options or {})
        model = self.refuse_unfit(name, model_id, chosen)
        id = replica_id(name, service_id or model_id, replica)
        async with self._locks[id]:
            if running := await self._running(id, model_id, chosen, port, send):
                return running
            return await self._launch(engine, model, chosen, id, port, service_id, send)

    def refuse_unfit(self, engine: str, model_id: str, options: Mapping[str, Any]) -> Document:
        """The model, if the engine can serve it so. Raises as `start`, for what is known before."""
        adapter, model = self.catalog.adapter(engine), self._model(model_id)
        refuse_unknown(adapter, options)
        self._launching.refuse(adapter, options, model_id)
        if why := misfit(adapter, model):
            raise InvalidArgument(why, next=[{"unit": "engine.list", "arguments": {}}])
        return model

    def foresee(self, name: str, model_id: str, options: Mapping[str, Any]) -> tuple[str, bool, int | None]:
        """What `start` would start: its id, whether it runs already, and the memory it would take (None: unknown)."""
        id, model = instance_id(name, model_id), self.refuse_unfit(name, model_id, options)
        found = self._store.peek("instance", id)
        device, _ = placement.choose(self._devices.devices(), options)
        needed = self._measurements.high_bytes(model, name, self.catalog.version(name, options), device, options)
        return id, bool(found and found["status"] in ALIVE), needed

    def needed_bytes(self, name: str, model_id: str, options: Mapping[str, Any]) -> int | None:
        """The memory that an engine with this model may take, or None where nobody knows."""
        return self.foresee(name, model_id, options)[2]

    def _reckoned(self, instance: Mapping[str, Any]) -> int | None:
        try:
            return self.needed_bytes(instance["engine"], instance["model_id"], instance["options"])
        except AimaError:  # its model is gone, or another configuration has it no more
            return instance.get("predicted_bytes")

    def device_of(self, name: str, options: Mapping[str, Any]) -> str:
        """The device that an engine with these options would be started on."""
        return str(placement.choose(self._devices.devices(), options, self.catalog.adapter(name).devices)[0]["id"])

    async def missing_bytes(self, name: str, model_id: str, options: Mapping[str, Any], priority: int = USUAL_PRIORITY) -> int | None:
        """How much memory one more of that priority would lack now: 0, and it would be let in; None where nobody knows."""
        needed = self.needed_bytes(name, model_id, options)
        await self._devices.known()
        if needed is None:
            return None
        room = (await self.books.asked(self.device_of(name, options), needed, priority)).room(priority)
        return None if room is None else max(0, needed - room)

    async def pass_probe(self, instance_id: str, seconds: float) -> None:
        """Return when a ready instance has computed in time what it is for, and a chat's answer is one.

        Raises:
            FailedPrecondition: it did not.
        """
        instance = self.instance(instance_id)
        address, launch = self.address(instance), self._plan(instance)
        try:
            with anyio.fail_after(seconds):
                await says_a_token(self.wire, address, launch)
                if "chat" in launch.tasks:
                    await answers_a_chat(self.wire, address, launch.alias)
        except (AimaError, TimeoutError) as error:
            why = f"it did not answer within {seconds:g} s" if isinstance(error, TimeoutError) else str(error)
            message = f"{instance_id} did not pass its probe: {why}"
            hint = "engine.logs has what it said"
            raise FailedPrecondition(message, hint=hint, next=[logs_call(instance_id)], details={"said": why}) from error

    async def restart(self, instance_id: str, send: Send = silent) -> Document:
        """Stop an instance and start it again as it was. Raises as `stop` and `start` do."""
        old = self.instance(instance_id)
        engine, model = self.catalog.adapter(old["engine"]), self._model(old["model_id"])
        async with self._locks[instance_id]:
            if old["status"] in ALIVE:
                await self._end(old, 10.0, "restarted")
            return await self._launch(engine, model, old["options"], instance_id, None, old["service_id"], send)

    async def _running(self, id: str, model_id: str, options: Mapping[str, Any], port: int | None, send: Send) -> Document | None:
        """The instance, if it lives already, as it was asked for."""
        found = self._store.peek("instance", id)
        kept = process.read_state(self._home, id)
        if found is None or found["status"] not in ALIVE or kept is None or not kept.is_running():
            return None
        if found["options"] != options or found["model_id"] != model_id:
            other = {"model_id": model_id, "name": f"{model_id}-2"[:64], "options": options}
            call, hint = {"unit": "engine.stop", "arguments": {"instance_id": id}}, "stop it first"
            if found["service_id"]:
                call, hint = {"unit": "service.create", "arguments": other}, "serve it under another name"
            raise FailedPrecondition(f"{id} runs already, with other options: {found['options']}", hint=hint, next=[call])
        if port is not None and port != port_of(found):
            call = {"unit": "engine.stop", "arguments": {"instance_id": id}}
            raise FailedPrecondition(f"{id} runs already, at {found['base_url']}", hint="leave port out, or stop it first", next=[call])
        if found["status"] == "ready":
            return found
        launch = self._plan(found)
        return await self._loading.until_ready(found, launch, port_of(found), send)

    async def _launch(
        self, engine: Engine, model: Document, options: Mapping[str, Any], id: str, port: int | None, service_id: str | None, send: Send
    ) -> Document:
        await self.catalog.refuse_absent(engine, options)
        if port is not None and (holder := await anyio.to_thread.run_sync(process.port_holder, port)):
            holder = await self.containers.holder(port) or holder if is_contained(options) else holder
            taken = {"port": port, "holder": holder}
            raise FailedPrecondition(f"port {port} is taken by {holder}", hint="ask for another, or for none", details=taken)
        if is_on_ray(options):  # which finds the node, and room on it
            return await self._begin(engine, model, options, id, port, service_id, None, None, send)
        device, fallback = placement.choose(await self._devices.known(), options, engine.devices)
        retry = start_call(engine.name, model["id"], options, service_id)
        which = (engine.name, self.catalog.version(engine.name, options))
        priority = (self._store.peek("service", service_id) or {}).get("priority", USUAL_PRIORITY) if service_id else USUAL_PRIORITY
        async with self._admission.admitted(id, model, which, device["id"], options, retry, priority) as predicted:
            await self._measuring.expect(id, device["id"])
            return await self._begin(engine, model, options, id, port, service_id, device["id"], fallback, send, predicted)

    async def _begin(
        self, engine: Engine, model: Document, options: Mapping[str, Any], id: str, port: int | None, service_id: str | None,
        device_id: str | None, fallback: str | None, send: Send, predicted_bytes: int | None = None,
    ) -> Document:  # fmt: skip
        document: Document = {
            "id": id, "engine": engine.name, "model_id": model["id"], "status": "starting", "health": "unknown",
            "pid": None, "keeper_pid": None, "started_at": now(), "ready_at": None, "tasks": [], "tools": None, "device": device_id,
            "base_url": f"http://127.0.0.1:{port}" if port else None, "placement": {"device": device_id, "fallback": fallback},
            "options": dict(options), "service_id": service_id, "log_path": str(process.log_of(self._home, id)), "error": None,
            "predicted_bytes": predicted_bytes,
        }  # fmt: skip
        launch = self._plan(document)
        told = {name: self._secrets.read(secret) or "" for name, secret in launch.secrets.items()}
        launch = replace(launch, files={**launch.files, **told})
        await self._store.put("instance", document)
        await self._news.progress(document, "starting", f"starting {engine.name} with {model['id']} on {device_id or 'Ray'}", send)
        key, grace = secrets.token_urlsafe(32), float(self._settings["grace_seconds"])
        with anyio.CancelScope(shield=True):  # a moment; a caller that leaves is heard in `_until_ready`, which clears up
            try:
                if device_id is not None and is_contained(options):
                    port = port or process.free_port()
                    launch = await self.containers.wrap(document, launch, model, self._devices.device(device_id), port)
                kept, chosen = await anyio.to_thread.run_sync(process.start, self._home, id, launch, key, grace, port)
            except AimaError as error:
                await self._loading.fail(document, str(error), send)
                raise
            url = f"http://127.0.0.1:{chosen}" if chosen else None
            document = await self._store.update("instance", id, pid=kept.pid, keeper_pid=kept.keeper_pid, base_url=url)
        return await self._loading.until_ready(document, launch, chosen, send)

    def _plan(self, instance: Mapping[str, Any]) -> Launch:
        engine, model = self.catalog.adapter(instance["engine"]), self._model(instance["model_id"])
        plan = partial(engine.plan, model, self._models.path(model))
        if is_on_ray(instance["options"]):
            options = instance["options"]
            needed = self._measurements.high_bytes(model, engine.name, self.catalog.version(engine.name, options), KINDS["cpu"], options)
            return self._launching.on_ray(engine, instance, plan, needed)
        filled = {"threads": placement.cores(), **instance["options"], "port": port_of(instance)}
        return plan(self._devices.device(instance["device"]), filled)

    # Stopping

    async def stop(
        self, instance_id: str | None = None, name: str | None = None, force: bool = False, timeout_seconds: float = 10.0
    ) -> Document:
        """End one instance, or all of an engine: politely, by force after the timeout. Says what memory was freed, measured.

        Raises:
            InvalidArgument: neither was named.
            NotFound: there is no such instance or engine.
            FailedPrecondition: a service wants it to run, and `force` is not set.
        """
        alive = [instance for instance in self.chosen(instance_id, name) if instance["status"] in ALIVE]
        self._refuse_used(alive, force)
        freed = 0
        for instance in alive:
            freed += await self.end(instance["id"], 0.0 if force else timeout_seconds)
        return {"stopped": [instance["id"] for instance in alive], "freed_bytes": freed}

    def chosen(self, instance_id: str | None, name: str | None) -> list[Document]:
        """The instance of that id, or all of that engine. Raises as `stop` does."""
        if instance_id is None and name is None:
            raise InvalidArgument("say which: instance_id or name", next=[{"unit": "engine.list", "arguments": {"status": "running"}}])
        if instance_id:
            return [self.instance(instance_id)]
        return self._store.find("instance", engine=self.catalog.adapter(str(name)).name)

    async def end(self, instance_id: str, timeout_seconds: float = 10.0) -> int:
        """End an instance whoever uses it; the bytes freed. Nothing happens when it does not run."""
        kept = process.read_state(self._home, instance_id)
        if self._locks[instance_id].locked() and kept is not None:
            await anyio.to_thread.run_sync(process.stop, self._home, instance_id, timeout_seconds)  # a start under way sees it end
        async with self._locks[instance_id]:
            instance = self._store.peek("instance", instance_id)  # it may be forgotten by now
            return await self._end(instance, timeout_seconds, "stopped") if instance and instance["status"] in ALIVE else 0

    async def _end(self, instance: Document, timeout_seconds: float, reason: str) -> int:
        with anyio.CancelScope(shield=True):
            await self._measuring.look(instance)
            stop = partial(self.containers.stop, instance, timeout_seconds)
            freed = await self._measuring.freeing(instance, stop)
            await self._store.update("instance", instance["id"], status="stopped", **GONE)
        self._news.stopped(instance, reason, freed)
        return freed

    async def forget(self, instance_id: str) -> None:
        """Drop the record of an instance that has ended, and its folder with the key. Its log stays."""
        await self._store.delete("instance", instance_id)
        await anyio.to_thread.run_sync(process.clear, self._home, instance_id)

    def _refuse_used(self, instances: list[Document], force: bool) -> None:
        wanted = {service["id"] for service in self._store.find("service") if service["desired_replicas"]}
        users = [instance["service_id"] for instance in instances if instance["service_id"] in wanted]
        if users and not force:
            calls = [{"unit": "service.stop", "arguments": {"service_id": user}} for user in users]
            message = f"in use by the service {', '.join(users)}, which would only start it again"
            raise FailedPrecondition(message, hint="stop the service, or set force", next=calls, details={"services": users})

    # Watching

    async def adopt(self) -> None:
        """After the host's start: take back the engines that live, close the records of those that do not."""
        self.containers.need()
        for instance in self._store.find("instance"):
            if instance["status"] not in ALIVE:
                continue
            kept = process.read_state(self._home, instance["id"])
            if kept is None or not await anyio.to_thread.run_sync(kept.is_ours):
                await self._bury(instance)
            elif instance["status"] == "ready":
                try:
                    await is_ours(self.wire, self.address(instance), instance["model_id"])
                    self._news.started(instance, adopted=True)
                except (Unavailable, FailedPrecondition) as error:
                    log.warning("%s lives but does not answer: %s", instance["id"], error)  # the probes will judge it

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Watch what runs until cancelled: deaths, starts a lost host left behind, health."""
        task_status.started()
        async with anyio.create_task_group() as starts:
            while True:
                for instance in self._store.find("instance"):
                    if instance["status"] in ALIVE and not self._locks[instance["id"]].locked():
                        await self._watch(instance, starts)
                await self.containers.pause(WATCH_SECONDS)

    async def _watch(self, instance: Document, starts: TaskGroup) -> None:
        kept = process.read_state(self._home, instance["id"])
        if kept is None or not kept.is_running() or not kept.has_keeper():
            if kept is not None and kept.has_keeper() and process.read_exit(self._home, instance["id"]) is None:
                return  # its keeper is about to say how it ended
            async with self._locks[instance["id"]]:
                fresh = self._store.peek("instance", instance["id"])
                if fresh and fresh["status"] in ALIVE and fresh["pid"] == instance["pid"]:
                    await self._bury(fresh)
        elif instance["status"] == "ready":
            if self._probes.is_due(instance["id"]):  # one that hangs takes its time, and the others are watched meanwhile
                starts.start_soon(self._probe, instance)
        else:
            starts.start_soon(self._go_on, instance)

    async def _go_on(self, instance: Document) -> None:
        """A start whose host died: nobody waits for it any more but us."""
        with lineage.after(self._news.begun(instance)):
            await self._take_up(instance)

    async def _take_up(self, instance: Document) -> None:
        async with self._locks[instance["id"]]:
            try:
                launch = self._plan(instance)
            except AimaError as error:  # its model is gone, or no longer fit to be loaded
                log.warning("%s: %s", instance["id"], error)
                await self._loading.give_up(instance)
                return
            try:
                await self._loading.until_ready(instance, launch, port_of(instance), silent)
            except AimaError as error:
                log.warning("%s: %s", instance["id"], error)

    async def _bury(self, instance: Document) -> None:
        """Record the end of an instance nobody stopped, and end what may be left of it."""
        why = self._loading.cause(instance["id"])
        over = process.read_exit(self._home, instance["id"]) or {}
        await anyio.to_thread.run_sync(process.stop, self._home, instance["id"], 0.0)
        lost = over.get("reason") == "no host"
        await self._store.update("instance", instance["id"], status="stopped" if lost else "failed", error=why, **GONE)
        with lineage.after(None if lost else self._news.error(instance, why)):
            self._news.stopped(instance, "no host" if lost else "died", None)
        await self.containers.clear(instance)  # whoever starts it anew waits for this; whoever hears of it does not

    async def _probe(self, instance: Document) -> None:
        id = instance["id"]
        address, wait = self.address(instance), float(self._settings["probe_timeout_seconds"])
        announced = process.read_ready(self._home, id) if is_on_ray(instance["options"]) else None
        if announced and announced["node"] != instance["placement"]["node"]:  # Ray has it on another node
            await self._store.update("instance", id, placement=placement.elsewhere(announced))

        async def ask() -> None:
            await self._measuring.look(instance)
            await is_ours(self.wire, address, instance["model_id"], wait)

        health = await self._probes.judge(instance, ask)
        if health != instance["health"] and not self._locks[id].locked() and self._store.peek("instance", id):
            await self._store.update("instance", id, health=health)
            self._news.health(instance, health)
        silent = self._probes.silent_seconds(id)
        if health == "unhealthy" and silent > float(self._settings["hung_seconds"]):
            await self._end_hung(instance, f"it answered no probe for {silent:.0f} s, and was ended")

    async def _end_hung(self, instance: Document, why: str) -> None:
        id = instance["id"]
        async with self._locks[id]:
            current = self._store.peek("instance", id)
            if current is None or current["status"] != "ready" or current["pid"] != instance["pid"]:
                return
            await self.containers.stop(instance, 0.0)
            await self._store.update("instance", id, status="failed", error=why, **GONE)
        self._probes.forget(id)
        self._news.error(instance, why)
        self._news.stopped(instance, "died", None)

    # Small things

    def _model(self, model_id: str) -> Document:
        model = self._store.get("model", model_id)
        if model.get("status", "ready") != "ready":
            call = {"unit": "model.get", "arguments": {"model_id": model_id}}
            raise FailedPrecondition(f"the model {model_id} is {model['status']}, not ready", next=[call])
        return model
