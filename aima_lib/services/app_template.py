"""App templates: applications as data, judged before anything is done with them, and what their containers become. Pure functions."""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from aima_lib.errors import Internal, InvalidArgument, NotFound
from aima_lib.names import did_you_mean
from aima_lib.registry import PACKAGE, SCHEMAS

FOLDER = PACKAGE / "apps"
WORD = re.compile(r"\$\{([a-z]+)\.([^${}]{0,64})\}")
DIGEST = re.compile(r"(?:^|@)sha256:[0-9a-f]{64}$")
KERNELS = ("/proc", "/sys", "/dev")
ENV_BYTES = 1 << 20
LINK_SECRET = "aima_key"  # the name, among its secrets, of the key that it shows here
Template = Mapping[str, Any]
Path_ = tuple[str | int, ...]
Finding = tuple[Path_, str]  # where in the template, and what is wrong with it


@cache
def builtins() -> Mapping[str, Template]:
    """The templates that come with AIMA, by name.

    Raises:
        Internal: one of them is none.
    """
    found = {}
    for path in sorted(FOLDER.glob("*.yaml")):
        template = yaml.safe_load(path.read_text(encoding="utf-8"))
        wrong = next(findings(template, ours=True), None)
        if wrong or template["name"] != path.stem:
            raise Internal(f"{path.name} is no template: {wrong or 'its name is another'}")
        found[path.stem] = template
    return found


def named(name: str) -> Template:
    """The template of AIMA's called `name`. Raises NotFound naming the nearest."""
    known = builtins()
    if name not in known:
        listing = [{"unit": "app.templates", "arguments": {}}]
        raise NotFound(f"no template called {name!r}", hint=did_you_mean(name, known) or f"there are: {', '.join(known)}", next=listing)
    return known[name]


@cache
def _validator() -> Any:
    import jsonschema_rs

    return jsonschema_rs.Draft202012Validator(json.loads((SCHEMAS / "app.schema.json").read_text(encoding="utf-8")))


def findings(template: Any, *, ours: bool = False) -> Iterator[Finding]:
    """What is wrong with a template. ours: it came with AIMA, so an image may be named by a tag.

    Of others every image is named by its digest: a tag says what somebody else will put there tomorrow.
    """
    broken = False
    for error in _validator().iter_errors(template):
        broken, path = True, tuple(error.instance_path)
        strange = getattr(error.kind, "unexpected", None)
        if strange:
            yield from (((*path, str(key)), "a template has nothing of that name") for key in strange)
        else:
            yield path, str(error.message)[:300]
    if broken:
        return
    yield from _twice(template)
    if LINK_SECRET in template.get("secrets", {}):
        yield ("secrets", LINK_SECRET), "AIMA's own key for the app has that name"
    for name, container in template["containers"].items():
        at: Path_ = ("containers", name)
        yield from _targets(container, at)
        yield from _words(template, container, at)
        if not ours:
            yield from _foreign(container, at)
        ports = {port["name"] for port in container.get("ports", ())}
        if (health := container.get("health")) and health["port"] not in ports:
            yield (*at, "health", "port"), f"{health['port']!r} is none of its ports"
        if sum(len(key) + len(value) for key, value in container.get("env", {}).items()) > ENV_BYTES:
            yield (*at, "env"), f"it is larger than {ENV_BYTES} bytes"


def _foreign(container: Mapping[str, Any], at: Path_) -> Iterator[Finding]:
    if not DIGEST.search(container["image"]):
        yield (
            (*at, "image"),
            "a tag may be something else tomorrow: write name@sha256:… (`docker buildx imagetools inspect NAME:TAG` tells it)",
        )
    for place, file in enumerate(container.get("files", ())):
        if "source" in file:
            yield (*at, "files", place, "source"), "only templates that come with AIMA have files beside them: write content"


