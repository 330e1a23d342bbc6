"""The process of an engine that has no HTTP server of its own: `python server.py FOLDER`.

Reads spec.json and key from the folder, has the module that the spec names (beside this one) load the model and compute once, listens on
a port of the system's choice, and says where in ready.json. It speaks OpenAI's HTTP API where that has a path, and its own beyond: see
ROUTES. It needs the standard library alone, so that any engine's python can run it.
"""

from __future__ import annotations

import base64
import hmac
import importlib
import json
import os
import select
import socket
import sys
import threading
import time
import types
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
if "aima_lib" not in sys.modules:  # the files beside this one, by their names, without the product that they ship in
    package = types.ModuleType("aima_lib")
    package.__path__ = [str(ROOT)]
    sys.modules["aima_lib"] = package

from aima_lib.worker import sound  # noqa: E402
from aima_lib.worker.base import Alive, Spec, Wrong  # noqa: E402

BODY_BYTES = 256 << 20
Answer = tuple[str, bytes, Mapping[str, str]]  # media type, body, headers
Asked = Mapping[str, Any]


class Worker:
    """A loaded model, and how many requests it computes at once."""

    def __init__(self, spec: Spec, key: str) -> None:
        self.spec, self.key = spec, key
        self.model: Any = importlib.import_module(f"aima_lib.worker.{spec['module']}").load(spec)
        self.slots = threading.Semaphore(int(spec.get("parallel") or 1))
        self.model.probe()

    def props(self) -> dict[str, Any]:
        """What it can do, asked of the model."""
        return {
            "model": self.spec["alias"],
            "total_slots": int(self.spec.get("parallel") or 1),
            "tasks": self.spec["tasks"],
            **self.model.props(),
        }

    def embeddings(self, asked: Asked, alive: Alive) -> Answer:
        texts = [asked["input"]] if isinstance(asked["input"], str) else list(asked["input"])
        vectors, tokens = self.model.embed(texts, alive)
        rows = [{"object": "embedding", "index": index, "embedding": vector} for index, vector in enumerate(vectors)]
        return _json({"object": "list", "model": self.spec["alias"], "data": rows, "usage": _usage(tokens)})

    def rerank(self, asked: Asked, alive: Alive) -> Answer:
        documents = [text if isinstance(text, str) else str(text["text"]) for text in asked["documents"]]
        scores, tokens = self.model.rerank(asked["query"], documents, alive)
        ranked = sorted(range(len(scores)), key=lambda index: -scores[index])[: asked.get("top_n") or len(scores)]
        rows = [{"index": index, "relevance_score": scores[index]} for index in ranked]
        return _json({"model": self.spec["alias"], "results": rows, "usage": _usage(tokens)})

    def transcriptions(self, asked: Asked, alive: Alive) -> Iterator[dict[str, Any]]:
        """Pieces as they are heard, in OpenAI's events; the last holds all of it."""
        heard: list[dict[str, Any]] = []
        parts = self.model.transcribe(asked["file"], asked, alive)
        head = next(parts)
        for segment in parts:
            alive()
            heard.append({"id": len(heard), **segment})
            yield {"type": "transcript.text.delta", "delta": segment["text"]}
        whole = {"task": "transcribe", **head, "text": "".join(segment["text"] for segment in heard).strip(), "segments": heard}
        yield {"type": "transcript.text.done", **whole}

    def speech(self, asked: Asked, alive: Alive) -> Answer:
        form = asked.get("response_format") or "wav"
        if form not in sound.formats():
            raise Wrong(f"response_format can be {', '.join(sound.formats())} here")
        spoken = self.model.synthesize(asked["input"], asked.get("voice"), float(asked.get("speed") or 1.0), alive)
        seconds = len(spoken.samples) / 2 / spoken.sample_rate
        facts = {"x-sample-rate": str(spoken.sample_rate), "x-duration-seconds": f"{seconds:.3f}", "x-voice": spoken.voice}
        return sound.MEDIA_TYPES[form], sound.encoded(spoken, form), facts

    def images(self, asked: Asked, alive: Alive) -> Answer:
        made = self.model.generate_image(asked, alive)
        rows = [{"b64_json": base64.b64encode(picture.data).decode(), **picture.facts} for picture in made]
        return _json({"created": int(time.time()), "data": rows})

    def videos(self, asked: Asked, alive: Alive) -> Answer:
        made = self.model.generate_video(asked, alive)
        return made.media_type, made.data, {f"x-{name.replace('_', '-')}": str(value) for name, value in made.facts.items()}

    def detections(self, asked: Asked, alive: Alive) -> Answer:
        return _json(self.model.detect(base64.b64decode(asked["image"]), asked, alive))

    def probe(self, asked: Asked, alive: Alive) -> Answer:  # noqa: ARG002
        self.model.probe()
        return _json({"status": "ok"})


