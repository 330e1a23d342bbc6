"""The way out through a proxy that the environment names: a tunnel, opened by CONNECT, so that TLS ends at the host and nowhere before."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from aima_lib.errors import InvalidArgument
from aima_lib.infra.stream import Stream

LONGEST_REPLY = 32 << 10


@dataclass(frozen=True, slots=True)
class Proxy:
    """Where it listens, and what to show there."""

    host: str
    port: int
    credentials: str | None = None

    async def open(self, stream: Stream, authority: str) -> None:
        """Make the stream lead to `authority`. Raises OSError when the proxy does not."""
        shown = f"Proxy-Authorization: Basic {self.credentials}\r\n" if self.credentials else ""
        await stream.send(f"CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n{shown}\r\n".encode("ascii"))
        reply = b""
        while b"\r\n\r\n" not in reply:
            piece = await stream.receive()
            reply += piece
            if not piece or len(reply) > LONGEST_REPLY:
                raise OSError(f"the proxy {self.host}:{self.port} gave no answer")
        status = reply.split(b"\r\n", 1)[0].decode("latin-1")
        if status.split(" ", 2)[1:2] != ["200"]:
            raise OSError(f"the proxy {self.host}:{self.port} answered {status!r}")


def proxy_for(url: str) -> Proxy | None:
    """The proxy of HTTPS_PROXY or ALL_PROXY, where the URL is one of TLS and NO_PROXY does not name its host.

    Raises:
        InvalidArgument: what is named is no proxy of a kind that is spoken here.
    """
    from urllib.request import getproxies, proxy_bypass

    parts = urlsplit(url)
    if parts.scheme != "https":
        return None
    known = getproxies()
    named = known.get("https") or known.get("all")
    if not named or not parts.hostname or proxy_bypass(f"{parts.hostname}:{parts.port or 443}"):
        return None
    try:
        where = urlsplit(named if "://" in named else f"http://{named}")
        fit, port = where.scheme == "http" and bool(where.hostname), where.port or 80
    except ValueError:
        fit, port = False, 0
    if not fit or where.hostname is None:
        raise InvalidArgument("the proxy of HTTPS_PROXY is none that is spoken here", hint="write it like http://proxy.example.org:3128")
    return Proxy(where.hostname, port, _basic(where.username, where.password))


def _basic(name: str | None, password: str | None) -> str | None:
    if name is None:
        return None
    from base64 import b64encode

    return b64encode(f"{unquote(name)}:{unquote(password or '')}".encode()).decode("ascii")
