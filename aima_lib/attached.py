"""The door of another process: every call goes over HTTP to a host, with a key: over loopback with the owner's, from afar with another."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator, Collection, Mapping
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode, urlsplit

from aima_lib.door import AGENT, OWNER, Caller
from aima_lib.errors import AimaError, FailedPrecondition, Internal, InvalidArgument, Unauthenticated, Unavailable
from aima_lib.infra import trace
from aima_lib.infra.home import Home
from aima_lib.infra.http1 import Answer, Broken, Http1, Unreached
from aima_lib.infra.progress import Send
from aima_lib.infra.stream import Connect
from aima_lib.registry import Registry

if TYPE_CHECKING:
    from aima_lib.infra.proxy import Proxy

JSON, EVENTS = "application/json", "text/event-stream"


class Attached:
    """A Door that leads to a host. Who the caller is, the key says; the `caller` arguments stay unused.

    home: whose host it is, when that is on this machine: the host is found again there when it comes back elsewhere, and without a key
        of its own the owner's is shown.
    agent: with the owner's key, come as AGENT all the same.

    Raises:
        InvalidArgument: the URL or the key cannot be one.
        Unauthenticated: there is no key to show.
    """

    def __init__(
        self, url: str, key: str | None = None, home: Home | None = None, *, agent: bool = False, connect: Connect | None = None
    ) -> None:
        self._home, self._owns, self._agent = home, key is None, agent
        shown = home.key() if home is not None and key is None else key
        _refuse_wrong(url, shown)
        self._http = Http1(
            url,
            connect or _looped(),
            headers=[("Authorization", f"Bearer {shown}"), *([("Aima-Caller", AGENT.name)] if agent and key is None else [])],
            proxy=_proxy(url) if home is None else None,  # on loopback a proxy of the environment has no business
        )

    @cached_property
    def registry(self) -> Registry:
        """Every unit, unbound. Read when asked for: most calls ask for none."""
        return Registry.described()

    @property
    def url(self) -> str:
        """Where the host is."""
        return self._http.url

    @property
    def store(self) -> Path | None:
        """The host's store, where it is on this machine and we come as its owner."""
        return self._home.path / "aima.db" if self._home is not None and self._owns else None

    async def caller(self) -> Caller:
        """Who the key says we are."""
        if self._owns:
            return AGENT if self._agent else OWNER
        said = await self.about()
        return Caller(said["name"], frozenset(said["scopes"]), None if said["models"] is None else frozenset(said["models"]))

    async def about(self) -> Mapping[str, Any]:
        """What the host says of the key that we show, and of what it keeps: name, scopes, models, profile, runs_kept_seconds."""
        said: Mapping[str, Any] = await self._json("GET", "/caller")
        return said

    async def close(self) -> None:
        """Let the connections go."""
        self._http.close()

    async def call(
        self,
        name: str,
        arguments: Mapping[str, Any] | None = None,
        *,
        caller: Caller = OWNER,  # noqa: ARG002
        send: Send | None = None,
        key: str | None = None,
        token: str | None = None,
    ) -> Mapping[str, Any]:
        """See Door.call."""
        headers = _headers(key, token)
        if send is None:
            return await self._post(name, arguments, headers)
        async with aclosing(self._events("POST", _path(name), _body(name, arguments), headers)) as events:
            async for kind, data in events:
                if kind == "item":
                    await send(data)
                elif kind == "result":
                    result: Mapping[str, Any] = data
                    return result
                elif kind == "error":
                    raise AimaError.from_dict(data)
        raise Unavailable(f"the host ended during {name}", hint="call it again; a durable call goes on, see run.list")

    async def start(
        self,
        name: str,
        arguments: Mapping[str, Any] | None = None,
        *,
        caller: Caller = OWNER,  # noqa: ARG002
        key: str | None = None,
        token: str | None = None,
    ) -> Mapping[str, Any]:
        """See Door.start."""
        if name in self.registry and not self.registry[name].durable:
            raise FailedPrecondition(f"{name} is not a run: its result comes at once", hint="call it")
        headers = {"Prefer": "respond-async"} | _headers(key, token)
        return (await self._post(name, arguments, headers))["run"]  # type: ignore[no-any-return]

    async def plan(
        self,
        name: str,
        arguments: Mapping[str, Any] | None = None,
        *,
        caller: Caller = OWNER,  # noqa: ARG002
    ) -> Mapping[str, Any]:
        """See Door.plan."""
        if name in self.registry and self.registry[name].kind != "command":
            raise FailedPrecondition(f"{name} changes nothing: there is nothing to plan", hint="call it")
        return await self._post(name, arguments, {"Aima-Plan": "true"})

    async def read(self, uri: str, *, caller: Caller = OWNER) -> Mapping[str, Any]:  # noqa: ARG002
        """See Door.read."""
        async with self._asked("GET", _query("/resources", {"uri": uri}), None, {"Accept": JSON}) as answer:
            return {"uri": uri, "mimeType": answer.headers.get("content-type", JSON).partition(";")[0], "content": await _read(answer)}

    async def follow(
        self,
        after: int | None = None,
        types: Collection[str] = (),
        *,
        caller: Caller = OWNER,  # noqa: ARG002
    ) -> AsyncIterator[Mapping[str, Any]]:
        """See Door.follow."""
        parameters = {"types": ",".join(types)} | ({} if after is None else {"after": str(after)})
        async with aclosing(self._events("GET", _query("/events", parameters), None, {})) as events:
            async for _, data in events:
                yield data

    async def _post(self, name: str, arguments: Mapping[str, Any] | None, headers: Mapping[str, str]) -> Mapping[str, Any]:
        answer: Mapping[str, Any] = await self._json("POST", _path(name), _body(name, arguments), headers)
        return answer

    async def _json(self, method: str, target: str, body: bytes | None = None, headers: Mapping[str, str] | None = None) -> Any:
        async with self._asked(method, target, body, {"Accept": JSON, **(headers or {})}) as answer:
            return await _read(answer)

    async def _events(
        self, method: str, target: str, body: bytes | None, headers: Mapping[str, str]
    ) -> AsyncGenerator[tuple[str, Any], None]:
        async with self._asked(method, target, body, {"Accept": EVENTS, **headers}) as answer:
            kind, data = "message", []
            async for line in _lines(aiter(answer)):
                field, _, value = line.partition(b": ")
                if field == b"event":
                    kind = value.decode("utf-8", "replace")
                elif field == b"data":
                    data.append(value)
                elif not line and data:
                    yield kind, json.loads(b"\n".join(data))
                    kind, data = "message", []

    @asynccontextmanager
    async def _asked(self, method: str, target: str, body: bytes | None, headers: Mapping[str, str]) -> AsyncIterator[Answer]:
        """The answer to a request, its error raised. A host that came back elsewhere is found again, as nothing was sent to it yet."""
        headers = {**trace.headers(), **headers}
        fields = [("Content-Type", JSON), *headers.items()] if body is not None else [*headers.items()]
        async with AsyncExitStack() as stack:
            try:
                try:
                    answer = await stack.enter_async_context(self._http.ask(method, target, fields, body))
                except Unreached:
                    if not self._moved():
                        raise
                    answer = await stack.enter_async_context(self._http.ask(method, target, fields, body))
                if answer.status >= 300:
                    raise _error_in(answer.status, await answer.read())
                yield answer
            except Broken as error:
                raise self._away(error) from error

    def _moved(self) -> bool:
        found = self._home.host() if self._home else None
        if found is None or found.url is None or found.url == self.url:
            return False
        self._http.url = found.url
        return True

    def _away(self, error: Broken) -> Unavailable:
        hint = "aima start" if self._home else "AIMA_URL names it; see whether it runs and can be reached"
        return Unavailable(f"the host at {self.url} does not answer: {error}", hint=hint)


