"""What Ollama's registry and OCI registries have in common: manifests, blobs by digest, and the anonymous token they may ask for."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, urlencode

from aima_lib.errors import NotFound, PermissionDenied, Unavailable
from aima_lib.infra.places import shown
from aima_lib.infra.web import Challenged, Page, Web
from aima_lib.sources.base import Part, sized

DIGEST = re.compile(r"sha256:([0-9a-f]{64})")
PARAMETER = re.compile(r'(\w+)="([^"]*)"')
LARGEST_MANIFEST, LARGEST_TEXT = 4 << 20, 1 << 20
MANIFESTS = (
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
    "application/vnd.oci.image.index.v1+json",
)


@dataclass(frozen=True, slots=True)
class Layer:
    """What a manifest says of one blob."""

    media_type: str
    sha256: str
    size: int
    title: str | None = None


@dataclass(slots=True)
class Registry:
    """One repository of a registry, read only."""

    base: str
    name: str
    web: Web
    _headers: dict[str, str] = field(default_factory=dict, repr=False)
    _challenge: str = ""

    async def manifest(self, reference: str) -> tuple[str, list[Layer], Mapping[str, Any]]:
        """Digest, layers and the whole of a manifest, by tag or digest.

        Raises:
            NotFound: there is none.
            Unavailable: what came is no manifest, or not the one of that digest.
        """
        url = f"{self.base.rstrip('/')}/v2/{self.name}/manifests/{quote(reference, safe=':')}"
        try:
            page = await self._get(url, {"Accept": ", ".join(MANIFESTS)}, LARGEST_MANIFEST)
        except NotFound as error:
            words = self.name.rpartition("/")[2]
            calls = [{"unit": "model.search", "arguments": {"query": words, "source": "ollama"}}]
            raise NotFound(f"no {self.name} at {reference} on {shown(self.base)}", hint="check name and tag", next=calls) from error
        digest = f"sha256:{hashlib.sha256(page.body).hexdigest()}"
        if DIGEST.fullmatch(reference) and digest != reference:
            raise Unavailable(f"{shown(url)} answers a manifest that hashes to {digest}", hint="name another mirror")
        try:
            whole = json.loads(page.body)
            if "manifests" in whole and "layers" not in whole:
                return await self._one_of(whole["manifests"], reference)
            return digest, layers_of(whole), whole
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise Unavailable(f"{shown(url)} does not answer a manifest: {error}", hint="is it a registry? check the mirror") from error

    async def _one_of(self, entries: Any, reference: str) -> tuple[str, list[Layer], Mapping[str, Any]]:
        digests = [str(entry["digest"]) for entry in entries]
        if not digests or not DIGEST.fullmatch(digests[0]) or DIGEST.fullmatch(reference):  # an index of indexes has no end
            raise Unavailable(f"{self.name} at {reference} is an index that leads to no manifest", hint="name one manifest by its digest")
        return await self.manifest(digests[0])

    async def text(self, layer: Layer) -> str:
        """A small layer, verified.

        Raises:
            Unavailable: it is not what its digest says, or too large for a text.
        """
        part = self.part(layer)
        page = await self._get(part.url, {}, LARGEST_TEXT)
        if hashlib.sha256(page.body).hexdigest() != layer.sha256:
            raise Unavailable(f"{shown(part.url)} does not hash to what its name says", hint="name another mirror")
        return page.body.decode("utf-8", errors="replace")

    def part(self, layer: Layer) -> Part:
        """A layer as what is to be fetched."""
        url = f"{self.base.rstrip('/')}/v2/{self.name}/blobs/sha256:{layer.sha256}"
        return Part(url, layer.size, layer.sha256, None, dict(self._headers), self._renew if self._headers else None)

    async def _get(self, url: str, headers: Mapping[str, str], most: int) -> Page:
        try:
            return await self.web.get(url, {**headers, **self._headers}, most)
        except Challenged as error:
            if self._headers or not error.challenge.lower().startswith("bearer "):
                raise
            await self._login(error.challenge)
        return await self.web.get(url, {**headers, **self._headers}, most)

    async def _login(self, challenge: str) -> None:
        """Fetch the token that anybody may have."""
        asked = dict(PARAMETER.findall(challenge))
        realm = asked.pop("realm", "")
        scope = asked.get("scope") or f"repository:{self.name}:pull"
        url = f"{realm}?{urlencode({'service': asked.get('service', ''), 'scope': scope})}"
        page = await self.web.get(url, {"Accept": "application/json"}, LARGEST_TEXT)
        try:
            said = json.loads(page.body)
            token = said.get("token") or said["access_token"]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise PermissionDenied(f"{shown(url)} gives out no token", hint="is the repository public?") from error
        if not (isinstance(token, str) and token.isascii() and token.isprintable()):
            raise PermissionDenied(f"{shown(url)} gives out what no token is", hint="name another mirror")
        self._headers = {"Authorization": f"Bearer {token}"}
        self._challenge = challenge

    async def _renew(self) -> Mapping[str, str]:
        await self._login(self._challenge)
        return self._headers


def layers_of(manifest: Mapping[str, Any]) -> list[Layer]:
    """The layers of a manifest.

    Raises:
        ValueError, KeyError, TypeError, AttributeError: it is none.
    """
    return [_layer(each) for each in manifest["layers"]]


def _layer(said: Mapping[str, Any]) -> Layer:
    digest, size = said.get("digest"), sized(said.get("size"))
    found = DIGEST.fullmatch(digest) if isinstance(digest, str) else None
    if found is None or size is None:
        raise ValueError(f"a layer has the digest {str(digest)[:100]!r} and the size {str(said.get('size'))[:30]}")
    notes = said.get("annotations") if isinstance(said.get("annotations"), dict) else {}
    title = (notes or {}).get("org.opencontainers.image.title") or (notes or {}).get("org.cncf.model.filepath")
    return Layer(str(said.get("mediaType", "")), found[1], size, title if isinstance(title, str) else None)
