"""The way out: which places it goes to, that it goes to the address it looked at, and what it takes along."""

from __future__ import annotations

import datetime
import ipaddress
import random
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from anyio import to_thread
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from aima_lib.errors import AimaError, FailedPrecondition, InvalidArgument, PermissionDenied
from aima_lib.infra.egress import Again, Egress
from aima_lib.infra.places import Barred, Place, place, public
from aima_lib.infra.web import Web
from aima_lib.services.pulling import way_out

pytestmark = pytest.mark.anyio
ROOT = Path(__file__).parents[2]
SECRETS = {"Authorization": "Bearer s3cret", "Cookie": "s3cret", "X-Api-Key": "s3cret", "Proxy-Authorization": "s3cret"}


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(autouse=True)
def without_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


class Server:
    """A web server that remembers who asked: (address it was reached at, Host, path, headers). `redirects` maps paths to locations."""

    def __init__(self, address: str = "127.0.0.1", port: int = 0, secure: ssl.SSLContext | None = None) -> None:
        self.asked: list[tuple[str, str, str, Mapping[str, str]]] = []
        self.redirects: dict[str, str] = {}
        self.more: dict[str, str] = {}
        self._server = ThreadingHTTPServer((address, port), self._handler())
        if secure is not None:
            self._server.socket = secure.wrap_socket(self._server.socket, server_side=True)
        self.port = self._server.server_address[1]
        self.url = f"http://{address}:{self.port}"

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *words: Any) -> None:
                """`asked` tells enough."""

            def do_GET(self) -> None:
                reached = self.connection.getsockname()[0]
                server.asked.append((reached, self.headers["Host"], self.path, dict(self.headers)))
                location = server.redirects.get(self.path)
                body = b"" if location else reached.encode()
                self.send_response(302 if location else 200)
                told = ({"Location": location} if location else {}) | server.more | {"Content-Length": str(len(body))}
                for name, value in told.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

        return Handler

    def __enter__(self) -> Server:
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *reason: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class Names:
    """A resolver: each name's answers in their order, the last one for ever."""

    def __init__(self, **answers: Sequence[Sequence[str]]) -> None:
        self.answers = {name.replace("_", "."): list(each) for name, each in answers.items()}
        self.questions: list[str] = []

    async def __call__(self, host: str, port: int) -> Sequence[str]:
        self.questions.append(host)
        known = self.answers.get(host)
        if known is None:
            raise OSError(f"{host} is not known")
        return known.pop(0) if len(known) > 1 else known[0]


@contextmanager
def neighbours(*addresses: str) -> Iterator[list[Server]]:
    """Servers on one port of several addresses."""
    with ExitStack() as stack:
        first = stack.enter_context(Server(addresses[0]))
        yield [first, *(stack.enter_context(Server(address, first.port)) for address in addresses[1:])]


async def fetched(egress: Egress, url: str, headers: Mapping[str, str] | None = None) -> str:
    web = Web(egress)
    try:
        return (await web.get(url, headers)).body.decode()
    finally:
        await web.close()


# Forms of a URL


@pytest.mark.parametrize(
    "url",
    [
        "http://127.1/", "http://127.0.1/", "http://0x7f000001/", "http://2130706433/", "http://017700000001/", "http://0177.0.0.1/",
        "http://0x7f.0.0.1/", "http://127.0.0.0x1/", "http://127.0.0.01/", "http://256.1.1.1/", "http://1.2.3.4.5/", "http://0/",
        "http://127.0.0.1./", "http://localhost./", "http://a..b/", "http://.a/", "http://-a.test/", "http://a-/", "http://a_b/",
        "http://[fe80::1%25eth0]/", "http://[fe80::1%eth0]/", "http://[::1/", "http://[::1]x/", "http://[127.0.0.1]/", "http://::1/",
        "http://[v1.x]/", "http://%6cocalhost/", "http://127.0.0.1%2f.test/", "http://a%00b/", "http://a\0b/",
        "http://me@h.test/", "http://me:pw@h.test/", "http://@h.test/", "http://a.test@127.0.0.1/", "http://a.test:80@127.0.0.1/",
        "http://h.test\\@evil.test/", "http://h.test#@evil.test/", "http://h.test\\evil/", "http://h.test;x/", "http://h.test,evil/",
        "http://h.test:0/", "http://h.test:65536/", "http://h.test:999999/", "http://h.test:80:80/", "http://h.test:x/", "http://h.test:+1/",
        "http://h .test/", "http://h\t.test/", "http://h.test/\n", " http://h.test/", "http:///x", "http://", "http:/h.test/", "//h.test/",
        "h.test", "", "ftp://h.test/", "file:///etc/passwd", "gopher://h.test/", "data:,x", "httpx://h.test/",
        "http://①②⑦.⓪.⓪.①/", "http://127。0。0。1/", "http://ⓛocalhost/", "http://ｌocalhost/", "http://faß.test/", "http://xn--/",
        "http://h.test/\u00e9", "http://h.test/\\..", "http://" + "a" * 64 + "/", "http://" + "a." * 127 + "aa/",
    ],
    ids=ascii,
)  # fmt: skip
async def test_a_url_in_another_form_is_refused_and_sent_nowhere(url: str) -> None:
    names = Names()
    with pytest.raises(InvalidArgument) as caught:
        async with Egress(["0.0.0.0/0", "::/0"], resolve=names).open(url, {}):
            pass
    assert "[egress] allow" in str(caught.value.hint) and "pw" not in str(caught.value) and names.questions == []


