"""The containers, network and volumes of an app, made as its record says and looked at as they are. Each step may be done twice."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import anyio

from aima_lib.errors import AimaError, DeadlineExceeded, FailedPrecondition, NotFound, Unavailable
from aima_lib.infra.container import NAME, judged
from aima_lib.infra.daemon import Daemon
from aima_lib.infra.docker import Docker
from aima_lib.infra.pool import Lost, Pool
from aima_lib.infra.progress import Send
from aima_lib.infra.roots import Roots
from aima_lib.infra.store import Document
from aima_lib.services.app_link import Bridge, bridge_of
from aima_lib.services.app_template import container_of, files_of, network_of, spec_of, volume_of, volumes_of

KIND = "app"
START_SECONDS, STOP_SECONDS, PROBE_SECONDS, BETWEEN, STILL = 120, 10, 3.0, 0.2, 3
LINES, AILMENT = 5, 300


@dataclass(frozen=True, slots=True)
class Seen:
    """One container as Docker has it."""

    id: str
    name: str
    status: str
    exit_code: int | None
    out_of_memory: bool
    started_at: str | None
    generation: str
    image_id: str
    health: str | None = None  # by a check of Docker's own: healthy, unhealthy or starting; None where it has none
    ailment: str | None = None  # what that check said last, where it failed

    @property
    def container(self) -> str:
        """Its name in the template."""
        return self.name.rpartition("--")[2]

    @property
    def is_paused(self) -> bool:
        return self.status == "paused"

    @property
    def runs(self) -> bool:
        return self.status == "running"


def look(daemon: Daemon) -> dict[str, Seen]:
    """Every container of this home's apps, by its name within the home."""
    found = {}
    for row in daemon.list(KIND):
        try:
            body = daemon.inspect(str(row["Id"]))
        except NotFound:
            continue
        state, labels = body["State"], body["Config"]["Labels"]
        started = str(state.get("StartedAt") or "")
        found[labels[NAME]] = Seen(
            body["Id"], labels[NAME], state["Status"], state.get("ExitCode"), bool(state.get("OOMKilled")),
            None if started.startswith("0001") else started, labels.get("aima.generation", ""), body["Image"], *_health(state),
        )  # fmt: skip
    return found


def _health(state: Mapping[str, Any]) -> tuple[str | None, str | None]:
    """What Docker's own check says of a container, and what it said last where it failed."""
    health = state.get("Health") or {}
    if health.get("Status") in (None, "", "none"):
        return None, None
    failed = [str(row.get("Output", "")).strip() for row in health.get("Log") or () if row.get("ExitCode")]
    said = f": {' '.join(failed[-1].split())[-AILMENT:]}" if failed and failed[-1] else ""
    return str(health["Status"]), f"its check failed {health.get('FailingStreak', 0)} times{said}" if failed else None


