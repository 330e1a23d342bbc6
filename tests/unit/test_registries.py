"""Ollama's registry, OCI registries, ModelScope, plain addresses and paths, against servers of our own: every source brings real bytes."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest

from aima_lib.errors import AimaError, FailedPrecondition, InvalidArgument, NotFound, PermissionDenied, Unavailable
from aima_lib.infra.egress import Egress
from aima_lib.infra.web import Web
from aima_lib.sources import choose, huggingface, oci, ollama, url
from aima_lib.sources.base import Query, Request
from aima_lib.sources.roster import guess
from tests import registries
from tests.heads import gguf
from tests.hub import Fault, Hub, furnish, sha256_of
from tests.tiny import write_tiny_gguf
from tests.unit.test_model import Shop, shop

EYES = gguf({"general.architecture": "clip", "clip.has_vision_encoder": True}, [("v.w", (8,), 0, 32)])
pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def tiny(tmp_path: Path) -> bytes:
    return write_tiny_gguf(tmp_path / "tiny.gguf").read_bytes()


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    with Hub(tmp_path / "hub") as running:
        yield running


@pytest.fixture
async def web() -> AsyncIterator[Web]:
    opened = Web(Egress(["127.0.0.0/8"], connect_seconds=10, stall_seconds=20))
    yield opened
    await opened.close()


@pytest.fixture
async def here(hub: Hub, tmp_path: Path) -> AsyncIterator[Shop]:
    async with shop(tmp_path / "home", hub.config) as opened:
        yield opened


@pytest.mark.parametrize(
    ("repo", "kind"),
    [
        ("owner/name", "huggingface"),
        ("owner/name:Q4_K_M", "huggingface"),
        ("owner/name:latest", "ollama"),
        ("qwen2.5:0.5b", "ollama"),
        ("a-part{1..6}", "pypi"),
        ("a,b", "pypi"),
        ("https://h.test/m.gguf", "url"),
        ("oci://h.test/a/m:1", "oci"),
        ("/srv/m.gguf", "local"),
        ("./m.gguf", "local"),
        ("~/models", "local"),
        ("../m.gguf", "local"),
    ],
)
def test_a_repositorys_form_says_where_it_is(repo: str, kind: str) -> None:
    assert guess(repo) == kind


# Ollama


async def test_a_model_of_ollamas_comes_with_what_its_publisher_set(hub: Hub, here: Shop, tiny: bytes) -> None:
    digest = registries.add_ollama(hub, "t:f32", tiny, projector=EYES)
    model = await here.models.pull("t:f32")
    assert (model["id"], model["source"]["kind"], model["source"]["commit"], model["license"]) == ("t-f32", "ollama", digest, "cc0-1.0")
    assert [file["name"] for file in model["files"]] == ["t-f32.gguf", "mmproj-t-f32.gguf"]
    assert model["defaults"]["parameters"] == {"temperature": 0.7, "context_length": 512, "stop": ["<|im_end|>"]}
    assert (model["defaults"]["system"], model["defaults"]["template"]) == ("You are small.", registries.TEMPLATE)
    assert here.models.path(model).read_bytes() == tiny
    assert (await here.models.pull("t:f32", revision=digest, name="exact"))["source"]["revision"] == digest
    with pytest.raises(NotFound) as caught:
        await here.models.pull("t:f16")
    assert caught.value.next == [{"unit": "model.search", "arguments": {"query": "t", "source": "ollama"}}]


async def test_a_layer_that_two_models_share_lies_here_once(hub: Hub, here: Shop, tiny: bytes) -> None:
    registries.add_ollama(hub, "one:1", tiny, system=b"One.")
    registries.add_ollama(hub, "me/two:2", tiny, system=b"Two.")
    blob = next(path for path in (hub.root / "blobs").iterdir() if path.stat().st_size == len(tiny))
    hub.faults = {blob.name: Fault(bytes_per_second=4_000_000)}
    async with anyio.create_task_group() as group:  # both at once: one of them waits for the other's bytes
        group.start_soon(here.models.pull, "one:1")
        group.start_soon(here.models.pull, "me/two:2")
    assert hub.counts[f"/blobs/{blob.name}"] == len(tiny)
    assert here.on_disk()["blobs"] == [blob.name] and here.models.list()[1] == 2
    assert await here.models.delete("one-1") == 0
    assert await here.models.delete("two-2") >= len(tiny)
    assert here.on_disk() == {"blobs": [], "partial": []}


@pytest.mark.parametrize(
    "digest", ["sha256:../../x", "sha256:" + "g" * 64, "sha256:" + "a" * 63, "md5:" + "a" * 64, 7, None, "sha256:" + "a" * 64 + "/../x"]
)
async def test_a_digest_that_is_none_is_refused(hub: Hub, here: Shop, digest: Any) -> None:
    layer = {"mediaType": registries.OLLAMA + "model", "digest": digest, "size": 5}
    hub.lies["/v2/library/bad/manifests/1"] = json.dumps({"layers": [layer]}).encode()
    with pytest.raises(Unavailable, match="does not answer a manifest"):
        await here.models.pull("bad:1")
    assert here.on_disk() == {"blobs": [], "partial": []}


@pytest.mark.parametrize("body", [b"", b"[]", b"null", b'{"layers": 5}', b'{"layers": [[]]}', b"{" * 100_000, b'{"manifests": []}'])
async def test_what_is_no_manifest_is_refused(hub: Hub, web: Web, body: bytes) -> None:
    hub.lies["/v2/library/bad/manifests/1"] = body
    with anyio.fail_after(20), pytest.raises(Unavailable):
        await ollama.resolve(Request("bad:1"), {"ollama_endpoint": hub.url}, web)


async def test_a_layer_of_other_bytes_is_refused(hub: Hub, here: Shop, tiny: bytes) -> None:
    registries.add_ollama(hub, "t:1", tiny)
    blobs = sorted((hub.root / "blobs").iterdir(), key=lambda path: path.stat().st_size)
    hub.faults = {blobs[-1].name: Fault(wrong_byte=77)}
    with pytest.raises(Unavailable, match="hash to sha256"):
        await here.models.pull("t:1")
    hub.faults = {}
    system = next(blob for blob in blobs if blob.read_bytes() == b"You are small.")
    system.write_bytes(b"You are large.")
    with pytest.raises(Unavailable, match="does not hash to what its name says"):
        await here.models.pull("t:1")
    assert here.on_disk() == {"blobs": [], "partial": []}


async def test_ollamas_forms_and_wishes(hub: Hub, web: Web, tiny: bytes) -> None:
    config = {"ollama_endpoint": hub.url}
    registries.add_ollama(hub, "t:1", b"", params=b"[1")
    for request in (Request("a/b/c:1"), Request("t:1", file="x"), Request("t:1", quantization="Q4_0"), Request("t:1", revision="main")):
        with pytest.raises(InvalidArgument):
            await ollama.resolve(request, config, web)
    with pytest.raises(FailedPrecondition, match="no layer with a GGUF"):
        await ollama.resolve(Request("t:1"), config, web)
    registries.add_ollama(hub, "t:2", tiny, params=b"[1")
    with pytest.raises(Unavailable, match="no JSON"):
        await ollama.resolve(Request("t:2"), config, web)
    assert ollama.defaults_of({}) == {} and ollama.defaults_of({"params": '{"stop": "x", "num_ctx": true}'})["parameters"] == {
        "stop": ["x"]
    }


# OCI


async def test_an_oci_artefact_with_a_token_that_runs_out(hub: Hub, here: Shop, tiny: bytes) -> None:
    digest = registries.add_oci(hub, "aima/tiny:1", {"tiny-F32.gguf": tiny}, uses=4)
    repo = f"oci://{hub.url.partition('//')[2]}/aima/tiny"
    hub.faults = {"/blobs/sha256-*": Fault(reset_after=300_000, times=3)}
    model = await here.models.pull(f"{repo}:1")
    assert (model["id"], model["source"]["kind"], model["source"]["commit"], model["quantization"]) == ("tiny-1", "oci", digest, "F32")
    assert hub.requests["/token"] > 1, "it was renewed"
    assert hub.credentials_at_cdn == 0
    assert (await here.models.pull(f"{repo}@{digest}", name="exact"))["digest"] == model["digest"]
    with pytest.raises(NotFound):
        await here.models.pull(f"{repo}:2")


async def test_an_index_leads_to_its_manifest_and_no_further(hub: Hub, web: Web, tiny: bytes) -> None:
    digest = registries.add_oci(hub, "a/m:1", {"m.gguf": tiny})
    repo = f"oci://{hub.url.partition('//')[2]}/a/m:all"
    hub.lies["/v2/a/m/manifests/all"] = json.dumps({"manifests": [{"digest": digest, "size": 1}]}).encode()
    assert (await oci.resolve(Request(repo), {}, web)).revision == digest
    body = json.dumps({"manifests": [{"digest": digest}]}).encode()
    hub.lies[f"/v2/a/m/manifests/{digest}"] = body
    with pytest.raises(Unavailable):
        await oci.resolve(Request(repo), {}, web)
    hub.lies["/v2/a/m/manifests/named"] = json.dumps(
        {"layers": [{"mediaType": "x", "digest": digest, "size": 1, "annotations": {"org.opencontainers.image.title": "../../m.gguf"}}]}
    ).encode()
    with pytest.raises(Unavailable, match="would leave the model's folder"):
        await oci.resolve(Request(repo.replace(":all", ":named")), {}, web)
    for wrong in ("oci://h", "oci://h.test/../x:1", "oci://h.test/a//b:1"):
        with pytest.raises(InvalidArgument):
            await oci.resolve(Request(wrong), {}, web)


# The hubs


async def test_modelscope_brings_the_same(hub: Hub, here: Shop, tiny: bytes) -> None:
    registries.add_modelscope(hub, "a/m", {"m-Q8_0.gguf": tiny, "README.md": b"x"})
    model = await here.models.pull("a/m:q8_0", source="modelscope")
    assert (model["source"]["kind"], model["quantization"]) == ("modelscope", "F32")
    hub.faults = {"/ms/a/m/m-Q8_0.gguf": Fault(wrong_byte=9)}
    await here.models.delete(model["id"])
    with pytest.raises(Unavailable, match="hash to sha256"):
        await here.models.pull("a/m", source="modelscope")
    for repo in ("a/none", "a/m:Q2_K"):
        with pytest.raises(NotFound):
            await here.models.pull(repo, source="modelscope")
    with pytest.raises(InvalidArgument):
        await here.models.pull("m", source="modelscope")
    hub.lies["/api/v1/models/a/m/repo/files"] = b'{"Code": 200, "Data": {"Files": [{"Path": "../x.gguf", "Size": 1}]}}'
    with pytest.raises(Unavailable, match="would leave"):
        await here.models.pull("a/m", source="modelscope")


async def test_a_hubs_small_files_are_held_to_gits_digests(hub: Hub, here: Shop) -> None:
    hub.add_repo("a/s", {"model.safetensors": (8).to_bytes(8, "little") + b"{}      ", "config.json": b"{}", "tokenizer.json": b'{"a": 1}'})
    hub.faults = {"/a/s/tokenizer.json": Fault(wrong_byte=3)}
    with pytest.raises(Unavailable, match="to git, promised was"):
        await here.models.pull("a/s")
    assert here.on_disk() == {"blobs": [], "partial": []}
    hub.faults = {}
    model = await here.models.pull("a/s")
    assert {file["name"] for file in model["files"]} == {"model.safetensors", "config.json", "tokenizer.json"}
    assert here.models.path(model).parent.joinpath("config.json").is_file()


async def test_shards_of_safetensors_are_one_artefact_and_its_doubles_are_left(hub: Hub, web: Web) -> None:
    names = [
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
        "consolidated.safetensors",
    ]
    hub.add_repo("a/s", dict.fromkeys([*names, "config.json", "pytorch_model.bin"], b"x"))
    config = {"huggingface_endpoint": hub.url}
    plan = await huggingface.resolve(Request("a/s"), config, web)
    assert {artefact.name for artefact in plan.artefacts} == {*names[:3], "config.json"}
    (hub.root / "hf/a/s" / names[1]).unlink()
    with pytest.raises(Unavailable, match="2 shards, the hub lists 1"):
        await huggingface.resolve(Request("a/s"), config, web)
    hub.add_repo("a/pickle", {"pytorch_model.bin": b"x"})
    with pytest.raises(FailedPrecondition, match="pickles run code"):
        await huggingface.resolve(Request("a/pickle"), config, web)


async def test_a_revision_is_exact(hub: Hub, web: Web) -> None:
    hub.add_repo("a/m", {"m-Q8_0.gguf": b"x"})
    config, commit = {"huggingface_endpoint": hub.url}, hub.commit("a/m")
    assert (await huggingface.resolve(Request("a/m", revision=commit), config, web)).revision == commit
    hub.lies[f"/api/models/a/m/revision/{'a' * 40}"] = json.dumps({"sha": commit, "siblings": []}).encode()
    with pytest.raises(Unavailable, match="answers with commit"):
        await huggingface.resolve(Request("a/m", revision="a" * 40), config, web)
    for repo, quantization in (("a/m:main", None), ("a/m:Q8_0", "Q4_0")):
        with pytest.raises(InvalidArgument):
            choose.split_quantization(Request(repo, quantization=quantization))


# Addresses and paths


async def test_an_address_brings_its_file(hub: Hub, here: Shop, tiny: bytes, tmp_path: Path) -> None:
    address, digest = hub.add_file("x-Q8_0.gguf", tiny), sha256_of(tmp_path / "tiny.gguf")
    model = await here.models.pull(f"{address}#sha256={digest}")
    assert (model["id"], model["source"]["kind"], model["digest"]) == ("x-q8_0", "url", f"sha256:{digest}")
    for more in ({"repo": f"{address}#sha256={'0' * 64}"}, {"repo": address, "sha256": "0" * 64, "name": "wrong"}):
        with pytest.raises(AimaError, match="hash"):
            await here.models.pull(**more)
    assert (await here.models.pull(address, name="again"))["digest"] == model["digest"]
    hub.faults = {"/files/x-Q8_0.gguf": Fault(no_range=True, no_etag=True, reset_after=700_000, times=1)}
    assert (await here.models.pull(f"{address}?x=1", name="once-more"))["digest"] == model["digest"]
    assert here.on_disk()["partial"] == []


async def test_an_address_of_shards_means_them_all(hub: Hub, web: Web) -> None:
    plan = await url.resolve(Request("https://h.test/a b/m-00002-of-00003.gguf?k=1".replace(" ", "%20")), {}, web)
    assert [part.url for artefact in plan.artefacts for part in artefact.parts] == [
        f"https://h.test/a%20b/m-0000{n}-of-00003.gguf?k=1" for n in (1, 2, 3)
    ]
    assert plan.name == "m"
    for wrong in (
        "https://me:pw@h.test/m.gguf",
        "https://h.test/m.gguf#md5=1",
        "https://h.test/m-00001-of-99999.gguf",
        "ftp://h.test/m.gguf",
    ):
        with pytest.raises(InvalidArgument):
            await url.resolve(Request(wrong), {}, web)
    with pytest.raises(FailedPrecondition, match="runs code"):
        await url.resolve(Request("https://h.test/model.pt"), {}, web)


async def test_a_path_is_taken_in(here: Shop, tmp_path: Path, tiny: bytes) -> None:
    model = await here.models.pull(str(tmp_path / "tiny.gguf"), name="mine")
    assert (model["id"], model["source"]["kind"]) == ("mine", "local")
    with pytest.raises(InvalidArgument, match="a path has no quantization"):
        await here.models.pull(str(tmp_path / "tiny.gguf"), quantization="Q4_0")


# Searching


async def test_a_search_asks_every_source_and_says_what_fits(hub: Hub, here: Shop) -> None:
    furnish(hub)
    registries.add_ollama(hub, "aima-tiny:latest", (hub.root / "hf/aima/tiny-GGUF/tiny-f32.gguf").read_bytes())
    found = await here.models.search(Query("tiny"))
    assert {(hit["source"], hit["repo"], hit["fits"], hit["size_bytes"]) for hit in found["results"]} == {
        ("huggingface", "aima/tiny-GGUF", True, 1_021_024),
        ("ollama", "aima-tiny", True, 1_021_024),
        ("modelscope", "aima/tiny-GGUF", True, 1_021_024),
    }
    assert found["unavailable"] == [] and here.models.list()[1] == 0
    assert next(hit["downloads"] for hit in found["results"] if hit["source"] == "ollama") == 12_500_000
    hub.faults = {"/search": Fault(status=500), "/openapi/v1/models": Fault(status=429)}
    found = await here.models.search(Query("tiny"))
    assert {each["source"] for each in found["unavailable"]} == {"ollama", "modelscope"} and len(found["results"]) == 1
    hub.faults["/api/models"] = Fault(status=503)
    with pytest.raises(Unavailable):
        await here.models.search(Query("tiny"))


async def test_what_a_search_cannot_know_is_null_with_its_reason(hub: Hub, here: Shop) -> None:
    hub.add_repo("a/other-tiny", {"model.pt": b"x"})
    (hit,) = (await here.models.search(Query("other-tiny"), "huggingface"))["results"]
    assert (hit["fits"], hit["size_bytes"]) == (None, None) and "pickles" in hit["reason"]
    hub.lies["/search"] = b"<html>moved</html>"
    with pytest.raises(Unavailable, match="not the page it was"):
        await here.models.search(Query("tiny"), "ollama")
    hub.lies["/search"] = b"<p>No models found</p>"
    assert (await here.models.search(Query("tiny"), "ollama"))["results"] == []
    hub.lies["/openapi/v1/models"] = b'{"data": []}'
    with pytest.raises(Unavailable):
        await here.models.search(Query("tiny"), "modelscope")


# Errors and the offline host


@pytest.mark.parametrize(
    ("status", "kind", "unit"),
    [
        (401, PermissionDenied, "secret.list"),
        (403, PermissionDenied, "secret.list"),
        (404, NotFound, "model.search"),
        (416, Unavailable, None),
        (429, Unavailable, None),
        (500, Unavailable, None),
        (503, Unavailable, None),
    ],
)
async def test_each_refusal_says_what_to_do(
    hub: Hub, here: Shop, tiny: bytes, status: int, kind: type[AimaError], unit: str | None
) -> None:
    hub.add_repo("a/m", {"m-Q8_0.gguf": tiny})
    hub.faults = {"/revision/main": Fault(status=status, retry_after=7 if status == 429 else None)}
    with pytest.raises(kind) as caught:
        await here.models.pull("a/m")
    assert (caught.value.hint and str(status) in str(caught.value) + str(caught.value.details)) or status == 404
    assert [call["unit"] for call in caught.value.next] == ([unit] if unit else [])
    assert caught.value.retry_after == (7 if status == 429 else None)
    hub.faults = {"/a/m/m-Q8_0.gguf": Fault(status=status), "/resolve/*": Fault(status=status)}
    with pytest.raises(AimaError) as caught:
        await here.models.pull("a/m")
    assert caught.value.hint


async def test_an_offline_host_says_at_once_what_is_missing(hub: Hub, here: Shop, tiny: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add_repo("a/m", {"m-Q8_0.gguf": tiny})
    await here.models.pull("a/m")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    before = sum(hub.requests.values())
    assert (await here.models.pull("a/m"))["id"] == "m-q8_0", "what is here needs nobody"
    with pytest.raises(FailedPrecondition, match="HF_HUB_OFFLINE") as caught:
        await here.models.pull("a/other")
    assert caught.value.details == {"missing": ["a/other"]} and "m-q8_0" in str(caught.value.hint)
    with pytest.raises(FailedPrecondition, match="offline"):
        await here.models.search(Query("tiny"))
    assert sum(hub.requests.values()) == before
