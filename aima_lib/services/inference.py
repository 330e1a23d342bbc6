"""Inference: find who serves a model, pass the request on, and say how it went."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import aclosing
from typing import Any

from aima_lib.door import Caller
from aima_lib.errors import AimaError, FailedPrecondition, InvalidArgument, NotFound, PermissionDenied, Unavailable
from aima_lib.infra.events import Events
from aima_lib.infra.progress import Send, silent
from aima_lib.infra.store import Document, Store
from aima_lib.names import did_you_mean, nearest
from aima_lib.services.allowance import Charge, caller_of
from aima_lib.services.engine import EngineService
from aima_lib.services.routes import Candidate, Endpoint
from aima_lib.services.serving import ServingService
from aima_lib.services.turn import Turn
from aima_lib.services.wire import events, whole

CHAT_FIELDS = (
    "tools", "tool_choice", "response_format", "temperature", "top_p", "top_k", "max_tokens", "stop", "seed",
)  # fmt: skip
# Parts of a conversation that are text, as OpenAI's chats, its responses and Anthropic's messages name them.
TEXTUAL = frozenset(
    {
        "text", "refusal", "input_text", "output_text", "summary_text", "reasoning_text", "tool_use", "tool_result", "thinking",
        "redacted_thinking",
    }
)  # fmt: skip
MEDIA = ("image_url", "input_image", "image", "input_audio", "audio", "input_file", "file", "document", "video_url")
PICTURED = ("image_url", "input_image")
COMPLETE_FIELDS = ("temperature", "top_p", "top_k", "max_tokens", "stop", "seed")


class InferenceService:
    """Routes by the name of a service, a model or an instance. Prompts pass through and are kept nowhere."""

    def __init__(self, config: Mapping[str, Any], store: Store, events: Events, engines: EngineService, serving: ServingService) -> None:
        self._config, self._store, self._events, self._engines, self._serving = config, store, events, engines, serving

    async def close(self) -> None:
        """Let the connections to the engines go."""
        await self._engines.wire.close()

    # Who answers

    def resolve(self, model: str, task: str) -> Endpoint:
        """Who serves `model` (a service's id or name, a model's id, an instance's id) for a task: chat, complete or embed.

        Raises:
            NotFound: nothing has that name; the nearest are named.
            FailedPrecondition: it does not run, or cannot do this; `next` holds the call that mends it.
            Unavailable: it is on its way.
        """
        return self._resolved(self.meant(model), task)

    def _resolved(self, model: str, task: str) -> Endpoint:
        """As `resolve`, of a name that stands for nothing but itself."""
        endpoint = self._serving.routes.serving(model, task)
        if endpoint is None:
            raise self._why_not(model, task, self._candidates(model))
        return endpoint

    async def find(self, model: str, task: str, charge: Charge, send: Send = silent) -> Endpoint:
        """As `resolve`, but waits for a service that is on its way, and brings up one that was unloaded, or a model that nothing serves.

        `send` gets {delta: {}, loading} every other second meanwhile. Raises as `resolve`, and as `service.start` where that fails.
        """
        model = self.meant(model)
        try:
            return self._resolved(model, task)
        except (FailedPrecondition, Unavailable) as error:
            service_id = await self._serving.summon(model, task, self._candidates(model))
            if service_id is None:
                raise error
        await self._serving.awaited(service_id, caller_of(charge), send)
        return self._resolved(service_id, task)

    def refuse_model(self, model: str | None, caller: Caller) -> None:
        """Raises PermissionDenied, which names the caller's models, unless whatever answers to `model` is one of them.

        It says the same of a model that is not there: what others have is no business of this caller's.
        """
        if caller.models is None or (model is not None and self._is_within(self.meant(model), caller.models)):
            return
        allowed = sorted(caller.models)
        raise PermissionDenied(
            f"{caller.name} may not use {model or 'just any model'}",
            hint=f"it may use: {', '.join(allowed)}",
            next=[{"unit": "inference.models", "arguments": {}}],
            details={"models": allowed},
        )

    def meant(self, model: str) -> str:
        """The name that a name stands for here: config.toml's [models.aliases] comes before whatever is called so."""
        return str(self._config["models"]["aliases"].get(model, model))

    def _is_within(self, model: str, allowed: frozenset[str]) -> bool:
        if model in allowed:
            return True
        found = self._candidates(model)
        within = [
            (service or {}).get("id") in allowed or (instance or service or {}).get("model_id") in allowed for instance, service in found
        ]
        return bool(found) and all(within)

    def _candidates(self, model: str) -> list[Candidate]:
        return self._serving.routes.candidates(model)

    def _why_not(self, model: str, task: str, candidates: Sequence[Candidate]) -> AimaError:
        for instance, _ in candidates:
            if instance and instance["status"] == "ready":
                return self._cannot(model, task, instance)
        for _, service in candidates:
            if service is None:
                continue
            state = self._serving.get(service["id"])
            if state["status"] == "starting":
                call = {"unit": "service.status", "arguments": {"service_id": service["id"]}}
                return Unavailable(f"the service {service['id']} is starting", hint="ask again in a moment", next=[call])
            call = {"unit": "service.start", "arguments": {"service_id": service["id"]}}
            reason = f": {state['error']}" if state["error"] else ""
            said = {"said": state["error"]} if state["error"] else {}
            why = [{"unit": "event.explain", "arguments": {"subject": service["id"]}}] if state["error"] else []
            return FailedPrecondition(
                f"the service {service['id']} is {state['status']}{reason}", hint="start it", next=[call, *why], details=said
            )
        if self._store.peek("model", model):
            options = {"options": {"embedding": True}} if task == "embed" else {}
            call = {"unit": "service.create", "arguments": {"model_id": model, **options}}
            return FailedPrecondition(f"the model {model} is here, but nothing serves it", hint="create a service", next=[call])
        known = list(dict.fromkeys(document["id"] for kind in ("service", "model", "instance") for document in self._store.find(kind)))
        hint = did_you_mean(model, known) or "inference.models lists what can be asked"
        calls = [{"unit": "inference.models", "arguments": {}}]
        return NotFound(f"no model or service called {model!r}", hint=hint, next=calls, details={"nearest": nearest(model, known)})

    def _cannot(self, model: str, task: str, instance: Document) -> AimaError:
        can = ", ".join(instance["tasks"])
        if task != "embed" or "embedding" not in self._engines.catalog.adapter(instance["engine"]).options:
            calls = [{"unit": "inference.models", "arguments": {"type": task}}]
            return FailedPrecondition(f"{model} can {can}, not {task}", hint="take a model that can", next=calls)
        able = [row["service_id"] or row["id"] for row in self._store.find("instance", status="ready") if "embed" in row["tasks"]]
        if able:
            calls = [{"unit": "inference.models", "arguments": {"type": "embed"}}]
            return FailedPrecondition(f"{model} can {can}, not embed", hint=f"these can: {', '.join(able)}", next=calls)
        arguments = {"model_id": instance["model_id"], "name": f"{instance['model_id']}-embed"[:64], "options": {"embedding": True}}
        message = f"{model} can {can}, not embed: it was started without options.embedding"
        return FailedPrecondition(message, hint="serve it with embedding=true", next=[{"unit": "service.create", "arguments": arguments}])

    # Asking

    async def chat(self, request: Mapping[str, Any], charge: Charge, send: Send = silent) -> Document:
        """One turn of a conversation, in OpenAI's shape; `send` gets {delta: {content?, reasoning_content?, tool_calls?}} as it comes.

        `charge` is told what it took, however it ends.

        Raises:
            AimaError: as `resolve`; InvalidArgument when the prompt is too long or has parts the model cannot read; Unavailable when
                the engine goes away.
        """
        endpoint = await self.find(request["model"], "chat", charge, send)
        self.check(endpoint, request)
        body = {key: request[key] for key in CHAT_FIELDS if request.get(key) is not None}
        body |= {"model": endpoint.model, "messages": request["messages"], "stream": True, "stream_options": {"include_usage": True}}
        return await self._generate(endpoint, "chat", "/v1/chat/completions", body, charge, send)

    def check(self, endpoint: Endpoint, request: Mapping[str, Any]) -> None:
        """Refuse what the engine would drop without a word, and images that it would have to fetch.

        Raises:
            InvalidArgument: a message has parts the model cannot read.
            FailedPrecondition: tools were given and its chat template has no place for them.
        """
        for where in ("messages", "input"):
            talk = request.get(where)
            for i, item in enumerate(talk if isinstance(talk, list | tuple) else ()):
                self._refuse_media(f"{where}[{i}]", item, endpoint.model)
        form = request.get("response_format")
        if isinstance(form, Mapping) and form.get("type") == "json_schema" and endpoint.instance.get("json_schema") is False:
            call = {"unit": "inference.models", "arguments": {"type": "chat"}}
            raise FailedPrecondition(f"{endpoint.model} does not obey a JSON schema: it was tried when it became ready", next=[call])
        if request.get("tools") and endpoint.instance.get("tools") is False:
            if "chat_template" not in self._engines.catalog.adapter(endpoint.instance["engine"]).options:
                call = {"unit": "inference.models", "arguments": {"type": "chat"}}
                message = f"{endpoint.model} did not call the tool that it was tried with when it became ready"
                raise FailedPrecondition(message, hint="take another model", next=[call])
            options = {**endpoint.instance["options"], "chat_template": "qwen-tools"}
            call = {
                "unit": "service.create",
                "arguments": {"model_id": endpoint.model, "name": f"{endpoint.model}-tools"[:64], "options": options},
            }
            message = f"the chat template of {endpoint.model} has no place for tools: the model would never see them"
            raise FailedPrecondition(message, hint="take another model, or for Qwen2.5 Coder the template qwen-tools", next=[call])

    def _refuse_media(self, place: str, item: Mapping[str, Any], model: str) -> None:
        """Refuse parts that are no text, or no image where the model sees, also within what a tool gave back."""
        for name in ("content", "output"):
            parts = item.get(name)
            for j, part in enumerate(parts if isinstance(parts, list) else ()):
                kind = part.get("type") if isinstance(part, Mapping) else None
                if kind in PICTURED and self._sees(model):
                    if not str(_image_of(part)).startswith("data:image/"):
                        message = f"{place}.{name}[{j}] is not the data of an image"
                        raise InvalidArgument(message, hint="give data:image/png;base64,…: AIMA lets no engine fetch what a chat names")
                elif kind not in TEXTUAL:
                    raise InvalidArgument(
                        f"{place}.{name}[{j}] is {kind if kind in MEDIA else 'no text'}, and {model} reads text only",
                        hint="leave the part out, or describe it in words",
                        next=[{"unit": "inference.models", "arguments": {"type": "chat"}}],
                    )
                self._refuse_media(f"{place}.{name}[{j}]", part, model)

    def _sees(self, model: str) -> bool:
        return "vision" in ((self._store.peek("model", model) or {}).get("capabilities") or ())

    async def complete(self, request: Mapping[str, Any], charge: Charge, send: Send = silent) -> Document:
        """Text that goes on from a prompt; `send` gets {delta: {content}} as it comes. Raises as `chat` does."""
        endpoint = await self.find(request["model"], "complete", charge, send)
        body = {key: request[key] for key in COMPLETE_FIELDS if request.get(key) is not None}
        body |= {"model": endpoint.model, "prompt": request["prompt"], "stream": True, "stream_options": {"include_usage": True}}
        return await self._generate(endpoint, "complete", "/v1/completions", body, charge, send)

    async def _generate(self, endpoint: Endpoint, task: str, path: str, body: Mapping[str, Any], charge: Charge, send: Send) -> Document:
        async with self.turn(endpoint, task, path, body, charge) as turn:
            answer = turn.answer
            async with aclosing(events(turn.endpoint.address, turn.line, body)) as chunks:
                async for chunk in chunks:
                    if delta := answer.take(chunk):
                        await send({"delta": delta})
            return answer.result(endpoint.model, turn.endpoint.instance["placement"])

    async def embed(self, request: Mapping[str, Any], charge: Charge) -> Document:
        """One vector per text. With `dimensions`, the first so many of each, brought back to length one.

        Raises:
            AimaError: as `resolve`; InvalidArgument when the model's vectors are shorter than `dimensions`.
        """
        endpoint = await self.find(request["model"], "embed", charge)
        texts = [request["input"]] if isinstance(request["input"], str) else list(request["input"])
        if not texts or not all(texts):
            raise InvalidArgument("input has an empty text", hint="leave it out: nothing has no vector")
        body = {"model": endpoint.model, "input": texts, "encoding_format": "float"}
        async with self.turn(endpoint, "embed", "/v1/embeddings", body, charge) as turn:
            answer, reply = turn.answer, await whole(turn.endpoint.address, turn.line, body)
            rows = sorted(reply["data"], key=lambda row: row["index"])
            vectors = [_shortened(row["embedding"], request.get("dimensions"), endpoint.model) for row in rows]
            counts = {key: reply["usage"][key] for key in ("prompt_tokens", "total_tokens")}
            answer.usage = counts | {"completion_tokens": 0, "cached_tokens": None}
            return {"model": endpoint.model, "embeddings": vectors, "dimensions": len(vectors[0]), "usage": answer.usage}

    def turn(self, endpoint: Endpoint, task: str, path: str, request: Mapping[str, Any], charge: Charge, data: bytes | None = None) -> Turn:
        """Ask whoever serves what `endpoint` does, when the caller's turn comes. `data` is the request where it goes on as it came."""
        return Turn(self._events, self._serving, endpoint, task, path, request, charge, data)

    # What can be asked

    async def models(self, type: str | None = None, allowed: frozenset[str] | None = None) -> list[Document]:
        """What can be asked now, what could be after service.create, and why the rest cannot.

        `type` is a task or a model's type; `allowed` are the ids of the models and services to be told of, None for all.
        """
        rows = [self._service_row(service) for service in self._store.find("service")]
        served = {row["model_id"] for row in rows}
        owned = {row["instance_id"] for row in rows}
        for instance in self._store.find("instance", status="ready"):
            if instance["id"] not in owned:
                rows.append(
                    _row(instance["id"], instance["model_id"], "ready", instance["tasks"], instance_id=instance["id"], able=instance)
                )
                served.add(instance["model_id"])
        for model in self._store.find("model"):
            if model["id"] not in served:
                rows.append(await self._model_row(model))
        types = {model["id"]: model.get("type") for model in self._store.find("model")}
        seen = [row for row in rows if allowed is None or not allowed.isdisjoint((row["id"], row["model_id"]))]
        return [row for row in seen if type is None or type in row["tasks"] or type == types.get(row["model_id"])]

    def _service_row(self, record: Document) -> Document:
        service = self._serving.get(record["id"])
        instance = self._store.peek("instance", record["instance_id"])
        ready = service["status"] == "running"
        tasks = instance["tasks"] if ready and instance else []
        status = "ready" if ready else "unavailable" if service["status"] == "failed" else "loadable"
        reason = None if ready else service["error"] or f"the service is {service['status']}"
        return _row(
            record["id"], record["model_id"], status, tasks, record["id"], record["instance_id"], reason, instance if ready else None
        )

    async def _model_row(self, model: Document) -> Document:
        if model.get("status", "ready") != "ready":
            return _row(model["id"], model["id"], "unavailable", [], reason=f"the model is {model['status']}")
        try:
            engine = await self._engines.catalog.fitting(model)
        except FailedPrecondition as error:
            return _row(model["id"], model["id"], "unavailable", [], reason=f"{error}: {error.hint}")
        return _row(model["id"], model["id"], "loadable", [], reason=f"service.create serves it with {engine}")


def _row(
    id: str,
    model_id: str,
    status: str,
    tasks: Sequence[str],
    service_id: str | None = None,
    instance_id: str | None = None,
    reason: str | None = None,
    able: Document | None = None,
) -> Document:
    whose = {"service_id": service_id, "instance_id": instance_id}
    can = {name: (able or {}).get(name) if "chat" in tasks else None for name in ("tools", "json_schema")}
    return {"id": id, "model_id": model_id, "status": status, "tasks": [*tasks], **can, **whose, "reason": reason}


def _image_of(part: Mapping[str, Any]) -> Any:
    """What a part that is an image says of where it is, in OpenAI's two ways."""
    given = part.get("image_url")
    return given.get("url") if isinstance(given, Mapping) else given


def _shortened(vector: list[float], dimensions: int | None, model: str) -> list[float]:
    if dimensions is None:
        return vector
    if dimensions > len(vector):
        raise InvalidArgument(f"{model} makes vectors of {len(vector)} numbers; {dimensions} were asked for")
    short = vector[:dimensions]
    length = sum(number * number for number in short) ** 0.5
    return [number / length for number in short] if length else short
