"""Engines brought to this machine: Python environments of their own, pinned, recorded, checked by importing what is in them."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import venv
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import anyio
from anyio import to_thread

from aima_lib.engines.base import Builtin, Engine, Install
from aima_lib.errors import AimaError, FailedPrecondition, InvalidArgument, Unavailable
from aima_lib.infra.blobs import disk_error, need_room
from aima_lib.infra.clock import now
from aima_lib.infra.environments import RECORD, Environments
from aima_lib.infra.home import write_private
from aima_lib.infra.launch import environment
from aima_lib.infra.progress import Send
from aima_lib.infra.store import Document
from aima_lib.services.containers import Containers
from aima_lib.services.engine_catalog import ALIVE, EngineCatalog
from aima_lib.services.launching import DOCKER, refuse_uncontained
from aima_lib.services.model import ModelService

PIP_SECONDS, CHECK_SECONDS, LAST_WORDS = 3600, 300, 600
# What pip and uv may see besides what engines see: whoever set these chose where packages come from.
TOLD = (
    "PIP_",
    "UV_",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
    "http_proxy",
    "https_proxy",
    "no_proxy",
    "SSL_CERT_FILE",
    "REQUESTS_CA_BUNDLE",
)
FREEZE = "import json; from importlib.metadata import distributions as d; print(json.dumps({x.metadata['Name']: x.version for x in d()}))"


class Installing:
    """What `engine.install` does. Two calls for one engine wait for each other."""

    def __init__(self, config: Mapping[str, Any], home: Path, catalog: EngineCatalog, models: ModelService, containers: Containers) -> None:
        self._index, self._home, self._catalog, self._models = config["sources"]["pypi_index"], home, catalog, models
        self._containers = containers
        self._own = Environments(home / "engines")
        self._locks: defaultdict[str, anyio.Lock] = defaultdict(anyio.Lock)

    async def install(self, name: str, version: str | None, launcher: str, send: Send) -> Document:
        """Bring an engine here, unless it is: its environment, or for the launcher docker its image.

        Raises:
            NotFound: no such engine, or no registry has its image.
            FailedPrecondition: it is a program of the system's, which is not there, or nothing AIMA can fetch.
            ResourceExhausted: the disk has no room for it.
            Unavailable: the index did not give it; what it said is in the message.
        """
        engine, made = self._catalog.adapter(name), False
        if launcher == DOCKER:
            refuse_uncontained(engine)
            return await self._install_image(name, version, send)
        async with self._locks[name]:
            if engine.install is not None and not await self._is_here(engine, version):
                await self._make(engine, engine.install, version, send)
                made = True
            self._catalog.forget(name)
            found = await self._catalog.find(name)
            if not found.installed:
                raise FailedPrecondition(
                    f"{name} cannot be installed by AIMA: {found.reason}", next=[{"unit": "engine.list", "arguments": {}}]
                )
            model = await self._register(engine.builtin) if engine.builtin else None
        own = await to_thread.run_sync(self._own.find, name)
        packages = [f"{package}=={its}" for package, its in sorted(own.packages.items())] if own else []
        path = str(own.folder) if own else getattr(engine, "binary", None)
        return {"engine": name, "version": found.version, "path": path, "packages": packages, "model_id": model, "installed": made}

    async def _install_image(self, name: str, version: str | None, send: Send) -> Document:
        if version is not None:
            raise InvalidArgument("an image's version is its digest, which config.toml names", hint="leave version out")
        async with self._locks[name]:
            image, made = await self._containers.install(name, send)
        digest = image.rpartition("@")[2]
        return {"engine": name, "version": digest, "path": image, "packages": [], "model_id": None, "installed": made}

    async def foresee(self, name: str, version: str | None, launcher: str) -> tuple[bool, int, str | None]:
        """Whether something would be fetched, how much of the disk it may take, and the model that would be registered."""
        engine = self._catalog.adapter(name)
        if launcher == DOCKER:
            refuse_uncontained(engine)
            return not await self._containers.is_here(name), 0, None
        fetches = engine.install is not None and not await self._is_here(engine, version)
        model = engine.builtin.id if engine.builtin and not self._models.has(engine.builtin.id) else None
        return fetches, engine.install.disk_bytes if engine.install and fetches else 0, model

    async def remove(self, name: str, version: str) -> bool:
        """Take away the environment of an engine's version, unless something runs in it. Returns whether that is so."""
        async with self._locks[name]:
            if any(row["status"] in ALIVE for row in (await self._catalog.get(name))["instances"]):
                return False
            folder = self._own.place(name, version)
            await to_thread.run_sync(lambda: shutil.rmtree(folder, ignore_errors=True))
            self._catalog.forget(name)
        return True

    async def _is_here(self, engine: Engine, version: str | None) -> bool:
        if version is not None:
            return await to_thread.run_sync(self._own.find, engine.name, version) is not None
        self._catalog.forget(engine.name)
        return (await self._catalog.find(engine.name)).installed

    async def _make(self, engine: Engine, install: Install, version: str | None, send: Send) -> None:
        package, _, pinned = install.packages[0].partition("==")
        chosen = version or pinned
        folder = self._own.place(engine.name, chosen)
        await self._tell(send, "preparing", f"an environment for {engine.name} {chosen}")
        try:
            await to_thread.run_sync(self._empty, folder, install.disk_bytes)
            await self._tell(send, "fetching", f"{package} {chosen} and what it needs")
            await self._run(_installer(folder, [f"{package}=={chosen}", *install.packages[1:]], self._index), PIP_SECONDS, "Unavailable")
            await self._tell(send, "checking", f"importing {', '.join(install.modules)}")
            await self._run([str(folder / "bin/python"), "-c", f"import {', '.join(install.modules)}"], CHECK_SECONDS, "FailedPrecondition")
            packages = json.loads(await self._run([str(folder / "bin/python"), "-c", FREEZE], CHECK_SECONDS, "FailedPrecondition"))
            record = {"name": engine.name, "version": chosen, "packages": packages, "installed_at": now()}
            await to_thread.run_sync(write_private, folder / RECORD, json.dumps(record, indent=1))
        finally:
            if not (folder / RECORD).exists():
                with anyio.CancelScope(shield=True):
                    await to_thread.run_sync(lambda: shutil.rmtree(folder, ignore_errors=True))

    def _empty(self, folder: Path, bytes_needed: int) -> None:
        """A fresh environment, without pip where AIMA has one that can put things into it."""
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            need_room(folder.parent, bytes_needed)
            shutil.rmtree(folder, ignore_errors=True)
            venv.create(folder, with_pip=_brings_its_own(), symlinks=True)
        except OSError as error:
            raise disk_error(error, folder.parent) from error

    async def _run(self, command: Sequence[str], seconds: float, failure: str) -> str:
        """Run a program to its end; a caller that leaves ends it."""
        around = environment() | {name: value for name, value in os.environ.items() if name.startswith(TOLD)}
        around |= {"PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_INPUT": "1", "PYTHONPATH": ""}
        try:
            with anyio.fail_after(seconds):
                done = await anyio.run_process(command, check=False, env=around, stdin=subprocess.DEVNULL, start_new_session=True)
        except TimeoutError as error:
            raise Unavailable(
                f"{Path(command[0]).name} took longer than {seconds:g} s", hint="try again: what was fetched is cached"
            ) from error
        if done.returncode == 0:
            return done.stdout.decode("utf-8", "replace")
        raise _failed(failure, done.stderr.decode("utf-8", "replace"), self._index)

    async def _register(self, builtin: Builtin) -> str:
        await self._models.add_builtin(builtin.id, builtin.type, builtin.format, builtin.files, builtin.license)
        return builtin.id

    @staticmethod
    async def _tell(send: Send, phase: str, message: str) -> None:
        await send({"phase": phase, "message": message, "completed": None, "total": None})


