"""Images that stand for those of the templates: busybox, listening where the real ones listen and answering where they are asked."""

from __future__ import annotations

import io
import shutil
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

import docker

from aima_lib.services.app_template import builtins

BUSYBOX = shutil.which("busybox")
# PID 1 gets no signal that it does not ask for.
SERVE = """#!/bin/sh
trap 'exit 0' TERM INT
echo "listening on $PORTS as $0 $*"
for port in $PORTS; do /bin/busybox httpd -f -p $port -h /www & done
wait
"""
APPLETS = ("sh", "sleep", "cat", "nc", "dd", "echo", "printf", "test")


def archive(files: Mapping[str, bytes]) -> io.BytesIO:
    """Files as a tar: programs in bin and the script may be run."""
    held = io.BytesIO()
    with tarfile.open(fileobj=held, mode="w") as tar:
        for folder in sorted({str(folder) for name in files for folder in PurePosixPath(name).parents} - {"."}):
            entry = tarfile.TarInfo(folder)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(entry)
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content), 0o755
            tar.addfile(entry, io.BytesIO(content))
    held.seek(0)
    return held


def layer(more: Mapping[str, bytes] | None = None, script: str = SERVE) -> bytes:
    """The one layer of them all: busybox, and every page that a template's health asks for. Or of these files alone."""
    if more is not None:
        return archive(more).getvalue()
    assert BUSYBOX is not None
    files = {"bin/busybox": Path(BUSYBOX).read_bytes(), "serve": script.encode(), "usr/bin/code-server": SERVE.encode()}
    files |= {f"www/{page.strip('/')}": b"well\n" for page in pages() if page.strip("/")}
    files |= {"www/index.html": b"a page\n", "tmp/.keep": b""}
    held = archive(files)
    with tarfile.open(fileobj=held, mode="a") as tar:
        for applet in APPLETS:
            entry = tarfile.TarInfo(f"bin/{applet}")
            entry.type, entry.linkname = tarfile.SYMTYPE, "busybox"
            tar.addfile(entry)
    return held.getvalue()


def pages() -> set[str]:
    """What is asked of the templates' containers."""
    found = {
        health["path"] for template in builtins().values() for each in template["containers"].values() if (health := each.get("health"))
    }
    longer = {path for path in found if any(other.startswith(f"{path}/") for other in found)}
    return found - longer


def stand_in(api: docker.APIClient, reference: str, ports: Sequence[int] = (), *changes: str, script: str = SERVE) -> str:
    """An image called `reference` that listens on these ports. Its id."""
    name, _, tag = reference.rpartition(":")
    told = [f"ENV PORTS={' '.join(map(str, ports))!r}", 'ENTRYPOINT ["/bin/sh", "/serve"]', *changes]
    api.import_image_from_data(layer(script=script), repository=name, tag=tag, changes=told)
    return str(api.inspect_image(reference)["Id"])


def stand_ins(api: docker.APIClient, *names: str) -> None:
    """An image for each container of these templates, under the names that they have in them."""
    for name in names or builtins():
        for container in builtins()[name]["containers"].values():
            stand_in(api, container["image"], [port["container"] for port in container.get("ports", ())])
