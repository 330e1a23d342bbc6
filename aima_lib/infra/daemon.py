"""Docker's daemon, spoken to from a thread: over a unix socket of this machine and nothing else.

Like services/wire.py this goes to what runs here, so egress has no say in it: a tcp:// or ssh:// address is refused, no proxy is used and
no credentials of the user's Docker configuration are shown to a registry. What leaves the machine is the daemon's own pull, of an image
that the owner's configuration or template named by digest. Podman's socket speaks the same language.

What carries not this home's label is a stranger's: it is never started, stopped, removed or listed.
"""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from aima_lib.errors import FailedPrecondition, NotFound
from aima_lib.infra.container import HOME, KIND, NAME, Spec, api_body, labels, named
from aima_lib.infra.daemon_errors import AWAY, Away, away, message_of, refused, translated, unpulled

if TYPE_CHECKING:
    from docker import APIClient

USUAL = "/var/run/docker.sock"
Answer = dict[str, Any]


def socket_of(configured: str | None, environ: Mapping[str, str] | None = None) -> str:
    """The daemon's socket: the configuration's, else DOCKER_HOST's, else the usual one.

    Raises:
        Away: DOCKER_HOST names something that is no unix socket.
    """
    host = (os.environ if environ is None else environ).get("DOCKER_HOST", "")
    if configured:
        return configured
    if not host:
        return USUAL
    if not host.startswith("unix:///"):
        raise Away(f"DOCKER_HOST is {host.partition('://')[0]}://…, and AIMA speaks to Docker over a unix socket only", hint=AWAY)
    return host.removeprefix("unix://")


