"""Models: fetched, imported, checked, measured and removed. The one object behind the model domain."""

from __future__ import annotations

import builtins
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import anyio
from anyio import from_thread, to_thread

from aima_lib.errors import FailedPrecondition, InvalidArgument
from aima_lib.infra.blobs import Blobs, digest
from aima_lib.infra.clock import now
from aima_lib.infra.download import Pace
from aima_lib.infra.events import Events
from aima_lib.infra.line import Line, Place
from aima_lib.infra.progress import Send, silent
from aima_lib.infra.roots import Absent, Roots
from aima_lib.infra.store import Store
from aima_lib.infra.throttle import Throttle
from aima_lib.infra.web import Web
from aima_lib.names import slug
from aima_lib.services.allowance import Hold, unlimited
from aima_lib.services.books import Books
from aima_lib.services.caches import Skipped
from aima_lib.services.describe import digest_of
from aima_lib.services.device import DeviceService
from aima_lib.services.estimates import Estimates, Wish
from aima_lib.services.fetch import Ways
from aima_lib.services.intake import Intake
from aima_lib.services.pulling import Pulling, way_out
from aima_lib.services.search import SearchService
from aima_lib.services.secrets import SecretService
from aima_lib.services.shelf import Model, Shelf
from aima_lib.services.transfers import Pauses, Transfers, never
from aima_lib.sources.base import Query, Request
from aima_lib.sources.roster import LOCAL, guess


