"""How much memory a model takes, by formula: pure functions over a model's geometry and how it is run.

The formula is llama.cpp's own bookkeeping, found by comparing it with what the engine says and what its process takes.
What an engine was measured to take corrects it: see `measurements`.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from aima_lib.engines.base import CHECKPOINTS

DEFAULT_CONTEXT, BATCH, CELLS, SHORTEST = 4096, 512, 256, 512
MIB = 1 << 20
# Bytes of one element of a key or a value.
CACHE_TYPES: Mapping[str, float] = {
    "f32": 4,
    "f16": 2,
    "bf16": 2,
    "q8_0": 34 / 32,
    "q5_1": 24 / 32,
    "q5_0": 22 / 32,
    "q4_1": 20 / 32,
    "q4_0": 18 / 32,
}
# Bits of a weight, all in all, of files so quantized. From large to small.
QUANTIZATIONS: Mapping[str, float] = {
    "F32": 32, "BF16": 16, "F16": 16, "Q8_0": 8.5, "Q6_K": 6.56, "Q5_K_M": 5.69, "Q4_K_M": 4.85, "IQ4_XS": 4.32, "Q3_K_M": 3.91,
    "Q2_K": 3.0,
}  # fmt: skip
# What a process takes that has loaded nothing: Python or C, its libraries, its threads; and for each word of the vocabulary.
PROCESS_BYTES, WORD_BYTES = 76 * MIB, 80
# What an accelerator's runtime holds on it for each process: its context, its kernels, the libraries' workspaces. By the capability that
# the device has. CUDA: llama-server on an H200 (driver 580, CUDA 13): in fourteen starts of two models, 2.6 to 18 GiB, NVML counted 2 to
# 5 MiB less for its process than the whole formula says with this. Smaller chips take less.
RUNTIMES: Mapping[str, int] = {"cuda": 690 * MIB}
UNKNOWN_RUNTIME_BYTES = 1 << 30  # how much wider the interval is where nobody has measured it
# What llama.cpp lays out anew for a processor's vector units; the file's own pages stay mapped beside it.
REPACKED: Mapping[str, frozenset[str]] = {
    "x86_64": frozenset({"Q4_0", "Q4_K", "IQ4_NL", "Q2_K"}),
    "aarch64": frozenset({"Q4_0", "Q4_K", "Q5_K", "Q6_K", "Q8_0", "IQ4_NL"}),
}
# Copies of windows and states that adapters let llama.cpp keep for each request, to take up an older text again.
USUAL = 2
UNMEASURED = "what this GPU's runtime takes was never measured: the upper edge leaves 1 GiB for it"
Geometry = Mapping[str, Any]
Memory = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Load:
    """How a model is run: what changes the memory it takes."""

    context_length: int
    parallel: int = 1
    batch: int = BATCH
    cache_type: str = "f16"
    flash_attention: str = "auto"
    kind: str = "cpu"  # of the device: cpu or gpu
    runtime: str | None = None  # of a GPU, one of RUNTIMES
    shared: bool = False  # the GPU's memory is the processor's
    machine: str = ""  # its processor, as platform.machine() says


def groups_of(geometry: Geometry) -> list[Mapping[str, Any]] | None:
    """The layers by what they keep; None when the file does not tell. Records of older homes have the plain numbers only."""
    if "cache" in geometry:
        return None if geometry["cache"] is None else list(geometry["cache"])
    layers, kv_heads, key, value = (geometry.get(k) for k in ("block_count", "head_count_kv", "key_length", "value_length"))
    if layers is None or kv_heads is None or key is None or value is None:
        return None
    each = kv_heads if isinstance(kv_heads, list) else [kv_heads] * int(layers)
    return [{"layers": 1, "key_elements": heads * key, "value_elements": heads * value, "window": None} for heads in each]


def cache_bytes(geometry: Geometry, load: Load) -> int | None:
    """Keys, values and states of all requests, or None when the layers are not known."""
    groups = groups_of(geometry)
    if groups is None:
        return None
    width, elements = CACHE_TYPES[load.cache_type], 0
    for group in groups:
        elements += group["layers"] * (group["key_elements"] + group["value_elements"]) * _cells(group["window"], load)
    return int(elements * width + (geometry.get("state_elements") or 0) * 4) * load.parallel


def checkpoint_bytes(geometry: Geometry, load: Load) -> int:
    """One copy of every window and state: what it takes to take up an older text again, where that is not kept whole."""
    windows = [group for group in groups_of(geometry) or () if group["window"]]
    elements = sum(
        group["layers"] * (group["key_elements"] + group["value_elements"]) * min(group["window"], load.context_length) for group in windows
    )
    return int(elements * CACHE_TYPES[load.cache_type] + (geometry.get("state_elements") or 0) * 4)


def compute_bytes(geometry: Geometry, load: Load) -> int | None:
    """Buffers for one batch: the widest activations, the masks, the answers' logits; without flash attention also the scores."""
    width, vocabulary = geometry.get("embedding_length"), geometry.get("vocabulary_size")
    if width is None or vocabulary is None:
        return None
    inner = max(int(geometry.get("feed_forward_length") or 0), _expert_width(geometry))
    batch = min(load.batch, _padded(load.context_length))
    masks = sum({_cells(window, load) for window in {group["window"] for group in groups_of(geometry) or ()}}) * 2
    scores = 0
    if load.flash_attention == "off":
        masks *= 2
        scores = int(geometry.get("head_count") or 0) * _cells(None, load) * 4
    return batch * (max(4 * (3 * inner + 5 * int(width)), scores + 24 * int(width)) + masks) + load.parallel * int(vocabulary) * 4


