"""A registry of images over HTTP, as Docker asks one: manifests and blobs, on loopback, where dockerd wants no TLS."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
CONFIG, LAYER = "application/vnd.docker.container.image.v1+json", "application/vnd.docker.image.rootfs.diff.tar.gzip"


class Images:
    """Serves what `add` was given. While `gate` is not set, a blob that is longer than `half` comes half and no further."""

    def __init__(self) -> None:
        self.blobs: dict[str, bytes] = {}
        self.manifests: dict[tuple[str, str], str] = {}
        self.gate, self.waiting, self.half = threading.Event(), threading.Event(), 1 << 20
        self.gate.set()
        images = self

        class Handler(_Handler):
            served = images

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.place = f"127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        self.gate.set()
        self._server.shutdown()
        self._server.server_close()

    def keep(self, content: bytes) -> dict[str, Any]:
        digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
        self.blobs[digest] = content
        return {"digest": digest, "size": len(content)}

    def add(self, name: str, tag: str, layers: list[bytes], config: dict[str, Any]) -> str:
        """Serve an image of these layers (tars) as `place/name:tag`; its digest."""
        about = {"architecture": "amd64" if os.uname().machine == "x86_64" else "arm64", "os": "linux", "config": config}
        about["rootfs"] = {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}" for layer in layers]}
        kept = [{"mediaType": LAYER, **self.keep(gzip.compress(layer, 1))} for layer in layers]
        whole = {"schemaVersion": 2, "mediaType": MANIFEST, "layers": kept}
        digest = str(
            self.keep(json.dumps({**whole, "config": {"mediaType": CONFIG, **self.keep(json.dumps(about).encode())}}).encode())["digest"]
        )
        self.manifests[name, tag] = self.manifests[name, digest] = digest
        return digest


class _Handler(BaseHTTPRequestHandler):
    served: Images
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Nobody listens."""

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        parts = self.path.removeprefix("/v2/").rsplit("/", 2)
        if self.path.rstrip("/") == "/v2":
            self._send(200, b"{}", "application/json", {}, body)
            return
        name, kind, reference = parts if len(parts) == 3 else ("", "", "")
        digest = self.served.manifests.get((name, reference), "") if kind == "manifests" else reference
        content = self.served.blobs.get(digest)
        if content is None:
            self._send(404, b'{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown"}]}', "application/json", {}, body)
        else:
            media = MANIFEST if kind == "manifests" else "application/octet-stream"
            self._send(200, content, media, {"Docker-Content-Digest": digest}, body)

    def _send(self, status: int, content: bytes, media: str, more: dict[str, str], body: bool) -> None:
        self.send_response(status)
        for key, value in {"Content-Type": media, "Content-Length": str(len(content)), **more}.items():
            self.send_header(key, value)
        self.end_headers()
        if not body:
            return
        half = len(content) // 2 if len(content) > self.served.half and not self.served.gate.is_set() else len(content)
        try:
            self.wfile.write(content[:half])
            if half < len(content):
                self.served.waiting.set()
                self.served.gate.wait(60)
                self.wfile.write(content[half:])
        except OSError:
            self.close_connection = True  # whoever pulled has left
