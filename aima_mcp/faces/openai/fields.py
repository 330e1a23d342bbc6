"""What a request to /v1 may hold. A field nobody knows is refused: one that is dropped in silence changes answers in silence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aima_lib.names import did_you_mean

SAMPLING = {
    "frequency_penalty",
    "logit_bias",
    "logprobs",
    "max_tokens",
    "n",
    "presence_penalty",
    "seed",
    "stop",
    "stream",
    "stream_options",
    "temperature",
    "top_p",
    "user",
}
LLAMA_SAMPLING = {
    "cache_prompt",
    "dry_allowed_length",
    "dry_base",
    "dry_multiplier",
    "dry_penalty_last_n",
    "dry_sequence_breakers",
    "dynatemp_exponent",
    "dynatemp_range",
    "grammar",
    "ignore_eos",
    "json_schema",
    "min_keep",
    "min_p",
    "mirostat",
    "mirostat_eta",
    "mirostat_tau",
    "n_keep",
    "n_predict",
    "n_probs",
    "post_sampling_probs",
    "repeat_last_n",
    "repeat_penalty",
    "samplers",
    "timings_per_token",
    "top_k",
    "top_n_sigma",
    "typical_p",
    "xtc_probability",
    "xtc_threshold",
}
CHAT = (
    SAMPLING
    | LLAMA_SAMPLING
    | {
        "chat_template_kwargs",
        "max_completion_tokens",
        "messages",
        "metadata",
        "model",
        "parallel_tool_calls",
        "reasoning_effort",
        "reasoning_format",
        "response_format",
        "service_tier",
        "store",
        "tool_choice",
        "tools",
        "top_logprobs",
    }
)
COMPLETE = SAMPLING | LLAMA_SAMPLING | {"best_of", "echo", "model", "prompt", "suffix"}
EMBED = {"dimensions", "encoding_format", "input", "model", "user"}
KNOWN = {"chat": CHAT, "complete": COMPLETE, "embed": EMBED}
NEEDED = {"chat": "messages", "complete": "prompt", "embed": "input"}


class Wrong(Exception):
    """A field that cannot be: `param` names it."""

    def __init__(self, message: str, param: str | None = None, code: str = "invalid_argument") -> None:
        super().__init__(message)
        self.param, self.code = param, code


def checked(task: str, body: Any) -> dict[str, Any]:
    """The request, every field of it known.

    Raises:
        Wrong: a field is unknown, missing, or not of its type.
    """
    if not isinstance(body, Mapping):
        raise Wrong("the body is not a JSON object")
    for name in body:
        if name not in KNOWN[task]:
            hint = did_you_mean(name, KNOWN[task])
            raise Wrong(f"unknown field {name!r}" + (f": {hint}" if hint else ""), name, "unknown_parameter")
    if not isinstance(body.get("model"), str) or not body["model"]:
        raise Wrong("model must name a service or a model; GET /v1/models lists them", "model")
    if NEEDED[task] not in body:
        raise Wrong(f"{NEEDED[task]} is missing", NEEDED[task])
    if task == "chat" and not _are_messages(body["messages"]):
        raise Wrong("messages must be an array of objects with role and content", "messages")
    if not isinstance(body.get("stream", False), bool | None):
        raise Wrong("stream must be true or false", "stream")
    request = dict(body)
    if "max_completion_tokens" in request:  # OpenAI's new name of max_tokens; engines know the old one
        longest = request.pop("max_completion_tokens")
        request.setdefault("max_tokens", longest)
    return request


def _are_messages(value: Any) -> bool:
    """Whether this has the shape of a conversation; what is in it, the engine judges."""

    def objects(items: Any) -> bool:
        return isinstance(items, list) and all(isinstance(item, Mapping) for item in items)

    return objects(value) and all(objects(each.get("content")) for each in value if isinstance(each.get("content"), list))
