"""Each pipeline that comes with AIMA, run as docs/pipelines.md shows it, and the overview's own YAML through every door.

The models are real where `.models` has them (see tests/models.py) and their engines are here, and small ones of the tests elsewhere; llama.cpp,
the drawer of digits and the vector table are real everywhere. No vision model can be had here: a small server stands for one.
"""

from __future__ import annotations

import base64
import importlib.util
import json
import re
import shlex
import shutil
import subprocess
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from anyio.from_thread import start_blocking_portal

from aima_lib import Aima
from tests import vendor
from tests.contract.conftest import Faces
from tests.contract.faces import carried_out
from tests.flows import OVERVIEW
from tests.hub import Hub
from tests.world import ROOT, HostProcess, World, environment

pytestmark = pytest.mark.engine
MODELS = ROOT / ".models"
HEARS = (MODELS / "hears").is_dir() and shutil.which("espeak-ng") is not None and importlib.util.find_spec("faster_whisper") is not None
CHATS, SEES = (MODELS / "chat.gguf").exists(), (MODELS / "sees").is_dir()
ALIASES = {
    "whisper": "hears", "llama3.2": "chat", "tts-1": "espeak-ng", "nomic-embed-text": "chat", "detector": "sees",
    "stable-diffusion": "digits8",
}  # fmt: skip
QUESTION, TEXTS = "Where do cats sleep?", ["stocks fell on monday", "cats sleep on the sofa"]
FACES = ("library", "http", "mcp_http", "cli")
PAGE = (ROOT / "docs" / "pipelines.md").read_text(encoding="utf-8")
COMMANDS = {
    line.split()[3]: shlex.split(line)[1:]
    for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)
    for line in block.replace("\\\n", "").splitlines()
    if line.startswith("aima pipeline run ")
}


