"""Who may come in: requests that name this host, from pages of this machine, with a key."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Mapping

from starlette.datastructures import Headers

from aima_lib.door import Caller
from aima_lib.errors import InvalidArgument, PermissionDenied, Unauthenticated
from aima_lib.services.keys import KeyService
from aima_mcp.faces.http.problem import Refused

HEAD_LIMIT = 32 << 10
WILDCARDS = ("0.0.0.0", "::", "")
CHALLENGE = 'Bearer realm="aima"'
METHODS = "GET, HEAD, POST, DELETE, OPTIONS"
ASKED = "authorization, content-type, accept, idempotency-key, last-event-id, prefer, x-api-key, anthropic-version"
SHOWN = "location, www-authenticate, mcp-session-id, mcp-protocol-version, x-request-id, request-id, retry-after, preference-applied"


class Entrance:
    """The checks before any face. `bound` is the address the host listens on."""

    def __init__(self, keys: KeyService, bound: str) -> None:
        self._keys = keys
        self._open = bound in WILDCARDS
        self._names = {"localhost", bound.lower()} | ({socket.gethostname().lower()} if self._open else set())

    def check(self, headers: Headers) -> None:
        """Raises Refused for a head that is too large or ambiguous, a Host that is not ours, an Origin that is not of this machine."""
        if sum(len(name) + len(value) for name, value in headers.raw) > HEAD_LIMIT:
            raise Refused(431, InvalidArgument(f"the head is larger than {HEAD_LIMIT >> 10} KiB"), {"connection": "close"})
        if "transfer-encoding" in headers and "content-length" in headers:
            raise Refused(400, InvalidArgument("two lengths: Content-Length and Transfer-Encoding"), {"connection": "close"})
        hosts = headers.getlist("host")
        if len(hosts) != 1 or not self._is_ours(hosts[0]):
            said = ", ".join(hosts) or "nothing"
            hint = "use localhost, or the address it was told to bind"
            raise Refused(421, PermissionDenied(f"this host is not called {said[:200]}", hint=hint))
        for origin in headers.getlist("origin"):
            if not self._is_near(origin):
                raise Refused(403, PermissionDenied(f"pages of {origin[:200]} may not call this host", hint="call it from this machine"))

    def caller(self, headers: Headers) -> Caller:
        """Who asks, by the key. Raises Refused (401)."""
        keys = {*(bearer(value) for value in headers.getlist("authorization")), *headers.getlist("x-api-key")} - {""}
        if len(keys) > 1:
            error = Unauthenticated("two different keys: in Authorization and in x-api-key", hint="send one key, in either")
            raise Refused(401, error, {"www-authenticate": f'{CHALLENGE}, error="invalid_request"'})
        if not keys:
            hint = "send Authorization: Bearer KEY; `aima key show` prints the owner's"
            raise Refused(401, Unauthenticated("a key is needed", hint=hint), {"www-authenticate": CHALLENGE})
        try:
            return self._keys.caller(keys.pop())
        except Unauthenticated as error:
            raise Refused(401, error, {"www-authenticate": f'{CHALLENGE}, error="invalid_token"'}) from error

    def _is_ours(self, host: str) -> bool:
        """Whether a Host header means this host. On a wildcard any address is: rebinding needs a name, and names are listed."""
        name = _name(host)
        if name is None:
            return False
        if name in self._names:
            return True
        address = _address(name)
        return address is not None and (self._open or address.is_loopback)

    def _is_near(self, origin: str) -> bool:
        scheme, slashes, rest = origin.partition("://")
        if scheme != "http" or not slashes:
            return False
        name = _name(rest)
        if name is None:
            return False
        address = _address(name)
        return name in self._names or (address is not None and address.is_loopback)


def bearer(authorization: str) -> str:
    """The key in an Authorization header, or nothing when it holds something else."""
    scheme, _, key = authorization.partition(" ")
    return key.strip() if scheme.lower() == "bearer" else ""


def cross_origin(headers: Headers) -> Mapping[str, str]:
    """What lets a page of this machine, on another port, read the reply. The Origin has been checked."""
    origin = headers.get("origin")
    return {} if origin is None else {"access-control-allow-origin": origin, "access-control-expose-headers": SHOWN, "vary": "origin"}


def preflight(headers: Headers) -> Mapping[str, str]:
    """The answer to a browser that asks before it calls."""
    asked = headers.get("access-control-request-headers", ASKED)
    return {"access-control-allow-methods": METHODS, "access-control-allow-headers": asked, "access-control-max-age": "600"}


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
