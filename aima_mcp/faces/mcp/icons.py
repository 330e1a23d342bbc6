"""Icons: one small drawing a domain, beside the schemas, as data: URIs, since a host at home has no public place to serve them from."""

from __future__ import annotations

from functools import cache
from urllib.parse import quote

from aima_lib.registry import SCHEMAS

OURS, OTHER = "aima", "unit"
PLAIN = "='/:;,()"  # what a data: URI may hold as it is; quotation marks become single ones first


@cache
def icons(name: str) -> list[dict[str, object]]:
    """As MCP lists them: the icon of a domain, or of AIMA itself. A domain without a drawing has that of units."""
    path = SCHEMAS / "icons" / f"{name}.svg"
    text = (path if path.exists() else path.with_name(f"{OTHER}.svg")).read_text(encoding="utf-8").strip().replace('"', "'")
    return [{"src": f"data:image/svg+xml,{quote(text, safe=PLAIN)}", "mimeType": "image/svg+xml", "sizes": ["any"]}]