def _installer(folder: Path, packages: Sequence[str], index: str | None) -> list[str]:
    """The command that puts packages into an environment: uv where it is, else pip."""
    where = ["--index-url", index] if index else []
    if uv := shutil.which("uv"):
        return [uv, "pip", "install", "--quiet", "--python", str(folder / "bin/python"), *where, *packages]
    python = str(folder / "bin/python")
    pip = [python, "-m", "pip"] if _brings_its_own() else [sys.executable, "-m", "pip", "--python", python]
    return [*pip, "install", "--quiet", *where, *packages]


def _brings_its_own() -> bool:
    return shutil.which("uv") is None and importlib.util.find_spec("pip") is None


def _failed(failure: str, said: str, index: str | None) -> AimaError:
    lines = [line.strip() for line in said.splitlines() if line.strip() and "WARNING" not in line]
    telling = [line for line in lines if line.startswith("ERROR") or "Error" in line] or lines
    why = (telling[-1] if telling else "no reason given")[-LAST_WORDS:]
    if index:
        why = why.replace(index, "the index")
    if "No matching distribution" in why or "no version of" in why:
        return InvalidArgument(f"the index has no such version: {why}", hint="leave version out")
    if failure == "Unavailable":
        return Unavailable(f"the packages could not be installed: {why}", hint="check the network and pip's own configuration")
    return FailedPrecondition(f"the environment was made and cannot be imported: {why}", hint="another version may do: set version")
