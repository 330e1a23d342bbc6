"""Who answers to a name. Read from the store once, and again when a service or an instance has changed."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from functools import cached_property

from aima_lib.infra.store import Document, Store
from aima_lib.services.engine import EngineService
from aima_lib.services.replicas import asked
from aima_lib.services.wire import Address

Candidate = tuple[Document | None, Document | None]  # an instance and its service
MOST_NAMES = 1000


@dataclass(frozen=True)
class Endpoint:
    """Who will answer: where, with which key, as what AIMA knows it, and how many requests it answers at the same time."""

    base_url: str
    key: str
    instance: Document
    service: Document | None
    slots: int = 1

    @cached_property
    def address(self) -> Address:
        return Address(self.instance["id"], self.base_url, self.key, self.slots)

    @cached_property
    def model(self) -> str:
        """The name the engine knows its model by."""
        return str(self.instance["model_id"])


class Routes:
    """Names, and what is behind them now."""

    def __init__(self, store: Store, engines: EngineService) -> None:
        self._store, self._engines = store, engines
        self._seen = (-1, -1)
        self._services: list[Document] = []
        self._instances: dict[str, Document] = {}
        self._of_service: defaultdict[str, list[Document]] = defaultdict(list)
        self._named: dict[str, list[Candidate]] = {}
        self._endpoints: dict[str, Endpoint] = {}
        self._serving: dict[tuple[str, str], Endpoint] = {}

    def serving(self, name: str, task: str) -> Endpoint | None:
        """Who is ready to do a task by that name, and wanted."""
        self._refresh()
        found = self._serving.get((name, task))
        if found is None:
            for instance, service in self.candidates(name):
                is_wanted = service is None or service["desired_replicas"]
                if is_wanted and instance is not None and instance["status"] == "ready" and task in instance["tasks"]:
                    found = self._serving[name, task] = self.endpoint(instance, service)
                    break
        return found

    def candidates(self, name: str) -> list[Candidate]:
        """Instances and services of what is called so. A service's own name means it and no other; a model's, whatever serves it."""
        self._refresh()
        found = self._named.get(name)
        if found is None:
            found = self._find(name)
            if found and len(self._named) < MOST_NAMES:
                self._named[name] = found
        return found

    def endpoint(self, instance: Document, service: Document | None) -> Endpoint:
        """How a ready instance is reached."""
        self._refresh()
        found = self._endpoints.get(instance["id"])
        if found is None:
            key, slots = self._engines.key(instance), self._engines.slots(instance)
            found = self._endpoints[instance["id"]] = Endpoint(instance["base_url"], key, instance, service, slots)
        return found

    def ready(self, service_id: str) -> list[Endpoint]:
        """Every endpoint of a service."""
        self._refresh()
        service = next((each for each in self._services if each["id"] == service_id), None)
        if service is None or not service["desired_replicas"]:
            return []
        known = {each.id for each in asked(service)}
        ready = [each for each in self._of_service[service_id] if each["status"] == "ready" and each["id"] in known]
        return [self.endpoint(each, service) for each in ready]

    def instances(self, service_id: str) -> list[Document]:
        """Every instance of a service, whatever it does."""
        self._refresh()
        return list(self._of_service[service_id])

    def alone(self, instance_id: str) -> list[Endpoint]:
        """The endpoint of an instance that belongs to no service, if it is ready."""
        self._refresh()
        instance = self._instances.get(instance_id)
        return [self.endpoint(instance, None)] if instance and instance["status"] == "ready" else []

    def _find(self, name: str) -> list[Candidate]:
        services = [each for each in self._services if each["id"] == name] or [each for each in self._services if each["name"] == name]
        if services:
            return [pair for service in services for pair in self._behind(service)]
        owned: set[str] = set()
        found: list[Candidate] = []
        for service in self._services:
            pairs = self._behind(service)
            owned |= {instance["id"] for instance, _ in pairs if instance}
            if service["model_id"] == name:
                found += pairs
            else:
                found += [pair for pair in pairs if pair[0] and name == pair[0]["id"]]
        found.sort(key=lambda pair: pair[0] is None)
        alone = [each for id, each in self._instances.items() if id not in owned and name in (id, each["model_id"])]
        return [(each, None) for each in alone] + found

    def _behind(self, service: Document) -> list[Candidate]:
        instances = self._of_service[service["id"]]
        return [(each, service) for each in instances] if instances else [(None, service)]

    def _refresh(self) -> None:
        changes = self._store.changes
        seen = changes["service"], changes["instance"]
        if seen == self._seen:
            return
        self._seen = seen
        self._services = self._store.find("service")
        self._instances = {each["id"]: each for each in self._store.find("instance")}
        self._of_service.clear()
        known = {service["id"]: service for service in self._services}
        for instance in self._instances.values():
            if instance["service_id"] in known:
                self._of_service[instance["service_id"]].append(instance)
        self._named.clear()
        self._endpoints.clear()
        self._serving.clear()
