"""One short question to the host of a home, without the weight of an HTTP client library."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from aima_lib.errors import AimaError, FailedPrecondition, Internal, Unavailable
from aima_lib.infra.home import Home, Host
from aima_lib.infra.http1 import Broken, Http1
from aima_lib.infra.stream import blocking, driven


def ask(home: Home, host: Host, method: str, path: str, body: Mapping[str, Any] | None = None, *, seconds: float = 5.0) -> Any:
    """The JSON the host answers with.

    Raises:
        AimaError: what the host said, Unavailable when it said nothing, FailedPrecondition when it does not listen.
    """
    if host.url is None:
        raise FailedPrecondition(
            f"{home.path} is hosted by process {host.pid}, which does not listen",
            hint="close the program that embeds it, or run `aima start` before it next time",
            details={"pid": host.pid},
        )
    try:
        status, text = driven(_asked(host.url, home.key(), method, path, None if body is None else json.dumps(body).encode(), seconds))
    except Broken as error:
        raise Unavailable(f"the host (process {host.pid}, {host.url}) does not answer: {error}", hint="aima status") from error
    return _understood(status, text)


async def _asked(url: str, key: str, method: str, path: str, body: bytes | None, seconds: float) -> tuple[int, bytes]:
    http = Http1(url, blocking(seconds), headers=[("Authorization", f"Bearer {key}"), ("Content-Type", "application/json")])
    try:
        async with http.ask(method, path, (), body) as answer:
            return answer.status, await answer.read()
    finally:
        http.close()


def _understood(status: int, text: bytes) -> Any:
    try:
        answer = json.loads(text or b"{}")
    except ValueError as error:
        raise Internal(f"the host answered {status} with what is no JSON: {text[:200]!r}") from error
    if status >= 400:
        raise AimaError.from_dict(answer)
    return answer
