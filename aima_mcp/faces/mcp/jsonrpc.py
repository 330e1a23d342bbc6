"""JSON-RPC messages, taken strictly: what cannot be taken is refused with a reply that says why.

The SDK's transports take duplicate keys and lone surrogates, and leave a line they cannot parse without any reply. Here each such
message is answered, under its own id wherever that can be told.
"""

from __future__ import annotations

import re
from typing import Any

from mcp_types import (
    INVALID_REQUEST,
    PARSE_ERROR,
    ErrorData,
    JSONRPCError,
    JSONRPCMessage,
    JSONRPCRequest,
    RequestId,
    jsonrpc_message_adapter,
)
from pydantic import ValidationError

from aima_lib.errors import AimaError, InvalidArgument
from aima_mcp.faces import strict_json

HEAD_BYTES = 65_536
_TOKEN = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"|[\[\]{}:,]|[^\s"\[\]{}:,]+', re.DOTALL)
_STEP = {"[": 1, "{": 1, "]": -1, "}": -1}


class Refused(Exception):
    """A message that is not taken: the JSON-RPC code, the reason, and the id of the request where it can be told."""

    def __init__(self, code: int, reason: AimaError, id: RequestId | None = None) -> None:
        super().__init__(str(reason))
        self.code, self.reason, self.id = code, reason, id

    def reply(self) -> JSONRPCError:
        """What the sender is told: a JSON-RPC error whose data is AIMA's own error object."""
        error = ErrorData(code=self.code, message=str(self.reason), data=self.reason.as_dict())
        return JSONRPCError(jsonrpc="2.0", id=self.id, error=error)


def read(raw: bytes) -> Any:
    """The JSON value in `raw`. Raises Refused for all that strict_json refuses."""
    try:
        return strict_json.read(raw)
    except InvalidArgument as error:
        raise Refused(PARSE_ERROR, error, id_in(raw)) from None


def read_message(raw: bytes) -> JSONRPCMessage:
    """The JSON-RPC message in `raw`.

    Raises:
        Refused: as `read`, or the value is no JSON-RPC message.
    """
    value = read(raw)
    known = _as_id(value.get("id")) if isinstance(value, dict) else None
    try:
        message = jsonrpc_message_adapter.validate_python(value, by_name=False)
    except ValidationError:
        what = "a batch" if isinstance(value, list) else "no JSON-RPC 2.0 message"
        reason = InvalidArgument(f"this is {what}", hint="send one request, notification or response")
        raise Refused(INVALID_REQUEST, reason, known) from None
    if "method" in value and "id" in value and not isinstance(message, JSONRPCRequest):
        raise Refused(INVALID_REQUEST, InvalidArgument("the id of a request is a string or an integer"), known)
    return message


def id_in(raw: bytes) -> RequestId | None:
    """The request id in a message that cannot be taken as a whole, when its head names exactly one."""
    depth, before, last = 0, "", ""
    found: list[str] = []
    for match in _TOKEN.finditer(raw[:HEAD_BYTES].decode("utf-8", "replace")):
        token = match.group()
        if depth == 1 and last == ":" and before == '"id"':
            found.append(token)
        depth += _STEP.get(token, 0)
        before, last = last, token
    if len(found) != 1:
        return None
    try:
        return _as_id(strict_json.read(found[0].encode()))
    except InvalidArgument:
        return None


def _as_id(value: Any) -> RequestId | None:
    return value if isinstance(value, int | str) and not isinstance(value, bool) else None
