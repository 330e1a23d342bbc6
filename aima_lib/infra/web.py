"""Pages and streams from elsewhere: bounded, and with errors that say what to do. The way there is `egress`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import anyio

from aima_lib.errors import AimaError, FailedPrecondition, NotFound, PermissionDenied, Unavailable
from aima_lib.infra.egress import Again, Egress, Rest
from aima_lib.infra.places import shown

if TYPE_CHECKING:
    from aima_lib.infra.egress import Response

LARGEST_PAGE, PAGE_SECONDS = 64 << 20, 300
SECRETS = {"unit": "secret.list", "arguments": {}}


@dataclass(slots=True)
class Page:
    """A whole answer."""

    url: str
    content_type: str
    body: bytes


class Challenged(PermissionDenied):
    """The server wants to know who asks; `challenge` is its WWW-Authenticate."""

    challenge = ""


class Web:
    """What sources and downloads ask."""

    def __init__(self, egress: Egress) -> None:
        self._egress = egress

    @asynccontextmanager
    async def stream(self, url: str, headers: Mapping[str, str]) -> AsyncIterator[Response]:
        """The response to a GET, its body not read yet.

        Raises:
            Again: the network or the server failed in a way that may pass.
            AimaError: the place may not be reached, or the server refused; the class says how.
        """
        async with self._egress.open(url, headers) as response:
            if response.status_code >= 300 and response.status_code != 416:
                raise refusal(response.status_code, url, response.headers)
            yield response

    def body(self, response: Response) -> AsyncIterator[bytes | Rest]:
        """The body of what `stream` gave, as it comes: see Egress.body."""
        return self._egress.body(response)

    async def get(self, url: str, headers: Mapping[str, str] | None = None, most: int = LARGEST_PAGE) -> Page:
        """A whole page of bounded size, in bounded time; raises as `stream` does."""
        body = bytearray()
        try:
            with anyio.fail_after(PAGE_SECONDS):
                async with self.stream(url, headers or {}) as response:
                    if response.status_code == 416:
                        raise refusal(416, url, response.headers)
                    async for chunk in response.aiter_bytes():
                        body += chunk
                        if len(body) > most:
                            raise Unavailable(f"{shown(url)} answers more than {most} bytes", hint="is it the right endpoint?")
                    return Page(str(response.url), response.headers.get("content-type", ""), bytes(body))
        except TimeoutError as error:
            raise Again(f"{shown(url)} takes more than {PAGE_SECONDS} s for a page", hint="name another mirror") from error

    async def close(self) -> None:
        """Give the connections back."""
        await self._egress.close()


def refusal(status: int, url: str, headers: Mapping[str, str]) -> AimaError:
    """What an HTTP error status means."""
    where, told = shown(url), {"status": status}
    if status == 401:
        hint = "put the source's token (`aima secret put`), or set it in the environment of the host"
        denied = Challenged(f"{where} wants a token (HTTP 401), or does not exist", hint=hint, next=[SECRETS], details=told)
        denied.challenge = headers.get("www-authenticate", "")
        return denied
    if status == 403:
        hint = "ask for access, or accept the model's licence on its page, with the account of the token"
        return PermissionDenied(f"{where} refuses this token (HTTP 403)", hint=hint, next=[SECRETS], details=told)
    if status in (404, 410):
        return NotFound(f"{where} does not exist (HTTP {status})", hint="check repo, revision and file", details=told)
    if status in (408, 425, 429) or status >= 500:
        why = "limits how often it may be asked" if status == 429 else "failed"
        asked = headers.get("retry-after", "")
        wait = float(asked) if asked.isdigit() else None
        hint = "wait a little, or name another mirror" if wait is None else f"ask again in {wait:.0f} s, or name another mirror"
        error = Again(f"{where} {why} (HTTP {status})", hint=hint, details=told | ({"retry_after_seconds": wait} if wait else {}))
        error.wait_seconds = wait
        return error
    if status == 416:
        return Unavailable(f"{where} does not serve the range it was asked for (HTTP 416)", hint="name another mirror", details=told)
    return FailedPrecondition(f"{where} answers HTTP {status}", hint="is it the right endpoint?", details=told)
