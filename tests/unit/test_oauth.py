"""Access tokens of an issuer: which are taken, on every HTTP path, and how each other one is refused."""

from __future__ import annotations

import hashlib
import hmac
import re
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from typing import Any

import anyio
import httpx
import httpx2
import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from jwt.algorithms import RSAAlgorithm
from jwt.utils import base64url_encode
from mcp.client import Client
from mcp.client.streamable_http import streamable_http_client
from openapi_spec_validator import OpenAPIV31SpecValidator

from aima_lib.errors import InvalidArgument
from aima_lib.gateway import Gateway
from aima_lib.infra.egress import Egress
from aima_lib.infra.home import Home
from aima_lib.infra.jwks import KeySet
from aima_lib.infra.web import Web
from aima_lib.runtime import host
from aima_mcp import server
from tests.issuer import Issuer, unsigned
from tests.workshop import agreed

pytestmark = pytest.mark.anyio
DEADLINE = 20
WELL_KNOWN = "/.well-known/oauth-protected-resource"


@dataclass
class World:
    """A host that takes an issuer's tokens."""

    gateway: Gateway
    url: str
    issuer: Issuer
    home: Home

    @property
    def audience(self) -> str:
        return f"{self.url}/mcp"

    def token(self, kid: str | None = "rsa", scope: Any = "openid aima:read", **more: Any) -> str:
        return self.issuer.token(kid, more.pop("audience", self.audience), scope, **more)

    async def get(self, token: str | None, path: str = "/caller", **more: Any) -> httpx.Response:
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        async with httpx.AsyncClient(base_url=self.url, headers=headers, trust_env=False, timeout=DEADLINE) as client:
            return await client.request(more.pop("method", "GET"), path, **more)


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    with Issuer("/realm") as running:
        running.add("rsa")
        yield running


@pytest.fixture
async def world(home: Home, issuer: Issuer, anyio_backend: str, request: pytest.FixtureRequest) -> AsyncIterator[World]:
    more = getattr(request, "param", "")
    (home.path / "config.toml").write_text(f'[oauth]\nissuer = "{issuer.url}"\n{more}\n', encoding="utf-8")
    urls: list[str] = []
    ready = anyio.Event()

    def began(url: str) -> None:
        urls.append(url)
        ready.set()

    with server.listen("127.0.0.1", 0) as listener:
        async with host(home) as gateway, anyio.create_task_group() as tasks:
            tasks.start_soon(server._serve, gateway, "127.0.0.1", listener, began)
            await ready.wait()
            opened = World(gateway, urls[0], issuer, home)
            yield opened
            await opened.get(home.key(), "/shutdown", method="POST")


# Who is let in


@pytest.mark.parametrize("algorithm", ["RS256", "ES256", "EdDSA"])
async def test_a_right_token_is_its_subject_with_its_scopes(world: World, algorithm: str) -> None:
    world.issuer.add("other", algorithm)
    said = (await world.get(world.token("other", "aima:read aima:inference profile"))).json()
    assert said["scopes"] == ["inference", "read"] and said["models"] is None
    assert said["name"].startswith("oauth:ada-example.org-")
    assert said == (await world.get(world.token("other", None, scp=["aima:inference", "aima:read"]))).json()
    assert (await world.get(world.token("other"), "/units/device/info")).is_success
    assert (await world.get(world.token("other", audience=["https://elsewhere.example", world.audience]))).is_success
    assert (await world.get(world.token("other", head={"typ": "JWT"}))).is_success
    assert (await world.get(world.home.key())).json()["name"] == "owner", "keys are taken beside tokens"


async def test_two_subjects_never_share_a_name(world: World) -> None:
    names = [(await world.get(world.token(sub=sub))).json()["name"] for sub in ("a|b", "a-b", "A|B", "owner", "nobody", "\u540d" * 200)]
    assert len(set(names)) == len(names) and all(name.startswith("oauth:") and len(name) < 64 for name in names)
    made = await agreed(world.gateway, "key.create", {"name": names[0], "scopes": ["read"]})
    assert made["key"]["id"] not in names, "nor does any key have one"


