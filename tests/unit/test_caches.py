"""Folders that others filled: Ollama's store, Hugging Face's cache, LM Studio's folders. All their models are found, and taken once."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from aima_lib.errors import ApprovalRequired, InvalidArgument
from aima_lib.gateway import Gateway
from tests import registries
from tests.heads import gguf
from tests.hub import Hub
from tests.tiny import write_tiny_gguf
from tests.unit.test_model import Shop, shop
from tests.workshop import agreed

EYES = gguf({"general.architecture": "clip", "clip.has_vision_encoder": True}, [("v.w", (8,), 0, 32)])
pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def tiny(tmp_path: Path) -> bytes:
    return write_tiny_gguf(tmp_path / "tiny.gguf").read_bytes()


@pytest.fixture
async def here(tmp_path: Path) -> AsyncIterator[Shop]:
    async with shop(tmp_path / "home") as opened:
        yield opened


def ollama_store(folder: Path, tiny: bytes) -> Path:
    """A store as Ollama lays it out: manifests by host, owner, name and tag; layers by digest."""
    hub = Hub(folder)
    hub.root = folder
    registries.add_ollama(hub, "tiny:f32", tiny, projector=EYES)
    registries.add_ollama(hub, "me/other:1", tiny + b"other")
    registries.add_ollama(hub, "broken:1", tiny[:5000])
    for path in sorted((folder / "v2").glob("*/*/*")):
        target = folder / "manifests/registry.example" / path.relative_to(folder / "v2")
        target.parent.mkdir(parents=True, exist_ok=True)
        path.rename(target)
    (folder / "manifests/registry.example/library/tiny/torn").write_text("{", encoding="utf-8")
    hostile = {"layers": [{"mediaType": registries.OLLAMA + "model", "digest": "sha256:../../../etc/passwd", "size": 1}]}
    (folder / "manifests/registry.example/library/tiny/hostile").write_text(json.dumps(hostile), encoding="utf-8")
    return folder


async def test_an_ollama_store_gives_all_its_models(here: Shop, tmp_path: Path, tiny: bytes) -> None:
    store = ollama_store(tmp_path / "ollama/models", tiny)
    for path in (store, store.parent):
        models, skipped = await here.models.import_all(str(path))
        assert {model["id"] for model in models} == {"tiny-f32", "other-1"}
        assert {Path(each.path).name for each in skipped} == {"torn", "hostile", "1"}
    tiny_model = here.models.get("tiny-f32")
    assert (tiny_model["source"]["kind"], tiny_model["source"]["repo"]) == ("local", "tiny:f32")
    assert [file["name"] for file in tiny_model["files"]] == ["tiny-f32.gguf", "mmproj-tiny-f32.gguf"]
    assert tiny_model["defaults"]["system"] == "You are small." and tiny_model["defaults"]["parameters"]["temperature"] == 0.7
    blob = store / "blobs" / f"sha256-{tiny_model['files'][0]['sha256']}"
    assert here.models.path(tiny_model).samefile(blob), "it is linked: the disk holds it once"
    assert await here.models.delete("tiny-f32") == 0 and blob.exists()
    with pytest.raises(InvalidArgument, match="one name cannot be theirs"):
        await here.models.import_all(str(store), name="all")


async def test_a_layer_that_is_not_what_its_manifest_says_is_skipped(here: Shop, tmp_path: Path, tiny: bytes) -> None:
    store = ollama_store(tmp_path / "models", tiny)
    blob = next(path for path in (store / "blobs").iterdir() if path.stat().st_size == len(tiny))
    blob.write_bytes(tiny[:-1] + b"!")
    models, skipped = await here.models.import_all(str(store), mode="copy")
    assert [model["id"] for model in models] == ["other-1"]
    assert any("its manifest says" in each.reason for each in skipped)
    assert here.on_disk()["partial"] == []


def hub_cache(folder: Path, tiny: bytes) -> Path:
    """A cache as huggingface_hub lays it out: blobs, and snapshots of links."""
    for repo, revision, files in (
        ("a--m-GGUF", "b" * 40, {"m-Q8_0.gguf": tiny, "Q4/m-Q4_0.gguf": tiny + b"4", "mmproj-m.gguf": b"GGUF"}),
        ("a--st", "c" * 40, {"model.safetensors": (8).to_bytes(8, "little") + b"{}      ", "config.json": b"{}"}),
        ("a--half", "d" * 40, {"m-00001-of-00002.gguf": tiny}),
    ):
        top = folder / f"models--{repo}"
        (top / "refs").mkdir(parents=True)
        (top / "refs/main").write_text(revision, encoding="utf-8")
        (top / "blobs").mkdir()
        (top / "snapshots/0old").mkdir(parents=True)
        for number, (name, content) in enumerate(files.items()):
            (top / f"blobs/{number}").write_bytes(content)
            link = top / "snapshots" / revision / name
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(Path(*[".."] * (2 + name.count("/"))) / "blobs" / str(number))
    (folder / "models--a--empty").mkdir()
    return folder


async def test_a_hugging_face_cache_gives_all_its_models(here: Shop, tmp_path: Path, tiny: bytes) -> None:
    cache = hub_cache(tmp_path / "huggingface/hub", tiny)
    models, skipped = await here.models.import_all(str(cache.parent))
    assert {(model["id"], model["format"], model["source"]["repo"]) for model in models} == {
        ("m-q8_0", "gguf", "a/m-GGUF"),
        ("m-q4_0", "gguf", "a/m-GGUF"),
        ("st", "safetensors", "a/st"),
    }
    assert {each.reason for each in skipped} == {"only 1 of its 2 shards are there", "nothing of it was downloaded"}
    one, _ = await here.models.import_all(str(cache / "models--a--st"), name="mine")
    assert one[0]["id"] == "mine" and {file["name"] for file in one[0]["files"]} == {"model.safetensors", "config.json"}


async def test_folders_as_lm_studio_keeps_them(here: Shop, tmp_path: Path, tiny: bytes) -> None:
    for name, content in {"pub/m-GGUF/m-Q8_0.gguf": tiny, "pub/n/n-Q4_0.gguf": tiny + b"n", "pub/n/mmproj-n.gguf": b"GGUF"}.items():
        path = tmp_path / "lmstudio/models" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    outside = tmp_path / "lmstudio/models/pub/link"
    outside.symlink_to("/etc")
    models, skipped = await here.models.import_all(str(tmp_path / "lmstudio/models"))
    assert {(model["id"], model["source"]["repo"]) for model in models} == {("m-q8_0", "pub/m-GGUF"), ("n-q4_0", "pub/n")} and not skipped
    with pytest.raises(InvalidArgument, match="neither GGUF nor safetensors"):
        (tmp_path / "nothing").mkdir()
        await here.models.import_all(str(tmp_path / "nothing"))


async def test_gc_by_its_unit_asks_first_and_a_dry_run_does_not(hosted: Gateway) -> None:
    orphan = hosted.services.home.path / "models/blobs/sha256-orphan"
    orphan.write_bytes(b"x" * 5000)
    told: Any = await hosted.call("model.gc", {"dry_run": True})
    assert told["blobs"] == ["models/blobs/sha256-orphan"] and told["freed_bytes"] >= 5000 and orphan.exists()
    with pytest.raises(ApprovalRequired) as caught:
        await hosted.call("model.gc", {})
    assert caught.value.details["plan"]["changes"]["deletes"] == [{"kind": "file", "id": "sha256-orphan"}]
    assert (await agreed(hosted, "model.gc", {}))["freed_bytes"] == told["freed_bytes"] and not orphan.exists()
