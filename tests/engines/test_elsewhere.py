"""Engines elsewhere, and servers of other names: each adapter against a small server that speaks the API which the real one documents.

What was not run here: OpenAI's own endpoint, Ollama's server and SGLang. vllm 0.32.0 (for CPUs) and transformers 5.19.0 were run by hand with a
tiny Llama, and what stands for them here does what they were seen to do; SGLang's options are those of 0.5.23, read in its package.
"""

from __future__ import annotations

import base64
import json
import os
import threading
from collections.abc import AsyncIterator, Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil
import pytest

from aima_lib import runtime
from aima_lib.errors import AimaError, FailedPrecondition, InvalidArgument, Unavailable
from aima_lib.infra.home import Home
from tests import vendor
from tests.engines.conftest import Hosted
from tests.hub import Hub
from tests.playthings import spoken
from tests.world import ROOTS

pytestmark = [pytest.mark.anyio, pytest.mark.engine]
SECRET = "sk-planted-4711"
HELLO = [{"role": "user", "content": "hello"}]


@pytest.fixture
def elsewhere() -> Iterator[ThreadingHTTPServer]:
    """A vendor that wants a key."""
    server = vendor.listen(key=SECRET)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
async def remote(home: Home, elsewhere: ThreadingHTTPServer, fixtures: Path, hub: Hub, anyio_backend: str) -> AsyncIterator[Hosted]:
    """A host that knows the vendor by the names `vendor` and `ollama`."""
    url = f"http://127.0.0.1:{elsewhere.server_address[1]}/v1"
    engines = f'[engines]\ngrace_seconds = 1\nstart_timeout_seconds = 30\n[engines.remotes]\nvendor = "{url}"\nollama = "{url}"\n'
    (home.path / "config.toml").write_text(engines + hub.config + ROOTS, encoding="utf-8")
    async with runtime.host(home) as gateway:
        try:
            yield Hosted(gateway, fixtures)
        finally:
            for instance in gateway.services.store.find("instance"):
                await gateway.services.engines.end(instance["id"], 1.0)


async def ready(remote: Hosted, name: str, kind: str, path: str = "vendor:model-1", engine: str | None = None) -> str:
    await remote.call("model.create", name=name, type=kind, path=path)
    await remote.call("engine.start", name=engine or "openai", model_id=name)
    return name


async def test_speech_that_cannot_be_joined_is_made_whole(remote: Hosted) -> None:
    await remote.call("secret.put", name="remote_vendor", value=SECRET)
    text = "This is the first sentence. Here is another one."
    talker, voice = await ready(remote, "talker", "llm"), await ready(remote, "voice", "tts")
    steps = [
        {"id": "chat", "type": "inference.chat", "input": {"model": talker, "messages": [{"role": "user", "content": text}]}},
        {"id": "speak", "type": "inference.synthesize", "input": {"model": voice, "text": "${steps.chat.response}"}},
    ]
    await remote.gateway.call("pipeline.create", {"name": "said", "steps": steps})
    run = await remote.call("pipeline.run", pipeline_id="said")
    assert base64.b64decode(run["output"]["speak"]["audio"]) == b"OggS" + text.encode()


async def test_a_model_that_sees_is_shown_images_and_fetches_none(remote: Hosted, elsewhere: ThreadingHTTPServer, fixtures: Path) -> None:
    await remote.call("secret.put", name="remote_vendor", value=SECRET)
    model = await ready(remote, "eyes", "vlm")
    png = (fixtures / "square.png").read_bytes()

    def asked(url: Any) -> list[dict[str, Any]]:
        parts = [{"type": "text", "text": "What?"}, {"type": "image_url", "image_url": {"url": url, "detail": "low"}}]
        return [{"role": "user", "content": parts}]

    for url in (
        f"file:{fixtures / 'square.png'}",
        base64.b64encode(png).decode(),
        f"data:image/png;base64,{base64.b64encode(png).decode()}",
    ):
        said = await remote.call("inference.chat", model=model, messages=asked(url))
        assert said["content"] == f"What? {len(png)} bytes of image/png"
    for url in ("http://127.0.0.1/x.png", "https://example.org/x.png", "data:text/plain;base64,aGk=", 7):
        with pytest.raises(InvalidArgument, match=r"messages\[0\]\.content\[1\] is not the data of an image"):
            await remote.call("inference.chat", model=model, messages=asked(url))
    with pytest.raises(InvalidArgument, match=r"image_url\.url is not base64"):
        await remote.call("inference.chat", model=model, messages=asked("%%%"))