async def test_a_token_opens_every_door(world: World) -> None:
    token = world.token(scope="aima:read aima:inference")
    assert (await world.get(token, "/units/system/info", method="POST", json={})).is_success
    assert (await world.get(token, "/v1/models")).json()["data"] == []
    assert (await world.get(token, "/metrics")).is_success
    for mode in ("2026-07-28", "legacy"):
        async with (
            httpx2.AsyncClient(headers={"Authorization": f"Bearer {token}"}, timeout=DEADLINE, trust_env=False) as http,
            Client(streamable_http_client(f"{world.url}/mcp", http_client=http), mode=mode) as client,
        ):
            names = {tool.name for tool in (await client.list_tools()).tools}
            assert "system_info" in names and "model_pull" not in names, "tools of scopes it lacks are not listed"
            told = await client.call_tool("system_info", {})
            assert not told.is_error
            denied = await client.call_tool("model_delete", {"model_id": "x"})
            assert denied.is_error and denied.structured_content["code"] == "permission_denied"


async def test_a_stream_ends_with_its_token(world: World) -> None:
    token = world.token(exp=int(time.time()) - 58)  # within the leeway, for a moment
    async with httpx.AsyncClient(
        base_url=world.url, headers={"Authorization": f"Bearer {token}"}, trust_env=False, timeout=DEADLINE
    ) as client:
        with anyio.fail_after(DEADLINE):
            async with client.stream("GET", "/events") as stream:
                assert stream.is_success
                async for _ in stream.aiter_raw():
                    pass
    assert (await world.get(token)).status_code == 401


# Who is not


def tampered(token: str) -> str:
    head, body, signature = token.split(".")
    other = "A" if body[20] != "A" else "B"
    return ".".join((head, body[:20] + other + body[21:], signature))


def hs256(world: World) -> str:
    """The oldest trick: the public key, which everybody has, as the secret of an HMAC."""
    public = world.issuer.keys["rsa"][1].public_key()
    pem = public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    claims = unsigned(claims_of(world), {"alg": "HS256", "kid": "rsa", "typ": "at+jwt"}).rstrip(".")
    return f"{claims}.{base64url_encode(hmac.digest(pem, claims.encode(), hashlib.sha256)).decode()}"


def claims_of(world: World) -> dict[str, Any]:
    claims: dict[str, Any] = jwt.decode(world.token(), options={"verify_signature": False})
    return claims


REFUSED: dict[str, tuple[Callable[[World], str], str]] = {
    "wrong audience": (lambda world: world.token(audience="https://elsewhere.example/mcp"), "not meant for this host"),
    "an audience that begins like ours": (lambda world: world.token(audience=f"{world.audience}/"), "not meant for this host"),
    "no audience": (lambda world: world.token(aud=None), "lacks one of"),
    "wrong issuer": (lambda world: world.token(iss="https://elsewhere.example"), "another issuer's"),
    "an issuer that begins like ours": (lambda world: world.token(iss=f"{world.issuer.url}/"), "another issuer's"),
    "expired": (lambda world: world.token(exp=int(time.time()) - 90), "has expired"),
    "no end": (lambda world: world.token(exp=None), "lacks one of"),
    "not yet": (lambda world: world.token(nbf=int(time.time()) + 90), "not valid yet"),
    "nobody": (lambda world: world.token(sub=None), "lacks one of"),
    "an empty subject": (lambda world: world.token(sub=""), "names nobody"),
    "alg none": (lambda world: unsigned(claims_of(world), {"alg": "none", "kid": "rsa", "typ": "at+jwt"}), "algorithm is not one of"),
    "HS256 with the public key": (hs256, "algorithm is not one of"),
    "an algorithm that was not configured": (lambda world: with_algorithm(world, "PS256"), "algorithm is not one of"),
    "unknown kid": (lambda world: world.token(head={"kid": "nobody's"}), "none of the issuer's"),
    "a key of another type": (lambda world: with_kid(world, "ES256", "rsa"), "none of the issuer's"),
    "another's signature": (lambda world: with_kid(world, "RS256", "rsa"), "signature does not fit"),
    "tampered": (lambda world: tampered(world.token()), "(signature does not fit|malformed)"),
    "no signature": (lambda world: world.token().rpartition(".")[0] + ".", "signature does not fit"),
    "an ID token's kin": (lambda world: world.token(head={"typ": "logout+jwt"}), "no access token"),
    "critical words": (lambda world: world.token(head={"crit": ["exp"]}), "(no access token|malformed)"),
    "too long": (lambda world: world.token(more="x" * 17_000), "too long"),
    "no JSON": (lambda world: "eyJhbGciOiJSUzI1NiJ9.e30x.x", "malformed"),
}


