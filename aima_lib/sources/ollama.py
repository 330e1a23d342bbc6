"""Models of Ollama's registry: `name:tag`, `owner/name:tag`. Weights are one layer; template, system prompt and parameters are others."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any
from urllib.parse import urlencode

from aima_lib.errors import FailedPrecondition, InvalidArgument, Unavailable
from aima_lib.infra.places import shown
from aima_lib.infra.web import Web
from aima_lib.names import slug
from aima_lib.sources.base import Artefact, Config, Hit, Plan, Query, Request
from aima_lib.sources.choose import quantization_of
from aima_lib.sources.registry import DIGEST, Layer, Registry

REPO = re.compile(r"(?:([\w-][\w.-]{0,79})/)?([\w-][\w.-]{0,79})(?::([\w][\w.-]{0,127}))?")
KIND = "application/vnd.ollama.image."
# Ollama's names of parameters, and the field's.
PARAMETERS = {
    "num_ctx": "context_length",
    "num_predict": "max_tokens",
    "temperature": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "repeat_penalty": "repeat_penalty",
    "presence_penalty": "presence_penalty",
    "frequency_penalty": "frequency_penalty",
    "seed": "seed",
}
MOST_STOPS, LARGEST_PAGE = 32, 8 << 20


async def resolve(request: Request, config: Config, web: Web) -> Plan:
    """Ask the registry for the manifest, and read its small layers.

    Raises:
        NotFound: no such model or tag.
        FailedPrecondition: the model has no GGUF.
    """
    found = REPO.fullmatch(request.repo)
    if found is None:
        raise InvalidArgument(f"{request.repo!r} is not a model of Ollama's", hint="write it like name:tag or owner/name:tag")
    if request.file or request.quantization:
        raise InvalidArgument("Ollama's models have no files to choose from", hint="the tag says which quantization, e.g. name:0.5b-q8_0")
    owner, name, tag = found[1] or "library", found[2], found[3] or "latest"
    if request.revision and not DIGEST.fullmatch(request.revision):
        raise InvalidArgument(f"{request.revision!r} is no manifest's digest", hint="write it like sha256:…, or give the tag in repo")
    registry = Registry(request.mirror or config.get("ollama_endpoint") or "", f"{owner}/{name}", web)
    digest, layers, _ = await registry.manifest(request.revision or tag)
    stem = slug(f"{name}-{tag}")
    pieces = pieces_of(stem, layers)
    if not pieces:
        kinds = sorted({layer.media_type.removeprefix(KIND) for layer in layers})
        raise FailedPrecondition(f"{request.repo} has no layer with a GGUF, only {', '.join(kinds) or 'nothing'}")
    artefacts = [Artefact(each, (registry.part(layer),), layer.sha256, layer.size) for each, layer in pieces.items()]
    if request.sha256:
        artefacts[0] = replace(artefacts[0], sha256=request.sha256)
    texts = {kind: await registry.text(layer) for kind, layer in texts_of(layers).items()}
    return Plan(stem, "gguf", digest, tuple(artefacts), license_of(texts), quantization_of(tag), defaults_of(texts))


def pieces_of(stem: str, layers: Sequence[Layer]) -> dict[str, Layer]:
    """The files of a model, by the names they are given; the weights first. Empty when there are none."""
    named: dict[str, Layer] = {}
    for kind, prefix in (("model", ""), ("projector", "mmproj-")):
        found = [layer for layer in layers if layer.media_type == KIND + kind]
        for place, layer in enumerate(found, 1):
            ordinal = f"-{place:05d}-of-{len(found):05d}" if len(found) > 1 else ""
            named[f"{prefix}{stem}{ordinal}.gguf"] = layer
        if not named:
            break
    return named


def texts_of(layers: Sequence[Layer]) -> dict[str, Layer]:
    """The small layers that say how a model is meant to be used."""
    kinds = ("template", "system", "params", "license")
    return {kind: layer for kind in kinds for layer in reversed(layers) if layer.media_type == KIND + kind}


def license_of(texts: Mapping[str, str]) -> str | None:
    """The licence's name: the first line of its text."""
    return next((line.strip()[:200] for line in texts.get("license", "").splitlines() if line.strip()), None)


