"""Bytes between two machines, by TLS whose two ends were made for one start and trust each other alone.

What goes through is the engine's own HTTP with the engine's own key, unread: an engine listens on the loopback of its node, as at home.
"""

from __future__ import annotations

import asyncio
import ssl
import tempfile
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

PIECE = 1 << 16
CONNECT_SECONDS = 5.0
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@dataclass(frozen=True, slots=True)
class Identity:
    """One end: its certificate, which the other is told, and the key to it, which stays; both PEM."""

    certificate: str
    key: str


def identity() -> Identity:
    """A new one. Good for years: an engine may run so long."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "aima")])
    begins = datetime.now(UTC) - timedelta(days=1)  # the other machine's clock may be behind
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(x509.random_serial_number()).not_valid_before(begins).not_valid_after(begins + timedelta(days=3650))
    plain = serialization.NoEncryption()
    private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain)
    return Identity(builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode(), private.decode())


def context(own: Identity, other: str, *, listens: bool) -> ssl.SSLContext:
    """TLS with whoever has the key to that one certificate, and with nobody else."""
    found = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if listens else ssl.PROTOCOL_TLS_CLIENT)
    found.minimum_version = ssl.TLSVersion.TLSv1_3
    found.check_hostname = False  # the certificate itself is known, so its name says nothing more
    found.verify_mode = ssl.CERT_REQUIRED
    found.load_verify_locations(cadata=other)
    with tempfile.NamedTemporaryFile("w", suffix=".pem") as file:  # the library reads it from a file only; this one is its owner's alone
        file.write(own.certificate + own.key)
        file.flush()
        found.load_cert_chain(file.name)
    return found


class Door:
    """Listens, and joins each connection with one that `reach` opens; `close_all` cuts those that are open."""

    def __init__(self, reach: Callable[[], Awaitable[Streams]]) -> None:
        self._reach = reach
        self._open: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def listen(self, host: str, port: int = 0, tls: ssl.SSLContext | None = None) -> int:
        """Listen there; the port."""
        self._server = await asyncio.start_server(self._join, host, port, ssl=tls)
        return int(self._server.sockets[0].getsockname()[1])

    def close_all(self) -> None:
        """Cut every connection."""
        for task in self._open:
            task.cancel()

    def close(self) -> None:
        """Listen no more, and cut every connection."""
        if self._server is not None:
            self._server.close()
        self.close_all()

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._open.add(task)
        far: Streams | None = None
        try:
            far = await asyncio.wait_for(self._reach(), CONNECT_SECONDS)
            await _joined((reader, writer), far)
        except (OSError, TimeoutError, asyncio.CancelledError):
            pass  # who asks sees its connection closed, which is what there is to say
        finally:
            self._open.discard(task)
            for each in (writer, far[1] if far else None):
                if each is not None:
                    each.transport.abort() if each.transport.get_write_buffer_size() else each.close()


async def _joined(near: Streams, far: Streams) -> None:
    """Carry bytes both ways until one side ends."""
    pumps = [asyncio.ensure_future(_pump(near[0], far[1])), asyncio.ensure_future(_pump(far[0], near[1]))]
    try:
        await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for pump in pumps:
            pump.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(PIECE):
            writer.write(data)
            await writer.drain()


async def reach(host: str, port: int, tls: ssl.SSLContext | None = None) -> Streams:
    """Connect. Raises OSError."""
    return await asyncio.open_connection(host, port, ssl=tls)
