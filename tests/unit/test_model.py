"""Models: what lies on disk, what the record says, and what the disk gets back."""

from __future__ import annotations

import os
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from aima_lib import config
from aima_lib.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound, ResourceExhausted
from aima_lib.infra import blobs as disk
from aima_lib.infra.download import Pace
from aima_lib.infra.events import Events
from aima_lib.infra.hal import Hardware
from aima_lib.infra.home import Home
from aima_lib.infra.store import Store
from aima_lib.infra.web import Web
from aima_lib.registry import Registry
from aima_lib.services import memory
from aima_lib.services.books import Books
from aima_lib.services.device import DeviceService
from aima_lib.services.model import ModelService
from aima_lib.services.pulling import way_out
from aima_lib.services.secrets import SecretService
from tests.heads import gguf
from tests.hub import sha256_of
from tests.tiny import write_tiny_gguf
from tests.world import ROOTS

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


# Tries three times, soon, and cuts files of tests into several segments.
QUICK = Pace(attempts=3, first_wait_seconds=0.02, longest_wait_seconds=0.1, segment=256 << 10)


class Shop:
    """A model service that runs, and what it stands on."""

    def __init__(
        self,
        home: Home,
        store: Store,
        toml: str = "",
        stall_seconds: float = 20,
        pace: Pace | None = QUICK,
        hardware: Hardware | None = None,
    ) -> None:
        (home.path / "config.toml").write_text(toml + ROOTS, encoding="utf-8")
        self.home, self.store = home.path, store
        settings = config.load(home.path)
        types = {unit.name: unit for unit in Registry.described().of("event")}
        self.events = Events(store, types)
        self.devices = DeviceService(settings, store, self.events, hardware)
        web = Web(way_out(settings, connect_seconds=10, stall_seconds=stall_seconds))
        books, secrets = Books(settings["engines"], store, self.devices, self.events), SecretService(home, store)
        self.models = ModelService(settings, home.path, store, self.events, self.devices, secrets, books, web=web, pace=pace)

    def on_disk(self) -> dict[str, list[str]]:
        """Names under models/: blobs, partial, and each model."""
        folder = self.home / "models"
        return {each.name: sorted(entry.name for entry in each.iterdir()) for each in sorted(folder.iterdir())}

    async def told(self, type: str) -> list[dict[str, Any]]:
        """Payloads of the events of this type so far."""
        await self.store.put("barrier", {"id": "x"})  # events are written by the same queue
        return [payload for _, payload in await self._log(type)]

    async def _log(self, type: str) -> list[tuple[int, dict[str, Any]]]:
        import json

        return [
            (seq, json.loads(body)) for seq, body in self.store.read("SELECT seq, payload FROM events WHERE type = ? ORDER BY seq", (type,))
        ]


@asynccontextmanager
async def shop(folder: Path, toml: str = "", **more: Any) -> AsyncIterator[Shop]:
    home = Home(folder)
    home.make()
    store = Store(folder / "aima.db")
    try:
        opened = Shop(home, store, toml, **more)
        async with anyio.create_task_group() as group:
            await group.start(opened.models.run)
            yield opened
            group.cancel_scope.cancel()
    finally:
        store.close()


@pytest.fixture
async def here(tmp_path: Path) -> AsyncIterator[Shop]:
    async with shop(tmp_path / "home") as opened:
        yield opened


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return write_tiny_gguf(tmp_path / "Tiny-F32.gguf")


async def test_an_import_is_recorded_linked_and_found_again(here: Shop, tiny: Path) -> None:
    model = (await here.models.import_all(str(tiny)))[0][0]
    assert (model["id"], model["status"], model["digest"]) == ("tiny-f32", "ready", f"sha256:{sha256_of(tiny)}")
    assert here.models.path(model).read_bytes() == tiny.read_bytes()
    assert here.models.path(model).samefile(here.home / f"models/blobs/sha256-{sha256_of(tiny)}")
    again = (await here.models.import_all(str(tiny)))[0][0]
    assert again["id"] == "tiny-f32" and here.models.list()[1] == 1
    assert here.on_disk()["partial"] == []
    created = await here.told("model.created")
    assert [event["model_id"] for event in created] == ["tiny-f32"]


