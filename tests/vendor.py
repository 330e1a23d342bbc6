"""A small server that speaks OpenAI's API as vendors and other engines do: it answers with what it was asked, and remembers it.

`python vendor.py` with the words of `vllm serve`, `sglang.launch_server` or `transformers serve` listens as that one would.
"""

from __future__ import annotations

import base64
import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

PNG = base64.b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg==")


class Vendor(BaseHTTPRequestHandler):
    """Knows one model; a key where one is given."""

    protocol_version = "HTTP/1.1"
    model, key = "model-1", ""
    seen: list[tuple[str, Any]]
    status = 200

    def say(self, body: bytes, kind: str = "application/json", status: int = 200) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def is_known(self) -> bool:
        if self.key and self.headers.get("Authorization") != f"Bearer {self.key}":
            self.say(b'{"error": {"message": "Incorrect API key provided"}}', status=401)
            return False
        return True

    def do_GET(self) -> None:
        if self.is_known():
            self.say(json.dumps({"object": "list", "data": [{"id": self.model, "object": "model"}]}).encode())

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if not self.is_known():
            return
        is_json = self.headers["Content-Type"].startswith("application/json")
        asked = json.loads(body) if is_json else body
        self.seen.append((self.path, asked))
        if self.status != 200:
            self.say(b'{"error": {"message": "busy"}}', status=self.status)
        elif self.path.endswith("/chat/completions") or self.path.endswith("/v1/completions"):
            self.talk(asked)
        elif self.path.endswith("/embeddings"):
            rows = [{"index": place, "embedding": [0.6, 0.8]} for place, _ in enumerate(asked["input"])]
            self.say(json.dumps({"data": rows, "usage": {"prompt_tokens": 2, "total_tokens": 2}}).encode())
        elif self.path.endswith("/rerank"):
            rows = [{"index": place, "relevance_score": len(text) / 100} for place, text in enumerate(asked["documents"])]
            self.say(json.dumps({"results": rows, "usage": {"total_tokens": 7}}).encode())
        elif self.path.endswith("/transcriptions"):
            segments = [{"id": 0, "start": 0.0, "end": 1.5, "text": " heard"}]
            self.say(json.dumps({"text": "heard", "language": "english", "duration": 1.5, "segments": segments}).encode())
        elif self.path.endswith("/speech"):
            self.say(b"OggS" + asked["input"].encode(), "audio/ogg")
        elif self.path.endswith("/images/generations"):
            self.say(json.dumps({"created": 1, "data": [{"b64_json": base64.b64encode(PNG).decode()}] * asked.get("n", 1)}).encode())
        else:
            self.say(b"{}")

    def talk(self, asked: Any) -> None:
        if asked["model"] != self.model:
            return self.say(b'{"error": {"message": "The model does not exist"}}', status=404)
        said = asked["messages"][-1]["content"] if "messages" in asked else asked["prompt"]
        if isinstance(said, list):  # as one that sees
            images = [part["image_url"]["url"] for part in said if part["type"] == "image_url"]
            assert all(url.startswith("data:image/") for url in images)
            sizes = [len(base64.b64decode(url.partition(",")[2])) for url in images]
            said = f"{said[0]['text']} {sizes[0]} bytes of {images[0].partition(';')[0].removeprefix('data:')}"
        count = len(said.split()) if isinstance(said, str) else 1
        usage = {"prompt_tokens": count, "completion_tokens": 1, "total_tokens": count + 1}
        words = {"role": "assistant", "content": said}
        choice = {"index": 0, "finish_reason": "stop", "text": said, "message": words, "delta": words}
        name = f"{asked['model']}@main" if isinstance(self.model, Anything) else self.model
        body = json.dumps({"id": "1", "model": name, "choices": [choice], "usage": usage}).encode()
        if isinstance(self.model, Anything) and "top_k" in asked:
            return self.say(b'{"detail":"Unexpected fields in the request: {\'top_k\'}"}', status=422)
        if asked.get("stream") and isinstance(self.model, Anything):  # in pieces, and it ends without [DONE]
            pieces = [
                {"index": 0, "delta": {"content": said}, "text": said},
                {"index": 0, "delta": {}, "text": "", "finish_reason": "stop"},
            ]
            rows = [{"id": "1", "model": name, "choices": [piece]} for piece in pieces]
            rows[-1]["usage"] = usage
            return self.say("".join(f"data: {json.dumps(row)}\n\n" for row in rows).encode(), "text/event-stream")
        if asked.get("stream"):
            return self.say(b"data: " + body + b"\n\ndata: [DONE]\n\n", "text/event-stream")
        return self.say(body)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


def listen(port: int = 0, model: str = "model-1", key: str = "") -> ThreadingHTTPServer:
    """Such a server, not serving yet; what it has seen is `server.RequestHandlerClass.seen`."""
    handler = type("Bound", (Vendor,), {"model": model, "key": key, "seen": []})
    return ThreadingHTTPServer(("127.0.0.1", port), handler)


def main(words: list[str]) -> None:
    """As a server of another name is started: every option has a value but those that have none."""
    bare = {"--enforce-eager", "--disable-cuda-graph", "--enable-auto-tool-choice", "--is-embedding"}
    given, left = dict[str, str](), list[str]()
    words = list(words)
    while words:
        word = words.pop(0)
        if word.startswith("--"):
            given[word] = "" if word in bare else words.pop(0)
        else:
            left.append(word)
    print("WORDS", json.dumps({name: value for name, value in given.items() if name != "--api-key"}), flush=True)
    name = given.get("--served-model-name") or ""
    server = listen(int(given["--port"]), name, given.get("--api-key", ""))
    if not name:  # transformers serve: whatever path is asked for
        server.RequestHandlerClass.model = Anything()  # type: ignore[attr-defined]
    server.serve_forever()


class Anything(str):
    """Equal to every name."""

    def __eq__(self, other: object) -> bool:
        return True

    def __ne__(self, other: object) -> bool:
        return False

    __hash__ = str.__hash__


if __name__ == "__main__":
    main(sys.argv[1:])
