"""Apps on a real daemon: templates installed with images that listen as the real ones do, killed hosts, pulls, and nothing left behind."""

from __future__ import annotations

import json
import os
import re
import socket
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import docker
import httpx
import pytest

from aima_lib import config as settings
from aima_lib.errors import FailedPrecondition
from aima_lib.gateway import Gateway
from aima_lib.infra.container import judged
from aima_lib.infra.daemon import Daemon
from aima_lib.infra.docker import Docker
from aima_lib.infra.home import Home
from aima_lib.infra.roots import Roots
from aima_lib.registry import PACKAGE, SCHEMAS
from aima_lib.runtime import host
from aima_lib.services.app_template import builtins, container_of, network_of, ports_of, spec_of, volume_of, volumes_of
from tests.docker.daemon import Dockerd
from tests.image_registry import Images
from tests.standins import SERVE, layer, stand_in, stand_ins
from tests.world import HostProcess, agreed_to, contents, until

CYCLES = int(os.environ.get("AIMA_CYCLES", "3"))
STEPS = ("recorded", "network", "volume", "key", "container", "running", "updating", "uninstalling")
USUAL = ("running", "uninstalling")  # the others with AIMA_CYCLES beyond the default

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def api(dockerd: Dockerd) -> Iterator[docker.APIClient]:
    """What a person with the docker command does. The images of three templates are here."""
    with closing(dockerd.api()) as opened:
        stand_ins(opened, "open-webui", "monitoring", "qdrant")
        yield opened


@pytest.fixture
def home(home: Home, dockerd: Dockerd) -> Home:
    (home.path / "config.toml").write_text(f'[docker]\nsocket = "{dockerd.socket}"\n', encoding="utf-8")
    return home


@pytest.fixture
async def hosted(home: Home, api: docker.APIClient, anyio_backend: str) -> Any:
    async with host(home) as gateway:
        yield gateway


@pytest.fixture(scope="module")
def process(dockerd: Dockerd, api: docker.APIClient, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostProcess]:
    """A host that listens, and can be killed; for all tests that leave nothing in it."""
    folder = tmp_path_factory.mktemp("process")
    running = HostProcess(Path(sys.executable), folder / "home", folder, f'[docker]\nsocket = "{dockerd.socket}"\n').start()
    yield running
    running.stop()


def left(api: docker.APIClient, home: Home) -> list[str]:
    """What there is of a home in Docker, and of apps in the home, keys that were revoked aside."""
    mark = {"label": f"aima.home={home.id}"}
    rows = [row["Names"][0] for row in api.containers(all=True, filters=mark)]
    rows += [row["Name"] for row in api.volumes(filters=mark)["Volumes"] or ()] + [row["Name"] for row in api.networks(filters=mark)]
    known = contents(home) if (home.path / "aima.db").exists() else {}
    rows += [name for name in known if name.split("/")[0] in ("app", "secret")]
    return rows + [str(path) for path in (home.path / "apps").glob("*")]


async def removed(gateway: Gateway, app_id: str) -> None:
    given = {"app_id": app_id, "remove_data": True}
    plan = await gateway.plan("app.uninstall", given)
    await gateway.call("app.uninstall", given, token=plan["token"])


def within(api: docker.APIClient, id: str, script: str) -> str:
    """What a script says inside a container."""
    made = api.exec_create(id, ["/bin/sh", "-c", script])
    return str(api.exec_start(made["Id"]).decode())


def asked(api: docker.APIClient, id: str, host: str, path: str, key: str, more: str = "") -> str:
    """The answer that a container gets over HTTP."""
    head = f"GET {path} HTTP/1.1\\r\\nHost: {host}\\r\\nAuthorization: Bearer {key}\\r\\n{more}\\r\\n"
    return within(api, id, f'printf "{head}" | nc -w 5 {host.replace(":", " ")}')