async def test_a_broken_file_is_refused_where_it_breaks(here: Shop, tiny: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(tiny.read_bytes()[:500_000])
    with pytest.raises(InvalidArgument, match=r"broken\.gguf .* at byte \d+: tensor"):
        await here.models.import_all(str(broken))
    with pytest.raises(InvalidArgument, match="is not a file"):
        await here.models.import_all(str(tmp_path / "none.gguf"))
    other = tmp_path / "model.onnx"
    other.write_bytes(b"onnx")
    with pytest.raises(InvalidArgument, match=r"model\.onnx is not a usable ONNX model"):
        await here.models.import_all(str(other))
    with pytest.raises(InvalidArgument, match="cannot check"):
        await here.models.import_all(str(other.rename(tmp_path / "model.engine")))
    assert here.on_disk() == {"blobs": [], "partial": []}


async def test_a_taken_name_is_refused_and_a_derived_one_moves_on(here: Shop, tiny: Path, tmp_path: Path) -> None:
    other = write_tiny_gguf(tmp_path / "other/Tiny-F32.gguf".replace("other/", "b-"), seed=1)
    await here.models.import_all(str(tiny), name="one")
    with pytest.raises(AlreadyExists, match="one belongs to a model with other weights"):
        await here.models.import_all(str(other), name="one")
    await here.models.import_all(str(tiny), name="two")  # the same weights may have two names
    assert [model["id"] for model in here.models.list()[0]] == ["two", "one"]
    assert len(here.on_disk()["blobs"]) == 1


async def test_delete_gives_the_disk_back_once_nobody_shares(here: Shop, tiny: Path) -> None:
    for name in ("one", "two"):
        await here.models.import_all(str(tiny), name=name, mode="copy")
    assert await here.models.delete("one") == 0
    assert here.models.path(here.models.get("two")).exists()
    blocks = here.models.path(here.models.get("two")).stat().st_blocks * 512
    assert await here.models.delete("two") == blocks > 900_000
    assert here.on_disk() == {"blobs": [], "partial": []}
    linked = (await here.models.import_all(str(tiny)))[0][0]
    assert await here.models.delete(linked["id"]) == 0  # the original holds the bytes
    assert tiny.exists()
    assert [event["model_id"] for event in await here.told("model.deleted")] == ["one", "two", "tiny-f32"]


async def test_a_model_in_use_stays(here: Shop, tiny: Path) -> None:
    await here.models.import_all(str(tiny), name="m")
    await here.store.put("service", {"id": "talk", "model_id": "m", "status": "stopped"})
    with pytest.raises(FailedPrecondition, match="in use by service talk") as caught:
        await here.models.delete("m")
    assert caught.value.next == [{"unit": "service.delete", "arguments": {"service_id": "talk"}}]
    await here.store.put("instance", {"id": "llamacpp-m", "model_id": "m", "status": "ready"})
    with pytest.raises(FailedPrecondition, match="instance llamacpp-m"):
        await here.models.delete("m", force=True)
    await here.store.update("instance", "llamacpp-m", status="stopped")
    assert await here.models.delete("m", force=True) == 0


async def test_verify_sees_damage_and_wrong_checksums(here: Shop, tiny: Path) -> None:
    model = (await here.models.import_all(str(tiny), name="m", mode="copy"))[0][0]
    assert await here.models.verify("m", model["digest"].upper().replace("SHA256", "sha256")) == (True, [])
    assert (await here.models.verify("m", "0" * 64))[1][0]["code"] == "checksum"
    path = here.models.path(model)
    with path.open("r+b") as stream:
        stream.seek(5000)
        stream.write(b"!")
    valid, issues = await here.models.verify("m")
    assert not valid and issues[0]["code"] == "content" and here.models.get("m")["status"] == "corrupt"
    path.unlink()
    assert (await here.models.verify("m"))[1][0]["code"] == "missing"
    assert [event["valid"] for event in await here.told("model.verified")] == [True, False, False, False]
    mended = (await here.models.import_all(str(tiny), name="m"))[0][0]
    assert mended["status"] == "ready"


async def test_registered_weights_stay_where_they_are(here: Shop, tiny: Path, tmp_path: Path) -> None:
    model = await here.models.create("Shared Tiny", "llm", str(tiny), source="a disk of ours")
    assert (model["id"], model["digest"], model["architecture"]) == ("shared-tiny", None, "llama")
    assert here.models.path(model) == tiny
    assert (await here.models.create("Shared Tiny", "llm", str(tiny)))["id"] == "shared-tiny"
    with pytest.raises(AlreadyExists):
        await here.models.create("Shared Tiny", "embedding", str(tiny))
    assert await here.models.verify("shared-tiny") == (True, [])
    assert here.models.get("shared-tiny")["digest"] == f"sha256:{sha256_of(tiny)}"
    assert await here.models.delete("shared-tiny") == 0 and tiny.exists()
    odd = tmp_path / "weights.bin"
    odd.write_bytes(b"?")
    with pytest.raises(InvalidArgument, match="cannot be told"):
        await here.models.create("odd", "asr", str(odd))
    for format in ("gguf", "safetensors"):
        with pytest.raises(InvalidArgument, match=f"is unknown, not {format}"):
            await here.models.create("odd", "asr", str(odd), format=format)
    assert (await here.models.create("odd", "asr", str(odd), format="ctranslate2"))["format"] == "ctranslate2"


async def test_a_pickle_is_never_taken_in_and_said_to_be_unsafe(here: Shop, tmp_path: Path) -> None:
    folder = tmp_path / "old"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x02}q\x00.")
    with pytest.raises(InvalidArgument, match=r"pytorch_model\.bin may be a Python pickle.* AIMA never loads one"):
        await here.models.import_all(str(folder))
    (folder / "weights.pt").write_bytes(b"\x80\x02}q\x00.")
    with pytest.raises(InvalidArgument):
        await here.models.import_all(str(folder / "weights.pt"))
    model = await here.models.create("old", "llm", str(folder / "weights.pt"))
    assert model["format"] == "pytorch" and "weights.pt is a Python pickle" in model["warnings"][0]


