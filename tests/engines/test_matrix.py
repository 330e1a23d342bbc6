"""Real engines with real models: what each was asked, how long it took to be ready, what it held, and what came of it.

`pytest -m engine` prints the table. The models are in `.models` (see tests/models.py); a row whose engine or model is not here says so. With
AIMA_TEST_INSTALL=1 engines that are not importable are installed, each into an environment of its own, from the package index.
"""

from __future__ import annotations

import base64
import io
import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import numpy
import pytest
from PIL import Image, ImageSequence

from aima_lib import runtime
from aima_lib.infra.home import Home
from aima_lib.launchers import process
from tests.engines.conftest import ROWS, Hosted
from tests.world import ROOT, ROOTS

pytestmark = [pytest.mark.anyio, pytest.mark.engine]
MODELS = ROOT / ".models"
SENTENCES = (
    "The committee will meet again on Thursday morning.",
    "She sells fresh bread and coffee near the old station.",
    "Please close the window before it starts to rain.",
)
# The mean of each class of scikit-learn's digits, a sign a pixel from 0 to g.
MEANS = """004db30001ddbb1004e52c4005d2096006c1097003d22b6001daad20004ed500
0029a610004de810017fe710029ee600017ce600005ad600005be8210029d931
01aea20005ecd6000585c6000125c4000019a200015c721001becb7101aedc82
018ee71004d9bc200243c9100019e6000016cb2000114c6001768d60019fe910
0007b200003d821001ab564005e67b6009fade5006bcfa200138d4000018c200
01adec4004fc862006e6210005ec940002889820001478200168b71001bf9300
001ba100007f610001da100002e8420004fdca3002fb6a9000ad6bb1001bfd40
005deb5101bcbc5101527b300146cc50019dfb40015cb410003c6000006c2000
005cc61002cb9c3003c78c20019dd710007ed40001b9981001b88a20005dd710
006cb62002daab3004c68e3002acde4000355c5000112a6001656b50006cd920"""
TOOL = {
    "type": "function",
    "function": {"name": "get_weather", "parameters": {"type": "object", "required": ["city"], "properties": {"city": {"type": "string"}}}},
}


class Matrix(Hosted):
    """Serves one model at a time and writes rows."""

    home: Home

    async def serve(self, engine: str, model: str, **options: Any) -> dict[str, str]:
        """What the row begins with, once the model is served."""
        began = time.monotonic()
        await self.call("service.create", model_id=model, engine=engine, options=options)
        seconds = time.monotonic() - began
        instance = self.gateway.services.engines.instance(f"{engine}-{model}")
        held = process.rss_bytes(self.home.path, instance["id"])
        return {"engine": engine, "model": model, "ready": f"{seconds:.1f}", "rss": f"{held / 1e6:.0f}"}

    async def installed(self, engine: str) -> None:
        """Skips the test where the engine is not here and is not to be installed."""
        found = (await self.call("engine.get", name=engine))["engine"]
        if not found["installed"] and os.environ.get("AIMA_TEST_INSTALL") != "1":
            absent(engine, found["reason"])
        await self.call("engine.install", name=engine)


def write(begun: Mapping[str, str], task: str, result: str) -> None:
    ROWS.append((begun["engine"], task, begun["model"], begun["ready"], begun["rss"], result))


def absent(engine: str, why: str) -> None:
    ROWS.append((engine, "-", "-", "-", "-", f"not run: {why[:90]}"))
    pytest.skip(why)


def model_at(name: str, engine: str) -> str:
    path = MODELS / name
    if not path.exists():
        absent(engine, f".models/{name} is not there")
    return str(path)


@pytest.fixture
async def matrix(home: Home, fixtures: Path, anyio_backend: str) -> AsyncIterator[Matrix]:
    roots = ROOTS.replace("roots = {", f'roots = {{models = "{MODELS}", ')
    (home.path / "config.toml").write_text("[engines]\ngrace_seconds = 1\nmemory_reserve_fraction = 0.02\n" + roots, encoding="utf-8")
    async with runtime.host(home) as gateway:
        found = Matrix(gateway, fixtures)
        found.home = home
        try:
            yield found
        finally:
            for instance in gateway.services.store.find("instance"):
                await gateway.services.engines.end(instance["id"], 1.0)


def words(text: str) -> list[str]:
    return re.findall(r"[a-z']+", text.lower())


def wrong(said: str, heard: str) -> int:
    """Edits between two texts, word by word."""
    one, other = words(said), words(heard)
    row = list(range(len(other) + 1))
    for place, word in enumerate(one, 1):
        last, row[0] = row[0], place
        for at, heard_word in enumerate(other, 1):
            last, row[at] = row[at], min(row[at] + 1, row[at - 1] + 1, last + (word != heard_word))
    return row[-1]