def test_the_plain_form_is_read() -> None:
    assert place("HTTPS://Hub.Test/a?b=c") == Place("https", "hub.test", 443)
    assert place("http://10.0.0.1:8080") == Place("http", "10.0.0.1", 8080)
    assert place("http://[0:0::1]/") == place("http://[::1]:80/x") == Place("http", "::1", 80)
    assert place("http://xn--bcher-kva.test?x").host == "xn--bcher-kva.test"


# Addresses

PRIVATE = [
    "127.0.0.1", "127.255.255.254", "0.0.0.0", "0.1.2.3", "10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1", "100.64.0.1",
    "100.100.100.200", "169.254.169.254", "169.254.0.1", "192.0.0.1", "192.0.0.192", "192.0.2.1", "198.18.0.1", "198.51.100.1",
    "203.0.113.1", "192.88.99.1", "168.63.129.16", "224.0.0.1", "239.1.1.1", "240.0.0.1", "255.255.255.255",
    "::", "::1", "fe80::1", "fe80::1%1", "fec0::1", "fc00::1", "fd00:ec2::254", "fd20:ce::254", "ff02::1", "ff0e::1", "100::1",
    "::ffff:127.0.0.1", "::ffff:169.254.169.254", "::ffff:8.8.8.8", "::127.0.0.1", "::8.8.8.8", "::ffff:0:127.0.0.1",
    "64:ff9b::127.0.0.1", "64:ff9b::a9fe:a9fe", "64:ff9b::10.0.0.1", "64:ff9b:1::808:808", "64:ff9b:1:7f00:1::",
    "2002:7f00:1::", "2002:a9fe:a9fe::1", "2002:a00:1::1", "2001::1", "2001:0:808:808::80ff:fffe", "2001:db8::1", "2001:10::1",
    "3fff::1", "4000::1", "5f00::1", "200::1",
]  # fmt: skip


@pytest.mark.parametrize("address", PRIVATE)
async def test_an_address_that_is_not_public_is_refused_as_it_is_and_behind_a_name(address: str) -> None:
    names = Names(h_test=[[address]], mixed_test=[["8.8.8.8", address, "2606:4700::1111"]])
    written = f"[{address}]" if ":" in address else address
    for host in (written, "h.test", "mixed.test"):
        if "%" in host:
            continue
        with pytest.raises(PermissionDenied, match="is not a public place") as caught:
            async with Egress(resolve=names).open(f"http://{host}/", {}):
                pass
        assert "[egress] allow" in str(caught.value.hint)


@pytest.mark.parametrize("address", ["8.8.8.8", "1.1.1.1", "192.0.1.1", "2606:4700::1111", "64:ff9b::808:808", "2002:808:808::1"])
async def test_a_public_address_is_one(address: str) -> None:
    assert public(ipaddress.ip_address(address))
    assert [str(each) for each in await Egress(resolve=Names(h_test=[[address]])).addresses("h.test", 443)] == [address]


# What the owner opens


async def test_what_the_owner_lists_is_opened_and_no_more() -> None:
    with neighbours("127.0.0.1", "127.0.0.2") as (one, two):
        names = Names(hub_lan=[["127.0.0.1"]], other_lan=[["127.0.0.2"]], alias_lan=[["127.0.0.1"]])
        for allow in ([f"127.0.0.1:{one.port}"], [f"hub.lan:{one.port}"], ["127.0.0.1"], ["127.0.0.0/31"]):
            egress = Egress(allow, resolve=names)
            for host in ("127.0.0.1", "hub.lan", "alias.lan"):  # one place, whatever it is called
                assert await fetched(egress, f"http://{host}:{one.port}/") == "127.0.0.1"
            with pytest.raises(Barred):
                await fetched(egress, f"http://other.lan:{one.port}/")
        with pytest.raises(Barred):
            await fetched(Egress([f"127.0.0.1:{one.port + 1}"]), one.url)
        assert two.asked == []


