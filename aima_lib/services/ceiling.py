"""The most that all engines together may plan with, where the owner set such a limit."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

from aima_lib.errors import ResourceExhausted
from aima_lib.infra.store import Document

GIB = 1 << 30
Needed = Callable[[str, str, Mapping[str, Any]], int | None]


class Ceiling:
    """engines.memory_limit_gib of config.toml, for each device by itself."""

    def __init__(self, limit_gib: float | None) -> None:
        self._limit = None if limit_gib is None else int(limit_gib * GIB)

    def missing_bytes(self, wanted: int | None, device_id: str, alive: Collection[Document], needed: Needed) -> int:
        """How much of the limit this would lack beside what is alive on the device."""
        try:
            self.refuse(wanted, "", device_id, alive, needed)
        except ResourceExhausted as error:
            return int(error.details["needed_bytes"] - error.details["usable_bytes"])
        return 0

    def refuse(self, wanted: int | None, model_id: str, device_id: str, alive: Collection[Document], needed: Needed) -> None:
        """Raises ResourceExhausted when this and what is alive on the device would take more. What nobody can reckon is let through."""
        if self._limit is None or wanted is None:
            return
        taken = sum(needed(each["engine"], each["model_id"], each["options"]) or 0 for each in alive if each["device"] == device_id)
        usable = max(0, self._limit - taken)
        if wanted > usable:
            raise ResourceExhausted(
                f"{model_id} needs up to {wanted / GIB:.3f} GiB on {device_id}, and {usable / GIB:.3f} GiB are left of the limit",
                hint="stop an engine, take a smaller model, or raise engines.memory_limit_gib of config.toml",
                next=[{"unit": "engine.list", "arguments": {"status": "running"}}],
                details={"needed_bytes": wanted, "usable_bytes": usable, "limit_bytes": self._limit},
            )
