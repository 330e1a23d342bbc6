"""Weights from elsewhere: one transfer however many ask, one record for each name."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

from anyio import to_thread

from aima_lib.errors import FailedPrecondition, ResourceExhausted
from aima_lib.infra.egress import Egress
from aima_lib.infra.events import Events
from aima_lib.infra.gguf import peek_head
from aima_lib.infra.line import Line, Place
from aima_lib.infra.places import place
from aima_lib.infra.progress import Send
from aima_lib.infra.store import Store
from aima_lib.names import slug
from aima_lib.services.allowance import Hold
from aima_lib.services.describe import FACTS, describe, digest_of, geometry_of
from aima_lib.services.fetch import Fetch, File, Ways
from aima_lib.services.gauge import Meter
from aima_lib.services.secrets import SecretService
from aima_lib.services.shelf import Model, Shelf
from aima_lib.services.transfers import Report, Transfers
from aima_lib.sources.base import Config, Hit, Plan, Query, Request
from aima_lib.sources.roster import SEARCHES, SECRETS, SOURCES, endpoints

PEEK = 256 << 10
OFFLINE = ("AIMA_OFFLINE", "HF_HUB_OFFLINE")


class Pulling:
    """Pulls of one home. `sources` is that part of the configuration."""

    def __init__(
        self, sources: Mapping[str, Any], secrets: SecretService, store: Store, events: Events, shelf: Shelf,
        transfers: Transfers, ways: Ways, line: Line,
    ) -> None:  # fmt: skip
        self._sources, self._secrets, self._store, self._events, self._shelf = sources, secrets, store, events, shelf
        self._transfers, self._ways, self._web, self._line = transfers, ways, ways.web, line
        self._places: WeakValueDictionary[str, Place] = WeakValueDictionary()  # of the transfers under way

    async def pull(self, request: Request, kind: str, name: str | None, send: Send, hold: Hold, place: Place) -> Model:
        """The model that answers `request`, fetched unless it is here: by whoever asks first, out of whose allowance `hold` takes it.

        A transfer goes by the highest priority of those who ask for it.
        """
        asked = self._asked(request, kind)
        if present := self._present(asked, name, request.sha256):
            return present
        await send({"phase": "resolving", "message": f"asking {kind} for {request.repo}"})
        with ExitStack() as coming:
            coming.enter_context(self._line.coming(place))
            plan: Plan = await self._transfers.join(("plan", kind, request), partial(self._resolve, kind, request), send)
            self._refuse_other(name or plan.name, name is not None, plan)
            own, place = place, self._places.setdefault(plan.key, place)
            if place is not own:
                coming.close()
                self._line.hasten(place, own.priority)
            origin = asked | {"commit": plan.revision}
            model = await self._weights(Fetch(plan, self._ways, hold, place), name, origin, send)
        if name is not None and model["id"] != slug(name):  # somebody else asked for the same weights under another name
            return await self._alias(model, name, origin)
        return model

    async def _weights(self, fetch: Fetch, name: str | None, origin: Mapping[str, Any], send: Send) -> Model:
        key, carry = ("weights", fetch.plan.key), partial(self._carry, fetch, name, origin)
        while True:
            try:
                model: Model = await self._transfers.join(key, carry, send, fetch.clear)
                return model
            except ResourceExhausted as error:
                if fetch.begun or "allowance" not in error.details:
                    raise
                # Whoever began it may fetch no more: this caller has an allowance of its own.

    async def foresee(self, request: Request, kind: str, name: str | None) -> tuple[str, int | None, bool]:
        """The id of the model that `pull` would bring, the bytes to fetch (None: unknown), and whether it is here already."""
        asked = self._asked(request, kind)
        if present := self._present(asked, name, request.sha256):
            return present["id"], 0, True
        plan = await self.plan(kind, request)
        self._refuse_other(name or plan.name, name is not None, plan)
        return slug(name or plan.name), plan.size, False

    def _asked(self, request: Request, kind: str) -> dict[str, Any]:
        """What a model's source says of the request that brought it."""
        asked = {key: getattr(request, key) for key in ("repo", "revision", "file", "quantization")}
        return {"kind": kind, **asked}

    async def plan(self, kind: str, request: Request) -> Plan:
        """What the source would serve for `request`.

        Raises:
            FailedPrecondition: the host is offline.
        """
        self._refuse_offline(f"{request.repo} is not here", [request.repo])
        if request.mirror:
            place(request.mirror)  # a source may read logins in what its owner configured; a caller's address holds none
        return await SOURCES[kind](request, self._config(kind), self._web)

    async def search(self, kind: str, query: Query) -> list[Hit]:
        """What a source finds."""
        self._refuse_offline(f"{kind} cannot be asked", [])
        return await SEARCHES[kind](query, self._config(kind), self._web)

    def _config(self, kind: str) -> Config:
        held = {name: self._secrets.read(name)} if (name := SECRETS.get(kind)) else {}
        return {**self._sources, **held}

    def _refuse_offline(self, what: str, missing: list[str]) -> None:
        why = is_offline(self._sources)
        if why is None:
            return
        here = [model["id"] for model in self._store.find("model", limit=20, newest_first=True)]
        raise FailedPrecondition(
            f"{what}, and this host is offline: {why}",
            hint=f"bring it with model.import, or use one that is here: {', '.join(here) or 'there is none'}",
            next=[{"unit": "model.list", "arguments": {}}],
            details={"missing": missing},
        )

    async def _resolve(self, kind: str, request: Request, _: Report) -> Plan:
        return await self.plan(kind, request)

    async def _carry(self, fetch: Fetch, name: str | None, origin: Mapping[str, Any], report: Report) -> Model:
        plan, wanted = fetch.plan, slug(name or fetch.plan.name)
        fetch.meter.hear = partial(self._tell, report, wanted)
        async with self._line.turn(fetch.place, partial(self._wait, report, wanted, fetch.meter)):
            report({"phase": "downloading", "message": f"downloading {wanted}", "completed": 0, "total": plan.size})
            async with fetch.run() as files:
                self._tell(report, wanted, fetch.meter)
                report({"phase": "verifying", "message": f"reading {wanted}", "completed": plan.size, "total": plan.size})
                facts = await to_thread.run_sync(describe, plan.format, [(self._place(file), file.name) for file in files])
                facts["license"] = facts["license"] or plan.license
                facts["quantization"] = facts["quantization"] or plan.quantization
                facts["defaults"] = dict(plan.defaults)
                model = await self._shelf.add(wanted, name is not None, plan.format, files, facts, origin)
            await to_thread.run_sync(fetch.done)
        return model

    def _place(self, file: File) -> Path:
        return file.path or self._shelf.blobs.path(file.sha256)

    def _wait(self, report: Report, model_id: str, meter: Meter, ahead: int) -> None:
        said = f"{model_id}: waiting behind {ahead} {'pull' if ahead == 1 else 'pulls'}"
        report({"phase": "waiting", "message": said, "completed": None, "total": meter.total})
        self._publish(model_id, meter, ahead)

    def _tell(self, report: Report, model_id: str, meter: Meter) -> None:
        done, whole = meter.completed, meter.total
        of, speed = "" if whole is None else f" of {whole / 1e6:,.1f}", "" if meter.rate is None else f" at {meter.rate / 1e6:.1f} MB/s"
        report({"phase": "downloading", "message": f"{model_id}: {done / 1e6:,.1f}{of} MB{speed}", "completed": done, "total": whole})
        self._publish(model_id, meter, 0)

    def _publish(self, model_id: str, meter: Meter, ahead: int) -> None:
        rate = None if meter.rate is None else round(meter.rate)
        payload = {"completed_bytes": meter.completed, "total_bytes": meter.total, "bytes_per_second": rate, "waiting_behind": ahead}
        self._events.publish("model.pull_progress", {"model_id": model_id, **payload, "eta_seconds": meter.eta_seconds}, subject=model_id)

    def _present(self, asked: Mapping[str, Any], name: str | None, sha256: str | None) -> Model | None:
        """The model that an equal pull brought, if its files are still there."""
        for model in self._store.find("model", **{"source.repo": asked["repo"]}):
            same = all(model["source"].get(key) == value for key, value in asked.items())
            fits = (name is None or model["id"] == slug(name)) and sha256 in (None, model["files"][0]["sha256"])
            if same and fits and model["status"] == "ready" and self._shelf.intact(model):
                return model
        return None

    def _refuse_other(self, wanted: str, given: bool, plan: Plan) -> None:
        """A name that is taken is refused before the first byte, as far as the digests are known by then."""
        known = [(artefact.name, artefact.sha256) for artefact in plan.artefacts if artefact.sha256]
        if len(known) == len(plan.artefacts):
            self._shelf.named(wanted, given, digest_of(known))

    async def _alias(self, model: Model, name: str, origin: Mapping[str, Any]) -> Model:
        files = [File(file["name"], file["sha256"], file["size_bytes"], None) for file in model["files"]]
        return await self._shelf.add(name, True, model["format"], files, {key: model.get(key) for key in (*FACTS, "defaults")}, origin)

    async def geometry(self, plan: Plan) -> dict[str, Any]:
        """The geometry of a GGUF that is not here, from its first bytes; empty where the source cannot serve those."""
        first = plan.artefacts[0]
        part = first.parts[0]
        if plan.format != "gguf" or part.member is not None:
            return {}
        data = bytearray()
        headers = {**part.headers, "Range": f"bytes=0-{PEEK - 1}", "Accept-Encoding": "identity"}
        async with self._web.stream(part.url, headers) as response:
            async for chunk in response.aiter_raw():
                data += chunk
                if len(data) >= PEEK:
                    break
        return geometry_of(peek_head(io.BytesIO(data), len(data), part.size or 1 << 50, first.name))


def way_out(config: Mapping[str, Any], **more: Any) -> Egress:
    """The way out that a configuration opens: to public places, to its endpoints, and to what `[egress] allow` names."""
    stall = {"stall_seconds": float(config["downloads"]["stall_seconds"])}
    return Egress(config["egress"]["allow"], lambda: endpoints(config["sources"]), **{**stall, **more})


def is_offline(sources: Mapping[str, Any]) -> str | None:
    """What says that nothing may be fetched, or None."""
    if sources["offline"]:
        return "sources.offline in config.toml"
    named = [name for name in OFFLINE if os.environ.get(name, "").strip().lower() in ("1", "true", "yes", "on")]
    return f"{named[0]} in its environment" if named else None
