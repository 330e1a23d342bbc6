"""One HTTP request and its reply, over raw ASGI."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import anyio
from starlette.datastructures import Headers, QueryParams
from starlette.types import Message, Receive, Scope, Send

from aima_lib.door import Caller
from aima_lib.errors import AimaError, InvalidArgument
from aima_mcp.cycle import Cycle
from aima_mcp.faces import strict_json
from aima_mcp.faces.http import problem
from aima_mcp.faces.http.problem import Refused

MIB = 1 << 20
T = TypeVar("T")
NOBODY = Caller("nobody", frozenset())
Raw = list[tuple[bytes, bytes]]
EVERY: Raw = [(b"x-content-type-options", b"nosniff")]


class Fields(Headers):
    """The headers of a request, sorted by name once: a request's are looked up a dozen times."""

    def __init__(self, scope: Scope) -> None:
        super().__init__(raw=scope["headers"])
        self._sorted: dict[str, list[str]] = {}
        for name, value in scope["headers"]:
            self._sorted.setdefault(name.decode("latin-1"), []).append(value.decode("latin-1"))

    def __getitem__(self, key: str) -> str:
        return self._sorted[key.lower()][0]

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str) and key.lower() in self._sorted

    def get(self, key: str, default: Any = None) -> Any:
        """The first of that name."""
        found = self._sorted.get(key.lower())
        return found[0] if found else default

    def getlist(self, key: str) -> list[str]:
        """All of that name."""
        return list(self._sorted.get(key.lower(), ()))


class ClientLeft(Exception):
    """Nobody waits for the reply any more."""


class Cut(Exception):
    """What was done within a shield was cut off."""


class Exchange:
    """What a face sees of a request, and how it answers."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scope, self.receive, self._send = scope, receive, send
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self.cycle: Cycle | None = (scope.get("extensions") or {}).get("aima.cycle")  # where our own server serves it
        self.caller = NOBODY
        self.extra = EVERY  # headers of every reply
        self.is_json = False  # whether its body is known to say so
        self.started = self.finished = self.endless = self.is_cut = self.has_left = False
        self._shield: anyio.CancelScope | None = None
        self._headers: Fields | None = None

    @property
    def headers(self) -> Headers:
        if self._headers is None:
            self._headers = Fields(self.scope)
        return self._headers

    @property
    def query(self) -> QueryParams:
        return QueryParams(self.scope["query_string"])

    # How it is cut off

    def cancel(self) -> None:
        """End the work on it, wherever that waits."""
        work = self._shield or (self.cycle.task if self.cycle is not None else None)
        if work is not None and not self.finished:
            self.is_cut = True
            work.cancel()

    def leave(self) -> None:
        """As `cancel`, since the client has gone."""
        self.has_left = True
        self.cancel()

    def attend(self) -> None:
        """From here on the client's leaving ends the work. The request's body must have been read."""
        if self.cycle is not None:
            self.cycle.leavers.append(self.leave)
            if self.cycle.has_left:
                self.leave()

    @contextmanager
    def shielding(self) -> Iterator[None]:
        """For work that holds shields of anyio's: cancelling the task would go through them. Raises Cut where `cancel` ended it."""
        with anyio.CancelScope() as scope:
            before, self._shield = self._shield, scope
            yield
        self._shield = before
        if scope.cancelled_caught:
            raise Cut

    # What was asked

    async def body(self, limit: int) -> bytes:
        """The whole body. Raises Refused (413) past `limit` bytes, ClientLeft when the client goes in the middle."""
        if self.cycle is not None and (whole := self.cycle.taken()) is not None:
            if len(whole) > limit:
                raise _too_large(limit)
            return whole
        declared = next((value for name, value in self.scope["headers"] if name == b"content-length"), b"0")
        if declared.isdigit() and int(declared) > limit:
            raise _too_large(limit)
        parts, size = list[bytes](), 0
        while True:
            message = await self.receive()
            if message["type"] == "http.disconnect":
                raise ClientLeft
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > limit:
                raise _too_large(limit)
            if not message.get("more_body", False):
                return b"".join(parts)

    async def json(self, limit: int) -> Any:
        """The body as strict JSON; an empty body is an empty object.

        Raises:
            Refused: 415 for another content type, 413 past `limit` bytes.
            InvalidArgument: the body is not JSON.
        """
        return (await self.json_and_body(limit))[0]

    async def json_and_body(self, limit: int) -> tuple[Any, bytes]:
        """As `json`, with the bytes it was read from."""
        if not self.is_json:
            refuse_media_type(self.headers)
        body = await self.body(limit)
        if body == b"null":
            raise InvalidArgument("the body is null, not an object")
        return (strict_json.read(body) if body else {}), body

    async def reply(self, status: int, body: bytes, media_type: str, headers: Mapping[str, str] | None = None) -> None:
        """Answer whole."""
        fields = {"content-type": media_type, "content-length": str(len(body)), **(headers or {})}
        if self.cycle is not None and self.cycle.reply(status, [*raw(fields), *self.extra], body):
            self.started = self.finished = True
            return
        await self.start(status, fields)
        await self.write(body, more=False)

    async def reply_tagged(self, body: bytes, media_type: str, more: Mapping[str, str] | None = None) -> None:
        """Answer whole, or 304 where the client has just this already."""
        tag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
        known = [entry.strip().removeprefix("W/") for entry in ",".join(self.headers.getlist("if-none-match")).split(",")]
        headers = {"etag": tag, "cache-control": "private, no-cache", "vary": "accept, authorization", **(more or {})}
        if tag in known or "*" in known:
            await self.start(304, headers)
            await self.write(b"", more=False)
        else:
            await self.reply(200, body, media_type, headers)

    async def reply_json(self, value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> None:
        """Answer with JSON."""
        await self.reply(status, strict_json.write(value), "application/json", headers)

    async def reply_problem(self, error: AimaError, status: int | None = None, headers: Mapping[str, str] | None = None) -> None:
        """Answer with an error."""
        body = problem.body_of(error, status)
        await self.reply(body["status"], strict_json.write(body), problem.MEDIA_TYPE, headers)

    async def start(self, status: int, headers: Mapping[str, str]) -> None:
        """Begin an answer whose body comes by `write`."""
        await self.send({"type": "http.response.start", "status": status, "headers": raw(headers)})

    async def send(self, message: Message) -> None:
        """ASGI, with the headers that every reply has."""
        if message["type"] == "http.response.start":
            self.started, fields = True, message.get("headers", [])
            self.endless = self.method == "GET" and any(value.startswith(b"text/event-stream") for _, value in fields)
            message = {**message, "headers": [*fields, *self.extra]}
        elif not message.get("more_body", False):
            self.finished = True
        await self._send(message)

    async def write(self, body: bytes, *, more: bool = True) -> None:
        """A piece of the body. A checkpoint, but for the last: send() to a client that left returns at once, and a ready source would never
        yield."""
        await self.send({"type": "http.response.body", "body": body, "more_body": more})
        if more:
            await anyio.lowlevel.checkpoint()

    async def while_connected(self, work: Callable[[], Awaitable[T]], beside: Callable[[], Coroutine[Any, Any, None]] | None = None) -> T:
        """The outcome of `work`, which is cancelled as soon as the client leaves; `beside` runs as long as it does.

        The request's body must have been read.

        Raises:
            ClientLeft: it left.
        """
        if self.cycle is not None and beside is None:  # our own server says so itself, which costs no task
            with self.cycle.leaving(self.leave):
                return await work()
        done: list[T] = []
        failed: list[AimaError | Refused] = []
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._until_left, tasks.cancel_scope)
            if beside is not None:
                tasks.start_soon(beside)
            try:
                done.append(await work())
            except (AimaError, Refused) as error:  # kept apart: a task group would wrap it
                failed.append(error)
            tasks.cancel_scope.cancel()
        if failed:
            raise failed[0]
        if not done:
            raise ClientLeft
        return done[0]

    async def _until_left(self, scope: anyio.CancelScope) -> None:
        while (await self.receive())["type"] != "http.disconnect":
            pass
        if not self.finished:  # the end of a whole reply reads as a disconnect too
            scope.cancel()


