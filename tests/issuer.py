"""An OpenID Connect issuer of one's own, over HTTP: `with Issuer() as issuer`. It signs what it is told to, right or wrong."""

from __future__ import annotations

import base64
import json
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

KEYS = {
    "RS256": lambda: rsa.generate_private_key(65537, 2048),
    "ES256": lambda: ec.generate_private_key(ec.SECP256R1()),
    "EdDSA": ed25519.Ed25519PrivateKey.generate,
}
AS_JWK: dict[str, Any] = {"RS256": RSAAlgorithm.to_jwk, "ES256": ECAlgorithm.to_jwk, "EdDSA": OKPAlgorithm.to_jwk}


class Issuer:
    """Its keys by kid, what it was asked, and whether it answers. `path` is part of its name."""

    def __init__(self, path: str = "", *, openid: bool = True) -> None:
        self.keys: dict[str, tuple[str, Any]] = {}
        self.more: list[dict[str, Any]] = []
        self.asked: Counter[str] = Counter()
        self.down = False
        self.metadata: dict[str, Any] = {}
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self.base = f"http://127.0.0.1:{self._server.server_address[1]}"
        self.url = self.base + path
        self.place = f"{path}/.well-known/openid-configuration" if openid else f"/.well-known/oauth-authorization-server{path}"

    def __enter__(self) -> Issuer:
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *reason: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def add(self, kid: str, algorithm: str = "RS256", key: Any = None) -> Any:
        """A key to sign with, published from now on."""
        self.keys[kid] = (algorithm, key or KEYS[algorithm]())
        return self.keys[kid][1]

    def jwks(self) -> list[dict[str, Any]]:
        """What is published."""
        return [
            json.loads(AS_JWK[algorithm](key.public_key())) | {"kid": kid, "alg": algorithm, "use": "sig"}
            for kid, (algorithm, key) in self.keys.items()
        ] + self.more

    def token(self, kid: str | None, audience: Any, scope: Any = "aima:read", *, head: dict[str, Any] | None = None, **claims: Any) -> str:
        """A token for `audience`; a claim that is None is left out. Signed with the key `kid`, or the only one."""
        algorithm, key = self.keys[kid] if kid is not None else next(iter(self.keys.values()))
        now = int(time.time())
        body = {"iss": self.url, "sub": "ada@example.org", "aud": audience, "iat": now, "exp": now + 600, "scope": scope, **claims}
        named = {} if kid is None else {"kid": kid}
        kept = {name: value for name, value in body.items() if value is not None}
        return jwt.encode(kept, key, algorithm, {"typ": "at+jwt", **named, **(head or {})})

    def answer(self, path: str) -> Any:
        """What is at a path, or None."""
        if path == self.place:
            return {"issuer": self.url, "jwks_uri": f"{self.base}/keys", "response_types_supported": ["code"]} | self.metadata
        return {"keys": self.jwks()} if path == "/keys" else None


def unsigned(claims: dict[str, Any], head: dict[str, Any]) -> str:
    """A token that nobody signed."""
    return ".".join(base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=") for part in (head, claims)) + "."


def _handler(issuer: Issuer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            issuer.asked[self.path] += 1
            found = issuer.answer(self.path)
            status = 503 if issuer.down else 404 if found is None else 200
            body = json.dumps(found).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    return Handler
