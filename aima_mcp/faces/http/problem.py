"""Errors over HTTP: the AimaError's own object, as RFC 9457 wants it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from aima_lib.errors import AimaError, ResourceExhausted

MEDIA_TYPE = "application/problem+json"


class Refused(Exception):
    """A request that HTTP itself refuses with a status no AimaError has: 405, 406, 413, 415, 421, 431."""

    def __init__(self, status: int, error: AimaError, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(str(error))
        self.status, self.error, self.headers = status, error, dict(headers or {})


def status_of(error: AimaError) -> int:
    """The status of an error: its class's own, but 429 where time alone brings back what is used up."""
    return 429 if isinstance(error, ResourceExhausted) and error.retry_after is not None else error.http_status


def retry_of(error: AimaError) -> dict[str, str]:
    """The header that says when to ask again, where asking again may help."""
    if error.retry_after is not None:
        return {"retry-after": str(max(1, math.ceil(error.retry_after)))}
    return {"retry-after": "1"} if error.retryable else {}


def body_of(error: AimaError, status: int | None = None) -> dict[str, Any]:
    """The problem object: {type, title, status} and the error's code, message, retryable, hint, next, details."""
    if status not in (None, error.http_status, status_of(error)):  # HTTP's own refusal: no unit was asked, and the status says it all
        return {"type": "about:blank", "title": HTTPStatus(status).phrase, "status": status, **error.as_dict()}
    title = (type(error).__doc__ or type(error).__name__).strip().splitlines()[0].rstrip(".")
    return {"type": f"urn:aima:error:{error.code}", "title": title, "status": status or status_of(error), **error.as_dict()}
