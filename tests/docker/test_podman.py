"""Podman's socket in the place of Docker's: one app lives there as it would with Docker. Skipped where podman is not installed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import anyio
import docker
import pytest

from aima_lib.infra.home import Home
from aima_lib.runtime import host
from tests.docker.podman import Podman
from tests.docker.test_app_life import PROBED, SAYING, TEMPLATE
from tests.standins import layer

pytestmark = pytest.mark.anyio
LINKED = '    env: {HOST: "${link.host}", KEY: "${link.key}"}\n'


@pytest.fixture(scope="module")
def podman() -> Iterator[Podman]:
    if why := Podman.lacks():
        pytest.skip(why)
    service = Podman()
    try:
        service.start()
        yield service
    except OSError as error:
        pytest.skip(str(error))
    finally:
        service.close()


@pytest.fixture(scope="module")
def api(podman: Podman) -> Iterator[docker.APIClient]:
    with closing(podman.api()) as opened:
        yield opened


def image(podman: Podman, api: docker.APIClient) -> str:
    changes = ["ENV PORTS='8080'", 'ENTRYPOINT ["/bin/sh", "/serve"]']
    said = api.import_image_from_data(layer(script=SAYING), changes=changes)
    return podman.id_in(str(said))


async def test_an_app_lives_in_podman_as_in_docker(podman: Podman, api: docker.APIClient, home: Home, anyio_backend: str) -> None:
    (home.path / "config.toml").write_text(
        f'[docker]\nsocket = "{podman.socket}"\n[engines]\nprobe_seconds = 0.2\n[server]\nport = 0\n', encoding="utf-8"
    )
    template = TEMPLATE.format(name="talk", image=image(podman, api), health=PROBED, more="link: inference\n", env=LINKED)
    async with host(home) as gateway:
        app = (await gateway.call("app.install", {"template": template}))["app"]
        id = app["containers"][0]["container_id"]
        assert app["status"] == "running"

        def inside(script: str) -> str:
            return str(api.exec_start(api.exec_create(id, ["/bin/sh", "-c", script])["Id"]).decode())

        first = await gateway.call("app.logs", {"app_id": "talk"})
        assert [line.partition(" ")[2] for line in first["lines"]] == ["begun"]
        await anyio.to_thread.run_sync(inside, "echo hello > /tmp/saying; /bin/busybox mv /tmp/saying /tmp/say")
        more = await gateway.call("app.logs", {"app_id": "talk", "cursor": first["cursor"], "wait_seconds": 10})
        assert [line.partition(" ")[2] for line in more["lines"]] == ["hello"], "though Podman tells whole seconds"
        ask = 'printf "GET /v1/models HTTP/1.1\\r\\n\\r\\n" | nc -w 2 ${HOST%:*} ${HOST#*:}'
        said = await anyio.to_thread.run_sync(inside, ask)
        assert said.startswith("HTTP/1.1 503"), "its listener answers, and says that this host has no port"
        await anyio.to_thread.run_sync(lambda: api.kill(id))
        with anyio.fail_after(20):
            while gateway.services.events.latest("app.restarted", "talk") is None or not api.inspect_container(id)["State"]["Running"]:
                await anyio.sleep(0.05)
        plan = await gateway.plan("app.uninstall", {"app_id": "talk", "remove_data": True})
        await gateway.call("app.uninstall", {"app_id": "talk", "remove_data": True}, token=plan["token"])
    mark = {"label": f"aima.home={home.id}"}
    assert not api.containers(all=True, filters=mark) and not api.volumes(filters=mark)["Volumes"]
    assert not [row for row in api.networks() if home.id in row["Name"]]
