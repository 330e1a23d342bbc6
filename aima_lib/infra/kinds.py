"""What is known of the models people use: from the names in their heads to what they do, and how their layers remember.

Small on purpose: a name that is not here is taken for what its form says (a text model), or its type is unknown. Nothing is guessed
from a file's name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# What each type of model answers; a chat template or a projector adds to it.
ABILITIES: Mapping[str, tuple[str, ...]] = {
    "llm": ("complete",), "vlm": ("complete", "vision"), "asr": ("transcribe",), "tts": ("synthesize",), "embedding": ("embed",),
    "diffusion": ("generate_image",), "video_gen": ("generate_video",), "detection": ("detect",), "rerank": ("rerank",),
}  # fmt: skip
# general.architecture of GGUF files that are no text models.
GGUF_TYPES: Mapping[str, str] = {
    **dict.fromkeys(
        (
            "bert", "nomic-bert", "nomic-bert-moe", "jina-bert-v2", "jina-bert-v3", "modern-bert", "neo-bert", "eurobert", "t5encoder",
            "gemma-embedding", "llama-embed",
        ),
        "embedding",
    ),
    **dict.fromkeys(("flux", "sd1", "sdxl", "sd3", "aura", "hidream", "lumina2", "qwen_image", "z_image", "pixart", "chroma"), "diffusion"),
    **dict.fromkeys(("wan", "ltxv", "hyvid", "hunyuan_video", "cosmos", "mochi"), "video_gen"),
    **dict.fromkeys(("wavtokenizer-dec", "outetts", "kokoro", "parler"), "tts"),
    "whisper": "asr",
}  # fmt: skip
# model_type of config.json; `*` at the end stands for any rest.
MODEL_TYPES: Mapping[str, str] = {
    **dict.fromkeys(("whisper", "moonshine*", "wav2vec2*", "hubert", "wavlm", "parakeet*", "canary*", "seamless_m4t*", "speech_to_text",
                     "granite_speech", "voxtral*", "qwen3_asr*", "sensevoice*", "cohere_asr"), "asr"),
    **dict.fromkeys(("vits", "bark", "speecht5", "csm", "dia", "kokoro", "parler_tts", "qwen3_tts*", "higgs_audio*", "chatterbox"), "tts"),
    **dict.fromkeys(("bert", "roberta", "xlm-roberta", "mpnet", "modernbert", "nomic_bert", "distilbert", "electra",
                     "gemma3_text_embedding", "eurobert", "xlm-roberta-xl"), "embedding"),
    **dict.fromkeys(("detr", "rt_detr*", "d_fine", "yolos", "yolo*", "owlvit", "owlv2", "grounding-dino", "deformable_detr",
                     "conditional_detr", "dab-detr", "table-transformer", "lw_detr", "rf_detr", "sam3*"), "detection"),
    **dict.fromkeys(("qwen2_vl*", "qwen2_5_vl*", "qwen3_vl*", "qwen3_5*", "qwen2_5_omni*", "qwen3_omni*", "llava*", "mllama", "idefics*",
                     "smolvlm", "paligemma", "gemma3", "gemma3n", "gemma4*", "internvl*", "minicpmv", "minicpmo", "pixtral", "mistral3",
                     "phi3_v", "phi4mm", "phi4_multimodal", "molmo*", "aya_vision", "cohere2_vision", "llama4", "kimi_vl", "kimi_k25",
                     "deepseek_vl*", "deepseek_ocr*", "glm4v*", "glm_ocr", "florence2", "fuyu", "ovis2", "lfm2_vl", "step3*"), "vlm"),
    "flux": "diffusion",
}  # fmt: skip
# The end of a class in `architectures`, where model_type does not decide. The first that fits wins.
CLASSES: tuple[tuple[str, str], ...] = (
    ("ForSequenceClassification", "rerank"), ("ForObjectDetection", "detection"), ("ForSpeechSeq2Seq", "asr"), ("ForCTC", "asr"),
    ("ForTextToSpeech", "tts"), ("ForMaskedLM", "embedding"), ("ForCausalLM", "llm"), ("LMHeadModel", "llm"),
)  # fmt: skip
# The pipelines of a diffusers folder (model_index.json), by what is in their name.
VIDEO_PIPELINES = ("Wan", "Hunyuan", "LTX", "CogVideo", "Mochi", "Video", "Cosmos", "Allegro", "Latte", "SkyReels", "Kandinsky5T2V")
# Every n-th layer looks at the whole context, the others at a window: where the file has a window and not the pattern.
WINDOW_EVERY: Mapping[str, int] = {
    "gemma2": 2, "gemma3": 6, "gemma3_text": 6, "gemma3n": 5, "gemma3n_text": 5, "gemma-embedding": 6, "cohere2": 4, "gpt-oss": 2,
    "gpt_oss": 2, "exaone4": 4, "llama4": 4, "llama4_text": 4, "olmo2": 4, "olmo3": 4, "smallthinker": 4, "ministral3": 4, "afmoe": 4,
}  # fmt: skip
LINEAR_EVERY: Mapping[str, int] = {"qwen3next": 4, "qwen3_next": 4, "qwen35": 4, "qwen35moe": 4, "qwen3_5_text": 4, "qwen3_5_moe_text": 4}
# These look back at the whole text at once and keep nothing.
FORGETFUL = ("bert", "nomic-bert", "nomic-bert-moe", "jina-bert-v2", "jina-bert-v3", "modern-bert", "neo-bert", "eurobert", "t5encoder",
             "gemma-embedding", "wavtokenizer-dec", "clip")  # fmt: skip


def type_of_config(config: Mapping[str, Any], files: frozenset[str]) -> str | None:
    """The type of a transformers folder by its config.json, and by the names beside it."""
    kind, names = config.get("model_type"), config.get("architectures")
    first = names[0] if isinstance(names, list) and names and isinstance(names[0], str) else ""
    if first.endswith("ForSequenceClassification"):
        labels = config.get("num_labels") or len(config.get("id2label") or ()) or 2
        return "rerank" if labels == 1 else None
    if "modules.json" in files or "config_sentence_transformers.json" in files:
        return "embedding"
    if isinstance(kind, str):
        for pattern, found in MODEL_TYPES.items():
            if kind == pattern or (pattern.endswith("*") and kind.startswith(pattern[:-1])):
                return "llm" if found == "vlm" and first.endswith("ForCausalLM") and "vision_config" not in config else found
    if "vision_config" in config and first.endswith(("ForConditionalGeneration", "ForCausalLM")):
        return "vlm"
    return next((found for end, found in CLASSES if first.endswith(end)), None)


def type_of_pipeline(name: str) -> str:
    """The type of a diffusers folder, by the class that model_index.json names."""
    return "video_gen" if any(part in name for part in VIDEO_PIPELINES) else "diffusion"


def type_of_ends(inputs: Mapping[str, list[int | None]], outputs: Mapping[str, list[int | None]]) -> str | None:
    """The type of an ONNX graph, where its inputs and outputs say it."""
    given, made = {name.lower() for name in inputs}, {name.lower() for name in outputs}
    if "input_ids" in given and any(name.startswith(("present", "logits")) for name in made):
        return "rerank" if made == {"logits"} and outputs[next(iter(outputs))][-1:] == [1] else "llm" if _remembers(given, made) else None
    if "input_ids" in given and made & {"sentence_embedding", "last_hidden_state", "token_embeddings", "pooler_output", "embeddings"}:
        return "embedding"
    if made & {"pred_boxes", "boxes", "dets", "detection_boxes", "bboxes", "num_dets"}:
        return "detection"
    pictures = [shape for shape in inputs.values() if len(shape) == 4 and shape[1] == 3]
    if pictures and len(outputs) == 1 and len(shape := next(iter(outputs.values()))) == 3 and _is_yolo(shape):
        return "detection"
    if given & {"mel", "input_features", "audio_signal", "audio"} and made & {"logits", "last_hidden_state", "logprobs", "outputs"}:
        return "asr"
    if given & {"tokens", "input", "text", "phoneme_ids"} and given & {"style", "scales", "speed", "sid"}:
        return "tts"
    return None


def _remembers(given: set[str], made: set[str]) -> bool:
    return any(name.startswith("present") for name in made) or any(name.startswith("past") for name in given)


def _is_yolo(shape: list[int | None]) -> bool:
    """One row a candidate: four numbers of a box and at least one class."""
    return any(length is not None and length > 1000 for length in shape) and any(
        length is not None and 5 <= length <= 1000 for length in shape
    )


def shows_tools(template: str) -> bool:
    """Whether a chat template shows the model tools that it may call."""
    return "tools" in template or "builtin_tools" in template


def reasons(template: str) -> bool:
    """Whether a chat template knows of thoughts before an answer."""
    return any(word in template for word in ("enable_thinking", "reasoning_content", "<think>", "reasoning_effort"))
