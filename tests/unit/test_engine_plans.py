"""How engines are started, why they ended, where they run: pure decisions."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from aima_lib.engines.base import CHECKPOINTS, Engine, context_of, refuse_unknown
from aima_lib.engines.cause import cause
from aima_lib.engines.llama_server import LlamaServer
from aima_lib.engines.llamacpp import LlamaCpp
from aima_lib.errors import InvalidArgument
from aima_lib.registry import SCHEMAS
from aima_lib.services import placement

MODEL = {"id": "qwen", "type": "llm", "format": "gguf", "context_length": 32768}
CPU, GPU = {"id": "cpu", "type": "cpu"}, {"id": "gpu-0", "type": "gpu"}
PATH = Path("/models/qwen.gguf")
ENGINES: list[Engine] = [LlamaCpp(), LlamaServer("/opt/llama-server")]


@pytest.mark.parametrize("engine", ENGINES, ids=lambda engine: engine.name)
def test_every_option_of_the_schema_is_one_of_the_engine(engine: Engine) -> None:
    schema = json.loads((SCHEMAS / "types/engine_options.json").read_text(encoding="utf-8"))
    assert engine.options <= set(schema["properties"])
    with pytest.raises(InvalidArgument, match="no option 'threds'") as caught:
        refuse_unknown(engine, {"threds": 2})
    assert caught.value.hint == "did you mean threads?"
    assert engine.announces == engine.plan(MODEL, PATH, CPU, {"threads": 2}).announces, "known before anything is planned"


def test_llamacpp_keeps_to_the_cpu_unless_the_device_is_a_gpu() -> None:
    def spec(device: dict[str, Any], **options: Any) -> Any:
        return json.loads(LlamaCpp().plan(MODEL, PATH, device, {"threads": 2, **options}).files["spec.json"])

    assert spec(CPU, gpu_layers=9)["gpu_layers"] == 0
    assert spec(GPU)["gpu_layers"] is None, "llama.cpp fits as many as it can"
    assert spec(GPU, gpu_layers=9)["gpu_layers"] == 9
    assert Path(spec(CPU, chat_template="qwen-tools")["chat_template"]).is_file()


def test_llama_server_gets_its_key_by_file_and_the_whole_context_of_all_slots(tmp_path: Path) -> None:
    binary = tmp_path / "llama-server"
    binary.touch(0o755)
    launch = LlamaServer(str(binary)).plan(MODEL, PATH, CPU, {"threads": 2, "context_length": 1024, "parallel": 4})
    words = dict(zip(launch.argv[1:], launch.argv[2:], strict=False))
    assert (words["--ctx-size"], words["--api-key-file"], words["--port"]) == ("4096", "{folder}/key", "{port}")
    assert launch.env["LD_LIBRARY_PATH"].split(os.pathsep)[0] == str(tmp_path)


def test_a_model_is_spread_over_machines_that_the_owner_named() -> None:
    engine = LlamaServer("/opt/llama-server", {"desk": "10.0.0.5:50052", "attic": "10.0.0.6:50052"})
    launch = engine.plan(MODEL, PATH, CPU, {"threads": 2, "rpc": ["desk", "attic"]})
    words = dict(zip(launch.argv[1:], launch.argv[2:], strict=False))
    assert words["--rpc"] == "10.0.0.5:50052,10.0.0.6:50052"
    assert "--n-gpu-layers" not in words, "what they lend counts as a GPU, and as much goes there as fits"
    assert "--rpc" not in engine.plan(MODEL, PATH, CPU, {"threads": 2}).argv
    with pytest.raises(InvalidArgument, match=r"config.toml names no elsewhere under \[engines.rpc_servers\]") as refused:
        engine.plan(MODEL, PATH, CPU, {"threads": 2, "rpc": ["elsewhere"]})
    assert refused.value.hint == "there are: desk, attic"
    died = cause(["1.2 E ggml-rpc.cpp:712: Remote RPC server crashed or returned malformed response", "x"], -6, served=True)
    assert died == "ggml-rpc.cpp:712: Remote RPC server crashed or returned malformed response (it was ended by SIGABRT)"


def test_what_a_publisher_set_is_what_an_engine_begins_with(tmp_path: Path) -> None:
    model = MODEL | {"defaults": {"parameters": {"temperature": 0.7, "context_length": 8192, "stop": ["<|im_end|>"], "seed": 3}}}
    assert context_of(model, {}) == 8192 and context_of(model | {"context_length": 512}, {}) == 512
    assert context_of(model, {"context_length": 100}) == 100 and context_of(MODEL, {}) == 4096
    spec = json.loads(LlamaCpp().plan(model, PATH, CPU, {"threads": 2}).files["spec.json"])
    assert (spec["seed"], spec["defaults"]["stop"], spec["context_length"]) == (3, ["<|im_end|>"], 8192)
    launch = LlamaServer("/opt/llama-server").plan(model, PATH, CPU, {"threads": 2, "seed": 9})
    words = dict(zip(launch.argv[1:], launch.argv[2:], strict=False))
    assert (words["--temp"], words["--seed"], words["--ctx-size"]) == ("0.7", "9", "8192")


def test_an_embedding_model_embeds_and_a_text_fits_one_batch() -> None:
    launch = LlamaCpp().plan(MODEL | {"type": "embedding"}, PATH, CPU, {"threads": 2, "context_length": 1000})
    assert launch.tasks == ("embed",)
    assert json.loads(launch.files["spec.json"])["batch_size"] == 1000


def test_the_default_context_is_no_more_than_the_model_was_trained_for() -> None:
    assert context_of(MODEL, {}) == 4096
    assert context_of({"context_length": 1024}, {}) == 1024
    assert context_of({"context_length": None}, {}) == 4096


BAD = [
    "2026-11-22T16:42:00.123Z 0.00.005.604 E gguf_init_from_reader: invalid magic characters: 'root', expected 'GGUF'",
    "2026-11-22T16:42:00.124Z 0.00.006.164 E srv          init: exiting due to model loading error",
]
NOISE = ["2026-11-22T16:42:00.123Z 0.00.250.064 E srv    send_error: task id = 24, error: request (15020 tokens) exceeds it"]


@pytest.mark.parametrize(
    ("lines", "code", "served", "said"),
    [
        (BAD, 1, False, "gguf_init_from_reader: invalid magic characters: 'root', expected 'GGUF' (it ended with status 1)"),
        (["2026-11-22T16:42:00.123Z ModuleNotFoundError: No module named 'xllamacpp'"], 1, False, "ModuleNotFoundError: No module"),
        (["2026-11-22T16:42:00.123Z 0.1 E srv          init: something new"], 1, False, "something new (it ended with status 1)"),
        (NOISE, -9, True, "it was ended by SIGKILL: by the kernel for want of memory, or by somebody"),
        ([], -4, False, "SIGILL: it was built for instructions this CPU does not have"),
        ([], None, True, "it ended without a trace, as when its keeper is killed"),
    ],
)
def test_a_cause_is_one_line(lines: list[str], code: int | None, served: bool, said: str) -> None:
    assert cause(lines, code, served=served).startswith(said)


def announced(*rows: tuple[str, str, int, int]) -> dict[str, Any]:
    return {
        "url": "",
        "before": [{"name": name, "type": kind, "free_bytes": before} for name, kind, before, _ in rows],
        "after": [{"name": name, "type": kind, "free_bytes": after} for name, kind, _, after in rows],
    }


@pytest.mark.parametrize(
    ("seen", "gpus", "device", "said"),
    [
        (announced(("CPU", "cpu", 9, 9)), None, "cpu", "no GPU support"),
        (announced(("CPU", "cpu", 9, 9), ("CUDA0", "gpu", 8 << 30, 8 << 30)), None, "cpu", "put nothing there"),
        (announced(("CUDA0", "gpu", 8 << 30, 7 << 30)), None, "gpu-0", None),
        (None, [], "cpu", "lists no GPU"),
        (None, ["CUDA0: NVIDIA"], "gpu-0", None),
        (None, None, "gpu-0", None),
    ],
)
def test_a_fallback_is_seen_and_said(seen: dict[str, Any] | None, gpus: list[str] | None, device: str, said: str | None) -> None:
    instance = {"engine": "llamacpp", "device": "gpu-0", "placement": {"device": "gpu-0", "fallback": None}}
    found = placement.observed(instance, [CPU, GPU], seen, gpus)
    assert found["device"] == device
    assert said in found["fallback"] if said else found["fallback"] is None


def test_the_gpu_comes_first_unless_nothing_shall_go_there() -> None:
    assert placement.choose([CPU, GPU], {}) == (GPU, None)
    assert placement.choose([CPU, GPU], {"gpu_layers": 0}) == (CPU, None)
    assert placement.choose([CPU], {}) == (CPU, None)
    device, said = placement.choose([CPU], {"gpu_layers": 3})
    assert device == CPU
    assert said == "gpu_layers=3 was asked, but no GPU was detected on this machine"


def test_a_projector_and_a_cache_type_reach_the_engine(tmp_path: Path) -> None:
    model = MODEL | {"files": [{"name": "a.gguf"}, {"name": "mmproj-a.gguf"}]}
    options = {"threads": 2, "cache_type": "q8_0"}
    spec = json.loads(LlamaCpp().plan(model, tmp_path / "a.gguf", CPU, options).files["spec.json"])
    assert (spec["projector"], spec["cache_type"]) == (str(tmp_path / "mmproj-a.gguf"), "q8_0")
    argv = LlamaServer("llama-server").plan(model, tmp_path / "a.gguf", CPU, options).argv
    assert argv[argv.index("--mmproj") + 1] == str(tmp_path / "mmproj-a.gguf")
    assert argv[argv.index("--cache-type-k") + 1] == argv[argv.index("--cache-type-v") + 1] == "q8_0"
    assert json.loads(LlamaCpp().plan(MODEL, tmp_path / "a.gguf", CPU, {"threads": 2}).files["spec.json"])["projector"] is None


def test_copies_of_windows_are_few_and_counted(tmp_path: Path) -> None:
    launches = [LlamaCpp().plan(MODEL, tmp_path, CPU, {"threads": 1}), LlamaServer("x").plan(MODEL, tmp_path, CPU, {"threads": 1})]
    assert json.loads(launches[0].files["spec.json"])["checkpoints"] == CHECKPOINTS
    assert launches[1].env["LLAMA_ARG_CTX_CHECKPOINTS"] == str(CHECKPOINTS)