def _twice(template: Template) -> Iterator[Finding]:
    """Names and ports that must be one template's only once."""
    seen: set[tuple[str, Any]] = set()
    for name, container in template["containers"].items():
        for place, port in enumerate(container.get("ports", ())):
            for kind, value in (("name", port["name"]), ("host", port.get("host"))):
                if value is not None and (kind, value) in seen:
                    yield ("containers", name, "ports", place, kind), f"{value} is there twice"
                seen.add((kind, value))


def _targets(container: Mapping[str, Any], at: Path_) -> Iterator[Finding]:
    """Folders that hide the kernel's, the root or one another."""
    seen: set[str] = set()
    rows: list[tuple[Path_, str]] = []
    rows += [((kind, place, "target"), row["target"]) for kind in ("volumes", "files") for place, row in enumerate(container.get(kind, ()))]
    rows += [(("tmpfs", place), target) for place, target in enumerate(container.get("tmpfs", ()))]
    for path, target in rows:
        if posixpath.normpath(target) != target or target == "/":
            yield (*at, *path), f"{target!r} is not a plain absolute path"
        elif target in KERNELS or target.startswith(tuple(f"{folder}/" for folder in KERNELS)):
            yield (*at, *path), f"{target} is the kernel's"
        elif target.endswith(".sock"):
            yield (*at, *path), f"{target} would be a socket"
        elif target in seen:
            yield (*at, *path), f"{target} is there twice"
        seen.add(target)


def _words(template: Template, container: Mapping[str, Any], at: Path_) -> Iterator[Finding]:
    known = _known(template)
    argv = [(part, place, text) for part in ("entrypoint", "command") for place, text in enumerate(container.get(part, ()))]
    texts: list[tuple[Path_, str]] = [((part, place), text) for part, place, text in argv]
    texts += [(("env", name), text) for name, text in container.get("env", {}).items()]
    texts += [(("files", place, "content"), file["content"]) for place, file in enumerate(container.get("files", ())) if "content" in file]
    for path, text in texts:
        for word in WORD.finditer(text):
            kind, whole = word[1], f"{word[1]}.{word[2]}"
            if kind not in ("link", "secret", "port", "app"):
                if path[0] != "files":  # a file may have such words of its own
                    yield (*at, *path), f"${{{whole}}} is nothing that AIMA knows"
            elif whole not in known:
                yield (*at, *path), f"${{{whole}}} is not declared by this template"
            elif path[0] in ("entrypoint", "command") and (kind == "secret" or whole == "link.key"):
                yield (*at, *path), f"${{{whole}}} would stand in the arguments of a process, where others read it: use env"


def _known(template: Template) -> set[str]:
    links = {"link.url", "link.host", "link.key"} if "link" in template else set()
    ports = {f"port.{port['name']}" for container in template["containers"].values() for port in container.get("ports", ())}
    return {"app.id", *links, *ports, *(f"secret.{name}" for name in template.get("secrets", {}))}


def filled(text: str, values: Mapping[str, str]) -> str:
    """A text with every word that AIMA knows replaced, once: what a value holds is not looked at again."""
    return WORD.sub(lambda word: values.get(f"{word[1]}.{word[2]}", word[0]), text)


# Changes by whoever installs


def changed(template: Template, config: Mapping[str, Any]) -> dict[str, Any]:
    """The template with what its installer chose.

    Raises:
        InvalidArgument: it names a container or a port that the template has not, or an image without digest; the field's path is named.
    """
    made: dict[str, Any] = json.loads(json.dumps(template))
    containers = made["containers"]
    for part in ("env", "images", "memory_bytes"):
        for name in config.get(part, {}):
            if name not in containers:
                raise _unfit(
                    f"{part}.{name}", f"{template['name']} has no such container", did_you_mean(name, containers) or _listed(containers)
                )
    for name, image in config.get("images", {}).items():
        containers[name]["image"] = image
    for name, size in config.get("memory_bytes", {}).items():
        containers[name]["memory_bytes"] = size
    for name, values in config.get("env", {}).items():
        containers[name]["env"] = containers[name].get("env", {}) | values
    _refuse_unknown_ports(made, config.get("ports", {}))
    for path, message in findings(made, ours=True):
        raise _unfit(".".join(map(str, path)), message, None)
    return made


