"""The shape of a network as a memory estimate needs it: what each kind of layer keeps of the text before.

A model's `cache` is a list of groups of layers that keep alike: {layers, key_elements, value_elements, window}. Grouped queries have fewer
key and value heads, latent attention (MLA) keeps one narrow key and no value, a window keeps no more than its width, and a layer with a
state (Mamba, linear attention) keeps the same few numbers whatever the length: `state_elements`. So the formula knows no architecture.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from aima_lib.infra.gguf import Head
from aima_lib.infra.kinds import FORGETFUL, LINEAR_EVERY, WINDOW_EVERY

MOST_LAYERS = 4096
Geometry = dict[str, Any]
# Layer → (elements of a key, elements of a value, window).
Kept = tuple[int, int, int | None]


def of_gguf(head: Head) -> Geometry:
    """The numbers that a memory estimate needs, None where the file does not say."""
    get = head.of_architecture
    width, heads = _whole(get("embedding_length")), get("attention.head_count")
    count = _whole(_largest(heads))
    each = width // count if width and count else None
    kv = get("attention.head_count_kv")
    found: Geometry = {
        "block_count": _whole(get("block_count")),
        "head_count": count,
        "head_count_kv": _counts(kv if kv is not None else heads),
        "key_length": _whole(get("attention.key_length")) or each,
        "value_length": _whole(get("attention.value_length")) or each,
        "embedding_length": width,
        "feed_forward_length": _whole(_largest(get("feed_forward_length"))),
        "vocabulary_size": head.lengths.get("tokenizer.ggml.tokens") or _whole(get("vocab_size")),
        "context_length": _whole(get("context_length")),
        "sliding_window": _whole(get("attention.sliding_window")),
        "expert_count": _whole(get("expert_count")) or None,
        "expert_used_count": _whole(get("expert_used_count")) or None,
        "expert_feed_forward_length": _whole(_largest(get("expert_feed_forward_length"))),
        "tensor_bytes": dict(head.bytes_by_type),
        "embedding_type": head.embedding[0] if head.embedding else None,
        "embedding_bytes": head.embedding[1] if head.embedding else None,
        "block_bytes": head.block_bytes or None,
        "expert_bytes": head.expert_bytes or None,
        "projector_bytes": None,
    }
    return found | _gguf_cache(head, found)


def _gguf_cache(head: Head, shape: Geometry) -> Geometry:
    architecture, get = str(head.metadata.get("general.architecture")), head.of_architecture
    layers = shape["block_count"]
    if architecture in FORGETFUL:
        return {"cache": [], "state_elements": 0}
    if not layers or layers > MOST_LAYERS:
        return {"cache": None, "state_elements": None}
    state = _gguf_state(head)
    if shape["head_count"] in (0, None) or shape["key_length"] is None:
        known = bool(state) and not shape["head_count"]
        return {"cache": [] if known else None, "state_elements": state * layers if known else None}
    lora, pattern = _whole(get("attention.kv_lora_rank")), get("attention.sliding_window_pattern")
    latent = lora + (_whole(get("rope.dimension_count")) or 0) if lora and get("attention.key_length_mla") else None
    every = pattern if isinstance(pattern, int) else WINDOW_EVERY.get(architecture)
    flags = pattern if isinstance(pattern, list) else None
    wide = (shape["key_length"], shape["value_length"])
    narrow = (_whole(get("attention.key_length_swa")) or wide[0], _whole(get("attention.value_length_swa")) or wide[1])
    own = layers - (_whole(get("attention.shared_kv_layers")) or 0)
    linear = _whole(get("full_attention_interval")) or LINEAR_EVERY.get(architecture)

    def kept(layer: int) -> Kept | None:
        heads = _at(shape["head_count_kv"], layer)
        if heads is None or layer >= own or (linear and (layer + 1) % linear):
            return None
        if latent:
            return latent, 0, None
        slides = bool(_at(flags, layer)) if flags else bool(every and (layer + 1) % every)
        key, value = narrow if slides and shape["sliding_window"] else wide
        return heads * key, heads * value, shape["sliding_window"] if slides else None

    groups = _grouped(layers, kept)
    remembering = sum(group["layers"] for group in groups)
    stateful = layers if architecture.startswith("falcon-h1") else layers - remembering if state else 0
    return {"cache": groups, "state_elements": state * stateful}


def _gguf_state(head: Head) -> int:
    """Elements of one layer's state, 0 for layers without one. Source: the layout of llama.cpp's recurrent memory."""
    get = head.of_architecture
    inner, state, kernel = _whole(get("ssm.inner_size")), _whole(get("ssm.state_size")), _whole(get("ssm.conv_kernel"))
    if inner and state:
        groups = _whole(get("ssm.group_count")) or 0
        return inner * state + max(0, (kernel or 1) - 1) * (inner + 2 * groups * state)
    if (size := _whole(get("wkv.head_size"))) and (width := _whole(get("embedding_length"))):
        return width * size + 2 * width
    if (cache := _whole(get("shortconv.l_cache"))) and (width := _whole(get("embedding_length"))):
        return (cache - 1) * width
    return 0


def of_config(config: Mapping[str, Any]) -> Geometry:
    """The same of a transformers config.json."""
    text = next(
        (part for key in ("text_config", "llm_config", "thinker_config", "decoder") if isinstance(part := config.get(key), dict)), config
    )
    heads, width = _first(text, "num_attention_heads", "n_head", "n_heads"), _first(text, "hidden_size", "n_embd", "d_model")
    each = _first(text, "head_dim") or (width // heads if heads and width else None)
    found: Geometry = {
        "block_count": _first(text, "num_hidden_layers", "n_layer", "n_layers"),
        "head_count": heads,
        "head_count_kv": _first(text, "num_key_value_heads", "num_kv_heads", "n_head_kv") or heads,
        "key_length": each,
        "value_length": _first(text, "v_head_dim") or each,
        "embedding_length": width,
        "feed_forward_length": _first(text, "intermediate_size", "n_inner", "ffn_dim"),
        "vocabulary_size": _first(text, "vocab_size"),
        "context_length": _first(text, "max_position_embeddings", "n_positions", "max_sequence_length", "seq_length"),
        "sliding_window": None if text.get("use_sliding_window") is False else _first(text, "sliding_window", "attention_chunk_size"),
        "expert_count": _first(text, "num_experts", "num_local_experts", "n_routed_experts"),
        "expert_used_count": _first(text, "num_experts_per_tok", "moe_top_k", "num_experts_per_token", "experts_per_token"),
        "expert_feed_forward_length": _first(text, "moe_intermediate_size", "expert_intermediate_size"),
        "tensor_bytes": {},
        "embedding_type": None,
        "embedding_bytes": None,
        "block_bytes": None,
        "expert_bytes": None,
        "projector_bytes": None,
    }
    return found | _config_cache(text, found)


def _config_cache(text: Mapping[str, Any], shape: Geometry) -> Geometry:
    layers, kind = shape["block_count"], str(text.get("model_type"))
    if kind in ("bert", "roberta", "xlm-roberta", "mpnet", "modernbert", "nomic_bert", "distilbert", "electra"):
        return {"cache": [], "state_elements": 0}
    if not layers or layers > MOST_LAYERS or shape["head_count_kv"] is None or shape["key_length"] is None:
        return {"cache": None, "state_elements": None}
    lora, rope = _first(text, "kv_lora_rank"), _first(text, "qk_rope_head_dim") or 0
    kinds = text.get("layer_types") if isinstance(text.get("layer_types"), list) else None
    every = _first(text, "sliding_window_pattern", "_sliding_window_pattern") or WINDOW_EVERY.get(kind)
    linear = _first(text, "full_attention_interval") or LINEAR_EVERY.get(kind)
    # Without a word on which layers, Mistral's kind of window is every layer's.
    always = shape["sliding_window"] is not None and not every and kind in ("mistral", "mixtral", "phi3", "starcoder2", "qwen2_moe")
    own = layers - (_first(text, "num_kv_shared_layers") or 0)

    def kept(layer: int) -> Kept | None:
        said = str(_at(kinds, layer)) if kinds else None
        if layer >= own or (said is not None and "attention" not in said) or (said is not None and said.startswith("linear")):
            return None
        if said is None and linear and (layer + 1) % linear:
            return None
        if lora:
            return lora + rope, 0, None
        slides = said.startswith(("sliding", "chunked")) if said is not None else always or bool(every and (layer + 1) % every)
        heads = int(shape["head_count_kv"])
        return heads * shape["key_length"], heads * shape["value_length"], shape["sliding_window"] if slides else None

    groups = _grouped(layers, kept)
    stateful = own - sum(group["layers"] for group in groups)
    state = (
        (_first(text, "linear_num_value_heads") or 0)
        * (_first(text, "linear_key_head_dim") or 0)
        * (_first(text, "linear_value_head_dim") or 0)
    )
    state = state or (_first(text, "mamba_d_state", "ssm_state_size") or 0) * 2 * (shape["embedding_length"] or 0)
    return {"cache": groups, "state_elements": state * max(0, stateful)}


def _grouped(layers: int, kept: Callable[[int], Kept | None]) -> list[dict[str, Any]]:
    counts: dict[Kept, int] = {}
    for layer in range(layers):
        row = kept(layer)
        if row is not None and row[0] + row[1] > 0:
            counts[row] = counts.get(row, 0) + 1
    return [
        {"layers": count, "key_elements": key, "value_elements": value, "window": window} for (key, value, window), count in counts.items()
    ]


def _at(values: Any, layer: int) -> Any:
    """The layer's own of a list, or what holds for all; None where the list ends too soon."""
    if not isinstance(values, Sequence) or isinstance(values, str):
        return values
    return values[layer] if layer < len(values) else None


def _first(text: Mapping[str, Any], *names: str) -> int | None:
    return next((found for name in names if (found := _whole(text.get(name))) is not None), None)


def _whole(value: Any) -> int | None:
    """A count that can be: of a file that lies, nothing goes on that a sum could not bear."""
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 40 else None


def _counts(value: Any) -> Any:
    """One count, or one a layer."""
    if isinstance(value, list):
        counts = [_whole(each) for each in value]
        return None if None in counts else counts
    return _whole(value)


def _largest(value: Any) -> Any:
    return max((each for each in value if isinstance(each, int)), default=None) if isinstance(value, list) else value