async def test_open_webui_reaches_v1_with_a_key_of_its_own_and_nothing_else(process: HostProcess, api: docker.APIClient) -> None:
    with process.client() as http:
        app = http.post("/units/app/install", json={"template": "open-webui"}).raise_for_status().json()["app"]
        id = app["containers"][0]["container_id"]
        assert (app["status"], app["link"]["key_id"]) == ("running", "app-open-webui")
        assert httpx.get(f"{app['url']}health", trust_env=False).text == "well\n"
        env = dict(row.split("=", 1) for row in api.inspect_container(id)["Config"]["Env"])
        place = env["OPENAI_API_BASE_URL"].removeprefix("http://").removesuffix("/v1")
        said = asked(api, id, place, "/v1/models", "$OPENAI_API_KEY")
        assert said.startswith("HTTP/1.1 200"), said
        assert '"object":"list"' in said
        assert asked(api, id, place, "/v1/models", "sk-wrong").startswith("HTTP/1.1 401")
        for path in ("/units/app/list", "/metrics", "/v1/../units/app/list", "//v1/models", "/health"):
            assert asked(api, id, place, path, "$OPENAI_API_KEY").startswith("HTTP/1.1 404"), path
        body = '{\\"model\\": \\"nobody\\", \\"messages\\": [{\\"role\\": \\"user\\", \\"content\\": \\"hi\\"}]}'
        post = "POST /v1/chat/completions HTTP/1.1\\r\\nHost: x\\r\\nAuthorization: Bearer $OPENAI_API_KEY\\r\\nContent-Type: application/json\\r\\n"
        post += f"Content-Length: {len(body.replace(chr(92), ''))}\\r\\n\\r\\n{body}"
        answer = within(api, id, f'printf "{post}" | nc -w 5 {place.replace(":", " ")}')
        assert "404" in answer.splitlines()[0] and "nobody" in answer, answer
        logs = (process.home.path / "logs" / "serve.log").read_text(encoding="utf-8")
        for value in (env["OPENAI_API_KEY"], env["WEBUI_SECRET_KEY"]):
            assert value not in logs + json.dumps(http.get("/units/event/list", params={"limit": 1000}).json()) + json.dumps(app)
            assert value.encode() not in (process.home.path / "aima.db").read_bytes()
        agreed_to(http, "app/uninstall", {"app_id": "open-webui", "remove_data": True})
        assert http.get("/v1/models", headers={"Authorization": f"Bearer {env['OPENAI_API_KEY']}"}).status_code == 401
    assert left(api, process.home) == []


async def test_monitoring_gathers_what_is_real_and_shows_it(process: HostProcess, api: docker.APIClient) -> None:
    with process.client() as http:
        app = http.post("/units/app/install", json={"template": "monitoring"}).raise_for_status().json()["app"]
        prometheus, grafana = (row["container_id"] for row in app["containers"])
        told = within(api, prometheus, "cat /etc/prometheus/prometheus.yml")
        key, place = (re.search(pattern, told) for pattern in (r'credentials: "([^"]+)"', r'targets: \["([^"]+)"\]'))
        assert key and place
        answer = asked(api, prometheus, place[1], "/metrics", key[1])
        assert answer.startswith("HTTP/1.1 200") and 'aima_info{version="' in answer
        assert asked(api, prometheus, place[1], "/v1/models", key[1]).startswith("HTTP/1.1 404")
        assert "url: http://prometheus:9090" in within(api, grafana, "cat /etc/grafana/provisioning/datasources/aima.yaml")
        assert "path: /etc/grafana/aima" in within(api, grafana, "cat /etc/grafana/provisioning/dashboards/aima.yaml")
        board = json.loads(within(api, grafana, "cat /etc/grafana/aima/aima.json"))
        assert board["uid"] == "aima"
        [network] = api.inspect_container(prometheus)["NetworkSettings"]["Networks"].values()
        assert "prometheus" in network["Aliases"]
        assert Path(app["logins"][0]["file"]).stat().st_mode & 0o777 == 0o600
        assert Path(app["logins"][0]["file"]).read_text().strip() in json.dumps(api.inspect_container(grafana)["Config"]["Env"])
        agreed_to(http, "app/uninstall", {"app_id": "monitoring", "remove_data": True})
    assert left(api, process.home) == []


def test_the_dashboard_names_only_metrics_that_there_are() -> None:
    board = (PACKAGE / "apps/files/dashboard.json").read_text(encoding="utf-8")
    known = {"aima_calls_total", "aima_call_seconds_total", "aima_events_total", "aima_caller_tokens_total"}
    for kind, file in (("service", "service_metrics"), ("device", "device_sample")):
        known |= {f"aima_{kind}_{name}" for name in json.loads((SCHEMAS / f"types/{file}.json").read_text())["properties"]}
    source = (PACKAGE.parent / "aima_mcp/faces/http/metrics.py").read_text(encoding="utf-8")
    assert all(name in source or name == "aima_caller_tokens_total" for name in known if name.startswith(("aima_call", "aima_events")))
    used = set(re.findall(r"aima_[a-z0-9_]+", board))
    assert used and used <= known, used - known