def raw(headers: Mapping[str, str]) -> Raw:
    """Headers as they go over the wire."""
    return [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]


def accepted(header: str | None, *offers: str) -> str | None:
    """The offer that an Accept header likes best (the first among equals), or None when it takes none."""
    if not header:
        return offers[0]
    ranges = [_range(part) for part in header.lower().split(",")]
    ranked = [(max((quality for _, quality in _most_exact(ranges, offer)), default=0.0), offer) for offer in offers]
    best, offer = max(ranked, key=lambda entry: entry[0])
    return offer if best > 0 else None


def _most_exact(ranges: list[tuple[str, float]], offer: str) -> list[tuple[str, float]]:
    for wanted in (offer, offer.partition("/")[0] + "/*", "*/*"):
        if found := [entry for entry in ranges if entry[0] == wanted]:
            return found
    return []


def _range(part: str) -> tuple[str, float]:
    name, *parameters = (piece.strip() for piece in part.split(";"))
    for parameter in parameters:
        if parameter.startswith("q="):
            try:
                return name, float(parameter[2:])
            except ValueError:
                return name, 0.0
    return name, 1.0


def refuse_media_type(headers: Headers) -> None:
    given = headers.getlist("content-type")
    length = headers.get("content-length")
    if not given and "transfer-encoding" not in headers and length in (None, "0"):
        return
    name, _, parameters = (given[0] if len(given) == 1 else "").lower().partition(";")
    charset = parameters.strip().replace('"', "")
    if name.strip() != "application/json" or charset not in ("", "charset=utf-8"):
        said = ", ".join(given) or "nothing"
        error = InvalidArgument(f"the body must be application/json, not {said}", hint="send Content-Type: application/json")
        raise Refused(415, error, {"accept-post": "application/json"})
    if headers.get("content-encoding", "identity") != "identity":
        raise Refused(415, InvalidArgument("the body must not be compressed"), {"accept-encoding": "identity"})


def _too_large(limit: int) -> Refused:
    error = InvalidArgument(f"the body is larger than {limit / MIB:g} MiB", hint="put large things in files or models and name them")
    return Refused(413, error)  # no close: what still comes is read and dropped, or a reset would eat this reply
