"""Models of a hub with Hugging Face's API."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import quote, urlencode

from aima_lib.errors import FailedPrecondition, InvalidArgument, NotFound, PermissionDenied, Unavailable
from aima_lib.infra.places import Barred, shown
from aima_lib.infra.web import Web
from aima_lib.sources.base import FORMATS, TASKS, Artefact, Config, Hit, Part, Plan, Query, Request, safe_name, sized
from aima_lib.sources.choose import File, choose, split_quantization

REPO = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
COMMIT = re.compile(r"[0-9a-f]{40}")


async def resolve(request: Request, config: Config, web: Web) -> Plan:
    """Ask the hub what the revision holds and choose one set of weights.

    Raises:
        NotFound: no such repository, revision, file or quantization.
        PermissionDenied: the repository is private or gated.
    """
    request = split_quantization(request)
    if not REPO.fullmatch(request.repo):
        raise InvalidArgument(f"{request.repo!r} is not a repository's name", hint="write it like owner/name")
    endpoint = (request.mirror or config.get("huggingface_endpoint") or "").rstrip("/")
    # A token belongs to the configured hub; a mirror that a caller names must not see it.
    headers = {} if request.mirror else _credentials(config)
    revision = request.revision or "main"
    url = f"{endpoint}/api/models/{request.repo}/revision/{quote(revision, safe='')}?blobs=true"
    answer = await _ask(url, headers, web, request, config)
    files = [_file(item) for item in answer.get("siblings") or [] if isinstance(item, dict)]
    commit = str(answer.get("sha") or revision)
    if COMMIT.fullmatch(revision) and commit != revision:
        raise Unavailable(f"{shown(url)} answers with commit {commit[:80]!r}", hint="name another mirror")
    name, kind, chosen, quantization = choose(request, files)
    refuse_one_digest(request, chosen)
    base = f"{endpoint}/{request.repo}/resolve/{quote(commit, safe='')}"
    artefacts = tuple(artefact(file, f"{base}/{quote(file.name)}", headers, request) for file in chosen)
    return Plan(name, kind, commit, artefacts, _license(answer), quantization)


def refuse_one_digest(request: Request, chosen: Sequence[File]) -> None:
    """Raise InvalidArgument when one sha256 was given for several files."""
    if request.sha256 and len(chosen) > 1:
        raise InvalidArgument(
            f"{request.repo} has {len(chosen)} files: one sha256 cannot describe them",
            hint="leave sha256 out; the hub's digests are checked",
        )


def artefact(file: File, url: str, headers: Mapping[str, str], request: Request) -> Artefact:
    """A hub's file as what is to be fetched. A digest that the caller gave is checked beside the hub's."""
    part = Part(url, file.size, file.sha256, None, headers)
    return Artefact(PurePosixPath(file.name).name, (part,), request.sha256 or file.sha256, file.size, file.git_oid)


async def search(query: Query, config: Config, web: Web) -> list[Hit]:
    """The most downloaded models that fit the words."""
    asked: dict[str, Any] = {"search": query.words, "limit": query.limit, "sort": "downloads", "direction": -1, "full": "true"}
    if query.format:
        asked["filter"] = query.format
    tasks = [task for task, type in TASKS.items() if type == query.type]
    if tasks:
        asked["pipeline_tag"] = tasks[0]
    url = f"{(config.get('huggingface_endpoint') or '').rstrip('/')}/api/models?{urlencode(asked)}"
    page = await web.get(url, _credentials(config))
    try:
        found = json.loads(page.body)
        return [_hit(item) for item in found if isinstance(item, dict) and REPO.fullmatch(str(item.get("id")))]
    except (ValueError, TypeError) as error:
        raise Unavailable(f"{shown(url)} does not answer a list of models: {error}", hint="check sources.huggingface_endpoint") from error


def _hit(item: Mapping[str, Any]) -> Hit:
    tags = [tag for tag in item.get("tags") or [] if isinstance(tag, str)]
    license = next((tag.partition(":")[2] for tag in tags if tag.startswith("license:")), None)
    updated = item.get("lastModified")
    return Hit(
        str(item["id"]),
        "huggingface",
        TASKS.get(str(item.get("pipeline_tag"))),
        next((format for format in FORMATS if format in tags), None),
        sized(item.get("downloads")),
        license,
        updated if isinstance(updated, str) else None,
    )


async def _ask(url: str, headers: Mapping[str, str], web: Web, request: Request, config: Config) -> dict[str, Any]:
    variable = config.get("huggingface_token_env") or "HF_TOKEN"
    try:
        page = await web.get(url, headers)
        answer = json.loads(page.body)
    except Barred:
        raise
    except PermissionDenied as error:
        put = f"put the secret huggingface_token, or set {variable} in the host's environment"
        hint = f"{put}, and accept the licence on the model's page; a misspelt name answers the same"
        what = f"the hub does not show {request.repo}: {error}"
        raise PermissionDenied(what, hint=hint, next=error.next, details=error.details) from error
    except NotFound as error:
        words = request.repo.rpartition("/")[2]
        raise NotFound(
            f"no {request.repo} at revision {request.revision or 'main'} on {shown(url)}",
            hint="check repo and revision",
            next=[{"unit": "model.search", "arguments": {"query": words, "source": "huggingface"}}],
        ) from error
    except ValueError as error:
        raise Unavailable(f"{shown(url)} does not answer JSON: {error}", hint="check sources.huggingface_endpoint or the mirror") from error
    if not isinstance(answer, dict):
        raise Unavailable(f"{shown(url)} does not answer an object", hint="check sources.huggingface_endpoint or the mirror")
    return answer


def _file(item: Mapping[str, Any]) -> File:
    lfs = item.get("lfs") if isinstance(item.get("lfs"), dict) else {}
    sha256, oid = (lfs or {}).get("sha256"), item.get("blobId")
    good = isinstance(sha256, str) and re.fullmatch("[0-9a-f]{64}", sha256)
    git = oid if not good and isinstance(oid, str) and COMMIT.fullmatch(oid) else None
    return File(safe_name(str(item.get("rfilename", ""))), sized(item.get("size")), sha256 if good else None, git)


def _credentials(config: Config) -> dict[str, str]:
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
