"""Weights at any https address: one file, or every shard of a set when one of them is named."""

from __future__ import annotations

import re
from pathlib import PurePosixPath
from urllib.parse import quote, unquote, urlsplit

from aima_lib.errors import FailedPrecondition, InvalidArgument
from aima_lib.infra.places import place
from aima_lib.infra.web import Web
from aima_lib.names import slug
from aima_lib.sources.base import Artefact, Config, Part, Plan, Request, safe_name
from aima_lib.sources.choose import PICKLES, SHARD, quantization_of

SUFFIXES = {".gguf": "gguf", ".safetensors": "safetensors", ".onnx": "onnx"}
FRAGMENT = re.compile(r"sha256=([0-9a-fA-F]{64})")
MOST_SHARDS = 400


async def resolve(request: Request, config: Config, web: Web) -> Plan:  # noqa: ARG001 - as all sources
    """The file that the address names. `#sha256=…` after it is its digest, as package indexes write it.

    Raises:
        InvalidArgument: no plain http address, or it is given what only repositories have.
    """
    if request.revision or request.quantization or request.file or request.mirror:
        raise InvalidArgument("an address names one file", hint="leave revision, quantization, file and mirror out")
    address, _, fragment = request.repo.partition("#")
    place(address)
    found = FRAGMENT.fullmatch(fragment)
    if fragment and found is None:
        raise InvalidArgument(f"#{fragment[:80]} is no digest", hint="write #sha256= and 64 hex digits, or leave it out")
    sha256 = found[1].lower() if found else request.sha256
    if found and request.sha256 not in (None, sha256):
        raise InvalidArgument("the address and sha256 name different digests", hint="give the digest once")
    name = safe_name(PurePosixPath(unquote(urlsplit(address).path)).name or "weights.gguf")
    suffix = PurePosixPath(name).suffix.lower()
    if suffix in PICKLES:
        raise FailedPrecondition(f"{name} may be a pickle, which runs code when it is loaded", hint="look for safetensors or GGUF")
    format = SUFFIXES.get(suffix, "gguf")  # what it really is, its head will tell
    names = _shards(name)
    if len(names) > 1 and sha256:
        raise InvalidArgument(f"{name} is one of {len(names)} shards: one sha256 cannot describe them", hint="leave sha256 out")
    artefacts = tuple(Artefact(each, (Part(_beside(address, name, each), None, sha256),), sha256) for each in names)
    return Plan(slug(SHARD.sub("", name).removesuffix(suffix)), format, None, artefacts, None, quantization_of(name))


def _shards(name: str) -> list[str]:
    found = SHARD.search(name)
    if found is None:
        return [name]
    count = int(found[2])
    if not 0 < count <= MOST_SHARDS:
        raise InvalidArgument(f"{name} says it is one of {count} shards, at most {MOST_SHARDS} are fetched")
    return [f"{name[: found.start()]}-{number:05d}-of-{found[2]}{name[found.end() :]}" for number in range(1, count + 1)]


def _beside(address: str, name: str, other: str) -> str:
    if name == other:
        return address
    parts = urlsplit(address)
    return parts._replace(path=parts.path[: parts.path.rindex("/") + 1] + quote(other)).geturl()
