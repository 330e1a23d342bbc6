"""Models of a hub with Hugging Face's API."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import quote

from aima_lib.errors import FailedPrecondition, InvalidArgument, NotFound, PermissionDenied, Unavailable
from aima_lib.infra.places import Barred, shown
from aima_lib.infra.web import Web
from aima_lib.names import nearest, slug
from aima_lib.sources.base import Artefact, Part, Plan, Request, matches, safe_name

REPO = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
QUANTIZATION = re.compile(
    r"(?<![a-z0-9])(iq\d_(?:xxs|xs|s|m|nl)|q\d_k(?:_(?:xl|xs|s|m|l))?|q\d_[01]|tq\d_0|mxfp4|bf16|f16|f32)(?![a-z0-9])", re.I
)
SHARD = re.compile(r"-(\d{5})-of-(\d{5})(?=\.gguf$)", re.I)
PREFERRED = ("Q4_K_M", "Q4_0", "Q8_0", "Q5_K_M", "Q4_K_S", "Q6_K", "BF16", "F16", "F32")
WITH_SAFETENSORS = (".safetensors", ".json", ".jinja", "tokenizer.model", "merges.txt", "vocab.txt")


@dataclass(frozen=True, slots=True)
class File:
    """One file of a repository, as the hub lists it."""

    name: str
    size: int | None
    sha256: str | None


async def resolve(request: Request, config: Mapping[str, str | None], web: Web) -> Plan:
    """Ask the hub what the revision holds and choose one set of weights.

    Raises:
        NotFound: no such repository, revision, file or quantization.
        PermissionDenied: the repository is private or gated.
    """
    if not REPO.fullmatch(request.repo):
        raise InvalidArgument(f"{request.repo!r} is not a repository's name", hint="write it like owner/name")
    endpoint = (request.mirror or config.get("huggingface_endpoint") or "").rstrip("/")
    # A token belongs to the configured hub; a mirror that a caller names must not see it.
    headers = {} if request.mirror else _credentials(config)
    revision = request.revision or "main"
    answer = await _ask(
        f"{endpoint}/api/models/{request.repo}/revision/{quote(revision, safe='')}?blobs=true", headers, web, request, config
    )
    files = [_file(item) for item in answer.get("siblings") or [] if isinstance(item, dict)]
    commit = str(answer.get("sha") or revision)
    name, kind, chosen, quantization = choose(request, files)
    if request.sha256 and len(chosen) > 1:
        raise InvalidArgument(
            f"{request.repo} has {len(chosen)} files: one sha256 cannot describe them",
            hint="leave sha256 out; the hub's digests are checked",
        )
    base = f"{endpoint}/{request.repo}/resolve/{quote(commit, safe='')}"
    artefacts = tuple(
        Artefact(
            PurePosixPath(file.name).name,
            (Part(f"{base}/{quote(file.name)}", file.size, file.sha256, None, headers),),
            request.sha256 or file.sha256,
            file.size,
        )
        for file in chosen
    )
    return Plan(name, kind, commit, artefacts, _license(answer), quantization)


def choose(request: Request, files: list[File]) -> tuple[str, str, list[File], str | None]:
    """Which files to fetch: name, format, files and quantization."""
    weights = [file for file in files if file.name.lower().endswith(".gguf") and not re.search(r"mmproj|imatrix", file.name, re.I)]
    if request.file:
        weights = [file for file in files if matches(file.name, request.file)]
        if not weights:
            raise NotFound(f"{request.repo} has no file {request.file}", hint=_near(request.file, [f.name for f in files]))
        if not all(file.name.lower().endswith(".gguf") for file in weights):
            raise InvalidArgument(f"{weights[0].name} is not GGUF", hint="leave file out to take the whole safetensors model")
    if weights:
        return _choose_gguf(request, weights)
    if request.quantization:
        raise NotFound(
            f"{request.repo} has no GGUF, so no quantization {request.quantization}", hint="leave quantization out to take the safetensors"
        )
    flat = [file for file in files if "/" not in file.name and file.name.endswith(WITH_SAFETENSORS)]
    if any(file.name.endswith(".safetensors") for file in flat):
        return slug(request.repo.rpartition("/")[2]), "safetensors", flat, None
    kinds = sorted({PurePosixPath(file.name).suffix for file in files})
    raise FailedPrecondition(f"{request.repo} holds neither GGUF nor safetensors, only {', '.join(filter(None, kinds)) or 'nothing'}")


def _choose_gguf(request: Request, weights: list[File]) -> tuple[str, str, list[File], str | None]:
    """One quantization, whole: all shards of it."""
    sets: dict[str, list[File]] = {}
    for file in weights:
        sets.setdefault(SHARD.sub("", file.name), []).append(file)
    by_quantization = {(quantization_of(stem) or "unknown"): stem for stem in sorted(sets, reverse=True)}
    wanted = request.quantization.upper() if request.quantization else None
    if wanted and wanted not in by_quantization:
        raise NotFound(
            f"{request.repo} has no quantization {wanted}",
            hint=f"there are {', '.join(sorted(by_quantization))}",
            details={"quantizations": sorted(by_quantization)},
        )
    if request.file and not wanted and len(sets) > 1:
        raise InvalidArgument(
            f"{request.file} fits {len(sets)} models: {', '.join(sorted(sets)[:5])}", hint="name one file, or a quantization"
        )
    found = wanted or next((name for name in PREFERRED if name in by_quantization), min(by_quantization))
    stem = by_quantization[found]
    shards = sorted(sets[stem], key=lambda file: file.name)
    _refuse_gaps(stem, shards)
    return slug(PurePosixPath(stem).stem), "gguf", shards, None if found == "unknown" else found


def _refuse_gaps(stem: str, shards: list[File]) -> None:
    numbered = [found for file in shards if (found := SHARD.search(file.name))]
    if numbered and len(shards) != int(numbered[0][2]):
        raise Unavailable(
            f"{stem} comes in {int(numbered[0][2])} shards, the hub lists {len(shards)}", hint="the upload may be under way: try later"
        )


def quantization_of(name: str) -> str | None:
    """The quantization a file's name tells, e.g. Q4_K_M."""
    found = QUANTIZATION.findall(PurePosixPath(name).name)
    return found[-1].upper() if found else None