async def test_a_name_opens_no_door_to_metadata() -> None:
    """A hub's name may lead into the owner's network, never to where clouds keep secrets; that takes the address itself."""
    for address in ("169.254.169.254", "fd00:ec2::254", "::ffff:169.254.169.254", "64:ff9b::a9fe:a9fe", "0.0.0.0", "100.100.100.200"):
        egress = Egress(["hub.lan:80"], lambda: ["http://hub.lan/"], resolve=Names(hub_lan=[[address]]))
        with pytest.raises(Barred):
            await egress.addresses("hub.lan", 80)
    assert await Egress(["169.254.169.254:80"]).addresses("169.254.169.254", 80)
    assert await Egress(["169.254.0.0/16"]).addresses("169.254.169.254", 80)


@pytest.mark.parametrize("entry", ["hub.lan", "hub.lan:", "10.0.0.1/8", "http://hub.lan:80", "127.1:80", "[::1]", "a b:80", "", "*"])
async def test_a_wrong_entry_is_told(entry: str) -> None:
    with pytest.raises(InvalidArgument, match=r"\[egress\] allow"):
        Egress([entry])


async def test_endpoints_of_the_configuration_and_of_pip_count_as_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pip.conf").write_text(
        "[global]\nindex-url = http://me:pw@127.0.0.1:1001/simple\nextra-index-url =\n  file:///srv/simple\n  http://127.0.0.1:1002/x\n"
    )
    for name in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", str(tmp_path / "pip.conf"))
    sources = {"huggingface_endpoint": "http://127.0.0.1:1003", "pypi_index": "http://127.0.0.1:1004/simple"}
    egress = way_out({"sources": sources, "egress": {"allow": ["127.0.0.1:1005"]}, "downloads": {"stall_seconds": 30}})
    for port in (1001, 1002, 1003, 1004, 1005):
        assert await egress.addresses("127.0.0.1", port)
    with pytest.raises(Barred):
        await egress.addresses("127.0.0.1", 1006)
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:1006/simple")
    assert await egress.addresses("127.0.0.1", 1006)


# Pinning


async def test_a_name_that_turns_private_is_never_followed_there() -> None:
    """DNS rebinding: what was looked at is what is connected to, and each new connection is looked at anew."""
    with neighbours("127.0.0.2", "127.0.0.3") as (good, inner):
        names = Names(h_test=[["127.0.0.2"], ["127.0.0.3"]])
        egress = Egress(["127.0.0.2/32"], resolve=names)
        assert await fetched(egress, f"http://h.test:{good.port}/") == "127.0.0.2"
        assert names.questions == ["h.test"], "one look, and the connection goes there"
        with pytest.raises(Barred):
            await fetched(egress, f"http://h.test:{good.port}/")
        assert inner.asked == [] and good.asked[0][1] == f"h.test:{good.port}"


async def test_the_next_address_is_tried_when_one_does_not_answer() -> None:
    with Server("127.0.0.2") as server:
        names = Names(h_test=[["127.0.0.3", "127.0.0.2"]], none_test=[[]])
        assert await fetched(Egress(["127.0.0.0/8"], resolve=names), f"http://h.test:{server.port}/") == "127.0.0.2"
        for host in ("none.test", "unknown.test"):
            with pytest.raises(Again):
                await fetched(Egress(resolve=names), f"http://{host}:{server.port}/")


def certificate(folder: Path, name: str) -> tuple[Path, ssl.SSLContext]:
    """A certificate for one name, as a file to trust and as a server's."""
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.datetime.now(datetime.UTC)
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    made = x509.CertificateBuilder().subject_name(subject).issuer_name(subject).public_key(key.public_key()).serial_number(1)
    made = made.not_valid_before(now - datetime.timedelta(1)).not_valid_after(now + datetime.timedelta(1))
    signed = made.add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), False).sign(key, hashes.SHA256())
    plain, pem = serialization.NoEncryption(), serialization.Encoding.PEM
    (folder / "cert.pem").write_bytes(signed.public_bytes(pem))
    (folder / "key.pem").write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    return folder / "cert.pem", context


