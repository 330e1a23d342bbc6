"""A recipe put to work: engine, model, service and a first answer in one run, which goes on after a crash and undoes what it made.

Each step is a unit's own run under a key of ours, so whoever takes this run up again joins what is under way and finds what is done. What
was made is read off those runs: a thing that is older than the run which was to make it was there before, and is left alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import anyio

from aima_lib.catalog.match import Match, Matcher
from aima_lib.catalog.recipe import Recipe, engine_of
from aima_lib.catalog.shelf import Shelf
from aima_lib.catalog.smoke import QUESTIONS, smoke
from aima_lib.catalog.standing import foreign
from aima_lib.errors import AimaError, Cancelled, FailedPrecondition, NotFound, PermissionDenied, ResourceExhausted, Unavailable
from aima_lib.gateway import Context
from aima_lib.infra.clock import now
from aima_lib.infra.progress import silent
from aima_lib.infra.store import Document
from aima_lib.services.launching import DOCKER, OPTION
from aima_lib.services.measurements import Measurements

UNIT = "catalog.apply_recipe"
ELSEWHERE = (Unavailable, NotFound, PermissionDenied)  # another source may have it


async def apply(ctx: Context, recipe_id: str, skip_engine: bool, skip_models: bool) -> Mapping[str, Any]:
    """Put a recipe to work, or go on with that, or undo it. Called anew by each host that takes the run up.

    Raises:
        NotFound: there is no such recipe.
        FailedPrecondition, ResourceExhausted: it does not fit this machine, or a limit of it was exceeded.
        Cancelled: somebody cancelled it.
        AimaError: that of the step which failed; the details say what was undone.
    """
    assert ctx.run_id is not None
    record = ctx.services.store.peek("applied", ctx.run_id)
    if record is None:
        record = await _begun(ctx, recipe_id)
    applying = Applying(ctx, record, skip_engine, skip_models)
    if record["state"] == "done":
        return await applying.told(record["result"])
    if record["state"] == "forward" and not ctx.runs.is_cancelled(ctx.run_id):
        try:
            return await applying.forward()
        except AimaError as error:
            if ctx.services.freeze.record is not None:
                await anyio.sleep_forever()  # the freeze cut it off, and suspends this run in a moment
            await applying.fail(error)
    elif record["state"] == "forward":
        await applying.fail(Cancelled(f"run {ctx.run_id} was cancelled"))
    raise await applying.backward()


async def _begun(ctx: Context, recipe_id: str) -> Document:
    """The record of a run that begins: what stood before it. One run for a recipe at a time: the later waits for the earlier."""
    recipe = Shelf(ctx.services.store).get(recipe_id)
    mine = ctx.runs.get(str(ctx.run_id))
    for other in ctx.services.store.find("run", unit=UNIT, status="running"):
        older = (other["created_at"], other["id"]) < (mine["created_at"], mine["id"])
        if older and other["input"]["recipe_id"] == recipe_id:
            await ctx.runs.follow(other["id"], silent)
    before = ctx.services.store.peek("service", recipe["name"])
    record = {
        "id": ctx.run_id,
        "recipe_id": recipe_id,
        "recipe": dict(recipe),
        "state": "forward",
        "created_at": now(),
        "engine": None,
        "launcher": None,
        "device_id": None,
        "service_before": ctx.services.serving.get(recipe["name"])["status"] if before else None,
        "cause": None,
    }
    await ctx.services.store.put("applied", record)
    return record


class Applying:
    """One run of it."""

    def __init__(self, ctx: Context, record: Document, skip_engine: bool, skip_models: bool) -> None:
        self._ctx, self._services, self._record = ctx, ctx.services, record
        self._recipe: Recipe = record["recipe"]
        self._name = str(self._recipe["name"])
        self._skip_engine, self._skip_models = skip_engine, skip_models

    # Forward

    async def forward(self) -> Mapping[str, Any]:
        """Every step; those that are done are found done."""
        self._need_scopes()
        if self._record["engine"] is None:
            await self._choose()
        await self._bring_engine()
        if not self._services.models.has(self._name):
            await self._bring_model()
        service = (await self._call("service", "service.create", self._service()))["service"]
        await self._tell("testing", f"asking {service['id']} for a first answer")
        test = await smoke(self._recipe["type"], service["id"], self._ask)
        memory = self._within_limits(service, test)
        result = {
            "recipe_id": self._record["recipe_id"],
            "run_id": self._ctx.run_id,
            "device_id": (service["placement"] or {}).get("device"),
            "engine": service["engine"],
            "engine_version": self._services.engines.catalog.version(service["engine"], service["options"]),
            "model_id": service["model_id"],
            "service_id": service["id"],
            "made": [f"{kind}:{id}" for kind, id in self.made()],
            "notes": self._notes(),
            "test": test,
            "memory_bytes": memory,
        }
        await self._services.store.update("applied", self._record["id"], state="done", result=result)
        return await self.told(result)

    async def told(self, result: Mapping[str, Any]) -> Mapping[str, Any]:
        """The result, once its event is in the log: a host may have died between the two."""
        events = self._services.events
        await events.settled()
        last = events.latest("catalog.recipe_applied", self._name)
        if last is None or last["payload"]["run_id"] != result["run_id"]:
            payload = {key: result[key] for key in ("recipe_id", "run_id", "engine", "model_id", "service_id", "made")}
            events.publish("catalog.recipe_applied", payload, subject=self._name)
        return result

    def _need_scopes(self) -> None:
        """Everything it will call is asked for before anything is made."""
        registry, asked = self._ctx.registry, ["service.create", QUESTIONS[self._recipe["type"]][0]]
        asked += [] if self._services.models.has(self._name) else ["model.pull", "model.verify"]
        for name in asked:
            self._ctx.caller.need(registry[name].definition["scope"], f"{name}, which {UNIT} calls")

    async def _choose(self) -> None:
        """The engine and the device, once: a service that stands already has both."""
        served = self._services.store.peek("service", self._name)
        if served is not None and self._services.serving.get(self._name)["status"] in ("running", "starting"):
            stands = {"engine": served["engine"], "launcher": served["options"].get(OPTION)}
            self._record = await self._services.store.update("applied", self._record["id"], **stands)
            return
        await self._tell("matching", f"whether {self._name} fits this machine")
        match: Match = await Matcher(self._services).one(self._recipe)
        fit = match.fit
        assert fit.seat is not None
        told = {"recipe_id": self._name, "device_id": fit.device["id"], "engine": fit.seat.name, "score": match.score}
        payload = {**told, "evidence": match.evidence["kind"]}
        self._services.events.publish("catalog.recipe_matched", payload, subject=self._name)
        launcher = DOCKER if fit.seat.contained else None
        chosen = {"engine": fit.seat.name, "launcher": launcher, "device_id": fit.device["id"]}
        self._record = await self._services.store.update("applied", self._record["id"], **chosen)

    async def _bring_engine(self) -> None:
        """The engine, and the model that comes with it where the recipe is that one's."""
        if self._record["launcher"] == DOCKER:
            await self._bring_image()
            return
        name, catalog = self._record["engine"], self._services.engines.catalog
        given = next((each for each in map(engine_of, self._recipe["engines"]) if each["name"] == name), {})
        comes = not self._skip_models and not self._services.models.has(self._name) and self._builtin()
        if (await catalog.find(name)).installed and not comes:
            return
        if self._skip_engine and not (await catalog.find(name)).installed:
            call = {"unit": "engine.install", "arguments": {"name": name}}
            raise FailedPrecondition(f"{name} is not installed, and skip_engine leaves it so", next=[call])
        version = {} if (await catalog.find(name)).installed or "version" not in given else {"version": given["version"]}
        await self._call("engine", "engine.install", {"name": name, **version})

    async def _bring_image(self) -> None:
        """The image, where the daemon does not have it."""
        asked = {"name": self._record["engine"], "launcher": DOCKER}
        if await self._services.engines.containers.is_here(asked["name"]):
            return
        if self._skip_engine:
            call = {"unit": "engine.install", "arguments": asked}
            raise FailedPrecondition(f"the image of {asked['name']} is not here, and skip_engine leaves it so", next=[call])
        await self._call("engine", "engine.install", asked)

    def _builtin(self) -> bool:
        return any(source["source"] == "builtin" for source in self._recipe["sources"])

    async def _bring_model(self) -> None:
        """The weights, from the first source that has them."""
        if self._skip_models:
            call = {"unit": "model.list", "arguments": {}}
            raise FailedPrecondition(f"the model {self._name} is not here, and skip_models leaves it so", next=[call])
        sources = [(place, each) for place, each in enumerate(self._recipe["sources"]) if each["source"] != "builtin"]
        if not sources:
            raise FailedPrecondition(f"{self._record['engine']} brought no model called {self._name}")
        for place, source in sources:
            wanted = {key: value for key, value in source.items() if key != "evidence"}
            try:
                await self._call(f"pull{place}", "model.pull", {**wanted, "name": self._name})
                break
            except ELSEWHERE as error:
                if (place, source) == sources[-1]:
                    raise
                await self._tell("resolving", f"{source['source']} cannot be had: {error}")
        report = await self._call("verify", "model.verify", {"model_id": self._name})
        if not report["valid"]:
            raise FailedPrecondition(f"{self._name} is damaged: {report['issues']}")

    def _notes(self) -> list[str]:
        """The sources that did not have the weights, in whichever life of the host, and whether those that were here are others."""
        failed = self._services.store.find("run", parent=self._ctx.run_id, unit="model.pull", status="failed")
        told = [f"{run['input']['source']} cannot be had: {run['error']['message']}" for run in failed]
        return [*told, *foreign(self._services, self._recipe)]

    def _service(self) -> dict[str, Any]:
        options = {"options": dict(self._recipe["options"])} if self._recipe.get("options") else {}
        launcher = {"launcher": self._record["launcher"]} if self._record["launcher"] else {}
        return {"model_id": self._name, "engine": self._record["engine"], **launcher, **options, **self._recipe.get("service", {})}

    def _within_limits(self, service: Mapping[str, Any], test: Mapping[str, Any]) -> int | None:
        """The memory it was seen to take. Raises where that, or the first answer's time, is beyond what the recipe allows."""
        instance = self._services.store.peek("instance", service["instance_id"])
        taken = Measurements(self._services.store).peak(instance) if instance else None
        limits = self._recipe.get("limits", {})
        if taken is not None and taken > limits.get("memory_bytes", taken):
            raise ResourceExhausted(f"{self._name} takes {taken} bytes of memory, its limit is {limits['memory_bytes']}")
        if test["duration_ms"] > limits.get("answer_seconds", 1e9) * 1000:
            said = f"the first answer took {test['duration_ms'] / 1000:.1f} s, its limit is {limits['answer_seconds']:g}"
            raise FailedPrecondition(f"{self._name}: {said}")
        return taken

    async def _call(self, step: str, unit: str, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
        key, caller = f"{self._ctx.run_id}.{step}", self._ctx.caller
        return await self._ctx.gateway.call(unit, arguments, caller=caller, send=self._ctx.send, key=key, parent=self._ctx.run_id)

    async def _ask(self, unit: str, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
        return await self._ctx.gateway.call(unit, arguments, caller=self._ctx.caller, parent=self._ctx.run_id)

    async def _tell(self, phase: str, message: str) -> None:
        await self._ctx.send({"phase": phase, "message": message, "completed": None, "total": None})

    # Backward

    def made(self) -> list[tuple[str, str]]:
        """What this run brought into the world, by kind and id, in that order."""
        found, store = [], self._services.store
        for run in store.find("run", parent=self._ctx.run_id):
            result = run["result"] or {}
            if run["unit"] == "engine.install" and result.get("installed"):
                found.append(("engine", str(result["engine"])))
            kind = {"engine.install": "model", "model.pull": "model", "service.create": "service"}.get(run["unit"])
            thing = store.peek(kind, self._name) if kind else None
            if thing is not None and thing["created_at"] >= run["created_at"] and (str(kind), self._name) not in found:
                found.append((str(kind), self._name))
        return found

    async def fail(self, error: AimaError) -> None:
        """It goes backward from here on, in this host and in the next."""
        changes = {"state": "undoing", "cause": error.as_dict()}
        self._record = await self._services.store.update("applied", self._record["id"], **changes)

    async def backward(self) -> AimaError:
        """Undo what this run made, the last first; the error that tells why, and what could not be undone."""
        if self._record["state"] != "undone":
            await self._undo_all()
        error = AimaError.from_dict(self._record["cause"])
        kept = {"not_undone": self._record["kept"]} if self._record["kept"] else {}
        error.details |= {"run_id": self._ctx.run_id, "undone": self._record["undone"], **kept}
        return error

    async def _undo_all(self) -> None:
        for child in self._services.store.find("run", parent=self._ctx.run_id, status="running"):
            await self._ctx.runs.cancel(child["id"])
        undone, kept = [], []
        for kind, id in reversed(self.made()):
            await self._tell("undoing", f"{kind} {id}")
            try:
                await self._undo(kind, id)
                undone.append(f"{kind}:{id}")
            except AimaError as refusal:
                kept.append(f"{kind}:{id}: {refusal}")
        before = self._record["service_before"]
        if before == "stopped" and self._services.store.peek("service", self._name):
            await self._services.serving.stop(self._name)
        self._record = await self._services.store.update("applied", self._record["id"], state="undone", undone=undone, kept=kept)

    async def _undo(self, kind: str, id: str) -> None:
        if kind == "service":
            await self._services.serving.delete(id)
        elif kind == "model":
            await self._services.models.delete(id)
        else:
            version = await self._installed_version()
            if version is None or not await self._services.installing.remove(id, version):
                raise FailedPrecondition("something runs in it")

    async def _installed_version(self) -> str | None:
        run = next(iter(self._services.store.find("run", parent=self._ctx.run_id, unit="engine.install")), None)
        version = ((run or {}).get("result") or {}).get("version")
        return None if version is None else str(version)
