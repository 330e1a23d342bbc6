"""An app as it is told: what its record wants beside what Docker has. A pure function."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from aima_lib.infra.store import Document
from aima_lib.services.app_stack import Seen
from aima_lib.services.app_template import Template, container_of, ports_of, volume_of, volumes_of


def shown(
    record: Document,
    seen: Mapping[str, Seen] | None,
    why: str | None,
    usage: Mapping[str, Mapping[str, Any]],
    health: Mapping[str, tuple[str, str | None]],
    logins: Sequence[Mapping[str, str]],
    deaths: int,
) -> Document:
    """types/app.json. seen: None where Docker is away, and `why`. usage and health: what is known of containers, by their ids."""
    containers = [_container(record, name, seen, health) for name in record["template"]["containers"]]
    status = _status(record, seen, containers)
    ailing = [f"{row['name']}: {health[row['container_id']][1]}" for row in containers if row["health"] == "unhealthy"]
    return {
        "id": record["id"],
        "name": record["name"],
        "template": record["template_name"],
        "title": record["template"]["title"],
        "category": record["template"]["category"],
        "status": status,
        "health": _health([row["health"] for row in containers]),
        "reason": record["error"] or why if status in ("failed", "unknown") else "; ".join(ailing) or None,
        "url": _page(record) if record["phase"] in ("installed", "updating") else None,
        "ports": [_port(record, name, port) for name, port in ports_of(record["template"])],
        "volumes": [{"name": name, "volume": volume_of(record["id"], name)} for name in volumes_of(record["template"])],
        "containers": containers,
        "link": _link(record),
        "logins": list(logins),
        "config": record["config"],
        "metrics": _metrics([usage.get(row["container_id"]) for row in containers if row["status"] == "running"]),
        "restarts": deaths,
        "created_at": record["created_at"],
        "updated_at": record["updated_at"],
    }


def _status(record: Document, seen: Mapping[str, Seen] | None, containers: Sequence[Document]) -> str:
    phase = str(record["phase"])
    if phase != "installed":
        return phase
    if record["error"] and record["desired"]:
        return "failed"
    if seen is None:
        return "unknown"
    running = [row["status"] == "running" for row in containers]
    if record["desired"]:
        return "running" if all(running) else "starting"
    return "stopping" if any(running) else "stopped"


def _health(known: Sequence[str]) -> str:
    """Of all its containers together."""
    return next((each for each in ("unhealthy", "unknown") if each in known), "healthy")


def _container(record: Document, name: str, seen: Mapping[str, Seen] | None, health: Mapping[str, tuple[str, str | None]]) -> Document:
    found = (seen or {}).get(container_of(record["id"], name))
    image = record["images"].get(name, {})
    return {
        "name": name,
        "container_id": found.id if found else None,
        "status": "unknown" if seen is None else found.status if found else "absent",
        "health": health.get(found.id, ("unknown", None))[0] if found and found.runs else "unknown",
        "exit_code": found.exit_code if found and not found.runs and found.started_at else None,
        "out_of_memory": found.out_of_memory if found else False,
        "started_at": found.started_at if found and found.runs else None,
        "image": record["template"]["containers"][name]["image"],
        "digest": image.get("digest"),
        "image_id": image.get("image_id"),
        "memory_limit_bytes": record["template"]["containers"][name].get("memory_bytes"),
    }


def _port(record: Document, name: str, port: Mapping[str, Any]) -> Document:
    host = record["ports"][port["name"]]
    url = f"http://127.0.0.1:{host}{port['page']}" if "page" in port else None
    return {"name": port["name"], "port": host, "container": name, "container_port": port["container"], "url": url}


def _page(record: Document) -> str | None:
    pages = (_port(record, name, port)["url"] for name, port in ports_of(record["template"]))
    return next(filter(None, pages), None)


def _link(record: Document) -> Document | None:
    if record["link_port"] is None:
        return None
    return {"reaches": record["template"]["link"], "key_id": record["key_id"], "port": record["link_port"]}


def _metrics(measured: Sequence[Mapping[str, Any] | None]) -> Document:
    """Of all its containers together: null where one has not been measured, or none runs."""
    rows = [row for row in measured if row is not None]
    whole = bool(rows) and len(rows) == len(measured)
    cores = [row["cpu_cores"] for row in rows]
    return {
        "cpu_cores": round(sum(cores), 3) if whole and None not in cores else None,
        "memory_bytes": sum(row["memory_bytes"] for row in rows) if whole else None,
        "uptime_seconds": min(row["uptime_seconds"] for row in rows) if whole else None,
    }


def template_shown(template: Template) -> Document:
    """types/app_template.json."""
    containers = template["containers"]
    limits = [each.get("memory_bytes") for each in containers.values()]
    gpus = [each.get("gpu", "no") for each in containers.values()]
    secrets = template.get("secrets", {})
    return {
        **{key: template[key] for key in ("name", "title", "description", "category", "evidence")},
        "license": template.get("license"),
        "link": template.get("link"),
        "images": [
            {"container": name, "image": each["image"], "digest": each["image"].partition("@")[2] or None}
            for name, each in containers.items()
        ],
        "ports": [{"name": port["name"], "port": port.get("host"), "container_port": port["container"]} for _, port in ports_of(template)],
        "volumes": volumes_of(template),
        "logins": [name for name, wish in secrets.items() if wish.get("login")],
        "gpu": "required" if "required" in gpus else "optional" if "optional" in gpus else "no",
        "memory_bytes": None if None in limits else sum(limits),
    }
