"""What `tests.hub` serves beside its hub and index: Ollama's registry, OCI registries and ModelScope, and what each answers to a search.

DIR/v2/<owner>/<name>/<tag> are manifests, DIR/blobs/sha256-<hex> their layers (served by the CDN); DIR/ms/<owner>/<name>/<file> is a
repository of ModelScope's.
"""

from __future__ import annotations

import hashlib
import html
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from email.message import Message

    from tests.hub import Hub

Answer = tuple[int, bytes, str, Mapping[str, str]]
OLLAMA = "application/vnd.ollama.image."
MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
JSON, HTML = "application/json", "text/html"
TEMPLATE = "{{ range .Messages }}<|im_start|>{{ .Role }}\n{{ .Content }}<|im_end|>\n{{ end }}<|im_start|>assistant\n"
PARAMS = {"temperature": 0.7, "num_ctx": 512, "stop": ["<|im_end|>"], "unknown_to_us": 1}


def add_blob(hub: Hub, content: bytes) -> tuple[str, int]:
    """Keep a layer; its digest and size."""
    sha256 = hashlib.sha256(content).hexdigest()
    path = hub.root / "blobs" / f"sha256-{sha256}"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return f"sha256:{sha256}", len(content)


def add_ollama(hub: Hub, repo: str, weights: bytes, **texts: bytes) -> str:
    """Serve `name:tag` or `owner/name:tag` with its small layers; returns the manifest's digest."""
    small = {
        "template": TEMPLATE.encode(),
        "params": json.dumps(PARAMS).encode(),
        "system": b"You are small.",
        "license": b"MIT\n\nCopyright",
    }
    kinds = {"model": weights, **small, **texts}
    layers = [_layer(hub, OLLAMA + kind, content) for kind, content in kinds.items() if content]
    return add_manifest(hub, repo if "/" in repo else f"library/{repo}", layers)


def _layer(hub: Hub, kind: str, content: bytes, title: str | None = None) -> dict[str, Any]:
    digest, size = add_blob(hub, content)
    notes = {"annotations": {"org.opencontainers.image.title": title}} if title else {}
    return {"mediaType": kind, "digest": digest, "size": size, **notes}


def add_oci(hub: Hub, repo: str, files: Mapping[str, bytes], uses: int | None = None) -> str:
    """Serve an artefact whose layers are files; with `uses`, only for tokens, each good for so many requests. Returns its digest."""
    if uses is not None:
        hub.oci_tokens[repo.partition(":")[0]] = uses
    return add_manifest(hub, repo, [_layer(hub, "application/octet-stream", content, name) for name, content in files.items()])


def add_manifest(hub: Hub, repo: str, layers: list[dict[str, Any]]) -> str:
    name, _, tag = repo.partition(":")
    digest, size = add_blob(hub, b"{}")
    body = {"schemaVersion": 2, "mediaType": MANIFEST, "config": {"mediaType": JSON, "digest": digest, "size": size}, "layers": layers}
    path = hub.root / "v2" / name / tag
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(body), encoding="utf-8")
    return f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"


def add_modelscope(hub: Hub, repo: str, files: Mapping[str, bytes]) -> None:
    for name, content in files.items():
        path = hub.root / "ms" / repo / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def answer(hub: Hub, parts: list[str], asked: Mapping[str, list[str]], headers: Message) -> Answer | None:
    """What is answered at a path; None for nothing."""
    if parts[:1] == ["v2"] and len(parts) > 4:
        return _registry(hub, "/".join(parts[1:-2]), parts[-2], parts[-1], headers)
    if parts == ["token"]:
        return 200, json.dumps({"token": f"t{hub.requests['/token']}"}).encode(), JSON, {}
    if parts == ["search"]:
        return _library(hub, asked["q"][0])
    if parts == ["openapi", "v1", "models"]:
        return _scope_search(hub, asked["search"][0])
    if parts[:3] == ["api", "v1", "models"] and parts[-1] == "files":
        return _scope_files(hub, "/".join(parts[3:5]))
    if parts[:1] == ["models"] and "resolve" in parts:
        at = parts.index("resolve")
        path = "/".join(["ms", *parts[1:at], *parts[at + 2 :]])
        return (302, b"", "text/plain", {"Location": f"{hub.cdn}/{path}"}) if (hub.root / path).is_file() else None
    return None


def _registry(hub: Hub, name: str, kind: str, reference: str, headers: Message) -> Answer | None:
    if name in hub.oci_tokens:
        token = headers.get("Authorization", "").removeprefix("Bearer ")
        key = f"{name} {token}"
        hub.requests[key] += 1
        if not token or hub.requests[key] > hub.oci_tokens[name]:
            challenge = f'Bearer realm="{hub.url}/token",service="hub",scope="repository:{name}:pull"'
            return 401, b"", "text/plain", {"WWW-Authenticate": challenge}
    if kind == "manifests":
        for path in sorted((hub.root / "v2" / name).glob("*")):
            if reference in (path.name, f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"):
                return 200, path.read_bytes(), MANIFEST, {}
        return 404, json.dumps({"errors": [{"code": "MANIFEST_UNKNOWN"}]}).encode(), JSON, {}
    path = hub.root / "blobs" / reference.replace(":", "-")
    small = path.is_file() and path.stat().st_size < 10_000
    if small:
        return 200, path.read_bytes(), "application/octet-stream", {}
    return 307, b"", "text/plain", {"Location": f"{hub.cdn}/blobs/{path.name}"}


def _library(hub: Hub, words: str) -> Answer:
    """A page for people, as Ollama's library has it."""
    names = [path.parent.relative_to(hub.root / "v2") for path in sorted((hub.root / "v2").rglob("*")) if path.is_file()]
    rows = "".join(_row(name) for name in dict.fromkeys(names) if words.lower() in str(name).lower())
    body = f"<html><body><nav><a href='/download'>Download</a></nav><ul>{rows}</ul>{'' if rows else 'No models found'}</body></html>"
    return 200, body.encode(), HTML, {}


def _row(name: Path) -> str:
    shown = html.escape(name.name if name.parent.name == "library" else str(name))
    return (
        f'<li x-test-model class="x"><a href="/{html.escape(str(name))}" class="group"><h2><span>{shown}</span></h2>'
        f'<span x-test-capability class="y">tools</span><span x-test-pull-count>12.5M</span></a></li>'
    )


def _scope_search(hub: Hub, words: str) -> Answer:
    repos = [str(path.relative_to(hub.root / "ms")) for path in sorted((hub.root / "ms").glob("*/*"))]
    models = [
        {"id": repo, "downloads": 3, "tags": ["library:gguf"], "tasks": ["text-generation"], "license": "mit"}
        for repo in repos
        if words.lower() in repo.lower()
    ]
    return 200, json.dumps({"success": True, "data": {"models": models, "total_count": len(models)}}).encode(), JSON, {}


def _scope_files(hub: Hub, repo: str) -> Answer:
    folder = hub.root / "ms" / repo
    if not folder.is_dir():
        return 404, json.dumps({"Code": 10010205001, "Message": "not found", "Success": False}).encode(), JSON, {}
    files = [
        {"Name": path.name, "Path": str(path.relative_to(folder)), "Type": "blob", "Size": path.stat().st_size, "Sha256": hub.tag(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    ]
    return 200, json.dumps({"Code": 200, "Data": {"Files": [{"Type": "tree", "Path": "x"}, *files]}, "Success": True}).encode(), JSON, {}
