"""An app's life, over the installed wheel and a real daemon: what happens to it is seen, said, and mended where it can be."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing
from typing import Any

import docker
import pytest

from aima_lib.errors import AlreadyExists, FailedPrecondition, NotFound
from tests.contract.watching import HttpWatch
from tests.docker.daemon import Dockerd
from tests.standins import stand_in
from tests.world import World, until

LIMIT = 32 << 20
PAGE = "/www/minio/health/live"
CHECK = f'HEALTHCHECK --interval=200ms --timeout=2s --retries=1 CMD ["/bin/cat", "{PAGE}"]'
BASE = {"ports": {"s3": 19555}, "memory_bytes": {"minio": LIMIT}}


@pytest.fixture
def api(dockerd: str | None, world_docker: Dockerd) -> Iterator[docker.APIClient]:
    """What a person with the docker command does."""
    if dockerd:
        pytest.skip(dockerd)
    with closing(world_docker.api()) as opened:
        yield opened


def happened(world: World, type: str, app: str = "drill") -> list[Mapping[str, Any]]:
    """The payloads of an app's events of one type."""
    page = world.call("event.list", types=[type], limit=1000)["events"]
    return [event["payload"] for event in page if event["payload"]["app_id"] == app]


def drill(world: World) -> Mapping[str, Any]:
    """The app that these tests are about."""
    app: Mapping[str, Any] = world.call("app.get", app_id="drill")["app"]
    return app


def container(world: World) -> str:
    return str(drill(world)["containers"][0]["container_id"])


@pytest.fixture(scope="module", autouse=True)
def installed(dockerd: str | None, world: World) -> Iterator[None]:
    """The app, with a port and a limit of its own; gone afterwards."""
    if dockerd:
        pytest.skip(dockerd)
    app = world.call("app.install", template="minio", name="drill", config=BASE)["app"]
    assert (app["status"], app["ports"][0]["port"], app["containers"][0]["memory_limit_bytes"]) == ("running", 19555, LIMIT)
    yield
    world.call("app.uninstall", app_id="drill", remove_data=True)


def test_what_ends_or_is_removed_by_hand_comes_back(world: World, api: docker.APIClient) -> None:
    before = container(world)
    api.kill(before)
    until(lambda: happened(world, "app.restarted"), what="the restart")
    assert happened(world, "app.restarted")[0]["cause"] == "minio ended with 137"
    until(lambda: drill(world)["status"] == "running", what="the app")
    api.remove_container(before, force=True)
    until(lambda: container(world) not in (before, "None") and drill(world)["status"] == "running", what="another container")
    assert any("was not there" in each["cause"] or "137" in each["cause"] for each in happened(world, "app.restarted")[1:])


def test_want_of_memory_is_seen_and_the_limit_named(world: World, api: docker.APIClient) -> None:
    until(lambda: drill(world)["status"] == "running", what="the app")
    greedy = api.exec_create(container(world), ["/bin/busybox", "tail", "/dev/zero"])
    api.exec_start(greedy["Id"], detach=True)
    until(lambda: happened(world, "app.oom_detected"), what="the news")
    assert happened(world, "app.oom_detected")[0] == {"app_id": "drill", "container": "minio", "memory_limit_bytes": LIMIT}


def test_another_image_takes_its_place_and_one_that_does_not_work_is_taken_back(world: World, api: docker.APIClient) -> None:
    until(lambda: drill(world)["status"] == "running", what="the app")
    good = stand_in(api, "minio/newer:1", [9000, 9001], CHECK)
    bad = stand_in(api, "minio/broken:1", [9000], 'ENTRYPOINT ["/bin/sh", "-c", "echo the data is too old; exit 3"]')
    updated = world.call("app.update", app_id="drill", config={**BASE, "images": {"minio": good}})["app"]
    assert (updated["status"], updated["containers"][0]["image_id"]) == ("running", good)
    assert happened(world, "app.updated") == [{"app_id": "drill", "images": {"minio": good}}]
    with pytest.raises(FailedPrecondition, match="ended with 3; it said last: the data is too old") as refusal:
        world.call("app.update", app_id="drill", config={**BASE, "images": {"minio": bad}})
    assert "runs as before" in str(refusal.value.hint)
    now = drill(world)
    assert (now["status"], now["containers"][0]["image_id"], now["config"]["images"]) == ("running", good, {"minio": good})
    assert "the data is too old" in happened(world, "app.rolled_back")[0]["cause"]
    with pytest.raises(AlreadyExists) as other:
        world.call("app.install", template="qdrant", name="drill")
    assert {"unit": "app.update", "arguments": {"app_id": "drill"}} in other.value.next


def test_ill_health_is_told_with_what_dockers_check_said(world: World, api: docker.APIClient) -> None:
    """Of the image that the test before this left."""
    until(lambda: drill(world)["health"] == "healthy", what="health")
    for script in (f"/bin/busybox mv {PAGE} /page", f"/bin/busybox mv /page {PAGE}"):
        api.exec_start(api.exec_create(container(world), ["/bin/sh", "-c", script])["Id"])
        until(lambda: happened(world, "app.health_changed"), what="the news")
    turn = happened(world, "app.health_changed")[0]
    assert (turn["container"], turn["old_status"], turn["new_status"]) == ("minio", "healthy", "unhealthy")
    assert "No such file" in turn["reason"]
    until(lambda: drill(world)["health"] == "healthy", what="health again")


def test_a_port_that_somebody_took_is_said_and_what_was_stopped_stays_so(world: World, api: docker.APIClient) -> None:
    assert world.call("app.stop", app_id="drill")["app"]["status"] == "stopped"
    with socket.create_server(("127.0.0.1", 19555)):
        with pytest.raises(FailedPrecondition, match="19555"):
            world.call("app.start", app_id="drill")
        assert drill(world)["status"] == "failed"
        assert "19555" in drill(world)["reason"]
        assert "19555" in happened(world, "app.failed")[0]["cause"]
    assert world.call("app.start", app_id="drill")["app"]["status"] == "running"


def test_data_stays_until_it_is_asked_for(world: World, api: docker.APIClient) -> None:
    volume = next(row["Name"] for row in api.volumes()["Volumes"] if row["Name"].endswith("app-drill--data"))
    config = drill(world)["config"]
    gone = world.call("app.uninstall", app_id="drill")
    assert gone == {"app_id": "drill", "data_removed": False, "kept_volumes": ["data"]}
    assert (drill(world)["status"], drill(world)["logins"]) == ("uninstalled", [])
    assert volume in [row["Name"] for row in api.volumes()["Volumes"]]
    assert not [row for row in api.containers(all=True) if row["Labels"].get("aima.name", "").startswith("app-drill-")]
    assert world.call("secret.list")["secrets"]
    with pytest.raises(FailedPrecondition, match="its data is here"):
        world.call("app.start", app_id="drill")
    again = world.call("app.install", template="minio", name="drill", config=config)["app"]
    assert (again["status"], again["ports"][0]["port"]) == ("running", 19555)


def test_the_app_can_be_watched_as_a_resource(world: World) -> None:
    read = world.http.get("/units/app/get", params={"app_id": "drill"}).json()
    assert read["app"]["title"] == "MinIO"
    with ExitStack() as stack:
        watch = HttpWatch(stack, world.http, "aima://app/drill")
        assert watch.first["app"]["status"] == "running"
        world.call("app.stop", app_id="drill")
        assert watch.update()["app"]["status"] == "stopped"
    with pytest.raises(NotFound):
        world.call("app.logs", app_id="drll")
