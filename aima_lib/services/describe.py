"""What a model's files say about it, as the fields of its record. Blocking: read from a worker thread."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from aima_lib.errors import InvalidArgument
from aima_lib.infra.gguf import FILE_TYPES, Head, read_head
from aima_lib.infra.roots import Absent, Opened
from aima_lib.infra.safetensors import count_parameters, read_config

TYPES = ("llm", "vlm", "asr", "tts", "embedding", "diffusion", "video_gen", "detection", "rerank")
# Architectures of GGUF files that only embed.
EMBEDDERS = (
    "bert",
    "nomic-bert",
    "nomic-bert-moe",
    "jina-bert-v2",
    "jina-bert-v3",
    "modern-bert",
    "neo-bert",
    "t5encoder",
    "gemma-embedding",
)
SUFFIXES = {
    ".gguf": "gguf",
    ".safetensors": "safetensors",
    ".onnx": "onnx",
    ".engine": "tensorrt",
    ".plan": "tensorrt",
    ".pt": "pytorch",
    ".pth": "pytorch",
}
CHECKED = ("gguf", "safetensors", "onnx", "ctranslate2")  # formats whose files are looked into
RANK_POOLING = 4  # in llama.cpp's enumeration
BESIDE = (".json", ".jinja", ".txt", ".model")
SHARD, MOST_FILES = re.compile(r"-\d{5}-of-(\d{5})$"), 400
# A file, and the name it goes by: while it is downloaded it lies under another.
Named = tuple[Path, str]
FACTS = ("type", "quantization", "parameters", "context_length", "architecture", "license", "capabilities", "geometry")


def describe(format: str, files: Sequence[Named]) -> dict[str, Any]:
    """type, quantization, parameters, context_length, architecture, license, capabilities and geometry, None where unknown.

    Raises:
        InvalidArgument: a file is broken; the message names it and the offset.
    """
    if format == "gguf":
        return _gguf(files)
    if format == "safetensors":
        return _safetensors(files)
    unknown: dict[str, Any] = {**dict.fromkeys(FACTS), "capabilities": [], "geometry": {}}
    return unknown | {"type": _plain_type(format, files)} if format in CHECKED else unknown


def _plain_type(format: str, files: Sequence[Named]) -> str | None:
    """What an ONNX or CTranslate2 model is for, where its files tell.

    Raises:
        InvalidArgument: the weights do not begin as that format does.
    """
    path, name = files[0]
    with path.open("rb") as stream:
        head = stream.read(8)
    # ONNX: a protobuf whose first field is the version of its form. CTranslate2: a small number, then the length of a name.
    if not (head[:1] == b"\x08" if format == "onnx" else len(head) == 8 and 0 < int.from_bytes(head[:4], "little") < 64):
        raise InvalidArgument(f"{name} does not begin as {format} does", hint="was it fetched whole?")
    names = {name for _, name in files}
    if format == "onnx":
        return "tts" if f"{name}.json" in names else None
    config = next((read_config(path) for path, name in files if name == "config.json"), {})
    return "asr" if "suppress_ids" in config or "lang_ids" in config else None


def _gguf(files: Sequence[Named]) -> dict[str, Any]:
    heads = [read_head(path, name) for path, name in files]
    first = heads[0]
    if (kind := first.metadata.get("general.type", "model")) not in ("model", "mmproj") or first.metadata.get(
        "general.architecture"
    ) == "clip":
        raise InvalidArgument(
            f"{files[0][1]} is an addition to a model ({kind}), not a model by itself", hint="import the model's own file"
        )
    geometry = geometry_of(first)
    architecture = first.metadata.get("general.architecture")
    embeds, ranks = architecture in EMBEDDERS, head_ranks(first)
    chats = "tokenizer.chat_template" in first.metadata
    return {
        "type": "rerank" if ranks else "embedding" if embeds else "llm",
        "quantization": FILE_TYPES.get(first.metadata.get("general.file_type", -1)),
        "parameters": sum(head.parameters for head in heads) or None,
        "context_length": geometry["context_length"],
        "architecture": architecture,
        "license": first.metadata.get("general.license"),
        "capabilities": ["rerank"] if ranks else ["embed"] if embeds else ["chat", "complete"] if chats else ["complete"],
        "geometry": geometry,
    }


def head_ranks(head: Head) -> bool:
    """Whether a GGUF says that its vectors are to become ranks: it then has a head for them."""
    return bool(head.of_architecture("pooling_type") == RANK_POOLING)


def geometry_of(head: Head) -> dict[str, Any]:
    """The numbers that a memory estimate needs, None where the file does not say."""
    width, heads = head.of_architecture("embedding_length"), head.of_architecture("attention.head_count")
    count = max(heads) if isinstance(heads, list) and heads else heads
    each = width // count if isinstance(width, int) and isinstance(count, int) and count else None
    kv = head.of_architecture("attention.head_count_kv")
    return {
        "block_count": head.of_architecture("block_count"),
        "head_count": count,
        "head_count_kv": kv if kv is not None else heads,
        "key_length": head.of_architecture("attention.key_length") or each,
        "value_length": head.of_architecture("attention.value_length") or each,
        "embedding_length": width,
        "feed_forward_length": _largest(head.of_architecture("feed_forward_length")),
        "vocabulary_size": head.lengths.get("tokenizer.ggml.tokens") or head.of_architecture("vocab_size"),
        "context_length": head.of_architecture("context_length"),
        "sliding_window": head.of_architecture("attention.sliding_window"),
        "tensor_bytes": dict(head.bytes_by_type),
    }


def _largest(value: Any) -> Any:
    return max(value, default=None) if isinstance(value, list) else value


def _safetensors(files: Sequence[Named]) -> dict[str, Any]:
    counted = [count_parameters(path, name) for path, name in files if name.endswith(".safetensors")]
    config = next((read_config(path) for path, name in files if name == "config.json"), {})
    text = config["text_config"] if isinstance(config.get("text_config"), dict) else config
    heads, width = text.get("num_attention_heads"), text.get("hidden_size")
    each = text.get("head_dim") or (width // heads if isinstance(heads, int) and heads and isinstance(width, int) else None)
    names = config.get("architectures")
    architecture = names[0] if isinstance(names, list) and names and isinstance(names[0], str) else config.get("model_type")
    chats = isinstance(architecture, str) and architecture.endswith("ForCausalLM")
    numbers = {
        "block_count": text.get("num_hidden_layers"),
        "head_count": heads,
        "head_count_kv": text.get("num_key_value_heads", heads),
        "key_length": each,
        "value_length": each,
        "embedding_length": width,
        "feed_forward_length": text.get("intermediate_size"),
        "vocabulary_size": text.get("vocab_size"),
        "context_length": text.get("max_position_embeddings"),
        "sliding_window": text.get("sliding_window"),
    }
    geometry = {key: value if isinstance(value, int) else None for key, value in numbers.items()}
    return {
        "type": "llm" if chats else None,
        "quantization": next((kind for _, kind in counted if kind), None),
        "parameters": sum(count for count, _ in counted) or None,
        "context_length": geometry["context_length"],
        "architecture": architecture if isinstance(architecture, str) else None,
        "license": None,
        "capabilities": ["chat", "complete"] if chats else [],
        "geometry": geometry | {"tensor_bytes": {}},
    }


def digest_of(files: Sequence[tuple[str, str]]) -> str:
    """One digest for a model: of its file, or of the list of its files' names and digests."""
    if len(files) == 1:
        return f"sha256:{files[0][1]}"
    listed = "".join(f"{sha256}  {name}\n" for name, sha256 in sorted(files))
    return f"sha256:{hashlib.sha256(listed.encode()).hexdigest()}"


