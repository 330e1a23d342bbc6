"""Models that are OCI artefacts of any registry: `oci://registry.example.org/owner/name:tag`, public or with an anonymous token."""

from __future__ import annotations

import re
from pathlib import PurePosixPath

from aima_lib.errors import FailedPrecondition, InvalidArgument
from aima_lib.infra.web import Web
from aima_lib.names import slug
from aima_lib.sources.base import Artefact, Config, Plan, Request, safe_name
from aima_lib.sources.choose import File, choose
from aima_lib.sources.huggingface import refuse_one_digest
from aima_lib.sources.registry import DIGEST, Layer, Registry

REPO = re.compile(
    r"oci://([a-z0-9.-]+(?::\d{1,5})?)/([a-z0-9][a-z0-9._/-]{0,199}?)(?::([\w][\w.-]{0,127}))?(?:@(sha256:[0-9a-f]{64}))?", re.I
)


async def resolve(request: Request, config: Config, web: Web) -> Plan:  # noqa: ARG001 - as all sources
    """Ask the registry for the manifest and choose among its layers as among a repository's files.

    Raises:
        NotFound: no such artefact or tag.
        FailedPrecondition: none of its layers is a GGUF or safetensors.
    """
    found = REPO.fullmatch(request.repo)
    if found is None or ".." in request.repo or "//" in found[2]:
        raise InvalidArgument(f"{request.repo!r} is not an OCI artefact", hint="write it like oci://registry.example.org/owner/name:tag")
    base = request.mirror or f"{'http' if _is_local(found[1]) else 'https'}://{found[1]}"
    if request.revision and not DIGEST.fullmatch(request.revision):
        raise InvalidArgument(f"{request.revision!r} is no manifest's digest", hint="write it like sha256:…, or give the tag in repo")
    registry = Registry(base, found[2].lower(), web)
    digest, layers, _ = await registry.manifest(request.revision or found[4] or found[3] or "latest")
    stem = slug(f"{found[2].rpartition('/')[2]}-{found[3] or 'latest'}")
    named = {_name(layer, stem): layer for layer in layers if _is_weights(layer)}
    if not named:
        kinds = sorted({layer.media_type for layer in layers})
        raise FailedPrecondition(f"{request.repo} has no layer with weights, only {', '.join(kinds)[:400] or 'nothing'}")
    _, kind, chosen, quantization = choose(request, [File(name, layer.size, layer.sha256) for name, layer in named.items()])
    refuse_one_digest(request, chosen)
    artefacts = tuple(
        Artefact(PurePosixPath(file.name).name, (registry.part(named[file.name]),), request.sha256 or file.sha256, file.size)
        for file in chosen
    )
    return Plan(stem, kind, digest, artefacts, None, quantization)


def _is_local(host: str) -> bool:
    """This machine's own registries speak no TLS."""
    return host.partition(":")[0] in ("localhost", "127.0.0.1")


def _is_weights(layer: Layer) -> bool:
    return layer.title is not None or "gguf" in layer.media_type


def _name(layer: Layer, stem: str) -> str:
    return safe_name(layer.title) if layer.title else f"{stem}.gguf"