@pytest.mark.parametrize("name", builtins())
async def test_every_template_is_a_spec_that_docker_takes(name: str, home: Home, api: docker.APIClient) -> None:
    template, sight = builtins()[name], Docker(settings.load(home.path), home.id)
    image = str(api.inspect_image("qdrant/qdrant:v1.14.1")["Id"])
    ports = {port["name"]: port["host"] for _, port in ports_of(template)}
    await sight.ask(Daemon.keep_network, network_of(name), name)
    for volume in volumes_of(template):
        await sight.ask(Daemon.keep_volume, volume_of(name, volume), name)
    for container in template["containers"]:
        spec = judged(spec_of(name, container, template, image, ports, {}, {"how": "request"}), Roots({}, home.path))
        made = api.inspect_container(await sight.create(spec, "app", container_of(name, container), "1"))
        host_config = made["HostConfig"]
        assert (host_config["CapDrop"], host_config["SecurityOpt"], host_config["Privileged"]) == (["ALL"], ["no-new-privileges"], False)
        assert {row["HostIp"] for rows in host_config["PortBindings"].values() for row in rows} == {"127.0.0.1"}
        assert not host_config["Binds"] and {mount["Type"] for mount in host_config["Mounts"]} <= {"volume"}
        assert host_config["Memory"] == template["containers"][container].get("memory_bytes", 0)
        await sight.ask(Daemon.remove, made["Id"])
    await sight.ask(Daemon.remove_network, network_of(name))
    for volume in volumes_of(template):
        await sight.ask(Daemon.remove_volume, volume_of(name, volume))
    assert left(api, home) == []


async def test_cycles_of_install_and_uninstall_leave_nothing(hosted: Gateway, home: Home, api: docker.APIClient) -> None:
    for _ in range(CYCLES):
        app = (await hosted.call("app.install", {"template": "qdrant"}))["app"]
        assert app["status"] == "running"
        await removed(hosted, "qdrant")
        assert left(api, home) == []


async def test_a_strangers_container_with_our_name_and_port_is_left_alone(hosted: Gateway, home: Home, api: docker.APIClient) -> None:
    image = api.inspect_image("qdrant/qdrant:v1.14.1")["Id"]
    with socket.create_server(("127.0.0.1", 0)) as probe:
        taken = probe.getsockname()[1]
    bound = api.create_host_config(port_bindings={6333: ("127.0.0.1", taken)})
    stranger = api.create_container(image, name=f"aima-{home.id}-app-qdrant--qdrant", host_config=bound, ports=[6333])["Id"]
    api.start(stranger)
    await hosted.call("secret.put", {"name": "app_qdrant__api_key", "value": "chosen-by-a-person"})
    refused = await _refused(hosted, {"template": "qdrant"})
    assert refused["code"] == "failed_precondition" and "is not this home's" in refused["message"], refused
    assert api.inspect_container(stranger)["State"]["Running"]
    assert left(api, home) == ["secret/app_qdrant__api_key"], "what a person has put is not taken back with what was made"
    await hosted.services.secrets.delete("app_qdrant__api_key")
    asked = await _refused(hosted, {"template": "qdrant", "config": {"ports": {"http": taken}}})
    assert f"config.ports.http: port {taken} is taken by" in asked["message"]
    api.remove_container(stranger, force=True)


async def _refused(gateway: Gateway, given: Mapping[str, Any]) -> Mapping[str, Any]:
    run = await gateway.start("app.install", given)
    ended = await gateway.runs.follow(run["id"], _ignored)
    assert ended["status"] == "failed", ended
    error: Mapping[str, Any] = ended["error"]
    return error


async def _ignored(item: Mapping[str, Any]) -> None:
    """Nobody listens."""


