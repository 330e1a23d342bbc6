"""The YAML of the Go AIMA as recipes: a model_asset's variant becomes one, an engine_asset the engine of one.

What its format does not hold is derived where that is sure, and said; what cannot be derived is asked for, and may be given beside it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from aima_lib.catalog.recipe import UNVERIFIED
from aima_lib.flows.source import Issue, Path, Places, refusal
from aima_lib.names import slug

MIB = 1 << 20
ALL_LAYERS = 500  # 999 is how people write "all of them"
ENGINES = {"vllm": "vllm", "sglang": "sglang", "llamacpp": "llamacpp", "llama.cpp": "llamacpp", "llama-cpp": "llamacpp",
           "llama-server": "llama-server", "transformers": "transformers", "faster-whisper": "faster-whisper", "piper": "piper",
           "kokoro": "kokoro"}  # fmt: skip
TYPES = {"llm": "llm", "vlm": "vlm", "asr": "asr", "stt": "asr", "tts": "tts", "embedding": "embedding", "rerank": "rerank",
         "reranker": "rerank", "diffusion": "diffusion", "image_gen": "diffusion", "video_gen": "video_gen",
         "detection": "detection"}  # fmt: skip
OPTIONS = {"max_model_len": "context_length", "ctx_size": "context_length", "n_ctx": "context_length", "context_length": "context_length",
           "gpu_memory_utilization": "memory_fraction", "mem_fraction_static": "memory_fraction", "dtype": "dtype",
           "n_gpu_layers": "gpu_layers", "gpu_layers": "gpu_layers", "tensor_parallel_size": "tensor_parallel",
           "tp_size": "tensor_parallel", "max_num_seqs": "parallel", "max_running_requests": "parallel", "parallel": "parallel",
           "n_parallel": "parallel", "threads": "threads", "batch_size": "batch_size", "seed": "seed"}  # fmt: skip
OURS = ("port", "host")  # AIMA gives both itself
NVIDIA = ("kepler", "maxwell", "pascal", "volta", "turing", "ampere", "ada", "hopper", "blackwell", "rubin")
BYTES = {"float32": 4.0, "float16": 2.0, "bfloat16": 2.0, "half": 2.0, "auto": 2.0, "fp8": 1.0, "int8": 1.0, "awq": 0.56, "gptq": 0.56,
         "int4": 0.56, "q8_0": 1.0625, "q6_k": 0.82, "q5_k_m": 0.71, "q4_k_m": 0.606, "q4_0": 0.5625}  # fmt: skip
OTHERS = {
    "hardware_profile": "a machine's hardware is detected, and catalog.match takes a described one as overrides",
    "partition_strategy": "memory is shared by resource classes, priorities and groups of services",
    "deployment_scenario": "several services together are a pipeline's, or several recipes",
    "stack_component": "AIMA runs no cluster of its own",
    "knowledge_note": "what was measured is kept by benchmark.run",
}
KINDS = ("model_asset", "engine_asset", *OTHERS)


def is_foreign(value: Any) -> bool:
    """Whether a document is one of the Go AIMA's."""
    return isinstance(value, Mapping) and isinstance(value.get("kind"), str) and "name" not in value


def translated(
    value: Mapping[str, Any], places: Places, beside: Mapping[str, Any], variant: str | None
) -> tuple[dict[str, Any], list[str]]:
    """The recipe that it holds, and what was left out or derived. `beside` completes it, and comes before what it says.

    Raises:
        InvalidArgument: it is no recipe's, or a part is missing; the issues name each.
    """
    kind = value["kind"]
    if kind not in ("model_asset", "engine_asset"):
        why = OTHERS.get(kind, f"kinds are {', '.join(KINDS)}")
        raise refusal(f"a {kind[:40]} is no recipe", [places.issue(("kind",), f"{kind[:40]!r} holds no model to serve", why)])
    reading = Reading(value, places)
    recipe = reading.model(variant) if kind == "model_asset" else reading.engine()
    recipe |= beside
    missing = [key for key in ("name", "title", "type", "engines", "license", "size_bytes", "memory_bytes", "sources") if key not in recipe]
    found = [*reading.issues, *(_missing(key, kind) for key in missing if key not in reading.refused)]
    if found:
        raise refusal(f"this {kind} is no whole recipe", found)
    known = {"size_bytes": f"{UNVERIFIED}; given beside the {kind}", "memory_bytes": f"{UNVERIFIED}; given beside the {kind}"}
    recipe["evidence"] = known | reading.evidence | beside.get("evidence", {})
    return recipe, reading.notes


