"""The small HTTP client: what it keeps, what it repeats, when it leaves, over streams that block and streams that do not."""

from __future__ import annotations

import asyncio
import base64
import datetime
import ipaddress
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from aima_lib.attached import Attached
from aima_lib.errors import Internal, InvalidArgument, Unavailable
from aima_lib.infra import proxy
from aima_lib.infra.http1 import Broken, Http1, Unreached
from aima_lib.infra.loop_stream import looped
from aima_lib.infra.stream import Connect, blocking, driven
from aima_lib.registry import Registry

pytestmark = pytest.mark.anyio
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
Talk = Callable[["Peer", asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@dataclass
class Peer:
    """A real server that talks as a test says."""

    url: str = ""
    connections: int = 0
    requests: list[bytes] = field(default_factory=list)
    left: asyncio.Event = field(default_factory=asyncio.Event)
    go: asyncio.Event = field(default_factory=asyncio.Event)

    async def head(self, reader: asyncio.StreamReader) -> bytes:
        """One request, head and body."""
        head = await reader.readuntil(b"\r\n\r\n")
        length = next((int(line[15:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")), 0)
        self.requests.append(head + await reader.readexactly(length))
        return self.requests[-1]


@asynccontextmanager
async def peer(talk: Talk, tls: ssl.SSLContext | None = None) -> AsyncIterator[Peer]:
    known = Peer()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        known.connections += 1
        try:
            await talk(known, reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            known.left.set()
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls)
    known.url = f"{'https' if tls else 'http'}://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield known
    finally:
        server.close()
        await server.wait_closed()


async def text(http: Http1, method: str = "GET", target: str = "/", body: bytes | None = None) -> str:
    async with http.ask(method, target, (), body) as answer:
        return (await answer.read()).decode()


async def polite(peer: Peer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while True:
        await peer.head(reader)
        writer.write(OK)


async def test_a_connection_is_kept_and_each_request_is_whole() -> None:
    async with peer(polite) as known:
        http = Http1(f"{known.url}/base/", looped, headers=[("Authorization", "Bearer k")])
        assert [await text(http, "POST", "/a", b"{}"), await text(http), await text(http)] == ["ok"] * 3
        assert known.connections == 1
        first = known.requests[0].split(b"\r\n")
        assert first[0] == b"POST /base/a HTTP/1.1" and b"Host: " + known.url[7:].encode() in first
        assert b"Authorization: Bearer k" in first and b"Content-Length: 2" in first and first[-1] == b"{}"
        both = await asyncio.gather(text(http), text(http))
        assert both == ["ok", "ok"] and known.connections == 2, "two at once are two connections"
        with pytest.raises(ValueError):
            await text(http, target="/a b\r\nX: y")
        http.close()


async def test_a_kept_connection_that_ended_is_not_used() -> None:
    async def brief(peer: Peer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await peer.head(reader)
        writer.write(OK)
        await writer.drain()
        writer.close()
        await writer.wait_closed()
        peer.left.set()

    async with peer(brief) as known:
        http = Http1(known.url, looped)
        for count in (1, 2):
            assert await text(http, "POST", "/", b"{}") == "ok"
            assert known.connections == count
            await known.left.wait()
            known.left.clear()
        http.close()


@pytest.mark.parametrize(("method", "repeated"), [("GET", True), ("POST", False)])
async def test_only_what_may_be_repeated_is_when_a_kept_connection_falls_silent(method: str, repeated: bool) -> None:
    async def once(peer: Peer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await peer.head(reader)
        writer.write(OK)
        if peer.connections == 1:
            await peer.head(reader)  # takes the second request and says nothing

    async with peer(once) as known:
        http = Http1(known.url, looped)
        assert await text(http) == "ok"
        if repeated:
            assert await text(http, method) == "ok"
        else:
            with pytest.raises(Broken, match="without an answer"):
                await text(http, method, "/", b"{}")
        assert len(known.requests) == (3 if repeated else 2)
        http.close()


async def test_what_was_sent_unasked_is_no_answer_to_the_next_request() -> None:
    async def talkative(peer: Peer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await peer.head(reader)
        writer.write(OK if peer.connections > 1 else OK + OK.replace(b"ok", b"no"))
        await peer.go.wait()

    async with peer(talkative) as known:
        http = Http1(known.url, looped)
        assert [await text(http), await text(http)] == ["ok", "ok"] and known.connections == 2
        known.go.set()
        http.close()


async def test_leaving_an_answer_closes_the_connection() -> None:
    async def endless(peer: Peer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await peer.head(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n")
        await reader.readexactly(1)  # fails when the client is gone

    async with peer(endless) as known:
        http = Http1(known.url, looped)
        async with http.ask("GET", "/") as answer:
            async for piece in answer:
                assert piece == b"first"
                break
        await asyncio.wait_for(known.left.wait(), 10)
        known.left.clear()
        waiting = asyncio.create_task(text(http))
        while len(known.requests) < 2:
            await asyncio.sleep(0.001)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await asyncio.wait_for(known.left.wait(), 10)


async def test_a_body_that_is_refused_early_is_answered_all_the_same() -> None:
    async def refusing(peer: Peer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 413 Too Large\r\nContent-Length: 3\r\nConnection: close\r\n\r\nbig")
        await writer.drain()
        writer.write_eof()
        while await reader.read(1 << 16):
            pass

    async with peer(refusing) as known:
        http = Http1(known.url, looped)
        async with http.ask("POST", "/", (), bytes(8 << 20)) as answer:
            assert (answer.status, await answer.read()) == (413, b"big")


async def test_a_large_body_goes_through_both_ways() -> None:
    async def echo(peer: Peer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        body = (await peer.head(reader)).partition(b"\r\n\r\n")[2]
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        await writer.drain()

    async with peer(echo) as known:
        http = Http1(known.url, looped)
        body = bytes(range(256)) * 32768
        for connect in (looped, blocking()):
            assert await _elsewhere(connect, known.url, body) == body
        http.close()


async def _elsewhere(connect: Connect, url: str, body: bytes) -> bytes:
    """A request over streams of either kind; those that block do it in a thread, since the peer lives in this one."""

    async def ask() -> bytes:
        http = Http1(url, connect, proxy=proxy.proxy_for(url))
        try:
            async with http.ask("POST", "/", (), body) as answer:
                return await answer.read()
        finally:
            http.close()

    return await ask() if connect is looped else await asyncio.to_thread(driven, ask())


@pytest.mark.parametrize("connect", [looped, blocking()], ids=["looped", "blocking"])
async def test_a_body_without_a_length_ends_with_its_connection(connect: Connect) -> None:
    async def brief(peer: Peer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await peer.head(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\nall there is")
        await writer.drain()

    async with peer(brief) as known:
        assert await _elsewhere(connect, known.url, b"") == b"all there is"


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (b"SSH-2.0-OpenSSH\r\n\r\n", "no HTTP"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf", "before the answer was whole"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"a" * (65 << 10), "does not end"),
        (b"", "without an answer"),
    ],
)
@pytest.mark.parametrize("connect", [looped, blocking()], ids=["looped", "blocking"])
async def test_what_is_no_answer_is_broken(said: bytes, message: str, connect: Connect) -> None:
    async def odd(peer: Peer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await peer.head(reader)
        writer.write(said)

    async with peer(odd) as known:
        with pytest.raises(Broken, match=message):
            await _elsewhere(connect, known.url, b"")


@pytest.mark.parametrize("connect", [looped, blocking()], ids=["looped", "blocking"])
async def test_nobody_there_is_said_at_once(connect: Connect) -> None:
    async with peer(polite) as known:
        pass
    with pytest.raises(Unreached, match=r"refused|failed"):
        await _elsewhere(connect, known.url, b"")


async def test_work_that_needs_a_loop_is_refused_without_one() -> None:
    def drive() -> None:
        with pytest.raises(RuntimeError, match="event loop"):
            driven(asyncio.sleep(0))

    await asyncio.to_thread(drive)


# TLS and proxies


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for 127.0.0.1 that its own key signed, and that key, in one file."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), now, now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path_factory.mktemp("tls") / "both.pem"
    plain = serialization.NoEncryption()
    pem = serialization.Encoding.PEM
    path.write_bytes(made.public_bytes(pem) + key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain))
    return path


def context(certificate: Path) -> ssl.SSLContext:
    made = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    made.load_cert_chain(certificate)
    return made


@pytest.mark.parametrize("connect", [looped, blocking()], ids=["looped", "blocking"])
async def test_a_host_of_tls_must_prove_its_name(connect: Connect, certificate: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with peer(polite, context(certificate)) as known:
        with pytest.raises(Unreached, match="CERTIFICATE_VERIFY_FAILED"):
            await _elsewhere(connect, known.url, b"")
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        assert await _elsewhere(connect, known.url, b"{}") == b"ok"
        http = Http1(known.url, looped)
        assert [await text(http), await text(http)] == ["ok", "ok"]
        http.close()


async def _tunnel(peer: Peer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A proxy that knows CONNECT."""
    asked = (await peer.head(reader)).decode()
    if "Proxy-Authorization: Basic " + base64.b64encode(b"me:p@ss").decode() not in asked:
        writer.write(b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n")
        return
    host, _, port = asked.split()[1].rpartition(":")
    onward, back = await asyncio.open_connection(host, int(port))
    writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")

    async def pass_on(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        while data := await source.read(1 << 16):
            sink.write(data)
        sink.close()

    await asyncio.gather(pass_on(reader, back), pass_on(onward, writer))


@pytest.mark.parametrize("connect", [looped, blocking()], ids=["looped", "blocking"])
async def test_a_proxy_of_the_environment_is_a_tunnel(connect: Connect, certificate: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    for name in ("NO_PROXY", "no_proxy", "https_proxy"):
        monkeypatch.delenv(name, raising=False)
    async with peer(polite, context(certificate)) as known, peer(_tunnel) as way:
        for credentials, outcome in (("me:p%40ss@", "ok"), ("", "407")):
            monkeypatch.setenv("HTTPS_PROXY", way.url.replace("://", f"://{credentials}"))

            try:
                said = (await _elsewhere(connect, known.url, b"")).decode()
            except Unreached as error:
                said = str(error)
            assert outcome in said
        assert b"Bearer" not in b"".join(way.requests) and len(way.requests) == 2
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        assert proxy.proxy_for(known.url) is None
        monkeypatch.delenv("NO_PROXY")
        assert proxy.proxy_for("http://example.org") is None, "a tunnel is for TLS"
        monkeypatch.setenv("HTTPS_PROXY", "socks5://127.0.0.1:1")
        with pytest.raises(InvalidArgument, match="HTTPS_PROXY"):
            proxy.proxy_for(known.url)


# The door over it


async def door(known: Peer) -> Attached:
    return Attached(known.url, "aima-key")


@pytest.mark.parametrize(
    ("said", "kind", "message"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n<html>", Internal, "no JSON"),
        (b"HTTP/1.1 301 Moved\r\nLocation: /x\r\nContent-Length: 0\r\n\r\n", Internal, "answered 301"),
        (b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 3\r\n\r\nbad", Unavailable, "answered 502"),
        (b'HTTP/1.1 400 Bad Request\r\nContent-Length: 15\r\n\r\n{"error": "no"}', Internal, "answered 400"),
        (b"", Unavailable, "does not answer"),
    ],
)
async def test_a_stranger_behind_the_url_is_an_error_of_ours(said: bytes, kind: type[Exception], message: str) -> None:
    async def stranger(peer: Peer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await peer.head(reader)
        writer.write(said)

    async with peer(stranger) as known:
        attached = await door(known)
        with pytest.raises(kind, match=message):
            await attached.call("model.list")
        await attached.close()


async def test_what_cannot_be_sent_is_refused_here() -> None:
    async with peer(polite) as known:
        attached = await door(known)
        for arguments in ({"limit": float("nan")}, {"type": "\ud800"}, {"type": {1, 2}}):
            with pytest.raises(InvalidArgument, match="no JSON"):
                await attached.call("model.list", arguments)
        with pytest.raises(InvalidArgument, match="Idempotency-Key"):
            await attached.call("model.pull", {"repo": "a/b"}, key="a\r\nX-Other: b")
        assert known.requests == []
        await attached.close()


async def test_a_stream_whose_result_came_leaves_its_connection_for_the_next() -> None:
    async def streaming(peer: Peer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await peer.head(reader)
            events = b'event: item\ndata: {"a": "\xe2\x80\xa8"}\n\nevent: result\ndata: {"b": 2}\n\n'
            chunk = b"%x\r\n%s\r\n0\r\n\r\n" % (len(events), events)
            writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunk)

    async with peer(streaming) as known:
        attached = await door(known)
        seen: list[object] = []

        async def send(item: object) -> None:
            seen.append(item)

        for _ in range(3):
            assert await attached.call("model.pull", {"repo": "a/b"}, send=send) == {"b": 2}
        assert seen == [{"a": "\u2028"}] * 3 and known.connections == 1
        await attached.close()


def test_an_attached_door_reads_no_schema_before_it_must(monkeypatch: pytest.MonkeyPatch) -> None:
    described: list[int] = []
    whole = Registry.described
    monkeypatch.setattr(Registry, "described", lambda: described.append(1) or whole())
    attached = Attached("http://127.0.0.1:1", "aima-key")
    assert described == []
    assert "model.list" in attached.registry and attached.registry is attached.registry and described == [1]
