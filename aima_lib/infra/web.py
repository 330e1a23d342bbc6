"""Requests to places outside this machine: short connect time, bounded answers, and errors that say what to do."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from aima_lib.errors import AimaError, FailedPrecondition, InvalidArgument, NotFound, PermissionDenied, Unavailable

if TYPE_CHECKING:
    import httpx

LARGEST_PAGE = 64 << 20


class Again(Unavailable):
    """Worth another try at once; `wait_seconds` is what the server asked for."""

    wait_seconds: float | None = None


@dataclass(slots=True)
class Page:
    """A whole answer."""

    url: str
    content_type: str
    body: bytes


class Web:
    """One lazily opened client: httpx takes longer to import than most units take to run."""

    def __init__(self, *, connect_seconds: float = 10, stall_seconds: float = 30) -> None:
        self._timeouts = (connect_seconds, stall_seconds)
        self._client: httpx.AsyncClient | None = None

    @asynccontextmanager
    async def stream(self, url: str, headers: Mapping[str, str]) -> AsyncIterator[httpx.Response]:
        """The response to a GET, its body not read yet. Redirects are followed; credentials go to the first host only.

        Raises:
            Again: the network or the server failed in a way that may pass.
            AimaError: the server refused; the class says how.
        """
        import httpx

        client = self._open()
        try:
            async with client.stream("GET", url, headers=dict(headers)) as response:
                if response.status_code >= 400 and response.status_code != 416:
                    raise refusal(response.status_code, url, response.headers)
                yield response
        except (httpx.InvalidURL, httpx.UnsupportedProtocol, httpx.TooManyRedirects) as error:
            raise InvalidArgument(f"{shown(url)}: {error}") from error
        except httpx.TimeoutException as error:
            waited = "no connection in time" if isinstance(error, httpx.ConnectTimeout) else f"no byte for {self._timeouts[1]:g} s"
            raise Again(f"{shown(url)}: {waited}", hint="check the network, or name another mirror") from error
        except httpx.HTTPError as error:
            what = str(error) or type(error).__name__
            raise Again(f"{shown(url)} could not be read: {what}", hint="check the network, or name another mirror") from error

    async def get(self, url: str, headers: Mapping[str, str] | None = None) -> Page:
        """A whole page of bounded size; raises as `stream` does."""
        body = bytearray()
        async with self.stream(url, headers or {}) as response:
            async for chunk in response.aiter_bytes():
                body += chunk
                if len(body) > LARGEST_PAGE:
                    raise Unavailable(f"{shown(url)} answers more than {LARGEST_PAGE} bytes", hint="is it the right endpoint?")
            return Page(str(response.url), response.headers.get("content-type", ""), bytes(body))

    async def close(self) -> None:
        """Give the connections back."""
        if self._client is not None:
            client, self._client = self._client, None
            await client.aclose()

    def _open(self) -> httpx.AsyncClient:
        import httpx

        if self._client is None:
            connect, stall = self._timeouts
            limits = httpx.Limits(max_connections=16, max_keepalive_connections=4)
            timeout = httpx.Timeout(stall, connect=connect, pool=None)
            self._client = httpx.AsyncClient(follow_redirects=True, timeout=timeout, limits=limits)
        return self._client


def refusal(status: int, url: str, headers: Mapping[str, str]) -> AimaError:
    """What an HTTP error status means."""
    where = shown(url)
    if status == 401:
        return PermissionDenied(
            f"{where} wants a token (HTTP 401), or does not exist", hint="set the source's token in the environment of the host"
        )
    if status == 403:
        return PermissionDenied(f"{where} refuses this token (HTTP 403)", hint="ask for access, or accept the model's licence on its page")
    if status in (404, 410):
        return NotFound(f"{where} does not exist (HTTP {status})", hint="check repo, revision and file")
    if status in (408, 425, 429) or status >= 500:
        why = "limits how often it may be asked" if status == 429 else "failed"
        error = Again(f"{where} {why} (HTTP {status})", hint="wait a little, or name another mirror", details={"status": status})
        asked = headers.get("retry-after", "")
        error.wait_seconds = float(asked) if asked.isdigit() else None
        return error
    return FailedPrecondition(f"{where} answers HTTP {status}", details={"status": status})


def shown(url: str) -> str:
    """`url` without credentials and query: either may hold a secret."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def origin(url: str) -> tuple[str, str]:
    """Scheme and host with port: what a credential belongs to."""
    parts = urlsplit(url)
    return parts.scheme, parts.netloc.rpartition("@")[2]
