"""Models on disk and their records: what puts one on the shelf, finds its files, and takes it off."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio
from anyio import to_thread

from aima_lib.errors import AlreadyExists, FailedPrecondition, Unavailable
from aima_lib.infra.blobs import Blobs, digest, disk_error
from aima_lib.infra.clock import now
from aima_lib.infra.events import Events
from aima_lib.infra.roots import Opened, Roots
from aima_lib.infra.store import Store
from aima_lib.names import fresh, slug
from aima_lib.services import memory
from aima_lib.services.describe import digest_of, unread
from aima_lib.services.fetch import File, noted

Model = dict[str, Any]
ELSEWHERE = ("external", "builtin", "remote")  # kinds of models whose files are not ours to remove


class Shelf:
    """Records and files change together, under one lock."""

    def __init__(self, blobs: Blobs, store: Store, events: Events, roots: Roots) -> None:
        self.blobs, self.roots, self._store, self._events = blobs, roots, store, events
        self._lock = anyio.Lock()

    def folder(self, model: Mapping[str, Any]) -> Path:
        """Where the model's files lie."""
        if model["source"]["kind"] == "remote":
            return Path("/")
        if model["source"]["kind"] in ELSEWHERE:
            path = Path(model["source"]["path"] or "/")
            return path if path.is_dir() else path.parent
        return self.blobs.models / str(model["id"])

    @contextmanager
    def file(self, model: Mapping[str, Any], name: str) -> Iterator[Path]:
        """A path to a file of the model for as long as the block lasts; one that lies elsewhere is opened as its owner's roots allow now.

        Raises:
            PermissionDenied: it is not beneath a root, or no longer.
            Absent: it is gone.
        """
        path = self.folder(model) / name
        if model["source"]["kind"] != "external":
            yield path
            return
        with self.roots.open(str(path)) as opened:
            yield opened.file

    def intact(self, model: Mapping[str, Any]) -> bool:
        """Whether every file is there with its size."""
        folder = self.folder(model)
        try:
            return all((folder / file["name"]).stat().st_size == file["size_bytes"] for file in model["files"])
        except OSError:
            return False

    def named(self, wanted: str, given: bool, digest: str | None) -> tuple[str, Model | None]:
        """The id for a new model, and the model that is the same already.

        Raises:
            AlreadyExists: the caller gave this name, and it belongs to other weights.
        """
        id = slug(wanted)
        if id in ("blobs", "partial", "quarantine"):
            id = f"{id}-model"
        holder = self._store.peek("model", id)
        if holder is None:
            return id, None
        if digest is not None and holder["digest"] == digest:
            return id, holder
        if given:
            raise AlreadyExists(
                f"the name {id} belongs to a model with other weights ({holder['digest'] or holder['source']['path']})",
                hint="choose another name, or delete that model first",
                next=[{"unit": "model.get", "arguments": {"model_id": id}}],
            )
        same = [model for model in self._store.find("model", digest=digest) if digest and model["id"].startswith(id)]
        if same:
            return same[0]["id"], same[0]
        return fresh(id, self._store.ids("model", id)), None

    async def add(
        self, wanted: str, given: bool, format: str, files: Sequence[File], facts: Mapping[str, Any], source: Mapping[str, Any]
    ) -> Model:
        """Move verified files in and write the record, in that order; the same model again is found, not doubled."""
        with anyio.CancelScope(shield=True):
            async with self._lock:
                model = await self._add(wanted, given, format, files, facts, source)
        return model

    async def _add(
        self, wanted: str, given: bool, format: str, files: Sequence[File], facts: Mapping[str, Any], source: Mapping[str, Any]
    ) -> Model:
        digest = digest_of([(file.name, file.sha256) for file in files])
        id, present = self.named(wanted, given, digest)
        try:
            await to_thread.run_sync(self._place, id, files)
        except OSError as error:
            raise disk_error(error, self.blobs.models) from error
        if present is not None:
            return await self._store.update("model", id, status="ready")
        listed = [{"name": file.name, "size_bytes": file.size, "sha256": file.sha256} for file in files]
        return await self._record(id, format, digest, listed, facts, source)

    async def refer(self, id: str, format: str, files: Sequence[Opened], facts: Mapping[str, Any], source: Mapping[str, Any]) -> Model:
        """Write the record of weights that stay where they are."""
        listed = [{"name": file.name, "size_bytes": file.size, "sha256": None} for file in files]
        async with self._lock:
            return await self._record(id, format, None, listed, facts, source)

    async def add_builtin(self, id: str, type: str, format: str, files: Sequence[Path], license: str | None) -> Model:
        """Write the record of what an engine brings with it, or find it.

        Raises:
            AlreadyExists: the name belongs to another model.
        """
        async with self._lock:
            present = self._store.peek("model", id)
            if present is not None and present["source"]["kind"] == "builtin":
                return present
            self.named(id, True, None)
            listed = [{"name": file.name, "size_bytes": file.stat().st_size, "sha256": digest(file)} for file in files]
            found = digest_of([(str(file["name"]), str(file["sha256"])) for file in listed]) if listed else None
            origin = {"kind": "builtin", "path": str(files[0].parent) if files else None}
            return await self._record(id, format, found, listed, unread(type, license), origin)

    async def _record(
        self, id: str, format: str, digest: str | None, files: list[dict[str, Any]], facts: Mapping[str, Any], source: Mapping[str, Any]
    ) -> Model:
        size = sum(file["size_bytes"] for file in files)
        geometry, trained = facts["geometry"], facts["context_length"]
        context = min(memory.DEFAULT_CONTEXT, trained) if trained else memory.DEFAULT_CONTEXT
        needed = memory.estimate(geometry, size, context, 1)
        model = {
            "id": id,
            "name": id,
            "format": format,
            "status": "ready",
            "size_bytes": size,
            "digest": digest,
            **facts,
            "defaults": facts.get("defaults") or {},
            "files": files,
            "source": dict.fromkeys(("repo", "revision", "commit", "file", "quantization", "path")) | dict(source),
            "requirements": {
                "memory_bytes": needed["total_bytes"],
                "context_length": context,
                "disk_bytes": size,
                "reason": needed["reason"],
            },
            "created_at": now(),
            "verified_at": None if digest is None else now(),
        }
        await self._store.insert("model", model)
        told = {key: model[key] for key in ("name", "type", "format", "size_bytes", "digest")}
        self._events.publish("model.created", {"model_id": id, "source": model["source"]["kind"], **told}, subject=id)
        return model

    def _place(self, id: str, files: Sequence[File]) -> None:
        for file in files:
            if file.path is not None:
                self.blobs.take(file.path, file.sha256)
            elif not self.blobs.has(file.sha256, file.size):
                raise Unavailable(f"{file.name} was deleted while the model was prepared", hint="ask again")
        for file in files:
            self.blobs.link(file.sha256, self.blobs.models / id / file.name)

    def foresee(self, model: Mapping[str, Any], force: bool) -> tuple[tuple[tuple[str, str], ...], int]:
        """Who refers to a model that could be removed, and the bytes that would be given back. Raises as `remove` does."""
        id = str(model["id"])
        self._refuse_in_use(id, force)
        users = tuple(("service", service["id"]) for service in self._store.find("service", model_id=id))
        if model["source"]["kind"] in ELSEWHERE:
            return users, 0
        own = [file for file in model["files"] if self.holders(file["sha256"]) <= {id} and self.blobs.is_alone(file["sha256"])]
        return users, sum(file["size_bytes"] for file in own)

    async def remove(self, model: Mapping[str, Any], force: bool) -> int:
        """Take a model's files and then its record away; returns the bytes that the disk got back.

        Raises:
            FailedPrecondition: an engine has it loaded, or a service wants it.
        """
        id = str(model["id"])
        with anyio.CancelScope(shield=True):
            async with self._lock:
                self._refuse_in_use(id, force)
                freed = 0
                if model["source"]["kind"] not in ELSEWHERE:
                    orphans = [file["sha256"] for file in model["files"] if self.holders(file["sha256"]) <= {id}]
                    freed = await to_thread.run_sync(self.blobs.drop, self.blobs.models / id, orphans)
                if await self._store.delete("model", id):
                    self._events.publish("model.deleted", {"model_id": id, "freed_bytes": freed}, subject=id)
        return freed

    def _refuse_in_use(self, id: str, force: bool) -> None:
        live = [doc["id"] for doc in self._store.find("instance", model_id=id) if doc.get("status") in ("starting", "ready")]
        wanted = [doc["id"] for doc in self._store.find("service", model_id=id)]
        if not live and (force or not wanted):
            return
        users = [f"service {name}" for name in wanted] + [f"instance {name}" for name in live]
        calls: list[dict[str, Any]] = [{"unit": "service.delete", "arguments": {"service_id": name}} for name in wanted]
        calls += [] if wanted else [{"unit": "engine.stop", "arguments": {"instance_id": name}} for name in live]
        raise FailedPrecondition(
            f"model {id} is in use by {', '.join(users)}",
            hint="stop what uses it first; force covers stopped services only, never a loaded engine"
            if live
            else "delete the service, or pass force",
            next=calls,
            details={"services": wanted, "instances": live},
        )

    def holders(self, sha256: str) -> set[str]:
        """The models that have a blob."""
        sql = "SELECT model_id FROM model_blobs WHERE sha256 = ?"
        return {str(row[0]) for row in self._store.read(sql, (sha256,))}

    def held(self) -> set[str]:
        """Every blob that a model has."""
        return {str(row[0]) for row in self._store.read("SELECT DISTINCT sha256 FROM model_blobs")}

    def sweep(self, held: set[str]) -> None:
        """Clear what a crash left: half imports, and parts of models that were complete and recorded. Blocking."""
        for entry in self.blobs.partial.iterdir():
            done, whole = noted(entry)
            if entry.name.startswith("import-") or (whole and held.issuperset(done.values())):
                shutil.rmtree(entry, ignore_errors=True)

    async def put_aside(self, model: Mapping[str, Any], sha256: str | None) -> None:
        """A file of a model is not what its record says: unless its blob still is, nobody is given that any more."""
        if sha256 is None or model["source"]["kind"] == "external":
            return
        async with self._lock:
            await to_thread.run_sync(self.blobs.checked, sha256)

    # Clearing up

    async def garbage(self) -> tuple[list[Path], int]:
        """What no model has, and the bytes that the disk would get back."""
        async with self._lock:
            return await self._garbage()

    async def clear(self) -> tuple[list[Path], int]:
        """Remove it; what it was, and the bytes that the disk got back."""
        with anyio.CancelScope(shield=True):
            async with self._lock:
                found, freed = await self._garbage()
                await to_thread.run_sync(self.blobs.discard, found)
        return found, freed

    async def _garbage(self) -> tuple[list[Path], int]:
        found = await to_thread.run_sync(self.blobs.garbage, self.held(), self._store.ids("model"))
        return found, await to_thread.run_sync(self.blobs.weigh, found)
