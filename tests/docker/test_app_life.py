"""The life of apps on a real daemon: followed logs, health and what comes of it, keys that were revoked, and what is told of it all."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import docker
import httpx
import pytest

from tests.docker.daemon import Dockerd
from tests.standins import stand_in
from tests.world import HostProcess, agreed_to, environment, until

CONFIG = """
[docker]
socket = "{socket}"
[engines]
probe_seconds = 0.1
restart_limit = 2
"""
# It says a number whenever it is sent a line, and is well while /www/health is there.
SAYING = """#!/bin/sh
trap 'exit 0' TERM INT
echo "begun"
/bin/busybox httpd -f -p 8080 -h /www &
while :; do sleep 0.05; if [ -f /tmp/say ]; then cat /tmp/say; /bin/busybox rm /tmp/say; fi; done
"""
TEMPLATE = """
name: {name}
title: Drill
description: It says what it is told to, and is well while it is told so.
category: custom
evidence: by a test
{more}containers:
  web:
    image: {image}
{env}    ports: [{{name: web, container: 8080, page: /}}]
    stop_seconds: 1
    memory_bytes: 33554432
{health}"""
PROBED = "    health: {port: web, path: /health, start_seconds: 3}\n"


@pytest.fixture(scope="module")
def api(dockerd: Dockerd) -> Iterator[docker.APIClient]:
    with closing(dockerd.api()) as opened:
        yield opened


@pytest.fixture(scope="module")
def image(api: docker.APIClient) -> str:
    return stand_in(api, "drill/app:1", [8080], script=SAYING)


@pytest.fixture(scope="module")
def process(dockerd: Dockerd, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostProcess]:
    folder = tmp_path_factory.mktemp("life")
    running = HostProcess(Path(sys.executable), folder / "home", folder, CONFIG.format(socket=dockerd.socket)).start()
    yield running
    running.stop()


@pytest.fixture
def http(process: HostProcess) -> Iterator[httpx.Client]:
    with process.client() as client:
        yield client
        for app in ask(client, "app/list")["apps"]:
            agreed_to(client, "app/uninstall", {"app_id": app["id"], "remove_data": True})


def ask(http: httpx.Client, unit: str, **given: Any) -> dict[str, Any]:
    answer: dict[str, Any] = http.post(f"/units/{unit}", json=given).json()
    return answer


def installed(http: httpx.Client, name: str, image: str, health: str = PROBED, more: str = "", env: str = "") -> Mapping[str, Any]:
    answer = ask(http, "app/install", template=TEMPLATE.format(name=name, image=image, health=health, more=more, env=env))
    assert "app" in answer, answer
    app: Mapping[str, Any] = answer["app"]
    return app


def run_in(api: docker.APIClient, id: str, *argv: str) -> None:
    api.exec_start(api.exec_create(id, list(argv))["Id"])


def say(api: docker.APIClient, id: str, *words: str) -> None:
    """Have it say these words, each in a line of its own."""
    lines = "\\n".join(words)
    run_in(api, id, "/bin/sh", "-c", f"printf '{lines}\\n' > /tmp/saying && /bin/busybox mv /tmp/saying /tmp/say")


def happened(http: httpx.Client, kind: str, app: str) -> list[dict[str, Any]]:
    events = ask(http, "event/list", types=[kind], subject=app, limit=1000)["events"]
    return [event["payload"] for event in events]


def of(lines: list[str]) -> list[str]:
    return [line.partition(" ")[2] for line in lines]


def test_a_log_is_followed_by_its_cursor_over_a_pause_and_a_restart(http: httpx.Client, api: docker.APIClient, image: str) -> None:
    id = installed(http, "talk", image)["containers"][0]["container_id"]
    first = ask(http, "app/logs", app_id="talk")
    assert of(first["lines"]) == ["begun"]
    began = time.monotonic()
    quiet = ask(http, "app/logs", app_id="talk", cursor=first["cursor"], wait_seconds=0.3)
    assert quiet == {"lines": [], "cursor": first["cursor"]} and 0.3 <= time.monotonic() - began < 3
    say(api, id, *map(str, range(7)))
    heard, cursor = list[str](), first["cursor"]
    while len(heard) < 7:
        page = ask(http, "app/logs", app_id="talk", cursor=cursor, wait_seconds=5, tail=3)
        assert 0 < len(page["lines"]) <= 3
        heard, cursor = heard + of(page["lines"]), page["cursor"]
    assert heard == [str(number) for number in range(7)], "every line, once"
    api.pause(id)
    until(lambda: happened(http, "app.restarted", "talk"), what="its going on")
    assert happened(http, "app.restarted", "talk")[0]["cause"] == "web was paused"
    until(lambda: api.inspect_container(id)["State"]["Status"] == "running", what="its going on")
    api.restart(id, timeout=1)
    again = ask(http, "app/logs", app_id="talk", cursor=cursor, wait_seconds=5)
    assert of(again["lines"]) == ["begun"]
    since = again["lines"][-1].partition(" ")[0]
    assert of(ask(http, "app/logs", app_id="talk", cursor=first["cursor"], since=since)["lines"]) == ["begun"]
    assert ask(http, "app/logs", app_id="talk", cursor=first["cursor"], since="9999-01-01T00:00:00Z")["lines"] == []


def test_the_command_line_follows_until_it_is_interrupted(
    http: httpx.Client, api: docker.APIClient, image: str, process: HostProcess
) -> None:
    id = installed(http, "talk", image)["containers"][0]["container_id"]
    command = [sys.executable, "-m", "aima_mcp.main", "app", "logs", "talk", "--follow"]
    around = environment(process.home.path) | {"PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=around) as follower:
        assert follower.stdout is not None and follower.stderr is not None
        assert follower.stdout.readline().endswith(" begun\n")
        for word in ("one", "two"):
            say(api, id, word)
            assert follower.stdout.readline().endswith(f" {word}\n")
        follower.send_signal(signal.SIGINT)
        assert follower.wait(10) == 0
        assert follower.stderr.read() == ""


def test_one_that_is_not_well_is_told_restarted_and_at_last_given_up(http: httpx.Client, api: docker.APIClient, image: str) -> None:
    id = installed(http, "ail", image)["containers"][0]["container_id"]
    get = lambda: ask(http, "app/get", app_id="ail")["app"]  # noqa: E731
    until(lambda: get()["health"] == "healthy", what="health")
    say(api, id, "I feel odd")
    run_in(api, id, "/bin/busybox", "rm", "/www/health")
    ill = until(lambda: (app := get())["health"] == "unhealthy" and app, what="its illness")
    assert ill["status"] == "running" and "/health answers 404" in ill["reason"]
    [turn] = until(lambda: happened(http, "app.health_changed", "ail"), what="the news")
    assert turn["new_status"] == "unhealthy" and "answers 404" in turn["reason"]
    until(lambda: happened(http, "app.restarted", "ail"), what="the restart")
    assert "web is unhealthy" in happened(http, "app.restarted", "ail")[0]["cause"]
    failed = until(lambda: (app := get())["status"] == "failed" and app, 30, "the end")
    assert "without being well" in failed["reason"] and "it said last" in failed["reason"] and "begun" in failed["reason"]
    until(lambda: not api.inspect_container(id)["State"]["Running"], what="its end")
    explained = ask(http, "event/explain", subject="ail")
    assert explained["subject"] == {"kind": "app", "id": "ail", "status": "failed"}
    assert explained["timeline"][explained["cause"]["entry"] - 1]["kind"] == "app.health_changed", explained
    assert [call["unit"] for call in explained["next"]] == ["app.logs", "app.start"]


def test_dockers_own_check_comes_before_ours(http: httpx.Client, api: docker.APIClient) -> None:
    """An image with HEALTHCHECK: its event is ours within a moment, and the reason is what the check said."""
    check = 'HEALTHCHECK --interval=200ms --timeout=1s --retries=1 CMD ["/bin/cat", "/www/health"]'
    image = stand_in(api, "drill/checked:1", [8080], check, script=SAYING)
    id = installed(http, "own", image, health="")["containers"][0]["container_id"]
    until(lambda: ask(http, "app/get", app_id="own")["app"]["health"] == "healthy", what="health")
    run_in(api, id, "/bin/busybox", "rm", "/www/health")
    [turn] = until(lambda: happened(http, "app.health_changed", "own"), what="its illness")
    assert "No such file" in turn["reason"]


def test_a_revoked_key_is_replaced_by_a_start_which_says_so(http: httpx.Client, api: docker.APIClient, image: str) -> None:
    env = '    env: {KEY: "${link.key}"}\n'
    first = installed(http, "keyed", image, more="link: inference\n", env=env)
    assert ask(http, "app/start", app_id="keyed")["notes"] == []
    agreed_to(http, "key/revoke", {"key_id": first["link"]["key_id"]})
    plan = http.post("/units/app/start", json={"app_id": "keyed"}, headers={"Aima-Plan": "true"}).json()
    assert plan["changes"]["creates"][0]["kind"] == "key"
    answer = ask(http, "app/start", app_id="keyed")
    second = answer["app"]
    assert second["link"]["key_id"] != first["link"]["key_id"] and second["status"] == "running"
    assert answer["notes"] == [
        f"its key {first['link']['key_id']} had been revoked: it has another, {second['link']['key_id']}, and its containers were made anew"
        " with that"
    ]
    env_of = lambda app: api.inspect_container(app["containers"][0]["container_id"])["Config"]["Env"]  # noqa: E731
    key = next(row.removeprefix("KEY=") for row in env_of(second) if row.startswith("KEY="))
    assert http.get("/v1/models", headers={"Authorization": f"Bearer {key}"}).status_code == 200
    [active] = ask(http, "key/list", status="active")["keys"]
    assert active["id"] == second["link"]["key_id"]


def test_want_of_memory_a_stop_and_a_failed_install_are_explained(http: httpx.Client, api: docker.APIClient, image: str) -> None:
    id = installed(http, "why", image)["containers"][0]["container_id"]
    greedy = api.exec_create(id, ["/bin/busybox", "tail", "/dev/zero"])
    api.exec_start(greedy["Id"], detach=True)
    until(lambda: happened(http, "app.oom_detected", "why"), what="the news")
    told = ask(http, "event/explain", subject="why")
    assert told["timeline"][told["cause"]["entry"] - 1]["kind"] == "app.oom_detected"
    more = {"unit": "app.update", "arguments": {"app_id": "why", "config": {"memory_bytes": {"web": 67108864}}}}
    assert more in told["next"]
    assert ask(http, "app/update", **more["arguments"])["app"]["containers"][0]["memory_limit_bytes"] == 67108864

    installed(http, "still", image)
    ask(http, "app/stop", app_id="still")
    told = ask(http, "event/explain", subject="still")
    assert told["subject"]["status"] == "stopped" and "nothing failed" in told["cause"]["why"], told
    assert {"unit": "app.start", "arguments": {"app_id": "still"}} in told["next"]

    bad = stand_in(api, "drill/bad:1", [8080], 'ENTRYPOINT ["/bin/sh", "-c", "echo no such luck; exit 3"]')
    answer = ask(http, "app/install", template=TEMPLATE.format(name="luckless", image=bad, health=PROBED, more="", env=""))
    assert "no such luck" in answer["message"]
    told = ask(http, "event/explain", subject="luckless")
    assert told["subject"] == {"kind": "app", "id": "luckless", "status": None}
    assert "no such luck" in json.dumps(told["timeline"]) and told["cause"]["entry"] is not None
    assert told["next"][-1]["unit"] == "run.get"


def test_a_start_while_docker_is_away_is_kept_until_it_is_back(http: httpx.Client, dockerd: Dockerd, image: str) -> None:
    installed(http, "patient", image)
    get = lambda: ask(http, "app/get", app_id="patient")["app"]  # noqa: E731
    dockerd.stop()
    try:
        refused = ask(http, "app/start", app_id="patient")
        assert refused["code"] == "unavailable" and "patient is started when Docker is back" in refused["hint"]
        assert (get()["status"], happened(http, "app.failed", "patient")) == ("unknown", [])
        assert "Docker" in get()["reason"]
    finally:
        dockerd.start()
    until(lambda: get()["status"] == "running", what="the app")