async def test_every_task_of_a_vendor_is_asked_in_its_own_words(remote: Hosted, elsewhere: ThreadingHTTPServer) -> None:
    await remote.call("secret.put", name="remote_vendor", value=SECRET)
    seen: list[tuple[str, Any]] = elsewhere.RequestHandlerClass.seen  # type: ignore[attr-defined]
    chat = await remote.call("inference.chat", model=await ready(remote, "talker", "llm"), messages=HELLO)
    record = (await remote.call("model.get", model_id="talker"))["model"]
    assert (record["format"], record["source"]["kind"], record["source"]["repo"]) == ("remote", "remote", "model-1")
    assert (chat["content"], chat["finish_reason"], chat["usage"]["total_tokens"]) == ("hello", "stop", 2)
    assert seen[-1][0] == "/v1/chat/completions" and seen[-1][1]["model"] == "model-1", "by the name it has there"
    said = await remote.call("inference.complete", model="talker", prompt="again")
    assert said["text"] == "again"
    vectors = await remote.call("inference.embed", model=await ready(remote, "vectors", "embedding"), input=["a", "b"])
    assert vectors["embeddings"] == [[0.6, 0.8]] * 2
    ranks = await remote.call("inference.rerank", model=await ready(remote, "ranks", "rerank"), query="q", documents=["a", "longer"])
    assert [row["index"] for row in ranks["results"]] == [1, 0]
    image = await remote.call("inference.generate_image", model=await ready(remote, "drawer", "diffusion"), prompt="x", n=2)
    assert [(row["width"], row["height"], row["media_type"]) for row in image["images"]] == [(1, 1, "image/png")] * 2
    speech = await remote.call("inference.synthesize", model=await ready(remote, "voice", "tts"), text="hi", voice="alloy", format="opus")
    assert (speech["media_type"], speech["voice"], speech["duration_seconds"]) == ("audio/ogg", "alloy", None)
    (remote.fixtures / "said.wav").write_bytes(spoken("hello"))
    await ready(remote, "ears", "asr")
    heard = await remote.call("inference.transcribe", model="ears", audio=f"file:{remote.fixtures / 'said.wav'}", language="en")
    assert (heard["text"], heard["language"], heard["duration_seconds"]) == ("heard", "english", 1.5)
    assert heard["segments"] == [{"start": 0.0, "end": 1.5, "text": "heard"}]
    form = seen[-1][1]
    assert b'name="model"\r\n\r\nmodel-1\r\n' in form and b'filename="audio.wav"' in form and b"RIFF" in form


async def test_the_key_is_in_no_argument_no_file_no_log_and_no_environment(remote: Hosted, home: Home) -> None:
    await remote.call("secret.put", name="remote_vendor", value=SECRET)
    await ready(remote, "talker", "llm")
    instance = remote.gateway.services.engines.instance("openai-talker")
    process = psutil.Process(instance["pid"])
    assert SECRET not in json.dumps([process.cmdline(), process.environ()])
    for path in home.path.rglob("*"):
        if path.is_file():
            assert SECRET.encode() not in path.read_bytes(), path


async def test_a_wrong_key_and_a_model_that_is_not_there_are_said_at_the_start(remote: Hosted) -> None:
    await remote.call("model.create", name="talker", type="llm", path="vendor:model-1")
    with pytest.raises(AimaError, match="refuses the key: put the secret remote_vendor"):
        await remote.call("engine.start", name="openai", model_id="talker")
    await remote.call("secret.put", name="remote_vendor", value=SECRET)
    await remote.call("model.create", name="ghost", type="llm", path="vendor:model-9")
    with pytest.raises(AimaError, match="has no model 'model-9'; it has model-1"):
        await remote.call("engine.start", name="openai", model_id="ghost")
    with pytest.raises((InvalidArgument, AimaError)):
        await remote.call("model.create", name="other", type="llm", path="stranger:model-1")


