"""Who may come in: requests that name this host, from pages of this machine, with a key."""

from __future__ import annotations

import ipaddress
import math
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers

from aima_lib.door import AGENT, OWNER, Caller
from aima_lib.errors import AimaError, InvalidArgument, PermissionDenied, Unauthenticated
from aima_lib.infra import trace
from aima_lib.services.keys import KeyService
from aima_lib.services.oauth import Bearer, OAuth, is_token
from aima_mcp.faces.http.exchange import EVERY, Exchange, Raw
from aima_mcp.faces.http.problem import Refused, retry_of

HEAD_LIMIT = 32 << 10
WILDCARDS = ("0.0.0.0", "::", "")
CHALLENGE = 'Bearer realm="aima"'
METADATA = "/.well-known/oauth-protected-resource"
KNOWN_SECONDS, JSON = 1.0, "application/json"
METHODS = "GET, HEAD, POST, DELETE, OPTIONS"
ASKED = (
    "authorization, content-type, accept, aima-plan, aima-token, idempotency-key, last-event-id, prefer, x-api-key, anthropic-version, "
    "traceparent, tracestate, baggage"
)
SHOWN = b"location, www-authenticate, mcp-session-id, mcp-protocol-version, x-request-id, request-id, retry-after, preference-applied"
LISTED: Raw = [(b"access-control-expose-headers", SHOWN), (b"vary", b"origin")]


@dataclass(frozen=True, slots=True)
class Visit:
    """Who came in with a head, until when (on the loop's clock), in which trace, the headers of every reply, and whether it has JSON."""

    caller: Caller
    deadline: float
    trace: Mapping[str, str]
    extra: Raw
    is_json: bool