async def test_tls_is_checked_by_name_though_the_connection_goes_by_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trusted, context = certificate(tmp_path, "h.test")
    asked: list[str | None] = []
    context.sni_callback = lambda _, name, __: asked.append(name)
    monkeypatch.setenv("SSL_CERT_FILE", str(trusted))
    with Server(secure=context) as server:
        egress = Egress(["127.0.0.1/32"], resolve=Names(h_test=[["127.0.0.1"]], other_test=[["127.0.0.1"]]))
        assert await fetched(egress, f"https://h.test:{server.port}/") == "127.0.0.1"
        assert asked == ["h.test"] and server.asked[0][1] == f"h.test:{server.port}"
        with pytest.raises(Again, match="certificate"):
            await fetched(egress, f"https://other.test:{server.port}/")


# A long body, of which a thread takes the rest


def long_server(connection: socket.socket, body: bytes, sent: int, gone: threading.Event) -> None:
    """Answers one request with the beginning of a body, then closes, or says nothing more until `gone`."""
    with connection:
        connection.recv(65_536)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body[:sent])
        gone.wait(20)


@asynccontextmanager
async def long_body(folder: Path, body: bytes, sent: int, *, secure: bool, ends: bool) -> AsyncIterator[tuple[Egress, str]]:
    trusted, context = certificate(folder, "h.test")
    gone = threading.Event()
    with pytest.MonkeyPatch.context() as patch, socket.create_server(("127.0.0.1", 0)) as listener:
        patch.setenv("SSL_CERT_FILE", str(trusted))
        if ends:
            gone.set()

        def serve() -> None:
            plain = listener.accept()[0]
            long_server(context.wrap_socket(plain, server_side=True) if secure else plain, body, sent, gone)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        egress = Egress(["127.0.0.1/32"], resolve=Names(h_test=[["127.0.0.1"]]), stall_seconds=0.3)
        try:
            yield egress, f"{'https' if secure else 'http'}://h.test:{listener.getsockname()[1]}/"
        finally:
            gone.set()
            thread.join(20)
            await egress.close()


async def taken(egress: Egress, url: str) -> tuple[bytes, int]:
    """A body, and how many of its bytes a thread took."""
    whole, by_thread = bytearray(), 0
    async with egress.open(url, {}) as answer:
        async for piece in egress.body(answer):
            if isinstance(piece, bytes):
                whole += piece
                continue
            buffer = memoryview(bytearray(100_000))
            while piece.left:
                count = await to_thread.run_sync(piece.fill, buffer, 0.1)
                whole += buffer[:count]
                by_thread += count
    return bytes(whole), by_thread


@pytest.mark.parametrize("secure", [False, True])
async def test_a_long_body_comes_whole_or_not_at_all(tmp_path: Path, secure: bool) -> None:
    body = random.Random(3).randbytes(5_000_000)
    async with long_body(tmp_path, body, len(body), secure=secure, ends=True) as (egress, url):
        found, by_thread = await taken(egress, url)
        assert found == body and by_thread > 3_000_000
    async with long_body(tmp_path, body, 4_000_000, secure=secure, ends=True) as (egress, url):
        with pytest.raises(Again, match=r"ended 1000000 bytes too soon|could not be read"):
            await taken(egress, url)
    async with long_body(tmp_path, body, 4_000_000, secure=secure, ends=False) as (egress, url):
        with pytest.raises(Again, match=r"no byte for 0\.3 s"):
            await taken(egress, url)


# Redirects


async def test_a_redirect_to_a_private_place_is_refused() -> None:
    with Server() as good, Server() as inner:
        egress = Egress([f"127.0.0.1:{good.port}"], resolve=Names(in_test=[["127.0.0.1"]]))
        for location in (
            inner.url, f"http://in.test:{inner.port}/", f"//127.0.0.1:{inner.port}/", f"http://[::ffff:127.0.0.1]:{inner.port}/",
            f"http://127.1:{inner.port}/", f"http://2130706433:{inner.port}/", f"http://a@127.0.0.1:{inner.port}/", "file:///etc/passwd",
            f"http://127.0.0.1:{inner.port}\\@127.0.0.1:{good.port}/", "http://[", "http://169.254.169.254/latest/meta-data/",
        ):  # fmt: skip
            good.redirects = {"/": location}
            with pytest.raises(PermissionDenied):
                await fetched(egress, f"{good.url}/")
        assert inner.asked == []


