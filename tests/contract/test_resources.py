"""Every resource, read and watched over every face that has resources."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from itertools import count
from typing import Any

import pytest
from anyio.from_thread import BlockingPortal
from mcp.shared.exceptions import MCPError

from aima_lib import AimaError
from tests.contract.conftest import Faces
from tests.contract.faces import REGISTRY, Mcp, Outcome, http_outcome, ok, refused
from tests.contract.test_examples import differences
from tests.contract.watching import HttpWatch, ListenWatch, SubscribeWatch
from tests.world import World, until

# The SDK's client warns of what the newer era has dropped; clients of the older one still use it.
pytestmark = pytest.mark.filterwarnings("ignore:resources/(un)?subscribe is removed")
RESOURCES = REGISTRY.of("resource")
# Templates never change, and an app takes Docker: test_apps watches one. Two device resources change with the machine's memory alone: test_faults watches them. A blob never changes; test_media watches its end.
ELSEWHERE = {"device.health_by_id", "device.metrics_by_id", "blob.content", "app.by_id", "app.shelf"}

RECIPE: Mapping[str, Any] = {
    "name": "watched",
    "type": "llm",
    "engines": ["llamacpp"],
    "license": "mit",
    "size_bytes": 1,
    "memory_bytes": 1,
    "sources": [{"source": "huggingface", "repo": "a/b", "evidence": "unverified"}],
    "evidence": {"size_bytes": "unverified", "memory_bytes": "unverified"},
}


def read(faces: Faces, world: World, face: str, uri: str) -> Outcome:
    """A resource's content, or the error."""
    if face == "http":
        return http_outcome(world.http.get("/resources", params={"uri": uri}))
    if face == "library":
        try:
            return ok(world.aima.read(uri))
        except AimaError as error:
            return refused(error.as_dict())
    through = faces[face]
    assert isinstance(through, Mcp)
    try:
        result = through.portal.call(partial(through.client.read_resource, uri))
    except MCPError as error:
        data = dict(error.error.data)
        assert data.pop("uri") == uri, "beside our error the protocol wants the URI"
        return refused(data)
    [content] = result.contents
    assert str(content.uri) == uri
    assert content.mime_type == "application/json"
    return ok(json.loads(content.text))


@pytest.mark.parametrize("face", ["library", "http", "mcp_stdio", "mcp_http", "mcp_http_handshake"])
@pytest.mark.parametrize(
    ("name", "place"),
    [pytest.param(unit.name, place, id=f"{unit.name}-{place}") for unit in RESOURCES for place in range(len(unit.definition["examples"]))],
)
def test_an_example_is_true_on_this_face(faces: Faces, world: World, face: str, name: str, place: int) -> None:
    example = REGISTRY[name].definition["examples"][place]
    outcome = read(faces, world, face, example["uri"])
    assert outcome.code == example.get("error", "ok"), outcome.body
    if outcome.code == "ok":
        assert differences(example["output"], outcome.body) == []
        assert REGISTRY[name].output.first_error(dict(outcome.body)) is None


@pytest.mark.parametrize("face", ["library", "http", "mcp_stdio", "mcp_http", "mcp_http_handshake"])
@pytest.mark.parametrize("uri", ["aima://nothing", "aima://models", "http://example.invalid/", "aima://model/tiny/../other"])
def test_what_is_no_resource_is_not_found(faces: Faces, world: World, face: str, uri: str) -> None:
    assert read(faces, world, face, uri).code == "not_found"


@pytest.mark.parametrize("face", ["library", "http", "mcp_stdio", "mcp_http", "mcp_http_handshake"])
def test_a_blob_that_was_deleted_is_gone(faces: Faces, world: World, face: str) -> None:
    blob = world.call("blob.create", content="c291bmQ=")["blob"]
    assert world.call("blob.delete", blob_id=blob["id"]) == {"freed_bytes": 5}
    until(lambda: world.call("event.list", subject=blob["id"])["events"], 10, "the event")
    assert read(faces, world, face, blob["uri"]).code == "not_found"


@pytest.mark.parametrize("face", ["mcp_stdio", "mcp_http", "mcp_http_handshake"])
def test_every_resource_is_listed(faces: Faces, face: str) -> None:
    through = faces[face]
    assert isinstance(through, Mcp)
    fixed = through.portal.call(partial(through.client.list_resources))
    templates = through.portal.call(partial(through.client.list_resource_templates))
    listed = {str(entry.uri) for entry in fixed.resources} | {entry.uri_template for entry in templates.resource_templates}
    assert listed == {unit.definition["uriTemplate"] for unit in RESOURCES}


