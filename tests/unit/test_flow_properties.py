"""What holds of every pipeline, on pipelines that nobody thought of."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from anyio.from_thread import start_blocking_portal
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aima_lib.door import OWNER
from aima_lib.errors import AimaError
from aima_lib.flows.ahead import sentences
from aima_lib.flows.document import read
from aima_lib.flows.shelf import Shelf
from aima_lib.gateway import Gateway
from aima_lib.infra.home import Home
from aima_lib.runtime import host
from tests.served import registry
from tests.toys import HANDLERS, TOYS, lines, pipeline, step

SOME = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
QUICK = ("toy.look", "toy.once", "toy.again", "toy.ask", "toy.long")


class Hosted:
    """A host in a thread of its own, for tests that hypothesis calls again and again."""

    def __init__(self, call: Callable[..., Any], gateway: Gateway, folder: Path, inside: Any) -> None:
        self._call, self.gateway, self.folder, self.inside = call, gateway, folder, inside
        self.count = 0

    def unit(self, name: str, /, **arguments: Any) -> Any:
        return self._call(self.gateway.call, name, arguments)

    def start(self, document: Mapping[str, Any]) -> str:
        self.unit("pipeline.create", **document)
        return str(self.unit("pipeline.run", pipeline_id=document["name"], wait=False)["run_id"])

    def made(self, document: Mapping[str, Any]) -> None:
        """A pipeline that nobody has checked."""
        self._call(Shelf(self.gateway.services.store, self.gateway.registry).create, read(document), OWNER)

    def name(self) -> str:
        self.count += 1
        return f"p{self.count}"


@pytest.fixture(scope="module")
def hosted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosted]:
    folder = tmp_path_factory.mktemp("properties")
    home = Home(folder / "home")
    home.make()
    known, name = registry(folder, TOYS, HANDLERS)
    inside = sys.modules[f"{name}.only"]
    inside.FOLDER[0] = str(folder)
    with start_blocking_portal("asyncio") as portal, portal.wrap_async_context_manager(host(home, registry=known)) as gateway:
        yield Hosted(portal.call, gateway, folder, inside)


@st.composite
def graphs(draw: st.DrawFn, most: int = 12) -> list[tuple[str, list[str], str]]:
    """Steps, each with those before it that it waits for, and its unit."""
    found: list[tuple[str, list[str], str]] = []
    for place in range(draw(st.integers(1, most))):
        ids = [id for id, _, _ in found]
        needs = draw(st.lists(st.sampled_from(ids), unique=True, max_size=3)) if ids else []
        found.append((f"s{place}", needs, draw(st.sampled_from(QUICK))))
    return draw(st.permutations(found))


@SOME
@given(graphs(), st.integers(1, 8))
def test_no_step_begins_before_those_that_it_waits_for_are_done(
    hosted: Hosted, graph: list[tuple[str, list[str], str]], width: int
) -> None:
    name = hosted.name()
    steps = [step(id, type, *needs, word=f"{name}.{id}") for id, needs, type in graph]
    hosted.unit("pipeline.create", **pipeline(*steps, name=name, config={"max_parallel": width}))
    before = len(lines(hosted.folder))
    hosted.unit("pipeline.run", pipeline_id=name)
    written = lines(hosted.folder)[before:]
    assert len(written) == 2 * len(graph), "each step runs once"
    for id, needs, _ in graph:
        for need in needs:
            assert written.index(f"{name}.{need} done") < written.index(f"{name}.{id} begin")


@SOME
@given(st.integers(2, 12), st.integers(0, 4))
def test_steps_that_wait_for_nobody_run_at_the_same_time(hosted: Hosted, count: int, before: int) -> None:
    """They all wait until all are there: with one less at a time they would wait for ever."""
    name = hosted.name()
    chain = [step(f"c{i}", "toy.look", *([f"c{i - 1}"] if i else [])) for i in range(before)]
    last = [f"c{before - 1}"] if before else []
    meet = [{"id": f"m{i}", "type": "toy.meet", "depends_on": last, "input": {"word": f"{name}.{i}", "count": count}} for i in range(count)]
    hosted.unit("pipeline.create", **pipeline(*chain, *meet, name=name, config={"max_parallel": count}))
    assert hosted.unit("pipeline.run", pipeline_id=name)["status"] == "succeeded"


@SOME
@given(graphs(8), st.floats(0, 0.06), st.booleans())
def test_a_cancel_at_any_moment_leaves_nothing_running(
    hosted: Hosted, graph: list[tuple[str, list[str], str]], wait: float, undo: bool
) -> None:
    name = hosted.name()
    steps = [step(id, type, *needs, word=f"{name}.{id}", seconds=0.01) for id, needs, type in graph]
    if undo:
        for one in steps:
            one["compensate"] = {"type": "toy.again", "input": {"word": f"{name}.undo.{one['id']}"}}
    run_id = hosted.start(pipeline(*steps, name=name))
    time.sleep(wait)  # a moment chosen by nobody: here a sleep is the thing itself
    ended = hosted.unit("pipeline.cancel", run_id=run_id)["run"]
    assert ended["status"] in ("cancelled", "succeeded"), ended["error"]
    assert not hosted.inside.active["all"]
    assert hosted.gateway.services.store.find("run", status="running") == []
    found = {one["id"]: one for one in hosted.unit("pipeline.status", run_id=run_id)["steps"]}
    assert {one["status"] for one in found.values()} <= {"pending", "succeeded", "cancelled", "unknown"}
    if ended["status"] == "cancelled" and undo:
        assert all(one["compensation"] == "succeeded" for one in found.values() if one["status"] == "succeeded")
    written = len(lines(hosted.folder))
    assert hosted.unit("pipeline.cancel", run_id=run_id)["run"] == ended
    assert len(lines(hosted.folder)) == written


def spoilt(document: dict[str, Any], how: str) -> dict[str, Any]:
    """The document with one thing in it that cannot work, in its last step."""
    bad: dict[str, Any] = step("bad", "toy.look")
    if how == "unit":
        bad["type"] = "toy.lost"
    elif how == "argument":
        bad["input"]["sort"] = 1
    elif how == "missing":
        del bad["input"]["word"]
    elif how == "type":
        bad["input"]["seconds"] = "a while"
    elif how == "reference":
        bad["input"]["word"] = "${steps.s0.lost}"
    elif how == "type through a reference":
        bad["input"]["seconds"] = "${steps.text.value}"
        bad["input"]["word"] = "${steps.s0.others}"
    elif how == "items":
        bad["for_each"] = "${steps.s0.others}"
    elif how == "input":
        bad["input"]["word"] = "${input.lost}"
        document["input"] = {"type": "object", "properties": {}}
    return {**document, "steps": [*document["steps"], step("text", "toy.look"), bad]}


WAYS = ("unit", "argument", "missing", "type", "reference", "type through a reference", "items", "input")


@SOME
@given(graphs(6), st.sampled_from((None, *WAYS)))
def test_what_is_valid_runs_and_what_is_not_would_not(hosted: Hosted, graph: list[tuple[str, list[str], str]], how: str | None) -> None:
    name = hosted.name()
    document = pipeline(*(step(id, type, *needs) for id, needs, type in graph), name=name)
    if how is not None:
        document = spoilt(document, how)
    verdict = hosted.unit("pipeline.validate", **document)
    assert verdict["valid"] == (how is None), verdict
    hosted.made(document)
    try:
        hosted.unit("pipeline.run", pipeline_id=name)
        code = "ok"
    except AimaError as error:
        code = error.code
    assert code == ("ok" if how is None else "failed_precondition" if how == "unit" else "invalid_argument")


@given(st.text(alphabet="ab .!?\n1)\u3002", max_size=120), st.integers(0, 120))
def test_a_sentence_that_is_over_stays_as_it_is_while_the_text_grows(text: str, place: int) -> None:
    whole, early = sentences(text), sentences(text[:place], False)
    assert whole[: len(early)] == early
    assert "".join(whole).rstrip() == text.rstrip()
    assert all(sentence.strip() for sentence in whole)