def estimate(geometry: Geometry, weights_bytes: int | None, context_length: int, parallel: int, load: Load | None = None) -> Memory:
    """All parts, their sum, and the interval in which the peak will lie, by formula."""
    load = replace(load, context_length=context_length, parallel=parallel) if load else Load(context_length, parallel)
    weights = None if weights_bytes is None else max(weights_bytes - (geometry.get("projector_bytes") or 0), 0)
    cache, compute = cache_bytes(geometry, load), compute_bytes(geometry, load)
    projector = geometry.get("projector_bytes") or 0
    overhead, runtime, repacked = overhead_bytes(geometry, load), runtime_bytes(load), repacked_bytes(geometry, load)
    known = [part for part in (weights, cache, compute) if part is not None]
    copies = parallel * checkpoint_bytes(geometry, load)
    whole = sum(known) + projector + overhead + (runtime or 0) + repacked + USUAL * copies if len(known) == 3 else None
    slack = 96 * MIB + (CHECKPOINTS - USUAL) * copies + (UNKNOWN_RUNTIME_BYTES if runtime is None else 0)
    lowest = None if weights is None else weights + projector + (cache or 0)
    return {
        "weights_bytes": weights,
        "kv_cache_bytes": cache,
        "compute_bytes": compute,
        "projector_bytes": projector,
        "repacked_bytes": repacked,
        "checkpoint_bytes": USUAL * copies,
        "overhead_bytes": overhead,
        "runtime_bytes": runtime,
        "total_bytes": whole,
        "low_bytes": lowest,
        "high_bytes": None if whole is None else int(whole * 1.08) + slack,
        "basis": "formula",
        "observations": 0,
        "reason": _why(weights, cache, compute) or (UNMEASURED if runtime is None else None),
    }


def on(load: Load, device: Mapping[str, Any]) -> Load:
    """The same load on a device."""
    kind = str(device["type"])
    runtime = next((name for name in device.get("capabilities") or () if name in RUNTIMES), None) if kind == "gpu" else None
    return replace(load, kind=kind, runtime=runtime, shared=(device.get("memory") or {}).get("kind") == "unified")


def overhead_bytes(geometry: Geometry, load: Load) -> int:
    """What the engine's process takes by itself of the processor's memory."""
    return 0 if load.kind == "gpu" and not load.shared else PROCESS_BYTES + WORD_BYTES * int(geometry.get("vocabulary_size") or 0)


