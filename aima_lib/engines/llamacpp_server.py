"""The child process of the engine `llamacpp`: `python llamacpp_server.py FOLDER`.

Reads spec.json and key from the folder, loads the model, serves it on a port of the system's choice, and says where in ready.json.
It imports nothing of AIMA, so that a start costs the load and little else.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import xllamacpp as llama

POOLING = {
    "mean": llama.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN,
    "cls": llama.llama_pooling_type.LLAMA_POOLING_TYPE_CLS,
    "last": llama.llama_pooling_type.LLAMA_POOLING_TYPE_LAST,
}
FLASH_ATTENTION = {
    "auto": llama.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_AUTO,
    "on": llama.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_ENABLED,
    "off": llama.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED,
}
CACHE = {
    name: getattr(llama.ggml_type, f"GGML_TYPE_{name.upper()}") for name in ("f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0")
}
# What a request that says nothing gets, by the model's record and by llama.cpp.
SAMPLING: dict[str, tuple[str, type]] = {
    "temperature": ("temp", float),
    "top_k": ("top_k", int),
    "top_p": ("top_p", float),
    "min_p": ("min_p", float),
    "repeat_penalty": ("penalty_repeat", float),
    "presence_penalty": ("penalty_present", float),
    "frequency_penalty": ("penalty_freq", float),
}


def parameters(spec: dict[str, Any], key: str) -> Any:
    """llama.cpp's parameters for a spec."""
    wanted = llama.CommonParams()
    wanted.model.path = spec["model"]
    wanted.model_alias = {spec["alias"]}
    wanted.hostnames, wanted.port, wanted.api_keys = ["127.0.0.1"], spec["port"], [key]
    wanted.n_parallel = spec["parallel"]
    wanted.n_ctx = spec["context_length"] * spec["parallel"]  # llama.cpp divides it among the slots
    wanted.n_batch = wanted.n_ubatch = spec["batch_size"]
    wanted.cpuparams.n_threads = wanted.cpuparams_batch.n_threads = spec["threads"]
    wanted.flash_attn_type = FLASH_ATTENTION[spec["flash_attention"]]
    # Fitting is llama.cpp's own choice of how many layers go to the GPU; what comes of it is reported, see devices().
    wanted.fit_params = spec["gpu_layers"] is None
    if spec["gpu_layers"] is not None:
        wanted.n_gpu_layers = spec["gpu_layers"]
    if spec["embedding"]:
        wanted.embedding = True
        wanted.pooling_type = POOLING[spec["pooling"] or "mean"]
    if spec["rerank"]:
        wanted.embedding = True
        wanted.pooling_type = llama.llama_pooling_type.LLAMA_POOLING_TYPE_RANK
    if spec["projector"]:
        wanted.mmproj.path = spec["projector"]
    if spec["chat_template"]:
        wanted.chat_template = Path(spec["chat_template"]).read_text(encoding="utf-8")
    if spec["seed"] is not None:
        wanted.sampling.seed = spec["seed"]
    for name, value in spec["defaults"].items():
        if name in SAMPLING:
            field, kind = SAMPLING[name]
            setattr(wanted.sampling, field, kind(value))
    wanted.n_predict = int(spec["defaults"].get("max_tokens", -1))
    wanted.antiprompt = list(spec["defaults"].get("stop", []))
    # A prompt cache in memory (8 GiB by default) is beyond every estimate; slots show prompts; nobody browses here.
    # The same for copies of sliding windows: 32 of them for each request would be gigabytes.
    wanted.n_ctx_checkpoints = spec["checkpoints"]
    wanted.cache_type_k = wanted.cache_type_v = CACHE[spec["cache_type"]]
    wanted.cache_ram_mib, wanted.endpoint_slots, wanted.ui = 0, False, False
    return wanted


def devices() -> list[dict[str, Any]]:
    """What this build of llama.cpp can compute on, and how much of its memory is free."""
    rows = llama.get_device_info()
    return [{"name": row["name"], "type": row["type"].name.rpartition("_")[2].lower(), "free_bytes": row["memory_free"]} for row in rows]


def announce(folder: Path, content: dict[str, Any]) -> None:
    """Write ready.json in one step: nobody may read half of it."""
    fresh = folder / "ready.json.new"
    fresh.write_text(json.dumps(content), encoding="utf-8")
    os.replace(fresh, folder / "ready.json")


def main(folder: Path) -> None:
    spec = json.loads((folder / "spec.json").read_text(encoding="utf-8"))
    key = (folder / "key").read_text(encoding="utf-8").strip()
    before = devices()
    try:
        server = llama.Server(parameters(spec, key))
    except RuntimeError as error:
        sys.exit(f"E {error}")
    announce(folder, {"url": server.listening_address, "before": before, "after": devices()})
    while True:
        signal.pause()  # the server's own threads do the work


if __name__ == "__main__":
    main(Path(sys.argv[1]))