async def test_a_port_that_is_taken_between_our_look_and_dockers_is_no_reason_to_fail(
    hosted: Gateway, home: Home, api: docker.APIClient
) -> None:
    mark, thief = {"label": f"aima.home={home.id}"}, socket.socket()
    run = await hosted.start("app.install", {"template": "qdrant"})
    await _until(lambda: hosted.services.store.peek("app", "qdrant"))
    first = hosted.services.store.get("app", "qdrant")["ports"]["grpc"]
    with closing(thief):
        thief.bind(("127.0.0.1", first))
        thief.listen()
        assert not api.containers(filters=mark), "it was too quick for the thief"
        ended = await hosted.runs.follow(run["id"], _ignored)
        assert ended["status"] == "succeeded", ended["error"]
        ports = {row["name"]: row["port"] for row in ended["result"]["app"]["ports"]}
        assert first not in ports.values()
    await removed(hosted, "qdrant")
    assert left(api, home) == []


# Pulls


@pytest.fixture
def images() -> Iterator[Images]:
    """A registry with an image that listens, of 4 MB that do not compress."""
    served = Images()
    config = {"Entrypoint": ["/bin/sh", "/serve"], "Env": ["PORTS=8080"]}
    served.add("aima/app", "1", [layer(), layer({"blob": os.urandom(4 << 20)})], config)
    yield served
    served.close()


def own(images: Images, reference: str) -> str:
    """A template of somebody's own."""
    return f"""
name: fetched
title: Fetched
description: An image that comes from a registry.
category: custom
evidence: by a test
containers:
  web:
    image: {images.place}/aima/app{reference}
    ports: [{{name: web, container: 8080, page: /}}]
    health: {{port: web, path: /}}
"""


async def test_an_image_is_pulled_by_its_digest_with_progress_and_goes_with_the_app(
    hosted: Gateway, home: Home, api: docker.APIClient, images: Images
) -> None:
    digest, told = images.manifests["aima/app", "1"], list[Mapping[str, Any]]()
    plan = await hosted.plan("app.install", {"template": own(images, f"@{digest}")})
    assert plan["changes"]["download_bytes"] is None

    async def send(item: Mapping[str, Any]) -> None:
        told.append(dict(item))

    app = (await hosted.call("app.install", {"template": own(images, f"@{digest}")}, send=send))["app"]
    assert (app["status"], app["containers"][0]["digest"]) == ("running", digest)
    assert [item for item in told if item["completed"] and item["total"]], told
    assert httpx.get(app["url"], trust_env=False).text == "a page\n"
    await removed(hosted, "fetched")
    assert left(api, home) == []
    assert not [row for row in api.images() if any(images.place in name for name in row["RepoDigests"] or ())]
    refused = await _refused(hosted, {"template": own(images, f"@sha256:{'0' * 64}")})
    assert refused["code"] == "not_found"
    assert left(api, home) == []


async def test_what_a_tag_stands_for_is_settled_at_install(hosted: Gateway, home: Home, api: docker.APIClient, images: Images) -> None:
    digest = images.manifests["aima/app", "1"]
    found = await hosted.services.apps.stack.image(f"{images.place}/aima/app:1", _ignored)
    assert (found["digest"], found["pulled"], found["image_id"][:7]) == (digest, True, "sha256:")
    api.remove_image(f"{images.place}/aima/app:1")


async def test_an_install_that_is_cancelled_in_its_pull_leaves_nothing(
    hosted: Gateway, home: Home, api: docker.APIClient, images: Images
) -> None:
    images.gate.clear()
    run = await hosted.start("app.install", {"template": own(images, f"@{images.manifests['aima/app', '1']}")})
    await _until(lambda: images.waiting.is_set())
    assert (await hosted.call("app.get", {"app_id": "fetched"}))["app"]["status"] == "installing"
    with pytest.raises(FailedPrecondition, match="is installing, by the run") as busy:
        await removed(hosted, "fetched")
    assert busy.value.next[0] == {"unit": "run.cancel", "arguments": {"run_id": run["id"]}}
    ended = await hosted.call("run.cancel", {"run_id": run["id"]})
    assert ended["run"]["status"] == "cancelled"
    assert left(api, home) == []


async def _until(found: Callable[[], Any]) -> None:
    import anyio

    with anyio.fail_after(20):
        while not found():
            await anyio.sleep(0.02)


# Hosts that die


