"""The audit log: each command before and after, each refusal, and no hand laid on it unseen."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import apsw
import pytest

from aima_lib.door import Caller
from aima_lib.errors import AimaError
from aima_lib.gateway import Gateway
from aima_lib.infra import lineage
from aima_lib.infra.clock import stamp
from aima_lib.infra.home import Home
from aima_lib.runtime import host
from tests.tiny import write_tiny_gguf
from tests.workshop import agreed

pytestmark = pytest.mark.anyio
GUEST = Caller("guest", frozenset({"read"}))


async def entries(gateway: Gateway, **chosen: Any) -> list[dict[str, Any]]:
    await gateway.services.store.submit(lambda db: None)  # outcomes are written behind the answer
    return list((await gateway.call("audit.list", {"limit": 1000, **chosen}))["entries"])


async def test_a_command_is_on_record_before_and_after_and_a_query_is_not(hosted: Gateway) -> None:
    await hosted.call("device.detect")
    await hosted.call("device.info")
    intent, outcome = await entries(hosted)
    assert (intent["entry"], intent["unit"], intent["caller"], intent["code"]) == ("intent", "device.detect", "owner", None)
    assert (outcome["entry"], outcome["code"], outcome["intent"]) == ("outcome", "ok", intent["seq"]) and outcome["duration_ms"] > 0


async def test_an_intent_is_on_disk_before_the_effect(hosted: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    async def detect() -> list[Any]:
        with apsw.Connection(str(hosted.services.store.path)) as other:
            seen.extend(other.execute("SELECT entry, unit FROM audit").fetchall())
        return []

    monkeypatch.setattr(hosted.services.devices, "detect", detect)
    await hosted.call("device.detect")
    assert seen == [("intent", "device.detect")]


async def test_a_refusal_is_on_record_whoever_is_refused(hosted: Gateway) -> None:
    for name, arguments in (("model.delete", {"model_id": "x"}), ("audit.list", {}), ("key.list", {}), ("model.list", {"no": 1})):
        with pytest.raises(AimaError):
            await hosted.call(name, arguments, caller=GUEST)
    with pytest.raises(AimaError):
        await hosted.read("aima://devices", caller=Caller("writer", frozenset({"write"})))
    found = [(entry["entry"], entry["unit"], entry["caller"], entry["code"]) for entry in await entries(hosted)]
    assert found == [
        ("refusal", "model.delete", "guest", "permission_denied"),
        ("refusal", "audit.list", "guest", "permission_denied"),
        ("refusal", "key.list", "guest", "permission_denied"),
        ("refusal", "model.list", "guest", "invalid_argument"),
        ("refusal", "device.all", "writer", "permission_denied"),
    ]


async def test_a_run_and_a_plan_are_named_and_a_prompt_never(hosted: Gateway, tmp_path: Path) -> None:
    weights = write_tiny_gguf(tmp_path / "tiny.gguf")
    await hosted.call("model.import", {"path": str(weights), "name": "tiny"})
    await agreed(hosted, "model.delete", {"model_id": "tiny"})
    question = {"model": "nobody", "messages": [{"role": "user", "content": "the secret of the house"}]}
    for name, arguments in (("inference.chat", question), ("unit.call", {"name": "inference.chat", "arguments": question})):
        with pytest.raises(AimaError):
            await hosted.call(name, arguments)
    found = await entries(hosted)
    assert any(entry["run_id"] and entry["unit"] == "model.import" for entry in found)
    assert [entry["plan_id"] is not None for entry in found if entry["unit"] == "model.delete" and entry["entry"] == "intent"] == [True]
    asked = [entry for entry in found if entry["unit"] == "inference.chat"]
    assert [(entry["entry"], entry["code"], entry["arguments"]) for entry in asked] == [
        ("outcome", "not_found", '{"model":"nobody","messages":"***"}')
    ] * 2
    assert "the secret of the house" not in str(found)


def edit(db: apsw.Connection) -> None:
    db.execute("UPDATE audit SET caller = 'somebody' WHERE seq = 3")


def edit_the_first(db: apsw.Connection) -> None:
    db.execute("UPDATE audit SET time = '2001-01-01T00:00:00.000Z' WHERE seq = 1")


def edit_the_last(db: apsw.Connection) -> None:
    db.execute("UPDATE audit SET code = 'ok', duration_ms = 0.5 WHERE seq = (SELECT max(seq) FROM audit)")


def swap(db: apsw.Connection) -> None:
    for a, b in ((3, -1), (4, 3), (-1, 4)):
        db.execute("UPDATE audit SET seq = ? WHERE seq = ?", (b, a))


def delete_one(db: apsw.Connection) -> None:
    db.execute("DELETE FROM audit WHERE seq = 4")


def delete_one_and_close_ranks(db: apsw.Connection) -> None:
    db.execute("DELETE FROM audit WHERE seq = 4")
    for seq in range(5, 20):
        db.execute("UPDATE audit SET seq = ? WHERE seq = ?", (seq - 1, seq))


def delete_the_first(db: apsw.Connection) -> None:
    db.execute("DELETE FROM audit WHERE seq = 1")


def delete_the_last(db: apsw.Connection) -> None:
    db.execute("DELETE FROM audit WHERE seq = (SELECT max(seq) FROM audit)")


def delete_all(db: apsw.Connection) -> None:
    db.execute("DELETE FROM audit")


def put_one_in(db: apsw.Connection) -> None:
    names = [str(row[1]) for row in db.execute("PRAGMA table_info(audit)")]
    db.execute(f"INSERT INTO audit SELECT {', '.join('100' if name == 'seq' else name for name in names)} FROM audit WHERE seq = 2")


def say_it_belonged_to_nothing(db: apsw.Connection) -> None:
    db.execute("UPDATE audit SET correlation_id = NULL, causation_id = NULL WHERE seq = 2")


def say_it_belonged_elsewhere(db: apsw.Connection) -> None:
    db.execute("UPDATE audit SET correlation_id = 'call-1' WHERE seq = 2")


def say_that_it_began_later(db: apsw.Connection) -> None:
    db.execute("""INSERT INTO documents VALUES ('audit', 'base', '{"id": "base", "seq": 2, "hash": "00", "mac": "00"}')""")
    db.execute("DELETE FROM audit WHERE seq <= 2")


HANDS = (edit, edit_the_first, edit_the_last, swap, delete_one, delete_one_and_close_ranks, delete_the_first, delete_the_last, delete_all,
         put_one_in, say_it_belonged_to_nothing, say_it_belonged_elsewhere, say_that_it_began_later)  # fmt: skip


@pytest.mark.parametrize("hand", HANDS, ids=lambda hand: hand.__name__)
async def test_a_hand_on_the_log_is_found(home: Home, hand: Callable[[apsw.Connection], None]) -> None:
    async with host(home) as gateway:
        for _ in range(4):
            await gateway.call("device.detect")
        await gateway.services.store.submit(lambda db: None)
        assert (await gateway.call("audit.verify")) == {"valid": True, "entries": 8, "first": 1, "last": 8, "issues": []}
    with apsw.Connection(str(home.path / "aima.db")) as db:
        hand(db)
    async with host(home) as gateway:
        verdict = await gateway.call("audit.verify")
        assert not verdict["valid"] and verdict["issues"][0]["seq"] >= 1, verdict


async def test_the_end_of_the_log_cannot_be_moved_back(home: Home) -> None:
    async with host(home) as gateway:
        await gateway.call("device.detect")
    shutil.copy(home.path / "aima.db", home.path / "before.db")
    async with host(home) as gateway:
        await gateway.call("device.detect")
    shutil.copy(home.path / "before.db", home.path / "aima.db")
    async with host(home) as gateway:
        assert "is missing" in (await gateway.call("audit.verify"))["issues"][0]["message"]


@pytest.mark.parametrize("text", ["", "{}", '{"seq": 1, "mac": "00"}', "\0" * 128])
async def test_what_says_where_the_log_ends_is_guarded_too(home: Home, text: str) -> None:
    async with host(home) as gateway:
        await gateway.call("device.detect")
        await gateway.services.store.submit(lambda db: None)
        (home.path / "audit.head").write_text(text, encoding="utf-8")
        assert "audit.head" in (await gateway.call("audit.verify"))["issues"][0]["message"]
    (home.path / "audit.head").unlink()
    async with host(home) as gateway:
        assert "gone" in (await gateway.call("audit.verify"))["issues"][0]["message"]
        await gateway.call("device.detect")
        await gateway.services.store.submit(lambda db: None)


async def test_old_entries_go_and_the_rest_still_holds(home: Home) -> None:
    async with host(home) as gateway:
        await gateway.call("device.detect")
        await gateway.services.store.submit(lambda db: None)
        audit = gateway.services.audit
        audit._kept = timedelta(seconds=-1)  # so that all of it is old
        assert stamp(datetime.now(UTC) - audit._kept) > (await entries(gateway))[-1]["time"]
        await audit.prune()
        await gateway.call("device.detect")
        await gateway.services.store.submit(lambda db: None)
        assert await gateway.call("audit.verify") == {"valid": True, "entries": 2, "first": 3, "last": 4, "issues": []}
    async with host(home) as gateway:
        assert (await gateway.call("audit.verify"))["valid"]


async def test_entries_of_before_still_count_as_they_were_written(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as before:  # as an AIMA wrote them that knew no lineage
        before.setattr(lineage, "ids", lambda: (None, None))
        async with host(home) as gateway:
            await gateway.call("device.detect")
    async with host(home) as gateway:
        await gateway.call("device.detect")
        await gateway.services.store.submit(lambda db: None)
        assert (await gateway.call("audit.verify"))["valid"]
        [one, two, three, four] = (await gateway.call("audit.list"))["entries"]
        assert [entry["correlation_id"] for entry in (one, two)] == [None, None]
        assert three["correlation_id"] == three["causation_id"] == four["causation_id"]
        found = await gateway.call("audit.list", {"correlation_id": three["correlation_id"]})
        assert (found["total"], [entry["seq"] for entry in found["entries"]]) == (2, [3, 4])
