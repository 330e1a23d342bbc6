"""The one door: what is refused before a handler runs, what is refused after, and what never gets out."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import anyio
import pytest

from aima_lib.door import OWNER, Caller
from aima_lib.errors import (
    AimaError,
    AlreadyExists,
    DeadlineExceeded,
    FailedPrecondition,
    Internal,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
)
from aima_lib.gateway import Gateway
from aima_lib.infra.home import Home
from aima_lib.registry import Registry
from aima_lib.runtime import host
from tests.workshop import OPEN, unit, write_handlers, write_schemas

pytestmark = pytest.mark.anyio
READER = Caller("reader", frozenset({"read"}))
COUNT = {"type": "object", "required": ["count"], "additionalProperties": False, "properties": {"count": {"type": "integer"}}}
UNITS = [
    unit("query", "thing.echo", inputSchema=COUNT, outputSchema=COUNT, streamSchema=COUNT),
    unit("query", "thing.wrong", outputSchema=COUNT),
    unit("query", "thing.garble", streamSchema=COUNT),
    unit("query", "thing.crash"),
    unit("query", "thing.refuse"),
    unit("query", "thing.slow"),
    unit("command", "thing.change", scope="write"),
    unit("command", "thing.linger", scope="write"),
    unit("command", "thing.execute", scope="exec"),
    unit("command", "thing.work", durable=True, inputSchema=COUNT, outputSchema=COUNT),
    unit(
        "resource",
        "thing.one",
        uriTemplate="aima://thing/{thing_id}",
        mimeType="application/json",
        scope="logs",
        outputSchema=OPEN,
        updatedBy=[],
    ),
    unit("event", "thing.changed"),
]
HANDLERS = """
@handles("thing.echo")
async def echo(ctx, count):
    for number in range(count):
        await ctx.send({"count": number})
    return {"count": count}

@handles("thing.wrong")
async def wrong(ctx):
    return {"count": "three"}

@handles("thing.garble")
async def garble(ctx):
    await ctx.send({"count": "three"})
    return {}

@handles("thing.crash")
async def crash(ctx):
    raise RuntimeError("the password is hunter2")

@handles("thing.refuse")
async def refuse(ctx):
    raise ResourceExhausted("no room: 5 GiB wanted, 1 GiB free", next=[{"unit": "thing.echo", "arguments": {"count": 1}}])

@handles("thing.slow")
async def slow(ctx):
    await anyio.sleep_forever()

@handles("thing.change")
async def change(ctx):
    return {}

@handles("thing.linger")
async def linger(ctx):
    await anyio.sleep_forever()

@handles("thing.execute")
async def execute(ctx):
    return {}

@handles("thing.work")
async def work(ctx, count):
    for number in range(count):
        await ctx.send({"phase": "working", "message": str(number)})
    return {"count": count}

@handles("thing.one")
async def one(ctx, thing_id):
    return {"id": thing_id}
"""


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    folder = tmp_path_factory.mktemp("units")
    return Registry.load(write_handlers(folder, "handlers_of_the_gateway", HANDLERS), write_schemas(folder / "schemas", *UNITS))


@pytest.fixture
async def gateway(home: Home, registry: Registry) -> AsyncIterator[Gateway]:
    """A host of other unit files, beside AIMA's events."""
    (home.path / "config.toml").write_text("[calls]\nquery_timeout_seconds = 1\ncommand_timeout_seconds = 1.5\n", encoding="utf-8")
    events = {unit.name: unit for unit in Registry.described().of("event")}
    async with host(home, registry=Registry(events | dict(registry))) as hosted:
        yield hosted


async def test_a_call_goes_through_with_its_stream(gateway: Gateway) -> None:
    items: list[Any] = []

    async def send(item: Mapping[str, Any]) -> None:
        items.append(item["count"])

    assert await gateway.call("thing.echo", {"count": 3}, send=send) == {"count": 3}
    assert items == [0, 1, 2]
    assert await gateway.call("thing.echo", {"count": 3}) == {"count": 3}
    assert gateway.outcomes["thing.echo", "ok"] == 2
    assert gateway.seconds["thing.echo"] > 0


