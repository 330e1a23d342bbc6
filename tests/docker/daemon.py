"""A Docker daemon of the tests' own: in a folder, on a socket, on a bridge that nobody else has.

Debian's docker.io, as root, with the plainest storage driver: what runs in a CI container too. It is ready in 2 to 7 seconds, and ends in
one. Nothing of it leaves this machine: it changes no rule of the firewall, so its containers reach their own bridge and nothing beyond.
"""

from __future__ import annotations

import io
import os
import re
import shutil
import signal
import socket
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import docker
import docker.errors

READY_SECONDS = 30.0


class Dockerd:
    """`stop` and `start` may be called again and again; `close` ends it for good, with all its containers."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="aima-docker-"))
        self.socket = self.folder / "docker.sock"
        self._bridge, self._process = f"aimad{os.getpid() % 100000}", None

    @staticmethod
    def lacks() -> str | None:
        """Why there can be none here."""
        if os.geteuid() != 0:
            return "a Docker daemon needs root"
        absent = [name for name in ("dockerd", "containerd", "ip") if shutil.which(name) is None]
        return f"{', '.join(absent)} is not installed (apt install docker.io iproute2)" if absent else None

    def start(self) -> None:
        data = self.folder / "data"
        if not data.exists():  # in memory where that may be: this driver copies an image for each container
            data.mkdir()
            subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3g", "tmpfs", data], check=False, capture_output=True)
        net = os.getpid() % 200
        subprocess.run(["ip", "link", "add", self._bridge, "type", "bridge"], check=False, capture_output=True)
        subprocess.run(["ip", "addr", "replace", f"10.213.{net}.1/24", "dev", self._bridge], check=True)
        subprocess.run(["ip", "link", "set", self._bridge, "up"], check=True)
        command = ["dockerd", "--storage-driver", "vfs", "--data-root", self.folder / "data", "--exec-root", self.folder / "run"]
        command += ["--pidfile", self.folder / "pid", "-H", f"unix://{self.socket}", "--bridge", self._bridge]
        command += ["--iptables=false", "--ip-masq=false", "--default-address-pool", f"base=10.{16 + net}.0.0/16,size=24"]
        around = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, env=around, start_new_session=True)
        deadline = time.monotonic() + READY_SECONDS
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                last = (self.folder / "log").read_text(errors="replace").splitlines()[-1:]
                raise OSError(f"dockerd does not start here: {last}")
            time.sleep(0.05)

    def _answers(self) -> bool:
        with socket.socket(socket.AF_UNIX) as probe:  # the SDK forgets to close one that nobody listens at
            if probe.connect_ex(str(self.socket)):
                return False
        try:
            self.api().close()
        except docker.errors.DockerException:
            return False
        return True

    def api(self) -> docker.APIClient:
        """The SDK's own client: how a test does what a person would do with the docker command."""
        return docker.APIClient(base_url=f"unix://{self.socket}", version="auto", timeout=30)

    def inspect(self, id: str) -> dict[str, Any]:
        """What the daemon knows of a container."""
        api = self.api()
        try:
            return dict(api.inspect_container(id))
        finally:
            api.close()

    def containers(self) -> list[str]:
        """The names of all containers, those that have ended too."""
        api = self.api()
        try:
            return sorted(row["Names"][0].lstrip("/") for row in api.containers(all=True))
        finally:
            api.close()

    def run(self, image: str, command: Sequence[str], name: str, port: int | None = None) -> str:
        """A container of a stranger's; its id."""
        api = self.api()
        try:
            held = api.create_host_config(port_bindings={80: ("127.0.0.1", port)} if port else None)
            made = api.create_container(image, list(command), name=name, ports=[80] if port else None, host_config=held)
            api.start(made["Id"])
            return str(made["Id"])
        finally:
            api.close()

    def rename(self, id: str, name: str) -> None:
        api = self.api()
        api.rename(id, name)
        api.close()

    def remove(self, id: str) -> None:
        api = self.api()
        api.remove_container(id, force=True)
        api.close()

    def happened(self, id: str) -> list[dict[str, Any]]:
        """What the daemon told of a container so far."""
        api = self.api()
        try:
            return list(api.events(since=0, until=int(time.time()) + 1, filters={"container": id}, decode=True))
        finally:
            api.close()

    def stop(self, number: int = signal.SIGTERM) -> None:
        """End it, and by SIGTERM its containers too."""
        if self._process is not None:
            self._process.send_signal(number)
            self._process.wait(30)
            self._process = None

    def build(self, files: Mapping[str, Path | bytes | str], *lines: str) -> str:
        """An image of one layer: files and folders by their paths in it, a text for a link, and lines of a Dockerfile such as ENTRYPOINT and
        EXPOSE; its id, sha256:…."""
        packed = self.folder / "image.tar"
        with tarfile.open(packed, mode="w") as archive:
            for folder in sorted({str(above).lstrip("/") for name in files for above in Path(name).parents} - {""}):
                entry = tarfile.TarInfo(folder)  # else the daemon makes it, for its own eyes alone
                entry.type, entry.mode = tarfile.DIRTYPE, 0o755
                archive.addfile(entry)
            for name, content in files.items():
                _add(archive, name.lstrip("/"), content)
        api = self.api()
        try:
            said = str(api.import_image_from_file(str(packed), changes=list(lines)))
        finally:
            api.close()
            packed.unlink()
        return self.id_in(said)

    @staticmethod
    def id_in(said: str) -> str:
        """The id of an image in what the daemon said of it."""
        found = re.search(r"sha256:[0-9a-f]{64}", said)
        assert found, said
        return found[0]

    def close(self) -> None:
        if self._process is not None and self._answers():
            api = self.api()
            for row in api.containers(all=True):
                api.remove_container(row["Id"], force=True)
            for row in api.networks(filters={"type": "custom"}):  # their bridges would outlive the daemon
                api.remove_network(row["Id"])
            api.close()
        self.stop()
        subprocess.run(["ip", "link", "del", self._bridge], check=False, capture_output=True)
        subprocess.run(["umount", self.folder / "data"], check=False, capture_output=True)
        shutil.rmtree(self.folder, ignore_errors=True)


LEFT_OUT = ("/site-packages", "/test", "/idlelib", "/__pycache__", "/ensurepip", "/lib2to3", "/tkinter", "/turtledemo")


def _add(archive: tarfile.TarFile, name: str, content: Path | bytes | str) -> None:
    if isinstance(content, Path):
        archive.add(content.resolve(), name, filter=lambda entry: None if entry.name[len(name) :].endswith(LEFT_OUT) else entry)
        return
    entry = tarfile.TarInfo(name)
    if isinstance(content, str):
        entry.type, entry.linkname = tarfile.SYMTYPE, content
        archive.addfile(entry)
        return
    entry.size, entry.mode = len(content), 0o755
    archive.addfile(entry, io.BytesIO(content))


def libraries(*programs: Path) -> Sequence[Path]:
    """What the loader adds to programs, itself included."""
    found: dict[Path, None] = {}
    for program in programs:
        said = subprocess.run(["ldd", str(program)], capture_output=True, text=True, check=False).stdout
        for line in said.splitlines():
            words = line.split()
            path = next((word for word in words if word.startswith("/")), None)
            if path is not None:
                found[Path(path)] = None
    return list(found)
