"""Where an engine lies on a node of Ray's: an actor that starts it there by the launcher that starts engines at home.

The actor hosts a home of its own in a private folder, so that its keeper ends the engine a second after the actor is gone, however it went:
a node that Ray gives up, a driver that ends, a kill.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aima_lib import __version__
from aima_lib.errors import FailedPrecondition
from aima_lib.infra.home import Home
from aima_lib.infra.launch import FOLDER, Launch
from aima_lib.launchers import process, tunnel

PREFIX, GRACE_SECONDS, STALE_SECONDS = "aima-berth-", 1.0, 60.0
MOST_BYTES = 256 << 10


@dataclass(frozen=True, slots=True)
class Order:
    """What to start: the same Launch, with the key of its start, and who may come to its door."""

    instance: str
    launch: Launch
    key: str
    caller: str  # the certificate of the other end


class Berth:
    """One engine. Ray makes it anew on another node when this one is lost, and the engine with it."""

    def __init__(self, order: Order) -> None:
        self._order, self._own = order, tunnel.identity()
        self._begun = asyncio.Lock()
        self._home: Home | None = None
        self._port: int | None = None
        self._door: tuple[str, int] | None = None

    async def look(self, heard: int) -> Mapping[str, Any]:
        """How it is: where its door is and by which certificate, on which node, how the engine ended, and what it said since `heard`.

        Raises:
            FailedPrecondition: a file of the launch is not on this node.
            AimaError: as process.start.
        """
        async with self._begun:
            if self._door is None:
                await self._begin()
        assert self._home is not None
        path, instance = self._home.path, self._order.instance
        over = await asyncio.to_thread(self._over)
        lines, heard = await asyncio.to_thread(_fresh, process.log_of(path, instance), heard)
        return {
            "door": (*(self._door or ()), self._own.certificate),
            "node": _node(),
            "ready": process.read_ready(path, instance) if self._order.launch.announces else {},
            "over": over,
            "lines": lines,
            "heard": heard,
        }

    async def end(self, timeout_seconds: float) -> None:
        """End the engine, and leave nothing of it."""
        if self._home is not None:
            await asyncio.to_thread(process.stop, self._home.path, self._order.instance, timeout_seconds)
            self._home.release()
            shutil.rmtree(self._home.path, ignore_errors=True)

    async def _begin(self) -> None:
        launch = self._order.launch
        _refuse_absent(launch)
        _sweep()
        self._home = Home(tempfile.mkdtemp(prefix=PREFIX))
        self._home.make()
        self._home.acquire(__version__)
        given = self._home.path, self._order.instance, launch, self._order.key, GRACE_SECONDS
        _, self._port = await asyncio.to_thread(process.start, *given)
        tls = tunnel.context(self._own, self._order.caller, listens=True)
        host = _address()
        self._door = host, await tunnel.Door(self._reach).listen(host, tls=tls)

    async def _reach(self) -> tunnel.Streams:
        assert self._home is not None
        port = self._port
        if port is None and (announced := process.read_ready(self._home.path, self._order.instance)):
            port = int(announced["url"].rpartition(":")[2])
        if port is None:
            raise ConnectionRefusedError("it does not listen yet")
        return await tunnel.reach("127.0.0.1", port)

    def _over(self) -> Mapping[str, Any] | None:
        assert self._home is not None
        over = process.read_exit(self._home.path, self._order.instance)
        kept = process.read_state(self._home.path, self._order.instance)
        if over is None and kept is not None and not kept.has_keeper() and not kept.is_running():
            return {"returncode": None, "reason": "its keeper was killed"}
        return over


def _fresh(log: Path, heard: int) -> tuple[list[str], int]:
    """The whole lines beyond so many bytes of a log, without their times, and how many bytes that makes.."""
    try:
        with log.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(begin := heard if heard <= size else 0)
            whole = file.read(MOST_BYTES).rpartition(b"\n")[0]
    except OSError:
        return [], heard
    lines = [line.partition(b" ")[2].decode("utf-8", "replace") for line in whole.splitlines()]
    return lines, begin + (len(whole) + 1 if whole else 0)


def _refuse_absent(launch: Launch) -> None:
    """Its program and the files that it is given by path must be on this node too, at the same place."""
    paths = [Path(word) for word in launch.argv if word.startswith("/") and FOLDER not in word]
    if absent := [str(path) for path in paths if not path.exists()]:
        hint = "install AIMA and the engine on every node, and share the home's folder of models, at the same paths"
        raise FailedPrecondition(f"the node {_node()} has no {', '.join(absent)}", hint=hint)


def _sweep() -> None:
    """Remove the folders of berths on this node that were killed."""
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        try:
            is_old = time.time() - folder.stat().st_mtime > STALE_SECONDS and folder.stat().st_uid == os.getuid()
        except OSError:
            continue
        if is_old and Home(folder).host() is None:
            shutil.rmtree(folder, ignore_errors=True)


def _address() -> str:
    import ray.util

    return str(ray.util.get_node_ip_address())


def _node() -> str:
    """The node's address, and enough of its id to tell two of one machine apart."""
    import ray

    return f"{_address()}/{ray.get_runtime_context().get_node_id()[:8]}"