def _missing(key: str, kind: str) -> Issue:
    return Issue(key, f"{key} is missing: a {kind} of the Go AIMA does not tell it", suggestion=f"give {key} in recipe, beside definition")


class Reading:
    """One document on its way to a recipe."""

    def __init__(self, value: Mapping[str, Any], places: Places) -> None:
        self._value, self._places = value, places
        self.issues: list[Issue] = []
        self.notes: list[str] = []
        self.evidence: dict[str, str] = {}
        self.refused: set[str] = set()

    def model(self, name: str | None) -> dict[str, Any]:
        """The recipe of a model_asset's variant: the one that is named, else the first whose engine AIMA has."""
        about, (at, variant) = _map(self._value.get("metadata")), self._variant(name)
        config, hardware = _map(variant.get("default_config")), _map(variant.get("hardware"))
        title = str(variant.get("name") or about.get("name") or "unnamed")
        recipe: dict[str, Any] = {"name": slug(title), "title": f"{about.get('name', title)} ({title})", "license": self._license(about)}
        if (kind := self._one(TYPES, about.get("type"), ("metadata", "type"), "type")) is not None:
            recipe["type"] = kind
        if (engine := self._one(ENGINES, variant.get("engine"), (*at, "engine"), "engines")) is not None:
            recipe["engines"] = [engine]
        recipe |= self._hardware(hardware, (*at, "hardware")) | self._options(config)
        recipe |= self._sizes(about, variant, config, hardware)
        if sources := [*self._sources()]:
            recipe["sources"] = sources
        if figures := self._figures(_map(variant.get("expected_performance"))):
            recipe["expected"] = [figures]
        return recipe

    def engine(self) -> dict[str, Any]:
        """What an engine_asset says of a recipe: its engine, hardware and options."""
        about, image = _map(self._value.get("metadata")), _map(self._value.get("image"))
        recipe: dict[str, Any] = {}
        if (engine := self._one(ENGINES, about.get("type"), ("metadata", "type"), "engines")) is not None:
            version = str(about.get("version") or "")
            recipe["engines"] = [{"name": engine, "version": version} if re.fullmatch(r"[0-9]+(\.[0-9]+){2}", version) else engine]
            if version and "version" not in recipe["engines"][0]:
                self.notes.append(f"metadata.version {version} is no package's version: the one AIMA was tested with is taken")
        if image:
            named = f"{image.get('name')}:{image.get('tag')}"
            self.notes.append(f"image {named} is left out: a tag may mean another image tomorrow; give engines[0].image by its digest")
        recipe |= self._hardware(_map(self._value.get("hardware")), ("hardware",))
        return recipe | self._options(_map(_map(self._value.get("startup")).get("default_args")))

    def _variant(self, name: str | None) -> tuple[Path, Mapping[str, Any]]:
        given = self._value.get("variants")
        variants = [_map(each) for each in given] if isinstance(given, list) else []
        named = [str(each.get("name")) for each in variants]
        if not variants or (name is not None and name not in named):
            why = f"there are: {', '.join(named)}" if variants else "give one with an engine, or write a recipe of AIMA's own"
            what = f"no variant is called {name!r}" if variants else "it has no variant, so no engine"
            raise refusal("this model_asset is no recipe", [self._places.issue(("variants",), what, why)])
        able = next((place for place, each in enumerate(variants) if str(each.get("engine", "")).lower() in ENGINES), 0)
        chosen = named.index(name) if name is not None else able
        if others := [each for place, each in enumerate(named) if place != chosen]:
            self.notes.append(f"variant {named[chosen]} was taken; others are {', '.join(others)}: import each by variant")
        return ("variants", chosen), variants[chosen]

    def _one(self, known: Mapping[str, str], given: Any, at: Path, key: str) -> str | None:
        if (found := known.get(str(given).lower())) is not None:
            return found
        self.refused.add(key)
        what = f"{str(given)[:60]!r} is none that AIMA knows" if given is not None else "it is missing"
        self.issues.append(self._places.issue(at, what, f"there are: {', '.join(sorted(set(known.values())))}"))
        return None

    def _license(self, about: Mapping[str, Any]) -> str:
        if about.get("license"):
            return str(about["license"])
        self.notes.append("license: the Go AIMA's format does not tell it; look it up at the model's source")
        return "not stated"

    def _hardware(self, given: Mapping[str, Any], at: Path) -> dict[str, Any]:
        architecture, wanted = str(given.get("gpu_arch") or "*").lower(), dict[str, Any]()
        if architecture in NVIDIA:
            wanted |= {"types": ["gpu"], "vendors": ["nvidia"], "architectures": [architecture]}
        elif architecture in ("none", "cpu"):
            wanted |= {"types": ["cpu"]}
        elif architecture != "*":
            why = "give hardware in recipe, beside definition"
            self.issues.append(self._places.issue((*at, "gpu_arch"), f"{architecture[:40]!r} is no architecture that AIMA detects", why))
        if isinstance(given.get("unified_memory"), bool):
            wanted["memory_kinds"] = ["unified"] if given["unified_memory"] else ["dedicated"]
        if _positive(given.get("vram_min_mib")):
            wanted["memory_bytes"] = {"min": int(given["vram_min_mib"] * MIB)}
        return {"hardware": wanted} if wanted else {}

    def _options(self, given: Mapping[str, Any]) -> dict[str, Any]:
        options, strange = {}, []
        for key, value in given.items():
            name = OPTIONS.get(key)
            if name == "gpu_layers" and isinstance(value, int) and (value < 0 or value >= ALL_LAYERS):
                continue  # all of them, which is what AIMA does
            if name is not None:
                options[name] = value
            elif key not in OURS:
                strange.append(key)
        if strange:
            self.notes.append(f"options that AIMA has not are left out: {', '.join(sorted(strange))[:300]}")
        return {"options": options} if options else {}

    def _sizes(
        self, about: Mapping[str, Any], variant: Mapping[str, Any], config: Mapping[str, Any], hardware: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Weights by the count of parameters and their width, memory by what the variant asks for."""
        width = str(variant.get("quantization") or config.get("quantization") or config.get("dtype") or "").lower()
        count, found = _parameters(about.get("parameter_count")), dict[str, Any]()
        if not width and variant.get("format") == "safetensors":
            width = "bfloat16"
        if count and width in BYTES:
            found["size_bytes"] = int(count * BYTES[width])
            self.evidence["size_bytes"] = f"{UNVERIFIED}; derived from {about['parameter_count']} parameters of {width}"
        least = hardware.get("vram_min_mib") if _positive(hardware.get("vram_min_mib")) else 0
        size = found.get("size_bytes", 0)
        asked = int((least or 0) * MIB)
        if asked and asked >= size:
            found["memory_bytes"] = asked
            self.evidence["memory_bytes"] = f"{UNVERIFIED}; vram_min_mib of the Go AIMA's variant"
        elif size:
            found["memory_bytes"] = int(size * 1.2) + (512 << 20)
            self.evidence["memory_bytes"] = f"{UNVERIFIED}; 1.2 times the derived weights and 0.5 GiB"
        return found

    def _sources(self) -> Iterator[dict[str, Any]]:
        given = _map(self._value.get("storage")).get("sources")
        for each in map(_map, given if isinstance(given, list) else ()):
            kind = str(each.get("type"))
            if kind not in ("huggingface", "modelscope", "ollama") or not each.get("repo"):
                self.notes.append(f"storage.sources: one of type {kind[:40]} is left out: it is no repository that AIMA fetches from")
                continue
            more = {key: str(each[key]) for key in ("revision", "file", "quantization") if each.get(key)}
            yield {"source": kind, "repo": str(each["repo"]), **more, "evidence": f"{UNVERIFIED}; from the Go AIMA's catalog"}

    def _figures(self, given: Mapping[str, Any]) -> dict[str, Any] | None:
        figures, words = {}, []
        for theirs, ours in (("tokens_per_second", "tokens_per_second"), ("latency_first_token_ms", "ttft_ms")):
            both = _span(given.get(theirs))
            if both is not None and both[0] > 0:
                figures[ours] = both[0] if ours == "tokens_per_second" else both[1]
                words.append(f"{theirs} {both[0]:g} to {both[1]:g}")
            elif theirs in given:
                self.notes.append(f"expected_performance.{theirs} is left out: a figure is more than zero")
        return {**figures, "evidence": f"{UNVERIFIED}; the Go AIMA's catalog says {', '.join(words)}"} if figures else None


def _map(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _positive(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 1e9


def _span(value: Any) -> tuple[float, float] | None:
    numbers: Sequence[Any] = value if isinstance(value, list) else [value, value]
    good = len(numbers) == 2 and all(isinstance(each, int | float) and not isinstance(each, bool) for each in numbers)
    return (float(min(numbers)), float(max(numbers))) if good else None


def _parameters(text: Any) -> float | None:
    """`8B`, `0.6B`, `560M` as a count."""
    found = re.fullmatch(r"\s*([0-9]{1,6}(?:\.[0-9]{1,6})?)\s*([BM])\s*", str(text), re.IGNORECASE)
    return float(found[1]) * (1e9 if found[2].upper() == "B" else 1e6) if found else None
