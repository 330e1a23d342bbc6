"""The HTTP face over a real socket: units, resources, events, and who may come in."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import AsyncIterator, Callable
from http import HTTPStatus
from pathlib import Path
from typing import Any

import anyio
import httpx
import jsonschema
import pytest
import referencing.jsonschema

from aima_lib.infra.home import Home
from aima_mcp.faces import strict_json
from aima_mcp.faces.http.exchange import accepted
from tests.served import DEADLINE, serving
from tests.served import Served as World
from tests.workshop import OPEN, unit
from tests.world import within

pytestmark = pytest.mark.anyio
SSE = {"Accept": "text/event-stream"}
COUNT = {
    "type": "object",
    "required": ["count"],
    "additionalProperties": False,
    "properties": {"count": {"type": "integer", "description": "c"}},
}
KINDS: dict[str, dict[str, Any]] = {
    "whole": {"type": "integer"},
    "part": {"type": "number"},
    "flag": {"type": "boolean"},
    "words": {"type": "array", "items": {"type": "string"}},
    "numbers": {"type": "array", "items": {"type": "integer"}},
    "box": {"type": "object"},
    "text": {"type": "string"},
}
ANY = {"type": "object", "additionalProperties": False, "properties": {key: kind | {"description": key} for key, kind in KINDS.items()}}
SAME = {"readOnlyHint": False, "idempotentHint": True, "destructiveHint": False, "openWorldHint": False}
ONCE = SAME | {"idempotentHint": False}
WORLD = [
    unit("query", "thing.echo", inputSchema=COUNT, outputSchema=COUNT, streamSchema=COUNT),
    unit("query", "thing.any", inputSchema=ANY, outputSchema=OPEN),
    unit("query", "thing.hang", streamSchema=COUNT, outputSchema=OPEN),
    unit("query", "thing.flood", streamSchema=COUNT, outputSchema=OPEN),
    unit("query", "thing.halfway", streamSchema=COUNT, outputSchema=OPEN),
    unit("query", "thing.refuse"),
    unit("query", "thing.crash"),
    unit("command", "thing.change", annotations=ONCE),
    unit("command", "thing.work", durable=True, inputSchema=COUNT, outputSchema=COUNT, annotations=SAME),
    unit("event", "thing.changed"),
    unit("resource", "thing.all", scope="read", uriTemplate="aima://things", mimeType="application/json", outputSchema=OPEN)
    | {"updatedBy": ["thing.changed"]},
]
HANDLERS = """
gate, log, number = anyio.Event(), [], 0

@handles("thing.echo")
async def echo(ctx, count):
    for number in range(count):
        await ctx.send({"count": number})
    return {"count": count}

@handles("thing.any")
async def any_of(ctx, whole=None, part=None, flag=None, words=None, numbers=None, box=None, text=None):
    given = {"whole": whole, "part": part, "flag": flag, "words": words, "numbers": numbers, "box": box, "text": text}
    return {key: value for key, value in given.items() if value is not None}

@handles("thing.hang")
async def hang(ctx):
    try:
        log.append("hanging")
        await anyio.sleep_forever()
    finally:
        log.append("cancelled")

@handles("thing.flood")
async def flood(ctx):
    try:
        while True:
            await ctx.send({"count": 1})
    finally:
        log.append("dry")

@handles("thing.halfway")
async def halfway(ctx):
    await ctx.send({"count": 1})
    raise NotFound("lost on the way")

@handles("thing.refuse")
async def refuse(ctx):
    raise FailedPrecondition("not now", hint="later", next=[{"unit": "thing.change", "arguments": {}}])

@handles("thing.crash")
async def crash(ctx):
    raise RuntimeError("/root/secret")

@handles("thing.change")
async def change(ctx):
    global number
    number += 1
    ctx.services.events.publish("thing.changed", {"number": number})
    return {}

@handles("thing.work")
async def work(ctx, count):
    await ctx.send({"phase": "working", "message": "at it"})
    await gate.wait()
    log.append("worked")
    return {"count": count}

@handles("thing.all")
async def all_things(ctx):
    return {"number": number}