async def heard_back(matrix: Matrix, voice: str) -> tuple[float, float]:
    """The share of words that Whisper hears wrong of what a voice says, and seconds of work a second of speech."""
    errors, count, spent, spoken = 0, 0, 0.0, 0.0
    for sentence in SENTENCES:
        began = time.monotonic()
        said = await matrix.call("inference.synthesize", model=voice, text=sentence)
        spent, spoken = spent + time.monotonic() - began, spoken + said["duration_seconds"]
        heard = await matrix.call("inference.transcribe", model="hears", audio=said["audio"], language="en")
        assert heard["duration_seconds"] == pytest.approx(said["duration_seconds"], abs=0.1)
        errors, count = errors + wrong(sentence, heard["text"]), count + len(words(sentence))
    return errors / count, spent / spoken


async def ears(matrix: Matrix) -> dict[str, str]:
    await matrix.installed("faster-whisper")
    await matrix.call("model.import", path=model_at("hears", "faster-whisper"), name="hears", mode="copy")
    return await matrix.serve("faster-whisper", "hears")


async def test_espeak_is_heard_by_whisper(matrix: Matrix) -> None:
    if shutil.which("espeak-ng") is None:
        absent("espeak-ng", "there is no espeak-ng on PATH")
    await matrix.call("engine.install", name="espeak-ng")
    voice, listener = await matrix.serve("espeak-ng", "espeak-ng"), await ears(matrix)
    share, pace = await heard_back(matrix, "espeak-ng")
    write(voice, "synthesize", f"{pace:.2f} s a second of speech; transcribed back with {share:.0%} of words wrong")
    write(listener, "transcribe", f"WER {share:.0%} on {len(SENTENCES)} sentences of espeak-ng")
    assert share <= 0.35


@pytest.mark.parametrize(("engine", "most"), [("piper", 0.15), ("kokoro", 0.15)])
async def test_a_network_speaks_and_is_heard(matrix: Matrix, engine: str, most: float) -> None:
    path = model_at(engine, engine)
    await matrix.installed(engine)
    file = next(iter(Path(path).glob("*.onnx"))) if engine == "piper" else Path(path)
    await matrix.call("model.import", path=str(file), name=f"{engine}-voice", type="tts", mode="copy")
    voice = await matrix.serve(engine, f"{engine}-voice")
    await ears(matrix)
    share, pace = await heard_back(matrix, f"{engine}-voice")
    write(voice, "synthesize", f"{pace:.2f} s a second of speech; transcribed back with {share:.0%} of words wrong")
    assert share <= most


def read_digit(image: Any) -> int:
    """Which digit's mean an 8 by 8 image is nearest to."""
    means = numpy.array([[int(sign, 17) for sign in line] for line in MEANS.split()], float)
    flat = image.reshape(-1).astype(float)
    means, flat = means - means.mean(axis=1, keepdims=True), flat - flat.mean()
    return int((means @ flat / numpy.linalg.norm(means, axis=1)).argmax())


async def test_digits_are_drawn_and_read_back(matrix: Matrix) -> None:
    await matrix.installed("onnx")
    drawer = await matrix.serve("onnx", "digits8")
    right, began = 0, time.monotonic()
    for digit in range(10):
        made = await matrix.call("inference.generate_image", model="digits8", prompt=f"a {digit}", n=10, seed=digit * 100)
        for row in made["images"]:
            right += read_digit(numpy.array(Image.open(io.BytesIO(base64.b64decode(row["image"]))))) == digit
    write(drawer, "generate_image", f"{right} of 100 read back; {(time.monotonic() - began) / 100:.3f} s an image")
    assert right >= 85
    video = await matrix.call(
        "inference.generate_video", model="digits8", prompt="3 then 8", duration_seconds=1, fps=8, format="gif", size="8x8", seed=5
    )
    data = await bytes_of(matrix, video["video"])
    frames = [numpy.array(frame.convert("L")) for frame in ImageSequence.Iterator(Image.open(io.BytesIO(data)))]
    read = [read_digit(frame) for frame in (frames[0], frames[-1])]
    said = f"gif of {len(frames)} frames, the first a {read[0]}, the last a {read[1]}"
    if shutil.which("ffprobe"):
        movie = await matrix.call(
            "inference.generate_video", model="digits8", prompt="3 then 8", duration_seconds=1, fps=8, format="mp4", seed=5
        )
        said += f"; mp4 of {await probed(matrix, movie)}"
    write(drawer, "generate_video", said)
    assert read == [3, 8]


async def bytes_of(matrix: Matrix, value: str) -> bytes:
    if value.startswith("aima://"):
        value = (await matrix.gateway.read(value))["content"]["content"]
    return base64.b64decode(value)