def _looped() -> Connect:
    from aima_lib.infra.loop_stream import looped  # a command that blocks has no loop, and does without its import

    return looped


def _proxy(url: str) -> Proxy | None:
    from aima_lib.infra.proxy import proxy_for

    return proxy_for(url)


def _refuse_wrong(url: str, key: str | None) -> None:
    try:
        parts = urlsplit(url)
        fit = parts.scheme in ("http", "https") and _is_name(parts.hostname) and not parts.username and not parts.query and parts.port != 0
    except ValueError:
        fit = False
    if not fit:
        raise InvalidArgument(f"{url!r} is no URL of a host", hint="write it like https://aima.example.org, or http://127.0.0.1:8484")
    if not key:
        raise Unauthenticated(f"a key is needed for {url}", hint="set AIMA_KEY, or give key=; key.create makes one")
    if not (key.isascii() and key.isprintable() and " " not in key):
        raise InvalidArgument("the key holds what no key holds", hint="copy it again, whole and alone")


def _is_name(host: str | None) -> bool:
    """Whether a host can be called so. Raises ValueError where its letters cannot be in a name."""
    return bool(host) and all(len(label if label.isascii() else label.encode("idna")) < 64 for label in str(host).split("."))


async def _lines(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Lines that end in LF and nothing else: a text may hold what `splitlines` also takes for the end of one, such as U+2028."""
    rest: list[bytes] = []
    async for piece in pieces:
        first, *more = piece.split(b"\n")
        rest.append(first)
        if more:
            yield b"".join(rest)
            *whole, last = more
            for line in whole:
                yield line
            rest = [last]


def _path(name: str) -> str:
    return "/units/" + quote(name.replace(".", "/", 1), errors="replace")


def _query(path: str, parameters: Mapping[str, str]) -> str:
    return f"{path}?{urlencode(parameters, errors='surrogatepass')}"


def _body(name: str, arguments: Mapping[str, Any] | None) -> bytes:
    try:
        return json.dumps({} if arguments is None else arguments, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()
    except (ValueError, TypeError, RecursionError) as error:
        raise InvalidArgument(f"{name}: the arguments are no JSON: {error}") from error


def _headers(key: str | None, token: str | None) -> dict[str, str]:
    given = {"Idempotency-Key": key, "Aima-Token": token}
    for name, text in given.items():
        if text and not (text.isascii() and text.isprintable()):
            raise InvalidArgument(f"{name}: printable ASCII characters only")
    return {name: text for name, text in given.items() if text}


async def _read(answer: Answer) -> Any:
    body = await answer.read()
    try:
        return json.loads(body)
    except ValueError as error:
        raise Internal(f"the host answered with what is no JSON: {_shown(body)}") from error


def _error_in(status: int, body: bytes) -> AimaError:
    try:
        said = json.loads(body)
    except ValueError:
        said = None
    if isinstance(said, dict) and said.get("code"):
        return AimaError.from_dict(said)
    kind = Unavailable if status in (502, 503, 504) else Internal  # a proxy before the host, not the host
    return kind(f"the host answered {status} without an error of ours: {_shown(body)}")


def _shown(body: bytes) -> str:
    return body[:200].decode("utf-8", "replace")
