"""Sound and images in and out: by the command line, by /v1, by blobs; and engines in environments of their own."""

from __future__ import annotations

import base64
import io
import subprocess
import sys
import wave
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import httpx
import openai
import pytest

from aima_lib import AsyncAima, config
from aima_lib.door import OWNER, Caller
from aima_lib.errors import InvalidArgument, NotFound, PermissionDenied
from aima_lib.gateway import Gateway
from aima_lib.infra.home import Home
from aima_lib.runtime import host as hosting
from aima_lib.services.media import INLINE_BYTES, Media
from tests.hub import Hub
from tests.playthings import RATE, spoken
from tests.workshop import agreed
from tests.world import ROOTS, HostProcess, environment

GUEST = Caller("guest", frozenset({"inference"}))
LONG = "a long sentence that has far more than eight thousand bytes of sound in it"


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory, fixtures: Path, config: str) -> Iterator[HostProcess]:
    """A host that hears, speaks, draws and ranks."""
    process = HostProcess(Path(sys.executable), tmp_path_factory.mktemp("media") / "home", fixtures, config).start()
    with process.client() as client:
        for unit, body in (
            ("engine/install", {"name": "espeak-ng"}),
            ("engine/install", {"name": "onnx"}),
            ("engine/install", {"name": "faster-whisper", "version": "1.2.1"}),
            ("model/import", {"path": "hears", "name": "hears"}),
            ("model/import", {"path": "ranks", "name": "ranks", "type": "rerank"}),
            ("service/create", {"model_id": "espeak-ng", "name": "voice"}),
            ("service/create", {"model_id": "hears"}),
            ("service/create", {"model_id": "ranks"}),
            ("service/create", {"model_id": "digits8"}),
        ):
            answer = client.post(f"/units/{unit}", json=body)
            assert answer.is_success, answer.text
    yield process
    process.stop()


@pytest.fixture
def http(host: HostProcess) -> Iterator[httpx.Client]:
    with host.client() as client:
        yield client


@pytest.fixture
def vendor(host: HostProcess) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(
        base_url=f"{host.url}/v1", api_key=host.home.key(), http_client=httpx.Client(trust_env=False), max_retries=0
    ) as client:
        yield client


def aima(host: HostProcess, cwd: Path, *words: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "aima_mcp.main", *words]
    return subprocess.run(command, cwd=cwd, env=environment(host.home.path), input=stdin, capture_output=True, timeout=60, check=False)


# The command line


def test_a_file_goes_out_and_comes_back_in(host: HostProcess, tmp_path: Path) -> None:
    said = aima(host, tmp_path, "inference", "synthesize", "voice", "--text", LONG, "--out", "long.wav")
    assert said.returncode == 0 and b"long.wav" in said.stdout, said.stderr
    with wave.open(str(tmp_path / "long.wav")) as file:
        assert file.getframerate() == RATE and file.getnframes() * 2 > INLINE_BYTES
    heard = aima(host, tmp_path, "inference", "transcribe", "hears", "--audio", "@long.wav")
    assert heard.stdout.decode().strip().splitlines()[0].strip() == LONG, heard.stderr
    piped = aima(host, tmp_path, "inference", "synthesize", "voice", "--text", "hello", "--out", "-")
    assert piped.stdout == spoken("hello")
    again = aima(host, tmp_path, "inference", "transcribe", "hears", "--audio", "@-", "--json", stdin=piped.stdout)
    assert b'"text": "hello"' in again.stdout


def test_a_large_file_is_named_to_the_host(host: HostProcess, tmp_path: Path) -> None:
    words = "abc " * 3000
    (tmp_path / "large.wav").write_bytes(spoken(words))
    heard = aima(host, tmp_path, "inference", "transcribe", "hears", "--audio", "@large.wav", "--json")
    assert heard.returncode == 0, heard.stderr
    assert heard.stdout.count(b"abc") == 6000, "in the text, and in the segments"