ROUTES: dict[str, tuple[str | None, Callable[[Worker, Asked, Alive], Answer | Iterator[dict[str, Any]]]]] = {
    "/v1/embeddings": ("embed", Worker.embeddings),
    "/v1/rerank": ("rerank", Worker.rerank),
    "/v1/audio/transcriptions": ("transcribe", Worker.transcriptions),
    "/v1/audio/speech": ("synthesize", Worker.speech),
    "/v1/images/generations": ("generate_image", Worker.images),
    "/v1/video/generations": ("generate_video", Worker.videos),
    "/v1/detections": ("detect", Worker.detections),
    "/probe": (None, Worker.probe),
}


class Handler(BaseHTTPRequestHandler):
    """One connection of AIMA's."""

    protocol_version = "HTTP/1.1"
    worker: Worker
    timeout = 600

    def do_GET(self) -> None:
        if not self._is_known():
            return self._refuse(401, "wrong key")
        if self.path == "/v1/models":
            return self._answer(_json({"object": "list", "data": [{"id": self.worker.spec["alias"], "object": "model"}]}))
        if self.path == "/props":
            return self._answer(_json(self.worker.props()))
        return self._refuse(404, "no such path")

    def do_POST(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        if not self._is_known() or length > BODY_BYTES:
            self.close_connection = True
            return self._refuse(*((413, f"at most {BODY_BYTES} bytes") if self._is_known() else (401, "wrong key")))
        body = self.rfile.read(length)
        task, work = ROUTES.get(self.path, ("", None))
        if work is None or (task is not None and task not in self.worker.spec["tasks"]):
            return self._refuse(404, f"this model can {', '.join(self.worker.spec['tasks'])}")
        try:
            asked = _form(self.headers["Content-Type"], body) if "multipart" in self.headers["Content-Type"] else json.loads(body)
            with self.worker.slots:
                self._alive()
                made = work(self.worker, asked, self._alive)
                if isinstance(made, tuple):
                    self._answer(made)
                else:
                    self._heard(made, asked)
        except Wrong as wrong:
            self._refuse(400, str(wrong))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            sys.stderr.write(f"E {type(error).__name__} in {self.path}\n")  # its words may quote the request
            self._refuse(500, f"{type(error).__name__} in the engine")
        except ConnectionError:
            self.close_connection = True  # nobody listens any more
        return None

    def _heard(self, events: Iterator[dict[str, Any]], asked: Asked) -> None:
        """A transcript: as events where that was asked for, else its last one."""
        if asked.get("stream") != "true":
            *_, last = events
            return self._answer(_json(last))
        first = next(events)  # what is refused is refused before the answer begins
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        self._event(first)
        for event in events:
            self._event(event)
        self.wfile.write(b"data: [DONE]\n\n")
        return None

    def _event(self, event: Mapping[str, Any]) -> None:
        self.wfile.write(b"data: " + json.dumps(event).encode() + b"\n\n")
        self.wfile.flush()

    def _is_known(self) -> bool:
        return hmac.compare_digest(self.headers.get("Authorization", "").encode("latin-1", "replace"), f"Bearer {self.worker.key}".encode())

    def _alive(self) -> None:
        """Raises ConnectionError when the client has left: what nobody waits for is not computed."""
        if select.select([self.connection], [], [], 0)[0] and not self.connection.recv(1, socket.MSG_PEEK):
            raise ConnectionAbortedError

    def _refuse(self, status: int, message: str) -> None:
        self._answer(
            _json({"error": {"message": message, "type": "invalid_request_error" if status < 500 else "server_error", "code": status}}),
            status,
        )

    def _answer(self, made: Answer, status: int = 200) -> None:
        kind, body, headers = made
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: requests are nobody's to read in a log."""


def _form(content_type: str, body: bytes) -> dict[str, Any]:
    """multipart/form-data: fields as text, files as bytes."""
    boundary = content_type.partition("boundary=")[2].partition(";")[0].strip('"').encode()
    found: dict[str, Any] = {}
    for part in body.split(b"--" + boundary)[1:-1]:
        head, _, data = part.removeprefix(b"\r\n").partition(b"\r\n\r\n")
        name = head.partition(b'name="')[2].partition(b'"')[0].decode()
        data = data.removesuffix(b"\r\n")
        found[name] = data if b"filename=" in head else data.decode()
    return found


def _json(value: Any) -> Answer:
    return "application/json", json.dumps(value, ensure_ascii=False).encode("utf-8", "replace"), {}


def _usage(tokens: int) -> dict[str, int]:
    return {"prompt_tokens": tokens, "total_tokens": tokens}


class Listener(ThreadingHTTPServer):
    """Ends without waiting for what its threads do."""

    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that leaves is no news."""


def main(folder: Path) -> None:
    spec: Spec = json.loads((folder / "spec.json").read_text(encoding="utf-8"))
    key = (folder / "key").read_text(encoding="utf-8").strip()
    try:
        worker = Worker(spec, key)
    except Wrong as wrong:
        sys.exit(f"E {wrong}")
    listener = Listener(("127.0.0.1", spec.get("port") or 0), type("Bound", (Handler,), {"worker": worker}))
    fresh = folder / "ready.json.new"
    told = {"url": f"http://127.0.0.1:{listener.server_address[1]}", "on": worker.model.device}
    fresh.write_text(json.dumps(told), encoding="utf-8")
    os.replace(fresh, folder / "ready.json")
    listener.serve_forever()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