class Stack:
    """Does to Docker what an app's record wants."""

    def __init__(self, docker: Docker, roots: Roots) -> None:
        self._docker, self._roots = docker, roots
        self._pool = Pool()

    def close(self) -> None:
        """Let kept connections go."""
        self._pool.close()

    async def seen(self) -> dict[str, Seen]:
        """Every container of this home's apps. Raises Unavailable when Docker is away."""
        return await self._docker.ask(look)

    # Making

    async def image(self, reference: str, send: Send) -> Document:
        """Have an image here: {image, digest, image_id, pulled}. By a tag it is what is here under it, else what the registry has.

        The digest is what a registry calls it; null for one that was built or loaded here.
        """
        here = await self._docker.ask(Daemon.image, reference)
        found = here or await self._docker.pull(reference, send)
        name = reference.partition("@")[0].rpartition(":")[0] or reference
        known = [str(each) for each in found.get("RepoDigests") or ()]
        digests = [each.rpartition("@")[2] for each in known if reference.endswith(each.rpartition("@")[2]) or each.startswith(f"{name}@")]
        digest = digests[0] if digests else (known[0].rpartition("@")[2] if known else None)
        return {"image": reference, "digest": digest, "image_id": str(found["Id"]), "pulled": here is None}

    async def ground(self, record: Document) -> Bridge | None:
        """Its network and its volumes; the bridge, of an app that has a link."""
        app_id = record["id"]
        await self._docker.ask(Daemon.keep_network, network_of(app_id), app_id)
        for name in volumes_of(record["template"]):
            await self._docker.ask(Daemon.keep_volume, volume_of(app_id, name), app_id)
        return bridge_of(await self._docker.ask(Daemon.network, network_of(app_id))) if record["link_port"] else None

    async def bring_up(
        self, record: Document, values: Mapping[str, str], gpus: Mapping[str, Any] | None, send: Send, begun: Callable[[], None]
    ) -> None:
        """Every container of its record's generation, running and well, one after another. begun: called when one runs.

        Raises:
            FailedPrecondition: one cannot be started, or ended; what it said last is in the message.
            DeadlineExceeded: one is not well within its time.
        """
        for name in record["template"]["containers"]:
            await send({"phase": "starting", "message": f"{name} of {record['id']}", "completed": None, "total": None})
            await self._start(record, name, values, gpus)
            begun()
            await self._well(record, name, send)

    async def _start(self, record: Document, name: str, values: Mapping[str, str], gpus: Mapping[str, Any] | None) -> None:
        app_id, template, generation = record["id"], record["template"], str(record["generation"])
        full = container_of(app_id, name)
        known = (await self.seen()).get(full)
        if known and known.runs and known.generation == generation:
            return
        if known is None or known.generation != generation or known.status == "dead":
            image = record["images"][name]["image_id"]
            spec = judged(spec_of(app_id, name, template, image, record["ports"], values, gpus), self._roots, f"containers.{name}")
            id = await self._docker.create(spec, KIND, full, generation)
            if files := files_of(name, template, values):
                await self._docker.ask(Daemon.put_files, id, files)
        else:
            id = known.id
        await self._docker.ask(Daemon.start, id)

    async def _well(self, record: Document, name: str, send: Send) -> None:
        health = record["template"]["containers"][name].get("health")
        full, limit = container_of(record["id"], name), (health or {}).get("start_seconds", START_SECONDS)
        end, told = time.monotonic() + limit, 0.0
        calm = 0
        while True:
            seen = (await self.seen()).get(full)
            if seen is None or not (seen.runs or seen.is_paused):
                raise await self._ended(record["id"], name, seen)
            calm += 1
            ailment = await self._ailment(record, name, seen, calm)
            if ailment is None:
                return
            if time.monotonic() > end:
                why = f"{name} of {record['id']} runs, and is not well within {limit} s: {ailment}{await self.words(seen.id)}"
                raise DeadlineExceeded(why, hint="its log may say why", next=[_logs(record["id"])])
            if time.monotonic() - told > 2:
                told = time.monotonic()
                await send(
                    {"phase": "waiting", "message": f"{name} of {record['id']} runs; not well yet", "completed": None, "total": None}
                )
            await anyio.sleep(BETWEEN)

    async def _ailment(self, record: Document, name: str, seen: Seen, calm: int) -> str | None:
        """What is wrong with one that starts: by its template's probe, else by Docker's own check, else by how long it has run."""
        if "health" in record["template"]["containers"][name]:
            return await self.ails(record, name)
        if seen.health is not None:
            return None if seen.health == "healthy" else seen.ailment or f"Docker's check of it says {seen.health}"
        return None if calm >= STILL else "it has just begun"

    async def _ended(self, app_id: str, name: str, seen: Seen | None) -> AimaError:
        if seen is None:
            return FailedPrecondition(f"{name} of {app_id} was removed while it started", hint="somebody removed the container by hand")
        memory = ": it wanted more memory than it may have" if seen.out_of_memory else ""
        words = await self.words(seen.id)
        message = f"{name} of {app_id} ended with {seen.exit_code}{memory}{words}"
        hint = "give it more: config {memory_bytes: …}" if seen.out_of_memory else "its log may say why"
        return FailedPrecondition(message, hint=hint, next=[_logs(app_id)])

    async def words(self, id: str) -> str:
        """The last that a container said, to be put behind what became of it."""
        try:
            lines = await self._docker.logs(id, LINES)
        except AimaError:
            return ""
        said = " | ".join(line.partition(" ")[2].strip() for line in lines if line.strip())
        return f"; it said last: {said[-600:]}" if said else "; it said nothing"

    async def ails(self, record: Document, name: str) -> str | None:
        """Why a container does not answer as its template says, None where it does, or where its template says nothing."""
        health = record["template"]["containers"][name].get("health")
        if health is None:
            return None
        base = f"http://127.0.0.1:{record['ports'][health['port']]}"
        place = f"{base}{health['path']}"
        try:
            with anyio.fail_after(PROBE_SECONDS):
                async with self._pool.ask("GET", base, health["path"], {"Connection": "close"}, None, 1) as answer:
                    return None if 200 <= answer.status < 400 else f"{place} answers {answer.status}"
        except TimeoutError:
            return f"{place} does not answer within {PROBE_SECONDS:g} s"
        except (Lost, OSError):
            return f"{place} does not answer"

    # Ending

    async def put_down(self, record: Document, timeout_seconds: float | None = None) -> list[str]:
        """End its containers, the last started first, and keep them; the names of those that ran."""
        seen, ended = await self.seen(), []
        for name in reversed([*record["template"]["containers"]]):
            known = seen.get(container_of(record["id"], name))
            if known is None or not (known.runs or known.is_paused):
                continue
            await self.end(record, known, timeout_seconds)
            ended.append(name)
        return ended

    async def end(self, record: Document, each: Seen, timeout_seconds: float | None = None) -> None:
        """End one of its containers, and keep it."""
        wanted = record["template"]["containers"][each.container].get("stop_seconds", STOP_SECONDS)
        seconds = wanted if timeout_seconds is None else timeout_seconds
        await self._docker.ask(Daemon.stop, each.id, seconds, seconds=seconds + 30)

    async def clear(self, app_id: str) -> None:
        """Remove its containers and its network: all that is no data."""
        for full, seen in (await self.seen()).items():
            if owner_of(full) == app_id:
                await self._docker.ask(Daemon.remove, seen.id)
        await self._docker.ask(Daemon.remove_network, network_of(app_id))

    async def clear_data(self, record: Document) -> None:
        """Remove its volumes, and the images that were fetched for it and nobody else uses."""
        ours = f"aima-{self._docker.home_id}-"
        for volume in await self._docker.ask(Daemon.volumes, record["id"]):
            await self._docker.ask(Daemon.remove_volume, str(volume["Name"]).removeprefix(ours))
        await self.drop_images([*record["images"].values()])

    async def drop_images(self, images: Sequence[Document]) -> None:
        """Remove those that were fetched for an app, where nobody else uses them."""
        for image in images:
            if image.get("pulled"):
                try:
                    await self._docker.ask(Daemon.remove_image, image["image"])
                except (FailedPrecondition, NotFound):
                    pass  # somebody else uses it, or has removed it

    async def clear_strays(self, known: Sequence[str]) -> list[str]:
        """Remove containers and networks of apps that nobody knows; whose they were. Their volumes are data and stay."""
        strays = {owner_of(full) for full in await self.seen()} | set(await self._docker.ask(Daemon.network_owners))
        unknown = sorted(strays - set(known))
        for app_id in unknown:
            await self.clear(app_id)
        return unknown

    # Looking

    async def ids(self, record: Document) -> dict[str, str]:
        """Docker's ids of an app's containers that there are, by their names in the template."""
        seen = await self.seen()
        named = {name: seen.get(container_of(record["id"], name)) for name in record["template"]["containers"]}
        return {name: each.id for name, each in named.items() if each is not None}

    async def usage(self, id: str) -> tuple[float, int, int | None]:
        """CPU seconds a container has taken, and the memory that it takes and may take, now."""
        sample = await self._docker.ask(Daemon.sample, id)
        memory = sample.get("memory_stats") or {}
        cache = (memory.get("stats") or {}).get("total_inactive_file", (memory.get("stats") or {}).get("inactive_file", 0))
        used, limit = int(memory.get("usage", 0)), memory.get("limit")
        nanoseconds = sample["cpu_stats"]["cpu_usage"]["total_usage"]
        if "usage" not in memory:
            raise Unavailable("Docker has no figures of it yet")
        return nanoseconds / 1e9, max(0, used - int(cache)), None if limit is None else int(limit)


def owner_of(full: str) -> str:
    """The app that a container's name within the home belongs to."""
    return full.removeprefix("app-").partition("--")[0]


def host_ports(record: Document) -> list[int]:
    """Every port of this machine that an app has, its link's among them."""
    return [*record["ports"].values(), *([record["link_port"]] if record["link_port"] else [])]


def _logs(app_id: str) -> dict[str, Any]:
    return {"unit": "app.logs", "arguments": {"app_id": app_id}}
