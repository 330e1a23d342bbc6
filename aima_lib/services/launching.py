"""Where engines run: as processes of this machine, in containers of it, or on the nodes of a Ray cluster."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from aima_lib.engines.base import Engine
from aima_lib.errors import FailedPrecondition, InvalidArgument
from aima_lib.infra.launch import Launch
from aima_lib.infra.store import Document
from aima_lib.launchers import ray
from aima_lib.launchers.ray import Way
from aima_lib.services.engine_calls import port_of, start_call

PROCESS, DOCKER, RAY, OPTION = "process", "docker", "ray", "launcher"
KINDS: Mapping[str, Document] = {kind: {"id": RAY, "type": kind, "memory": {"kind": "system"}} for kind in ("gpu", "cpu")}
# The launch on a device, with these options.
Plan = Callable[[Mapping[str, Any], Mapping[str, Any]], Launch]


def is_on_ray(options: Mapping[str, Any]) -> bool:
    """Whether an engine with these options is on a node of a Ray cluster."""
    return options.get(OPTION) == RAY


def is_contained(options: Mapping[str, Any]) -> bool:
    """Whether an engine with these options is a container."""
    return options.get(OPTION) == DOCKER


def chosen(options: Mapping[str, Any] | None, given: str | None = None) -> dict[str, Any]:
    """The options with the launcher that was given beside them: one that is a process says nothing of it.

    Raises:
        InvalidArgument: both name one, and not the same.
    """
    found = dict(options or {})
    if given is not None and found.setdefault(OPTION, given) != given:
        raise InvalidArgument(f"launcher is {given}, and options.launcher {found[OPTION]}", hint="leave one of them out")
    if found.get(OPTION) == PROCESS:
        del found[OPTION]
    return found


def _plain(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name != OPTION}


def refuse_uncontained(engine: Engine, instead: Document | None = None) -> None:
    """Raise FailedPrecondition for an engine that cannot be a container. instead: the call that starts it as a process."""
    if engine.announces:
        raise FailedPrecondition(
            f"{engine.name} stays a process: it chooses its own port, which no container can publish",
            hint="leave launcher out, or take an engine that is given its port: llama-server, vllm, sglang",
            next=[instead or {"unit": "engine.get", "arguments": {"name": engine.name}}],
        )


class Launching:
    """What there is to start engines with elsewhere than on this machine."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self._ray = settings["ray"]

    def launchers(self, engine: Engine) -> list[str]:
        """How an engine can be started elsewhere."""
        return [] if self._absent(engine) else [RAY]

    def refuse(self, engine: Engine, options: Mapping[str, Any], model_id: str | None = None) -> None:
        """Raise InvalidArgument or FailedPrecondition where an engine cannot be started by the launcher that they name."""
        if is_contained(options):
            refuse_uncontained(engine, None if model_id is None else start_call(engine.name, model_id, _plain(options), None))
        if not is_on_ray(options) or not (why := self._absent(engine)):
            return
        kind = InvalidArgument if "remote" in engine.formats else FailedPrecondition
        raise kind(f"{engine.name} cannot be started on Ray: {why}", next=[{"unit": "engine.get", "arguments": {"name": engine.name}}])

    def on_ray(self, engine: Engine, instance: Mapping[str, Any], plan: Plan, needed_bytes: int | None) -> Launch:
        """The launch of what stands here for an engine on Ray: on a GPU where the cluster has one, as at home."""
        options = instance["options"]
        layers, cpus = options.get("gpu_layers"), float(options.get("threads", 1))
        given = {"threads": int(cpus), **options, "port": None}
        ways: list[Way] = []
        if "gpu" in engine.devices and layers != 0:
            ways.append(Way(plan(KINDS["gpu"], given), cpus, gpus=float(options.get("tensor_parallel", 1))))
        fallback = f"gpu_layers={layers} was asked, but no node of the Ray cluster has a GPU" if layers else None
        ways.append(Way(plan(KINDS["cpu"], given), cpus, memory_bytes=needed_bytes, fallback=fallback))
        return ray.placed(ways, instance["id"], self._ray, port_of(instance))

    def _absent(self, engine: Engine) -> str | None:
        if "remote" in engine.formats:
            return "it is elsewhere already"
        if self._ray["address"] is None:
            return 'config.toml names no cluster: [engines.ray] address, "auto" for the one that this machine is a node of'
        return ray.absent()
