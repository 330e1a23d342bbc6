"""Weights that are on this machine already: taken into the home, or registered where they lie."""

from __future__ import annotations

import shutil
from pathlib import Path

import anyio
from anyio import from_thread, to_thread

from aima_lib.errors import InvalidArgument
from aima_lib.infra.blobs import digest, disk_error, join_or_copy, need_room
from aima_lib.infra.progress import Send
from aima_lib.infra.store import Store
from aima_lib.names import slug, token
from aima_lib.services.describe import describe, digest_of, weights_in
from aima_lib.services.fetch import File
from aima_lib.services.shelf import Model, Shelf
from aima_lib.sources.huggingface import SHARD


class Intake:
    """Imports and registrations of one home."""

    def __init__(self, store: Store, shelf: Shelf) -> None:
        self._store, self._shelf = store, shelf

    async def take(self, path: str, name: str | None, type: str | None, mode: str, send: Send) -> Model:
        """Take weights into the home: checked, hashed, under their digest.

        Raises:
            InvalidArgument: no such file, or it is broken; the message says where.
        """
        given, format, paths = await self._locate(path)
        if format not in ("gguf", "safetensors"):
            hint = "GGUF and safetensors are read; register other formats where they lie with model.create"
            raise InvalidArgument(f"{given} is in a format AIMA cannot check ({format})", hint=hint)
        folder = self._shelf.blobs.partial / f"import-{token(12)}"
        try:
            facts = await to_thread.run_sync(describe, format, [(each, each.name) for each in paths])
            facts["type"] = type or facts["type"]
            files = await self._hashed(paths, folder, mode, send)
            wanted = name or (given.name if given.is_dir() else _stem(paths[0]))
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

    async def _locate(self, path: str) -> tuple[Path, str, list[Path]]:
        def look() -> tuple[Path, str, list[Path]]:
            given = Path(path).expanduser().absolute()
            try:
                return (given, *weights_in(given))
            except OSError as error:
                raise disk_error(error, given) from error

        if "\0" in path:
            raise InvalidArgument(f"{path!r} is not a path")
        return await to_thread.run_sync(look)

    async def _hashed(self, paths: list[Path], folder: Path, mode: str, send: Send) -> list[File]:
        """Link or copy first, hash what was linked: nobody can change the name in between."""
        whole = sum([path.stat().st_size for path in paths])
        files: list[File] = []
        await to_thread.run_sync(lambda: folder.mkdir(parents=True))
        for path in paths:
            done = sum(file.size for file in files)
            await send({"phase": "hashing", "message": f"checking {path.name}", "completed": done, "total": whole})
            target = folder / str(len(files))
            await to_thread.run_sync(self._bring, path.resolve(), target, mode)
            sha256 = await to_thread.run_sync(digest, target, lambda _: from_thread.check_cancelled())
            files.append(File(path.name, sha256, target.stat().st_size, target))
        return files

    def _bring(self, path: Path, target: Path, mode: str) -> None:
        if mode == "copy":
            need_room(self._shelf.blobs.models, path.stat().st_size)
            shutil.copyfile(path, target)
        else:
            join_or_copy(path, target)


def _stem(path: Path) -> str:
    """The file's name without its suffix and shard number."""
    return SHARD.sub("", path.name).removesuffix(path.suffix) or path.name