"""


@pytest.fixture
def world(served: World) -> World:
    return served


async def until(true: Callable[[], bool]) -> None:
    with anyio.fail_after(DEADLINE):
        while not true():
            await anyio.sleep(0.01)


async def events(response: httpx.Response) -> AsyncIterator[tuple[str, Any, str | None]]:
    """Kind, data and id of each event of a stream."""
    kind = id = None
    async for line in response.aiter_lines():
        field, _, value = line.partition(": ")
        if field == "event":
            kind = value
        elif field == "id":
            id = value
        elif field == "data":
            yield str(kind), json.loads(value), id


def problem(response: httpx.Response, status: int, code: str) -> dict[str, Any]:
    body: dict[str, Any] = response.json()
    assert (response.status_code, body["code"], body["status"]) == (status, code, status), response.text
    assert response.headers["content-type"] == "application/problem+json"
    of_http = status in (405, 406, 413, 415, 421, 431)
    assert body["type"] == ("about:blank" if of_http else f"urn:aima:error:{code}") and body["title"]
    assert not of_http or body["title"] == HTTPStatus(status).phrase
    return body


# Units


async def test_a_unit_answers_by_post_and_a_query_by_get_too(world: World) -> None:
    assert (await world.http.post("/units/thing/echo", json={"count": 2})).json() == {"count": 2}
    assert (await world.http.get("/units/thing/echo?count=2")).json() == {"count": 2}
    assert (await world.http.post("/units/thing/change")).json() == {}, "no body is an empty object"
    head = await world.http.head("/units/thing/echo?count=2")
    assert head.status_code == 200 and head.content == b"" and head.headers["content-length"] == "11"


async def test_what_does_not_exist_is_named_with_what_is_near(world: World) -> None:
    body = problem(await world.http.post("/units/thing/ekho", json={}), 404, "not_found")
    assert "thing.ekho" in body["message"] and "thing.echo" in body["hint"]
    for path in ("/units", "/units/thing", "/units/thing/echo/more", "/nothing"):
        problem(await world.http.get(path), 404, "not_found")


async def test_methods(world: World) -> None:
    for path, method, allow in (
        ("/units/thing/change", "GET", "POST"),
        ("/units/thing/echo", "DELETE", "POST, GET, HEAD"),
        ("/events", "POST", "GET, HEAD"),
        ("/resources", "PUT", "GET, HEAD"),
        ("/shutdown", "GET", "POST"),
    ):
        refused = await world.http.request(method, path)
        problem(refused, 405, "invalid_argument")
        assert refused.headers["allow"] == allow


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("whole=-3&part=2&flag=true&text=7", {"whole": -3, "part": 2, "flag": True, "text": "7"}),
        ("part=1e2&words=a&words=b,c&numbers=1&numbers=2", {"part": 100.0, "words": ["a", "b,c"], "numbers": [1, 2]}),
        ("box=%7B%22a%22%3A%5B1%5D%7D&text=", {"box": {"a": [1]}, "text": ""}),
    ],
)
async def test_query_parameters_become_what_the_schema_says(world: World, query: str, found: dict[str, Any]) -> None:
    assert (await world.http.get(f"/units/thing/any?{query}")).json() == found


@pytest.mark.parametrize(
    "query",
    [
        "whole=1.5",
        "whole=",
        "whole=1&whole=2",
        "part=NaN",
        "part=1_0",
        "flag=yes",
        "numbers=x",
        "box=%7B",
        "text=a%00b",
        "box=%5B%5D",
        "nothing=1",
    ],
)
async def test_query_parameters_of_another_type_are_refused(world: World, query: str) -> None:
    expected = "NUL" if "%00" in query else query.partition("=")[0]
    assert expected in problem(await world.http.get(f"/units/thing/any?{query}"), 400, "invalid_argument")["message"]


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"[1]",
        b"null",
        b'"x"',
        b'{"count": 1, "count": 2}',
        b'{"count": NaN}',
        b'{"count": 1e999}',
        b'{"text": "\\ud800"}',
        b'{"text": "a\\u0000b"}',
        b'{"box": {"a\\u0000b": []}}',
        b'{"text": "\xff"}',
        b"\xef\xbb\xbf{}",
        b'{"box": ' + b"[" * 70 + b"]" * 70 + b"}",
        b"[" * 100_000,
        b'{"whole": ' + b"9" * 5000 + b"}",
        '{"whole": 1}'.encode("utf-16"),
    ],
)
async def test_a_body_that_is_not_strict_json_is_refused(world: World, body: bytes) -> None:
    problem(await world.http.post("/units/thing/any", content=body, headers={"Content-Type": "application/json"}), 400, "invalid_argument")


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        ("application/json", 200),
        ("application/json; charset=utf-8", 200),
        ('Application/JSON;charset="UTF-8"', 200),
        ("application/jsonx", 415),
        ("text/plain", 415),
        ("application/json; charset=utf-16", 415),
        ("application/x-www-form-urlencoded", 415),
        ("", 415),
    ],
)
async def test_only_json_is_taken(world: World, kind: str, status: int) -> None:
    answer = await world.http.post("/units/thing/any", content=b"{}", headers={"Content-Type": kind} if kind else {})
    assert answer.status_code == status


async def test_a_large_body_is_refused_by_its_length_and_by_its_bytes(world: World) -> None:
    async def unannounced() -> AsyncIterator[bytes]:
        for _ in range(100):
            yield b" " * 65536

    refused = await world.http.post("/units/thing/any", content=b" " * (5 << 20), headers={"Content-Type": "application/json"})
    problem(refused, 413, "invalid_argument")
    refused = await world.http.post("/units/thing/any", content=unannounced(), headers={"Content-Type": "application/json"})
    problem(refused, 413, "invalid_argument")


@pytest.mark.parametrize(
    ("header", "best"),
    [
        (None, "a/b"),
        ("*/*", "a/b"),
        ("c/d", "c/d"),
        ("a/b, c/d", "a/b"),
        ("a/b;q=0.1, c/d", "c/d"),
        ("c/*", "c/d"),
        ("x/y", None),
        ("a/b;q=0, */*", "c/d"),
        ("a/b;q=x", None),
        ("text/html, */*;q=0.1", "a/b"),
    ],
)
def test_accept(header: str | None, best: str | None) -> None:
    assert accepted(header, "a/b", "c/d") == best


async def test_errors_carry_everything_and_bugs_carry_nothing(world: World) -> None:
    body = problem(await world.http.post("/units/thing/refuse", json={}), 412, "failed_precondition")
    assert body["hint"] == "later" and body["next"] == [{"unit": "thing.change", "arguments": {}}]
    crash = await world.http.post("/units/thing/crash", json={})
    problem(crash, 500, "internal")
    assert "secret" not in crash.text
    problem(await world.http.post("/units/thing/echo", json={"count": 1}, headers={"Accept": "text/html"}), 406, "invalid_argument")


# Streams


async def test_a_stream_gives_items_and_then_the_result(world: World) -> None:
    async with world.http.stream("POST", "/units/thing/echo", json={"count": 2}, headers=SSE) as response:
        seen = [(kind, data) async for kind, data, _ in events(response)]
    assert response.headers["content-type"] == "text/event-stream"
    assert seen == [("item", {"count": 0}), ("item", {"count": 1}), ("result", {"count": 2})]


async def test_an_error_is_a_status_before_the_first_item_and_an_event_after(world: World) -> None:
    problem(await world.http.post("/units/thing/refuse", json={}, headers=SSE), 412, "failed_precondition")
    async with world.http.stream("POST", "/units/thing/halfway", json={}, headers=SSE) as response:
        seen = [(kind, data) async for kind, data, _ in events(response)]
    assert [kind for kind, _ in seen] == ["item", "error"] and seen[1][1]["code"] == "not_found"


@pytest.mark.parametrize("headers", [{}, SSE])
async def test_who_leaves_a_call_cancels_it(world: World, headers: dict[str, str]) -> None:
    async with anyio.create_task_group() as tasks:

        async def ask() -> None:
            await world.http.post("/units/thing/hang", json={}, headers=headers)

        tasks.start_soon(ask)
        await until(lambda: "hanging" in world.inside.log)
        tasks.cancel_scope.cancel()
    await until(lambda: "cancelled" in world.inside.log)
    assert world.gateway.outcomes["thing.hang", "cancelled"] == 1


async def test_a_stream_that_is_always_ready_ends_with_its_client_and_starves_nobody(world: World) -> None:
    async with world.http.stream("POST", "/units/thing/flood", json={}, headers=SSE) as response:
        async for _ in events(response):
            assert (await world.http.get("/health")).is_success
            break
    await until(lambda: "dry" in world.inside.log)
    assert (await world.http.get("/health")).is_success


async def test_a_call_without_items_opens_its_stream_within_a_second_or_so(world: World) -> None:
    with within(1.5):
        async with world.http.stream("GET", "/units/thing/hang", headers=SSE) as response:
            assert response.status_code == 200
            async for line in response.aiter_lines():
                assert line == ": still here"
                break


# Runs


async def test_a_run_outlives_its_client_and_a_key_names_it(world: World) -> None:
    headers = {"Prefer": "respond-async", "Idempotency-Key": "once"}
    started = await world.http.post("/units/thing/work", json={"count": 1}, headers=headers)
    run = started.json()["run"]
    assert (started.status_code, run["status"], run["id"]) == (202, "running", "thing-work-once")
    assert "scopes" not in run and started.headers["location"] == "/units/run/get?run_id=thing-work-once"
    again = await world.http.post("/units/thing/work", json={"count": 1}, headers=headers)
    assert again.json()["run"]["id"] == run["id"]
    problem(await world.http.post("/units/thing/work", json={"count": 2}, headers=headers), 409, "already_exists")
    problem(await world.http.post("/units/thing/work", json={"count": 1}, headers={"Idempotency-Key": "x" * 300}), 400, "invalid_argument")
    async with world.http.stream("POST", "/units/thing/work", json={"count": 1}, headers={**SSE, "Idempotency-Key": "once"}) as response:
        async for kind, data, _ in events(response):
            assert (kind, data["phase"]) == ("item", "started")
            break
    world.inside.gate.set()
    await until(lambda: world.inside.log == ["worked"])
    assert (await world.http.get(started.headers["location"])).json()["run"]["result"] == {"count": 1}


async def test_a_durable_call_without_a_wish_waits_for_its_end(world: World) -> None:
    world.inside.gate.set()
    assert (await world.http.post("/units/thing/work", json={"count": 3})).json() == {"count": 3}


# Resources and events


async def test_a_resource_that_has_not_changed_is_not_sent_again(world: World) -> None:
    first = await world.http.get("/resources", params={"uri": "aima://things"})
    tag = first.headers["etag"]
    for known in (tag, f'"other", W/{tag}', "*"):
        again = await world.http.get("/resources", params={"uri": "aima://things"}, headers={"If-None-Match": known})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)
    await world.http.post("/units/thing/change", json={})
    changed = await world.http.get("/resources", params={"uri": "aima://things"}, headers={"If-None-Match": tag})
    assert changed.status_code == 200 and changed.headers["etag"] != tag


async def test_resources_are_read_listed_and_watched(world: World) -> None:
    assert (await world.http.get("/resources", params={"uri": "aima://things"})).json() == {"number": 0}
    listed = (await world.http.get("/resources")).json()["resources"]
    assert "aima://things" in [row["uriTemplate"] for row in listed]
    problem(await world.http.get("/resources", params={"uri": "aima://nothing"}), 404, "not_found")
    problem(await world.http.get("/resources?uri=a&uri=b"), 400, "invalid_argument")
    problem(await world.http.get("/resources", params={"uri": "aima://nothing"}, headers=SSE), 404, "not_found")
    seen = []
    async with world.http.stream("GET", "/resources", params={"uri": "aima://things"}, headers=SSE) as response:
        async for kind, data, _ in events(response):
            seen.append((kind, data))
            if len(seen) == 3:
                break
            await world.http.post("/units/thing/change")
    assert seen == [("resource", {"number": 0}), ("resource", {"number": 1}), ("resource", {"number": 2})]


async def test_events_are_followed_and_taken_up_again(world: World) -> None:
    async with world.http.stream("GET", "/events?types=thing.changed") as response:
        assert response.headers["content-type"] == "text/event-stream"
        await world.http.post("/units/thing/change")  # published after the head came: it must not be missed
        kind, first, id = await anext(events(response))
        assert (kind, first["payload"], id) == ("thing.changed", {"number": 1}, str(first["seq"]))
    await world.http.post("/units/thing/change")
    async with world.http.stream("GET", "/events?after=0&types=thing.*", headers={"Last-Event-ID": str(first["seq"])}) as response:
        assert (await anext(events(response)))[1]["payload"] == {"number": 2}
    async with world.http.stream("GET", "/events?after=0&types=device.detected,thing.changed") as response:
        assert (await anext(events(response)))[0] == "device.detected"
    assert "thing.changed" in problem(await world.http.get("/events?types=thing.chnged"), 400, "invalid_argument")["hint"]
    problem(await world.http.get("/events?after=x"), 400, "invalid_argument")
    problem(await world.http.get("/events?since=1"), 400, "invalid_argument")
    problem(await world.http.get("/events", headers={"Accept": "application/json"}), 406, "invalid_argument")


# Who may come in


async def test_the_key_is_needed_everywhere_but_for_health(world: World) -> None:
    async with httpx.AsyncClient(base_url=world.http.base_url, trust_env=False) as stranger:
        for path in ("/units/thing/echo", "/resources", "/events", "/openapi.json", "/metrics", "/mcp", "/nothing"):
            refused = await stranger.get(path)
            problem(refused, 401, "unauthenticated")
            assert refused.headers["www-authenticate"].startswith("Bearer")
        problem(await stranger.post("/shutdown"), 401, "unauthenticated")
        wrong = await stranger.get("/metrics", headers={"Authorization": "Bearer aima-wrong"})
        assert wrong.status_code == 401 and "invalid_token" in wrong.headers["www-authenticate"]
        openai = await stranger.get("/v1/models")
        assert openai.status_code == 401 and openai.json()["error"]["type"] == "authentication_error"
        assert (await stranger.get("/metrics", headers={"x-api-key": world.home.key()})).is_success
        assert (await stranger.get("/health")).json()["status"] == "ok"


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("LOCALHOST:1", 200),
        ("127.0.0.1:8484", 200),
        ("127.8.8.8", 200),
        ("[::1]:80", 200),
        ("evil.com", 421),
        ("localhost.evil.com", 421),
        ("127.0.0.1.evil.com", 421),
        ("localhost@evil.com", 421),
        ("localhost:80@evil.com", 421),
        ("192.168.1.5", 421),
        ("[::1", 421),
        ("[::1]x", 421),
        ("localhost:", 421),
        ("localhost:99999", 421),
        ("localhost/evil", 421),
        ("", 421),
    ],
)
async def test_only_this_hosts_names_are_answered(world: World, host: str, status: int) -> None:
    answer = await world.raw(f"GET /health HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
    assert answer.startswith(f"HTTP/1.1 {status} ".encode()), answer


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        ("http://localhost:3000", 403),
        ("http://127.0.0.1", 403),
        ("http://[::1]:5", 403),
        ("http://127.0.0.1:{port}", 200),
        ("http://127.0.0.1:{port}.evil.com", 403),
        ("http://localhost:1@evil.com", 403),
        ("https://evil.com", 403),
        ("http://localhost.evil.com", 403),
        ("null", 403),
        ("http://localhost/", 403),
        ("file://", 403),
    ],
)
async def test_only_this_hosts_own_pages_may_call(world: World, origin: str, status: int) -> None:
    answer = await world.http.get("/units/thing/echo?count=1", headers={"Origin": origin.format(port=world.port)})
    assert answer.status_code == status
    assert not [name for name in answer.headers if name.startswith("access-control-")], "no CORS unless it is configured"


async def test_pages_and_names_that_the_config_lists_may_call(home: Home, tmp_path: Path) -> None:
    listed = '[server]\nallowed_origins = ["https://ui.example.org"]\nallowed_hosts = ["AIMA.example.org"]\n'
    (home.path / "config.toml").write_text(listed, encoding="utf-8")
    async with serving(home, tmp_path, WORLD, HANDLERS) as world:
        for origin, status in (("https://ui.example.org", 200), ("http://ui.example.org", 403), ("https://ui.example.org:444", 403)):
            answer = await world.http.get("/units/thing/echo?count=1", headers={"Origin": origin})
            assert answer.status_code == status
            assert answer.headers.get("access-control-allow-origin") == (origin if status == 200 else None)
            asked = {"Origin": origin, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
            async with httpx.AsyncClient(base_url=world.url, trust_env=False) as page:
                before = await page.options("/units/thing/echo", headers=asked)
            assert before.status_code == (204 if status == 200 else 403)
            assert before.headers.get("access-control-allow-headers") == ("authorization" if status == 200 else None)
        async with httpx.AsyncClient(base_url=world.url, trust_env=False) as page:
            said = await page.options("/units/thing/echo", headers={"Origin": "https://ui.example.org"})
        assert {"aima-token", "traceparent"} <= set(said.headers["access-control-allow-headers"].split(", "))
        for name, expected in (("aima.example.org", 200), ("aima.example.org:443", 200), ("evil.aima.example.org", 421)):
            assert (await world.http.get("/health", headers={"Host": name})).status_code == expected


@pytest.mark.parametrize(
    ("head", "status"),
    [
        ("X: " + "a" * 40_000 + "\r\n", b"431"),
        ("Content-Length: 2\r\nTransfer-Encoding: chunked\r\n", b"400"),
        ("Host: localhost\r\n", b"400"),
        ("X: a\nTransfer-Encoding: chunked\r\n", b"400"),
        ("X: a\r\n continued\r\n", b"400"),
        ("X : a\r\n", b"400"),
        ("X: a\0\r\n", b"400"),
    ],
)
async def test_heads_that_mean_two_things_or_too_much_are_refused(world: World, head: str, status: bytes) -> None:
    answer = await world.raw(f"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{head}\r\n".encode())
    assert answer.split(b" ", 2)[1] == status, answer[:200]
    assert b"content-type: application/problem+json" in answer.lower() and answer.endswith(b"}")


async def test_a_short_reply_comes_in_one_piece(world: World) -> None:
    """Each write wakes its reader: that of a head alone is half of what a short reply costs."""
    request = f"GET /units/thing/echo?count=1 HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {world.home.key()}\r\n\r\n".encode()

    def ask() -> None:
        with socket.create_connection(("127.0.0.1", world.port), DEADLINE) as client:
            for _ in range(50):
                client.sendall(request)
                assert client.recv(65536).endswith(b'{"count":1}')

    await anyio.to_thread.run_sync(ask)  # whose reads wait outside the loop that writes


async def test_a_head_whose_body_takes_its_time_comes_first(world: World) -> None:
    hello = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "test", "version": "1"}}
    body = {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": hello}
    answer = await world.http.post("/mcp", json=body, headers={"Accept": "application/json, text/event-stream"})
    session = {"Mcp-Session-Id": answer.headers["mcp-session-id"], "MCP-Protocol-Version": "2025-11-25", **SSE}
    with anyio.fail_after(12):  # the first ping comes after 15 s
        async with world.http.stream("GET", "/mcp", headers=session) as quiet:
            assert quiet.status_code == 200 and quiet.headers["content-type"].startswith("text/event-stream")


async def test_a_head_is_as_strict_in_pieces_and_in_a_row(world: World) -> None:
    whole, loose = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n", b"GET /health HTTP/1.1\nHost: localhost\r\n\r\n"
    answers = await world.raw(whole + whole + loose)
    assert re.findall(rb"HTTP/1.1 (\d+)", answers) == [b"200", b"200", b"400"], answers
    async with await anyio.connect_tcp("127.0.0.1", world.port) as stream:
        for request, status in ((whole, b"200"), (loose[: loose.index(b"\n") + 1], b"400")):
            for byte in request:
                await stream.send(bytes([byte]))
                await anyio.sleep(0)
            assert (await stream.receive()).split(b" ", 2)[1] == status


async def test_mcp_is_behind_the_same_door(world: World) -> None:
    hello = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "test", "version": "1"}}
    body = {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": hello}
    headers = {"Accept": "application/json, text/event-stream"}
    answer = await world.http.post("/mcp", json=body, headers=headers)
    assert answer.status_code == 200 and '"serverInfo"' in answer.text
    async with httpx.AsyncClient(base_url=world.http.base_url, trust_env=False) as stranger:
        problem(await stranger.post("/mcp", json=body, headers=headers), 401, "unauthenticated")
    assert (await world.http.post("/mcp", json=body, headers=headers | {"Origin": "http://evil.com"})).status_code == 403


# What it says of itself


async def test_openapi_describes_every_unit_and_is_valid(world: World) -> None:
    validator = pytest.importorskip("openapi_spec_validator")
    document = (await world.http.get("/openapi.json")).json()
    validator.validate(document)
    for described in world.gateway.registry.of("command", "query"):
        path = document["paths"][f"/units/{described.domain}/{described.action}"]
        assert path["post"]["operationId"] == described.name.replace(".", "_")
        assert path["post"]["requestBody"]["content"]["application/json"]["schema"] == described.definition["inputSchema"]
        assert ("get" in path) == (described.kind == "query")
        assert ("202" in path["post"]["responses"]) == described.durable


async def test_openapi_shows_what_an_answer_and_an_error_look_like(world: World) -> None:
    answer = await world.http.get("/openapi.json")
    document = answer.json()
    shapes = {"$id": "urn:document", "components": document["components"]}
    registry = referencing.Registry().with_resource("urn:document", referencing.jsonschema.DRAFT202012.create_resource(shapes))
    judge = jsonschema.Draft202012Validator({"$ref": "urn:document#/components/schemas/Problem"}, registry=registry)
    for name, response in document["components"]["responses"].items():
        for content in response.get("content", {}).values():
            judge.validate(content["example"])
            assert name == f"http_{content['example']['status']}" or name == content["example"]["code"]
    seen = 0
    for known in world.gateway.registry.of("command", "query"):
        content = document["paths"][f"/units/{known.domain}/{known.action}"]["post"]["responses"]["200"]["content"]
        for example in content["application/json"].get("examples", {}).values():
            jsonschema.Draft202012Validator(known.definition["outputSchema"]).validate(example["value"])
            seen += 1
        assert known.durable <= ("text/event-stream" in content) and all(
            "item" in c["x-events"] for k, c in content.items() if "stream" in k
        )
    assert seen > 0
    again = await world.http.get("/openapi.json", headers={"If-None-Match": answer.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


@pytest.mark.parametrize("path", ["/openapi.json", "/resources", "/caller", "/metrics"])
async def test_a_format_that_is_not_to_be_had_is_refused(world: World, path: str) -> None:
    problem(await world.http.get(path, headers={"Accept": "image/png"}), 406, "invalid_argument")
    assert (await world.http.get(path, headers={"Accept": "image/png, */*;q=0.1"})).is_success


async def test_metrics_count_calls_and_events(world: World) -> None:
    await world.http.post("/units/thing/change")
    await world.http.post("/units/thing/refuse", json={})
    await until(lambda: world.gateway.services.events.counts["thing.changed"] == 1)
    answer = await world.http.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    lines = answer.text.splitlines()
    assert 'aima_calls_total{unit="thing.change",code="ok"} 1' in lines
    assert 'aima_calls_total{unit="thing.refuse",code="failed_precondition"} 1' in lines
    assert 'aima_events_total{type="thing.changed"} 1' in lines
    assert any(line.startswith('aima_device_memory_total_bytes{device="cpu"} ') for line in lines)


async def test_half_a_request_and_a_client_that_goes_hurt_nobody(world: World) -> None:
    head = f"POST /units/thing/any HTTP/1.1\r\nHost: localhost\r\nx-api-key: {world.home.key()}\r\nContent-Type: application/json\r\n"
    await world.raw(f"{head}Content-Length: 100\r\n\r\n{{".encode(), wait=False)
    await world.raw(b"GET /health HTTP/1.1\r\nHost: loc", wait=False)
    with socket.create_connection(("127.0.0.1", world.port)):
        pass
    assert (await world.http.get("/health")).is_success


def test_what_cannot_be_utf8_does_not_break_a_reply() -> None:
    assert strict_json.write({"path": "a\udcff"}) == b'{"path":"a?"}'