def _at(step: str, api: docker.APIClient, home: Home) -> Callable[[], bool]:
    mark, before = {"label": f"aima.home={home.id}"}, set(contents(home))
    return {
        "recorded": lambda: "app/qdrant" in contents(home),
        "network": lambda: bool(api.networks(filters=mark)),
        "volume": lambda: bool(api.volumes(filters=mark)["Volumes"]),
        "key": lambda: any(name.startswith("key/app") for name in set(contents(home)) - before),
        "container": lambda: bool(api.containers(all=True, filters=mark)),
        "running": lambda: bool(api.containers(filters=mark)),
        "updating": lambda: bool(api.containers(all=True, filters={"label": [mark["label"], "aima.generation=2"]})),
        "uninstalling": lambda: not api.containers(filters=mark),
    }[step]


@pytest.mark.crash
def test_a_host_killed_at_any_step_loses_and_leaves_nothing(process: HostProcess, api: docker.APIClient, dockerd: Dockerd) -> None:
    """Of an app with a link, two volumes and secrets that is slow to be well. What goes on is one app, with one key, which then goes whole."""
    slow = SERVE.replace("for port", "sleep 2\nfor port")
    stand_in(api, "slow/app:1", [8080], script=slow)
    image = api.inspect_image("slow/app:1")["Id"]
    template = f"""
name: qdrant
title: Slow
description: It takes two seconds until it is well.
category: custom
evidence: by a test
link: inference
secrets: {{session: {{}}}}
containers:
  web:
    image: {image}
    env: {{KEY: "${{link.key}}", SESSION: "${{secret.session}}"}}
    ports: [{{name: web, container: 8080}}]
    volumes: [{{name: one, target: /one}}, {{name: two, target: /two}}]
    health: {{port: web, path: /}}
    stop_seconds: 1
"""
    for step in STEPS if CYCLES > 3 else USUAL:
        with process.client() as http:
            path, body, reached = "/units/app/install", {"template": template}, _at(step, api, process.home)
            if step == "uninstalling":
                http.post(path, json=body).raise_for_status()
                path, body = "/units/app/uninstall", {"app_id": "qdrant", "remove_data": True}
                token = http.post(path, json=body, headers={"Aima-Plan": "true"}).json()["token"]
                with pytest.raises(httpx.TimeoutException):
                    http.post(path, json=body, headers={"Aima-Token": token}, timeout=0.05)
            else:
                if step == "updating":
                    http.post(path, json=body).raise_for_status()
                    path, body = "/units/app/update", {"app_id": "qdrant", "config": {"env": {"web": {"NEWER": "yes"}}}}
                http.post(path, json=body, headers={"Prefer": "respond-async"}).raise_for_status()
            until(reached, what=step)
        process.kill()
        process.start()
        with process.client() as http:
            if step == "uninstalling":
                until(lambda: left(api, process.home) == [], what="the end of the uninstall")
                continue
            get = lambda http=http: http.get("/units/app/get", params={"app_id": "qdrant"}).json().get("app", {})  # noqa: E731
            until(lambda get=get: get().get("status") == "running", what=f"the app, after {step}")
            assert len(api.containers(all=True, filters={"label": f"aima.home={process.home.id}"})) == 1
            if step == "updating":
                assert "NEWER=yes" in api.inspect_container(get()["containers"][0]["container_id"])["Config"]["Env"]
            keys = http.get("/units/key/list", params={"status": "active"}).json()["keys"]
            assert [key["id"] for key in keys] == [get()["link"]["key_id"]]
            agreed_to(http, "app/uninstall", {"app_id": "qdrant", "remove_data": True})
        assert left(api, process.home) == []


def _starts(app: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(row["container_id"], row["started_at"]) for row in app["containers"]]


async def test_apps_outlive_hosts_and_a_restart_of_the_machine(home: Home, api: docker.APIClient, anyio_backend: str) -> None:
    async with host(home) as first:
        for name in ("one", "two"):
            await first.call("app.install", {"template": "qdrant", "name": name})
        await first.call("app.stop", {"app_id": "two"})
        before = _starts((await first.call("app.get", {"app_id": "one"}))["app"])
    async with host(home) as second:
        after = (await second.call("app.get", {"app_id": "one"}))["app"]
        assert (after["status"], _starts(after)) == ("running", before)
    api.stop(before[0][0], timeout=1)  # as a machine that goes down does
    async with host(home) as third:
        await _until(lambda: api.containers(filters={"id": before[0][0]}))
        assert third.services.events.latest("app.restarted", "one") is not None
        assert (await third.call("app.get", {"app_id": "two"}))["app"]["status"] == "stopped"
        for name in ("one", "two"):
            await removed(third, name)
    assert left(api, home) == []
