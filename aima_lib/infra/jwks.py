"""The public keys of an OpenID Connect or OAuth issuer: found by its metadata, kept, and asked for again with restraint."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

import anyio

from aima_lib.errors import AimaError, NotFound, Unavailable
from aima_lib.infra.places import shown
from aima_lib.infra.web import Web

FRESH_SECONDS, KEEP_SECONDS = 3600.0, 86_400.0  # when keys are looked at again; how long they count while their issuer is away
BETWEEN_SECONDS = 10.0  # a token with a key that nobody knows costs the issuer no more than one question in so long
ASK_SECONDS = 10.0
MOST_KEYS = 100
SHORTEST_RSA_BITS = 2048
# What a key must be for an algorithm: a token may not choose how its own key is understood.
KINDS: Mapping[str, tuple[str, str | None]] = {
    **dict.fromkeys(("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"), ("RSA", None)),
    "ES256": ("EC", "P-256"),
    "ES384": ("EC", "P-384"),
    "ES512": ("EC", "P-521"),
    "EdDSA": ("OKP", "Ed25519"),
}


class KeySet:
    """The keys of one issuer."""

    def __init__(self, issuer: str, web: Web) -> None:
        self.issuer, self._web = issuer, web
        self._keys: list[Mapping[str, Any]] = []
        self._fetched = self._asked = -math.inf
        self._failure: Unavailable | None = None
        self._lock = anyio.Lock()

    async def find(self, algorithm: str, kid: str | None) -> Any:
        """The one key that a token with this header may be signed with, or None when the issuer has none.

        Raises:
            Unavailable: the issuer does not answer, so nobody can say.
        """
        if (found := self._chosen(algorithm, kid, FRESH_SECONDS)) is not None:
            return found
        async with self._lock:
            if (found := self._chosen(algorithm, kid, FRESH_SECONDS)) is not None:  # whoever was first has asked for us
                return found
            await self._refresh()
        found = self._chosen(algorithm, kid, KEEP_SECONDS)
        if found is None and self._failure is not None:
            raise self._failure
        return found

    def _chosen(self, algorithm: str, kid: str | None, age: float) -> Any:
        if time.monotonic() - self._fetched > age:
            return None
        named = [key for key in self._keys if kid is None or key.get("kid") == kid]
        fit = [key for key in named if _fits(key, algorithm)]
        # Without a name, only an issuer of one key leaves no doubt.
        return _public_key(fit[0], algorithm) if len(fit) == 1 and (kid is not None or len(self._keys) == 1) else None

    async def _refresh(self) -> None:
        moment = time.monotonic()
        if moment - self._asked < BETWEEN_SECONDS:
            return
        try:
            with anyio.fail_after(ASK_SECONDS):
                keys = await self._fetch()
        except (AimaError, TimeoutError, ValueError, TypeError) as error:
            self._asked = moment
            why = f"no answer within {ASK_SECONDS:g} s" if isinstance(error, TimeoutError) else error
            self._failure = Unavailable(
                f"the keys of {self.issuer} cannot be had, so its tokens cannot be judged: {why}",
                hint="ask again in a moment; keys of AIMA's own work all the same",
            )
            return
        if self._keys or self._fetched > -math.inf:  # the first time is no question twice
            self._asked = moment
        self._keys, self._fetched, self._failure = keys, moment, None

    async def _fetch(self) -> list[Mapping[str, Any]]:
        where = await self._jwks_uri()
        answer = json.loads((await self._web.get(where)).body)
        return [key for key in answer["keys"][:MOST_KEYS] if isinstance(key, dict)]

    async def _jwks_uri(self) -> str:
        for url in _metadata_urls(self.issuer):
            try:
                answer = json.loads((await self._web.get(url)).body)
            except NotFound:
                continue
            if answer["issuer"] != self.issuer:
                raise ValueError(f"{shown(url)} is the metadata of another issuer")
            where = answer["jwks_uri"]
            if not isinstance(where, str) or not is_safe(where):
                raise ValueError(f"{shown(url)} names keys that are not to be had safely")
            return where
        raise NotFound("it has no metadata")


def is_safe(url: str) -> bool:
    """Whether nobody on the way can change what is fetched there: TLS, or this machine."""
    try:
        parts = urlsplit(url)
        return bool(parts.hostname) and (
            parts.scheme == "https" or (parts.scheme == "http" and parts.hostname in ("127.0.0.1", "::1", "localhost"))
        )
    except ValueError:
        return False


def _metadata_urls(issuer: str) -> Iterator[str]:
    """OpenID Connect's place, then RFC 8414's."""
    parts = urlsplit(issuer)
    path = parts.path.rstrip("/")
    yield f"{parts.scheme}://{parts.netloc}{path}/.well-known/openid-configuration"
    yield f"{parts.scheme}://{parts.netloc}/.well-known/oauth-authorization-server{path}"


def _fits(key: Mapping[str, Any], algorithm: str) -> bool:
    kind, curve = KINDS[algorithm]
    operations = key.get("key_ops")
    return (
        key.get("kty") == kind
        and curve in (None, key.get("crv"))
        and key.get("alg", algorithm) == algorithm
        and key.get("use", "sig") == "sig"
        and (operations is None or (isinstance(operations, list) and "verify" in operations))
    )


def _public_key(key: Mapping[str, Any], algorithm: str) -> Any:
    """The key as the library wants it, or None when it is broken or too weak."""
    from jwt import PyJWK
    from jwt.exceptions import PyJWTError

    public = {name: value for name, value in key.items() if name not in ("d", "p", "q", "dp", "dq", "qi", "oth")}
    try:
        made = PyJWK(public, algorithm)
    except (PyJWTError, ValueError, TypeError, KeyError):
        return None
    return None if KINDS[algorithm][0] == "RSA" and made.key.key_size < SHORTEST_RSA_BITS else made