class ModelService:
    """The models of one home. `run` must be going before the first pull."""

    def __init__(
        self,
        config: Mapping[str, Any],
        home: Path,
        store: Store,
        events: Events,
        devices: DeviceService,
        secrets: SecretService,
        books: Books,
        *,
        web: Web | None = None,
        pace: Pace | None = None,
    ) -> None:
        self._config, self._store, self._events, self._devices = config, store, events, devices
        self._shelf = Shelf(Blobs(home / "models"), store, events, Roots(config["files"]["roots"], home / "models"))
        self._web, self._transfers = web or Web(way_out(config)), Transfers()
        downloads, shelf = config["downloads"], self._shelf
        pace = pace or Pace(lanes=downloads["lanes"], stall_seconds=downloads["stall_seconds"])
        rate = downloads["mib_per_second"]
        ways = Ways(shelf.blobs, self._web, pace, Throttle(rate and rate * (1 << 20)), lambda sha256: bool(shelf.holders(sha256)))
        self._pulling = Pulling(config["sources"], secrets, store, events, shelf, self._transfers, ways, Line(downloads["at_once"]))
        self._intake = Intake(store, shelf, config["engines"]["remotes"])
        self._search = SearchService(self._pulling, self.estimate)
        self._estimates = Estimates(store, devices, books)

    async def run(self, *, task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Clear what a crash left and carry transfers until cancelled. A transfer under way then keeps its parts."""
        await to_thread.run_sync(self._shelf.blobs.prepare)
        await to_thread.run_sync(self._shelf.sweep, self._shelf.held())
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
    ) -> tuple[builtins.list[Model], int]:
        """Models newest first, and how many there are in all."""
        equal = {"type": type, "status": status, "format": format}
        return self._store.find("model", limit=limit, offset=offset, newest_first=True, **equal), self._store.count("model", **equal)

    def path(self, model: Mapping[str, Any]) -> Path:
        """The first file of the weights: what an engine loads. Weights that lie elsewhere are looked at again, as an import would.

        Raises:
            PermissionDenied: they are not beneath a root of the configuration, or no longer.
            FailedPrecondition: they are gone.
        """
        for file in model["files"]:
            try:
                with self._shelf.file(model, file["name"]):
                    pass
            except Absent as error:
                call = {"unit": "model.verify", "arguments": {"model_id": model["id"]}}
                raise FailedPrecondition(f"a file of {model['id']} is gone: {error}", next=[call]) from error
        return self._shelf.folder(model) / str(model["files"][0]["name"]) if model["files"] else Path("/")

    # Getting

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
        hold: Hold = unlimited,
        place: Place | None = None,
        pauses: Pauses = never,
    ) -> Model:
        """Bring a model here, once however many ask. What it fetches is held against the allowance of the one who asked first.

        `place` is where it stands among the pulls that wait; `pauses`, asked when the caller leaves, whether what came is to be kept.

        Raises:
            NotFound: the source has no such repository, revision, file or quantization.
            Unavailable: the network failed; the next pull goes on from what arrived.
            ResourceExhausted: it does not fit on the disk, or not into what `hold` leaves.
        """
        request = Request(repo, revision, file, quantization, mirror, sha256.lower() if sha256 else None)
        kind = source or guess(repo)
        if kind == LOCAL:
            return await self._pull_local(request, name, send)
        return await self._pulling.pull(request, kind, name, send, hold, place or Place(), pauses)

    async def _pull_local(self, request: Request, name: str | None, send: Send) -> Model:
        refuse_beside_a_path(request)
        models, _ = await self._intake.take(request.repo, name, None, "link", send)
        if len(models) > 1:
            call = {"unit": "model.list", "arguments": {}}
            raise FailedPrecondition(f"{request.repo} held {len(models)} models, and they are here now", next=[call])
        if request.sha256 not in (None, models[0]["files"][0]["sha256"]):
            raise FailedPrecondition(f"{models[0]['id']} is here, and has {models[0]['digest']}", hint="delete it if it is not wanted")
        return models[0]

    async def import_all(
        self, path: str, name: str | None = None, type: str | None = None, mode: str = "link", send: Send = silent
    ) -> tuple[builtins.list[Model], builtins.list[Skipped]]:
        """Take the weights at a path into the home: of a cache, all its models; and what of it could not be taken. See Intake.take."""
        return await self._intake.take(path, name, type, mode, send)

    async def create(self, name: str, type: str, path: str, format: str | None = None, source: str | None = None) -> Model:
        """Register weights where they lie; see Intake.register."""
        return await self._intake.register(name, type, path, format, source)

    def has(self, model_id: str) -> bool:
        """Whether there is a model of that id."""
        return self._store.peek("model", model_id) is not None

    def intact(self, model: Mapping[str, Any]) -> bool:
        """Whether every file of it is there with its size."""
        return self._shelf.intact(model)

    async def add_builtin(self, id: str, type: str, format: str, files: Sequence[Path], license: str | None) -> Model:
        """Register the model that comes with an engine; the same again is found. See Shelf.add_builtin."""
        return await self._shelf.add_builtin(id, type, format, files, license)

    async def foresee_pull(
        self,
        repo: str,
        source: str | None = None,
        revision: str | None = None,
        file: str | None = None,
        quantization: str | None = None,
        mirror: str | None = None,
        name: str | None = None,
        sha256: str | None = None,
        priority: int = 0,  # noqa: ARG002
    ) -> tuple[str, int | None, bool]:
        """What `pull` would bring, asked of the source: the model's id, the bytes to fetch (None: unknown), whether it is here already."""
        request = Request(repo, revision, file, quantization, mirror, sha256.lower() if sha256 else None)
        kind = source or guess(repo)
        if kind == LOCAL:
            refuse_beside_a_path(request)
            return slug(name or Path(repo).stem), 0, False
        return await self._pulling.foresee(request, kind, name)

    async def search(self, query: Query, source: str | None = None) -> dict[str, Any]:
        """Models elsewhere; see SearchService.search."""
        return await self._search.search(query, source)

    # Removing and checking

    def foresee_delete(self, model_id: str, force: bool) -> tuple[Model, tuple[tuple[str, str], ...], int]:
        """What `delete` would remove: the model, who refers to it, and the bytes that would be freed. Raises as `delete` does."""
        model = self.get(model_id)
        return model, *self._shelf.foresee(model, force)

    async def delete(self, model_id: str, force: bool = False) -> int:
        """Remove a model; returns the bytes that the disk got back.

        Raises:
            FailedPrecondition: it is in use; the users are named.
        """
        return await self._shelf.remove(self.get(model_id), force)

    async def foresee_gc(self) -> tuple[builtins.list[Path], int]:
        """What `gc` would remove, and the bytes that would be freed."""
        return await self._shelf.garbage()

    async def gc(self) -> tuple[builtins.list[Path], int]:
        """Remove what no model has: blobs, parts of pulls that nobody carries on, what is in quarantine."""
        return await self._shelf.clear()

    async def verify(self, model_id: str, checksum: str | None = None, send: Send = silent) -> tuple[bool, builtins.list[dict[str, Any]]]:
        """Hash every file again and compare with the record, and with `checksum`. Returns valid and issues."""
        model = self.get(model_id)
        done = 0
        issues: builtins.list[dict[str, Any]] = []
        hashed: builtins.list[dict[str, Any]] = []
        for file in model["files"]:
            await send({"phase": "verifying", "message": f"hashing {file['name']}", "completed": done, "total": model["size_bytes"]})
            sha256, issue = await to_thread.run_sync(self._check, model, file)
            done += file["size_bytes"]
            if issue:
                issues.append(issue)
                await self._shelf.put_aside(model, file["sha256"])
            hashed.append(file | {"sha256": file["sha256"] or sha256})
        broken = bool(issues)
        found = None if broken or not hashed else digest_of([(file["name"], file["sha256"]) for file in hashed])
        if checksum and found and checksum.lower().removeprefix("sha256:") != found.removeprefix("sha256:"):
            issues.append({"file": None, "code": "checksum", "message": f"the weights have {found}, expected was {checksum}"})
        known = {} if broken else {"files": hashed, "digest": found, "verified_at": now()}
        await self._store.update("model", model["id"], status="corrupt" if broken else "ready", **known)
        self._events.publish("model.verified", {"model_id": model["id"], "valid": not issues, "issues": len(issues)}, subject=model["id"])
        return not issues, issues

    def _check(self, model: Mapping[str, Any], file: Mapping[str, Any]) -> tuple[str | None, dict[str, Any] | None]:
        try:
            with self._shelf.file(model, file["name"]) as path:
                return _check(path, file)
        except Absent as error:
            return None, {"file": file["name"], "code": "missing", "message": str(error)}

    # Measuring

    async def estimate(
        self,
        model_id: str | None = None,
        repo: str | None = None,
        source: str | None = None,
        revision: str | None = None,
        file: str | None = None,
        quantization: str | None = None,
        context_length: int | None = None,
        parallel: int = 1,
        device_id: str | None = None,
        engine: str | None = None,
        version: str | None = None,
        cache_type: str = "f16",
    ) -> dict[str, Any]:
        """Memory, disk, and which devices it fits on now. `version` is that of the engine, where it is known.

        Raises:
            NotFound: no such model, repository or device.
        """
        if (model_id is None) == (repo is None):
            raise InvalidArgument("give either model_id or repo", hint="model_id for a model that is here, repo for one that is not")
        if repo is None:
            model = self.get(str(model_id))
        else:
            kind = source or guess(repo)
            if kind == LOCAL:
                raise InvalidArgument(f"{repo} is a path of this machine", hint="import it, then estimate by model_id")
            plan = await self._pulling.plan(kind, Request(repo, revision, file, quantization))
            geometry = await self._pulling.geometry(plan)
            model = {"geometry": geometry, "size_bytes": plan.size, "quantization": plan.quantization}
        return await self._estimates.of(model, Wish(context_length, parallel, device_id, engine, version, cache_type))


def refuse_beside_a_path(request: Request) -> None:
    """Raise InvalidArgument when a path of this machine was given what only repositories have."""
    given = [key for key in ("revision", "file", "quantization", "mirror") if getattr(request, key)]
    if given:
        raise InvalidArgument(f"a path has no {given[0]}", hint="name the file itself, and leave the rest out")


def _check(path: Path, file: Mapping[str, Any]) -> tuple[str | None, dict[str, Any] | None]:
    """The file's sha256, or what is wrong with it."""

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
