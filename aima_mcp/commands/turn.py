"""One question and its answer, with the text as it comes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from aima_lib.door import Door
from aima_lib.errors import FailedPrecondition, InvalidArgument
from aima_mcp.faces.cli.render import err
from aima_mcp.faces.cli.watching import Silence, Tokens, seen_by

Message = Mapping[str, Any]


async def only_model(door: Door) -> str:
    """The one that can chat now.

    Raises:
        FailedPrecondition: there is none.
        InvalidArgument: there are several.
    """
    rows = (await door.call("inference.models", {"type": "chat"}))["models"]
    ready = [row["id"] for row in rows if row["status"] == "ready"]
    if not ready:
        calls = [{"unit": "service.create", "arguments": {"model_id": row["model_id"]}} for row in rows if row["status"] == "loadable"]
        raise FailedPrecondition("no model is served that can chat", hint="aima quickstart fetches and serves one", next=calls[:3])
    if len(ready) > 1:
        raise InvalidArgument(f"several models are served: {', '.join(ready)}", hint=f"aima chat {ready[0]}")
    return str(ready[0])


async def ask(door: Door, model: str, messages: Sequence[Message], options: Mapping[str, Any], *, quiet: bool = False) -> Mapping[str, Any]:
    """The model's answer, as inference.chat gives it; unless quiet, its text goes to standard output as it comes."""
    tokens = Silence() if quiet else Tokens()
    with seen_by(tokens):
        answer = await door.call("inference.chat", {"model": model, "messages": [*messages], **options}, send=tokens.send)
    if not quiet:
        _note(answer)
    return answer


def _note(answer: Mapping[str, Any]) -> None:
    """What a person should know of an answer beside its text."""
    if answer["finish_reason"] == "length":
        err().print("(cut off: the limit of tokens or the end of the context was reached)", style="yellow")
    if fallback := answer["placement"].get("fallback"):
        err().print(f"({fallback})", style="yellow", soft_wrap=True)
    speed, wait = answer["timings"].get("tokens_per_second"), answer["timings"].get("ttft_ms")
    if err().is_terminal and speed and wait is not None:
        where = answer["placement"].get("node") or answer["placement"]["device"]
        err().print(f"({speed:.1f} tokens/s, first after {wait / 1000:.2f} s, on {where})", style="dim")
