"""Podman's service of the tests' own, which speaks Docker's language at a socket: in a folder, with networks that nobody else has."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

from tests.docker.daemon import READY_SECONDS, Dockerd

# The limits that Podman asks for by itself may be more than a machine of CI has.
CONFIG = """
[containers]
default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
[network]
network_config_dir = "{folder}/networks"
"""


class Podman(Dockerd):
    """A daemon in another's clothes: what the tests do with the one they do with the other."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="aima-podman-"))
        self.socket = self.folder / "podman.sock"
        self._process: subprocess.Popen[bytes] | None = None  # type: ignore[assignment]

    @staticmethod
    def lacks() -> str | None:
        """Why there can be none here."""
        if os.geteuid() != 0:
            return "rootless Podman has its networks in another place: this needs root"
        return None if shutil.which("podman") else "podman is not installed (apt install podman)"

    def start(self) -> None:
        (self.folder / "networks").mkdir(exist_ok=True)
        (self.folder / "containers.conf").write_text(CONFIG.format(folder=self.folder), encoding="utf-8")
        command = ["podman", "--root", self.folder / "data", "--runroot", self.folder / "run", "--storage-driver", "vfs"]
        command += ["system", "service", "--time", "0", f"unix://{self.socket}"]
        around = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
        around["CONTAINERS_CONF"] = str(self.folder / "containers.conf")
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, env=around, start_new_session=True)
        deadline = time.monotonic() + READY_SECONDS
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise OSError(f"podman does not start here: {(self.folder / 'log').read_text(errors='replace').splitlines()[-1:]}")
            time.sleep(0.05)

    def close(self) -> None:
        if self._process is not None and self._answers():
            api = self.api()
            for row in api.containers(all=True):
                api.remove_container(row["Id"], force=True)
            for row in api.networks():
                if row["Name"].startswith("aima-"):
                    api.remove_network(row["Id"])
            api.close()
        self.stop(signal.SIGKILL)  # asked politely it takes two seconds
        shutil.rmtree(self.folder, ignore_errors=True)