def _refuse_unknown_ports(template: Template, ports: Mapping[str, int]) -> None:
    known = [port["name"] for _, port in ports_of(template)]
    for name in ports:
        if name not in known:
            raise _unfit(f"ports.{name}", f"{template['name']} has no such port", did_you_mean(name, known) or _listed(known))
    taken = list(ports.values())
    if len(set(taken)) < len(taken):
        raise _unfit("ports", "two of them are the same", None)


def _unfit(path: str, message: str, hint: str | None) -> InvalidArgument:
    return InvalidArgument(f"config.{path}: {message}", hint=hint, details={"field": f"config.{path}"})


def _listed(names: Any) -> str:
    return f"there are: {', '.join(names) or 'none'}"


def ports_of(template: Template) -> list[tuple[str, Mapping[str, Any]]]:
    """Each port with the container that has it."""
    return [(name, port) for name, container in template["containers"].items() for port in container.get("ports", ())]


def volumes_of(template: Template) -> list[str]:
    """The names of its volumes within the app, each once."""
    return [*dict.fromkeys(row["name"] for container in template["containers"].values() for row in container.get("volumes", ()))]


# What containers become

KEPT = (
    "entrypoint",
    "command",
    "user",
    "working_dir",
    "tmpfs",
    "read_only_root",
    "memory_bytes",
    "shm_bytes",
    "cpus",
    "pids_limit",
    "stop_seconds",
)


def spec_of(
    app_id: str,
    name: str,
    template: Template,
    image_id: str,
    ports: Mapping[str, int],
    values: Mapping[str, str],
    gpus: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """One of its containers as schemas/container.schema.json has it."""
    given = template["containers"][name]
    spec: dict[str, Any] = {key: given[key] for key in KEPT if key in given}
    spec |= {key: [filled(text, values) for text in spec[key]] for key in ("entrypoint", "command") if key in spec}
    spec |= {"image": image_id, "network": network_of(app_id), "aliases": [name]}
    if env := given.get("env"):
        spec["env"] = {key: filled(text, values) for key, text in env.items()}
    if rows := given.get("ports"):
        spec["ports"] = [{"container": row["container"], "host": ports[row["name"]]} for row in rows]
    if rows := given.get("volumes"):
        spec["volumes"] = [{"name": volume_of(app_id, row["name"]), "target": row["target"]} for row in rows]
    return spec | ({"gpus": gpus} if gpus and "gpu" in given else {})


def files_of(name: str, template: Template, values: Mapping[str, str]) -> dict[str, bytes]:
    """What is laid into a container, by path."""
    rows: Sequence[Mapping[str, str]] = template["containers"][name].get("files", ())
    return {row["target"]: _content(row, values).encode() for row in rows}


def _content(row: Mapping[str, str], values: Mapping[str, str]) -> str:
    if "source" in row:
        return Path(FOLDER, "files", row["source"]).read_text(encoding="utf-8")
    return filled(row["content"], values)


def network_of(app_id: str) -> str:
    """The name of its network within the home."""
    return f"app-{app_id}"


def volume_of(app_id: str, name: str) -> str:
    """The name of one of its volumes within the home."""
    return f"app-{app_id}--{name}"


def container_of(app_id: str, name: str) -> str:
    """The name of one of its containers within the home."""
    return f"app-{app_id}--{name}"


def secret_of(app_id: str, name: str) -> str:
    """The name of one of its secrets in the secret table. Neither part holds two underscores in a row, so no two share one."""
    return f"app_{app_id.replace('-', '_')}__{name}"
