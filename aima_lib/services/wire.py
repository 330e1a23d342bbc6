"""How AIMA talks to an engine: OpenAI's HTTP API with the engine's own key."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from aima_lib.errors import AimaError, FailedPrecondition, InvalidArgument, Unavailable
from aima_lib.infra import trace
from aima_lib.redact import unsaid

if TYPE_CHECKING:
    import aiohttp

CONNECT_SECONDS = 5.0
LONGEST_LINE = 32 << 20
LARGEST_ANSWER = 512 << 20


class Form(dict[str, Any]):
    """A body that goes as multipart/form-data: texts, and files as (name, bytes)."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where an engine is and what it is called."""

    name: str
    base_url: str
    key: str


class Wire:
    """The client of every engine. Opened by the first request."""

    def __init__(self) -> None:
        self._session: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        """Let every connection go."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def get(self, address: Address, path: str, *, timeout: float, key: bool = True) -> tuple[int, Any]:
        """Status and JSON body of a GET. Raises Unavailable when nothing answers in time."""
        async with self._request("GET", address, path, None, timeout, key) as response:
            return response.status, _parsed(await response.read())

    async def post(self, address: Address, path: str, body: Mapping[str, Any], *, timeout: float | None = None) -> Any:
        """JSON body of a POST. Raises AimaError for anything but 200."""
        async with self._request("POST", address, path, body, timeout, True) as response:
            answer = _parsed(await response.read())
            if response.status != 200:
                raise translated(address, response.status, answer, body)
            return answer

    async def fetch(self, address: Address, path: str, body: Mapping[str, Any]) -> tuple[Mapping[str, str], bytes]:
        """Headers and bytes of a POST that answers with a file. Raises AimaError for anything but 200."""
        async with self._request("POST", address, path, body, None, True) as response:
            if response.status != 200:
                raise translated(address, response.status, _parsed(await response.read()), body)
            parts, size = list[bytes](), 0
            async for part in response.content.iter_any():
                parts.append(part)
                size += len(part)
                if size > LARGEST_ANSWER:
                    raise Unavailable(f"{address.name} answered more than {LARGEST_ANSWER >> 20} MiB")
            return {name.lower(): value for name, value in response.headers.items()}, b"".join(parts)

    async def stream(self, address: Address, path: str, body: Mapping[str, Any]) -> AsyncGenerator[dict[str, Any], None]:
        """The events of a streamed POST, until [DONE]. Closing the iterator closes the connection, which frees the engine's slot.

        Raises:
            AimaError: the engine refused, or went away in the middle.
        """
        async with self._request("POST", address, path, body, None, True) as response:
            if response.status != 200:
                raise translated(address, response.status, _parsed(await response.read()), body)
            if response.content_type == "application/json":  # an engine that does not stream this gives all of it at once
                yield _parsed(await response.read())
                return
            async for data in _events(response.content.iter_any()):
                if data == b"[DONE]":
                    return
                item = _parsed(data)
                if "error" in item:
                    raise translated(address, int(item["error"].get("code") or 500), item, body)
                yield item
        raise Unavailable(f"{address.name} ended its answer in the middle")

    def open(self, address: Address, path: str, body: Mapping[str, Any]) -> AbstractAsyncContextManager[aiohttp.ClientResponse]:
        """The engine's answer as it comes, for a face that passes bytes on. Leaving the block early closes the connection."""
        return self._request("POST", address, path, body, None, True)

    @asynccontextmanager
    async def _request(
        self, method: str, address: Address, path: str, body: Mapping[str, Any] | None, timeout: float | None, key: bool
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        import aiohttp

        if self._session is None:
            # A connection each: engines close idle ones when they like, and a POST that meets such a close is lost. On loopback one costs
            # a tenth of a millisecond.
            self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0, force_close=True), trust_env=False)
        limits = aiohttp.ClientTimeout(total=timeout, sock_connect=CONNECT_SECONDS)
        headers = trace.headers() | ({"Authorization": f"Bearer {address.key}"} if key else {})
        try:
            sent: dict[str, Any] = {"data": _form(body)} if isinstance(body, Form) else {"json": body}
            response = await self._session.request(method, address.base_url + path, timeout=limits, headers=headers, **sent)
            try:
                yield response
            finally:
                if not response.content.at_eof():
                    response.close()  # not release: the engine must see that nobody listens any more
                response.release()
        except TimeoutError as error:
            raise Unavailable(f"{address.name} did not answer within {timeout or CONNECT_SECONDS:g} s") from error
        except (aiohttp.ClientError, ConnectionError) as error:
            raise Unavailable(f"{address.name} cannot be reached: {error or type(error).__name__}") from error


def _form(fields: Form) -> aiohttp.FormData:
    import aiohttp

    form = aiohttp.FormData()
    for name, value in fields.items():
        if isinstance(value, tuple):
            form.add_field(name, value[1], filename=value[0], content_type="application/octet-stream")
        else:
            form.add_field(name, value)
    return form


async def _events(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The data of each server-sent event: lines may end in LF or CRLF and be cut anywhere; comments and other fields are passed over."""
    rest, data = b"", list[bytes]()
    async for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        if len(rest) > LONGEST_LINE:
            raise Unavailable(f"the engine sent a line of more than {LONGEST_LINE >> 20} MiB")
        for line in lines:
            line = line.removesuffix(b"\r")
            if line.startswith(b"data:"):
                data.append(line[5:].removeprefix(b" "))
            elif not line and data:
                yield b"\n".join(data)
                data = []
    if data and not rest:
        yield b"\n".join(data)


def _parsed(body: bytes) -> Any:
    try:
        return json.loads(body)
    except ValueError:
        return {"error": {"message": body[:500].decode("utf-8", "replace") or "no words"}}


def translated(address: Address, status: int, answer: Any, request: Any = None) -> AimaError:
    """An engine's refusal as ours, without what it quotes of the request: errors are repeated in many places."""
    said = answer.get("error", {}) if isinstance(answer, dict) else {}
    said = said if isinstance(said, dict) else {"message": str(said)}
    message, kind = unsaid(str(said.get("message", f"HTTP {status}")), request), said.get("type")
    if kind == "exceed_context_size_error":
        figures = {"prompt_tokens": said.get("n_prompt_tokens"), "context_length": said.get("n_ctx")}
        return InvalidArgument(
            f"the prompt has {figures['prompt_tokens']} tokens and {address.name} holds {figures['context_length']}",
            hint="shorten the prompt, or serve the model with a larger options.context_length",
            details=figures,
        )
    if kind == "not_supported_error" or status in (404, 501) or "is not supported" in message:
        return FailedPrecondition(f"{address.name} cannot do this: {message}", details={"said": message})
    if status in (400, 413, 422):
        return InvalidArgument(f"{address.name} refused the request: {message}", details={"said": message})
    return Unavailable(f"{address.name} answered {status}: {message}", details={"said": message})
