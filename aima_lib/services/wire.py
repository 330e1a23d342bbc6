"""How AIMA talks to an engine: OpenAI's HTTP API with the engine's own key."""

from __future__ import annotations

import json
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import anyio

from aima_lib.errors import AimaError, FailedPrecondition, InvalidArgument, Unavailable
from aima_lib.infra import trace
from aima_lib.infra.pool import Line, Lost, Pool
from aima_lib.redact import unsaid

LONGEST_LINE = 32 << 20


class Form(dict[str, Any]):
    """A body that goes as multipart/form-data: texts, and files as (name, bytes)."""


def encoded(body: Mapping[str, Any]) -> tuple[bytes, str | None]:
    """A request's body as bytes, and its media type where that is not JSON."""
    if not isinstance(body, Form):
        return json.dumps(body, separators=(",", ":")).encode(), None
    boundary, parts = secrets.token_hex(16), list[bytes]()
    for name, value in body.items():
        file, data = value if isinstance(value, tuple) else (None, str(value).encode())
        kind = f'; filename="{file}"\r\nContent-Type: application/octet-stream' if file else ""
        parts += [f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"{kind}\r\n\r\n'.encode(), data, b"\r\n"]
    return b"".join([*parts, f"--{boundary}--\r\n".encode()]), f"multipart/form-data; boundary={boundary}"


@dataclass(frozen=True, slots=True)
class Address:
    """Where an engine is, what it is called, and how many kept connections it bears: llama.cpp has a thread for each, and few of them."""

    name: str
    base_url: str
    key: str
    lines: int = 1


class Wire:
    """The client of every engine."""

    def __init__(self) -> None:
        self._pool = Pool()

    async def close(self) -> None:
        """Let every idle connection go."""
        self._pool.close()

    async def get(self, address: Address, path: str, *, timeout: float, key: bool = True) -> tuple[int, Any]:
        """Status and JSON body of a GET. Raises Unavailable when nothing answers in time."""
        async with self._request("GET", address, path, None, timeout, key) as response:
            return response.status, parsed(await response.read())

    async def post(self, address: Address, path: str, body: Mapping[str, Any], *, timeout: float | None = None) -> Any:
        """JSON body of a POST. Raises AimaError for anything but 200."""
        async with self._request("POST", address, path, body, timeout, True) as response:
            answer = parsed(await response.read())
            if response.status != 200:
                raise translated(address, response.status, answer, body)
            return answer

    async def stream(self, address: Address, path: str, body: Mapping[str, Any]) -> AsyncGenerator[dict[str, Any], None]:
        """The events of a streamed POST, until [DONE]. Closing the iterator closes the connection, which frees the engine's slot.

        Raises:
            AimaError: the engine refused, or went away in the middle.
        """
        async with self._request("POST", address, path, body, None, True) as response:
            async for item in events(address, response, body):
                yield item

    def begin(self, address: Address, path: str, data: bytes, kind: str | None = None) -> Coroutine[Any, Any, Line]:
        """The engine's answer to a POST as it comes; `end` must follow. `kind`: the body's media type where it is not JSON. Raises Lost."""
        headers = trace.headers() | {"Authorization": f"Bearer {address.key}"}
        if kind is not None:
            headers["Content-Type"] = kind
        return self._pool.begin("POST", address.base_url, path, headers, data, address.lines)

    def end(self, line: Line) -> None:
        """Done with an answer: one that is left in its middle is cut off, which frees the engine's slot."""
        self._pool.end(line)

    def open(self, address: Address, path: str, body: Mapping[str, Any]) -> AbstractAsyncContextManager[Line]:
        """The engine's answer as it comes, for a face that passes bytes on. Leaving the block early closes the connection."""
        return self._request("POST", address, path, body, None, True)

    @asynccontextmanager
    async def _request(
        self, method: str, address: Address, path: str, body: Mapping[str, Any] | None, timeout: float | None, key: bool
    ) -> AsyncIterator[Line]:
        headers = trace.headers() | ({"Authorization": f"Bearer {address.key}"} if key else {})
        data = None if body is None else json.dumps(body, separators=(",", ":")).encode()
        try:
            with nullcontext() if timeout is None else anyio.fail_after(timeout):
                async with self._pool.ask(method, address.base_url, path, headers, data, address.lines) as answer:
                    yield answer
        except TimeoutError as error:
            raise Unavailable(f"{address.name} did not answer within {timeout:g} s") from error
        except Lost as error:
            raise Unavailable(f"{address.name} cannot be reached: {error}") from error


async def whole(address: Address, line: Line, request: Any) -> Any:
    """An answer's JSON body. Raises AimaError for anything but 200."""
    answer = parsed(await line.read())
    if line.status != 200:
        raise translated(address, line.status, answer, request)
    return answer


async def events(address: Address, line: Line, request: Any) -> AsyncGenerator[dict[str, Any], None]:
    """The events of an answer, until [DONE]. Raises AimaError when the engine refused, or ended in the middle."""
    if line.status != 200:
        raise translated(address, line.status, parsed(await line.read()), request)
    async for data in _events(line.pieces()):
        if data == b"[DONE]":
            return
        item = parsed(data)
        if "error" in item:
            raise translated(address, int(item["error"].get("code") or 500), item, request)
        yield item
    raise Unavailable(f"{address.name} ended its answer in the middle")


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


def parsed(body: bytes) -> Any:
    """What an engine said as JSON; what is none, as an error."""
    try:
        return json.loads(body)
    except ValueError:
        return {"error": {"message": body[:500].decode("utf-8", "replace") or "no words"}}


def translated(address: Address, status: int, answer: Any, request: Any = None) -> AimaError:
    """An engine's refusal as ours, without what it quotes of the request: errors are repeated in many places."""
    said = answer.get("error") or answer.get("detail") or {} if isinstance(answer, dict) else {}  # detail: FastAPI's own refusals
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
