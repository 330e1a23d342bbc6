"""What model.estimate_resources says: a model's memory for one way to run it, on the devices there are now."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from aima_lib.infra.store import Store
from aima_lib.services import memory
from aima_lib.services.books import USUAL_PRIORITY, Books
from aima_lib.services.device import DeviceService
from aima_lib.services.measurements import Measurements, load_of
from aima_lib.services.memory import Load

USUAL_ENGINE = "llamacpp"


@dataclass(frozen=True, slots=True)
class Wish:
    """How the caller would run it."""

    context_length: int | None = None
    parallel: int = 1
    device_id: str | None = None
    engine: str | None = None
    version: str | None = None
    cache_type: str = "f16"


class Estimates:
    """Of one home, whose measurements they have learned from."""

    def __init__(self, store: Store, devices: DeviceService, books: Books) -> None:
        self._devices, self._books, self._measurements = devices, books, Measurements(store)

    async def of(self, model: Mapping[str, Any], wish: Wish) -> dict[str, Any]:
        """Memory, disk, and which devices it fits on now. `model` has geometry and size_bytes, and what else of a record is known.

        Raises:
            NotFound: there is no such device.
        """
        geometry = model["geometry"]
        free, known = await self._free(wish.device_id), {device["id"]: device for device in await self._devices.known()}
        main = next((id for id in free if known[id]["type"] == "gpu"), next(iter(free)))
        load = _load(model, wish, known[main])
        context = load.context_length
        fits = [
            memory.fit(id, have, self._at(model, wish, there), there, model)
            for id, have in free.items()
            for there in (memory.on(load, known[id]),)
        ]
        needed = self._at(model, wish, load)(context, wish.cache_type, None)
        gpus = {id: have for id, have in free.items() if known[id]["type"] == "gpu" and have is not None}
        spread = memory.split(geometry, needed, load, gpus, next((id for id, device in known.items() if device["type"] == "cpu"), "cpu"))
        asked = {"context_length": context, "parallel": wish.parallel, "cache_type": wish.cache_type, "engine": wish.engine or USUAL_ENGINE}
        return {"memory": needed, "disk_bytes": model["size_bytes"], "device_id": main, **asked, "fits": fits, "split": spread}

    def _at(self, model: Mapping[str, Any], wish: Wish, load: Load) -> memory.At:
        def at(context: int, cache_type: str, weights: int | None) -> memory.Memory:
            # of weights that are not these, nothing was measured but the engine
            other = (
                {**model, "size_bytes": weights, "digest": None, "geometry": _scaled(model["geometry"])} if weights is not None else model
            )
            asked = replace(load, context_length=context, cache_type=cache_type)
            return self._measurements.estimate(other, wish.engine or USUAL_ENGINE, wish.version, asked, {})

        return at

    async def _free(self, device_id: str | None) -> dict[str, int | None]:
        known = [device["id"] for device in await self._devices.known()]
        asked = known if device_id is None else [self._devices.device(device_id)["id"]]
        rooms = {id: (await self._books.account(id)).room(USUAL_PRIORITY) for id in asked}
        return {id: None if room is None else max(0, room) for id, room in rooms.items()}


def _load(model: Mapping[str, Any], wish: Wish, device: Mapping[str, Any]) -> Load:
    """How a start with these wishes would run it."""
    options: dict[str, Any] = {"parallel": wish.parallel, "cache_type": wish.cache_type}
    if wish.context_length is not None:
        options["context_length"] = wish.context_length
    return load_of({"context_length": model["geometry"].get("context_length"), **model}, options, device)


def _scaled(geometry: Mapping[str, Any]) -> dict[str, Any]:
    """The same network in other weights: how much of them would be laid out anew is not known."""
    return {**geometry, "tensor_bytes": {}, "block_bytes": None, "expert_bytes": None}
