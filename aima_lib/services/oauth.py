"""AIMA as an OAuth 2.1 resource server: access tokens of one issuer that the owner named, judged here and nowhere else."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import anyio

from aima_lib.door import Caller
from aima_lib.errors import InvalidArgument, PermissionDenied, Unauthenticated
from aima_lib.infra.egress import Egress
from aima_lib.infra.home import Home
from aima_lib.infra.jwks import KeySet, is_safe
from aima_lib.infra.web import Web
from aima_lib.names import slug

LEEWAY_SECONDS = 60
LONGEST_TOKEN, LONGEST_SUBJECT = 16 << 10, 1024
TYPES = ("jwt", "at+jwt", "application/at+jwt")
NEEDED = ("exp", "iss", "aud", "sub")


@dataclass(frozen=True, slots=True)
class Bearer:
    """Who showed a token, and when, on the loop's clock, it ends."""

    caller: Caller
    deadline: float


class OAuth:
    """The judge of access tokens.

    Raises:
        InvalidArgument: the configured issuer could be impersonated.
    """

    def __init__(self, settings: Mapping[str, Any], home: Home, open_to: Sequence[str] = ()) -> None:
        self.issuer = str(settings["issuer"])
        if not is_safe(self.issuer):
            raise InvalidArgument(f"oauth.issuer: {self.issuer} is no https address", hint="http is for an issuer on this machine alone")
        self.scopes: Mapping[str, str] = settings["scopes"]
        self._algorithms, self._prefix, self._audience = frozenset(settings["algorithms"]), settings["subject_prefix"], settings["audience"]
        way_out = Egress(open_to, lambda: [self.issuer], connect_seconds=3, stall_seconds=5)
        self._home, self._web = home, Web(way_out)
        self._keys = KeySet(self.issuer, self._web)

    @staticmethod
    def configured(config: Mapping[str, Any], home: Home) -> OAuth | None:
        """The judge, or None while no issuer is named."""
        return OAuth(config["oauth"], home, config["egress"]["allow"]) if config["oauth"]["issuer"] else None

    @property
    def audience(self) -> str:
        """Whom tokens must be meant for: this host's /mcp, by the address that clients know."""
        if self._audience is None:
            host = self._home.host()
            if host is None or host.url is None:
                raise Unauthenticated("this host does not listen yet, so no token is meant for it")
            self._audience = f"{host.url}/mcp"
        return str(self._audience)

    def metadata(self) -> dict[str, Any]:
        """What RFC 9728 lets a client know without a token."""
        return {
            "resource": self.audience,
            "authorization_servers": [self.issuer],
            "scopes_supported": sorted(self.scopes),
            "bearer_methods_supported": ["header"],
            "resource_name": "AIMA",
        }

    def owns(self, caller: Caller) -> bool:
        """Whether the caller came with a token."""
        return caller.name.startswith(self._prefix)

    async def judge(self, token: str) -> Bearer:
        """Who shows this token.

        Raises:
            Unauthenticated: it is malformed, not signed by the issuer, not meant for this host, or not of this time.
            PermissionDenied: it carries none of our scopes.
            Unavailable: the issuer's keys cannot be had.
        """
        import jwt
        from jwt.exceptions import PyJWTError

        algorithm, kid = self._read_head(token)
        key = await self._keys.find(algorithm, kid)
        if key is None:
            raise _refused("its key is none of the issuer's")
        try:
            claims = jwt.decode(
                token, key, algorithms=[algorithm], audience=self.audience, issuer=self.issuer, leeway=LEEWAY_SECONDS,
                options={"require": list(NEEDED)},
            )  # fmt: skip
        except (PyJWTError, ValueError, TypeError) as error:
            raise _refused(WHY.get(type(error).__name__, "it is malformed")) from None
        return Bearer(self._caller(claims), anyio.current_time() + float(claims["exp"]) + LEEWAY_SECONDS - time.time())

    def _read_head(self, token: str) -> tuple[str, str | None]:
        """The algorithm and the key that the token names. What it is not signed for yet costs nobody a request."""
        import jwt
        from jwt.exceptions import PyJWTError

        if len(token) > LONGEST_TOKEN:
            raise _refused("it is too long")
        try:
            head = jwt.get_unverified_header(token)
            claims = json.loads(jwt.utils.base64url_decode(token.split(".")[1]))
        except (PyJWTError, ValueError, TypeError):
            raise _refused("it is malformed") from None
        algorithm, kid = head.get("alg"), head.get("kid")
        if algorithm not in self._algorithms:
            raise _refused(f"its algorithm is not one of {', '.join(sorted(self._algorithms))}")
        if str(head.get("typ", "JWT")).lower() not in TYPES or "crit" in head or not isinstance(kid, str | None):
            raise _refused("it is no access token")
        if not isinstance(claims, dict) or claims.get("iss") != self.issuer:
            raise _refused("it is another issuer's")
        return str(algorithm), kid

    def _caller(self, claims: Mapping[str, Any]) -> Caller:
        subject = claims["sub"]
        if not isinstance(subject, str) or not 0 < len(subject) <= LONGEST_SUBJECT:
            raise _refused("it names nobody")
        scopes = frozenset(self.scopes[name] for name in _granted(claims) if name in self.scopes)
        if not scopes:
            wanted = sorted(self.scopes)
            hint = f"ask {self.issuer} for one of: {', '.join(wanted)}"
            raise PermissionDenied("the token carries no scope of AIMA's", hint=hint, details={"scopes": wanted})
        # Two subjects must not share a name, whatever a slug makes of them.
        mark = hashlib.sha256(f"{self.issuer}\0{subject}".encode("utf-8", "surrogatepass")).hexdigest()[:12]
        return Caller(f"{self._prefix}{slug(subject, 40)}-{mark}", scopes)

    async def close(self) -> None:
        """Let the connections go."""
        await self._web.close()


WHY = {
    "ExpiredSignatureError": "it has expired",
    "ImmatureSignatureError": "it is not valid yet",
    "InvalidAudienceError": "it is not meant for this host",
    "InvalidIssuerError": "it is another issuer's",
    "InvalidSignatureError": "its signature does not fit",
    "MissingRequiredClaimError": f"it lacks one of {', '.join(NEEDED)}",
}


def is_token(text: str) -> bool:
    """Whether this looks like a JWT, which no key of ours does."""
    return text.startswith("eyJ") and text.count(".") == 2


def _granted(claims: Mapping[str, Any]) -> list[str]:
    """Scopes as RFC 9068 writes them, or as issuers do that call them `scp`."""
    said = claims.get("scope", claims.get("scp", ""))
    words = said.split() if isinstance(said, str) else said
    return [word for word in words if isinstance(word, str)] if isinstance(words, list) else []


def _refused(why: str) -> Unauthenticated:
    return Unauthenticated(f"the token is refused: {why}", hint="ask its issuer for a new one")