def with_kid(world: World, algorithm: str, kid: str) -> str:
    """Signed with a key that is not published, under the name of one that is."""
    with Issuer("/realm") as stranger:
        stranger.add(kid, algorithm)
        return stranger.token(kid, world.audience, iss=world.issuer.url)


def with_algorithm(world: World, algorithm: str) -> str:
    return jwt.encode(claims_of(world), world.issuer.keys["rsa"][1], algorithm, {"kid": "rsa", "typ": "at+jwt"})


@pytest.mark.filterwarnings("ignore::jwt.warnings.InsecureKeyLengthWarning")
@pytest.mark.parametrize("case", REFUSED)
async def test_every_other_token_is_refused(world: World, case: str) -> None:
    make, why = REFUSED[case]
    token = make(world)
    for path in ("/caller", "/mcp", "/v1/models"):
        answer = await world.get(token, path)
        assert answer.status_code == 401, answer.text
        said = answer.headers["www-authenticate"]
        assert said == f'Bearer realm="aima", resource_metadata="{world.url}{WELL_KNOWN}/mcp", error="invalid_token"'
        assert token not in answer.text
    message = (await world.get(token)).json()["message"]
    assert re.search(f"the token is refused: .*{why}", message), message


@pytest.mark.parametrize("scope", ["", "openid profile", "read", "aima:everything", None, 5, [5], {"aima:read": 1}])
async def test_a_token_without_a_scope_of_ours_is_forbidden_and_told_which_there_are(world: World, scope: Any) -> None:
    answer = await world.get(world.token(scope=scope))
    assert (answer.status_code, answer.json()["code"]) == (403, "permission_denied"), answer.text
    said = answer.headers["www-authenticate"]
    assert f'resource_metadata="{world.url}{WELL_KNOWN}/mcp", error="insufficient_scope", scope="aima:admin aima:audit ' in said


async def test_a_scope_that_a_unit_needs_is_named_as_the_issuer_knows_it(world: World) -> None:
    answer = await world.get(world.token(scope="aima:read"), "/units/model/delete", method="POST", json={"model_id": "x"})
    assert (answer.status_code, answer.json()["details"]) == (403, {"scope": "delete"})
    assert answer.headers["www-authenticate"].endswith('error="insufficient_scope", scope="aima:delete"')
    _, key = await made_key(world)
    assert "www-authenticate" not in (await world.get(key, "/units/model/delete", method="POST", json={"model_id": "x"})).headers


async def made_key(world: World) -> tuple[str, str]:
    made = await agreed(world.gateway, "key.create", {"name": "guest", "scopes": ["read"]})
    return made["key"]["id"], made["secret"]


async def test_a_token_of_somebodys_choice_of_key_is_refused(world: World) -> None:
    """A token that brings its own key, or says where it is, is judged by the issuer's all the same."""
    own = rsa.generate_private_key(65537, 2048)
    claims = claims_of(world)
    for head in (
        {"jwk": RSAAlgorithm.to_jwk(own.public_key(), as_dict=True)},
        {"jku": f"{world.issuer.base}/mine"},
        {"x5u": f"{world.issuer.base}/mine"},
    ):
        token = jwt.encode(claims, own, "RS256", {"kid": "rsa", "typ": "at+jwt", **head})
        assert (await world.get(token)).status_code == 401
    assert "/mine" not in world.issuer.asked


# Keys of the issuer


async def test_keys_are_asked_for_once_and_again_when_one_is_new_but_not_at_will(world: World) -> None:
    for _ in range(3):
        assert (await world.get(world.token())).is_success
    assert world.issuer.asked == {world.issuer.place: 1, "/keys": 1}
    del world.issuer.keys["rsa"]
    world.issuer.add("next", "ES256")
    assert (await world.get(world.token("next"))).is_success, "rotated"
    assert world.issuer.asked["/keys"] == 2
    world.issuer.add("later")
    stale = world.token("next", head={"kid": "rsa"})
    assert [(await world.get(token)).status_code for token in (stale, stale, world.token("later"))] == [401, 401, 401]
    assert world.issuer.asked["/keys"] == 2, "at most one question in ten seconds, however many tokens"


