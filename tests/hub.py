"""Hubs, registries and a package index of one's own: `python -m tests.hub --root DIR`, or `with Hub(root) as hub`.

DIR/hf/<owner>/<name>/<file> is a repository with Hugging Face's API (downloads are redirected to a second port, the "CDN", as the
real hub does; a file `.token` makes the repository private). DIR/simple/<project>/<wheel> is a package index, in JSON and in HTML.
DIR/files/<name> is a plain file; Ollama's and OCI registries and ModelScope are in `tests.registries`.
`GET /_counts` tells the bytes sent for each path and how often credentials reached the CDN; `POST /_faults` with
{"<path's end>": {"status": 500, "times": 2}} breaks things; `POST /_reset` forgets both.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import socket
import struct
import tempfile
import threading
import time
import zipfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatchcase
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO
from urllib.parse import parse_qs, unquote, urlsplit

from tests import registries
from tests.tiny import write_tiny_gguf

CHUNK = 16 << 10
JSON_PAGE = "application/vnd.pypi.simple.v1+json"


@dataclass
class Fault:
    """What goes wrong with a path. `times` answers have it, or all."""

    status: int | None = None
    retry_after: int | None = None
    bytes_per_second: float | None = None
    reset_after: int | None = None
    stall_after: int | None = None
    wrong_byte: int | None = None
    etag: str | None = None
    no_range: bool = False
    no_etag: bool = False
    more: int = 0  # bytes that it says, and sends, beyond what there are
    times: int | None = None


@dataclass
class Hub:
    """Both servers, and what happened to them. Without a root it serves a folder of its own, furnished."""

    given: Path | None = None
    port: int = 0
    html_only: bool = False
    license: str = "apache-2.0"
    counts: Counter[str] = field(default_factory=Counter)
    requests: Counter[str] = field(default_factory=Counter)
    credentials_at_cdn: int = 0
    faults: dict[str, Fault] = field(default_factory=dict)
    lies: dict[str, bytes] = field(default_factory=dict)  # what is answered instead, by path
    oci_tokens: dict[str, int] = field(default_factory=dict)  # for how many requests each is good
    _tags: dict[tuple[Path, int, int], str] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _ending: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Hub:
        self._folder = tempfile.TemporaryDirectory(prefix="hub-")
        self.root = self.given or Path(self._folder.name)
        if self.given is None:
            furnish(self)
        self._servers = [_Server(("127.0.0.1", port), _handler(self, cdn)) for port, cdn in ((self.port, False), (0, True))]
        self._threads = [threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True) for server in self._servers]
        for thread in self._threads:
            thread.start()
        self.url, self.cdn = (f"http://127.0.0.1:{server.server_address[1]}" for server in self._servers)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._ending.set()
        for server in self._servers:
            server.shutdown()
            server.server_close()
        for thread in self._threads:
            thread.join()
        self._folder.cleanup()

    @property
    def config(self) -> str:
        """What config.toml says to a host that uses it: the CDN is a place that only the hub names."""
        sources = f'[sources]\nhuggingface_endpoint = "{self.url}"\npypi_index = "{self.url}/simple"\nhuggingface_token_env = "HUB_TOKEN"\n'
        sources += "".join(f'{key} = "{self.url}"\n' for key in ("ollama_endpoint", "ollama_library", "modelscope_endpoint"))
        return f'{sources}[egress]\nallow = ["{urlsplit(self.cdn).netloc}"]\n'

    # Content

    def add_repo(self, repo: str, files: Mapping[str, bytes], *, token: str | None = None) -> None:
        """Serve a repository; with a token, a private one."""
        for name, content in files.items():
            path = self.root / "hf" / repo / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        if token is not None:
            (self.root / "hf" / repo / ".token").write_text(token, encoding="utf-8")

    def add_file(self, name: str, content: bytes) -> str:
        """Serve a plain file; returns its address."""
        path = self.root / "files" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return f"{self.url}/files/{name}"

    def add_wheel(self, project: str, version: str, members: Mapping[str, bytes]) -> Path:
        """Serve a wheel that holds these members."""
        folder = self.root / "simple" / project
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{project.replace('-', '_')}-{version}-py3-none-any.whl"
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in members.items():
                archive.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED)
        path.write_bytes(buffer.getvalue())
        return path

    # What handlers ask

    def fault(self, path: str) -> Fault:
        """The fault for this answer; used up when it was the last time."""
        with self._lock:
            for pattern, fault in self.faults.items():
                if fnmatchcase(path, f"*{pattern}") and fault.times != 0:
                    fault.times = None if fault.times is None else fault.times - 1
                    return fault
        return Fault()

    def sent(self, path: str, count: int) -> None:
        with self._lock:
            self.counts[path] += count

    def asked(self, path: str, credentials: bool, cdn: bool) -> None:
        with self._lock:
            self.requests[path] += 1
            self.credentials_at_cdn += credentials and cdn

    def wait(self, seconds: float) -> bool:
        """Sleep, unless the hub ends first: then True."""
        return self._ending.wait(seconds)

    def reset(self) -> None:
        with self._lock:
            self.counts.clear()
            self.requests.clear()
            self.faults.clear()
            self.lies.clear()
            self.credentials_at_cdn = 0

    def files(self, repo: str) -> dict[str, Path]:
        folder = self.root / "hf" / repo
        return {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != ".token"}

    def commit(self, repo: str) -> str:
        listed = "".join(f"{name}{self.tag(path)}" for name, path in self.files(repo).items())
        return hashlib.sha1(listed.encode()).hexdigest()

    def tag(self, path: Path) -> str:
        """A file's digest, reckoned once."""
        state = path.stat()
        key = (path, state.st_size, state.st_mtime_ns)
        if key not in self._tags:
            self._tags[key] = sha256_of(path)
        return self._tags[key]