@pytest.mark.parametrize("arguments", [None, {}, {"count": "3"}, {"count": 1, "cuont": 2}, [], "x", 5, {"count": True}])
async def test_what_the_schema_refuses_never_reaches_the_handler(gateway: Gateway, arguments: Any) -> None:
    with pytest.raises(InvalidArgument, match=r"^thing\.echo: ") as raised:
        await gateway.call("thing.echo", arguments)
    assert raised.value.hint
    assert raised.value.next == [{"unit": "unit.describe", "arguments": {"name": "thing.echo"}}]
    assert gateway.outcomes["thing.echo", "invalid_argument"] == 1


async def test_a_misspelt_argument_names_the_right_one(gateway: Gateway) -> None:
    with pytest.raises(InvalidArgument) as raised:
        await gateway.call("thing.echo", {"count": 1, "cuont": 2})
    assert raised.value.hint == "did you mean count?"


@pytest.mark.parametrize("name", ["thing.ehco", "", "thing", "thing.changed", "thing.one", "../../etc/passwd", "thing_echo"])
async def test_an_unknown_unit_names_the_nearest(gateway: Gateway, name: str) -> None:
    with pytest.raises(NotFound, match="no unit called") as raised:
        await gateway.call(name, {})
    assert raised.value.next[0]["unit"] == "unit.search"
    if name == "thing.ehco":
        assert str(raised.value.hint).startswith("did you mean thing.echo")


async def test_scopes_are_checked_before_anything_else(gateway: Gateway) -> None:
    for call in (gateway.call("thing.change", {"nonsense": 1}, caller=READER), gateway.read("aima://thing/a", caller=READER)):
        with pytest.raises(PermissionDenied, match="reader may not use thing"):
            await call
    with pytest.raises(PermissionDenied, match="events"):
        gateway.follow(caller=Caller("nobody", frozenset()))
    assert await gateway.call("thing.change", caller=Caller("writer", frozenset({"write"}))) == {}
    assert await gateway.call("thing.change", caller=OWNER) == {}
    with pytest.raises(PermissionDenied):  # admin implies every scope but this one
        await gateway.call("thing.execute", caller=OWNER)
    assert await gateway.call("thing.execute", caller=Caller("root", frozenset({"admin", "exec"}))) == {}
    assert gateway.outcomes["thing.change", "permission_denied"] == 1


async def test_a_command_has_a_deadline_of_its_own(gateway: Gateway) -> None:
    with anyio.fail_after(20), pytest.raises(DeadlineExceeded, match=r"thing\.linger took longer than 1\.5 s"):
        await gateway.call("thing.linger")


async def test_a_call_has_a_deadline(gateway: Gateway) -> None:
    with pytest.raises(DeadlineExceeded, match=r"thing\.slow took longer than 1(\.0)? s"):
        await gateway.call("thing.slow")
    assert gateway.outcomes["thing.slow", "deadline_exceeded"] == 1


async def test_a_caller_that_leaves_is_counted_as_cancelled(gateway: Gateway) -> None:
    with anyio.move_on_after(0.01):
        await gateway.call("thing.slow")
    assert gateway.outcomes["thing.slow", "cancelled"] == 1


async def test_an_output_that_breaks_its_schema_is_a_bug_of_ours(gateway: Gateway) -> None:
    with pytest.raises(Internal, match=r"thing\.wrong broke its own schema: count"):
        await gateway.call("thing.wrong")


async def test_a_stream_item_that_breaks_its_schema_is_a_bug_of_ours(gateway: Gateway) -> None:
    async def send(item: Mapping[str, Any]) -> None:
        raise AssertionError("it must not come out")

    with pytest.raises(Internal, match=r"thing\.garble sent what its streamSchema does not allow"):
        await gateway.call("thing.garble", send=send)


async def test_a_foreign_exception_stays_inside(gateway: Gateway, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR), pytest.raises(Internal) as raised:
        await gateway.call("thing.crash")
    assert str(raised.value) == "thing.crash failed: RuntimeError"
    assert "hunter2" not in str(raised.value.as_dict())
    assert "hunter2" in caplog.text  # whoever runs the box can see it