class Entrance:
    """The checks before any face.

    bound: the address the host listens on. settings: `[server]` of config.toml. oauth: judges tokens, where an issuer is configured.
    """

    def __init__(self, keys: KeyService, bound: str, settings: Mapping[str, Any], oauth: OAuth | None = None) -> None:
        self._keys, self._oauth = keys, oauth
        self._open, self._origins = bound in WILDCARDS, frozenset(settings["allowed_origins"])
        self._names = {"localhost", bound.lower(), *map(str.lower, settings["allowed_hosts"])}
        self._names |= {socket.gethostname().lower()} if self._open else set()

    def known(self, exchange: Exchange) -> Visit | None:
        """The visit of the request before on this connection, if its head was the same but for the body's length: for a second, or until
        a key is taken back."""
        found = exchange.cycle.kept.get("visit") if exchange.cycle is not None else None
        if found is None:
            return None
        head, era, until, visit = found
        same = era == self._keys.era and time.monotonic() < until and head == _head(exchange)
        return visit if same else None

    async def visit(self, exchange: Exchange, *, keyless: bool = False) -> Visit:
        """Let a request in whose head `check` passed. Raises as `caller`."""
        headers, era = exchange.headers, self._keys.era
        found = Bearer(OWNER, math.inf) if keyless else await self.caller(headers)
        is_json = headers.getlist("content-type") == [JSON] and "content-encoding" not in headers
        visit = Visit(found.caller, found.deadline, trace.read(headers), exchange.extra, is_json)
        if exchange.cycle is not None and not keyless and "transfer-encoding" not in headers:
            exchange.cycle.kept["visit"] = _head(exchange), era, time.monotonic() + KNOWN_SECONDS, visit
        return visit

    def check(self, headers: Headers) -> Raw:
        """The headers of every reply to it: those that a page which config.toml lists needs to read it, too.

        Raises:
            Refused: the head is too large or ambiguous, its Host not ours, its Origin neither ours nor listed.
        """
        if sum(len(name) + len(value) for name, value in headers.raw) > HEAD_LIMIT:
            raise Refused(431, InvalidArgument(f"the head is larger than {HEAD_LIMIT >> 10} KiB"), {"connection": "close"})
        if "transfer-encoding" in headers and "content-length" in headers:
            raise Refused(400, InvalidArgument("two lengths: Content-Length and Transfer-Encoding"), {"connection": "close"})
        hosts = headers.getlist("host")
        if len(hosts) != 1 or not self._is_ours(hosts[0]):
            said = ", ".join(hosts) or "nothing"
            hint = "use localhost, the address it was told to bind, or a name of [server] allowed_hosts"
            raise Refused(421, PermissionDenied(f"this host is not called {said[:200]}", hint=hint))
        for origin in headers.getlist("origin"):
            if origin not in self._origins and origin.lower() not in (f"http://{hosts[0].lower()}", f"https://{hosts[0].lower()}"):
                hint = "[server] allowed_origins in config.toml lists those that may"
                raise Refused(403, PermissionDenied(f"pages of {origin[:200]} may not call this host", hint=hint))
        listed = headers.get("origin")
        if listed is None or listed not in self._origins:
            return EVERY
        return [*EVERY, (b"access-control-allow-origin", listed.encode("latin-1")), *LISTED]

    def preflight(self, headers: Headers) -> Mapping[str, str]:
        """The answer to a browser that asks before it calls, for such a page."""
        asked = headers.get("access-control-request-headers", ASKED)
        allowed = {"access-control-allow-methods": METHODS, "access-control-allow-headers": asked, "access-control-max-age": "600"}
        return allowed if headers.get("origin") in self._origins else {}

    async def caller(self, headers: Headers) -> Bearer:
        """Who asks, by the key or the token, and until when. Whoever has the owner's key may come as the agent it works for.

        Raises:
            Refused: 401, or 403 for a token without any scope of ours; the header says where tokens come from.
            Unavailable: the issuer of the token does not answer.
        """
        keys = {*(bearer(value) for value in headers.getlist("authorization")), *headers.getlist("x-api-key")} - {""}
        if len(keys) > 1:
            error = Unauthenticated("two different keys: in Authorization and in x-api-key", hint="send one key, in either")
            raise Refused(401, error, self._challenge(error="invalid_request"))
        if not keys:
            hint = "send Authorization: Bearer KEY; `aima key show` prints the owner's"
            raise Refused(401, Unauthenticated("a key is needed", hint=hint), self._challenge())
        try:
            given = keys.pop()
            if self._oauth is not None and is_token(given):
                return await self._oauth.judge(given)
            caller = _claimed(self._keys.caller(given), headers)
            return Bearer(caller, self._keys.deadline(caller))
        except Unauthenticated as error:
            raise Refused(401, error, self._challenge(error="invalid_token")) from error
        except PermissionDenied as error:
            raise Refused(403, error, self._challenge(error="insufficient_scope", scope=" ".join(error.details["scopes"]))) from error

    def refusal(self, error: AimaError, caller: Caller) -> Mapping[str, str]:
        """The headers of an error: to whom came with a token that lacks a scope, which one to ask the issuer for."""
        if found := retry_of(error):
            return found
        if self._oauth is None or not isinstance(error, PermissionDenied) or not self._oauth.owns(caller):
            return {}
        wanted = [name for name, scope in self._oauth.scopes.items() if scope == error.details.get("scope")]
        return self._challenge(error="insufficient_scope", scope=" ".join(wanted)) if wanted else {}

    def ended(self, caller: Caller) -> Unauthenticated:
        """Why what was held for this caller has ended."""
        if self._oauth is not None and self._oauth.owns(caller):
            return Unauthenticated(f"the token of {caller.name} has expired", hint="ask its issuer for a new one")
        return self._keys.ended(caller)

    def _challenge(self, **said: str) -> Mapping[str, str]:
        where = {} if self._oauth is None else {"resource_metadata": metadata_url(self._oauth.audience)}
        words = [CHALLENGE, *(f'{name}="{value}"' for name, value in {**where, **said}.items())]
        return {"www-authenticate": ", ".join(words)}

    def _is_ours(self, host: str) -> bool:
        """Whether a Host header means this host. On a wildcard any address is: rebinding needs a name, and names are listed."""
        name = _name(host)
        if name is None:
            return False
        if name in self._names:
            return True
        address = _address(name)
        return address is not None and (self._open or address.is_loopback)


def metadata_url(resource: str) -> str:
    """Where RFC 9728 puts the metadata of a resource."""
    parts = urlsplit(resource)
    return f"{parts.scheme}://{parts.netloc}{METADATA}{parts.path.rstrip('/')}"


def _head(exchange: Exchange) -> tuple[str, str, Raw]:
    return exchange.method, exchange.path, [field for field in exchange.scope["headers"] if field[0] != b"content-length"]


def _claimed(found: Caller, headers: Headers) -> Caller:
    """The caller, or the agent that comes with the owner's key and says so."""
    claimed = headers.get("aima-caller")
    if claimed not in (None, AGENT.name):
        raise InvalidArgument(f"Aima-Caller: {claimed[:80]!r} is nobody", hint=f"it is {AGENT.name}, or left out")
    return AGENT if claimed and found == OWNER else found


def bearer(authorization: str) -> str:
    """The key in an Authorization header, or nothing when it holds something else."""
    scheme, _, key = authorization.partition(" ")
    return key.strip() if scheme.lower() == "bearer" else ""


def _name(host: str) -> str | None:
    """The name or address in `name[:port]`, exactly: nothing around it, no user, no path. None when it is anything else."""
    if host.startswith("["):
        name, bracket, port = host[1:].partition("]")
        if not bracket or (port and not port.startswith(":")) or ":" not in name:
            return None
        port = port[1:] if port else ""
    else:
        name, colon, port = host.partition(":")
        if not name or (colon and not port):
            return None
    if port and not (port.isascii() and port.isdigit() and int(port) < 65536):
        return None
    return name.lower()


def _address(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(name)
    except ValueError:
        return None