def test_several_files_are_numbered_and_base64_is_not_printed(host: HostProcess, tmp_path: Path) -> None:
    words = ("inference", "generate_image", "digits8", "--prompt", "seven", "--n", "2")
    made = aima(host, tmp_path, *words, "--out", "seven.png")
    assert made.returncode == 0, made.stderr
    assert sorted(path.name for path in tmp_path.glob("*.png")) == ["seven-2.png", "seven.png"]
    assert (tmp_path / "seven-2.png").read_bytes().startswith(b"\x89PNG")
    shown = aima(host, tmp_path, *words).stdout
    assert b"--out FILE" in shown and b"iVBOR" not in shown
    gone = aima(host, tmp_path, "inference", "transcribe", "hears", "--audio", "@nothing.wav")
    assert gone.returncode == 2 and b"cannot read nothing.wav" in gone.stderr


def test_models_that_come_with_their_engines_are_models_like_others(http: httpx.Client) -> None:
    rows = {row["id"]: row for row in http.post("/units/model/list", json={}).raise_for_status().json()["models"]}
    assert (rows["espeak-ng"]["format"], rows["espeak-ng"]["size_bytes"], rows["espeak-ng"]["capabilities"]) == (
        "builtin",
        0,
        ["synthesize"],
    )
    assert [file["name"] for file in rows["digits8"]["files"]] == ["digits8.onnx", "digits8.json"]
    for id in ("espeak-ng", "digits8"):
        assert http.post("/units/model/verify", json={"model_id": id}).raise_for_status().json()["valid"]
        assert http.get("/resources", params={"uri": f"aima://model/{id}"}).is_success


# /v1, by OpenAI's own client


def test_openai_hears_and_speaks(vendor: openai.OpenAI) -> None:
    sound = vendor.audio.speech.create(model="voice", voice="en-us", input="hello there", response_format="wav").read()
    assert sound == spoken("hello there")
    file = ("speech.wav", sound)
    assert vendor.audio.transcriptions.create(model="hears", file=file).text == "hello there"
    verbose = vendor.audio.transcriptions.create(model="hears", file=file, response_format="verbose_json", language="en")
    assert (verbose.language, verbose.duration, len(verbose.segments or [])) == ("en", 0.11, 2)
    srt = vendor.audio.transcriptions.create(model="hears", file=file, response_format="srt")
    assert str(srt).startswith("1\n00:00:00,000 --> 00:00:00,110\nhello\n\n2\n")
    events = list(vendor.audio.transcriptions.create(model="hears", file=file, stream=True))
    assert [event.type for event in events] == ["transcript.text.delta"] * 2 + ["transcript.text.done"]
    assert events[-1].text == "hello there"  # type: ignore[union-attr]


def test_openai_draws(vendor: openai.OpenAI) -> None:
    made = vendor.images.generate(model="digits8", prompt="a three", n=2, size="16x16", extra_body={"seed": 7})  # type: ignore[call-overload]
    again = vendor.images.generate(model="digits8", prompt="a three", size="16x16", extra_body={"seed": 7})  # type: ignore[call-overload]
    images = [base64.b64decode(row.b64_json) for row in made.data]
    assert all(image.startswith(b"\x89PNG") for image in images) and images[0] != images[1]
    assert base64.b64decode(again.data[0].b64_json) == images[0], "the same seed, the same image"


def test_ranks_have_the_shape_that_clients_of_rerankers_know(http: httpx.Client) -> None:
    body = {"model": "ranks", "query": "where do cats sleep", "documents": ["stocks fell", {"text": "cats sleep on the sofa"}]}
    found = http.post("/v1/rerank", json=body | {"return_documents": True}).raise_for_status().json()
    assert [row["index"] for row in found["results"]] == [1, 0]
    assert found["results"][0]["relevance_score"] > 0.7 > found["results"][1]["relevance_score"]
    assert found["results"][0]["document"] == {"text": "cats sleep on the sofa"} and found["usage"]["total_tokens"] > 0


