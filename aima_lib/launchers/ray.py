"""Engines on the nodes of a Ray cluster: `python ray.py FOLDER` stands here for one that Ray has placed elsewhere.

It is started, watched, routed to and stopped like every engine of this machine, under a keeper. It is the Ray driver of one actor, a Berth,
so the engine goes where Ray finds room for it, and ends when this ends: with the instance, or when the home had no host for its grace. A
node that is lost is Ray's to replace: the berth comes back on another, and connections are led there. An engine that dies on a node that
lives is not: this ends as the engine did, and its home decides.

spec.json: {instance, ways, address, namespace, placement_group, port}. Needs the extra aima[ray]; importing this module does not.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from aima_lib.infra.launch import FOLDER, SECRETIVE, Launch
from aima_lib.launchers import tunnel
from aima_lib.launchers.berth import Berth, Order

LOOK_SECONDS, PATIENCE_SECONDS, END_SECONDS = 0.5, 10.0, 8.0
# How to show Ray who one is, without the token itself; it is told whatever else of its own is set.
TOLD = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH", "RAY_TLS_SERVER_KEY")


def absent() -> str | None:
    """Why engines cannot be started on Ray here, or None."""
    return None if importlib.util.find_spec("ray") else "ray is not installed: pip install 'aima[ray]'"


@dataclass(frozen=True, slots=True)
class Way:
    """One way to run an engine, and what a node must have to spare for it. `fallback`: why it is not the way that was asked for."""

    launch: Launch
    cpus: float
    gpus: float = 0
    memory_bytes: int | None = None
    fallback: str | None = None


def placed(ways: Sequence[Way], instance: str, settings: Mapping[str, Any], port: int | None) -> Launch:
    """The launch of what stands here for an engine on Ray: the first of its ways that some node of the cluster has room for, when empty.

    settings: [engines.ray].
    """
    spec = {
        "instance": instance,
        "ways": [asdict(way) for way in ways],
        "address": settings["address"],
        "placement_group": settings["placement_group"],
        "namespace": settings["namespace"],
        "port": port or 0,
    }
    around = {name: value for name, value in os.environ.items() if name in TOLD or (name.startswith("RAY_") and not SECRETIVE.search(name))}
    return Launch(
        (sys.executable, "-P", __file__, FOLDER), ways[0].launch.alias, ways[0].launch.tasks, env=around,
        files={"spec.json": json.dumps(spec)}, announces=True, probe=ways[0].launch.probe,
    )  # fmt: skip


class Stand:
    """What stands here for an engine on Ray."""

    def __init__(self, spec: Mapping[str, Any], way: Mapping[str, Any], key: str) -> None:
        given: Any = {name: tuple(value) if isinstance(value, list) else value for name, value in way["launch"].items()}
        launch = Launch(**given)
        self._spec, self._way, self._own = spec, way, tunnel.identity()
        self._order = Order(spec["instance"], launch, key, self._own.certificate)
        self._door = tunnel.Door(self._reach)
        self._where: tuple[str, int, str] | None = None  # address and port of the berth's door, and its certificate
        self._node: str | None = None
        self._announced: tuple[str, Mapping[str, Any]] | None = None
        self._heard = 0
        self.told = asyncio.Event()

    async def stand(self, folder: Path) -> int:
        """Until told to end, or until the engine has ended; its status. Raises OSError and what Ray raises."""
        import ray

        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, self.told.set)
        self._berth: Any = self._placed()
        port = await self._door.listen("127.0.0.1", self._spec["port"])
        try:
            while not self.told.is_set():
                try:
                    if (over := await self._look(folder, port)) is not None:
                        return over
                except ray.exceptions.ActorUnavailableError as error:
                    self._lose(str(error))
                except TimeoutError:  # what is open may go on: a node that is gone, Ray says
                    _say("W no node of the Ray cluster has room for it yet" if self._node is None else f"W {self._node} is slow to answer")
                with suppress(TimeoutError):
                    await asyncio.wait_for(self.told.wait(), LOOK_SECONDS)
            with suppress(ray.exceptions.RayError, TimeoutError):
                await asyncio.wait_for(_awaited(self._berth.end.remote(END_SECONDS)), END_SECONDS + 2)
            return 0
        finally:
            self._door.close()

    def _placed(self) -> Any:
        """The actor, on whatever node Ray finds; replicas of one service go to different ones while they can."""
        import ray
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        way, strategy = self._way, "SPREAD"
        if name := self._spec["placement_group"]:
            strategy = PlacementGroupSchedulingStrategy(ray.util.get_placement_group(name))
        more = {"memory": way["memory_bytes"]} if way["memory_bytes"] else {}
        options = {"num_cpus": way["cpus"], "num_gpus": way["gpus"], "max_restarts": -1, "scheduling_strategy": strategy, **more}
        return ray.remote(Berth).options(**options).remote(self._order)

    async def _look(self, folder: Path, port: int) -> int | None:
        said = await asyncio.wait_for(_awaited(self._berth.look.remote(self._heard)), PATIENCE_SECONDS)
        for line in said["lines"]:
            _say(line)
        self._heard = said["heard"]
        if tuple(said["door"]) != self._where:
            self._door.close_all()
            self._where, self._node, self._heard = tuple(said["door"]), said["node"], said["heard"]
            _say(f"I Ray has it on the node {self._node}")
            self._tls = tunnel.context(self._own, self._where[2], listens=False)
        ready = said["ready"]
        if ready is not None and self._announced != (said["node"], ready):
            self._announced = said["node"], ready
            on, fallback = "gpu" if self._way["gpus"] else "cpu", self._way["fallback"]
            if on == "gpu" and ready.get("on") == "cpu":
                fallback = "it found no GPU that it can use on its node: it computes on the CPU"
            _announce(folder, {"url": f"http://127.0.0.1:{port}", "node": said["node"], "on": on, "fallback": fallback})
        if (over := said["over"]) is not None:
            _say(f"E the engine on the node {self._node} has ended: {over['reason']}")
            return 1 if over["returncode"] is None else int(over["returncode"])
        return None

    def _lose(self, why: str) -> None:
        if self._where is not None:
            _say(f"W the node {self._node} is lost, and Ray looks for another: {why.splitlines()[0]}")
            self._where, self._heard = None, 0
            self._door.close_all()

    async def _reach(self) -> tunnel.Streams:
        if self._where is None:
            raise ConnectionRefusedError("it is on no node now")
        host, port, _ = self._where
        return await tunnel.reach(host, port, self._tls)


async def _awaited(reference: Any) -> Any:
    return await reference


def _possible(ways: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """The first way that a node of the cluster has room for, were it empty. Raises LookupError: there is none."""
    import ray

    nodes, wanted = [node["Resources"] for node in ray.nodes() if node["Alive"]], ""
    for way in ways:
        asked = {"CPU": way["cpus"], "GPU": way["gpus"], "memory": way["memory_bytes"] or 0}
        if any(all(node.get(name, 0) >= count for name, count in asked.items()) for node in nodes):
            return way
        wanted = ", ".join(f"{name} {count:,.12g}" for name, count in asked.items() if count)
    raise LookupError(f"none of the {len(nodes)} nodes of the Ray cluster has {wanted}")


def _say(line: str) -> None:
    """To the log that the keeper keeps."""
    print(line, file=sys.__stdout__, flush=True)


def _announce(folder: Path, said: Mapping[str, Any]) -> None:
    fresh = folder / "ready.json.new"
    fresh.write_text(json.dumps(said), encoding="utf-8")
    os.replace(fresh, folder / "ready.json")


def serve(folder: Path) -> int:
    """Stand until the end; the status to end with: negative as the signal that ended the engine."""
    import ray

    spec: dict[str, Any] = json.loads((folder / "spec.json").read_text(encoding="utf-8"))
    try:
        ray.init(spec["address"], namespace=spec["namespace"], log_to_driver=False, logging_level="error", configure_logging=False)
        sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - Ray repeats the logs of nodes that it lost
        key = (folder / "key").read_text(encoding="utf-8").strip()
        return asyncio.run(Stand(spec, _possible(spec["ways"]), key).stand(folder))
    except (ray.exceptions.RayError, OSError, LookupError, ValueError, RuntimeError) as error:
        _say(f"E {_said(error)}")
        return 1
    finally:
        ray.shutdown()


def _said(error: BaseException) -> str:
    """What went wrong there, without the trace of how it came here."""
    cause = getattr(error, "cause", None)
    return " ".join(str(cause if isinstance(cause, Exception) else error).split())[:1000]


def main() -> None:
    status = serve(Path(sys.argv[1]))
    if status < 0:  # its home reads from the status how the engine ended
        signal.signal(-status, signal.SIG_DFL) if -status != signal.SIGKILL else None
        os.kill(os.getpid(), -status)
    sys.exit(status)


if __name__ == "__main__":
    main()
