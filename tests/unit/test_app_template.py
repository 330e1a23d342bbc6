"""App templates: what may stand in one, what is refused and where, and what a configuration may change. No Docker is needed for it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from aima_lib.door import Caller
from aima_lib.errors import AimaError, InvalidArgument, NotFound, PermissionDenied
from aima_lib.gateway import Gateway
from aima_lib.services.app_template import builtins, changed, filled, findings, secret_of, spec_of
from tests.world import within

pytestmark = pytest.mark.anyio
DIGEST = "sha256:" + "0" * 64
OWN: dict[str, Any] = {
    "name": "mine",
    "title": "Mine",
    "description": "An app of somebody's own.",
    "category": "custom",
    "evidence": "by a test",
    "link": "inference",
    "secrets": {"word": {}},
    "containers": {
        "web": {
            "image": f"example.org/mine@{DIGEST}",
            "env": {"KEY": "${link.key}", "WORD": "${secret.word}"},
            "ports": [{"name": "web", "container": 80}],
            "volumes": [{"name": "data", "target": "/data"}],
            "health": {"port": "web", "path": "/"},
        }
    },
}


def changed_at(path: str, value: Any) -> str:
    """The template as text, with one field of its container set."""
    document = json.loads(json.dumps(OWN))
    *steps, last = path.split(".")
    at: Any = document["containers"]["web"]
    for step in steps:
        at = at[int(step)] if isinstance(at, list) else at.setdefault(step, {})
    at[int(last) if isinstance(at, list) else last] = value
    return json.dumps(document, indent=1)


HOSTILE = {
    "privileged": ("privileged", True),
    "cap_add": ("cap_add", ["SYS_ADMIN"]),
    "devices": ("devices", ["/dev/mem"]),
    "network_mode": ("network_mode", "host"),
    "pid": ("pid", "host"),
    "security_opt": ("security_opt", ["seccomp=unconfined"]),
    "mounts": ("mounts", [{"source": "/", "target": "/host"}]),
    "binds": ("binds", ["/var/run/docker.sock:/var/run/docker.sock"]),
    "volumes[0].source": ("volumes.0.source", "/etc"),
    "volumes[0].name": ("volumes.0.name", "/etc"),
    "volumes[0].target": ("volumes.0.target", "/proc/sys"),
    "volumes[0].target ": ("volumes.0.target", "/var/run/docker.sock"),
    "volumes[0].target  ": ("volumes.0.target", "/data/../etc"),
    "ports[0].host_ip": ("ports.0.host_ip", "0.0.0.0"),
    "ports[0].host": ("ports.0.host", 80),
    "ports[0].host ": ("ports.0.host", "0.0.0.0:8080"),
    "image": ("image", "example.org/mine:latest"),
    "image ": ("image", "example.org/mine"),
    "image  ": ("image", "http://example.org/mine"),
    "command[0]": ("command", ["${secret.word}"]),
    "command[0] ": ("command", ["--key=${link.key}"]),
    "env.X": ("env.X", "${secret.other}"),
    "env.X ": ("env.X", "${environ.HOME}"),
    "files[0].source": ("files", [{"target": "/etc/x", "source": "dashboard.json"}]),
    "files[0].target": ("files", [{"target": "/dev/shm/../sda", "content": ""}]),
    "user": ("user", "root"),
    "gpu": ("gpu", "all"),
    "health.port": ("health.port", "other"),
    "memory_bytes": ("memory_bytes", 1),
    "runtime": ("runtime", "runc"),
    "sysctls": ("sysctls", {"kernel.msgmax": "1"}),
    "extra_hosts": ("extra_hosts", ["a:1.2.3.4"]),
}


@pytest.mark.parametrize("field", HOSTILE)
async def test_what_no_app_may_ask_for_is_refused_with_its_path(hosted: Gateway, field: str) -> None:
    path, value = HOSTILE[field]
    for unit, given in (("app.install", {}), ("app.install", {"name": "other"})):
        with pytest.raises(InvalidArgument) as refusal:
            await hosted.plan(unit, {"template": changed_at(path, value), **given})
        issues = refusal.value.details["issues"]
        assert f"containers.web.{field.strip()}" in [issue["path"] for issue in issues], issues
        assert issues[0]["line"] and issues[0]["column"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: &a [x, x]\nb: [*a, *a, *a]\n", "anchors"),
        ("a: !!python/object/apply:os.system ['id']\n", "tag"),
        ("name: " + "[" * 100 + "]" * 100, "deeper"),
        ("name: mine\nname: yours\n", "twice"),
        ("- " * 20_000 + "x", "deeper"),
        ("x: {" + ", ".join(f"k{n}: 1" for n in range(12_000)) + "}", "values"),
        ("just: [a\n", "not YAML"),
        ("\u0000: x", "character"),
    ],
    ids=["aliases", "tags", "deep", "twice", "dashes", "many", "broken", "nul"],
)
async def test_a_bomb_is_refused_before_it_costs_anything(hosted: Gateway, text: str, said: str) -> None:
    with within(2), pytest.raises(InvalidArgument, match=said):
        await hosted.call("app.install", {"template": text})


async def test_a_giant_is_refused_by_the_schema(hosted: Gateway) -> None:
    with pytest.raises(InvalidArgument, match=r"longer|length"):
        await hosted.call("app.install", {"template": "name: x\n" + "# \n" * 100_000})


async def test_templates_of_ones_own_are_for_admins(hosted: Gateway) -> None:
    writer = Caller("writer", frozenset({"read", "write", "inference"}))
    with pytest.raises(PermissionDenied, match="may not use"):
        await hosted.call("app.install", {"template": json.dumps(OWN)}, caller=writer)
    with pytest.raises(NotFound, match="no template called 'mine'"):
        await hosted.call("app.install", {"template": "mine"}, caller=writer)


async def test_without_docker_it_is_said_what_to_do_and_nothing_is_left(hosted: Gateway) -> None:
    with pytest.raises(AimaError) as refusal:
        await hosted.call("app.install", {"template": "qdrant"})
    assert refusal.value.code in ("unavailable", "failed_precondition")
    assert "docker" in str(refusal.value.hint).lower()
    assert (await hosted.call("app.list"))["total"] == 0
    assert [secret for secret in (await hosted.call("secret.list"))["secrets"] if secret["name"].startswith("app_")] == []


def test_a_configuration_changes_what_there_is_and_nothing_else() -> None:
    assert not list(findings(OWN))
    made = changed(OWN, {"env": {"web": {"MORE": "1"}}, "memory_bytes": {"web": 64 << 20}, "images": {"web": DIGEST}})
    assert (made["containers"]["web"]["env"]["MORE"], made["containers"]["web"]["image"]) == ("1", DIGEST)
    assert OWN["containers"]["web"]["env"].keys() == {"KEY", "WORD"}
    for config, path in (
        ({"env": {"wob": {}}}, "config.env.wob"),
        ({"images": {"db": DIGEST}}, "config.images.db"),
        ({"memory_bytes": {"db": 1 << 30}}, "config.memory_bytes.db"),
        ({"ports": {"wob": 8080}}, "config.ports.wob"),
        ({"env": {"web": {"X": "${secret.nobody}"}}}, "config.containers.web.env.X"),
    ):
        with pytest.raises(InvalidArgument) as refusal:
            changed(OWN, config)
        assert refusal.value.details["field"] == path


def test_a_value_is_filled_in_once_and_only_where_the_template_says() -> None:
    values = {"secret.word": "${link.key}", "link.key": "sk-1"}
    assert filled("${secret.word} $${HOME} ${link.key}", values) == "${link.key} $${HOME} sk-1"
    spec = spec_of("a-b", "web", OWN, DIGEST, {"web": 8080}, values, {"how": "request"})
    assert spec["env"] == {"KEY": "sk-1", "WORD": "${link.key}"}
    assert spec["volumes"] == [{"name": "app-a-b--data", "target": "/data"}]
    assert "gpus" not in spec  # it did not ask for one


def test_no_two_apps_share_a_secret() -> None:
    names = [secret_of(app, name) for app in ("a", "a-b", "a-b-c") for name in ("b_c", "c", "b")]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("name", builtins())
def test_a_template_of_ours_says_what_it_is(name: str) -> None:
    template = builtins()[name]
    assert template["evidence"].startswith("unverified") or "measured" in template["evidence"]
    assert template.get("license")
    for container in template["containers"].values():
        assert container.get("health"), "AIMA would not know whether it works"
        assert ":" in container["image"].rpartition("/")[2], "it names no version"
        assert not container["image"].endswith(":latest")
