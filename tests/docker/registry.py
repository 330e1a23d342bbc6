"""A registry of our own: as much of the OCI distribution API as a pull by digest asks for. Faults can be planted in its blobs."""

from __future__ import annotations

import hashlib
import io
import json
import os
import platform
import tarfile
import threading
from collections import Counter
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
MACHINES = {"x86_64": "amd64", "aarch64": "arm64"}


class Registry:
    """`image` adds one and gives its digest. `asked` counts requests by digest; a digest in `stuck` is sent to its half and no
    further, one in `slow` goes on byte by byte."""

    def __init__(self) -> None:
        self.blobs: dict[str, bytes] = {}
        self.asked: Counter[str] = Counter()
        self.stuck: set[str] = set()
        self.slow: set[str] = set()
        self.let_go = threading.Event()
        self.left = threading.Event()  # whoever was being sent something slowly has gone
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()
        self.host = f"127.0.0.1:{self._server.server_address[1]}"

    def close(self) -> None:
        self.let_go.set()
        self._server.shutdown()
        self._server.server_close()

    def image(self, *sizes: int, upon: Sequence[str] = ()) -> tuple[str, list[str]]:
        """An image with a layer of each size upon those of another; its digest, and those of its layers."""
        layers = [self.blobs[digest] for digest in upon] + [_layer(f"data{place}", size) for place, size in enumerate(sizes)]
        names = [self._add(layer) for layer in layers]
        machine = MACHINES.get(platform.machine(), platform.machine())
        config = {"architecture": machine, "os": "linux", "config": {}, "rootfs": {"type": "layers", "diff_ids": names}}
        described = json.dumps(config).encode()
        manifest = {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": {
                "mediaType": "application/vnd.docker.container.image.v1+json",
                "size": len(described),
                "digest": self._add(described),
            },
            "layers": [
                {"mediaType": "application/vnd.docker.image.rootfs.diff.tar", "size": len(layer), "digest": name}
                for layer, name in zip(layers, names, strict=True)
            ],
        }
        return self._add(json.dumps(manifest).encode()), names

    def _add(self, content: bytes) -> str:
        digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
        self.blobs[digest] = content
        return digest


def _layer(name: str, size: int) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        entry = tarfile.TarInfo(name)
        entry.size = size
        archive.addfile(entry, io.BytesIO(os.urandom(size)))
    return packed.getvalue()


def _handler(registry: Registry) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self._answer(False)

        def do_GET(self) -> None:
            self._answer(True)

        def _answer(self, whole: bool) -> None:
            digest = self.path.rpartition("/")[2]
            content = b"{}" if self.path == "/v2/" else registry.blobs.get(digest)
            if content is None:
                errors = json.dumps({"errors": [{"code": "MANIFEST_UNKNOWN", "message": "manifest unknown"}]}).encode()
                self._head(404, errors, "application/json")
                self.wfile.write(errors if whole else b"")
                return
            registry.asked[digest] += whole
            self._head(200, content, MANIFEST if "/manifests/" in self.path else "application/octet-stream", digest)
            if not whole:
                return
            if digest not in registry.stuck | registry.slow:
                self.wfile.write(content)
                return
            self.wfile.write(content[: len(content) // 2])
            self.wfile.flush()
            for place in range(len(content) // 2, len(content)):
                if registry.let_go.wait(0.05):
                    break
                try:
                    self.wfile.write(content[place : place + 1] if digest in registry.slow else b"")
                except OSError:
                    registry.left.set()
                    break
            self.close_connection = True

        def _head(self, status: int, content: bytes, kind: str, digest: str | None = None) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            if digest:
                self.send_header("Docker-Content-Digest", digest)
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    return Handler
