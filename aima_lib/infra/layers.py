"""What Docker says while it pulls an image, added up: layers, and bytes as far as it tells them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from aima_lib.infra.daemon_errors import unpulled

MOST_LAYERS = 512
WHOLE = frozenset({"Download complete", "Pull complete", "Already exists", "Verifying Checksum", "Extracting"})


@dataclass(slots=True)
class Layer:
    """`total` is None until the registry says how large it is."""

    status: str = "waiting"
    completed: int = 0
    total: int | None = None


class Layers:
    """The layers of one image, as far as they are known."""

    def __init__(self, name: str) -> None:
        self.name, self.message = name, f"asking for {name}"
        self._layers: dict[str, Layer] = {}

    def take(self, line: Mapping[str, Any]) -> bool:
        """Take in a line of Docker's; whether anything went on. Raises AimaError: the pull came to nothing."""
        if said := line.get("error"):
            raise unpulled(str(said))
        status, id = str(line.get("status", "")), str(line.get("id", ""))
        if not id or line.get("progressDetail") is None or (id not in self._layers and len(self._layers) >= MOST_LAYERS):
            changed, self.message = status != self.message, status[:300] or self.message
            return changed
        layer = self._layers.setdefault(id, Layer())
        before = layer.status, layer.completed
        told = line.get("progressDetail") or {}
        if status == "Downloading" and "current" in told:
            layer.completed, layer.total = int(told["current"]), int(told["total"]) if told.get("total", 0) > 0 else None
        elif status in WHOLE and layer.total is not None:
            layer.completed = layer.total
        layer.status = status.lower()
        self.message = f"{self.name}: layer {id} {layer.status}"
        stalled = status.startswith("Retrying")
        return not stalled and (status == "Extracting" or before != (layer.status, layer.completed))

    def progress(self) -> dict[str, Any]:
        """As a run's progress: bytes of the layers whose size is known."""
        known = [layer for layer in self._layers.values() if layer.total is not None]
        total = sum(layer.total or 0 for layer in known)
        return {
            "phase": "pulling",
            "message": self.message,
            "completed": sum(layer.completed for layer in known) if known else None,
            "total": total if known else None,
        }

    def rows(self) -> list[dict[str, Any]]:
        """Each layer: {id, status, completed, total}."""
        return [{"id": id, "status": one.status, "completed": one.completed, "total": one.total} for id, one in self._layers.items()]
