"""One table: caller scope × unit × face. Allowed, or the same refusal that names the scope, and nothing done."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial

import httpx
import pytest
from anyio.from_thread import BlockingPortal

from aima_lib import Aima
from aima_lib.door import Caller
from tests.contract.faces import REGISTRY, CliFork, Face, Http, Library, Mcp, mcp_http
from tests.contract.malformed import example_input
from tests.world import World, contents

SCOPES = ("read", "logs", "inference", "write", "delete", "audit", "admin")
FACES = ("library", "http", "mcp_http", "mcp_http_handshake", "cli_fork")
CALLABLE = REGISTRY.of("command", "query")
# Each command line is a process: one unit of each scope stands for the others there.
FEW = {unit.definition["scope"]: unit for unit in CALLABLE}.values()


@dataclass
class Guests:
    """A key for each scope, and each face opened with it when it is first asked for."""

    world: World
    portal: BlockingPortal
    stack: ExitStack
    keys: dict[str, str] = field(default_factory=dict)
    opened: dict[tuple[str, str], Face] = field(default_factory=dict)

    def __getitem__(self, place: tuple[str, str]) -> Face:
        if place not in self.opened:
            self.opened[place] = self._makers(place[1])[place[0]]()
        return self.opened[place]

    def _makers(self, scope: str) -> Mapping[str, Callable[[], Face]]:
        if scope not in self.keys:
            self.keys[scope] = self.world.call("key.create", name=f"only-{scope}", scopes=[scope])["secret"]
        key, world, stack = self.keys[scope], self.world, self.stack
        headers = {"Authorization": f"Bearer {key}"}
        return {
            "library": lambda: Library(stack.enter_context(Aima(url=world.host.url, key=key)), world.home, world.folder),
            "http": lambda: Http(
                stack.enter_context(httpx.Client(base_url=world.host.url, headers=headers, trust_env=False, timeout=120)), world.home
            ),
            "mcp_http": partial(mcp_http, stack, self.portal, world.host, "2026-07-28", key),
            "mcp_http_handshake": partial(mcp_http, stack, self.portal, world.host, "legacy", key),
            "cli_fork": lambda: CliFork(stack, world.host, key),
        }


@pytest.fixture(scope="module")
def guests(world: World, portal: BlockingPortal) -> Iterator[Guests]:
    with ExitStack() as stack:
        yield Guests(world, portal, stack)


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("face", FACES)
def test_a_scope_is_what_every_face_makes_of_it(guests: Guests, world: World, face: str, scope: str) -> None:
    through, caller = guests[face, scope], Caller("guest", frozenset({scope}))
    before = contents(world.home)
    for unit in FEW if face == "cli_fork" else CALLABLE:
        if caller.may(unit.definition["scope"]):
            # Scopes are looked at before arguments: who gets as far as these may call the unit.
            assert through.call(unit.name, {"no_such_key": 1}).code == "invalid_argument", unit.name
            continue
        outcome = through.call(unit.name, example_input(unit.definition))
        assert outcome.code == "permission_denied", (unit.name, outcome)
        assert outcome.body["message"].endswith(f"may not use {unit.name}")
        assert outcome.body["details"] == {"scope": unit.definition["scope"]}
    assert contents(world.home) == before


@pytest.mark.parametrize("scope", SCOPES)
def test_the_way_round_is_no_way(guests: Guests, world: World, scope: str) -> None:
    """unit.call reaches no further than its caller, and a resource is held to its scope."""
    through, caller = guests["http", scope], Caller("guest", frozenset({scope}))
    before = contents(world.home)
    for unit in CALLABLE:
        outcome = through.call("unit.call", {"name": unit.name, "arguments": {"no_such_key": 1}})
        allowed = caller.may("read") and caller.may(unit.definition["scope"])
        assert outcome.code == ("invalid_argument" if allowed else "permission_denied"), (unit.name, outcome)
    for resource in REGISTRY.of("resource"):
        uri, there = next((example["uri"], "output" in example) for example in resource.definition["examples"])
        assert isinstance(through, Http)
        for accept in ("application/json", "text/event-stream"):
            with through.client.stream("GET", "/resources", params={"uri": uri}, headers={"Accept": accept}) as answer:
                assert answer.status_code == ((200 if there else 404) if caller.may(resource.definition["scope"]) else 403), uri
    assert contents(world.home) == before


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("face", ["mcp_http", "mcp_http_handshake"])
def test_a_list_of_tools_holds_no_unit_that_its_caller_may_not_call(guests: Guests, face: str, scope: str) -> None:
    through, caller = guests[face, scope], Caller("guest", frozenset({scope}))
    assert isinstance(through, Mcp)
    listed = [tool.name for tool in through.portal.call(through.client.list_tools).tools]
    assert set(listed) <= {unit.name.replace(".", "_") for unit in CALLABLE if caller.may(unit.definition["scope"])}
    assert listed == [tool.name for tool in through.portal.call(through.client.list_tools).tools], "and it stays as it is"


def test_a_durable_call_needs_its_own_scope_alone(guests: Guests) -> None:
    """Who may do something long is told how it ended, also without being allowed to look around."""
    for face in FACES:
        outcome = guests[face, "write"].call("model.verify", {"model_id": "tiny"})
        assert (outcome.code, outcome.body["valid"]) == ("ok", True), outcome