async def test_many_at_once_ask_once(world: World) -> None:
    answers: list[bool] = []

    async def come() -> None:
        answers.append((await world.get(world.token())).is_success)

    async with anyio.create_task_group() as tasks:
        for _ in range(20):
            tasks.start_soon(come)
    assert answers == [True] * 20 and world.issuer.asked["/keys"] == 1


async def test_without_its_issuer_a_token_waits_and_a_key_does_not(world: World) -> None:
    world.issuer.down = True
    answer = await world.get(world.token())
    assert (answer.status_code, answer.json()["code"], answer.headers["retry-after"]) == (503, "unavailable", "1"), answer.text
    assert (await world.get(world.token(), "/v1/models")).status_code == 503
    assert world.issuer.asked.total() == 1, "nor is an issuer in trouble asked at will"
    assert (await world.get(world.home.key())).is_success
    assert (await world.get(world.token(iss="https://elsewhere.example"))).status_code == 401


async def test_known_keys_outlast_a_short_absence(world: World) -> None:
    assert (await world.get(world.token())).is_success
    world.issuer.down = True
    assert (await world.get(world.token())).is_success
    assert (await world.get(world.token(head={"kid": "new"}))).status_code == 503, "whether there is such a key, nobody can say"


async def test_a_kid_is_needed_as_soon_as_there_is_a_choice(world: World) -> None:
    assert (await world.get(world.token(None))).is_success
    world.issuer.add("second")
    assert (await world.get(world.token("second"))).is_success  # by now both are known
    assert (await world.get(world.token(None))).status_code == 401


@pytest.mark.filterwarnings("ignore::jwt.warnings.InsecureKeyLengthWarning")
async def test_keys_that_are_for_something_else_or_weak_do_not_count(issuer: Issuer, anyio_backend: str) -> None:
    published = issuer.jwks()[0]
    wrong = [
        {"use": "enc"},
        {"alg": "RS512"},
        {"key_ops": ["encrypt"]},
        {"key_ops": "verify"},
        {"kty": "oct", "k": "AAAA"},
        {"n": "!"},
        {"e": None},
    ]
    issuer.more = [published | change | {"kid": f"wrong{i}"} for i, change in enumerate(wrong)] + ["no key"]  # type: ignore[list-item]
    issuer.add("short", key=rsa.generate_private_key(65537, 1024))
    web = Web(Egress(endpoints=lambda: [issuer.url]))
    keys = KeySet(issuer.url, web)
    assert await keys.find("RS256", "rsa") is not None
    for kid in ["short", *(f"wrong{i}" for i in range(len(wrong)))]:
        assert await keys.find("RS256", kid) is None, kid
    await web.close()


@pytest.mark.parametrize(
    "wrong",
    [{"issuer": "http://127.0.0.1:1"}, {"jwks_uri": "http://elsewhere.example/keys"}, {"jwks_uri": 5}, {"jwks_uri": "file:///etc/passwd"}],
)
async def test_metadata_that_is_not_the_issuers_own_is_not_trusted(world: World, wrong: dict[str, Any]) -> None:
    world.issuer.metadata = wrong
    assert (await world.get(world.token())).status_code == 503
    assert world.issuer.asked["/keys"] == 0


async def test_an_issuer_of_plain_oauth_is_found_too(anyio_backend: str) -> None:
    with Issuer("/tenant", openid=False) as issuer:
        issuer.add("rsa")
        web = Web(Egress(endpoints=lambda: [issuer.url]))
        assert await KeySet(issuer.url, web).find("RS256", "rsa") is not None
        await web.close()
    assert "/.well-known/oauth-authorization-server/tenant" in issuer.asked


# What is said of it


@pytest.mark.parametrize("path", [WELL_KNOWN, f"{WELL_KNOWN}/mcp"])
async def test_the_metadata_is_there_for_everybody(world: World, path: str) -> None:
    answer = await world.get(None, path)
    said = answer.json()
    assert answer.status_code == 200 and said["resource"] == world.audience
    assert said["authorization_servers"] == [world.issuer.url] and said["bearer_methods_supported"] == ["header"]
    assert "aima:read" in said["scopes_supported"] and "aima:exec" not in said["scopes_supported"]
    assert (await world.get(None, path, method="POST")).status_code == 405