def weights_in(given: Opened, keep: Callable[[Opened], Opened]) -> tuple[str, list[Opened]]:
    """Format and files of the one model at `given`: a file, all shards beside it, or a folder. What is opened is given to `keep`.

    Raises:
        InvalidArgument: there is none, more than one, or nothing AIMA can read.
    """
    if given.is_folder:
        return _folder(given, given.within, keep)
    kind = SUFFIXES.get(given.path.suffix.lower())
    if kind != "gguf":
        kind = "gguf" if os.pread(given.descriptor, 4, 0) == b"GGUF" else kind
    if kind == "safetensors":
        return _folder(keep(given.roots.open(str(given.path.parent))), given.beside, keep)
    if kind == "gguf":
        return kind, _shards(given, keep)
    if kind == "onnx":
        names = (f"{given.name}.json", f"{given.path.stem}.json", f"{given.path.stem}.txt")
        return kind, [given, *(opened for name in names if (opened := _file(given.beside, name, keep)))]
    return kind or "unknown", [given]


def _shards(first: Opened, keep: Callable[[Opened], Opened]) -> list[Opened]:
    found = SHARD.search(first.path.stem)
    if found is None:
        return [first]
    count = int(found[1])
    if count > MOST_FILES:
        raise InvalidArgument(f"{first.name} is one of {count} shards, at most {MOST_FILES} are read")
    names = [f"{first.path.stem[: found.start()]}-{number:05d}-of-{found[1]}{first.path.suffix}" for number in range(1, count + 1)]
    shards = {name: first if name == first.name else _file(first.beside, name, keep) for name in names}
    if missing := [name for name, shard in shards.items() if shard is None]:
        raise InvalidArgument(
            f"{first.name} is one of {count} shards, {', '.join(missing[:5])} not beside it", hint="put all shards into one folder"
        )
    return [shard for shard in shards.values() if shard is not None]