async def test_a_vendor_that_is_busy_is_unavailable_and_one_that_forgets_the_key_too(
    remote: Hosted, elsewhere: ThreadingHTTPServer
) -> None:
    await remote.call("secret.put", name="remote_vendor", value=SECRET)
    await ready(remote, "talker", "llm")
    elsewhere.RequestHandlerClass.status = 429  # type: ignore[attr-defined]
    with pytest.raises(Unavailable, match="429"):
        await remote.call("inference.chat", model="talker", messages=HELLO)
    elsewhere.RequestHandlerClass.status, elsewhere.RequestHandlerClass.key = 200, "another"  # type: ignore[attr-defined]
    with pytest.raises(Unavailable, match="refuses the key"):
        await remote.call("inference.chat", model="talker", messages=HELLO)


async def test_ollama_lets_go_of_its_model_when_the_engine_stops(remote: Hosted, elsewhere: ThreadingHTTPServer) -> None:
    elsewhere.RequestHandlerClass.key = ""  # type: ignore[attr-defined]
    await ready(remote, "llama", "llm", "ollama:model-1", "ollama")
    assert (await remote.call("inference.chat", model="llama", messages=HELLO))["content"] == "hello"
    with pytest.raises(InvalidArgument, match="llama is Ollama's"):
        await remote.call("engine.start", name="openai", model_id="llama")
    await remote.call("engine.stop", name="ollama")
    seen = elsewhere.RequestHandlerClass.seen  # type: ignore[attr-defined]
    assert seen[-1] == ("/api/generate", {"model": "model-1", "keep_alive": 0})


PACKAGES = {
    "vllm": ("vllm", "0.32.0", "vllm/entrypoints/cli/main.py", ("vllm", "vllm/entrypoints", "vllm/entrypoints/cli")),
    "sglang": ("sglang", "0.5.23", "sglang/launch_server.py", ("sglang",)),
    "transformers": (
        "transformers",
        "5.19.0",
        "transformers/cli/transformers.py",
        ("transformers", "transformers/cli", "torch", "fastapi"),
    ),
}


READS = {"transformers": {"max_position_embeddings": 64}}


def members(engine: str) -> dict[str, bytes]:
    package, version, program, folders = PACKAGES[engine]
    code = Path(vendor.__file__).read_text(encoding="utf-8").replace("if __name__", "main_ = main\nif __name__")
    if engine == "vllm":
        code = code.replace("main(sys.argv[1:])", "main(sys.argv[2:])")
    if engine == "transformers":
        code = code.replace("def main(words: list[str])", "def main(words=None)").replace("words = list(words)", "words = sys.argv[2:]")
    info = f"{package}-{version}.dist-info"
    found = {f"{folder}/__init__.py": b"" for folder in folders} | {program: code.encode()}
    found[f"{info}/METADATA"] = f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\nProvides-Extra: serving\n".encode()
    found[f"{info}/WHEEL"] = b"Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    return found | {f"{info}/RECORD": "".join(f"{name},,\n" for name in [*found, f"{info}/RECORD"]).encode()}


@pytest.fixture
def packages(hub: Hub) -> None:
    """Packages of those names on the tests' index."""
    for engine, (package, version, _, _) in PACKAGES.items():
        hub.add_wheel(package, version, members(engine))
    info = b"Metadata-Version: 2.1\nName: torch\nVersion: 2.13.0\n"
    torch = {"torch-2.13.0.dist-info/METADATA": info, "torch-2.13.0.dist-info/WHEEL": members("vllm")["vllm-0.32.0.dist-info/WHEEL"]}
    hub.add_wheel("torch", "2.13.0", torch | {"torch-2.13.0.dist-info/RECORD": b""})


