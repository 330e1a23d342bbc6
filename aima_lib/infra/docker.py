"""Docker as the rest of AIMA sees it: asked in threads, watched in one task, away and back again without a restart of AIMA.

Its events become `Happening`s for whoever listens, within a moment: `die`, `oom`, `health_status` and the like of this home's containers,
and `connected` whenever the stream begins anew, when what was known must be compared with what is. Whether a pull that was cut off
goes on from the layers that were whole is the daemon's to decide: containerd's store keeps them; Docker's own (20.10 was tried) keeps only
those that an image here has.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import anyio
import anyio.to_thread
from anyio.abc import TaskStatus

from aima_lib.errors import AimaError, DeadlineExceeded, FailedPrecondition, InvalidArgument, Unavailable
from aima_lib.infra.container import GENERATION, HOME, KIND, NAME, Spec
from aima_lib.infra.daemon import USUAL, Answer, Daemon, cut, socket_of
from aima_lib.infra.daemon_errors import Away, Quiet, present, translated
from aima_lib.infra.layers import Layers
from aima_lib.infra.progress import Send, silent

THREADS, STREAMS, RECENT = 16, 64, 256
FIRST_WAIT, LONGEST_WAIT, PING_SECONDS, PING_LIMIT, TELL_SECONDS = 0.25, 5.0, 5.0, 5.0, 0.2
END = object()
Found = TypeVar("Found")
Listener = Callable[["Happening"], Awaitable[None]]
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Happening:
    """What Docker said of a container of this home: its `action` and, where they belong to it, status and health.

    `connected` is of no container: from now on is heard what happens, and what happened before may have been missed.
    """

    action: str
    container_id: str = ""
    kind: str = ""
    name: str = ""
    generation: str = ""
    exit_code: int | None = None
    health: str | None = None


class Docker:
    """One home's view of the daemon. `ask` does anything a Daemon can; the rest is what takes longer or is watched.

    Raises, whatever is asked:
        Unavailable: Docker is away; the hint says what to do.
        DeadlineExceeded: it did not answer within docker.call_seconds.
        FailedPrecondition: it refused, or the SDK is not installed.
    """

    def __init__(self, config: Mapping[str, Any], home_id: str) -> None:
        chosen = config["docker"]
        self.home_id, self._socket, self._offline = home_id, chosen["socket"], bool(config["sources"]["offline"])
        self._seconds, self._stall = float(chosen["call_seconds"]), float(chosen["stall_seconds"])
        self._mirrors: Mapping[str, list[str]] = chosen["mirrors"]
        self._limiter, self._streams = anyio.CapacityLimiter(THREADS), anyio.CapacityLimiter(STREAMS)
        self._listeners: list[Listener] = []
        self._daemon: Daemon | None = None
        self._reason: str | None = "nobody has looked yet"
        self._version: Answer = {}
        self._heard_at: float | None = None
        self._heard: deque[Any] = deque(maxlen=RECENT)
        self._needed = anyio.Event()

    # What is known

    @property
    def is_away(self) -> bool:
        """Whether Docker did not answer when it was asked last."""
        return self._reason is not None

    async def state(self) -> dict[str, Any]:
        """Whether it is there: {available, reason, hint, socket, version, api_version}; asked now."""
        hint = None
        try:
            present(socket_of(self._socket))
            self._version = await self.ask(Daemon.version, seconds=PING_LIMIT)
        except AimaError as error:
            self._reason, hint = str(error), error.hint
        there = not self.is_away
        return {
            "available": there,
            "reason": self._reason,
            "hint": hint,
            "socket": self.socket,
            "version": self._version.get("Version") if there else None,
            "api_version": self._version.get("ApiVersion") if there else None,
        }

    @property
    def socket(self) -> str | None:
        """Where it is looked for; None where that is no unix socket."""
        try:
            return socket_of(self._socket)
        except AimaError:
            return None

    def need(self) -> None:
        """Have it watched from now on, though nobody has asked it anything yet."""
        self._needed.set()

    def listen(self, heard: Listener) -> None:
        """Have every Happening told to `heard`, in order; one that fails with an AimaError is passed over."""
        self._listeners.append(heard)

    # Asking

    async def ask(self, call: Callable[..., Found], *arguments: Any, seconds: float | None = None, **named: Any) -> Found:
        """Call a method of Daemon's in a thread: `await docker.ask(Daemon.create, spec, "app", "grafana")`."""
        limit = self._seconds if seconds is None else seconds
        self._needed.set()

        def work() -> Found:
            return call(self._connected(), *arguments, **named)

        try:
            with anyio.fail_after(limit + 1):
                found = await anyio.to_thread.run_sync(work, abandon_on_cancel=True, limiter=self._limiter)
        except TimeoutError as error:
            self._forget(f"Docker did not answer within {limit:g} s")
            raise DeadlineExceeded(f"Docker did not answer within {limit:g} s", hint="is its machine short of memory?") from error
        except Away as error:
            self._forget(str(error))
            raise
        except FailedPrecondition as error:
            if self._daemon is None:
                self._reason = str(error)
            raise
        self._reason = None
        return found

    def _connected(self) -> Daemon:
        """In a thread. Two may connect at the same time; one of the connections is then used once."""
        if self._daemon is None:
            self._daemon = Daemon(socket_of(self._socket), self.home_id, self._seconds)
        return self._daemon

    def _forget(self, why: str) -> None:
        self._reason = why
        self.close()

    def close(self) -> None:
        """Let its connections go; the next who asks makes another."""
        old, self._daemon = self._daemon, None
        if old is not None:
            old.close()

    async def create(self, spec: Spec, kind: str, name: str, generation: str = "") -> str:
        """See Daemon.create. `spec` is what container.judged returned; its image is looked up under the names that its mirrors gave it."""
        image = await self.image(spec["image"])
        if image is None:
            raise FailedPrecondition(f"the image {spec['image']} is not here", hint="pull it first")
        return await self.ask(Daemon.create, {**spec, "image": image["Id"]}, kind, name, generation)

    # Images

    async def image(self, name: str, seconds: float | None = None) -> Answer | None:
        """The image called name@sha256:… or sha256:…, if it is here."""
        for each in self._names(name):
            if (found := await self.ask(Daemon.image, each, seconds=seconds)) is not None:
                return found
        return None

    def _names(self, name: str) -> list[str]:
        """What an image may be called here: from the mirrors that the configuration names for its registry, and by its own name.

        A tag is its registry's word alone: what a mirror says of it cannot be checked.
        """
        if name.startswith("sha256:") or "@" not in name:
            return [name]
        registry, path = _registry(name)
        return [*(f"{mirror}/{path}" for mirror in self._mirrors.get(registry, ())), name]

    async def pull(self, name: str, send: Send = silent) -> Answer:
        """Bring an image here, from its mirrors first; what Docker says of it. Nothing is fetched when it is here already.

        `send` gets {phase, message, completed, total}: bytes of the layers whose size is known, and what the last of them does.
        A caller that leaves ends the pull.

        Raises:
            NotFound: no registry has it.
            Unavailable: none could be reached, or sent nothing for docker.stall_seconds.
            FailedPrecondition: what came has another digest.
        """
        if (found := await self.image(name)) is not None:
            return found
        if name.startswith("sha256:"):
            raise FailedPrecondition(f"the image {name} is not here, and an id cannot be pulled", hint="build it, or name it by its digest")
        if self._offline:
            raise FailedPrecondition(
                f"{name} is not here, and sources.offline forbids to fetch it", hint="docker load brings an image from a file"
            )
        failed: AimaError | None = None
        for each in self._names(name):
            try:
                await self._pull(each, send)
            except (Unavailable, DeadlineExceeded, InvalidArgument, FailedPrecondition) as error:
                failed = failed or error
            except AimaError as error:  # not found, no room
                failed = error
            else:
                return await self._verified(each, name)
            if isinstance(failed, Away):
                break
        assert failed is not None
        raise failed

    async def _pull(self, name: str, send: Send) -> None:
        layers, last, advanced = Layers(name), 0.0, time.monotonic()
        async with self._stream(partial(Daemon.pulling, name=name, seconds=self._stall + 1)) as lines:
            while True:
                try:
                    with anyio.fail_after(max(0.1, advanced + self._stall - time.monotonic())):
                        line = await anext(lines, None)
                except TimeoutError as error:
                    message = f"the pull of {name} has not gone on for {self._stall:g} s: {layers.message}"
                    raise Unavailable(message, hint="try again, or name another registry for it under [docker] mirrors") from error
                if line is None:
                    break
                if layers.take(line):
                    advanced = time.monotonic()
                if time.monotonic() - last > TELL_SECONDS:
                    last = time.monotonic()
                    await send(layers.progress())
        await send(layers.progress())

    async def _verified(self, pulled: str, wanted: str) -> Answer:
        """The image that came, if it is the one that was wanted: Docker has checked every layer against the digest, we check the digest."""
        found, digest = await self.ask(Daemon.image, pulled), wanted.rpartition("@")[2]
        if found is not None and "@" not in wanted:  # a tag: whoever asked for it goes by the digest from then on
            return found
        if found is None or not any(each.endswith(f"@{digest}") for each in found.get("RepoDigests") or ()):
            raise FailedPrecondition(
                f"what was pulled as {pulled} is not {digest}", hint="a registry or mirror that does this is not to be trusted"
            )
        return found

    # Output

    async def logs(self, id: str, tail: int | None = 100, since: float | None = None) -> list[str]:
        """The last lines a container said, each with its time; all of them with None. `since` is a Unix time."""
        said: bytes = await self.ask(Daemon.output, id, tail=tail, since=since, stamped=True)
        return said.decode("utf-8", "replace").splitlines()

    def follow(self, id: str, since: float | None = None) -> Stream:
        """What a container has said since then and says from now on, until it ends: `async with` gives an iterator of pieces of bytes.

        Each line has its time before it.
        """
        return self._stream(partial(Daemon.output, id=id, since=since, follow=True, stamped=True))

    # Watching

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Hear what Docker says, until cancelled; when it is away, try again and again, at most every five seconds.

        Nothing is asked before somebody has: a home without containers does not even load the SDK.
        """
        task_status.started()
        await self._needed.wait()
        wait = FIRST_WAIT
        try:
            while True:
                began = time.monotonic()
                try:
                    await self._watch()
                except AimaError as error:
                    self._forget(str(error))
                wait = FIRST_WAIT if time.monotonic() - began > LONGEST_WAIT else min(wait * 2, LONGEST_WAIT)
                await anyio.sleep(wait)
        finally:
            self.close()

    async def _watch(self) -> None:
        """As long as it answers: each quiet spell is a question whether it does, for a daemon that hangs says nothing either."""
        self._version = await self.ask(Daemon.version, seconds=PING_LIMIT)
        self._heard_at = self._heard_at or time.time()
        await self._tell(Happening("connected"))
        while True:
            with suppress(Quiet):
                async with self._stream(partial(Daemon.events, since=self._heard_at, seconds=PING_SECONDS)) as events:
                    async for event in events:
                        await self._hear(event)
            self._version = await self.ask(Daemon.version, seconds=PING_LIMIT)

    async def _hear(self, event: Mapping[str, Any]) -> None:
        actor = event.get("Actor") or {}
        self._heard_at = (event.get("timeNano") or 0) / 1e9 or self._heard_at
        one = event.get("timeNano"), event.get("Action"), actor.get("ID")
        if one in self._heard:  # a stream that begins anew begins with what was heard last
            return
        self._heard.append(one)
        marks = actor.get("Attributes") or {}
        action, _, detail = str(event.get("Action") or event.get("status") or "").partition(":")
        if marks.get(HOME) != self.home_id or action.startswith("exec_"):
            return
        code = marks.get("exitCode", marks.get("containerExitCode"))
        ended = int(code) if code is not None and str(code).lstrip("-").isdigit() else None
        health = detail.strip() or marks.get("health_status") if action == "health_status" else None
        who = str(actor.get("ID") or event.get("id") or ""), marks.get(KIND, ""), marks.get(NAME, ""), marks.get(GENERATION, "")
        await self._tell(Happening({"died": "die"}.get(action, action), *who, exit_code=ended, health=health))

    async def _tell(self, happening: Happening) -> None:
        for heard in self._listeners:
            try:
                await heard(happening)
            except AimaError as error:
                log.warning("%s of %s was not dealt with: %s", happening.action, happening.name or "Docker", error)

    def _stream(self, begin: Callable[[Daemon], Any]) -> Stream:
        return Stream(lambda: begin(self._connected()), self._streams, self.socket or USUAL)


class Stream:
    """What a stream of the SDK's yields, one item a time from a thread. Leaving the block closes its connection, which ends the thread."""

    def __init__(self, begin: Callable[[], Any], limiter: anyio.CapacityLimiter, socket: str) -> None:
        self._begin, self._limiter, self._socket = begin, limiter, socket
        self._items: Any = None
        self._over = False

    async def __aenter__(self) -> Stream:
        opened = False
        try:
            await anyio.to_thread.run_sync(self._open, abandon_on_cancel=True, limiter=self._limiter)
            opened = True
        finally:
            self._over = not opened
        return self

    def _open(self) -> None:
        self._items = self._begin()
        if self._over:  # whoever wanted it has left meanwhile
            cut(self._items)

    async def __aexit__(self, *_: object) -> None:
        cut(self._items)  # a shutdown of its socket: a moment, and also for one who is cancelled

    def __aiter__(self) -> Stream:
        return self

    async def __anext__(self) -> Any:
        item = await anyio.to_thread.run_sync(self._next, abandon_on_cancel=True, limiter=self._limiter)
        if item is END:
            raise StopAsyncIteration
        return item

    def _next(self) -> Any:
        with translated(self._socket):
            return next(self._items, END)


def _registry(name: str) -> tuple[str, str]:
    """An image's registry as Docker reads it, and its path there."""
    first, slash, rest = name.partition("/")
    if slash and ("." in first or ":" in first or first == "localhost"):
        return first, rest
    return "docker.io", name if slash else f"library/{name}"
