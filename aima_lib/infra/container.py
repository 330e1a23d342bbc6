"""One container as data, and the judge of what may become one.

`judged` takes what a template or a caller wrote and refuses, with the field's path, all that schemas/container.schema.json does not know:
so nothing that is asked for can reach Docker's HostConfig but by a field that is written here. What every container of AIMA's gets beside:
no capabilities, no new privileges, no host namespace, no device but a GPU that was asked for, ports at 127.0.0.1 alone, the home's labels.
"""

from __future__ import annotations

import json
import os
import posixpath
import sys
from collections.abc import Mapping
from functools import cache
from typing import Any

from aima_lib.errors import InvalidArgument, PermissionDenied
from aima_lib.infra.roots import Roots
from aima_lib.registry import SCHEMAS, Judge

HOME, KIND, NAME, GENERATION = "aima.home", "aima.kind", "aima.name", "aima.generation"
PIDS, ENV_BYTES = 4096, 1 << 20
# Where nothing may be laid over: the kernel's own, and the root itself.
KERNELS = ("/proc", "/sys", "/dev")
NEVER = {
    "privileged", "cap_add", "devices", "device_cgroup_rules", "security_opt", "pid", "ipc", "uts", "userns", "cgroup_parent", "dns",
    "pid_mode", "ipc_mode", "uts_mode", "userns_mode", "cgroupns_mode", "sysctls", "volumes_from", "links", "runtime", "group_add",
    "network_mode", "oom_kill_disable", "oom_score_adj", "extra_hosts", "volume_driver", "host_config", "HostConfig", "Privileged", "Binds",
}  # fmt: skip
UNPINNED = "name@sha256:… or sha256:… is wanted: what a tag means may change"
Spec = Mapping[str, Any]


@cache
def _judge() -> Judge:
    return Judge(
        json.loads((SCHEMAS / "container.schema.json").read_text(encoding="utf-8")), private=True
    )  # an environment may hold secrets


def judged(given: Any, roots: Roots, where: str = "container") -> dict[str, Any]:
    """A spec that may be run, with each mount's source as it is without links. `where` is what error messages call it.

    Raises:
        InvalidArgument: something is not as schemas/container.schema.json wants it; the field's path is named, and is in details.field.
        PermissionDenied: a mount is from nowhere beneath the roots.
    """
    if isinstance(given, Mapping):
        for field in given:
            if field in NEVER:
                raise _refused(where, str(field), "AIMA never asks Docker for that")
    if error := _judge().unfit(given):
        field, why = error
        raise _refused(where, field, UNPINNED if field == "image" else why)
    spec = dict(given)
    _refuse_crowd(spec, where)
    spec["mounts"] = [_mount(mount, roots, f"{where}.mounts.{place}") for place, mount in enumerate(spec.get("mounts", ()))]
    return spec


def _refused(where: str, field: str, why: str) -> InvalidArgument:
    path = f"{where}.{field}" if field else where
    return InvalidArgument(f"{path}: {why}", hint="schemas/container.schema.json says what a container may have", details={"field": path})


def _refuse_crowd(spec: Spec, where: str) -> None:
    """What a schema cannot say: targets that hide the kernel's folders or one another, ports twice, an environment too big."""
    seen: set[str] = set()
    rows = [(f"{kind}.{at}.target", row["target"]) for kind in ("mounts", "volumes") for at, row in enumerate(spec.get(kind, ()))]
    rows += [(f"tmpfs.{at}", target) for at, target in enumerate(spec.get("tmpfs", ()))]
    for field, target in rows:
        if posixpath.normpath(target) != target or target == "/":
            raise _refused(where, field, f"{target!r} is not a plain absolute path")
        if target.startswith(tuple(f"{folder}/" for folder in KERNELS)) or target in KERNELS:
            raise _refused(where, field, f"{target} is the kernel's")
        if target in seen:
            raise _refused(where, field, f"{target} is there twice")
        seen.add(target)
    ports: set[int] = set()
    for at, port in enumerate(spec.get("ports", ())):
        if (host := port.get("host")) is not None and host in ports:
            raise _refused(where, f"ports.{at}.host", f"{host} is there twice")
        ports.add(host or 0)
    if sum(len(name) + len(value) for name, value in spec.get("env", {}).items()) > ENV_BYTES:
        raise _refused(where, "env", f"it is larger than {ENV_BYTES} bytes")
    if (gpus := spec.get("gpus")) and gpus["how"] == "cdi" and not gpus.get("ids"):
        raise _refused(where, "gpus.ids", "CDI needs the devices' names")


def _mount(mount: Mapping[str, str], roots: Roots, where: str) -> dict[str, str]:
    """Opened beneath the roots, which refuse what is neither file nor folder: no socket and no device comes in so."""
    try:
        with roots.open(mount["source"]) as opened:
            real = os.readlink(f"/proc/self/fd/{opened.descriptor}") if sys.platform == "linux" else os.path.realpath(mount["source"])
    except PermissionDenied as error:
        raise PermissionDenied(f"{where}.source: {error}", hint=error.hint, details={"field": f"{where}.source"}) from error
    except InvalidArgument as error:
        raise InvalidArgument(f"{where}.source: {error}", hint=error.hint, details={"field": f"{where}.source"}) from error
    return {"source": real, "target": mount["target"]}


