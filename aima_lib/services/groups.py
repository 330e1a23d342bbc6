"""Groups of services that may not live together: so many of each, usually one, are loaded at a time.

Whether a service is loaded is read off the store, so it is known over a restart of the host too; and one that is asked for becomes wanted
only when whoever is in its way has left.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

import anyio

from aima_lib.errors import FailedPrecondition
from aima_lib.infra.store import Document, Store

Worth = Callable[[Document], Any]


class Groups:
    """Who is in which, and who has to leave. `locks`: held from before others leave until the one that was asked for is there."""

    def __init__(self, limits: Mapping[str, int], store: Store, worth: Worth) -> None:
        self._limits, self._store, self._worth = limits, store, worth
        self.locks: defaultdict[str, anyio.Lock] = defaultdict(anyio.Lock)

    def leaving(self, service_id: str, group: str) -> list[str]:
        """Who has to leave so that there is a place for a service, the least worth first.

        Raises:
            FailedPrecondition: too many are pinned.
        """
        others = [record for record in self._loaded(group) if record["id"] != service_id]
        found, lacking = self._surplus(others, self._limit(group) - 1)
        if lacking:
            raise self._refusal(service_id, group, [record["id"] for record in others if record.get("pinned")])
        return found

    def is_loaded(self, record: Document) -> bool:
        """Whether it is there, or on its way; one that failed may have an engine left."""
        return bool(record["desired_replicas"]) and (not record["error"] or self._has_engine(record))

    def lingering(self, service_id: str, group: str) -> list[Document]:
        """Whoever else of the group is not wanted any more, and still has engines."""
        others = [each for each in self._store.find("service") if each.get("group") == group and each["id"] != service_id]
        return [record for record in others if not record["desired_replicas"] and self._has_engine(record)]

    def beyond(self) -> list[str]:
        """Who has to leave, of every group that has more than it may have: its bound was lowered."""
        groups = {record["group"] for record in self._store.find("service") if record.get("group")}
        return [id for group in sorted(groups) for id in self._surplus(self._loaded(group), self._limit(group))[0]]

    def _surplus(self, records: list[Document], allowed: int) -> tuple[list[str], int]:
        """The least worth of those beyond so many, and how many more would have to leave if they were not pinned."""
        many = max(0, len(records) - allowed)
        free = sorted((record for record in records if not record.get("pinned")), key=self._worth)
        return [record["id"] for record in free[:many]], max(0, many - len(free))

    def _loaded(self, group: str) -> list[Document]:
        return [record for record in self._store.find("service") if record.get("group") == group and self.is_loaded(record)]

    def _has_engine(self, record: Document) -> bool:
        return any(each["status"] in ("starting", "ready") for each in self._store.find("instance", service_id=record["id"]))

    def _limit(self, group: str) -> int:
        return int(self._limits.get(group, 1))

    def _refusal(self, service_id: str, group: str, pinned: list[str]) -> FailedPrecondition:
        limit, are = self._limit(group), "is" if len(pinned) == 1 else "are"
        message = f"{service_id} cannot be loaded: {limit} of the group {group} may be at a time, and {', '.join(pinned)} {are} pinned"
        unpin = [{"unit": "service.update", "arguments": {"service_id": id, "pinned": False}} for id in pinned]
        stop = [{"unit": "service.stop", "arguments": {"service_id": id}} for id in pinned]
        hint = f"let one go: unpin or stop it; or allow more, inference.groups.{group} in config.toml"
        return FailedPrecondition(message, hint=hint, next=[*unpin, *stop], details={"group": group, "pinned": pinned})
