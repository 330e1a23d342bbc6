"""The door of another process: every call goes over HTTP to a host, with a key: over loopback with the owner's, from afar with another."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import httpx

from aima_lib.door import OWNER, Caller
from aima_lib.errors import AimaError, FailedPrecondition, Internal, InvalidArgument, Unauthenticated, Unavailable
from aima_lib.infra.home import Home
from aima_lib.infra.progress import Send
from aima_lib.registry import Registry

CONNECT_SECONDS = 5.0


class Attached:
    """A Door that leads to a host. Who the caller is, the key says; the `caller` arguments stay unused.

    home: whose host it is, when that is on this machine: the host is found again there when it comes back elsewhere, and without a key
        of its own the owner's is shown.

    Raises:
        InvalidArgument: the URL or the key cannot be one.
        Unauthenticated: there is no key to show.
    """

    def __init__(self, url: str, key: str | None = None, home: Home | None = None) -> None:
        self.registry = Registry.described()
        self.url, self._home, self._owns = url, home, key is None
        shown = home.key() if home is not None and key is None else key
        secure = _checked(url, shown)
        self._http = httpx.AsyncClient(
            base_url=url,
            headers={"Authorization": f"Bearer {shown}"},
            timeout=httpx.Timeout(None, connect=CONNECT_SECONDS),
            verify=secure,  # without TLS its context would cost 40 ms and never be used
            trust_env=home is None,  # on loopback a proxy of the environment has no business
            limits=httpx.Limits(max_connections=None),
        )

    async def caller(self) -> Caller:
        """Who the key says we are."""
        if self._owns:
            return OWNER
        said = await self.about()
        return Caller(said["name"], frozenset(said["scopes"]), None if said["models"] is None else frozenset(said["models"]))

    async def about(self) -> Mapping[str, Any]:
        """What the host says of the key that we show, and of what it keeps: name, scopes, models, profile, runs_kept_seconds."""
        said: Mapping[str, Any] = (await self._ask("GET", "/caller")).json()
        return said

    async def close(self) -> None:
        """Let the connections go."""
        await self._http.aclose()

    async def call(
        self,
        name: str,
        arguments: Mapping[str, Any] | None = None,
        *,
        caller: Caller = OWNER,  # noqa: ARG002
        send: Send | None = None,
        key: str | None = None,
    ) -> Mapping[str, Any]:
        """See Door.call."""
        headers = {"Idempotency-Key": key} if key else {}
        if send is None:
            return await self._post(name, arguments, headers)
        headers |= {"Accept": "text/event-stream"}
        async for kind, data in self._events("POST", _path(name), json=_object(arguments), headers=headers):
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
    ) -> Mapping[str, Any]:
        """See Door.start."""
        if name in self.registry and not self.registry[name].durable:
            raise FailedPrecondition(f"{name} is not a run: its result comes at once", hint="call it")
        run: Mapping[str, Any] = await self._post(name, arguments, {"Prefer": "respond-async"} | ({"Idempotency-Key": key} if key else {}))
        return run["run"]  # type: ignore[no-any-return]

    async def read(self, uri: str, *, caller: Caller = OWNER) -> Mapping[str, Any]:  # noqa: ARG002
        """See Door.read."""
        response = await self._ask("GET", "/resources", params={"uri": uri})
        return {"uri": uri, "mimeType": response.headers["content-type"].partition(";")[0], "content": response.json()}

    async def follow(
        self,
        after: int | None = None,
        types: Collection[str] = (),
        *,
        caller: Caller = OWNER,  # noqa: ARG002
    ) -> AsyncIterator[Mapping[str, Any]]:
        """See Door.follow."""
        parameters = {"types": ",".join(types)} | ({} if after is None else {"after": str(after)})
        async for _, data in self._events("GET", "/events", params=parameters):
            yield data

    async def _post(self, name: str, arguments: Mapping[str, Any] | None, headers: Mapping[str, str]) -> Mapping[str, Any]:
        response = await self._ask("POST", _path(name), json=_object(arguments), headers=dict(headers))
        body: Mapping[str, Any] = response.json()
        return body

    async def _ask(self, method: str, path: str, **request: Any) -> httpx.Response:
        async with self._sent(method, path, **request) as response:
            await response.aread()
        return response

    async def _events(self, method: str, path: str, **request: Any) -> AsyncIterator[tuple[str, Any]]:
        async with self._sent(method, path, **request) as response:
            kind, data = "message", []
            async for line in _lines(response.aiter_text()):
                field, _, value = line.partition(": ")
                if field == "event":
                    kind = value
                elif field == "data":
                    data.append(value)
                elif not line and data:
                    yield kind, json.loads("\n".join(data))
                    kind, data = "message", []

    @asynccontextmanager
    async def _sent(self, method: str, path: str, **request: Any) -> AsyncIterator[httpx.Response]:
        """The response to a request, its error raised. A host that came back elsewhere is found again, as nothing was sent to it yet."""
        async with AsyncExitStack() as stack:
            try:
                try:
                    response = await stack.enter_async_context(self._http.stream(method, path, **request))
                except httpx.ConnectError:
                    if not self._moved():
                        raise
                    response = await stack.enter_async_context(self._http.stream(method, path, **request))
                if response.is_error:
                    await response.aread()
                    raise _error_in(response)
                yield response
            except httpx.HTTPError as error:
                raise self._away(error) from error

    def _moved(self) -> bool:
        found = self._home.host() if self._home else None
        if found is None or found.url is None or found.url == self.url:
            return False
        self.url, self._http.base_url = found.url, httpx.URL(found.url)
        return True

    def _away(self, error: httpx.HTTPError) -> Unavailable:
        hint = "aima start" if self._home else "AIMA_URL names it; see whether it runs and can be reached"
        return Unavailable(f"the host at {self.url} does not answer: {error or type(error).__name__}", hint=hint)


def _checked(url: str, key: str | None) -> bool:
    """Whether the URL is one of TLS."""
    try:
        parts = urlsplit(url)
        fit = parts.scheme in ("http", "https") and bool(parts.hostname) and not parts.username and not parts.query and parts.port != 0
    except ValueError:
        fit = False
    if not fit:
        raise InvalidArgument(f"{url!r} is no URL of a host", hint="write it like https://aima.example.org, or http://127.0.0.1:8484")
    if not key:
        raise Unauthenticated(f"a key is needed for {url}", hint="set AIMA_KEY, or give key=; key.create makes one")
    if not (key.isascii() and key.isprintable() and " " not in key):
        raise InvalidArgument("the key holds what no key holds", hint="copy it again, whole and alone")
    return parts.scheme == "https"


async def _lines(texts: AsyncIterator[str]) -> AsyncIterator[str]:
    """Lines that end in LF and nothing else: a text may hold what `splitlines` also takes for the end of one, such as U+2028."""
    rest = ""
    async for text in texts:
        *lines, rest = (rest + text).split("\n")
        for line in lines:
            yield line


def _path(name: str) -> str:
    return "/units/" + name.replace(".", "/", 1)


def _object(arguments: Mapping[str, Any] | None) -> Any:
    return {} if arguments is None else arguments


def _error_in(response: httpx.Response) -> AimaError:
    try:
        return AimaError.from_dict(response.json())
    except (ValueError, AttributeError):
        return Internal(f"the host answered {response.status_code} without an error of ours: {response.text[:200]}")