class Daemon:
    """One connection pool to the daemon, for one home. Every method blocks, for `seconds` at most where it does not say otherwise.

    Raises, whatever is asked:
        Away: the daemon is not there, or did not answer in time.
        FailedPrecondition: the SDK is not installed, or the daemon refused.
    """

    def __init__(self, socket: str, home_id: str, seconds: float = 30) -> None:
        try:
            import docker
        except ImportError as error:
            raise FailedPrecondition("the package docker is not installed", hint="pip install 'aima[docker]'") from error
        self.socket, self.home_id, self.seconds = socket, home_id, seconds
        with translated(socket):
            self._api: APIClient = docker.APIClient(base_url=f"unix://{socket}", version="auto", timeout=int(max(1, seconds)))
            self._api.trust_env = False

    def close(self) -> None:
        """Let its connections go."""
        self._api.close()

    # The daemon itself

    def version(self) -> Answer:
        """Its version, and the API's."""
        with translated(self.socket):
            found: Answer = self._api.version(api_version=False)
            return found

    def info(self) -> Answer:
        """What it says of itself and the machine."""
        with translated(self.socket):
            found: Answer = self._api.info()
            return found

    def events(self, since: float, seconds: float) -> Any:
        """A stream of what happens to this home's containers, until nothing has for so long: then it ends with Quiet. `cut` ends it too.

        Podman does not even begin to answer before something happens.
        """
        from docker.types import CancellableStream
        from docker.utils import convert_filters
        from docker.utils.json_stream import json_stream

        filters = convert_filters({"type": "container", "label": f"{HOME}={self.home_id}"})
        url = f"{self._api.base_url}/v{self._api.api_version}/events"
        with translated(self.socket):
            answer = self._api.get(url, params={"since": f"{since:.9f}", "filters": filters}, stream=True, timeout=(self.seconds, seconds))
            if answer.status_code >= 400:
                raise refused(answer.status_code, message_of(answer.text))
            return CancellableStream(json_stream(answer.iter_content(None)), answer)

    # Images

    def image(self, name: str) -> Answer | None:
        """An image that is here, by digest or id."""
        try:
            with translated(self.socket):
                found: Answer = self._api.inspect_image(name)
                return found
        except NotFound:
            return None

    def pulling(self, name: str, seconds: float) -> Any:
        """The lines of a pull, each within `seconds`; `cut` ends it from another thread, and the daemon's work with it.

        Not by the SDK's own call: its stream cannot be closed, and it would look for the user's credentials and run their programs.
        """
        import requests
        from docker.types import CancellableStream
        from docker.utils.json_stream import json_stream

        repository, _, digest = name.partition("@")
        url = f"{self._api.base_url}/v{self._api.api_version}/images/create"
        with translated(self.socket):
            try:
                answer = self._api.post(url, params={"fromImage": repository, "tag": digest}, stream=True, timeout=(self.seconds, seconds))
            except requests.exceptions.ReadTimeout as error:
                raise unpulled(f"nothing came of {name} for {seconds:g} s: timed out") from error
            if answer.status_code >= 400:
                raise unpulled(message_of(answer.text))
            return CancellableStream(json_stream(answer.iter_content(None)), answer)

    def remove_image(self, name: str) -> None:
        """Remove an image that no container uses."""
        with translated(self.socket):
            self._api.remove_image(name)

    # Containers

    def create(self, spec: Spec, kind: str, name: str, generation: str = "") -> str:
        """Create a container of a judged spec, in place of one that this home had by that name; its id.

        Raises:
            FailedPrecondition: somebody else's container has the name.
            NotFound: the image is not here.
        """
        body, wanted = api_body(spec, self.home_id, kind, name, generation), named(self.home_id, name)
        if (old := self._held(wanted)) is not None:
            self.remove(old)
        with translated(self.socket):
            return str(self._api.create_container_from_config(body, wanted)["Id"])

    def _held(self, wanted: str) -> str | None:
        """The container of this home that has a name."""
        try:
            return str(self.inspect(wanted)["Id"])
        except NotFound:
            return None

    def inspect(self, id: str) -> Answer:
        """A container of this home, by id or by Docker's name of it.

        Raises:
            NotFound: there is none.
            FailedPrecondition: it is somebody else's.
        """
        with translated(self.socket):
            found: Answer = self._api.inspect_container(id)
        if ((found.get("Config") or {}).get("Labels") or {}).get(HOME) != self.home_id:
            name = str(found.get("Name", id)).lstrip("/")
            raise FailedPrecondition(
                f"the container {name} is not this home's",
                hint=f"rename or remove it yourself: docker rename {name} …",
                details={"name": name},
            )
        return found

    def list(self, kind: str | None = None, name: str | None = None) -> list[Answer]:
        """This home's containers, those that have ended too: the rows of Docker's own list."""
        marks = [f"{HOME}={self.home_id}", *([f"{KIND}={kind}"] if kind else ()), *([f"{NAME}={name}"] if name else ())]
        with translated(self.socket):
            return [dict(row) for row in self._api.containers(all=True, filters={"label": marks})]

    def publisher(self, port: int) -> str | None:
        """Whose container, anybody's, holds a TCP port of this machine. It is only looked at."""
        with translated(self.socket):
            rows = self._api.containers()
        for row in rows:
            if any(each.get("PublicPort") == port and each.get("Type") == "tcp" for each in row.get("Ports") or ()):
                return "the container " + ", ".join(str(name).lstrip("/") for name in row.get("Names") or [row["Id"][:12]])
        return None

    def start(self, id: str) -> None:
        """Start a container of this home, or let one go on that was paused; nothing happens when it runs.

        Raises:
            FailedPrecondition: a port is taken, or the runtime refused.
        """
        found = self.inspect(id)
        if self._wake(found):
            return
        with translated(self.socket):
            self._api.start(found["Id"])

    def _wake(self, found: Answer) -> bool:
        """Let a container go on that somebody paused: so it can be neither started, ended nor removed. Whether it was."""
        if found["State"]["Status"] != "paused":
            return False
        with translated(self.socket):
            self._api.unpause(found["Id"])
        return True

    def stop(self, id: str, timeout_seconds: float) -> None:
        """End a container of this home: politely, by force after the timeout. Blocks as long."""
        found = self.inspect(id)
        self._wake(found)
        with translated(self.socket):
            self._api.stop(found["Id"], timeout=int(timeout_seconds))

    def remove(self, id: str) -> None:
        """Remove a container of this home, ending it by force, and the nameless volumes that its image made. Nothing when it is gone."""
        try:
            found = self.inspect(id)
            self._wake(found)
            with translated(self.socket):
                self._api.remove_container(found["Id"], force=True, v=True)
        except NotFound:
            pass

    def wait(self, id: str, seconds: float) -> int | None:
        """The status it ended with; None when it still runs after so long."""
        import requests

        try:
            with translated(self.socket, passing=(requests.exceptions.ReadTimeout, requests.exceptions.ConnectionError)):
                return int(self._api.wait(id, timeout=seconds)["StatusCode"])
        except requests.exceptions.ReadTimeout:
            return None
        except requests.exceptions.ConnectionError as error:
            if "timed out" in str(error).lower():
                return None
            raise away(self.socket, error) from error

    def output(self, id: str, *, tail: int | None = None, since: float | None = None, follow: bool = False, stamped: bool = False) -> Any:
        """What it said: bytes, or with `follow` a stream of them that `close()` ends."""
        amount: Any = "all" if tail is None else tail
        found = self.inspect(id)
        with translated(self.socket):
            return self._api.logs(
                found["Id"], stdout=True, stderr=True, stream=follow, follow=follow, timestamps=stamped, tail=amount, since=since
            )

    def stats(self, id: str) -> Answer:
        """One sample of what it takes. Blocks for the two seconds that Docker samples."""
        found = self.inspect(id)
        with translated(self.socket):
            sample: Answer = self._api.stats(found["Id"], stream=False)
            return sample

    def sample(self, id: str) -> Answer:
        """What it takes now, at once; of processor time the count since its start."""
        found = self.inspect(id)
        with translated(self.socket):
            sample: Answer = self._api.stats(found["Id"], stream=False, one_shot=True)
            return sample

    def put_files(self, id: str, files: Mapping[str, bytes]) -> None:
        """Lay files into a container of this home before it starts, by their paths in it: root's, and everybody there may read them."""
        found = self.inspect(id)
        folders = sorted({str(folder) for path in files for folder in PurePosixPath(path).parents} - {"/"})
        with translated(self.socket):  # of folders that are there the owner and the mode stay
            lacking = [folder for folder in folders if not self._holds(found["Id"], folder)]
            self._api.put_archive(found["Id"], "/", archive(files, lacking))

    def _holds(self, id: str, path: str) -> bool:
        answer = self._api.head(f"{self._api.base_url}/v{self._api.api_version}/containers/{id}/archive", params={"path": path})
        return bool(answer.status_code == 200)

    # Volumes and networks

    def keep_volume(self, name: str, owner: str) -> str:
        """A volume of this home, made if it is not there; Docker's name of it."""
        wanted = named(self.home_id, name)
        with translated(self.socket):
            found = self._api.create_volume(wanted, labels=labels(self.home_id, "volume", owner))
        self._refuse_strange(found, f"the volume {wanted}")
        return wanted

    def volumes(self, owner: str | None = None) -> Sequence[Answer]:
        """This home's volumes."""
        marks = [f"{HOME}={self.home_id}", *([f"{NAME}={owner}"] if owner else ())]
        with translated(self.socket):
            return list(self._api.volumes(filters={"label": marks})["Volumes"] or ())

    def remove_volume(self, name: str) -> None:
        """Remove a volume of this home and all that is in it. Nothing when it is gone, or a stranger's."""
        wanted = named(self.home_id, name)
        try:
            with translated(self.socket):
                found = self._api.inspect_volume(wanted)
                if self._is_ours(found):
                    self._api.remove_volume(wanted)
        except NotFound:
            pass

    def keep_network(self, name: str, owner: str) -> str:
        """A bridge of this home's own, made if it is not there; Docker's name of it."""
        wanted = named(self.home_id, name)
        try:
            with translated(self.socket):
                found = self._api.inspect_network(wanted)
        except NotFound:
            with translated(self.socket):
                self._api.create_network(wanted, driver="bridge", labels=labels(self.home_id, "network", owner))
            return wanted
        self._refuse_strange(found, f"the network {wanted}")
        return wanted

    def remove_network(self, name: str) -> None:
        """Remove a network of this home. Nothing when it is gone, or a stranger's."""
        wanted = named(self.home_id, name)
        try:
            with translated(self.socket):
                found = self._api.inspect_network(wanted)
                if self._is_ours(found):
                    self._api.remove_network(wanted)
        except NotFound:
            pass

    def network(self, name: str) -> Answer:
        """What Docker says of a network of this home. Raises NotFound, FailedPrecondition when it is somebody else's."""
        wanted = named(self.home_id, name)
        with translated(self.socket):
            found: Answer = self._api.inspect_network(wanted)
        self._refuse_strange(found, f"the network {wanted}")
        return found

    def network_owners(self) -> Sequence[str]:
        """Whose networks of this home's there are."""
        with translated(self.socket):
            found = self._api.networks(filters={"label": f"{HOME}={self.home_id}"})
        return sorted({str((row.get("Labels") or {}).get(NAME)) for row in found})

    def _is_ours(self, found: Mapping[str, Any]) -> bool:
        return bool((found.get("Labels") or {}).get(HOME) == self.home_id)

    def _refuse_strange(self, found: Mapping[str, Any], what: str) -> None:
        if not self._is_ours(found):
            raise FailedPrecondition(f"{what} is not this home's", hint="rename or remove it yourself")


def archive(files: Mapping[str, bytes], folders: Sequence[str]) -> bytes:
    """Folders, the upper first, and files as a tar of the root."""
    held = io.BytesIO()
    with tarfile.open(fileobj=held, mode="w") as tar:
        for path in folders:
            entry = tarfile.TarInfo(path.lstrip("/"))
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(entry)
        for path, content in files.items():
            entry = tarfile.TarInfo(path.lstrip("/"))
            entry.size, entry.mode = len(content), 0o444
            tar.addfile(entry, io.BytesIO(content))
    return held.getvalue()


def cut(stream: Any) -> None:
    """End a stream of the SDK's, whoever reads it, and let go of its connection, which `close()` alone leaves to chance."""
    response = getattr(stream, "_response", None)
    for close in (stream.close, *([response.close] if response is not None else [])):
        with suppress(OSError, AttributeError):  # it has ended
            close()
