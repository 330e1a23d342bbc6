"""What may become a container: nothing that is not written in container.schema.json, and every refusal names its field."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aima_lib.errors import AimaError, InvalidArgument, PermissionDenied
from aima_lib.infra.container import NEVER, api_body, judged
from aima_lib.infra.roots import Roots
from tests.world import within

IMAGE = f"sha256:{'a' * 64}"
GIB = 1 << 30


@pytest.fixture
def roots(tmp_path: Path) -> Roots:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "weights").write_text("w", encoding="utf-8")
    (tmp_path / "secret").write_text("s", encoding="utf-8")
    (tmp_path / "models" / "out").symlink_to(tmp_path / "secret")
    (tmp_path / "models" / "in").symlink_to("weights")
    return Roots({"models": str(tmp_path / "models")}, tmp_path / "models")


@pytest.mark.parametrize(
    ("field", "more"),
    [
        ("image", {"image": "nginx:latest"}),
        ("image", {"image": "nginx"}),
        ("image", {"image": f"nginx@sha256:{'a' * 63}"}),
        ("image", {"image": f"-v /:/host x@{IMAGE}"}),
        ("image", {"image": None}),
        *((name, {name: True}) for name in sorted(NEVER)),
        ("surprise", {"surprise": 1}),
        ("ports.0.host_ip", {"ports": [{"container": 80, "host_ip": "0.0.0.0"}]}),
        ("ports.0.container", {"ports": [{"container": "80/tcp"}]}),
        ("ports.0.container", {"ports": [{"container": 0}]}),
        ("ports.1.host", {"ports": [{"container": 80, "host": 8080}, {"container": 81, "host": 8080}]}),
        ("mounts.0.read_only", {"mounts": [{"source": "/", "target": "/host", "read_only": False}]}),
        ("mounts.0.source", {"mounts": [{"source": "models", "target": "/m"}]}),
        ("mounts.0.target", {"mounts": [{"source": "/tmp", "target": "/m:rw"}]}),
        ("mounts.0.target", {"mounts": [{"source": "/tmp", "target": "/a/../proc"}]}),
        ("mounts.0.target", {"mounts": [{"source": "/tmp", "target": "/proc/1"}]}),
        ("mounts.0.target", {"mounts": [{"source": "/tmp", "target": "/dev"}]}),
        ("volumes.0.name", {"volumes": [{"name": "../x", "target": "/x"}]}),
        ("volumes.0.name", {"volumes": [{"name": "/etc", "target": "/x"}]}),
        ("volumes.0.driver", {"volumes": [{"name": "x", "target": "/x", "driver": "local"}]}),
        ("volumes.1.target", {"volumes": [{"name": "x", "target": "/x"}, {"name": "y", "target": "/x"}]}),
        ("tmpfs.0", {"tmpfs": ["/tmp/../sys"]}),
        ("network", {"network": "container:other"}),
        ("network", {"network": "../host"}),
        ("user", {"user": "root"}),
        ("env", {"env": {"A=B": "c"}}),
        ("env.A", {"env": {"A": 1}}),
        ("env", {"env": {f"A{number}": "x" * 32_000 for number in range(40)}}),
        ("gpus.ids", {"gpus": {"how": "cdi"}}),
        ("gpus.how", {"gpus": {"how": "all"}}),
        ("gpus.ids.0", {"gpus": {"how": "request", "ids": ["0,/dev/sda"]}}),
        ("memory_bytes", {"memory_bytes": "8g"}),
        ("memory_bytes", {"memory_bytes": -1}),
        ("pids_limit", {"pids_limit": -1}),
        ("health.test", {"health": {"test": []}}),
        ("health.test", {"health": {"test": "curl"}}),
        ("labels", {"labels": {"aima.home": "another"}}),
        ("restart", {"restart": "always"}),
        ("command", {"command": ["x"] * 513}),
    ],
)
def test_a_hostile_spec_is_refused_with_its_field(roots: Roots, field: str, more: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument) as refused:
        judged({"image": IMAGE, **more}, roots, "services.web")
    assert str(refused.value).startswith(f"services.web.{field}: ")
    assert refused.value.details == {"field": f"services.web.{field}"}


@pytest.mark.parametrize("what", ["secret", "models/out", "models/../secret", "/etc/shadow", "/var/run/docker.sock", "/proc/self/environ"])
def test_a_mount_comes_from_beneath_the_roots(roots: Roots, tmp_path: Path, what: str) -> None:
    with pytest.raises(PermissionDenied, match=r"container\.mounts\.0\.source") as refused:
        judged({"image": IMAGE, "mounts": [{"source": str(tmp_path / what), "target": "/m"}]}, roots)
    assert refused.value.details == {"field": "container.mounts.0.source"}


def test_no_socket_is_mounted_even_beneath_the_roots(roots: Roots, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("models/docker.sock")
        with pytest.raises(InvalidArgument, match=r"container\.mounts\.0\.source"):
            judged({"image": IMAGE, "mounts": [{"source": str(tmp_path / "models/docker.sock"), "target": "/s"}]}, roots)


def test_a_link_that_stays_within_is_mounted_as_what_it_leads_to(roots: Roots, tmp_path: Path) -> None:
    spec = judged({"image": IMAGE, "mounts": [{"source": str(tmp_path / "models/in"), "target": "/m"}]}, roots)
    assert spec["mounts"] == [{"source": str((tmp_path / "models/weights").resolve()), "target": "/m"}]


def test_a_secret_in_the_environment_is_not_repeated(roots: Roots) -> None:
    with pytest.raises(InvalidArgument) as refused:
        judged({"image": IMAGE, "env": {"KEY": ["sk-planted-4711"]}}, roots)
    assert "4711" not in json.dumps(refused.value.as_dict())


def test_what_docker_is_asked_for(roots: Roots, tmp_path: Path) -> None:
    spec = judged(
        {
            "image": f"registry.example.org:5000/a/b@{IMAGE}",
            "command": ["serve"],
            "env": {"A": "b"},
            "user": "1000:1000",
            "mounts": [{"source": str(tmp_path / "models"), "target": "/m"}],
            "volumes": [{"name": "data", "target": "/data"}],
            "ports": [{"container": 80, "host": 8080}, {"container": 81}],
            "network": "grafana",
            "gpus": {"how": "request", "ids": ["GPU-1"]},
            "memory_bytes": GIB,
            "shm_bytes": GIB,
            "cpus": 1.5,
            "health": {"test": ["true"], "interval_seconds": 2, "retries": 3},
            "restart": True,
        },
        roots,
    )
    body = api_body(spec, "home1", "app", "grafana", "g7")
    host = body["HostConfig"]
    assert body["Labels"] == {"aima.home": "home1", "aima.kind": "app", "aima.name": "grafana", "aima.generation": "g7"}
    assert (host["CapDrop"], host["SecurityOpt"], host["Privileged"]) == (["ALL"], ["no-new-privileges"], False)
    assert (host["IpcMode"], host["CgroupnsMode"], host["PidsLimit"]) == ("private", "private", 4096)
    assert host["PortBindings"] == {
        "80/tcp": [{"HostIp": "127.0.0.1", "HostPort": "8080"}],
        "81/tcp": [{"HostIp": "127.0.0.1", "HostPort": ""}],
    }
    assert host["Mounts"] == [
        {"Type": "bind", "Source": str((tmp_path / "models").resolve()), "Target": "/m", "ReadOnly": True},
        {"Type": "volume", "Source": "aima-home1-data", "Target": "/data"},
    ]
    assert (host["Memory"], host["MemorySwap"], host["ShmSize"], host["NanoCpus"]) == (GIB, GIB, GIB, 1_500_000_000)
    assert host["DeviceRequests"] == [{"Driver": "nvidia", "Capabilities": [["gpu"]], "DeviceIDs": ["GPU-1"]}]
    assert host["NetworkMode"] == "aima-home1-grafana" and host["RestartPolicy"] == {"Name": "unless-stopped"}
    assert body["Healthcheck"] == {"Test": ["CMD", "true"], "Interval": 2_000_000_000, "Retries": 3}


def test_gpus_by_cdi_and_by_the_runtime_of_a_jetson(roots: Roots) -> None:
    cdi = api_body(judged({"image": IMAGE, "gpus": {"how": "cdi", "ids": ["nvidia.com/gpu=0"]}}, roots), "h", "engine", "e")
    assert cdi["HostConfig"]["DeviceRequests"] == [{"Driver": "cdi", "DeviceIDs": ["nvidia.com/gpu=0"]}]
    jetson = api_body(judged({"image": IMAGE, "gpus": {"how": "runtime"}}, roots), "h", "engine", "e")
    assert jetson["HostConfig"]["Runtime"] == "nvidia" and "NVIDIA_VISIBLE_DEVICES=all" in jetson["Env"]
    assert "DeviceRequests" not in jetson["HostConfig"]


names = st.sampled_from(["image", "command", "env", "mounts", "volumes", "ports", "gpus", "health", "network", "privileged", "x"])
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=50, deadline=None)
@given(st.dictionaries(names, values, max_size=5) | values)
def test_whatever_comes_is_judged_and_never_more_than_an_error_of_ours(spec: Any) -> None:
    try:
        body = api_body(judged(spec, Roots({}, Path("/nonexistent"))), "h", "app", "x")
    except AimaError:
        return
    assert body["HostConfig"]["CapDrop"] == ["ALL"] and not body["HostConfig"]["Privileged"]


def test_a_flood_is_refused_in_no_time(roots: Roots) -> None:
    with within(2), pytest.raises(InvalidArgument):
        judged({"image": IMAGE, "mounts": [{"source": "/x", "target": f"/{number}"} for number in range(20_000)]}, roots)