async def test_who_comes_with_nothing_is_told_where_to_go(world: World) -> None:
    for path in ("/mcp", "/caller", "/v1/models"):
        answer = await world.get(None, path)
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"] == f'Bearer realm="aima", resource_metadata="{world.url}{WELL_KNOWN}/mcp"'
        assert (await world.get(None, answer.headers["www-authenticate"].split('"')[3].removeprefix(world.url))).is_success


async def test_openapi_knows_of_it(world: World) -> None:
    document = (await world.get(world.home.key(), "/openapi.json")).json()
    few = {path: document["paths"][path] for path in (WELL_KNOWN, "/units/system/info")}
    OpenAPIV31SpecValidator(document | {"paths": few}).validate()  # all of them are validated where all are described
    assert document["security"] == [{"key": []}, {"oauth": []}]
    assert document["components"]["securitySchemes"]["oauth"]["openIdConnectUrl"] == f"{world.issuer.url}/.well-known/openid-configuration"
    assert document["paths"][WELL_KNOWN]["get"]["security"] == []


MINE = """
audience = "https://aima.example.org/mcp"
subject_prefix = "sso:"
algorithms = ["ES256"]
[oauth.scopes]
"urn:run-things" = "write"
"llm" = "inference"
"""


@pytest.mark.parametrize("world", [MINE], indirect=True)
async def test_what_the_owner_configured_counts(world: World) -> None:
    world.issuer.add("ec", "ES256")
    mine = "https://aima.example.org/mcp"
    said = (await world.get(world.token("ec", "llm aima:read", audience=mine))).json()
    assert said["scopes"] == ["inference"] and said["name"].startswith("sso:ada")
    assert (await world.get(world.token("ec", "llm"))).status_code == 401, "where it listens is not its name"
    assert (await world.get(world.token("rsa", "llm", audience=mine))).status_code == 401
    assert (await world.get(None, WELL_KNOWN)).json()["resource"] == mine
    where = "https://aima.example.org/.well-known/oauth-protected-resource/mcp"
    assert (await world.get(None)).headers["www-authenticate"] == f'Bearer realm="aima", resource_metadata="{where}"'


@pytest.mark.parametrize(
    "line",
    ['issuer = "http://id.example.org"', 'issuer = "ftp://x"', 'issuer = "https://me:pw@id.example.org"', 'issuer = "https://x"\nalgorithms = ["HS256"]',
     'issuer = "https://x"\nalgorithms = ["none"]', 'issuer = "https://x"\nalgorithms = []', 'issuer = "https://x"\naudience = "api"',
     'issuer = "https://x"\nscopes = {"a" = "everything"}', 'issuer = "https://x"\nscopes = {"a b" = "read"}', 'issuer = "https://x"\nsubject_prefix = "key-"'],
)  # fmt: skip
async def test_an_unsafe_configuration_starts_no_host(home: Home, anyio_backend: str, line: str) -> None:
    (home.path / "config.toml").write_text(f"[oauth]\n{line}\n", encoding="utf-8")
    with pytest.raises(InvalidArgument, match="oauth"):
        async with host(home):
            pass


async def test_without_an_issuer_all_is_as_it_was(home: Home, anyio_backend: str) -> None:
    with server.listen("127.0.0.1", 0) as listener, Issuer() as stranger:
        stranger.add("rsa")
        ready = anyio.Event()
        async with host(home) as gateway, anyio.create_task_group() as tasks:
            tasks.start_soon(server._serve, gateway, "127.0.0.1", listener, lambda url: ready.set())
            await ready.wait()
            url = f"http://127.0.0.1:{listener.getsockname()[1]}"
            world = World(gateway, url, stranger, home)
            assert (await world.get(None)).headers["www-authenticate"] == 'Bearer realm="aima"'
            assert (await world.get(world.token())).status_code == 401
            assert (await world.get(None, WELL_KNOWN)).status_code == 401
            assert stranger.asked.total() == 0
            await world.get(home.key(), "/shutdown", method="POST")
