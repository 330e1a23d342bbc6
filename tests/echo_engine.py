"""A llama-server that computes nothing: it repeats what it is told and writes the trace context of each request into its log."""

from __future__ import annotations

import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


def option(name: str) -> str:
    return sys.argv[sys.argv.index(name) + 1]


class Echo(BaseHTTPRequestHandler):
    def answer(self, status: int, body: bytes, kind: str = "application/json") -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        known = self.headers.get("Authorization") == f"Bearer {Path(option('--api-key-file')).read_text(encoding='utf-8').strip()}"
        self.answer(200 if known else 401, json.dumps({"data": [{"id": option("--alias")}]}).encode())

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        said = asked["messages"][-1]["content"] if "messages" in asked else asked["prompt"]
        seen = {key: self.headers[key] for key in ("traceparent", "tracestate", "baggage") if key in self.headers}
        print(f"SEEN {json.dumps({'said': said, **seen})}", flush=True)
        words = {"role": "assistant", "content": said}
        choice = {"index": 0, "finish_reason": "stop", "text": said, "message": words, "delta": words}
        usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
        body = json.dumps({"id": "1", "model": option("--alias"), "choices": [choice], "usage": usage}).encode()
        if asked.get("stream"):
            self.answer(200, b"data: " + body + b"\n\ndata: [DONE]\n\n", "text/event-stream")
        else:
            self.answer(200, body)

    def log_message(self, format: str, *args: object) -> None:
        pass


if __name__ == "__main__":
    if "--version" in sys.argv:
        print("version: 1 (echo)")
    elif "--list-devices" in sys.argv:
        print("Available devices:")
    else:
        ThreadingHTTPServer(("127.0.0.1", int(option("--port"))), Echo).serve_forever()
