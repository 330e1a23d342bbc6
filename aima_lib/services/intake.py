"""Weights that are on this machine already: taken into the home, or registered where they lie."""

from __future__ import annotations

import shutil
from collections.abc import Collection
from contextlib import ExitStack
from pathlib import Path

import anyio
from anyio import from_thread, to_thread

from aima_lib.errors import InvalidArgument
from aima_lib.infra.blobs import digest, disk_error, join_or_copy, need_room
from aima_lib.infra.progress import Send
from aima_lib.infra.roots import Opened
from aima_lib.infra.store import Store
from aima_lib.names import slug, token
from aima_lib.services.describe import CHECKED, FACTS, describe, digest_of, weights_in
from aima_lib.services.fetch import File
from aima_lib.services.shelf import Model, Shelf
from aima_lib.sources.huggingface import SHARD


class Intake:
    """Imports and registrations of one home."""

    def __init__(self, store: Store, shelf: Shelf, remotes: Collection[str] = ()) -> None:
        self._store, self._shelf, self._endpoints = store, shelf, {"ollama", *remotes}

    async def take(self, path: str, name: str | None, type: str | None, mode: str, send: Send) -> Model:
        """Take weights into the home: checked, hashed, under their digest.

        Raises:
            PermissionDenied: it is not beneath a root of the configuration.
            InvalidArgument: no such file, or it is broken; the message says where.
        """
        with ExitStack() as held:
            given, format, opened = await to_thread.run_sync(self._locate, path, held)
            return await self._take(given.path, given.is_folder, format, opened, name, type, mode, send)

    async def _take(
        self, given: Path, whole: bool, format: str, opened: list[Opened], name: str | None, type: str | None, mode: str, send: Send
    ) -> Model:
        if format not in CHECKED:
            hint = f"{', '.join(CHECKED)} are read; register other formats where they lie with model.create"
            raise InvalidArgument(f"{given} is in a format AIMA cannot check ({format})", hint=hint)
        folder = self._shelf.blobs.partial / f"import-{token(12)}"
        try:
            facts = await to_thread.run_sync(describe, format, [(each.file, each.name) for each in opened])
            facts["type"] = type or facts["type"]
            files = await self._hashed(opened, folder, mode, send)
            wanted = name or (given.name if whole else _stem(opened[0].path))
            same = self._store.find("model", digest=digest_of([(file.name, file.sha256) for file in files]))
            if same and name is None:
                wanted = same[0]["id"]
            return await self._shelf.add(wanted, name is not None, format, files, facts, {"kind": "local", "path": str(given)})
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
            given, found, opened = await to_thread.run_sync(self._locate, path, held)
            return await self._register(name, type, given.path, format, source, found, opened)

    async def _register_remote(self, name: str, type: str, path: str, there: str) -> Model:
        id, present = slug(name), self._store.peek("model", slug(name))
        if present is not None and present["source"]["path"] == path and present["type"] == type:
            return present
        self._shelf.named(name, True, None)
        facts = dict.fromkeys(FACTS) | {"type": type, "capabilities": [], "geometry": {}}
        return await self._shelf.refer(id, "remote", [], facts, {"kind": "remote", "path": path, "repo": there})

    async def _register(
        self, name: str, type: str, given: Path, format: str | None, source: str | None, found: str, opened: list[Opened]
    ) -> Model:
        # These two are known by what they hold; an engine told to load something else would quote it in its log.
        if format is not None and found != format and {found, format} & {"gguf", "safetensors"}:
            raise InvalidArgument(f"{given} is {found}, not {format}", hint="leave format out")
        if format is None and found == "unknown":
            raise InvalidArgument(f"the format of {given} cannot be told from its name", hint="give format")
        id, present = slug(name), self._store.peek("model", slug(name))
        if present is not None and present["source"]["path"] == str(given) and present["type"] == type:
            return present
        self._shelf.named(name, True, None)
        facts = await to_thread.run_sync(describe, found, [(each.file, each.name) for each in opened])
        origin = {"kind": "external", "path": str(given), "repo": source}
        return await self._shelf.refer(id, format or found, opened, facts | {"type": type}, origin)

    def _locate(self, path: str, held: ExitStack) -> tuple[Opened, str, list[Opened]]:
        """What is at a path, open until `held` ends."""
        given = held.enter_context(self._shelf.roots.open(path))
        try:
            return (given, *weights_in(given, held.enter_context))
        except OSError as error:
            raise disk_error(error, given.path) from error

    async def _hashed(self, opened: list[Opened], folder: Path, mode: str, send: Send) -> list[File]:
        """Link or copy first, hash what was linked: nobody can change the name in between."""
        whole = sum(each.size for each in opened)
        files: list[File] = []
        await to_thread.run_sync(lambda: folder.mkdir(parents=True))
        for each in opened:
            done = sum(file.size for file in files)
            await send({"phase": "hashing", "message": f"checking {each.name}", "completed": done, "total": whole})
            target = folder / str(len(files))
            await to_thread.run_sync(self._bring, each, target, mode)
            sha256 = await to_thread.run_sync(digest, target, lambda _: from_thread.check_cancelled())
            files.append(File(each.name, sha256, target.stat().st_size, target))
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