def sha256_of(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def git_oid_of(path: Path) -> str:
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that leaves is no news."""


def _handler(hub: Hub, cdn: bool) -> type[BaseHTTPRequestHandler]:
    class Handler(_Answer):
        pass

    Handler.hub, Handler.is_cdn = hub, cdn
    return Handler


class _Answer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub
    is_cdn: bool

    def log_message(self, format: str, *args: Any) -> None:
        """Counts tell enough."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path == "/_reset":
            self.hub.reset()
        elif self.path == "/_faults":
            self.hub.faults = {pattern: Fault(**fault) for pattern, fault in json.loads(body).items()}
        self._say(200, json.dumps({pattern: asdict(fault) for pattern, fault in self.hub.faults.items()}).encode(), "application/json")

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        if path == "/_counts":
            told = {"bytes": self.hub.counts, "requests": self.hub.requests, "credentials_at_cdn": self.hub.credentials_at_cdn}
            return self._say(200, json.dumps(told).encode(), "application/json")
        self.hub.asked(path, "Authorization" in self.headers, self.is_cdn)
        fault = self.hub.fault(path)
        if fault.status is not None:
            extra = {} if fault.retry_after is None else {"Retry-After": str(fault.retry_after)}
            return self._say(fault.status, b"", "text/plain", extra)
        if path in self.hub.lies:
            return self._say(200, self.hub.lies[path], "application/json")
        parts = [part for part in path.split("/") if part]
        if self.is_cdn:
            folder = self.hub.root if parts[:1] in (["blobs"], ["ms"]) else self.hub.root / "hf"
            return self._file(folder / "/".join(parts), path, fault)
        if parts == ["api", "models"]:
            return self._found(parse_qs(urlsplit(self.path).query))
        if parts[:2] == ["api", "models"] and "revision" in parts[4:]:
            return self._repo("/".join(parts[2 : parts.index("revision")]), parts[-1])
        if "resolve" in parts and parts[0] != "models":
            return self._resolve(parts)
        if parts[:1] == ["simple"] and len(parts) == 2:
            return self._project(parts[1])
        if parts[:1] == ["packages"]:
            return self._file(self.hub.root / "simple" / "/".join(parts[1:]), path, fault)
        if parts[:1] == ["files"]:
            return self._file(self.hub.root / "/".join(parts), path, fault)
        answer = registries.answer(self.hub, parts, parse_qs(urlsplit(self.path).query), self.headers)
        return self._say(*(answer or (404, b"", "text/plain")))

    def _found(self, asked: Mapping[str, list[str]]) -> None:
        """Hugging Face's search."""
        found = []
        for folder in sorted((self.hub.root / "hf").glob("*/*")):
            repo = f"{folder.parent.name}/{folder.name}"
            formats = sorted({path.suffix[1:] for path in folder.iterdir()} & {"gguf", "safetensors"})
            if asked["search"][0].lower() in repo.lower() and asked.get("filter", formats[:1]) == formats[:1]:
                tags = [*formats, f"license:{self.hub.license}"]
                found.append(
                    {"id": repo, "downloads": 7, "tags": tags, "pipeline_tag": "text-generation", "lastModified": "2026-01-01T00:00:00Z"}
                )
        self._say(200, json.dumps(found[: int(asked["limit"][0])]).encode(), "application/json")

    def _refused(self, repo: str) -> bool:
        token = self.hub.root / "hf" / repo / ".token"
        given = self.headers.get("Authorization", "").removeprefix("Bearer ")
        status = 404 if not self.hub.files(repo) else 200
        if token.exists() and given != token.read_text(encoding="utf-8"):
            status = 403 if given else 401
        if status != 200:
            self._say(status, b"", "text/plain")
        return status != 200

    def _repo(self, repo: str, revision: str) -> None:
        if self._refused(repo):
            return None
        if revision not in ("main", self.hub.commit(repo)):
            return self._say(404, b"", "text/plain")
        siblings: list[dict[str, Any]] = []
        for name, path in self.hub.files(repo).items():
            size = path.stat().st_size
            large = path.suffix in (".gguf", ".safetensors")
            told = {"lfs": {"sha256": self.hub.tag(path), "size": size}} if large else {"blobId": git_oid_of(path)}
            siblings.append({"rfilename": name, "size": size, **told})
        body = {"id": repo, "sha": self.hub.commit(repo), "siblings": siblings, "cardData": {"license": self.hub.license}}
        return self._say(200, json.dumps(body).encode(), "application/json")

    def _resolve(self, parts: list[str]) -> None:
        at = parts.index("resolve")
        repo, name = "/".join(parts[:at]), "/".join(parts[at + 2 :])
        if self._refused(repo):
            return None
        if name not in self.hub.files(repo) or parts[at + 1] not in ("main", self.hub.commit(repo)):
            return self._say(404, b"", "text/plain")
        return self._say(302, b"", "text/plain", {"Location": f"{self.hub.cdn}/{repo}/{name}?signature=secret"})

    def _project(self, project: str) -> None:
        folder = self.hub.root / "simple" / project
        if not folder.is_dir():
            return self._say(404, b"", "text/plain")
        wheels = sorted(folder.glob("*.whl"))
        if "json" in self.headers.get("Accept", "") and not self.hub.html_only:
            files = [
                {
                    "filename": w.name,
                    "url": f"../../packages/{project}/{w.name}",
                    "hashes": {"sha256": sha256_of(w)},
                    "size": w.stat().st_size,
                }
                for w in wheels
            ]
            body = {"meta": {"api-version": "1.1"}, "name": project, "versions": [], "files": files}
            return self._say(200, json.dumps(body).encode(), JSON_PAGE)
        links = "".join(f'<a href="../../packages/{project}/{w.name}#sha256={sha256_of(w)}">{w.name}</a>' for w in wheels)
        return self._say(200, f"<!DOCTYPE html><html><body>{links}</body></html>".encode(), "text/html")

    def _file(self, path: Path, url_path: str, fault: Fault) -> None:
        if not path.is_file():
            return self._say(404, b"", "text/plain")
        size = path.stat().st_size + fault.more
        headers = (
            {} if fault.no_etag else {"ETag": fault.etag or f'"{self.hub.tag(path)[:24]}{"x" if fault.wrong_byte is not None else ""}"'}
        )
        wanted, start, end = self.headers.get("Range", ""), 0, size
        if wanted.startswith("bytes=") and not fault.no_range and self.headers.get("If-Range", headers.get("ETag")) == headers.get("ETag"):
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            start, end = int(first), min(int(last) + 1, size) if last else size
            if start >= size:
                return self._say(416, b"", "text/plain", {"Content-Range": f"bytes */{size}"})
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
        self._head(
            206 if "Content-Range" in headers else 200, end - start, "application/octet-stream", headers | {"Accept-Ranges": "bytes"}
        )
        if fault == Fault(etag=fault.etag, no_range=fault.no_range, no_etag=fault.no_etag, times=fault.times):
            return self._pour(path, start, end, url_path)
        with path.open("rb") as stream:
            return self._drip(stream, start, end, url_path, fault)

    def _pour(self, path: Path, start: int, end: int, url_path: str) -> None:
        """As fast as the kernel can."""
        self.wfile.flush()
        with path.open("rb") as stream:
            while start < end:
                sent = os.sendfile(self.connection.fileno(), stream.fileno(), start, min(4 << 20, end - start))
                if not sent:
                    return
                self.hub.sent(url_path, sent)
                start += sent

    def _drip(self, stream: BinaryIO, start: int, end: int, url_path: str, fault: Fault) -> None:
        """With what goes wrong on the way."""
        sent, began, size = 0, time.monotonic(), end - start
        stream.seek(start)
        while sent < size:
            if fault.stall_after is not None and sent >= fault.stall_after:
                self.hub.wait(3600)
                return
            if fault.reset_after is not None and sent >= fault.reset_after:
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.close_connection = True
                self.connection.close()
                return
            length = min(CHUNK, size - sent)
            piece = bytearray(stream.read(length).ljust(length, b"\0"))
            if fault.wrong_byte is not None and 0 <= (at := fault.wrong_byte - start - sent) < length:
                piece[at] ^= 0xFF
            self.wfile.write(piece)
            sent += len(piece)
            self.hub.sent(url_path, len(piece))
            if fault.bytes_per_second and self.hub.wait(max(0.0, sent / fault.bytes_per_second - (time.monotonic() - began))):
                return

    def _head(self, status: int, length: int, kind: str, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(length), "Content-Type": kind, **headers}.items():
            self.send_header(name, value)
        self.end_headers()

    def _say(self, status: int, body: bytes, kind: str, headers: Mapping[str, str] | None = None) -> None:
        self._head(status, len(body), kind, headers or {})
        self.wfile.write(body)


def furnish(hub: Hub) -> None:
    """The content that examples and crash tests count on: aima/tiny-GGUF of both hubs, and aima-tiny:f32 of Ollama's registry."""
    target = hub.root / "hf/aima/tiny-GGUF/tiny-f32.gguf"
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        write_tiny_gguf(target)
        registries.add_modelscope(hub, "aima/tiny-GGUF", {target.name: target.read_bytes()})
        registries.add_ollama(hub, "aima-tiny:f32", target.read_bytes())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--port", type=int, default=0)
    given = parser.parse_args()
    with Hub(given.root, given.port) as hub:
        furnish(hub)
        print(json.dumps({"url": hub.url, "cdn": hub.cdn, "index": f"{hub.url}/simple"}), flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    main()