def labels(home_id: str, kind: str, name: str, generation: str = "") -> dict[str, str]:
    """What a container, volume or network of this home carries: whatever has not these is a stranger's."""
    marks = {HOME: home_id, KIND: kind, NAME: name}
    return marks | ({GENERATION: generation} if generation else {})


def named(home_id: str, name: str) -> str:
    """What Docker calls something of this home, so that two homes share a daemon."""
    return f"aima-{home_id}-{name}"


def api_body(spec: Spec, home_id: str, kind: str, name: str, generation: str = "") -> dict[str, Any]:
    """The body of Docker's POST /containers/create for a judged spec. `_host_config` holds all of its HostConfig that is ever filled in."""
    ports: dict[str, Any] = {f"{port['container']}/tcp": {} for port in spec.get("ports", ())}
    network = spec.get("network", "bridge")
    body: dict[str, Any] = {
        "Image": spec["image"],
        "Env": [f"{name}={value}" for name, value in sorted((spec.get("env", {}) | _visible(spec)).items())],
        "Labels": labels(home_id, kind, name, generation),
        "ExposedPorts": ports,
        "HostConfig": _host_config(spec, home_id),
        "Tty": False,
        "OpenStdin": False,
    }
    body |= {key: list(spec[field]) for key, field in (("Entrypoint", "entrypoint"), ("Cmd", "command")) if field in spec}
    body |= {
        key: spec[field]
        for key, field in (("User", "user"), ("WorkingDir", "working_dir"), ("StopTimeout", "stop_seconds"))
        if field in spec
    }
    if health := spec.get("health"):
        body["Healthcheck"] = _health(health)
    if network not in ("none", "bridge"):
        body["NetworkingConfig"] = {"EndpointsConfig": {named(home_id, network): {"Aliases": list(spec.get("aliases", ()))}}}
    return body


def _host_config(spec: Spec, home_id: str) -> dict[str, Any]:
    network = spec.get("network", "bridge")
    mounts = [{"Type": "bind", "Source": row["source"], "Target": row["target"], "ReadOnly": True} for row in spec.get("mounts", ())]
    mounts += [{"Type": "volume", "Source": named(home_id, row["name"]), "Target": row["target"]} for row in spec.get("volumes", ())]
    host: dict[str, Any] = {
        "CapDrop": ["ALL"],
        "SecurityOpt": ["no-new-privileges"],
        "Privileged": False,
        "IpcMode": "private",
        "CgroupnsMode": "private",
        "PidsLimit": spec.get("pids_limit", PIDS),
        "Mounts": mounts,
        "PortBindings": {
            f"{port['container']}/tcp": [{"HostIp": "127.0.0.1", "HostPort": str(port.get("host", ""))}] for port in spec.get("ports", ())
        },
        "NetworkMode": network if network in ("none", "bridge") else named(home_id, network),
        "RestartPolicy": {"Name": "unless-stopped" if spec.get("restart") else "no"},
        "ReadonlyRootfs": bool(spec.get("read_only_root", False)),
        "LogConfig": {"Type": "json-file", "Config": {"max-size": "4m", "max-file": "2"}},
    }
    if "memory_bytes" in spec:  # the same for memory and swap: no swap, so that the limit is one
        host |= {"Memory": spec["memory_bytes"], "MemorySwap": spec["memory_bytes"]}
    host |= {"ShmSize": spec["shm_bytes"]} if "shm_bytes" in spec else {}
    host |= {"NanoCpus": int(spec["cpus"] * 1e9)} if "cpus" in spec else {}
    host |= {"Tmpfs": dict.fromkeys(spec["tmpfs"], "rw,nosuid,nodev")} if spec.get("tmpfs") else {}
    host |= {"ExtraHosts": ["host.docker.internal:host-gateway"]} if spec.get("sees_host") else {}
    return host | _gpus(spec.get("gpus"))


def _gpus(gpus: Mapping[str, Any] | None) -> dict[str, Any]:
    if gpus is None:
        return {}
    ids = list(gpus.get("ids", ()))
    if gpus["how"] == "runtime":
        return {"Runtime": "nvidia"}
    if gpus["how"] == "cdi":
        return {"DeviceRequests": [{"Driver": "cdi", "DeviceIDs": ids}]}
    which: dict[str, Any] = {"DeviceIDs": ids} if ids else {"Count": -1}
    return {"DeviceRequests": [{"Driver": "nvidia", "Capabilities": [["gpu"]], **which}]}


def _visible(spec: Spec) -> dict[str, str]:
    """What the runtime of a Jetson reads in place of a request."""
    gpus = spec.get("gpus")
    if not gpus or gpus["how"] != "runtime":
        return {}
    return {"NVIDIA_VISIBLE_DEVICES": ",".join(gpus.get("ids", ())) or "all", "NVIDIA_DRIVER_CAPABILITIES": "all"}


def _health(health: Mapping[str, Any]) -> dict[str, Any]:
    nanoseconds = {"Interval": "interval_seconds", "Timeout": "timeout_seconds", "StartPeriod": "start_seconds"}
    found = {key: int(health[field] * 1e9) for key, field in nanoseconds.items() if field in health}
    return {"Test": ["CMD", *health["test"]], **found} | ({"Retries": health["retries"]} if "retries" in health else {})
