"""An app's record made real: its ports, secrets, images, network, volumes, key and containers. Each step may be done twice."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from anyio import to_thread

from aima_lib.door import Caller
from aima_lib.errors import FailedPrecondition
from aima_lib.infra.clock import now
from aima_lib.infra.daemon_errors import is_taken_port
from aima_lib.infra.docker import Docker
from aima_lib.infra.progress import Send
from aima_lib.infra.store import Document, Store
from aima_lib.services.app_gpus import Gpus
from aima_lib.services.app_keeping import Keeping
from aima_lib.services.app_link import Links
from aima_lib.services.app_ports import allotted, next_free
from aima_lib.services.app_stack import Stack, host_ports
from aima_lib.services.app_template import Template, builtins

log = logging.getLogger(__name__)
LINK_PORT, TRIES = 18400, 3


class Making:
    """Makes what a record wants, whoever asks: an install, a start, an update, or the watch that repairs."""

    def __init__(self, store: Store, docker: Docker, stack: Stack, links: Links, keeping: Keeping, gpus: Gpus) -> None:
        self._store, self._docker, self._stack = store, docker, stack
        self._links, self._keeping, self._gpus = links, keeping, gpus

    async def change(self, app_id: str, **changes: Any) -> Document:
        """Write into an app's record; the whole of it."""
        return await self._store.update("app", app_id, updated_at=now(), **changes)

    async def begin(
        self, old: Document | None, base: Template, template: Template, app_id: str, config: Mapping[str, Any], run_id: str
    ) -> Document:
        """The record, before anything else is made: so that whatever is made has an owner."""
        had = old or {}
        images = {name: image for name, image in had.get("images", {}).items() if name in template["containers"]}
        ports, link_port = await self.allot(template, app_id, config, had)
        record: Document = {
            "id": app_id,
            "name": app_id,
            "template_name": base["name"],
            "custom": builtins().get(base["name"]) != base,
            "base": dict(base),
            "template": dict(template),
            "config": dict(config),
            "generation": int(had.get("generations", 0)) + 1,  # what its containers are marked with
            "generations": int(had.get("generations", 0)) + 1,  # how many there were
            "images": images,  # with the data of before
            "given": self._keeping.given(app_id),
            "ports": ports,
            "link_port": link_port,
            "key_id": None,
            "desired": True,
            "phase": "installing",
            "kept": had.get("phase") == "uninstalled",
            "remove_data": False,
            "run_id": run_id,
            "previous": None,
            "error": None,
            "created_at": had.get("created_at") or now(),
            "updated_at": now(),
        }
        await self._store.put("app", record)
        return record

    async def allot(
        self, template: Template, app_id: str, config: Mapping[str, Any], had: Mapping[str, Any], own: Sequence[int] = ()
    ) -> tuple[dict[str, int], int | None]:
        """Its ports by their names, and that of its link. Raises as `allotted`."""
        others = {port: record["id"] for record in self._store.find("app") if record["id"] != app_id for port in host_ports(record)}
        ports = await to_thread.run_sync(allotted, template, config.get("ports", {}), had.get("ports", {}), others, own)
        if "link" not in template or not config.get("link", True):
            return ports, None
        taken = {*others, *ports.values()}
        return ports, had.get("link_port") or await to_thread.run_sync(next_free, LINK_PORT, taken)

    async def settle(self, record: Document, caller: Caller, send: Send) -> Document:
        """Make it and bring it up; where somebody took a port between our look and Docker's, again with others."""
        for left in reversed(range(TRIES)):
            record = await self.prepare(record, caller, send)
            try:
                await self.bring_up(record, send)
                break
            except FailedPrecondition as error:
                if not left or not is_taken_port(error):
                    raise
                log.info("%s tries other ports: %s", record["id"], error)
                await self._stack.clear(record["id"])
                ports, _ = await self.allot(record["template"], record["id"], record["config"], {"link_port": record["link_port"]})
                record = await self.change(record["id"], ports=ports)
        return record

    async def prepare(self, record: Document, caller: Caller | None, send: Send) -> Document:
        """Secrets, images, network, volumes, key and link. caller: who gives the app its key; None gives none."""
        await self._keeping.secrets(record)
        images = dict(record["images"])
        for name, container in record["template"]["containers"].items():
            known = images.get(name)
            if known is None or known["image"] != container["image"] or await self._docker.image(known["image_id"]) is None:
                images[name] = await self._image(container["image"], known, send)
                record = await self.change(record["id"], images=images)
        bridge = await self._stack.ground(record)
        if bridge is not None:
            await self._links.keep(record["id"], record["template"]["link"], bridge, record["link_port"])
            if caller is not None:
                key_id = await self._keeping.key(record, caller)
                record = await self.change(record["id"], key_id=key_id)
        return record

    async def _image(self, reference: str, known: Document | None, send: Send) -> Document:
        await send({"phase": "pulling", "message": reference, "completed": None, "total": None})
        if known and known["image"] == reference and known["digest"] and "@" not in reference:  # it was removed by hand: the same one again
            again = await self._stack.image(f"{reference.rpartition(':')[0]}@{known['digest']}", send)
            return again | {"image": reference}
        return await self._stack.image(reference, send)

    async def bring_up(self, record: Document, send: Send) -> None:
        """Every container, running and well. Raises as Stack.bring_up, and where the link cannot be kept."""
        bridge = await self._stack.ground(record)
        if bridge is not None:
            await self._links.keep(record["id"], record["template"]["link"], bridge, record["link_port"])
        values, gpus = self._keeping.values(record, bridge), await self._gpus.request(record["template"])
        await self._stack.bring_up(record, values, gpus, send, partial(self._links.prove, record["id"]))
