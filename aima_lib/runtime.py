"""The one composition root: a home, opened, with everything built and every loop running."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, closing
from functools import cache, partial
from typing import TYPE_CHECKING

import anyio
from anyio.abc import TaskStatus

from aima_lib import __version__, config, units
from aima_lib.catalog import past
from aima_lib.errors import AimaError, FailedPrecondition
from aima_lib.flows.triggers import Triggers
from aima_lib.gateway import Gateway
from aima_lib.infra.docker import Docker
from aima_lib.infra.egress import Egress
from aima_lib.infra.events import Events
from aima_lib.infra.home import Home
from aima_lib.infra.retention import Retention
from aima_lib.infra.roots import Roots
from aima_lib.infra.store import Store
from aima_lib.registry import Registry
from aima_lib.runs import Runs
from aima_lib.services import Services
from aima_lib.services.allowance import Allowance
from aima_lib.services.app import AppService
from aima_lib.services.app_stack import Stack
from aima_lib.services.app_watch import AppWatch
from aima_lib.services.approvals import Approvals
from aima_lib.services.audit import Audit
from aima_lib.services.books import Books
from aima_lib.services.device import DeviceService
from aima_lib.services.engine import EngineService
from aima_lib.services.freeze import Freeze
from aima_lib.services.inference import InferenceService
from aima_lib.services.installing import Installing
from aima_lib.services.keys import KeyService
from aima_lib.services.media import Media
from aima_lib.services.modalities import Modalities
from aima_lib.services.model import ModelService
from aima_lib.services.oauth import OAuth
from aima_lib.services.occupancy import Occupancy
from aima_lib.services.reservations import Reservations
from aima_lib.services.secrets import SecretService
from aima_lib.services.serving import ServingService
from aima_lib.services.vectors import VectorService

if TYPE_CHECKING:
    from aima_lib.infra.telemetry import Telemetry

RETRY_SECONDS = 5
log = logging.getLogger(__name__)


@asynccontextmanager
async def host(home: Home, *, passing: bool = False, registry: Registry | None = None) -> AsyncIterator[Gateway]:
    """Host a home until the block ends: lock it, recover what a crash left, run the loops.

    passing: answer a call or two and leave; nothing is taken up or brought up that could not be finished.
    registry: the units to answer; AIMA's own when not given.

    Raises:
        FailedPrecondition: another process hosts it, its store is damaged, or it asks for an extra that is not installed.
        InvalidArgument: its config.toml is wrong.
        SchemaError: the unit files and the code disagree.
    """
    home.make()
    settings = config.load(home.path)
    registry = registry or own_registry()
    home.acquire(__version__)
    try:
        store = Store(home.path / "aima.db")
        try:
            telemetry = _telemetry(settings)
            gateway = _build(home, settings, registry, store, telemetry)
            with closing(gateway.services.allowance), closing(gateway.services.events):
                async with _running(gateway, passing, telemetry):
                    yield gateway
        finally:
            store.close()
    finally:
        home.release()


@cache
def own_registry() -> Registry:
    """AIMA's own units: the same for every home that this process hosts, one after another."""
    return Registry.load(units)


def _build(home: Home, settings: config.Config, registry: Registry, store: Store, telemetry: Telemetry | None) -> Gateway:
    events = Events(store, {unit.name: unit for unit in registry.of("event")})
    devices, docker = DeviceService(settings, store, events), Docker(settings, home.id)
    secrets, books = SecretService(home, store), Books(settings["engines"], store, devices, events)
    models = ModelService(settings, home.path, store, events, devices, secrets, books)
    engines = EngineService(settings, home.path, store, events, models, devices, secrets, docker, books)
    serving = ServingService(settings, store, events, models, engines)
    inference = InferenceService(settings, store, events, engines, serving)
    allowance, freeze = Allowance(settings["budgets"], store), Freeze(store, events)
    keys, oauth = KeyService(home, store, events, allowance), OAuth.configured(settings, home)
    approvals = Approvals(settings["policy"], home, store, events)
    audit = Audit(home, store, settings["audit"]["retention_days"])
    installing, media = (
        Installing(settings, home.path, engines.catalog, models, engines.containers),
        Media(settings, home.path, store, events),
    )
    modalities = Modalities(inference, engines, media, allowance)
    apps = AppService(settings, home, store, events, devices, keys, secrets, docker, Stack(docker, Roots({}, home.path / "apps")))
    services = Services(
        settings, home, store, events, devices, models, engines, serving, inference, keys, secrets, VectorService(store), oauth, approvals,
        audit, freeze, allowance, installing, media, modalities, telemetry, docker, apps,
        books, Reservations(store, events, devices, books, serving), Occupancy(home.path, store, devices, books, serving),
    )  # fmt: skip
    return Gateway(registry, services, Runs(store, registry))


def _telemetry(settings: config.Config) -> Telemetry | None:
    chosen = settings["telemetry"]
    if chosen["endpoint"] is None:
        return None
    try:
        from aima_lib.infra.telemetry import Telemetry  # an extra: nobody else imports what it needs
    except ImportError as error:
        message = f"[telemetry] endpoint is set, and {error.name} is not installed"
        raise FailedPrecondition(message, hint="pip install 'aima[otel]', or take the line out of config.toml") from error
    return Telemetry(chosen, Egress(settings["egress"]["allow"], lambda: [chosen["endpoint"]]), __version__)


@asynccontextmanager
async def _running(gateway: Gateway, passing: bool, telemetry: Telemetry | None) -> AsyncIterator[None]:
    services = gateway.services
    async with anyio.create_task_group() as loops, anyio.create_task_group() as work:
        recipes = partial(past.prune, services.store, float(services.config["events"]["retention_days"]))
        others = (services.audit.prune, services.media.prune, recipes)
        await loops.start(_kept_up, Retention(services.store, services.events, services.config["events"], *others).run)
        if telemetry is not None:
            await loops.start(_kept_up, telemetry.run)
        await loops.start(_kept_up, services.docker.run)
        await services.devices.detect()
        await services.engines.adopt()
        for service in (services.devices, services.models, services.engines):
            await loops.start(_kept_up, service.run)
        gateway.runs.open(work, gateway.execute)
        if not passing:
            await loops.start(_kept_up, services.serving.reconciler.run)
            await loops.start(_kept_up, AppWatch(services.config, services.store, services.events, services.docker, services.apps).run)
            if services.freeze.record is None and (taken := await gateway.runs.recover()):
                log.info("took up again: %s", ", ".join(taken))
            await loops.start(_kept_up, Triggers(gateway).run)
        try:
            yield
        finally:
            work.cancel_scope.cancel()
            loops.cancel_scope.cancel()
            with anyio.CancelScope(shield=True):
                await services.inference.close()
                services.apps.stack.close()
                if services.oauth is not None:
                    await services.oauth.close()


async def _kept_up(loop: Callable[..., Awaitable[None]], *, task_status: TaskStatus[None]) -> None:
    """Run a service's loop, and again when the world outside failed it: a full disk must not end the host."""
    while True:
        try:
            await loop(task_status=task_status)
        except* (AimaError, OSError) as group:
            log.error("%s stopped: %s; it goes on in %s s", getattr(loop, "__qualname__", loop), group.exceptions, RETRY_SECONDS)
        task_status = anyio.TASK_STATUS_IGNORED
        await anyio.sleep(RETRY_SECONDS)