def _file(reach: Callable[[str], Opened], name: str, keep: Callable[[Opened], Opened]) -> Opened | None:
    """A file of that name, kept open; a folder, a pipe, or nothing is None."""
    try:
        opened = keep(reach(name))
    except Absent:
        return None
    return None if opened.is_folder else opened


def _folder(folder: Opened, reach: Callable[[str], Opened], keep: Callable[[Opened], Opened]) -> tuple[str, list[Opened]]:
    names = [name for name in folder.names() if not name.startswith(".")]
    tensors = [name for name in names if name.endswith(".safetensors")]
    wanted = tensors + [name for name in names if tensors and name.endswith(BESIDE)]
    if len(wanted) > MOST_FILES:
        raise InvalidArgument(f"{folder.path} holds {len(wanted)} files of a model, at most {MOST_FILES} are read")
    files = [opened for name in wanted if (opened := _file(reach, name, keep))]
    if any(file.name.endswith(".safetensors") for file in files):
        return "safetensors", files
    if "model.bin" in names and "config.json" in names:
        others = [name for name in names if name.endswith(BESIDE)]
        return "ctranslate2", [opened for name in ("model.bin", *others) if (opened := _file(reach, name, keep))]
    if onnx := [name for name in names if name.endswith(".onnx")]:
        return "onnx", _onnx(folder, onnx, names, reach, keep)
    ggufs = [name for name in names if name.lower().endswith(".gguf") and "mmproj" not in name.lower()]
    first = next((opened for name in ggufs if (opened := _file(reach, name, keep))), None)
    if first is None:
        raise InvalidArgument(
            f"{folder.path} holds neither GGUF nor safetensors, ONNX nor CTranslate2", hint="give the path of the weights"
        )
    shards = _shards(first, keep)
    if len(ggufs) > len(shards):
        raise InvalidArgument(f"{folder.path} holds {len(ggufs)} models: {', '.join(ggufs[:5])}", hint="give the path of one")
    return "gguf", shards


def _onnx(
    folder: Opened, onnx: list[str], names: list[str], reach: Callable[[str], Opened], keep: Callable[[Opened], Opened]
) -> list[Opened]:
    """The one network of a folder, and what its engines read beside it: settings, tokenizers, labels, voices, weights of their own file."""
    first = "model.onnx" if "model.onnx" in onnx else onnx[0]
    if len(onnx) > 1 and first != "model.onnx":
        raise InvalidArgument(f"{folder.path} holds {len(onnx)} models: {', '.join(onnx[:5])}", hint="give the path of one")
    others = [name for name in names if name.endswith((*BESIDE, ".npz", ".bin", ".onnx_data"))]
    return [opened for name in (first, *others[:MOST_FILES]) if (opened := _file(reach, name, keep))]
