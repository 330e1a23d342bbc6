"""Records of recipes that were applied: as many as are of use, and those that something stands by."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from aima_lib.infra.clock import stamp
from aima_lib.infra.store import Document, Store

KIND, MOST = "applied", 200


async def prune(store: Store, days: float) -> None:
    """Drop what is older than so many days, or more than MOST. What is under way stays, and of each service what made it."""
    oldest = stamp(datetime.now(UTC) - timedelta(days=days))
    records = store.find(KIND, newest_first=True)
    standing = _standing(store, records)
    for place, record in enumerate(records):
        is_past = record["state"] in ("done", "undone") and record["id"] not in standing
        if is_past and (place >= MOST or record.get("created_at", "") < oldest):
            await store.delete(KIND, record["id"])


def _standing(store: Store, newest_first: list[Document]) -> set[str]:
    """The newest record of each service that is there still, and those whose runs go on."""
    made: dict[str, str] = {}
    for record in newest_first:
        if record["state"] == "done" and store.peek("service", record["result"]["service_id"]):
            made.setdefault(record["result"]["service_id"], record["id"])
    return {*made.values(), *(run["id"] for run in store.find("run", status="running"))}
