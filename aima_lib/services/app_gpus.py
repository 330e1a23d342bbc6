"""GPUs for apps: which a template may compute on, and how Docker is asked for them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aima_lib.errors import FailedPrecondition
from aima_lib.infra.daemon import Daemon
from aima_lib.infra.docker import Docker
from aima_lib.infra.store import Document
from aima_lib.services.app_template import Template
from aima_lib.services.containers import gpu_request
from aima_lib.services.device import DeviceService


class Gpus:
    """The NVIDIA GPUs of this machine, as a template wants them."""

    def __init__(self, config: Mapping[str, Any], devices: DeviceService, docker: Docker) -> None:
        self._how, self._devices, self._docker = str(config["docker"]["gpus"]), devices, docker

    def needed(self, template: Template) -> list[Document]:
        """Those that it may compute on, none where it would not.

        Raises:
            FailedPrecondition: one of its containers needs one, and there is none.
        """
        wishes = {each.get("gpu") for each in template["containers"].values()}
        found = [dict(row) for row in self._devices.devices() if row["type"] == "gpu" and row["vendor"] == "nvidia"]
        if "required" in wishes and not found:
            hint, look = "it was asked of the drivers: device.detect looks again", {"unit": "device.detect", "arguments": {}}
            raise FailedPrecondition(f"{template['name']} needs an NVIDIA GPU, and this machine has none", hint=hint, next=[look])
        return found if wishes != {None} else []

    async def request(self, template: Template) -> Mapping[str, Any] | None:
        """How Docker is asked for them, as a container's spec says it; None where it asks for none."""
        found = self.needed(template)
        if not found:
            return None
        info = await self._docker.ask(Daemon.info)
        wishes = [wish for row in found if (wish := gpu_request(row, info, self._how)) is not None]
        ids = [id for wish in wishes for id in wish.get("ids", ())]
        return {"how": wishes[0]["how"], **({"ids": ids} if len(ids) >= len(wishes) else {})}