async def _ask(url: str, headers: Mapping[str, str], web: Web, request: Request, config: Mapping[str, str | None]) -> dict[str, Any]:
    variable = config.get("huggingface_token_env") or "HF_TOKEN"
    try:
        page = await web.get(url, headers)
        answer = json.loads(page.body)
    except Barred:
        raise
    except PermissionDenied as error:
        put = f"put the secret huggingface_token, or set {variable} in the host's environment"
        hint = f"{put}, and accept the licence on the model's page; a misspelt name answers the same"
        raise PermissionDenied(f"the hub does not show {request.repo}: {error}", hint=hint) from error
    except NotFound as error:
        raise NotFound(
            f"no {request.repo} at revision {request.revision or 'main'} on {shown(url)}", hint="check repo and revision"
        ) from error
    except ValueError as error:
        raise Unavailable(f"{shown(url)} does not answer JSON: {error}", hint="check sources.huggingface_endpoint or the mirror") from error
    if not isinstance(answer, dict):
        raise Unavailable(f"{shown(url)} does not answer an object", hint="check sources.huggingface_endpoint or the mirror")
    return answer


def _file(item: Mapping[str, Any]) -> File:
    lfs = item.get("lfs") if isinstance(item.get("lfs"), dict) else {}
    size, sha256 = item.get("size"), (lfs or {}).get("sha256")
    good = isinstance(sha256, str) and re.fullmatch("[0-9a-f]{64}", sha256)
    return File(safe_name(str(item.get("rfilename", ""))), size if isinstance(size, int) else None, sha256 if good else None)


def _credentials(config: Mapping[str, str | None]) -> dict[str, str]:
    """The secret huggingface_token, or else the environment's."""
    variable = config.get("huggingface_token_env") or "HF_TOKEN"
    token = config.get("huggingface_token") or os.environ.get(variable, "").strip()
    if not (token.isascii() and token.isprintable() and " " not in token):  # as a header, it would be repeated in the client's error
        raise FailedPrecondition(f"{variable} holds what no token holds", hint="copy it again, whole and alone")
    return {"Authorization": f"Bearer {token}"} if token else {}


def _license(answer: Mapping[str, Any]) -> str | None:
    card = answer.get("cardData")
    said = card.get("license") if isinstance(card, dict) else None
    return said if isinstance(said, str) else None


def _near(name: str, names: list[str]) -> str:
    return f"there are {', '.join(nearest(name, names) or sorted(names)[:5])}"
