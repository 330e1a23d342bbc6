"""Requests that ask a model ask the one that is there, for few words."""

from __future__ import annotations

import schemathesis

ASKING = ("/v1/", "/units/inference/")
LONGEST = {
    "/v1/chat/completions": "max_tokens",
    "/v1/completions": "max_tokens",
    "/v1/responses": "max_output_tokens",
    "/units/inference/chat": "max_tokens",
}
FEW = 4


@schemathesis.hook
def before_call(ctx: schemathesis.HookContext, case: schemathesis.Case, kwargs: object) -> None:
    body = case.body
    if not case.path.startswith(ASKING) or not isinstance(body, dict):
        return
    if isinstance(body.get("model"), str) and body["model"]:
        body["model"] = "tiny"
    if (name := LONGEST.get(case.path)) and body.get(name) is None:
        body[name] = FEW
    for name in ("max_tokens", "max_completion_tokens", "max_output_tokens", "n_predict", "n"):
        if isinstance(body.get(name), int | float) and not 0 < body[name] <= FEW:
            body[name] = FEW