async def test_a_folder_with_a_projector_is_one_model_that_sees(here: Shop, tiny: Path, tmp_path: Path) -> None:
    folder = tmp_path / "seeing"
    folder.mkdir()
    tiny.rename(folder / "a.gguf")
    (folder / "mmproj-a.gguf").write_bytes(gguf({"general.architecture": "clip", "clip.has_vision_encoder": True}, [("v.w", (8,), 0, 32)]))
    model = (await here.models.import_all(str(folder)))[0][0]
    assert [file["name"] for file in model["files"]] == ["a.gguf", "mmproj-a.gguf"]
    assert (model["type"], model["modalities"]) == ("vlm", ["text", "image"]) and "vision" in model["capabilities"]
    said = (await here.models.estimate(model["id"]))["memory"]
    assert said["projector_bytes"] == model["files"][1]["size_bytes"]
    assert said["weights_bytes"] == model["files"][0]["size_bytes"]


async def test_a_home_of_before_still_estimates(here: Shop, tiny: Path) -> None:
    """Records that were written before the groups of layers have the plain numbers only."""
    model = (await here.models.import_all(str(tiny), name="m"))[0][0]
    new = (await here.models.estimate("m", context_length=512))["memory"]
    keys = ("block_count", "head_count", "head_count_kv", "key_length", "value_length", "embedding_length", "feed_forward_length")
    old = {key: model["geometry"][key] for key in (*keys, "vocabulary_size", "context_length", "sliding_window", "tensor_bytes")}
    await here.store.update("model", "m", geometry=old)
    assert (await here.models.estimate("m", context_length=512))["memory"]["kv_cache_bytes"] == new["kv_cache_bytes"]