@pytest.mark.parametrize(
    ("path", "body", "status", "code", "param"),
    [
        ("rerank", {"model": "ranks", "query": "a"}, 400, "invalid_argument", "documents"),
        ("rerank", {"model": "ranks", "query": "a", "documents": None}, 400, "invalid_argument", "documents"),
        ("audio/speech", {"model": "voice", "input": None}, 400, "invalid_argument", "input"),
        ("images/generations", {"model": "digits8", "prompt": None}, 400, "invalid_argument", "prompt"),
        ("rerank", {"model": "ranks", "query": "a", "documents": "b"}, 400, "invalid_argument", "documents"),
        ("rerank", {"model": "digits8", "query": "a", "documents": ["b"]}, 503, "failed_precondition", "model"),
        ("rerank", {"model": "nothing", "query": "a", "documents": ["b"]}, 404, "model_not_found", "model"),
        ("audio/speech", {"model": "voice", "input": "a", "voic": "x"}, 400, "unknown_parameter", "voic"),
        ("audio/speech", {"model": "voice", "input": "a", "response_format": "wma"}, 400, "invalid_argument", "response_format"),
        ("audio/speech", {"model": "voice", "input": "", "response_format": "wav"}, 400, "invalid_argument", "input"),
        ("audio/speech", {"model": "voice", "input": "a", "voice": "alloy", "response_format": "wav"}, 400, "invalid_argument", None),
        ("audio/transcriptions", {"model": "hears"}, 415, "invalid_argument", None),
        ("audio/translations", {"model": "hears"}, 404, "not_found", None),
        ("images/generations", {"model": "digits8", "prompt": "7", "response_format": "url"}, 400, "invalid_argument", "response_format"),
        ("images/generations", {"model": "digits8", "prompt": "7", "n": 99}, 400, "invalid_argument", "n"),
        ("images/generations", {"model": "digits8", "prompt": "a castle"}, 400, "invalid_argument", None),
    ],
)
def test_what_cannot_be_is_refused_in_the_vendors_shape(
    http: httpx.Client, path: str, body: Any, status: int, code: str, param: str | None
) -> None:
    answer = http.post(f"/v1/{path}", json=body)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (status, code, param), answer.text
    assert "castle" not in answer.text


@pytest.mark.parametrize(
    ("files", "data", "param"),
    [
        ({}, {"model": "hears"}, "file"),
        ({"file": b"no sound"}, {"model": "hears"}, None),
        ({"file": b"no sound", "model": b"x"}, {}, None),
        ({"file": spoken("a")}, {"model": "hears", "response_format": "docx"}, "response_format"),
        ({"file": spoken("a")}, {"model": "hears", "language": "klingon"}, "language"),
        ({"file": spoken("a")}, {"model": "hears", "temperature": "hot"}, "temperature"),
        ({"file": spoken("a")}, {"model": "hears", "speaker": "x"}, "speaker"),
    ],
)
def test_a_form_that_cannot_be_is_refused(http: httpx.Client, files: dict[str, bytes], data: dict[str, str], param: str | None) -> None:
    parts = {name: (f"{name}.wav", body) for name, body in files.items()} or {"other": (None, b"x")}
    answer = http.post("/v1/audio/transcriptions", files=parts, data=data)
    assert answer.status_code == 400, answer.text
    if param:
        assert answer.json()["error"]["param"] == (param if files else "other")


def test_a_form_that_is_none_is_refused(http: httpx.Client) -> None:
    for body in (b"", b"--x\r\n", b"--x\r\nContent-Disposition: form-data; name=\xff\r\n\r\n1\r\n--x--", b"\x00" * 1000):
        answer = http.post("/v1/audio/transcriptions", content=body, headers={"Content-Type": "multipart/form-data; boundary=x"})
        assert answer.status_code == 400, answer.text
    assert http.post("/v1/audio/transcriptions", content=b"x", headers={"Content-Type": "multipart/form-data"}).status_code == 400


# Blobs


