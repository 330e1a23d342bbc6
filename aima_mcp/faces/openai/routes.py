"""The paths of /v1 that ask a model, and whose words each speaks."""

from __future__ import annotations

from dataclasses import dataclass

from aima_mcp.faces.openai import fields


@dataclass(frozen=True, slots=True)
class Route:
    """One path: the unit whose rules hold for it, the dialect that the engine must speak, the fields it takes and those it needs."""

    task: str
    unit: str
    dialect: str
    known: frozenset[str]
    needed: tuple[str, ...]
    counts: bool = False  # says how many tokens a prompt has, and asks the model nothing


def _chat(dialect: str, known: set[str], *needed: str, counts: bool = False) -> Route:
    return Route("chat", "inference.chat", dialect, frozenset(known), needed, counts)


ROUTES = {
    "/v1/chat/completions": _chat("openai", fields.CHAT, "messages"),
    "/v1/completions": Route("complete", "inference.complete", "openai", frozenset(fields.COMPLETE), ("prompt",)),
    "/v1/embeddings": Route("embed", "inference.embed", "openai", frozenset(fields.EMBED), ("input",)),
    "/v1/responses": _chat("responses", fields.RESPONSE, "input"),
    "/v1/responses/input_tokens": _chat("responses", fields.COUNT_RESPONSE, "input", counts=True),
    "/v1/messages": _chat("anthropic", fields.MESSAGE, "messages", "max_tokens"),
    "/v1/messages/count_tokens": _chat("anthropic", fields.COUNT_MESSAGE, "messages", counts=True),
}
# OpenAI's paths for what no engine here does. They are not advertised; a client that tries one learns what is missing.
ABSENT = {"/v1/audio/translations": "translate speech", "/v1/images/edits": "edit images", "/v1/images/variations": "vary images"}
