"""From a model's heads to the fields of its record. Pure but for the streams it is given; runs in a child process, see `apart`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, BinaryIO, NamedTuple

from aima_lib.errors import InvalidArgument
from aima_lib.infra import geometry, kinds
from aima_lib.infra.gguf import FILE_TYPES, Head, parse
from aima_lib.infra.onnx import read_head as read_onnx
from aima_lib.infra.safetensors import Head as Tensors
from aima_lib.infra.safetensors import read_head as read_tensors
from aima_lib.infra.safetensors import read_json

FACTS = (
    "type", "quantization", "parameters", "active_parameters", "context_length", "architecture", "license", "capabilities", "modalities",
    "chat_template", "warnings", "geometry",
)  # fmt: skip
LARGEST_TEMPLATE, LARGEST_INDEX, LONGEST_TEXT = 1 << 20, 16 << 20, 300
SHARD_NAME = re.compile(rb'"([^"/\\]{1,200}\.safetensors)"')
# How a pickle begins: protocols 2 to 5, or the zip that torch.save writes.
PICKLES = tuple(bytes((0x80, protocol)) for protocol in range(2, 6))
METHODS: Mapping[str, str] = {
    "awq": "AWQ",
    "gptq": "GPTQ",
    "fp8": "FP8",
    "mxfp4": "MXFP4",
    "fbgemm_fp8": "FP8",
    "modelopt": "FP8",
    "hqq": "HQQ",
}


class Part(NamedTuple):
    """One file of a model, open at its beginning."""

    stream: BinaryIO
    size: int
    name: str


def read(format: str, parts: Sequence[Part]) -> dict[str, Any]:
    """The facts of a model, None where its files do not say.

    Raises:
        InvalidArgument: a file is broken; the message names it and the offset.
    """
    if format == "gguf":
        return _gguf(parts)
    if format == "safetensors":
        return _safetensors(parts)
    if format == "onnx":
        return _onnx(parts)
    if format == "ctranslate2":
        return _ctranslate2(parts)
    return _filled({"warnings": [warning for part in parts if (warning := pickled(part))]})


def _filled(found: Mapping[str, Any]) -> dict[str, Any]:
    """All facts; text as it may be stored and shown."""
    whole: dict[str, Any] = {**dict.fromkeys(FACTS), "capabilities": [], "modalities": [], "warnings": [], "geometry": {}} | dict(found)
    for key in ("architecture", "license", "quantization"):
        text = whole[key]
        whole[key] = text.encode("utf-8", "replace").decode()[:LONGEST_TEXT] if isinstance(text, str) and text else None
    return whole


# GGUF


def _gguf(parts: Sequence[Part]) -> dict[str, Any]:
    named = [part for part in parts if part.name.lower().endswith(".gguf")] or parts
    heads = [(part, parse(part.stream, part.size, part.name)) for part in named]
    models = [(part, head) for part, head in heads if not _is_addition(head)]
    projectors = [(part, head) for part, head in heads if _is_addition(head)]
    if not models:
        part, head = heads[0]
        kind = head.metadata.get("general.type", head.metadata.get("general.architecture"))
        raise InvalidArgument(f"{part.name} is an addition to a model ({kind}), not a model by itself", hint="import the model's own file")
    _refuse_mixture(models)
    first = models[0][1]
    merged = _merged([head for _, head in models])
    shape = geometry.of_gguf(merged)
    shape["projector_bytes"] = sum(part.size for part, _ in projectors) or None
    template, architecture = first.metadata.get("tokenizer.chat_template"), first.metadata.get("general.architecture")
    kind = _gguf_type(first)
    senses = [name for name in ("vision", "audio") for _, head in projectors if _has(head, name)]
    kind = "vlm" if kind == "llm" and "vision" in senses else kind
    said = _template(template, "gguf") if isinstance(template, str) else None
    return _filled(
        {
            "type": kind,
            "quantization": FILE_TYPES.get(_number(first.metadata.get("general.file_type"))),
            "parameters": merged.parameters or None,
            "active_parameters": _active(merged.parameters, merged.expert_parameters, shape),
            "context_length": shape["context_length"],
            "architecture": architecture,
            "license": first.metadata.get("general.license"),
            "capabilities": _capabilities(kind, said, senses),
            "modalities": _modalities(kind, senses),
            "chat_template": said,
            "geometry": shape,
        }
    )


def _is_addition(head: Head) -> bool:
    return head.metadata.get("general.type", "model") not in ("model",) or head.metadata.get("general.architecture") == "clip"


def _has(head: Head, sense: str) -> bool:
    told = head.metadata.get(f"clip.has_{sense}_encoder")
    return bool(told) if told is not None else sense == "vision"


def _refuse_mixture(models: Sequence[tuple[Part, Head]]) -> None:
    """Shards must be shards of one model, and all there."""
    part, first = models[0]
    count = _number(first.metadata.get("split.count"))
    if count > 1 and count != len(models):
        raise InvalidArgument(f"{part.name} is one of {count} shards, {len(models)} are here", hint="put all shards into one folder")
    for other, head in models[1:]:
        number = _number(head.metadata.get("split.count"))
        if number != count or head.metadata.get("general.architecture", None) not in (None, first.metadata.get("general.architecture")):
            raise InvalidArgument(f"{other.name} and {part.name} are not shards of one model", hint="give the path of one")
    told, here = _number(first.metadata.get("split.tensors.count")), sum(head.tensors for _, head in models)
    if told >= 0 and count > 1 and told != here:
        raise InvalidArgument(f"the shards of {part.name} hold {here} tensors, {told} were written", hint="download them again")


def _merged(heads: Sequence[Head]) -> Head:
    whole = Head(heads[0].version, heads[0].metadata, heads[0].lengths)
    for head in heads:
        for key in ("parameters", "tensors", "block_bytes", "expert_bytes", "expert_parameters"):
            setattr(whole, key, getattr(whole, key) + getattr(head, key))
        whole.embedding = whole.embedding or head.embedding
        for label, count in head.bytes_by_type.items():
            whole.bytes_by_type[label] = whole.bytes_by_type.get(label, 0) + count
    return whole


def _gguf_type(head: Head) -> str:
    known = kinds.GGUF_TYPES.get(str(head.metadata.get("general.architecture")))
    pooling = _number(head.of_architecture("pooling_type"))
    if pooling == 4:
        return "rerank"
    if known is None and pooling in (1, 2, 3):
        return "embedding"
    return known or "llm"


# safetensors, and the files of transformers and diffusers


def _safetensors(parts: Sequence[Part]) -> dict[str, Any]:
    names = frozenset(part.name for part in parts)
    heads = [read_tensors(part.stream, part.size, part.name) for part in parts if part.name.endswith(".safetensors")]
    for part in parts:
        if part.name.endswith(".safetensors.index.json"):
            _refuse_missing(part, names)
    config, pipeline = _json(parts, "config.json"), _json(parts, "model_index.json")
    shape = geometry.of_config(config)
    shape["block_bytes"] = sum(head.block_bytes for head in heads) or None
    shape["expert_bytes"] = sum(head.expert_bytes for head in heads) or None
    shape["tensor_bytes"] = _added(head.bytes_by_type for head in heads)
    kind = kinds.type_of_config(config, names)
    listed, base = config.get("architectures"), config.get("model_type")
    architecture = listed[0] if isinstance(listed, list) and listed and isinstance(listed[0], str) else base
    if pipeline and isinstance(name := pipeline.get("_class_name"), str):
        kind, architecture = kinds.type_of_pipeline(name), name
    said = _template_beside(parts)
    senses = ["vision"] if kind == "vlm" or any(head.vision for head in heads) else []
    senses += ["audio"] if kind in ("llm", "vlm") and any(key in config for key in ("audio_config", "thinker_config")) else []
    bits, quantization = _quantized(config, heads)
    parameters = sum(head.parameters + head.packed * _each(head, bits) for head in heads)
    return _filled(
        {
            "type": kind,
            "quantization": quantization,
            "parameters": parameters or None,
            "active_parameters": _active(parameters, sum(head.expert_parameters for head in heads), shape),
            "context_length": shape["context_length"],
            "architecture": architecture,
            "capabilities": _capabilities(kind, said, senses if kind == "vlm" else []),
            "modalities": _modalities(kind, senses),
            "chat_template": said,
            "warnings": _warnings(config),
            "geometry": shape,
        }
    )


def _json(parts: Sequence[Part], name: str) -> dict[str, Any]:
    found = next((part for part in parts if part.name == name), None)
    return read_json(found.stream, found.size, name) if found else {}


def _refuse_missing(index: Part, names: frozenset[str]) -> None:
    """Every shard that an index names must be there. Its text is searched, not parsed: it may be long."""
    wanted: set[str] = set()
    tail = b""
    for _ in range(LARGEST_INDEX >> 16):
        chunk = index.stream.read(1 << 16)
        if not chunk:
            break
        tail += chunk
        wanted.update(found[1].decode("utf-8", "replace") for found in SHARD_NAME.finditer(tail))
        tail = tail[-256:]
        if len(wanted) > 4096:
            raise InvalidArgument(f"{index.name} names more than 4096 files", hint="download it again")
    if missing := sorted(wanted - names):
        said = ", ".join(missing[:5])
        raise InvalidArgument(f"{index.name} names {len(missing)} files that are not here: {said}", hint="put all shards into one folder")


def _quantized(config: Mapping[str, Any], heads: Sequence[Tensors]) -> tuple[int, str | None]:
    """Bits of a packed weight, and what the quantization is called."""
    said = config.get("quantization_config")
    counted = _added(head.elements for head in heads)
    commonest = max(counted, key=counted.__getitem__, default=None)
    if not isinstance(said, dict) or not isinstance(method := said.get("quant_method"), str):
        return 0, commonest
    bits = _number(said.get("bits")) if "bits" in said else 4 if said.get("load_in_4bit") else 0
    if method == "bitsandbytes":
        return (4, "NF4") if said.get("load_in_4bit") else (8, "INT8")
    if method == "compressed-tensors":
        return bits, str(said.get("format", method))[:40]
    name = METHODS.get(method, method[:40].upper())
    bits = bits if 1 <= bits <= 8 else 4 if method in ("awq", "gptq", "mxfp4") else 0
    return bits, f"{name}-Int{bits}" if method in ("awq", "gptq") else name


def _each(head: Tensors, bits: int) -> int:
    """Weights in one packed element."""
    wide = 32 if "I32" in head.elements else 8
    return wide // bits if 1 <= bits <= wide else 1


def _warnings(config: Mapping[str, Any]) -> list[str]:
    remote = config.get("auto_map")
    return ["its configuration names Python code of its own (auto_map): AIMA never runs it"] if isinstance(remote, dict) and remote else []


def _template_beside(parts: Sequence[Part]) -> dict[str, Any] | None:
    for part in parts:
        if part.name == "chat_template.jinja" and part.size <= LARGEST_TEMPLATE:
            return _template(part.stream.read(LARGEST_TEMPLATE).decode("utf-8", "replace"), part.name)
    for name in ("chat_template.json", "tokenizer_config.json"):
        found = next((part for part in parts if part.name == name), None)
        text = read_json(found.stream, found.size, name, 8 << 20).get("chat_template") if found else None
        if isinstance(text, list):  # several, each with a name
            text = "\n".join(str(entry.get("template", "")) for entry in text[:16] if isinstance(entry, dict))
        if isinstance(text, str) and text:
            return _template(text, name)
    return None


# ONNX


def _onnx(parts: Sequence[Part]) -> dict[str, Any]:
    graphs = [(part, read_onnx(part.stream, part.size, part.name)) for part in parts if part.name.endswith(".onnx")]
    sizes = {part.name: part.size for part in parts}
    for part, head in graphs:
        for place, needed in head.external.items():
            if sizes.get(place, 0) < needed:
                there = f"{sizes[place]} bytes" if place in sizes else "nothing"
                raise InvalidArgument(
                    f"{part.name} keeps {needed} bytes of weights in {place}, {there} is there", hint="put both into one folder"
                )
    config, names = _json(parts, "config.json"), frozenset(sizes)
    shape = geometry.of_config(config) if config else {}
    kind = (kinds.type_of_config(config, names) if config else None) or kinds.type_of_ends(graphs[0][1].inputs, graphs[0][1].outputs)
    counted = _added(head.elements for _, head in graphs)
    quantized = next((head.quantized for _, head in graphs if head.quantized), None)
    said = _template_beside(parts)
    return _filled(
        {
            "type": kind,
            "quantization": quantized or max(counted, key=counted.__getitem__, default=None),
            "parameters": sum(head.parameters for _, head in graphs) or None,
            "context_length": shape.get("context_length"),
            "architecture": config.get("model_type") if isinstance(config.get("model_type"), str) else None,
            "license": next((head.metadata["license"] for _, head in graphs if "license" in head.metadata), None),
            "capabilities": _capabilities(kind, said, []),
            "modalities": _modalities(kind, []),
            "chat_template": said,
            "geometry": shape | {"tensor_bytes": _added(head.bytes_by_type for _, head in graphs)},
        }
    )


def _ctranslate2(parts: Sequence[Part]) -> dict[str, Any]:
    """Its weights begin with a small version number; what it is for, its config.json tells."""
    first = parts[0].stream.read(8)
    if len(first) < 8 or not 0 < int.from_bytes(first[:4], "little") < 64:
        raise InvalidArgument(f"{parts[0].name} does not begin as ctranslate2 does", hint="was it fetched whole?")
    config = _json(parts, "config.json")
    kind = "asr" if "suppress_ids" in config or "lang_ids" in config else None
    return _filled({"type": kind, "capabilities": _capabilities(kind, None, []), "modalities": _modalities(kind, [])})


# All


def pickled(part: Part) -> str | None:
    """What to say of a file that is a Python pickle, whatever it is called; None for others."""
    first = part.stream.read(1 << 12)
    zipped = first.startswith(b"PK\x03\x04") and b"data.pkl" in first
    if zipped or first.startswith(PICKLES):
        return f"{part.name} is a Python pickle: loading it runs whatever code it carries. AIMA never loads it; ask for safetensors or GGUF"
    return None


def _template(text: str, source: str) -> dict[str, Any]:
    return {"source": source, "tools": kinds.shows_tools(text), "reasoning": kinds.reasons(text)}


def _capabilities(kind: str | None, template: Mapping[str, Any] | None, senses: Sequence[str]) -> list[str]:
    talks = kind in ("llm", "vlm") and template is not None
    found = (["chat"] if talks else []) + list(kinds.ABILITIES.get(kind or "", ()))
    if talks and template:
        found += [name for name in ("tools", "reasoning") if template[name]]
    return list(dict.fromkeys([*found, *senses]))


def _modalities(kind: str | None, senses: Sequence[str]) -> list[str]:
    """What it takes in."""
    own = {"asr": "audio", "detection": "image", "vlm": "text"}.get(kind or "", "text" if kind else "")
    seen = {"vision": "image", "audio": "audio"}
    return list(dict.fromkeys([*([own] if own else []), *(seen[sense] for sense in senses)]))


def _active(parameters: int, of_experts: int, shape: Mapping[str, Any]) -> int | None:
    """Parameters that one token meets: all but those of the experts that are not asked."""
    count, used = shape.get("expert_count"), shape.get("expert_used_count")
    if not parameters:
        return None
    if not of_experts or not count or used is None or used > count:
        return parameters
    return int(parameters - of_experts * (count - used) // count)


def _added(tables: Any) -> dict[str, int]:
    whole: dict[str, int] = {}
    for table in tables:
        for label, count in table.items():
            whole[label] = whole.get(label, 0) + count
    return whole


def _number(value: Any) -> int:
    """The integer, or -1."""
    return value if isinstance(value, int) and not isinstance(value, bool) else -1
