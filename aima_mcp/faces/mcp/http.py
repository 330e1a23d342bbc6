"""MCP over streamable HTTP: the SDK's transport behind checks that leave nothing to guess.

Host and Origin are compared whole, a body is read before anything acts on it, and JSON that two parsers could read differently is
refused. `json_response` and `stateless` stay off: each would cost clients progress, cancellation or their subscriptions.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from functools import lru_cache
from typing import Any

from mcp.server.auth.middleware.bearer_auth import AuthenticatedUser
from mcp.server.auth.provider import AccessToken
from mcp.server.lowlevel import Server
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from mcp_types import INVALID_REQUEST
from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from aima_lib.door import Caller
from aima_lib.errors import InvalidArgument
from aima_mcp.faces.mcp.jsonrpc import Refused, read, read_message

BODY_BYTES = 4 * 1024 * 1024
_LOOPBACK = r"(?:localhost|127\.0\.0\.1|\[::1\])(?::[0-9]{1,5})?"
_HOST = re.compile(_LOOPBACK, re.IGNORECASE)
_ORIGIN = re.compile(f"https?://{_LOOPBACK}", re.IGNORECASE)


class _TooLarge(Exception):
    pass


class McpHttp:
    """An ASGI application for one path. Answers while its `lifespan` is open.

    `hosts` and `origins` are let in beside loopback: each as the header has it, port included.
    """

    def __init__(self, server: Server[Any], hosts: Collection[str] = (), origins: Collection[str] = ()) -> None:
        self._server = server
        self._hosts, self._origins = frozenset(hosts), frozenset(origins)
        self._manager: StreamableHTTPSessionManager | None = None

    @asynccontextmanager
    async def lifespan(self) -> AsyncIterator[None]:
        """Keep the sessions. The host application opens this: a mounted application's own lifespan never runs."""
        manager = StreamableHTTPSessionManager(self._server, max_request_body_size=BODY_BYTES)
        async with manager.run():
            self._manager = manager
            try:
                yield
            finally:
                self._manager = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            return
        refusal = self._stranger(Headers(scope=scope))
        if refusal is None and scope["method"] == "POST":
            refusal, receive = await _checked_body(scope, receive)
        if refusal is None and self._manager is None:
            refusal = _refuse(503, "the server is not up yet, or going down")
        if refusal is not None:
            await refusal(scope, receive, send)
            return
        assert self._manager is not None
        await self._manager.handle_request(_signed(scope), receive, send)

    def _stranger(self, headers: Headers) -> Response | None:
        """Refuse a request that a web page of somebody else's may have sent (DNS rebinding)."""
        host, origins = headers.getlist("host"), headers.getlist("origin")
        if len(host) != 1 or not (_HOST.fullmatch(host[0]) or host[0] in self._hosts):
            return _refuse(421, f"this server does not answer for the host {', '.join(host)!r}")
        if len(origins) > 1 or any(not (_ORIGIN.fullmatch(origin) or origin in self._origins) for origin in origins):
            return _refuse(403, f"pages of {', '.join(origins)!r} may not call this server")
        return None


def _signed(scope: Scope) -> Scope:
    """The request with its caller where the SDK looks for it: a session then answers to no other caller than the one that opened it."""
    caller = scope.get("state", {}).get("caller")
    if not isinstance(caller, Caller):
        return scope
    return {**scope, "user": _user(caller.name, caller.scopes)}


@lru_cache(maxsize=256)
def _user(name: str, scopes: frozenset[str]) -> AuthenticatedUser:
    return AuthenticatedUser(AccessToken(token="", client_id=name, scopes=sorted(scopes)))


async def _checked_body(scope: Scope, receive: Receive) -> tuple[Response | None, Receive]:
    """Read the body, and hand it on to be read again, or refuse it."""
    headers = Headers(scope=scope)
    kind, _, parameters = headers.get("content-type", "").partition(";")
    charset = parameters.strip().lower().removeprefix("charset=").strip('"')
    if kind.strip().lower() != "application/json" or charset not in ("", "utf-8"):
        return _refuse(415, f"the content type is application/json in UTF-8, not {headers.get('content-type')!r}"), receive
    try:
        body = await _whole(headers, receive)
        if body is None:
            return _refuse(400, "the client left before its body was whole"), receive
        value = read(body)
        if not (isinstance(value, dict) and isinstance(value.get("method"), str) and isinstance(value.get("params", {}), dict)):
            read_message(body)  # says what is wrong with it, and repeats none of it
    except _TooLarge:
        return _refuse(413, f"a message has at most {BODY_BYTES} bytes"), receive
    except Refused as refusal:
        return _answer(400, refusal), receive
    return None, _again(body, receive)


async def _whole(headers: Headers, receive: Receive) -> bytes | None:
    declared = headers.get("content-length", "0")
    if declared.isdecimal() and int(declared) > BODY_BYTES:
        raise _TooLarge
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return None
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > BODY_BYTES:
            raise _TooLarge
        if not message.get("more_body", False):
            return b"".join(parts)


def _again(body: bytes, receive: Receive) -> Receive:
    unread: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return unread.pop() if unread else await receive()

    return replay


def _refuse(status: int, reason: str) -> Response:
    return _answer(status, Refused(INVALID_REQUEST, InvalidArgument(reason)))


def _answer(status: int, refusal: Refused) -> Response:
    return Response(refusal.reply().model_dump_json(by_alias=True, exclude_unset=True), status, media_type="application/json")