def test_a_result_too_big_for_a_reply_is_fetched_by_its_uri(host: HostProcess, http: httpx.Client) -> None:
    said = http.post("/units/inference/synthesize", json={"model": "voice", "text": LONG}).raise_for_status().json()
    assert said["audio"].startswith("aima://blob/") and said["size_bytes"] > INLINE_BYTES
    raw = http.get("/resources", params={"uri": said["audio"]}, headers={"Accept": "application/octet-stream"})
    assert raw.content == spoken(LONG) and raw.headers["content-type"] == "audio/wav" and raw.headers["content-disposition"] == "attachment"
    assert (
        http.get(
            "/resources",
            params={"uri": said["audio"]},
            headers={"Accept": "application/octet-stream", "If-None-Match": raw.headers["etag"]},
        ).status_code
        == 304
    )
    as_json = http.get("/resources", params={"uri": said["audio"]}).json()
    assert base64.b64decode(as_json["content"]) == raw.content
    heard = http.post("/units/inference/transcribe", json={"model": "hears", "audio": said["audio"]}).raise_for_status().json()
    assert heard["text"] == LONG and heard["duration_seconds"] == said["duration_seconds"]


def test_the_library_and_mcp_read_a_blob_too(host: HostProcess, http: httpx.Client) -> None:
    uri = http.post("/units/inference/synthesize", json={"model": "voice", "text": LONG}).json()["audio"]

    async def read() -> str:
        async with AsyncAima(host.home.path) as aima:
            return str((await aima.read(uri))["content"])

    assert base64.b64decode(anyio.run(read)) == spoken(LONG)
    headers = {
        "Accept": "application/json, text/event-stream",
        "MCP-Protocol-Version": "2026-07-28",
        "Mcp-Method": "resources/read",
        "Mcp-Name": uri,
    }
    meta = {
        f"io.modelcontextprotocol/{key}": value
        for key, value in (("protocolVersion", "2026-07-28"), ("clientInfo", {"name": "t", "version": "1"}), ("clientCapabilities", {}))
    }
    message = {"jsonrpc": "2.0", "id": 1, "method": "resources/read", "params": {"uri": uri, "_meta": meta}}
    [content] = http.post("/mcp", json=message, headers=headers).json()["result"]["contents"]
    assert content["mimeType"] == "audio/wav" and base64.b64decode(content["blob"]) == spoken(LONG)


@pytest.fixture
def media(hosted: Gateway) -> Media:
    return hosted.services.media


@pytest.mark.anyio
async def test_bytes_come_in_three_forms(media: Media, tmp_path: Path) -> None:
    path = tmp_path / "a sound.wav"
    path.write_bytes(b"sound")
    kept = await media.keep(b"sound", "audio/wav", GUEST, "test")
    url = "file://" + str(path).replace(" ", "%20")
    for given in ("c291bmQ=", "c291\nbmQ=", "data:audio/wav;base64,c291bmQ=", f"file:{path}", url, kept["uri"]):
        assert (await media.take(given, GUEST, "audio"))[0] == b"sound", given
    for given in ("sound!", "c291bmQ", "data:audio/wav,sound", "data:;base64,", "file:", "file://", f"file:{tmp_path}", "file:\x00"):
        with pytest.raises(InvalidArgument):
            await media.take(given, GUEST, "audio")
    with pytest.raises(PermissionDenied):
        await media.take("file:/etc/hostname", GUEST, "audio")


@pytest.mark.anyio
async def test_a_blob_is_its_makers_and_the_owners(media: Media) -> None:
    kept = await media.keep(b"mine", "text/plain", GUEST, "test")
    other = Caller("other", frozenset({"inference"}))
    for caller, seen in ((GUEST, 1), (OWNER, 1), (other, 0)):
        assert media.list(caller, 10, 0)[1] == seen
    with pytest.raises(NotFound):
        await media.read(kept["id"], other)
    assert await media.delete(kept["id"], other) == 0
    assert (await media.read(kept["id"], OWNER))[1] == b"mine"
    assert await media.delete(kept["id"], GUEST) == 4
    for bad in (kept["id"], "../aima.db", "", "x" * 1000):
        with pytest.raises(NotFound):
            await media.read(bad, OWNER)


