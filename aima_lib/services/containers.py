"""Engines in containers, as the host sees them: which images serve which engines, whether they can be started, and what is left of them."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread

from aima_lib.errors import AimaError, FailedPrecondition, NotFound
from aima_lib.infra.container import GENERATION, NAME, named
from aima_lib.infra.daemon import Daemon
from aima_lib.infra.docker import Docker, Happening
from aima_lib.infra.launch import Launch
from aima_lib.infra.progress import Send
from aima_lib.infra.roots import Roots
from aima_lib.infra.store import Document, Store
from aima_lib.launchers import docker as launcher
from aima_lib.launchers import process
from aima_lib.services.launching import DOCKER, PROCESS, is_contained
from aima_lib.services.model import ModelService

log = logging.getLogger(__name__)
LOOK_SECONDS, HURRY_SECONDS, HURRIED = 5.0, 2.0, 0.05
ALIVE = ("starting", "ready")


class Containers:
    """What `launcher: docker` needs of the host. The image of each engine stands in `[engines.images]` of the configuration."""

    def __init__(self, config: Mapping[str, Any], home: Path, store: Store, docker: Docker, models: ModelService) -> None:
        self._images: Mapping[str, Mapping[str, Any]] = config["engines"]["images"]
        self._home, self._store, self._docker, self._models = home, store, docker, models
        self._gpus, self._seconds = config["docker"]["gpus"], float(config["docker"]["call_seconds"])
        self._roots = Roots({**config["files"]["roots"], "aima": str(launcher.OWN)}, home)
        self._news, self._hurried_until = anyio.Event(), 0.0
        docker.listen(self._hear)

    def need(self) -> None:
        """Have Docker watched from now on, if an engine of this home is a container, or a service wants one."""
        records = [*self._store.find("instance"), *self._store.find("service")]
        if any(is_contained(record["options"]) for record in records):
            self._docker.need()

    def is_away(self, options: Mapping[str, Any]) -> bool:
        """Whether an engine with these options has to wait for Docker to come back."""
        return is_contained(options) and self._docker.is_away

    def launchers(self, name: str, is_here: bool) -> list[str]:
        """How an engine can be started, as far as the configuration tells."""
        return [*([PROCESS] if is_here or name not in self._images else []), *([DOCKER] if name in self._images else [])]

    def image(self, name: str) -> str | None:
        """The image that serves an engine."""
        return str(self._images[name]["image"]) if name in self._images else None

    async def found(self, name: str) -> Document | None:
        """Whether an engine can be started as a container: {image, available, reason}; None where the configuration names no image."""
        if (image := self.image(name)) is None:
            return None
        try:
            here = await self._docker.image(image, LOOK_SECONDS)
            return {
                "image": image,
                "available": here is not None,
                "reason": None if here else f"{image} is not here: engine.install pulls it",
            }
        except AimaError as error:
            return {"image": image, "available": False, "reason": f"{error}; {error.hint}" if error.hint else str(error)}

    async def refuse_absent(self, name: str) -> None:
        """Raise where an engine cannot be started as a container now.

        Raises:
            FailedPrecondition: the configuration names no image for it, or the image is not here.
            Unavailable: Docker is away.
        """
        image = self._named(name)
        if await self._docker.image(image) is None:
            call = {"unit": "engine.install", "arguments": {"name": name, "launcher": DOCKER}}
            raise FailedPrecondition(f"the image of {name} is not here: {image}", hint="engine.install pulls it", next=[call])

    def _named(self, name: str) -> str:
        if (image := self.image(name)) is None:
            hint = f'[engines.images.{name}] image = "name@sha256:…" in config.toml names one'
            call = {"unit": "engine.get", "arguments": {"name": name}}
            raise FailedPrecondition(f"the configuration names no image that serves {name}", hint=hint, next=[call])
        return image

    async def install(self, name: str, send: Send) -> tuple[str, bool]:
        """Bring an engine's image here; what it is called, and whether this call brought it. Raises as Docker.pull."""
        image = self._named(name)
        was_here = await self._docker.image(image) is not None
        await self._docker.pull(image, send)
        return image, not was_here

    async def is_here(self, name: str) -> bool:
        """Whether its image is here. Raises as `refuse_absent` does."""
        return await self._docker.image(self._named(name)) is not None

    # Starting

    async def wrap(self, instance: Document, launch: Launch, model: Mapping[str, Any], device: Mapping[str, Any], port: int) -> Launch:
        """The launch as a container. Raises as launcher.contained, and as Docker does."""
        name = instance["engine"]
        info = await self._docker.ask(Daemon.info)
        image = await self._docker.image(self._named(name))
        if image is None:
            raise FailedPrecondition(f"the image of {name} is not here any more")
        settings = {**self._images[name], "image": image["Id"]}
        daemon = {
            "socket": self._docker.socket,
            "home_id": self._docker.home_id,
            "name": instance["id"],
            "generation": instance["started_at"],
            "seconds": self._seconds,
        }
        files = [self._models.path(model).parent / str(file["name"]) for file in model["files"]]
        rootless = any("rootless" in str(option) for option in info.get("SecurityOptions") or ())
        user = "0:0" if rootless else f"{os.getuid()}:{os.getgid()}"
        folder, gpus = process.folder_of(self._home, instance["id"]), gpu_request(device, info, self._gpus)
        work = partial(launcher.contained, launch, settings, files, self._roots, daemon, folder=folder, port=port, user=user, gpus=gpus)
        return await anyio.to_thread.run_sync(work)

    async def holder(self, port: int) -> str | None:
        """Whose container holds a port of this machine, anybody's; None when none does, or nobody knows."""
        try:
            return await self._docker.ask(Daemon.publisher, port)
        except AimaError:
            return None

    # Ending

    async def stop(self, instance: Mapping[str, Any], timeout_seconds: float) -> int:
        """End an instance, and remove what is left of its container; the bytes that came free."""
        freed = await anyio.to_thread.run_sync(process.stop, self._home, instance["id"], timeout_seconds)
        await self.clear(instance)
        return freed

    async def clear(self, instance: Mapping[str, Any]) -> None:
        """Remove what is left of an instance's container, if it was one."""
        if not is_contained(instance["options"]):
            return
        try:
            await self._docker.ask(Daemon.remove, named(self._docker.home_id, instance["id"]))
        except NotFound:
            pass
        except AimaError as error:
            log.warning("the container of %s may be left, and is removed later: %s", instance["id"], error)

    # Watching

    async def pause(self, seconds: float) -> None:
        """Wait so long; or hardly, where a container of an engine has died a moment ago and what stands for it is about to say why."""
        if time.monotonic() < self._hurried_until:
            await anyio.sleep(HURRIED)
            return
        with anyio.move_on_after(seconds):
            await self._news.wait()

    async def _hear(self, happening: Happening) -> None:
        if happening.action == "connected":
            await self.sweep()
        elif happening.action == "die" and happening.kind == launcher.KIND:
            self._hurried_until = time.monotonic() + HURRY_SECONDS
            self._news.set()
            self._news = anyio.Event()

    async def sweep(self) -> None:
        """Remove containers of engines that no instance stands for: what stood for them was killed, or Docker was away when they ended."""
        for row in await self._docker.ask(Daemon.list, launcher.KIND):
            marks = row.get("Labels") or {}
            instance = self._store.peek("instance", marks.get(NAME, ""))
            lives = instance is not None and instance["status"] in ALIVE and instance["started_at"] == marks.get(GENERATION)
            if not lives:
                log.warning("removing the container of %s, which nothing stands for", marks.get(NAME))
                await self._docker.ask(Daemon.remove, row["Id"])


def gpu_request(device: Mapping[str, Any], info: Mapping[str, Any], how: str) -> Document | None:
    """How Docker is asked for a device, as [docker] gpus says; None for one that is no GPU. info: what Docker says of itself."""
    if device["type"] != "gpu":
        return None
    runtimes = info.get("Runtimes") or {}
    if how == "auto":
        jetson, knows = device["source"] == "tegra", bool(info.get("CDISpecDirs"))
        how = "runtime" if jetson and "nvidia" in runtimes else "cdi" if knows and "nvidia" not in runtimes else "request"
    if how == "cdi":
        return {"how": how, "ids": [f"nvidia.com/gpu={device['uuid'] or 'all'}"]}
    return {"how": how, **({"ids": [device["uuid"]]} if device["uuid"] else {})}