async def probed(matrix: Matrix, movie: Mapping[str, Any]) -> str:
    """What ffprobe counts of a video."""
    words = [
        "ffprobe",
        "-v",
        "error",
        "-count_frames",
        "-select_streams",
        "v",
        "-show_entries",
        "stream=codec_name,width,height,nb_read_frames",
        "-of",
        "csv=p=0",
        "-",
    ]
    done = subprocess.run(words, input=await bytes_of(matrix, movie["video"]), capture_output=True, check=True)
    codec, width, height, frames = done.stdout.decode().strip().split(",")[:4]
    assert (codec, int(width), int(height), int(frames)) == ("h264", movie["width"], movie["height"], movie["frames"])
    return f"{frames} frames, {codec}"


async def test_people_are_found(matrix: Matrix) -> None:
    await matrix.installed("onnx")
    path = model_at("sees", "onnx")
    await matrix.call("model.import", path=path, name="sees", type="detection", mode="copy")
    finder = await matrix.serve("onnx", "sees")
    began = time.monotonic()
    found = await matrix.call("inference.detect", model="sees", image=f"file:{path}/samples.jpg", threshold=0.3)
    best = found["detections"][0]
    seconds = time.monotonic() - began
    write(finder, "detect", f"{best['label']} {best['confidence']:.2f} and {len(found['detections']) - 1} more; {seconds:.1f} s")
    assert any(row["label"] == "person" for row in found["detections"])


async def test_texts_become_vectors_and_ranks(matrix: Matrix, fixtures: Path) -> None:
    await matrix.installed("onnx")
    await matrix.call("model.import", path=str(fixtures / "ranks"), name="ranks", type="rerank", mode="copy")
    ranker = await matrix.serve("onnx", "ranks")
    ranked = await matrix.call(
        "inference.rerank", model="ranks", query="where do cats sleep", documents=["stocks fell", "cats sleep on the sofa"]
    )
    write(ranker, "rerank", f"a network made for the tests: {[(row['index'], round(row['score'], 2)) for row in ranked['results']]}")
    assert ranked["results"][0]["index"] == 1
    name = "embeds.gguf" if (MODELS / "embeds.gguf").exists() else None
    await matrix.call(
        "model.import", path=str(MODELS / name) if name else str(fixtures / "tiny.gguf"), name="embeds", type="embedding", mode="copy"
    )
    embedder = await matrix.serve("llamacpp", "embeds", context_length=256)
    vectors = (await matrix.call("inference.embed", model="embeds", input=["a cat sleeps", "the kitten is asleep", "stocks fell"]))[
        "embeddings"
    ]
    near, far = (
        numpy.dot(vectors[0], vectors[place]) / numpy.prod([numpy.linalg.norm(vectors[at]) for at in (0, place)]) for place in (1, 2)
    )
    write(
        embedder,
        "embed",
        f"{len(vectors[0])} numbers; cosine of like {near:.2f}, of unlike {far:.2f}"
        if name
        else f"random weights: {len(vectors[0])} numbers",
    )
    assert not name or near > far


async def test_chat_tools_and_json(matrix: Matrix) -> None:
    path = model_at("chat.gguf", "llamacpp")
    await matrix.call("model.import", path=path, name="chat")
    talker = await matrix.serve("llamacpp", "chat", chat_template="qwen-tools", context_length=2048)
    ask = {"model": "chat", "temperature": 0, "seed": 1, "max_tokens": 60}
    said = await matrix.call("inference.chat", **ask, messages=[{"role": "user", "content": "What is the capital of France?"}])
    write(talker, "chat", f"{said['content'][:60]!r}, {said['timings']['tokens_per_second']} tokens/s")
    assert "Paris" in said["content"]
    called = await matrix.call(
        "inference.chat", **ask, messages=[{"role": "user", "content": "What is the weather in Oslo?"}], tools=[TOOL]
    )
    write(talker, "tools", json.dumps(called["tool_calls"][0]["function"]))
    assert "Oslo" in called["tool_calls"][0]["function"]["arguments"]
    schema = {"type": "object", "required": ["city"], "properties": {"city": {"type": "string"}}, "additionalProperties": False}
    obeyed = await matrix.call(
        "inference.chat", **ask, messages=[{"role": "user", "content": "Name the capital of Japan as JSON."}],
        response_format={"type": "json_schema", "json_schema": {"schema": schema}},
    )  # fmt: skip
    write(talker, "JSON schema", json.dumps(json.loads(obeyed["content"])))
    assert set(json.loads(obeyed["content"])) == {"city"}
    done = await matrix.call("inference.complete", model="chat", prompt="def add(a, b):\n    return", max_tokens=8, temperature=0, seed=1)
    write(talker, "complete", repr(done["text"]))
    assert "a + b" in done["text"]
