"""A plan put before the person behind the client, where it can ask: pushed in the handshake era, an InputRequiredResult since 2026-07-28.

What comes back with a repeated call is the plan's own token, which nobody can forge or use twice, beside the person's word.
"""

from __future__ import annotations

from typing import Any

import anyio
import mcp_types as types
from mcp_types.version import MODERN_PROTOCOL_VERSIONS

from aima_lib.errors import AimaError, ApprovalRequired, Cancelled
from aima_mcp.faces.mcp.edge import Ctx
from aima_mcp.faces.mcp.outside import clean_text

QUESTION = "consent"
FORM: dict[str, Any] = {"type": "object", "properties": {}}


def given(params: types.CallToolRequestParams) -> str | None:
    """The token of the plan that the person agreed to, as a repeated call brings it back.

    Raises:
        Cancelled: the person did not agree.
    """
    answer = (params.input_responses or {}).get(QUESTION)
    if answer is None or params.request_state is None:
        return None
    action = answer.get("action") if isinstance(answer, dict) else getattr(answer, "action", None)
    if action != "accept":
        raise _declined()
    return params.request_state


async def asked(ctx: Ctx, refusal: ApprovalRequired, seconds: float) -> str | dict[str, Any]:
    """The token, once the person has agreed; or the reply that asks.

    Raises:
        ApprovalRequired: the refusal, where the client cannot ask or its person's word is not enough.
        Cancelled: the person did not agree.
    """
    plan = refusal.details.get("plan", {})
    able = ctx.session.client_capabilities
    if able is None or able.elicitation is None or plan.get("policy") != "plan":
        raise refusal
    text = clean_text(f"{plan['unit']}: it {plan['summary']}. Go on?")
    if ctx.protocol_version in MODERN_PROTOCOL_VERSIONS:
        question = {"method": "elicitation/create", "params": {"mode": "form", "message": text, "requestedSchema": FORM}}
        return {"resultType": "input_required", "inputRequests": {QUESTION: question}, "requestState": plan["token"]}
    with anyio.move_on_after(seconds):
        found = await ctx.session.elicit_form(text, FORM, related_request_id=ctx.request_id)
        if found.action != "accept":
            raise _declined()
        return str(plan["token"])
    raise Cancelled(f"nobody answered within {seconds:g} s whether to go on", hint="nothing was done; call it again when somebody is there")


def _declined() -> AimaError:
    return Cancelled("the person asked did not agree", hint="nothing was done; do not try another way round")
