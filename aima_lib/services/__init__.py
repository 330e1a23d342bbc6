"""The long-lived objects behind the units. Built once, in `runtime`; handlers reach them through their context."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from aima_lib.infra.docker import Docker
from aima_lib.infra.events import Events
from aima_lib.infra.home import Home
from aima_lib.infra.store import Store
from aima_lib.infra.trace import Tracer
from aima_lib.services.allowance import Allowance
from aima_lib.services.app import AppService
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


@dataclass(frozen=True, slots=True)
class Services:
    """What a home runs on."""

    config: Mapping[str, Any]
    home: Home
    store: Store
    events: Events
    devices: DeviceService
    models: ModelService
    engines: EngineService
    serving: ServingService
    inference: InferenceService
    keys: KeyService
    secrets: SecretService
    vectors: VectorService
    oauth: OAuth | None
    approvals: Approvals
    audit: Audit
    freeze: Freeze
    allowance: Allowance
    installing: Installing
    media: Media
    modalities: Modalities
    tracer: Tracer | None
    docker: Docker
    apps: AppService
    books: Books
    reservations: Reservations
    occupancy: Occupancy