@pytest.mark.anyio
async def test_blobs_end_with_their_time_and_make_room(home: Home, anyio_backend: str) -> None:
    (home.path / "config.toml").write_text("[blobs]\nretention_hours = 0.01\nlargest_gib = 0.001\n" + ROOTS, encoding="utf-8")
    assert config.load(home.path)["blobs"]["retention_hours"] == 0.01
    async with hosting(home) as gateway:
        media, store = gateway.services.media, gateway.services.store
        first = await media.keep(bytes(700 << 10), "text/plain", OWNER, "test")
        second = await media.keep(bytes(700 << 10), "text/plain", OWNER, "test")
        assert [row["id"] for row in media.list(OWNER, 10, 0)[0]] == [second["id"]], "the oldest made room"
        await store.update("blob", second["id"], expires_at="2000-01-01T00:00:00.000Z")
        await media.prune()
        assert media.list(OWNER, 10, 0)[1] == 0 and list((home.path / "blobs").iterdir()) == []
        with anyio.fail_after(10):
            while len(told := gateway.services.events.page(0, 10, ["blob.deleted"])) < 2:
                await anyio.sleep(0.01)
        assert [(event["payload"]["blob_id"], event["payload"]["reason"]) for event in told] == [
            (first["id"], "room"),
            (second["id"], "expired"),
        ]


# Engines in environments of their own


@pytest.fixture
async def installing(home: Home, hub: Hub, anyio_backend: str) -> Any:
    (home.path / "config.toml").write_text(hub.config + ROOTS, encoding="utf-8")
    async with hosting(home) as gateway:
        yield gateway


@pytest.mark.anyio
async def test_an_environment_is_made_recorded_checked_and_found(installing: Gateway, home: Home) -> None:
    made = await agreed(installing, "engine.install", {"name": "faster-whisper", "version": "1.2.1"})
    assert made["installed"] and made["path"] == str(home.path / "engines/faster-whisper-1.2.1")
    assert not (await agreed(installing, "engine.install", {"name": "faster-whisper", "version": "1.2.1"}))["installed"]
    python = Path(made["path"]) / "bin/python"
    assert (
        subprocess.run([python, "-c", "import faster_whisper, sys; print(sys.prefix)"], capture_output=True, text=True).stdout.strip()
        == made["path"]
    )
    engine = installing.services.engines.catalog.adapter("faster-whisper")
    files = [{"name": "model.bin"}]
    launch = engine.plan({"id": "m", "type": "asr", "files": files}, Path("/m/model.bin"), {"type": "cpu"}, {"threads": 1})
    assert launch.argv[0] == str(python)


@pytest.mark.anyio
async def test_what_the_index_lacks_or_cannot_be_imported_leaves_nothing(installing: Gateway, home: Home, hub: Hub) -> None:
    with pytest.raises(InvalidArgument, match="no such version"):
        await agreed(installing, "engine.install", {"name": "faster-whisper", "version": "9.9.9"})
    info = "faster_whisper-6.6.6.dist-info"
    members = {
        "faster_whisper/__init__.py": b"import nothing_like_it\n",
        f"{info}/METADATA": b"Metadata-Version: 2.1\nName: faster-whisper\nVersion: 6.6.6\n",
    }
    members |= {f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: t\nRoot-Is-Purelib: true\nTag: py3-none-any\n"}
    hub.add_wheel("faster-whisper", "6.6.6", members | {f"{info}/RECORD": "".join(f"{name},,\n" for name in members).encode()})
    with pytest.raises(Exception, match="No module named 'nothing_like_it'"):
        await agreed(installing, "engine.install", {"name": "faster-whisper", "version": "6.6.6"})
    assert [path.name for path in (home.path / "engines").iterdir()] == []


@pytest.mark.anyio
async def test_a_program_that_is_not_there_is_said_to_be(home: Home, anyio_backend: str) -> None:
    (home.path / "config.toml").write_text('[engines]\nespeak_ng = "/nowhere/espeak-ng"\n' + ROOTS, encoding="utf-8")
    async with hosting(home) as gateway:
        with pytest.raises(Exception, match="cannot be run"):
            await agreed(gateway, "engine.install", {"name": "espeak-ng"})


def test_a_sound_of_the_tests_is_a_wav() -> None:
    with wave.open(io.BytesIO(spoken("hi"))) as file:
        assert file.getnframes() == 320