async def test_five_redirects_are_followed_and_no_sixth() -> None:
    with Server() as server:
        egress = Egress(["127.0.0.0/8"])
        server.redirects = {f"/{n}": f"/{n + 1}" if n % 2 else f"{server.url}/{n + 1}" for n in range(1, 6)}
        assert await fetched(egress, f"{server.url}/1") == "127.0.0.1"
        assert [path for *_, path, _ in server.asked] == [f"/{n}" for n in range(1, 7)]
        server.redirects["/0"] = "/1"
        with pytest.raises(InvalidArgument, match="more than 5 redirects"):
            await fetched(egress, f"{server.url}/0")


async def test_tls_is_not_given_up_on_the_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trusted, context = certificate(tmp_path, "h.test")
    monkeypatch.setenv("SSL_CERT_FILE", str(trusted))
    with Server() as plain, Server(secure=context) as server:
        server.redirects = {"/": f"{plain.url}/"}
        egress = Egress(["127.0.0.1/32"], resolve=Names(h_test=[["127.0.0.1"]]))
        with pytest.raises(Barred, match="from https to http"):
            await fetched(egress, f"https://h.test:{server.port}/")
        assert plain.asked == []


@pytest.mark.parametrize("change", ["host", "port", "none"])
async def test_credentials_end_with_the_place_they_are_for(change: str) -> None:
    with neighbours("127.0.0.1", "127.0.0.2") as (one, neighbour), Server() as other:
        egress = Egress(["127.0.0.0/8"])
        target = {"host": neighbour, "port": other, "none": one}[change]
        one.redirects = {"/": f"{target.url}/there"}
        target.redirects |= {"/there": f"{one.url}/back"}
        await fetched(egress, f"{one.url}/", {**SECRETS, "Range": "bytes=0-", "Accept": "text/x"})
        [there] = [headers for *_, path, headers in target.asked if path == "/there"]
        assert there["Range"] == "bytes=0-" and there["Accept"] == "text/x"
        assert ("s3cret" in str(there)) == (change == "none")
        [back] = [headers for *_, path, headers in one.asked if path == "/back"]
        assert ("s3cret" in str(back)) == (change == "none"), "what was dropped stays dropped"
        assert str(one.asked[0]).count("s3cret") == len(SECRETS)


async def test_no_cookie_is_kept() -> None:
    with Server() as server:
        server.more, server.redirects = {"Set-Cookie": "who=you"}, {"/": "/again"}
        egress = Egress(["127.0.0.0/8"])
        await fetched(egress, f"{server.url}/")
        await fetched(egress, f"{server.url}/")
        assert len(server.asked) == 4 and not any("Cookie" in headers for *_, headers in server.asked)


# A proxy of the environment


async def test_a_proxy_is_the_owners_choice_and_private_places_stay_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    with Server() as proxy, Server() as inner:
        monkeypatch.setenv("http_proxy", proxy.url)
        egress = Egress(resolve=Names(in_test=[["127.0.0.1"]], out_test=[["8.8.8.8"]]))
        for host in ("out.test", "only-the-proxy-knows.test"):
            assert await fetched(egress, f"http://{host}/x") == "127.0.0.1"
        assert [path for *_, path, _ in proxy.asked] == ["http://out.test/x", "http://only-the-proxy-knows.test/x"]
        for url in (inner.url, f"http://in.test:{inner.port}/", "http://169.254.169.254/"):
            with pytest.raises(Barred):
                await fetched(egress, url)
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        assert await fetched(Egress(["127.0.0.1/32"]), inner.url) == "127.0.0.1"
        assert len(proxy.asked) == 2 and len(inner.asked) == 1
        monkeypatch.setenv("http_proxy", "socks5://127.0.0.1:1")
        with pytest.raises(FailedPrecondition, match="no HTTP proxy"):
            await fetched(egress, "http://out.test/x")


# The rule itself


@pytest.mark.parametrize(
    "line", ["import httpx", "import socket", "from urllib.request import urlopen", "import aiohttp", "import http.client"]
)
def test_lint_bans_every_other_client(line: str) -> None:
    ruff = [sys.executable, "-m", "ruff", "check", "--output-format", "concise", "-"]
    for name, expected in (("aima_lib/services/new.py", True), ("aima_mcp/new.py", True), ("aima_lib/infra/egress.py", False)):
        done = subprocess.run([*ruff, "--stdin-filename", name], input=f"{line}\n", capture_output=True, text=True, cwd=ROOT, check=False)
        assert ("TID251" in done.stdout) == expected, done.stdout + done.stderr


async def test_every_refusal_is_an_error_of_ours() -> None:
    for url in ("http://[::1]/", "http://127.1/", "http://unknown.test/"):
        with pytest.raises(AimaError) as caught:
            await fetched(Egress(resolve=Names()), url)
        assert caught.value.hint
