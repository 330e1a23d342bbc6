"""Weights that are on this machine already: taken into the home, or registered where they lie."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
from anyio import from_thread, to_thread

from aima_lib.errors import AimaError, InvalidArgument, ResourceExhausted
from aima_lib.infra.blobs import digest, disk_error, join_or_copy, need_room
from aima_lib.infra.progress import Send
from aima_lib.infra.roots import Opened
from aima_lib.infra.store import Store
from aima_lib.names import slug, token
from aima_lib.services import caches
from aima_lib.services.caches import Held, Skipped
from aima_lib.services.describe import CHECKED, describe, digest_of, unread, weights_in
from aima_lib.services.fetch import File
from aima_lib.services.shelf import Model, Shelf
from aima_lib.sources.choose import SHARD


@dataclass(frozen=True, slots=True)
class Found:
    """One model, its files open, each with the name it is to have."""

    path: Path
    format: str
    files: list[tuple[str, Opened]]
    stem: str
    repo: str | None = None
    digests: Mapping[str, str] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    license: str | None = None


class Intake:
    """Imports and registrations of one home."""

    def __init__(self, store: Store, shelf: Shelf, remotes: Collection[str] = ()) -> None:
        self._store, self._shelf, self._endpoints = store, shelf, {"ollama", *remotes}

    async def take(self, path: str, name: str | None, type: str | None, mode: str, send: Send) -> tuple[list[Model], list[Skipped]]:
        """Take weights into the home: checked, hashed, under their digest. Of a cache all its models, and what of it could not be taken.

        Raises:
            PermissionDenied: it is not beneath a root of the configuration.
            InvalidArgument: no such file, or it is broken; the message says where.
        """
        with ExitStack() as held:
            given, listed = await to_thread.run_sync(self._look, path, held)
            if listed is None:
                found = await to_thread.run_sync(self._locate, given, held)
                return [await self._take(found, name, type, mode, send)], []
        if name is not None and len(listed) > 1:
            raise InvalidArgument(f"{given.path} holds {len(listed)} models: one name cannot be theirs", hint="leave name out")
        return await self._take_all(given.path, listed, name, type, mode, send)

    async def _take_all(
        self, given: Path, listed: list[Held | Skipped], name: str | None, type: str | None, mode: str, send: Send
    ) -> tuple[list[Model], list[Skipped]]:
        models: list[Model] = []
        skipped: list[Skipped] = []
        for each in listed:
            if isinstance(each, Skipped):
                skipped.append(each)
                continue
            try:
                with ExitStack() as held:
                    models.append(await self._take(await to_thread.run_sync(self._open, each, held), name, type, mode, send))
            except ResourceExhausted:
                raise
            except AimaError as error:
                skipped.append(Skipped(each.path, str(error)))
        if not models:
            why = "; ".join(f"{each.path}: {each.reason}" for each in skipped[:3])
            raise InvalidArgument(f"nothing of {given} could be taken: {why or 'it holds no model'}")
        return models, skipped

    async def _take(self, found: Found, name: str | None, type: str | None, mode: str, send: Send) -> Model:
        if found.format not in CHECKED:
            hint = f"{', '.join(CHECKED)} are read; register other formats where they lie with model.create"
            raise InvalidArgument(f"{found.path} is in a format AIMA cannot check ({found.format})", hint=hint)
        folder = self._shelf.blobs.partial / f"import-{token(12)}"
        weights = [(opened.file, each) for each, opened in found.files]
        with self._shelf.blobs.busy(folder):
            try:
                facts = await to_thread.run_sync(describe, found.format, weights)
                facts["type"], facts["license"] = type or facts["type"], facts["license"] or found.license
                facts["defaults"] = dict(found.defaults)
                files = await self._hashed(found, folder, mode, send)
                same = self._store.find("model", digest=digest_of([(file.name, file.sha256) for file in files]))
                wanted = name or (same[0]["id"] if same else found.stem)
                origin = {"kind": "local", "path": str(found.path), "repo": found.repo}
                return await self._shelf.add(wanted, name is not None, found.format, files, facts, origin)
            except OSError as error:
                raise disk_error(error, self._shelf.blobs.models) from error
            finally:
                with anyio.CancelScope(shield=True):
                    await to_thread.run_sync(lambda: shutil.rmtree(folder, ignore_errors=True))

    async def register(self, name: str, type: str, path: str, format: str | None, source: str | None) -> Model:
        """Register weights where they lie; nothing is copied, hashed or owned.

        Raises:
            AlreadyExists: the name belongs to something else.
        """
        endpoint, _, there = path.partition(":")
        if there and endpoint in self._endpoints:
            return await self._register_remote(name, type, path, there)
        with ExitStack() as held:
            given = held.enter_context(self._shelf.roots.open(path))
            found = await to_thread.run_sync(self._locate, given, held)
            return await self._register(name, type, found, format, source)

    async def _register_remote(self, name: str, type: str, path: str, there: str) -> Model:
        id, present = slug(name), self._store.peek("model", slug(name))
        if present is not None and present["source"]["path"] == path and present["type"] == type:
            return present
        self._shelf.named(name, True, None)
        return await self._shelf.refer(id, "remote", [], unread(type), {"kind": "remote", "path": path, "repo": there})

    async def _register(self, name: str, type: str, found: Found, format: str | None, source: str | None) -> Model:
        given = found.path
        # These two are known by what they hold; an engine told to load something else would quote it in its log.
        if format is not None and found.format != format and {found.format, format} & {"gguf", "safetensors"}:
            raise InvalidArgument(f"{given} is {found.format}, not {format}", hint="leave format out")
        if format is None and found.format == "unknown":
            raise InvalidArgument(f"the format of {given} cannot be told from its name", hint="give format")
        id, present = slug(name), self._store.peek("model", slug(name))
        if present is not None and present["source"]["path"] == str(given) and present["type"] == type:
            return present
        self._shelf.named(name, True, None)
        facts = await to_thread.run_sync(describe, found.format, [(opened.file, each) for each, opened in found.files])
        origin = {"kind": "external", "path": str(given), "repo": source}
        return await self._shelf.refer(id, format or found.format, [opened for _, opened in found.files], facts | {"type": type}, origin)

    # Blocking

    def _look(self, path: str, held: ExitStack) -> tuple[Opened, list[Held | Skipped] | None]:
        """What is at a path, open until `held` ends; and its models, when it is a cache."""
        given = held.enter_context(self._shelf.roots.open(path))
        try:
            return given, caches.find(given) if given.is_folder else None
        except OSError as error:
            raise disk_error(error, given.path) from error

    def _locate(self, given: Opened, held: ExitStack) -> Found:
        """The one model at a path."""
        try:
            format, files = weights_in(given, held.enter_context)
        except OSError as error:
            raise disk_error(error, given.path) from error
        stem = given.name if given.is_folder else _stem(files[0].path)
        return Found(given.path, format, [(each.name, each) for each in files], stem)

    def _open(self, model: Held, held: ExitStack) -> Found:
        """A model of a cache, its files open until `held` ends."""
        try:
            files = [(name, held.enter_context(self._shelf.roots.open(path))) for name, path in model.files.items()]
        except OSError as error:
            raise disk_error(error, Path(model.path)) from error
        return Found(Path(model.path), model.format, files, model.stem, model.repo, model.digests, model.defaults, model.license)

    async def _hashed(self, found: Found, folder: Path, mode: str, send: Send) -> list[File]:
        """Link or copy first, hash what was linked: nobody can change the name in between."""
        whole = sum(opened.size for _, opened in found.files)
        files: list[File] = []
        await to_thread.run_sync(lambda: folder.mkdir(parents=True))
        for name, opened in found.files:
            done = sum(file.size for file in files)
            await send({"phase": "hashing", "message": f"checking {name}", "completed": done, "total": whole})
            target = folder / str(len(files))
            await to_thread.run_sync(self._bring, opened, target, mode)
            sha256 = await to_thread.run_sync(digest, target, lambda _: from_thread.check_cancelled())
            if found.digests.get(name, sha256) != sha256:
                raise InvalidArgument(f"{name} hashes to sha256 {sha256}, its manifest says {found.digests[name]}")
            files.append(File(name, sha256, target.stat().st_size, target))
        return files

    def _bring(self, opened: Opened, target: Path, mode: str) -> None:
        if mode == "copy":
            need_room(self._shelf.blobs.models, opened.size)
            shutil.copyfile(opened.file, target)
        else:
            join_or_copy(opened.file, target)


def _stem(path: Path) -> str:
    """The file's name without its suffix and shard number."""
    return SHARD.sub("", path.name).removesuffix(path.suffix) or path.name