def runtime_bytes(load: Load) -> int | None:
    """What a GPU's runtime holds there for the process; None where that was never measured."""
    return 0 if load.kind != "gpu" else RUNTIMES[load.runtime] if load.runtime else None


def repacked_bytes(geometry: Geometry, load: Load) -> int:
    """A second copy of weights, laid out for the processor."""
    kinds = REPACKED.get((load.machine or platform.machine()).lower().replace("amd64", "x86_64").replace("arm64", "aarch64"), frozenset())
    own = geometry.get("embedding_bytes") or 0 if geometry.get("embedding_type") in kinds else 0  # words are looked up, not multiplied
    return 0 if load.kind == "gpu" else sum(size for kind, size in geometry.get("tensor_bytes", {}).items() if kind in kinds) - own


def _expert_width(geometry: Geometry) -> int:
    return int(geometry.get("expert_feed_forward_length") or 0) * int(geometry.get("expert_used_count") or 0)


def _cells(window: int | None, load: Load) -> int:
    """Positions that a layer keeps for one request."""
    whole = _padded(load.context_length)
    return whole if window is None else min(whole, _padded(window + load.batch))


def _padded(count: int) -> int:
    return -(-count // CELLS) * CELLS


def _why(weights_bytes: int | None, cache: int | None, compute: int | None) -> str | None:
    if weights_bytes is None:
        return "the source does not tell the size of the weights"
    if cache is None:
        return "the layers and heads of the model are not known before it is here"
    return "the vocabulary of the model is not known" if compute is None else None


# Whether it fits

# What it takes with this context, cache type and weights.
At = Callable[[int, str, int | None], Memory]


def fit(device_id: str, free_bytes: int | None, at: At, load: Load, model: Mapping[str, Any]) -> dict[str, Any]:
    """Whether it fits into that much free memory as admission judges it, why, and what would fit instead.

    `model` has geometry, quantization, and size_bytes.
    """
    needed = at(load.context_length, load.cache_type, None)
    if free_bytes is None:
        return _verdict(device_id, None, free_bytes, None, "the device does not tell how much memory is free")
    if needed["total_bytes"] is None:
        lowest = needed["low_bytes"]
        if lowest is not None and lowest > free_bytes:
            return _verdict(device_id, False, free_bytes, None, f"the weights alone take {_mib(lowest)}, {_mib(free_bytes)} are free")
        return _verdict(device_id, None, free_bytes, None, f"{needed['reason']}; {_mib(free_bytes)} are free")
    most = longest_context(free_bytes, at, load, model["geometry"].get("context_length"))
    high, total = needed["high_bytes"], needed["total_bytes"]
    text = f"needs {_gib(total)} to {_gib(high)} GiB, {_gib(free_bytes)} are free"  # short enough for a table
    if high <= free_bytes:
        return _verdict(device_id, True, free_bytes, most, text)
    instead = _instead(free_bytes, at, load, model, most)
    said = f"; {_shown(instead[0])} fit" if instead else "; nothing smaller fits"
    return _verdict(device_id, False, free_bytes, most, text + said, instead)


def longest_context(free_bytes: int, at: At, load: Load, trained: int | None) -> int | None:
    """The longest context, a multiple of 256 and at most the trained one, whose upper edge fits; 0 when none does, None when unknown."""
    if at(CELLS, load.cache_type, None)["high_bytes"] is None:
        return None
    low, high = 0, int(trained or 1 << 20)
    if at(high, load.cache_type, None)["high_bytes"] <= free_bytes:
        return high
    while high - low > CELLS:
        middle = (low + high) // 2 // CELLS * CELLS or CELLS
        if middle in (low, high):
            break
        low, high = (middle, high) if at(middle, load.cache_type, None)["high_bytes"] <= free_bytes else (low, middle)
    return low


def _instead(free_bytes: int, at: At, load: Load, model: Mapping[str, Any], most: int | None) -> list[dict[str, Any]]:
    """Up to three ways to make it fit, each by one change: a shorter context, a narrower cache, a smaller quantization."""
    found: list[dict[str, Any]] = []

    def consider(memory: Memory, **change: Any) -> bool:
        fits = memory["high_bytes"] is not None and memory["high_bytes"] <= free_bytes
        if fits:
            found.append({"context_length": None, "cache_type": None, "quantization": None, **change, "high_bytes": memory["high_bytes"]})
        return fits

    if most and SHORTEST <= most < load.context_length:
        consider(at(most, load.cache_type, None), context_length=most)
    whole_blocks = not (model["geometry"].get("key_length") or 0) % 32  # of which narrow types are made
    for narrow in ("q8_0", "q4_0") if whole_blocks else ():
        if CACHE_TYPES[narrow] < CACHE_TYPES[load.cache_type] and consider(at(load.context_length, narrow, None), cache_type=narrow):
            break
    bits, size = QUANTIZATIONS.get(str(model.get("quantization"))), model.get("size_bytes")
    for name, fewer in QUANTIZATIONS.items():
        if (
            bits
            and size
            and fewer < bits
            and consider(at(load.context_length, load.cache_type, int(size * fewer / bits)), quantization=name)
        ):
            break
    return found


def _shown(change: Mapping[str, Any]) -> str:
    if change["context_length"]:
        return f"{change['context_length']} tokens"
    if change["cache_type"]:
        return f"keys and values of {change['cache_type']}"
    return str(change["quantization"])


def _verdict(
    device_id: str, fits: bool | None, free: int | None, context: int | None, reason: str, instead: Sequence[Mapping[str, Any]] = ()
) -> dict[str, Any]:
    told = {"device_id": device_id, "fits": fits, "free_bytes": free, "max_context_length": context, "reason": reason}
    return told | {"instead": [dict(change) for change in instead]}


# Over several devices


def split(geometry: Geometry, memory: Memory, load: Load, free: Mapping[str, int], processor: str) -> list[dict[str, Any]]:
    """How llama.cpp would spread it: as many layers as fit on the GPUs, by their free memory, the rest with the processor.

    `free` holds the GPUs' free bytes. Empty when the layers or the sizes are not known.
    """
    layers = geometry.get("block_count")
    if not layers or memory["total_bytes"] is None or not free:
        return []
    weights, cache, compute = memory["weights_bytes"], memory["kv_cache_bytes"], memory["compute_bytes"]
    blocks = min(geometry.get("block_bytes") or weights, weights)
    each, rest = (blocks + cache) / layers, weights - blocks
    runtime = runtime_bytes(replace(load, kind="gpu"))
    fixed = compute + (UNKNOWN_RUNTIME_BYTES if runtime is None else runtime)
    room = {id: max(0, int((have - fixed) // each)) for id, have in free.items()}
    wanted, rows = layers, []
    for number, (id, most) in enumerate(sorted(room.items(), key=lambda entry: -entry[1])):
        left = len(room) - number
        taken = min(most, -(-wanted // left)) if sum(room.values()) >= layers else min(most, wanted)
        if taken:
            rows.append(_share(id, taken, layers, blocks, cache, fixed))
        wanted -= taken
    onboard = _share(
        processor, wanted, layers, blocks, cache, overhead_bytes(geometry, replace(load, kind="cpu")) + (compute if wanted else 0)
    )
    for key in ("weights_bytes", "total_bytes"):
        onboard[key] += rest + memory["projector_bytes"]
    return [*rows, onboard]


def _share(id: str, taken: int, layers: int, blocks: int, cache: int, fixed: int) -> dict[str, Any]:
    weights, kept = blocks * taken // layers, cache * taken // layers
    return {"device_id": id, "layers": taken, "weights_bytes": weights, "kv_cache_bytes": kept, "total_bytes": weights + kept + fixed}


def _gib(count: int) -> str:
    return f"{count / (1 << 30):.2f}" if count < 10 << 30 else f"{count / (1 << 30):.1f}"


def _mib(count: int) -> str:
    return f"{count / MIB:,.0f} MiB"