@pytest.fixture(scope="module")
def eyes() -> Iterator[str]:
    """Where something listens that answers as a vision model does."""
    server = vendor.listen()
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def furnished(python: Path, hub: Hub, eyes: str, fixtures: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A host of the installed wheel that has each model by the name that a pipeline looks for."""
    folder = tmp_path_factory.mktemp("pipelines")
    for name, is_real in (("hears", HEARS), ("sees", SEES)):
        shutil.copytree((MODELS if is_real else fixtures) / name, folder / name)
    chat = MODELS / "chat.gguf" if CHATS else fixtures / "tiny.gguf"
    shutil.copy(chat, folder / "chat.gguf")
    shutil.copytree(fixtures / "ranks", folder / "ranks")
    shutil.copy((MODELS / "sees" / "samples.jpg") if SEES else fixtures / "square.png", folder / "photo.jpg")
    aliases = "".join(f'"{name}" = "{model}"\n' for name, model in ALIASES.items())
    engines = "grace_seconds = 2\nmemory_reserve_fraction = 0.02\n" + ("" if HEARS else f'espeak_ng = "{fixtures / "espeak-ng"}"\n')
    config = f'[models.aliases]\n{aliases}[engines]\n{engines}[engines.remotes]\neyes = "{eyes}"\n{hub.config}'
    host = HostProcess(python, tmp_path_factory.mktemp("home") / "home", folder, config).start()
    try:
        with Aima(host.home.path) as library, host.client() as http:
            world = World(host, library, http, folder, {})
            serve(world)
            yield world
    finally:
        host.stop()


def serve(world: World) -> None:
    """Bring in every model, and have it served; then a question as sound, and a collection to look in."""
    kinds = {"hears": None, "chat.gguf": None, "sees": "detection", "ranks": "rerank"}
    for file, kind in kinds.items():
        world.call(
            "model.import", path=str(world.folder / file), name=file.partition(".")[0], **({"type": kind} if kind else {}), mode="copy"
        )
    for engine in ("espeak-ng", "onnx"):
        world.call("engine.install", name=engine)
    if not HEARS:
        world.call("engine.install", name="faster-whisper", version="1.2.1")
    world.call("model.create", name="eyes", type="vlm", path="eyes:model-1")
    world.call("secret.put", name="remote_eyes", value="none")
    options = {"chat": {"context_length": 2048 if CHATS else 640, "embedding": True}}
    with ThreadPoolExecutor(4) as threads:  # an engine's start is mostly waiting
        models = ("chat", "hears", "espeak-ng", "sees", "ranks", "digits8", "eyes")
        list(threads.map(lambda model: world.call("service.create", model_id=model, options=options.get(model, {})), models))
    aima(world, "inference", "synthesize", "tts-1", "--text", QUESTION, "--out", "question.wav")
    vectors = world.call("inference.embed", model="nomic-embed-text", input=TEXTS)["embeddings"]
    world.call("vector.put", collection="cats", embeddings=vectors, documents=TEXTS)


def aima(world: World, *words: str) -> str:
    """What the command line prints."""
    command = [str(world.host.python), "-m", "aima_mcp.main", *words]
    around = environment(world.home.path)
    done = subprocess.run(command, capture_output=True, text=True, cwd=world.folder, env=around, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def shown(world: World, name: str, *more: str) -> Mapping[str, Any]:
    """The output of the command that the page shows."""
    output: Mapping[str, Any] = json.loads(aima(world, *COMMANDS[name], *more, "--json"))["output"]
    return output


def heard(world: World, audio: str) -> str:
    return str(world.call("inference.transcribe", model="whisper", audio=audio)["text"])


def test_each_is_on_the_page_and_can_run(furnished: World) -> None:
    found = {row["id"]: row for row in furnished.call("pipeline.list", source="builtin")["pipelines"]}
    assert set(found) == set(COMMANDS)
    reasons = {id: row["reason"] for id, row in found.items()}
    assert reasons == dict.fromkeys(found) | {"vision_chat": "must be named: input.model (its own, llava, is not)"}
    assert all(row["runnable"] for row in found.values())


def test_voice_assistant(furnished: World) -> None:
    output = shown(furnished, "voice_assistant")
    assert "cats sleep" in output["question"].lower()
    assert output["answer"]
    assert len(heard(furnished, output["audio"]).split()) > 1


def test_rag(furnished: World) -> None:
    near = shown(furnished, "rag")
    assert near["answer"]
    assert {source["document"] for source in near["sources"]} == set(TEXTS)
    ranked = shown(furnished, "rag", "--input.rerank_model", "ranks", "--input.top_n", "1")
    assert [source["document"] for source in ranked["sources"]] == [TEXTS[1]]


def test_batch_inference(furnished: World) -> None:
    output = shown(furnished, "batch_inference", "--input.max_tokens", "6")
    assert [bool(answer) for answer in output["answers"]] == [True, True]
    assert len(output["finish_reasons"]) == 2


def test_vision_chat(furnished: World) -> None:
    size = (furnished.folder / "photo.jpg").stat().st_size
    output = shown(furnished, "vision_chat", "--input.model", "eyes")
    assert output["answer"] == f"What is in this image? {size} bytes of image/{'jpeg' if SEES else 'png'}"
    with pytest.raises(Exception, match="is not the data of an image"):
        furnished.aima.pipeline.run(pipeline_id="vision_chat", input={"model": "eyes", "image": "http://127.0.0.1/x.png"})
    with pytest.raises(Exception, match="reads text only"):
        furnished.aima.pipeline.run(pipeline_id="vision_chat", input={"model": "chat", "image": "file:photo.jpg"})


def test_content_gen(furnished: World) -> None:
    found: list[Mapping[str, Any]] = []
    model = () if CHATS else ("--input.chat_model", "eyes")  # which says what it is told
    refusals = 0
    while not found:  # the drawer takes only what names a single digit, which a small model does now and then
        try:
            found.append(shown(furnished, "content_gen", "--input.seed", str(refusals + 1), *model))
        except AssertionError as error:
            refusals += 1
            assert "step draw: onnx-digits8 refused" in str(error) and refusals < 15 and CHATS, error
    assert found[0]["text"] and found[0]["prompt"]
    [image] = found[0]["images"]
    assert base64.b64decode(image["image"]).startswith(b"\x89PNG")


def test_detect_describe(furnished: World) -> None:
    output = shown(furnished, "detect_describe", "--input.threshold", "0.5" if SEES else "0.3")
    assert ("person" if SEES else "bright") in output["labels"]
    assert output["description"]


@pytest.fixture(scope="module")
def doors(furnished: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Faces]:
    with start_blocking_portal("asyncio") as portal:
        opened = Faces(furnished, portal, tmp_path_factory.mktemp("unused"), "")
        yield opened
        opened.close()


@pytest.mark.parametrize("face", FACES)
def test_the_overviews_yaml_runs_as_it_stands(furnished: World, doors: Faces, face: str) -> None:
    through, owner = doors[face], doors["library"]
    assert through.call("pipeline.validate", {"definition": OVERVIEW}).body == {"valid": True, "issues": []}
    made = carried_out(through, owner, "pipeline.create", {"definition": OVERVIEW})
    assert made.code == "ok", made.body
    about = made.body["pipeline"]
    assert (about["source"], about["shadows_builtin"], about["runnable"], about["reason"]) == ("user", True, True, None)
    try:
        ran = carried_out(through, owner, "pipeline.run", {"pipeline_id": "voice_assistant", "input": {"audio": "file:question.wav"}})
        assert ran.code == "ok", ran.body
        spoken = ran.body["output"]["synthesize"]
        assert spoken["media_type"] == "audio/wav" and spoken["duration_seconds"] > 0
        steps = through.call("pipeline.status", {"run_id": ran.body["run_id"]}).body["steps"]
        assert [(step["id"], step["status"]) for step in steps] == [(id, "succeeded") for id in ("transcribe", "chat", "synthesize")]
    finally:
        furnished.call("pipeline.delete", pipeline_id="voice_assistant")


def test_types_are_checked_through_the_references_of_the_overviews_yaml(furnished: World) -> None:
    wrong = OVERVIEW.replace("steps.chat.response", "steps.chat.usage")
    issues = furnished.call("pipeline.validate", definition=wrong)["issues"]
    assert [(issue["path"], issue["line"]) for issue in issues] == [("steps[2].input.text", 19)]