async def test_filters_paging_and_nearest_names(here: Shop, tiny: Path) -> None:
    for name in ("one", "two", "three"):
        await here.models.import_all(str(tiny), name=name)
    models, total = here.models.list(type="llm", limit=1, offset=1)
    assert ([model["id"] for model in models], total) == (["two"], 3)
    assert here.models.list(format="onnx") == ([], 0)
    assert here.models.get("ONE")["id"] == "one"
    with pytest.raises(NotFound, match="no model called 'thre'") as caught:
        here.models.get("thre")
    assert "three" in str(caught.value.hint)


async def test_the_estimate_is_the_formula_and_names_the_context_that_fits(here: Shop, tiny: Path) -> None:
    await here.models.import_all(str(tiny), name="m")
    found = await here.models.estimate("m", context_length=512, parallel=2)
    assert found["memory"]["kv_cache_bytes"] == 3 * 2 * (16 + 16) * 2 * 512 * 2
    assert found["memory"]["low_bytes"] <= found["memory"]["total_bytes"] <= found["memory"]["high_bytes"]
    cpu = next(fit for fit in found["fits"] if fit["device_id"] == "cpu")
    assert cpu["fits"] is True and cpu["max_context_length"] == 1024
    with pytest.raises(InvalidArgument, match="either"):
        await here.models.estimate()
    with pytest.raises(NotFound):
        await here.models.estimate("m", device_id="gpu-99")
    model = here.models.get("m")

    def at(context: int, cache_type: str, weights: int | None) -> memory.Memory:
        load = memory.Load(context, cache_type=cache_type)
        return memory.estimate(model["geometry"], weights or 10 << 20, context, 1, load)

    verdict = memory.fit("gpu-0", 256 << 20, at, memory.Load(1 << 20), model)
    assert verdict["fits"] is False and "1024 tokens or" not in verdict["reason"] and verdict["max_context_length"] == 1024
    assert verdict["instead"][0]["context_length"] == 1024 and "1024 tokens fit" in verdict["reason"]
    assert memory.fit("gpu-0", None, at, memory.Load(1), model)["fits"] is None
    unknown = memory.fit("gpu-0", 1, lambda *_: memory.estimate({}, 10, 1, 1), memory.Load(1), {"geometry": {}})
    assert unknown["fits"] is False and unknown["instead"] == []


async def test_folders_and_shards(here: Shop, tiny: Path, tmp_path: Path) -> None:
    folder = tmp_path / "some model"
    folder.mkdir()
    tiny.rename(folder / "a.gguf")
    assert (await here.models.import_all(str(folder)))[0][0]["id"] == "some-model"
    write_tiny_gguf(folder / "b.gguf", seed=1)
    with pytest.raises(InvalidArgument, match="holds 2 models"):
        await here.models.import_all(str(folder))
    (folder / "b.gguf").rename(tmp_path / "b-00001-of-00002.gguf")
    with pytest.raises(InvalidArgument, match="b-00002-of-00002"):
        await here.models.import_all(str(tmp_path / "b-00001-of-00002.gguf"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(InvalidArgument, match="neither GGUF nor safetensors"):
        await here.models.import_all(str(tmp_path / "empty"))


async def test_no_room_is_said_before_the_first_byte(tmp_path: Path) -> None:
    with pytest.raises(ResourceExhausted, match=f"{1 << 60} bytes are needed"):
        disk.need_room(tmp_path, 1 << 60)


async def test_a_pipe_or_a_dangling_link_is_no_model(here: Shop, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.gguf")
    (tmp_path / "gone.gguf").symlink_to(tmp_path / "nothing")
    for name in ("pipe.gguf", "gone.gguf", "nul\0.gguf"):
        with pytest.raises(InvalidArgument):
            await here.models.import_all(str(tmp_path / name))
    assert stat.S_ISFIFO((tmp_path / "pipe.gguf").stat().st_mode)
