"""What is read of the models people use: their kind, their abilities, and what each kind of layer keeps."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from aima_lib.errors import InvalidArgument
from aima_lib.infra.facts import Part, pickled, read
from aima_lib.services import memory
from aima_lib.services.memory import Load
from tests.heads import field, gguf, onnx, onnx_end, onnx_weight, safetensors, sound_onnx, tensor


def parts(**files: bytes | dict[str, Any]) -> list[Part]:
    """Files by name, `__` for a dot; a dictionary is JSON."""
    found = []
    for name, content in files.items():
        data = json.dumps(content).encode() if isinstance(content, dict) else content
        found.append(Part(io.BytesIO(data), len(data), name.replace("__", ".")))
    return found


def of_gguf(architecture: str, **keys: Any) -> dict[str, Any]:
    """The facts of a GGUF with these keys; one that begins with `_` is of no architecture."""
    own = {f"{architecture}.{key.replace('__', '.')}": value for key, value in keys.items() if not key.startswith("_")}
    plain = {key[1:].replace("__", "."): value for key, value in keys.items() if key.startswith("_")}
    return read("gguf", parts(model__gguf=gguf({"general.architecture": architecture, **own, **plain})))


def of_config(config: dict[str, Any], **files: Any) -> dict[str, Any]:
    body = safetensors({"model.layers.0.mlp.w": tensor([8, 8], 0, 128, "BF16")}, 128)
    return read("safetensors", parts(model__safetensors=body, config__json=config, **files))


def each_token(facts: dict[str, Any], context: int = 1 << 14) -> int:
    """Bytes of keys and values of one token more, where no window is full yet or every window is."""
    more = memory.cache_bytes(facts["geometry"], Load(context + 256, batch=256))
    less = memory.cache_bytes(facts["geometry"], Load(context, batch=256))
    assert more is not None and less is not None
    return (more - less) // 256


LLAMA8 = {"block_count": 32, "attention__head_count": 32, "attention__head_count_kv": 8, "embedding_length": 4096, "context_length": 8192}


def test_grouped_queries() -> None:
    assert each_token(of_gguf("llama", **LLAMA8)) == 131_072  # 32 layers × 8 heads × (128 + 128) × 2 bytes


def test_latent_attention_keeps_one_narrow_key() -> None:
    keys = {"block_count": 61, "attention__head_count": 128, "attention__head_count_kv": 1, "embedding_length": 7168,
            "attention__kv_lora_rank": 512, "rope__dimension_count": 64, "attention__key_length": 576, "attention__value_length": 512,
            "attention__key_length_mla": 192}  # fmt: skip
    assert each_token(of_gguf("deepseek2", **keys)) == 61 * 576 * 2
    config = {"model_type": "deepseek_v3", "architectures": ["DeepseekV3ForCausalLM"], "num_hidden_layers": 61, "hidden_size": 7168,
              "num_attention_heads": 128, "num_key_value_heads": 128, "kv_lora_rank": 512, "qk_rope_head_dim": 64, "v_head_dim": 128}  # fmt: skip
    assert each_token(of_config(config)) == 61 * 576 * 2


def test_windows_by_a_known_pattern_by_a_list_and_by_layer_types() -> None:
    gemma = of_gguf("gemma3", block_count=18, attention__head_count=4, attention__head_count_kv=1, attention__key_length=256,
                    attention__value_length=256, embedding_length=640, attention__sliding_window=512)  # fmt: skip
    assert each_token(gemma) == 3 * 512 * 2
    assert [group["layers"] for group in gemma["geometry"]["cache"]] == [15, 3]
    oss = of_gguf("gpt-oss", block_count=24, attention__head_count=64, attention__head_count_kv=8, attention__key_length=64,
                  attention__value_length=64, embedding_length=2880, attention__sliding_window=128)  # fmt: skip
    assert each_token(oss) == 12 * 8 * 128 * 2
    listed = of_gguf("gemma4", block_count=4, attention__head_count=4, attention__head_count_kv=[1, 1, 1, 2], attention__key_length=8,
                     attention__value_length=8, attention__key_length_swa=4, attention__value_length_swa=4, embedding_length=32,
                     attention__sliding_window=64, attention__sliding_window_pattern=[True, True, True, False])  # fmt: skip
    assert listed["geometry"]["cache"] == [
        {"layers": 3, "key_elements": 4, "value_elements": 4, "window": 64},
        {"layers": 1, "key_elements": 16, "value_elements": 16, "window": None},
    ]
    config = {"model_type": "gemma3_text", "architectures": ["Gemma3ForCausalLM"], "num_hidden_layers": 4, "hidden_size": 64, "head_dim": 32,
              "num_attention_heads": 4, "num_key_value_heads": 1, "sliding_window": 512,
              "layer_types": ["sliding_attention", "sliding_attention", "sliding_attention", "full_attention"]}  # fmt: skip
    assert each_token(of_config(config)) == 64 * 2
    unused = {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 4,
              "num_key_value_heads": 2, "sliding_window": 32768, "use_sliding_window": False}  # fmt: skip
    assert of_config(unused)["geometry"]["cache"] == [{"layers": 2, "key_elements": 32, "value_elements": 32, "window": None}]


def test_layers_with_states_keep_the_same_whatever_the_length() -> None:
    hybrid = of_gguf("qwen3next", block_count=48, attention__head_count=16, attention__head_count_kv=2, attention__key_length=256,
                     attention__value_length=256, embedding_length=2048, ssm__inner_size=4096, ssm__state_size=128, ssm__conv_kernel=4,
                     ssm__group_count=16)  # fmt: skip
    assert each_token(hybrid) == 12 * 2 * 512 * 2
    assert hybrid["geometry"]["state_elements"] == 36 * (4096 * 128 + 3 * (4096 + 2 * 16 * 128))
    pure = of_gguf("mamba2", block_count=24, embedding_length=768, ssm__inner_size=1536, ssm__state_size=128, ssm__conv_kernel=4)
    assert each_token(pure) == 0 and pure["geometry"]["state_elements"] > 0
    few = of_gguf(
        "lfm2", block_count=4, attention__head_count=4, attention__head_count_kv=[0, 0, 2, 0], embedding_length=32, shortconv__l_cache=3
    )
    assert sum(group["layers"] for group in few["geometry"]["cache"]) == 1 and few["geometry"]["state_elements"] == 3 * 2 * 32


def test_quantized_keys_and_values_take_their_blocks() -> None:
    geometry = of_gguf("llama", **LLAMA8)["geometry"]
    whole = memory.cache_bytes(geometry, Load(4096))
    assert whole is not None
    for kind, share in (("f32", 2.0), ("q8_0", 34 / 64), ("q4_0", 18 / 64)):
        assert memory.cache_bytes(geometry, Load(4096, cache_type=kind)) == int(whole * share)


@pytest.mark.parametrize(
    ("architecture", "keys", "kind", "abilities"),
    [
        ("llama", {"_tokenizer__chat_template": "{% for m in messages %}"}, "llm", ["chat", "complete"]),
        ("qwen3", {"_tokenizer__chat_template": "{% if tools %}<think>"}, "llm", ["chat", "complete", "tools", "reasoning"]),
        ("llama", {}, "llm", ["complete"]),
        ("nomic-bert", {}, "embedding", ["embed"]),
        ("qwen3", {"pooling_type": 3}, "embedding", ["embed"]),
        ("bert", {"pooling_type": 4}, "rerank", ["rerank"]),
        ("flux", {}, "diffusion", ["generate_image"]),
        ("wan", {}, "video_gen", ["generate_video"]),
    ],
)
def test_kind_and_abilities_of_a_gguf(architecture: str, keys: dict[str, Any], kind: str, abilities: list[str]) -> None:
    facts = of_gguf(architecture, **keys)
    assert (facts["type"], facts["capabilities"]) == (kind, abilities)


def test_a_projector_makes_a_model_see() -> None:
    model = gguf({"general.architecture": "qwen2vl", "tokenizer.chat_template": "x"})
    projector = gguf({"general.architecture": "clip", "general.type": "mmproj", "clip.has_vision_encoder": True}, [("v.w", (8,), 0, 32)])
    facts = read("gguf", parts(model__gguf=model, mmproj__gguf=projector))
    assert (facts["type"], facts["capabilities"], facts["modalities"]) == ("vlm", ["chat", "complete", "vision"], ["text", "image"])
    assert facts["geometry"]["projector_bytes"] == len(projector)
    with pytest.raises(InvalidArgument, match="addition to a model"):
        read("gguf", parts(mmproj__gguf=projector))


def test_experts_take_turns() -> None:
    about = {"general.architecture": "qwen3moe", "qwen3moe.block_count": 1, "qwen3moe.expert_count": 8, "qwen3moe.expert_used_count": 2}
    facts = read(
        "gguf",
        parts(m__gguf=gguf(about, [("blk.0.ffn_up_exps.weight", (32, 32, 8), 0, 32768), ("blk.0.attn_q.weight", (32, 32), 0, 4096)])),
    )
    assert (facts["parameters"], facts["active_parameters"]) == (8192 + 1024, 2048 + 1024)
    assert facts["geometry"]["expert_bytes"] == 32768


def test_shards_must_be_one_model_and_whole() -> None:
    def shard(number: int, **more: Any) -> bytes:
        about = {"split.count": 2, "split.no": number, "split.tensors.count": 2, **more}
        return gguf(about, [(f"blk.{number}.w", (8,), 0, 32)])

    first, second = shard(0, **{"general.architecture": "llama"}), shard(1)
    assert read("gguf", parts(a__gguf=first, b__gguf=second))["parameters"] == 16
    with pytest.raises(InvalidArgument, match="one of 2 shards, 1 are here"):
        read("gguf", parts(a__gguf=first))
    with pytest.raises(InvalidArgument, match="not shards of one model"):
        read("gguf", parts(a__gguf=first, b__gguf=gguf({"general.architecture": "qwen2"})))
    with pytest.raises(InvalidArgument, match="hold 1 tensors, 2 were written"):
        read("gguf", parts(a__gguf=first, b__gguf=gguf({"split.count": 2})))


CAUSAL = {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3"}


@pytest.mark.parametrize(
    ("config", "files", "kind"),
    [
        (CAUSAL, {}, "llm"),
        ({"architectures": ["Qwen3VLForConditionalGeneration"], "model_type": "qwen3_vl"}, {}, "vlm"),
        ({"architectures": ["SomethingNewForConditionalGeneration"], "model_type": "new", "vision_config": {}}, {}, "vlm"),
        ({"architectures": ["WhisperForConditionalGeneration"], "model_type": "whisper"}, {}, "asr"),
        ({"architectures": ["BertModel"], "model_type": "bert"}, {}, "embedding"),
        (CAUSAL, {"modules__json": b"[]"}, "embedding"),
        ({"architectures": ["XLMRobertaForSequenceClassification"], "model_type": "xlm-roberta", "id2label": {"0": "L"}}, {}, "rerank"),
        ({"architectures": ["BertForSequenceClassification"], "model_type": "bert", "id2label": {"0": "a", "1": "b"}}, {}, None),
        ({"architectures": ["RTDetrForObjectDetection"], "model_type": "rt_detr"}, {}, "detection"),
        ({"architectures": ["VitsModel"], "model_type": "vits"}, {}, "tts"),
        ({}, {"model_index__json": {"_class_name": "FluxPipeline"}}, "diffusion"),
        ({}, {"model_index__json": {"_class_name": "WanPipeline"}}, "video_gen"),
        ({"architectures": ["Unheard"], "model_type": "unheard"}, {}, None),
    ],
)
def test_kind_of_a_transformers_folder(config: dict[str, Any], files: dict[str, Any], kind: str | None) -> None:
    assert of_config(config, **files)["type"] == kind


def test_a_template_beside_the_weights_tells_of_tools() -> None:
    facts = of_config(CAUSAL, tokenizer_config__json={"chat_template": [{"name": "tool_use", "template": "{{ tools }}"}]})
    assert facts["chat_template"] == {"source": "tokenizer_config.json", "tools": True, "reasoning": False}
    assert facts["capabilities"] == ["chat", "complete", "tools"]
    assert of_config(CAUSAL, chat_template__jinja=b"{{ x }}")["chat_template"]["source"] == "chat_template.jinja"


def test_packed_weights_are_counted_by_their_bits() -> None:
    packed = safetensors({"model.layers.0.qweight": tensor([8, 8], 0, 256, "I32"), "model.layers.0.scales": tensor([8], 256, 272)}, 272)
    config = CAUSAL | {"quantization_config": {"quant_method": "awq", "bits": 4}}
    facts = read("safetensors", parts(model__safetensors=packed, config__json=config))
    assert (facts["parameters"], facts["quantization"]) == (8 * 8 * 8, "AWQ-Int4")
    assert of_config(CAUSAL | {"quantization_config": {"quant_method": "fp8"}})["quantization"] == "FP8"
    assert of_config(CAUSAL)["quantization"] == "BF16"


def test_what_an_index_names_must_be_here_and_code_is_said() -> None:
    index = {"model.safetensors.index.json": {}}
    assert index
    named = json.dumps({"weight_map": {"a": "model.safetensors", "b": "model-2.safetensors"}}).encode()
    with pytest.raises(InvalidArgument, match=r"names 1 files that are not here: model-2\.safetensors"):
        of_config(CAUSAL, model__safetensors__index__json=named)
    assert "auto_map" in of_config(CAUSAL | {"auto_map": {"AutoModel": "modeling.Evil"}})["warnings"][0]


def test_an_onnx_graph_tells_its_weights_its_ends_and_its_files() -> None:
    facts = read("onnx", parts(model__onnx=sound_onnx()))
    assert (facts["type"], facts["parameters"], facts["capabilities"]) == ("detection", 6, ["detect"])
    words = onnx(onnx_end(11, "input_ids", ("batch", "n")), onnx_end(12, "last_hidden_state", ("batch", "n", 384)))
    assert read("onnx", parts(model__onnx=words))["type"] == "embedding"
    constant = onnx(field(1, field(4, "Constant") + field(5, field(1, "value") + onnx_weight("c", (5,), 1, 20))))
    assert read("onnx", parts(model__onnx=constant))["parameters"] == 5
    outside = onnx(onnx_weight("w", (4,), 1, None, {"location": "model.onnx_data", "offset": "16", "length": "16"}))
    assert read("onnx", parts(model__onnx=outside, model__onnx_data=bytes(32)))["parameters"] == 4
    with pytest.raises(InvalidArgument, match=r"keeps 32 bytes of weights in model\.onnx_data, 31 bytes is there"):
        read("onnx", parts(model__onnx=outside, model__onnx_data=bytes(31)))


def pickles() -> Iterator[tuple[str, bytes]]:
    yield "old.pt", b"\x80\x02}q\x00."
    zipped = io.BytesIO()
    with zipfile.ZipFile(zipped, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02}q\x00.")
    yield "new.bin", zipped.getvalue()


@pytest.mark.parametrize(("name", "data"), list(pickles()))
def test_a_pickle_is_known_by_what_it_holds(name: str, data: bytes) -> None:
    facts = read("pytorch", [Part(io.BytesIO(data), len(data), name)])
    assert facts["warnings"] == [pickled(Part(io.BytesIO(data), len(data), name))]
    assert f"{name} is a Python pickle" in facts["warnings"][0]


def test_what_is_no_pickle_gets_no_warning(tmp_path: Path) -> None:
    assert read("tensorrt", parts(a__engine=b"ftrt" + bytes(64)))["warnings"] == []
