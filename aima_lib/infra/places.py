"""Where a request may go: URLs in one plain form, addresses that are public, redirects that lead no further. Nothing is sent here."""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from urllib.parse import quote, urljoin, urlsplit

from aima_lib.errors import InvalidArgument, PermissionDenied

Address = IPv4Address | IPv6Address
# Nothing but these groups: no login, no zone, no escapes, no backslash, nothing beyond ASCII. What all parsers read alike.
URL = re.compile(r"(https?)://(\[[0-9a-f:.]{2,45}\]|[a-z0-9.-]{1,253})(?::(\d{1,5}))?(?:[/?][!-\[\]-~]*)?", re.IGNORECASE)
LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
PRINTABLE = "".join(map(chr, range(0x21, 0x7F))).replace("\\", "")
PLAIN = "write it like https://host:port/path, the host a name or a plain address; what is not public must stand in [egress] allow"
OWNERS = 'only the owner opens what is not public: [egress] allow = ["host:port", "10.0.0.0/8"] in config.toml'
ELSEWHERE = "check the network, or name another mirror"
NAT64, UNICAST = ip_network("64:ff9b::/96"), ip_network("2000::/3")
# Of what `is_global` takes for public, by one Python or another: protocol assignments, relays, documentation.
ODD = [ip_network(text) for text in ("192.0.0.0/24", "192.88.99.0/24", "168.63.129.16/32", "2001::/23", "2001:db8::/32", "3fff::/20")]
# Where clouds tell secrets to whoever asks from inside.
METADATA = [ip_address(text) for text in ("fd00:ec2::254", "fd20:ce::254", "100.100.100.200", "168.63.129.16", "192.0.0.192")]


class Barred(PermissionDenied):
    """The place is not public, and its owner did not allow it."""


@dataclass(frozen=True, slots=True)
class Place:
    """What a credential belongs to, and a redirect leaves."""

    scheme: str
    host: str
    port: int


def place(url: str) -> Place:
    """Where a URL leads.

    Raises:
        InvalidArgument: it is not in the plain form; `127.1`, `0x7f000001`, a login, an escape and a zone are not.
    """
    found = URL.fullmatch(url)
    try:
        if found is None:
            raise ValueError
        scheme, port = found[1].lower(), int(found[3] or (443 if found[1].lower() == "https" else 80))
        if not 0 < port < 65536:
            raise ValueError
        return Place(scheme, _plain(found[2].lower()), port)
    except ValueError as error:
        host = re.split(r"[/?#]", url.partition("://")[2], maxsplit=1)[0].rpartition("@")[2]
        raise InvalidArgument(f"{host[:80]!a} is not the plain form of an http address", hint=PLAIN) from error


def _plain(host: str) -> str:
    if host.startswith("["):
        return str(IPv6Address(host[1:-1]))
    last = host.rpartition(".")[2]
    if last.isdigit() or last.startswith("0x"):  # then resolvers read a number, in whatever base
        return str(IPv4Address(host))
    if not all(LABEL.fullmatch(label) for label in host.split(".")):
        raise ValueError
    return host


def carried(address: Address) -> Address:
    """The IPv4 address that an IPv6 one stands for, or the address itself."""
    if isinstance(address, IPv4Address):
        return address
    inner = IPv4Address(int(address) & 0xFFFFFFFF) if address in NAT64 else address.sixtofour
    return inner or address.ipv4_mapped or address


def public(address: Address) -> bool:
    """Whether anybody on the Internet means the same machine by it."""
    if any(address in network for network in ODD):
        return False
    if isinstance(address, IPv4Address):
        return address.is_global and not address.is_multicast and not address.is_reserved
    if address in NAT64 or address.sixtofour:  # `is_global` even where they carry 127.0.0.1
        return public(carried(address))
    return address in UNICAST and address.is_global


def redirected(url: str, target: Place, location: str) -> tuple[str, Place]:
    """Where a redirect leads. Raises Barred when that is in no plain form, or gives TLS up."""
    try:
        joined = quote(urljoin(url, location), safe=PRINTABLE)
        after = place(joined)
    except (ValueError, InvalidArgument) as error:
        raise Barred(f"{shown(url)} redirects to what is no plain http address", hint=ELSEWHERE) from error
    if (target.scheme, after.scheme) == ("https", "http"):
        raise Barred(f"{shown(url)} redirects from https to http", hint=ELSEWHERE)
    return joined, after


def listed(entry: str) -> tuple[str, int]:
    """Host and port of an entry of `[egress] allow`. Raises InvalidArgument when it has not both."""
    try:
        at = place(f"http://{entry}/")
    except InvalidArgument:
        at = None
    if at is None or not re.search(r":\d+$", entry):
        raise InvalidArgument(f"[egress] allow: {entry!r} is neither host:port nor a network", hint='write "hub.lan:8443" or "10.0.0.0/8"')
    return at.host, at.port


def configured(url: str) -> Place | None:
    """The place of an endpoint in the owner's configuration, where a login may stand in it."""
    try:
        return place(re.sub(r"//[^/?#]*@", "//", url))
    except InvalidArgument:
        return None  # file:///, say: nothing to reach


def shown(url: str) -> str:
    """`url` without credentials and query: either may hold a secret."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def origin(url: str) -> tuple[str, str]:
    """Scheme and host with port: what a credential belongs to."""
    parts = urlsplit(url)
    return parts.scheme, parts.netloc.rpartition("@")[2]