@pytest.fixture(scope="module")
def toggled(world: World) -> Iterator[Callable[[], Any]]:
    """Stops a service of ours when it runs, starts it when it does not."""
    world.call("service.create", model_id="tiny", name="watched")

    def toggle() -> None:
        running = world.call("service.get", service_id="watched")["service"]["status"] == "running"
        world.call("service.stop" if running else "service.start", service_id="watched")

    yield toggle
    world.call("service.delete", service_id="watched")


@pytest.fixture(scope="module")
def resized(world: World) -> Iterator[Callable[[], Any]]:
    """Lets a slot of ours hold a little more."""
    slot = world.call("resource.allocate", name="watched", type="desktop", memory_bytes=1 << 20, device_id="cpu")["slot"]
    sizes = count(slot["memory_bytes"] + 1)
    yield lambda: world.call("resource.update_slot", slot_id=slot["id"], memory_bytes=next(sizes))
    world.call("resource.release", slot_id=slot["id"])


@pytest.fixture
def causes(world: World, toggled: Callable[[], Any], resized: Callable[[], Any]) -> Mapping[str, tuple[str, Callable[[], Any]]]:
    """Resource → a URI of it, and a real call that changes what is there."""
    verify = partial(world.call, "model.verify", model_id="tiny")
    detect = partial(world.call, "device.detect")

    def changed() -> Any:
        """Another version of a pipeline."""
        numbers.append(len(numbers))
        return world.call("pipeline.create", name="watched", steps=[{"id": f"s{len(numbers)}", "type": "model.list"}])

    def cooked() -> Any:
        """Another recipe of the same name."""
        numbers.append(len(numbers))
        return world.call("catalog.create_recipe", recipe={**RECIPE, "title": f"Recipe {len(numbers)}"})

    numbers: list[int] = []
    changed()
    cooked()
    return {
        "catalog.by_id": ("aima://catalog/recipe/watched", cooked),
        "catalog.recipes": ("aima://catalog/recipes", cooked),
        "device.all": ("aima://devices", detect),
        "device.info_by_id": ("aima://device/cpu/info", detect),
        "engine.by_name": ("aima://engine/llamacpp", toggled),
        "engine.status": ("aima://engines/status", toggled),
        "event.log": ("aima://events", verify),
        "inference.available": ("aima://inference/models", toggled),
        "model.compatibility": ("aima://models/compatibility", detect),
        "model.entry": ("aima://model/tiny", verify),
        "model.registry": ("aima://models/registry", verify),
        "pipeline.all": ("aima://pipelines", changed),
        "pipeline.by_id": ("aima://pipeline/watched", changed),
        "resource.allocations_now": ("aima://resource/allocations", resized),
        "resource.budget_now": ("aima://resource/budget", resized),
        "resource.status_now": ("aima://resource/status", resized),
        "service.all": ("aima://services", toggled),
        "service.by_id": ("aima://service/watched", toggled),
    }


@pytest.fixture(scope="module")
def subscriber(world: World, portal: BlockingPortal) -> Iterator[SubscribeWatch]:
    with ExitStack() as stack:
        yield SubscribeWatch(stack, portal, world.host)


@pytest.mark.parametrize("name", [unit.name for unit in RESOURCES if unit.name not in ELSEWHERE])
def test_a_change_reaches_whoever_watches(
    faces: Faces, world: World, portal: BlockingPortal, causes: Mapping[str, Any], subscriber: SubscribeWatch, name: str
) -> None:
    uri, cause = causes[name]
    listeners = [faces["mcp_http"], faces["mcp_stdio"]]
    with ExitStack() as stack:
        watches: list[Any] = [ListenWatch(stack, portal, face.client, uri) for face in listeners if isinstance(face, Mcp)]
        http = HttpWatch(stack, world.http, uri)
        assert REGISTRY[name].output.first_error(http.first) is None
        subscriber.subscribe(uri)
        cause()
        for watch in watches:
            watch.update()
        subscriber.update(uri)
        assert REGISTRY[name].output.first_error(http.update()) is None
    subscriber.unsubscribe(uri)


def test_a_subscription_to_nothing_is_refused(world: World, subscriber: SubscribeWatch) -> None:
    with pytest.raises(MCPError) as raised:
        subscriber.subscribe("aima://nothing")
    assert refused(raised.value.error.data).code == "not_found"
    answer = world.http.get("/resources", params={"uri": "aima://nothing"}, headers={"Accept": "text/event-stream"})
    assert http_outcome(answer).code == "not_found"
