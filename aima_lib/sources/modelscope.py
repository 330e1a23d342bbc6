"""Models of ModelScope."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, urlencode

from aima_lib.errors import InvalidArgument, NotFound, PermissionDenied, Unavailable
from aima_lib.infra.places import Barred, shown
from aima_lib.infra.web import Web
from aima_lib.sources.base import FORMATS, TASKS, Config, Hit, Plan, Query, Request, safe_name, sized
from aima_lib.sources.choose import File, choose, split_quantization
from aima_lib.sources.huggingface import artefact, refuse_one_digest

REPO = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


async def resolve(request: Request, config: Config, web: Web) -> Plan:
    """Ask the hub what the revision holds and choose one set of weights.

    Raises:
        NotFound: no such repository, revision, file or quantization.
    """
    request = split_quantization(request)
    if not REPO.fullmatch(request.repo):
        raise InvalidArgument(f"{request.repo!r} is not a repository's name", hint="write it like owner/name")
    endpoint = (request.mirror or config.get("modelscope_endpoint") or "").rstrip("/")
    revision = request.revision or "master"
    asked = urlencode({"Revision": revision, "Recursive": "True"})
    found = await _ask(f"{endpoint}/api/v1/models/{request.repo}/repo/files?{asked}", web, request)
    files = [_file(item) for item in found if isinstance(item, dict) and item.get("Type") != "tree"]
    name, kind, chosen, quantization = choose(request, files)
    refuse_one_digest(request, chosen)
    base = f"{endpoint}/models/{request.repo}/resolve/{quote(revision, safe='')}"
    artefacts = tuple(artefact(file, f"{base}/{quote(file.name)}", {}, request) for file in chosen)
    return Plan(name, kind, revision, artefacts, None, quantization)


async def search(query: Query, config: Config, web: Web) -> list[Hit]:
    """The most downloaded models that fit the words."""
    asked = {"search": query.words, "page_number": 1, "page_size": min(50, query.limit), "sort": "downloads"}
    url = f"{(config.get('modelscope_endpoint') or '').rstrip('/')}/openapi/v1/models?{urlencode(asked)}"
    page = await web.get(url, {"Accept": "application/json"})
    try:
        rows = json.loads(page.body)["data"]["models"]
        hits = [_hit(item) for item in rows if isinstance(item, dict) and REPO.fullmatch(str(item.get("id")))]
    except (ValueError, KeyError, TypeError) as error:
        raise Unavailable(f"{shown(url)} does not answer a list of models: {error!r}", hint="check sources.modelscope_endpoint") from error
    return [hit for hit in hits if query.type in (None, hit.type) and query.format in (None, hit.format)]


def _hit(item: Mapping[str, Any]) -> Hit:
    tags = [str(tag).rpartition(":")[2] for tag in item.get("tags") or []]
    tasks = [TASKS[task] for task in map(str, item.get("tasks") or []) if task in TASKS]
    license, updated = item.get("license"), item.get("last_modified")
    return Hit(
        str(item["id"]),
        "modelscope",
        tasks[0] if tasks else None,
        next((format for format in FORMATS if format in tags), None),
        sized(item.get("downloads")),
        license if isinstance(license, str) else None,
        updated if isinstance(updated, str) else None,
    )


async def _ask(url: str, web: Web, request: Request) -> list[Any]:
    try:
        page = await web.get(url, {"Accept": "application/json"})
        answer = json.loads(page.body)
    except Barred:
        raise
    except PermissionDenied as error:
        hint = "private and gated repositories of ModelScope cannot be pulled: name a public one"
        raise PermissionDenied(f"the hub does not show {request.repo}: {error}", hint=hint, details=error.details) from error
    except NotFound as error:
        raise _missing(request, url) from error
    except ValueError as error:
        raise Unavailable(f"{shown(url)} does not answer JSON: {error}", hint="check sources.modelscope_endpoint or the mirror") from error
    files = answer.get("Data", {}).get("Files") if isinstance(answer, dict) and isinstance(answer.get("Data"), dict) else None
    if not isinstance(files, list):
        if isinstance(answer, dict) and answer.get("Code") not in (200, None):  # it says so with 200, too
            raise _missing(request, url)
        raise Unavailable(f"{shown(url)} does not list files", hint="check sources.modelscope_endpoint or the mirror")
    return files


def _missing(request: Request, url: str) -> NotFound:
    calls = [{"unit": "model.search", "arguments": {"query": request.repo.rpartition("/")[2], "source": "modelscope"}}]
    where = f"no {request.repo} at revision {request.revision or 'master'} on {shown(url)}"
    return NotFound(where, hint="check repo and revision", next=calls)


def _file(item: Mapping[str, Any]) -> File:
    sha256 = item.get("Sha256")
    good = isinstance(sha256, str) and re.fullmatch("[0-9a-f]{64}", sha256)
    return File(safe_name(str(item.get("Path") or item.get("Name") or "")), sized(item.get("Size")), sha256 if good else None)
