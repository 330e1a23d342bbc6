"""Models: fetched, imported, checked, measured and removed."""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import anyio
from anyio import from_thread, to_thread

from aima_lib.errors import AimaError, FailedPrecondition, InvalidArgument
from aima_lib.infra.blobs import Blobs, digest, disk_error, join_or_copy, need_room
from aima_lib.infra.clock import now
from aima_lib.infra.download import Interrupted, Pace
from aima_lib.infra.events import Events
from aima_lib.infra.gguf import peek_head
from aima_lib.infra.progress import Send, silent
from aima_lib.infra.store import Store
from aima_lib.infra.web import Web
from aima_lib.names import slug, token
from aima_lib.services import memory
from aima_lib.services.describe import describe, digest_of, geometry_of, weights_in
from aima_lib.services.device import DeviceService
from aima_lib.services.fetch import Fetch, File, Meter
from aima_lib.services.shelf import Model, Shelf
from aima_lib.services.transfers import Report, Transfers
from aima_lib.sources import huggingface, pypi
from aima_lib.sources.base import Plan, Request, Resolve

SOURCES: Mapping[str, Resolve] = {"huggingface": huggingface.resolve, "pypi": pypi.resolve}
PEEK = 256 << 10


class ModelService:
    """The models of one home."""

    def __init__(
        self,
        config: Mapping[str, Any],
        home: Path,
        store: Store,
        events: Events,
        devices: DeviceService,
        *,
        web: Web | None = None,
        pace: Pace | None = None,
    ) -> None:
        self._config, self._store, self._events, self._devices = config, store, events, devices
        self._blobs = Blobs(home / "models")
        self._shelf = Shelf(self._blobs, store, events)
        self._web, self._pace = web or Web(), pace or Pace()
        self._transfers = Transfers()

    async def run(self, *, task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Clear what a crash left and carry transfers until cancelled. A transfer under way then keeps its parts."""
        await to_thread.run_sync(self._blobs.prepare)
        await to_thread.run_sync(self._shelf.sweep)
        try:
            await self._transfers.run(task_status=task_status)
        finally:
            with anyio.CancelScope(shield=True):
                await self._web.close()

    # Reading

    def get(self, model_id: str) -> Model:
        """One model, by id or by the name it was given.

        Raises:
            NotFound: there is none; the nearest are named.
        """
        found = self._store.peek("model", model_id) or self._store.peek("model", slug(model_id))
        if found is None:
            raise self._store.missing("model", model_id)
        return found

    def list(
        self, type: str | None = None, status: str | None = None, format: str | None = None, limit: int = -1, offset: int = 0
    ) -> tuple[list[Model], int]:
        """Models newest first, and how many there are in all."""
        equal = {"type": type, "status": status, "format": format}
        return self._store.find("model", limit=limit, offset=offset, newest_first=True, **equal), self._store.count("model", **equal)

    def path(self, model: Mapping[str, Any]) -> Path:
        """The first file of the weights: what an engine loads."""
        return self._shelf.folder(model) / str(model["files"][0]["name"])

    # Pulling

    async def pull(
        self,
        repo: str,
        source: str | None = None,
        revision: str | None = None,
        file: str | None = None,
        quantization: str | None = None,
        mirror: str | None = None,
        name: str | None = None,
        sha256: str | None = None,
        send: Send = silent,
    ) -> Model:
        """Bring a model here, once however many ask.

        Raises:
            NotFound: the source has no such repository, revision, file or quantization.
            Unavailable: the network failed; the next pull goes on from what arrived.
            ResourceExhausted: it does not fit on the disk.
        """
        kind = source or _guess(repo)
        request = Request(repo, revision, file, quantization, mirror, sha256.lower() if sha256 else None)
        asked = {"kind": kind, "repo": repo, "revision": revision, "file": file, "quantization": quantization}
        if present := self._present(asked, name, request.sha256):
            return present
        await send({"phase": "resolving", "message": f"asking {kind} for {repo}"})
        plan: Plan = await self._transfers.join(("plan", kind, request), partial(self._resolve, kind, request), send)
        self._refuse_other(name or plan.name, name is not None, plan)
        origin = asked | {"commit": plan.revision}
        fetch = Fetch(plan, self._blobs, self._web, self._pace, lambda meter: None)
        carry = partial(self._carry, fetch, name, origin)
        model: Model = await self._transfers.join(("weights", plan.key), carry, send, fetch.clear)
        if name is not None and model["id"] != slug(name):  # somebody else asked for the same weights under another name
            return await self._alias(model, name, origin)
        return model

    async def _resolve(self, kind: str, request: Request, report: Report) -> Plan:
        return await SOURCES[kind](request, self._config["sources"], self._web)

    async def _carry(self, fetch: Fetch, name: str | None, origin: Mapping[str, Any], report: Report) -> Model:
        plan, wanted = fetch.plan, name or fetch.plan.name
        hear = partial(self._tell, report, slug(wanted))
        fetch.meter.hear = hear
        report({"phase": "downloading", "message": f"downloading {wanted}", "completed": 0, "total": plan.size})
        files = await fetch.run()
        hear(fetch.meter)
        report({"phase": "verifying", "message": f"reading {wanted}", "completed": plan.size, "total": plan.size})
        try:
            facts = await to_thread.run_sync(describe, plan.format, [(self._place(file), file.name) for file in files])
            await to_thread.run_sync(fetch.note, files)
        except (AimaError, OSError) as error:
            await fetch.clear()
            raise disk_error(error, self._blobs.models) if isinstance(error, OSError) else error from error
        facts["license"] = facts["license"] or plan.license
        facts["quantization"] = facts["quantization"] or plan.quantization
        model = await self._shelf.add(wanted, name is not None, plan.format, files, facts, origin)
        await fetch.clear()
        return model

    def _place(self, file: File) -> Path:
        return file.path or self._blobs.path(file.sha256)

    def _tell(self, report: Report, model_id: str, meter: Meter) -> None:
        done, whole = meter.completed, meter.total
        rate = None if meter.rate is None else round(meter.rate)
        speed = "" if rate is None else f" at {rate / 1e6:.1f} MB/s"
        of = "" if whole is None else f" of {whole / 1e6:,.1f}"
        report({"phase": "downloading", "message": f"{model_id}: {done / 1e6:,.1f}{of} MB{speed}", "completed": done, "total": whole})
        payload = {
            "model_id": model_id,
            "completed_bytes": done,
            "total_bytes": whole,
            "bytes_per_second": rate,
            "eta_seconds": meter.eta_seconds,
        }
        self._events.publish("model.pull_progress", payload, subject=model_id)

    def _present(self, asked: Mapping[str, Any], name: str | None, sha256: str | None) -> Model | None:
        """The model that an equal pull brought, if its files are still there."""
        for model in self._store.find("model"):
            same = all(model["source"].get(key) == value for key, value in asked.items())
            fits = (name is None or model["id"] == slug(name)) and sha256 in (None, model["files"][0]["sha256"])
            if same and fits and self._shelf.intact(model):
                return model
        return None

    def _refuse_other(self, wanted: str, given: bool, plan: Plan) -> None:
        """A name that is taken is refused before the first byte, as far as the digests are known by then."""
        known = [(artefact.name, artefact.sha256) for artefact in plan.artefacts if artefact.sha256]
        if len(known) == len(plan.artefacts):
            self._shelf.named(wanted, given, digest_of(known))

    async def _alias(self, model: Model, name: str, origin: Mapping[str, Any]) -> Model:
        files = [File(file["name"], file["sha256"], file["size_bytes"], None) for file in model["files"]]
        facts = {
            key: model[key]
            for key in ("type", "quantization", "parameters", "context_length", "architecture", "license", "capabilities", "geometry")
        }
        return await self._shelf.add(name, True, model["format"], files, facts, origin)

    # Importing and registering

    async def import_model(
        self, path: str, name: str | None = None, type: str | None = None, mode: str = "link", send: Send = silent
    ) -> Model:
        """Take weights that are on this machine into the home: checked, hashed, under their digest.

        Raises:
            InvalidArgument: no such file, or it is broken; the message says where.
        """
        given, format, paths = await self._locate(path)
        if format not in ("gguf", "safetensors"):
            hint = "GGUF and safetensors are read; register other formats where they lie with model.create"
            raise InvalidArgument(f"{given} is in a format AIMA cannot check ({format})", hint=hint)
        facts = await to_thread.run_sync(describe, format, [(each, each.name) for each in paths])
        facts["type"] = type or facts["type"]
        wanted = name or (given.name if given.is_dir() else slug(_stem(paths[0])))
        folder = self._blobs.partial / f"import-{token(12)}"
        try:
            files = await self._hashed(paths, folder, mode, send)
            same = self._store.find("model", digest=digest_of([(file.name, file.sha256) for file in files]))
            if same and name is None:
                wanted = same[0]["id"]
            return await self._shelf.add(wanted, name is not None, format, files, facts, {"kind": "local", "path": str(given)})
        except OSError as error:
            raise disk_error(error, self._blobs.models) from error
        finally:
            with anyio.CancelScope(shield=True):
                await to_thread.run_sync(lambda: shutil.rmtree(folder, ignore_errors=True))

    async def _locate(self, path: str) -> tuple[Path, str, list[Path]]:
        given = Path(path).expanduser().absolute()
        try:
            return (given, *await to_thread.run_sync(weights_in, given))
        except OSError as error:
            raise disk_error(error, given) from error

    async def _hashed(self, paths: list[Path], folder: Path, mode: str, send: Send) -> list[File]:
        """Link or copy first, hash what was linked: nobody can change the name in between."""
        sizes = [path.stat().st_size for path in paths]
        files: list[File] = []
        await to_thread.run_sync(lambda: folder.mkdir(parents=True))
        for path, size in zip(paths, sizes, strict=True):
            await send(
                {"phase": "hashing", "message": f"checking {path.name}", "completed": sum(f.size for f in files), "total": sum(sizes)}
            )
            target = folder / str(len(files))
            await to_thread.run_sync(self._bring, path.resolve(), target, mode)
            sha256 = await to_thread.run_sync(digest, target, lambda _: from_thread.check_cancelled())
            files.append(File(path.name, sha256, target.stat().st_size, target))
        return files

    def _bring(self, path: Path, target: Path, mode: str) -> None:
        if mode == "link" and join_or_copy(path, target) == "link":
            return
        if not target.exists():
            need_room(self._blobs.models, path.stat().st_size)
            shutil.copyfile(path, target)

    async def create(self, name: str, type: str, path: str, format: str | None = None, source: str | None = None) -> Model:
        """Register weights where they lie; nothing is copied, hashed or owned.

        Raises:
            AlreadyExists: the name belongs to something else.
        """
        given, found, paths = await self._locate(path)
        if format is not None and found != format and found in ("gguf", "safetensors"):
            raise InvalidArgument(f"{given} is {found}, not {format}", hint="leave format out")
        if format is None and found == "unknown":
            raise InvalidArgument(f"the format of {given} cannot be told from its name", hint="give format")
        id, present = slug(name), self._store.peek("model", slug(name))
        if present is not None and present["source"]["path"] == str(given) and present["type"] == type:
            return present
        self._shelf.named(name, True, None)
        facts = await to_thread.run_sync(describe, found, [(each, each.name) for each in paths])
        origin = {"kind": "external", "path": str(given), "repo": source}
        return await self._shelf.refer(id, format or found, paths, facts | {"type": type}, origin)

    # Removing and checking

    async def delete(self, model_id: str, force: bool = False) -> int:
        """Remove a model; returns the bytes that the disk got back.

        Raises:
            FailedPrecondition: it is in use; the users are named.
        """
        return await self._shelf.remove(self.get(model_id), force)

    async def verify(self, model_id: str, checksum: str | None = None, send: Send = silent) -> tuple[bool, list[dict[str, Any]]]:
        """Hash every file again and compare with the record, and with `checksum`. Returns valid and issues."""
        model = self.get(model_id)
        folder, issues, hashed, done = self._shelf.folder(model), [], [], 0
        for file in model["files"]:
            await send({"phase": "verifying", "message": f"hashing {file['name']}", "completed": done, "total": model["size_bytes"]})
            sha256, issue = await to_thread.run_sync(_check, folder / file["name"], file)
            done += file["size_bytes"]
            issues += [issue] if issue else []
            hashed.append(file | {"sha256": file["sha256"] or sha256})
        found = digest_of([(file["name"], file["sha256"] or "") for file in hashed]) if not issues else None
        if checksum and found and checksum.lower().removeprefix("sha256:") != found.removeprefix("sha256:"):
            issues.append({"file": None, "code": "checksum", "message": f"the weights have {found}, expected was {checksum}"})
        broken = any(issue["code"] != "checksum" for issue in issues)
        known = {} if broken else {"files": hashed, "digest": found, "verified_at": now()}
        await self._store.update("model", model["id"], status="corrupt" if broken else "ready", **known)
        self._events.publish("model.verified", {"model_id": model["id"], "valid": not issues, "issues": len(issues)}, subject=model["id"])
        return not issues, issues

    # Measuring

    async def estimate(
        self,
        model_id: str | None,
        request: Request | None,
        source: str | None,
        context_length: int | None,
        parallel: int,
        device_id: str | None,
    ) -> dict[str, Any]:
        """Memory by formula, disk, and which devices it fits on now."""
        if (model_id is None) == (request is None):
            raise InvalidArgument("give either model_id or repo", hint="model_id for a model that is here, repo for one that is not")
        if request is None:
            model = self.get(str(model_id))
            geometry, weights, disk = model["geometry"], model["size_bytes"], model["size_bytes"]
        else:
            plan = await self._resolve(source or _guess(request.repo), request, lambda item: None)
            geometry, weights, disk = await self._peek(plan), plan.size, plan.size
        trained = geometry.get("context_length")
        context = context_length or min(memory.DEFAULT_CONTEXT, trained or memory.DEFAULT_CONTEXT)
        needed = memory.estimate(geometry, weights, context, parallel)
        fits = [memory.fit(id, free, needed, geometry, context, parallel) for id, free in (await self._free_memory(device_id)).items()]
        return {"memory": needed, "disk_bytes": disk, "context_length": context, "parallel": parallel, "fits": fits}

    async def _peek(self, plan: Plan) -> dict[str, Any]:
        """The geometry of a GGUF that is not here, from its first bytes; empty where the source cannot serve those."""
        first = plan.artefacts[0]
        part = first.parts[0]
        if plan.format != "gguf" or part.member is not None:
            return {}
        data = bytearray()
        async with self._web.stream(part.url, {**part.headers, "Range": f"bytes=0-{PEEK - 1}", "Accept-Encoding": "identity"}) as response:
            async for chunk in response.aiter_raw():
                data += chunk
                if len(data) >= PEEK:
                    break
        return geometry_of(peek_head(io.BytesIO(data), len(data), part.size or 1 << 50, first.name))

    async def _free_memory(self, device_id: str | None) -> dict[str, int | None]:
        await self._devices.known()
        sampled = (await self._devices.metrics(device_id, 1, None))["devices"]
        reserve = float(self._config["engines"]["memory_reserve_fraction"])
        free: dict[str, int | None] = {}
        for sample in sampled:
            total, used = sample["now"]["memory_total_bytes"], sample["now"]["memory_used_bytes"]
            free[sample["device_id"]] = None if total is None or used is None else max(0, int(total * (1 - reserve)) - used)
        return free


def _guess(repo: str) -> str:
    """owner/name is a hub's; anything that reads as packages is an index's."""
    return "huggingface" if "/" in repo or not pypi.fits(repo) else "pypi"


def _stem(path: Path) -> str:
    stem = huggingface.SHARD.sub("", path.name)
    return stem[: -len(path.suffix)] if path.suffix and stem.endswith(path.suffix) else stem


def _check(path: Path, file: Mapping[str, Any]) -> tuple[str | None, dict[str, Any] | None]:
    def issue(code: str, message: str) -> tuple[None, dict[str, Any]]:
        return None, {"file": file["name"], "code": code, "message": message}

    try:
        size = path.stat().st_size
        if size != file["size_bytes"]:
            return issue("size", f"{file['name']} has {size} bytes, {file['size_bytes']} were recorded")
        sha256 = digest(path, lambda _: from_thread.check_cancelled())
    except OSError as error:
        return issue("missing", f"{file['name']} cannot be read: {os.strerror(error.errno or 0)}")
    if file["sha256"] and sha256 != file["sha256"]:
        return issue("content", f"{file['name']} hashes to sha256 {sha256}, {file['sha256']} was recorded")
    return sha256, None
