"""Sources, against a hub and an index of our own."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import anyio
import pytest

from aima_lib.errors import AimaError, InvalidArgument, NotFound, PermissionDenied, Unavailable
from aima_lib.infra.egress import Egress
from aima_lib.infra.places import shown
from aima_lib.infra.web import Web
from aima_lib.sources import choose, huggingface, pypi
from aima_lib.sources.base import Plan, Request, matches, safe_name
from tests.hub import Fault, Hub, sha256_of

pytestmark = pytest.mark.anyio
SHARDS = {f"big-Q8_0-{n:05d}-of-00002.gguf": bytes([n]) * 100 for n in (1, 2)}
FILES = {"m-Q4_K_M.gguf": b"four", "m-Q8_0.gguf": b"eight", "mmproj-m.gguf": b"eye", "README.md": b"hi"} | SHARDS


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    with Hub(tmp_path / "hub") as running:
        yield running


@pytest.fixture
async def web() -> AsyncIterator[Web]:
    opened = Web(Egress(["127.0.0.0/8"], connect_seconds=10, stall_seconds=20))
    yield opened
    await opened.close()


async def ask(hub: Hub, web: Web, repo: str = "a/m", **more: str) -> Plan:
    return await huggingface.resolve(Request(repo, **more), {"huggingface_endpoint": hub.url, "huggingface_token_env": "HUB_TOKEN"}, web)


async def index(hub: Hub, web: Web, repo: str, **more: str) -> Plan:
    return await pypi.resolve(Request(repo, **more), {"pypi_index": f"{hub.url}/simple"}, web)


async def test_the_hub_gives_one_quantization_with_its_digests(hub: Hub, web: Web) -> None:
    hub.add_repo("a/m", {name: content for name, content in FILES.items() if "mmproj" not in name})
    plan = await ask(hub, web)
    assert (plan.name, plan.format, plan.quantization, plan.license) == ("m-q4_k_m", "gguf", "Q4_K_M", "apache-2.0")
    (artefact,) = plan.artefacts
    assert artefact.sha256 == sha256_of(hub.root / "hf/a/m/m-Q4_K_M.gguf")
    assert plan.revision == hub.commit("a/m") and plan.revision in artefact.parts[0].url


async def test_what_lets_a_model_see_comes_with_it(hub: Hub, web: Web) -> None:
    hub.add_repo("a/m", FILES | {"mmproj-m-F32.gguf": b"32", "mmproj-m-f16.gguf": b"16"})
    assert [part.name for part in (await ask(hub, web)).artefacts] == ["m-Q4_K_M.gguf", "mmproj-m-f16.gguf"]
    assert [part.name for part in (await ask(hub, web, quantization="Q8_0")).artefacts][-1:] == ["mmproj-m-f16.gguf"]
    for alone in ({"file": "m-Q4_K_M.gguf"}, {"sha256": sha256_of(hub.root / "hf/a/m/m-Q4_K_M.gguf")}):
        assert [part.name for part in (await ask(hub, web, **alone)).artefacts] == ["m-Q4_K_M.gguf"]


async def test_all_shards_or_none(hub: Hub, web: Web) -> None:
    hub.add_repo("a/m", FILES)
    plan = await ask(hub, web, file="big-*")
    assert plan.name == "big-q8_0" and [a.name for a in plan.artefacts] == sorted(SHARDS)
    (hub.root / "hf/a/m/big-Q8_0-00002-of-00002.gguf").unlink()
    with pytest.raises(Unavailable, match="2 shards, the hub lists 1"):
        await ask(hub, web, file="big-*")


async def test_a_wrong_choice_names_the_right_ones(hub: Hub, web: Web) -> None:
    hub.add_repo("a/m", FILES)
    with pytest.raises(NotFound, match="no quantization Q2_K") as caught:
        await ask(hub, web, quantization="q2_k")
    assert "Q4_K_M" in str(caught.value.hint)
    with pytest.raises(NotFound, match=r"no file m-Q4\.gguf") as caught:
        await ask(hub, web, file="m-Q4.gguf")
    assert "m-Q4_K_M.gguf" in str(caught.value.hint)
    with pytest.raises(InvalidArgument, match="fits 3 models"):
        await ask(hub, web, file="*Q*.gguf")


async def test_safetensors_come_with_what_belongs_to_them(hub: Hub, web: Web) -> None:
    names = ["model.safetensors", "config.json", "tokenizer.json", "README.md", "pytorch_model.bin", "onnx/model.onnx"]
    hub.add_repo("a/s", {name: name.encode() for name in names})
    plan = await ask(hub, web, "a/s")
    assert plan.format == "safetensors" and {a.name for a in plan.artefacts} == {"model.safetensors", "config.json", "tokenizer.json"}


async def test_private_and_missing_repositories_say_what_to_do(hub: Hub, web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add_repo("a/p", {"p-Q8_0.gguf": b"p"}, token="right")
    with pytest.raises(PermissionDenied, match="401") as caught:
        await ask(hub, web, "a/p")
    assert "HUB_TOKEN" in str(caught.value.hint)
    monkeypatch.setenv("HUB_TOKEN", "wrong")
    with pytest.raises(PermissionDenied, match="403"):
        await ask(hub, web, "a/p")
    monkeypatch.setenv("HUB_TOKEN", "right")
    plan = await ask(hub, web, "a/p")
    assert "right" not in repr(plan)
    with pytest.raises(PermissionDenied, match="401"):  # a mirror that the caller names does not get the token
        await ask(hub, web, "a/p", mirror=hub.url)
    with pytest.raises(NotFound, match="no a/none at revision main"):
        await ask(hub, web, "a/none")


@pytest.mark.parametrize("status", [429, 500, 503])
async def test_a_hub_in_trouble_is_unavailable(hub: Hub, web: Web, status: int) -> None:
    hub.faults["/revision/main"] = Fault(status=status)
    with pytest.raises(Unavailable, match=str(status)) as caught:
        await ask(hub, web)
    assert caught.value.retryable and caught.value.hint


async def test_a_hub_that_is_not_there_is_soon_known(web: Web) -> None:
    with anyio.fail_after(60), pytest.raises(Unavailable):
        await huggingface.resolve(Request("a/m"), {"huggingface_endpoint": "http://127.0.0.1:9"}, web)


@pytest.mark.parametrize("html", [False, True])
async def test_an_index_gives_the_wheels_in_order(hub: Hub, web: Web, html: bool) -> None:
    hub.html_only = html
    for number in (1, 2, 3):
        for version in ("0.8.0", "0.9.0", "1.0.0rc1"):
            hub.add_wheel(f"w-part{number}", version, {f"w{number}/data/part.bin": b"x"})
    plan = await index(hub, web, "w-part{1..3}", file="*/data/*.bin")
    parts = plan.artefacts[0].parts
    assert plan.revision == "0.9.0" and plan.name == "w-part"
    assert [part.url.rpartition("/")[2] for part in parts] == [f"w_part{n}-0.9.0-py3-none-any.whl" for n in (1, 2, 3)]
    assert parts[0].sha256 == sha256_of(hub.root / "simple/w-part1/w_part1-0.9.0-py3-none-any.whl")
    assert (plan.size is None) == html  # HTML pages tell no sizes
    with pytest.raises(NotFound, match=r"w-part1 has no version 0\.7\.0"):
        await index(hub, web, "w-part{1..3}", revision="0.7.0")
    with pytest.raises(NotFound, match="no package called w-part4"):
        await index(hub, web, "w-part{3..4}")


async def test_a_login_in_the_index_is_kept_out_of_sight(hub: Hub, web: Web) -> None:
    hub.add_wheel("w", "1", {"w/m.gguf": b"x"})
    plan = await pypi.resolve(Request("w"), {"pypi_index": f"{hub.url}/simple".replace("//", "//me:secret@")}, web)
    part = plan.artefacts[0].parts[0]
    assert part.headers["Authorization"].startswith("Basic ") and "secret" not in repr(plan)


@pytest.mark.parametrize(
    ("repo", "names"),
    [
        ("a{1..3}", ["a1", "a2", "a3"]),
        ("a{08..10}-b", ["a08-b", "a09-b", "a10-b"]),
        ("a{2..1}", ["a2", "a1"]),
        ("a{1..2}-{1..2}", ["a1-1", "a1-2", "a2-1", "a2-2"]),
        ("a, b", ["a", "b"]),
    ],
)
def test_ranges_expand_as_in_the_shell(repo: str, names: list[str]) -> None:
    assert pypi.expand(repo) == names


@pytest.mark.parametrize("repo", ["a{1..99999999}", "a/b", "", "../x", "a{1..}"])
def test_what_is_no_list_of_packages_is_refused(repo: str) -> None:
    with pytest.raises(InvalidArgument):
        pypi.expand(repo)


def test_pips_configuration_is_obeyed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    configured = tmp_path / "pip.conf"
    configured.write_text("[global]\nindex-url = http://index.test/simple\n", encoding="utf-8")
    monkeypatch.delenv("PIP_INDEX_URL", raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", str(configured))
    assert pypi.default_index() == "http://index.test/simple"
    monkeypatch.setenv("PIP_INDEX_URL", "http://other.test/simple")
    assert pypi.default_index() == "http://other.test/simple"


@pytest.mark.parametrize("name", ["../x", "/etc/x", "a/../../x", "", "a\\b", "./"])
def test_a_name_that_leaves_the_folder_is_refused(name: str) -> None:
    with pytest.raises(AimaError):
        safe_name(name)


def test_small_things() -> None:
    assert shown("https://me:secret@h.test:8/a?token=1") == "https://h.test:8/a"
    assert matches("x/data/p.bin", "*/data/*.bin") and matches("x/p.gguf", "*.gguf") and not matches("x/p.gguf", "y/*.gguf")
    assert choose.quantization_of("Qwen2.5-0.5B-Instruct-IQ4_XS.gguf") == "IQ4_XS"


async def test_a_folder_of_ctranslate2_comes_whole(hub: Hub, web: Web) -> None:
    whole = {"model.bin": b"w", "config.json": b"{}", "vocabulary.txt": b"a", "tokenizer.json": b"{}", "README.md": b"hi"}
    hub.add_repo("a/w", whole)
    plan = await ask(hub, web, "a/w")
    assert (plan.name, plan.format) == ("w", "ctranslate2")
    names = [each.name for each in plan.artefacts]
    assert names[0] == "model.bin" and set(names) == set(whole) - {"README.md"}
    hub.add_repo("a/pickle", {name: content for name, content in whole.items() if "vocabulary" not in name})
    with pytest.raises(AimaError, match="pickles run code"):
        await ask(hub, web, "a/pickle")


async def test_a_network_that_is_named_comes_with_what_stands_beside_it(hub: Hub, web: Web) -> None:
    names = ["en/v/one.onnx", "en/v/one.onnx.json", "en/v/MODEL_CARD", "en/other/two.onnx", "en/other/two.onnx.json", "config.json"]
    names += ["en/v/voices-v1.bin", "en/v/pytorch_model.bin", "en/v/other.onnx.json", "en/v/config.json"]
    hub.add_repo("a/o", {name: name.encode() for name in names})
    plan = await ask(hub, web, "a/o", file="en/v/one.onnx")
    assert (plan.name, plan.format) == ("one", "onnx")
    assert {each.name for each in plan.artefacts} == {"one.onnx", "one.onnx.json", "voices-v1.bin", "config.json"}
    assert all("/en/v/" in each.parts[0].url for each in plan.artefacts)
    with pytest.raises(InvalidArgument, match="fits 2 networks"):
        await ask(hub, web, "a/o", file="*.onnx")