@pytest.mark.parametrize(
    ("engine", "options", "words"),
    [
        (
            "vllm",
            {"context_length": 512, "memory_fraction": 0.5},
            {"--max-model-len": "512", "--gpu-memory-utilization": "0.5"},
        ),
        ("sglang", {"dtype": "bfloat16", "tensor_parallel": 2}, {"--dtype": "bfloat16", "--tp-size": "2", "--context-length": "4096"}),
        ("transformers", {"dtype": "float32"}, {"--dtype": "float32", "--device": "cpu"}),
    ],
)
async def test_a_server_of_its_own_environment_is_started_with_a_key(
    remote: Hosted, packages: None, home: Home, monkeypatch: pytest.MonkeyPatch, engine: str, options: dict[str, Any], words: dict[str, str]
) -> None:
    monkeypatch.setattr("aima_lib.services.installing.need_room", lambda folder, size: None)  # the real ones take many GiB
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)  # this machine's own may name places with every version of torch there is
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    made = await remote.call("engine.install", name=engine, version=PACKAGES[engine][1])
    assert made["installed"] and made["path"].endswith(f"engines/{engine}-{PACKAGES[engine][1]}")
    weights = remote.fixtures / f"weights-{engine}"
    weights.mkdir()
    header = b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    (weights / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    (weights / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"], **READS.get(engine, {})}), encoding="utf-8")
    await remote.call("model.import", path=str(weights), name=f"of-{engine}")
    instance = (await remote.call("engine.start", name=engine, model_id=f"of-{engine}", options=options))["instance"]
    said = await remote.call("inference.chat", model=instance["id"], messages=HELLO)
    assert (said["content"], said["finish_reason"], said["usage"]["total_tokens"]) == ("hello", "stop", 2)
    with pytest.raises(FailedPrecondition, match=f"of-{engine}.* can chat, complete, not embed") as refused:
        await remote.call("inference.embed", model=instance["id"], input=["a"])
    assert "embedding=true" not in str(refused.value.hint), "an option that it has not"
    if engine == "transformers":
        with pytest.raises(InvalidArgument, match="Unexpected fields in the request"):
            await remote.call("inference.chat", model=instance["id"], messages=HELLO, top_k=3)
        engines, long = remote.gateway.services.engines, [{"role": "user", "content": "word " * 65}]
        assert (await remote.call("inference.chat", model=instance["id"], messages=[{"role": "user", "content": "word " * 64}]))["content"]
        with pytest.raises(InvalidArgument, match=r"the prompt has 65 tokens and .* holds 64") as longer:
            await remote.call("inference.chat", model=instance["id"], messages=long)
        assert longer.value.details == {"prompt_tokens": 65, "context_length": 64}
        with pytest.raises(InvalidArgument, match="the prompt has 65 tokens"):
            await engines.wire.post(engines.address(instance), "/v1/chat/completions", {"model": f"of-{engine}", "messages": long})
    engines = remote.gateway.services.engines
    whole = await engines.wire.post(engines.address(instance), "/v1/chat/completions", {"model": f"of-{engine}", "messages": HELLO})
    streamed = {"model": f"of-{engine}", "messages": HELLO, "stream": True}
    names = {event["model"] async for event in engines.wire.stream(engines.address(instance), "/v1/chat/completions", streamed)}
    assert {whole["model"]} == names == {f"of-{engine}"}, "no path of this machine's"
    log = "\n".join(await remote.gateway.services.engines.logs(instance["id"]))
    started = json.loads(log.partition("WORDS ")[2].partition("\n")[0])
    assert words.items() <= started.items()
    assert remote.gateway.services.engines.key(instance) not in json.dumps([process.cmdline() for process in _tree(instance["pid"])])


def _tree(pid: int) -> list[psutil.Process]:
    return [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]


async def test_what_names_no_endpoint_is_a_path(hosted: Hosted) -> None:
    with pytest.raises((InvalidArgument, AimaError), match=r"not a file|not beneath"):
        await hosted.call("model.create", name="x", type="llm", path="vendor:model-1")
    engine = await hosted.call("engine.get", name="openai")
    assert "config.toml names no endpoint" in engine["engine"]["reason"]
    with pytest.raises(FailedPrecondition, match="cannot be imported"):
        await hosted.call("model.create", name="t", type="llm", path=str(hosted.fixtures / "tiny.gguf"))
        hosted.gateway.services.engines.catalog.forget("vllm")
        await hosted.gateway.services.engines.catalog.refuse_absent(hosted.gateway.services.engines.catalog.adapter("vllm"), {})