async def test_our_own_errors_pass_whole(gateway: Gateway) -> None:
    with pytest.raises(ResourceExhausted) as raised:
        await gateway.call("thing.refuse")
    body = raised.value.as_dict()
    assert body["next"] == [{"unit": "thing.echo", "arguments": {"count": 1}}]
    assert AimaError.from_dict(body).as_dict() == body


async def test_a_durable_call_is_a_run_that_is_followed(gateway: Gateway) -> None:
    items: list[Any] = []

    async def send(item: Mapping[str, Any]) -> None:
        items.append(item)

    assert await gateway.call("thing.work", {"count": 2}, send=send, key="k") == {"count": 2}
    assert items[0] == {"phase": "started", "message": "run thing-work-k", "completed": None, "total": None}
    assert await gateway.call("thing.work", {"count": 2}, key="k") == {"count": 2}
    with pytest.raises(AlreadyExists):
        await gateway.call("thing.work", {"count": 3}, key="k")
    assert gateway.services.store.count("run") == 1
    with pytest.raises(InvalidArgument):
        await gateway.start("thing.work", {"count": "2"})
    with pytest.raises(FailedPrecondition, match=r"thing\.echo is not a run"):
        await gateway.start("thing.echo", {"count": 1})
    assert gateway.services.store.count("run") == 1


async def test_commands_are_on_record_and_queries_are_not(gateway: Gateway) -> None:
    await gateway.call("thing.change", caller=OWNER)
    await gateway.call("thing.echo", {"count": 0})
    await gateway.call("thing.work", {"count": 0})
    await gateway.services.store.submit(lambda db: None)
    rows = gateway.services.store.read("SELECT unit, caller, entry, code FROM audit ORDER BY seq")
    assert rows == [(unit, "owner", *rest) for unit in ("thing.change", "thing.work") for rest in (("intent", ""), ("outcome", "ok"))]


async def test_a_resource_is_read_by_uri_and_an_unknown_one_refused(gateway: Gateway) -> None:
    assert await gateway.read("aima://thing/a") == {"uri": "aima://thing/a", "mimeType": "application/json", "content": {"id": "a"}}
    with pytest.raises(NotFound, match="no resource at 'aima://thign/a'"):
        await gateway.read("aima://thign/a")


async def test_following_refuses_what_is_no_event(gateway: Gateway) -> None:
    with pytest.raises(InvalidArgument, match=r"thing\.chnaged") as raised:
        gateway.follow(types=["thing.chnaged"])
    assert "thing.changed" in str(raised.value.hint)
    gateway.follow(types=["thing.*"])


def test_every_error_class_has_its_own_row(tmp_path: Path) -> None:
    kinds = AimaError.__subclasses__()
    assert len(kinds) == 12
    for field in ("code", "http_status", "exit_code"):
        assert len({getattr(kind, field) for kind in kinds}) == 12


async def test_a_name_of_any_length_is_answered_with_a_call_that_can_be_made(hosted: Gateway) -> None:
    with pytest.raises(NotFound) as caught:
        await hosted.call("x" * 3000)
    [search] = caught.value.next
    assert hosted.find(search["unit"]).input.first_error(search["arguments"]) is None


async def test_an_idempotency_key_holds_or_is_refused(hosted: Gateway) -> None:
    for _ in range(2):
        with pytest.raises(NotFound, match="no model called 'nothing'"):
            await hosted.call("unit.call", {"name": "model.verify", "arguments": {"model_id": "nothing"}}, key="once")
    [run] = (await hosted.call("run.list"))["runs"]
    assert (run["unit"], run["idempotency_key"]) == ("model.verify", "once")
    denial: dict[str, Any] = {"approval_id": "nothing"}
    for name, arguments in (("approval.deny", denial), ("unit.call", {"name": "approval.deny", "arguments": denial})):
        with pytest.raises(InvalidArgument, match=r"approval\.deny keeps no idempotency key"):
            await hosted.call(name, arguments, key="once")
    assert (await hosted.call("model.list", key="once"))["total"] == 0, "what changes nothing keeps every promise"
