"""How much memory a model takes, by formula: pure functions over a model's geometry."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# llama.cpp computes 512 positions at a time and keeps keys and values as 16-bit floats unless told otherwise.
BATCH, CACHE_BYTES, DEFAULT_CONTEXT = 512, 2, 4096
MIB = 1 << 20
Geometry = Mapping[str, Any]


def cache_bytes_per_token(geometry: Geometry) -> int | None:
    """Bytes of keys and values that one position of context takes, or None when the file does not tell."""
    layers, kv_heads, key, value = (geometry.get(k) for k in ("block_count", "head_count_kv", "key_length", "value_length"))
    if None in (layers, kv_heads, key, value):
        return None
    heads = sum(kv_heads) if isinstance(kv_heads, list) else int(layers or 0) * int(kv_heads or 0)
    return int(heads) * (int(key or 0) + int(value or 0)) * CACHE_BYTES


def compute_bytes(geometry: Geometry) -> int | None:
    """Bytes of the buffers for one batch: its logits and the widest activations."""
    width, vocabulary, inner = (geometry.get(k) for k in ("embedding_length", "vocabulary_size", "feed_forward_length"))
    if width is None or vocabulary is None:
        return None
    return BATCH * 4 * (int(vocabulary) + 4 * int(width) + 2 * int(inner or 0))


def estimate(geometry: Geometry, weights_bytes: int | None, context_length: int, parallel: int) -> dict[str, Any]:
    """Weights, cache and buffers, with an interval: caches of sliding windows are smaller, runtimes and drivers add their own."""
    per_token, compute = cache_bytes_per_token(geometry), compute_bytes(geometry)
    cache = None if per_token is None else per_token * context_length * parallel
    known = [part for part in (weights_bytes, cache, compute) if part is not None]
    whole = sum(known) if len(known) == 3 else None
    lowest = None if weights_bytes is None else weights_bytes + (0 if geometry.get("sliding_window") else cache or 0)
    return {
        "weights_bytes": weights_bytes,
        "kv_cache_bytes": cache,
        "compute_bytes": compute,
        "total_bytes": whole,
        "low_bytes": lowest,
        "high_bytes": None if whole is None else int(whole * 1.1) + 192 * MIB,
        "basis": "formula",
        "observations": 0,
        "reason": None if whole is not None else _why(weights_bytes, cache),
    }


def _why(weights_bytes: int | None, cache: int | None) -> str:
    if weights_bytes is None:
        return "the source does not tell the size of the weights"
    return (
        "the layers and heads of the model are not known before it is here" if cache is None else "the vocabulary of the model is not known"
    )


def fit(
    device_id: str, free_bytes: int | None, memory: Mapping[str, Any], geometry: Geometry, context_length: int, parallel: int
) -> dict[str, Any]:
    """Whether it fits into that much free memory, and why."""
    needed = memory["total_bytes"]
    if free_bytes is None:
        return _verdict(device_id, None, free_bytes, None, "the device does not tell how much memory is free")
    if needed is None:
        lowest = memory["low_bytes"]
        if lowest is not None and lowest > free_bytes:
            return _verdict(device_id, False, free_bytes, None, f"the weights alone take {_mib(lowest)}, {_mib(free_bytes)} are free")
        return _verdict(device_id, None, free_bytes, None, f"{memory['reason']}; {_mib(free_bytes)} are free")
    most = _longest_context(free_bytes, memory, geometry, parallel)
    text = f"needs {_mib(needed)} at {context_length} tokens × {parallel}, {_mib(free_bytes)} are free"
    if needed <= free_bytes:
        tight = "; close: the upper estimate is more" if memory["high_bytes"] > free_bytes else ""
        return _verdict(device_id, True, free_bytes, most, text + tight)
    rest = f"; {most} tokens would fit" if most else "; not even a short context fits"
    return _verdict(device_id, False, free_bytes, most, text + rest)


def _longest_context(free_bytes: int, memory: Mapping[str, Any], geometry: Geometry, parallel: int) -> int | None:
    per_token = cache_bytes_per_token(geometry)
    if not per_token:
        return None
    room = free_bytes - int(memory["weights_bytes"]) - int(memory["compute_bytes"])
    longest = max(0, room // (per_token * parallel))
    trained = geometry.get("context_length")
    return min(longest, int(trained)) if trained else longest


def _verdict(device_id: str, fits: bool | None, free: int | None, context: int | None, reason: str) -> dict[str, Any]:
    return {"device_id": device_id, "fits": fits, "free_bytes": free, "max_context_length": context, "reason": reason}


def _mib(count: int) -> str:
    return f"{count / MIB:,.0f} MiB"