def defaults_of(texts: Mapping[str, str]) -> dict[str, Any]:
    """What the publisher set: the small layers `template`, `system` and `params`, under the field's names.

    Raises:
        Unavailable: the parameters are no JSON object.
    """
    parameters: dict[str, Any] = {}
    try:
        said = json.loads(texts.get("params", "{}"))
        for theirs, ours in PARAMETERS.items():
            value = said.get(theirs)
            if isinstance(value, int | float) and not isinstance(value, bool):
                parameters[ours] = value
        stops = said.get("stop")
        stops = [stops] if isinstance(stops, str) else stops if isinstance(stops, list) else []
        if words := [word for word in stops if isinstance(word, str)][:MOST_STOPS]:
            parameters["stop"] = words
    except (ValueError, AttributeError, RecursionError) as error:
        raise Unavailable(f"the model's parameters are no JSON: {error}", hint="name another mirror") from error
    template, system = texts.get("template"), texts.get("system")
    if not (parameters or template or system):
        return {}
    return {"parameters": parameters, "system": system, "template": template, "template_language": "go" if template else None}


async def search(query: Query, config: Config, web: Web) -> list[Hit]:
    """What Ollama's library shows for the words. It has pages for people only, so what cannot be found on one is None."""
    if query.type not in (None, "llm", "vlm", "embedding") or query.format not in (None, "gguf"):
        return []
    kind = {"vlm": {"c": "vision"}, "embedding": {"c": "embedding"}}.get(query.type or "", {})
    url = f"{(config.get('ollama_library') or '').rstrip('/')}/search?{urlencode({'q': query.words, **kind})}"
    page = await web.get(url, {"Accept": "text/html"}, LARGEST_PAGE)
    text = page.body.decode("utf-8", errors="replace")
    reader = Shelves()
    reader.feed(text)
    if not reader.rows and "no models" not in text.lower():
        raise Unavailable(f"{shown(url)} is not the page it was: no models can be read from it", hint="search another source")
    return [Hit(name, "ollama", _type(row), "gguf", row.pulls) for name, row in reader.rows.items()][: query.limit]


class Row:
    """What a page says of one model."""

    def __init__(self) -> None:
        self.capabilities: set[str] = set()
        self.pulls: int | None = None


def _type(row: Row) -> str | None:
    return "embedding" if "embedding" in row.capabilities else "vlm" if "vision" in row.capabilities else "llm"


class Shelves(HTMLParser):
    """Reads links to models, and what is marked between one and the next."""

    LINK = re.compile(r"/(?:library/([\w.-]+)|([\w.-]+/[\w.-]+))/?")

    def __init__(self) -> None:
        super().__init__()
        self.rows: dict[str, Row] = {}
        self._row: Row | None = None
        self._mark: str | None = None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        told = dict(attrs)
        if tag == "li":
            self._row = Row()
        found = self.LINK.fullmatch(told.get("href") or "") if tag == "a" else None
        if found and self._row is not None and self._row not in self.rows.values():
            self.rows.setdefault(found[1] or found[2], self._row)
        self._mark = next((name for name in ("x-test-pull-count", "x-test-capability") if name in told), None)

    def handle_endtag(self, tag: str) -> None:
        self._mark = None
        if tag == "li":
            self._row = None

    def handle_data(self, data: str) -> None:
        if self._row is None or self._mark is None:
            return
        if self._mark == "x-test-capability":
            self._row.capabilities.add(data.strip().lower())
        elif found := re.fullmatch(r"([\d.]+)\s*([KMB]?)", data.strip().replace(",", "")):
            try:
                self._row.pulls = int(float(found[1]) * {"": 1, "K": 1e3, "M": 1e6, "B": 1e9}[found[2]])
            except ValueError:
                self._row.pulls = None
