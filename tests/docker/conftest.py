"""A daemon for all the tests of this folder: 2 to 7 s until it is ready, once for the folder, and a second to end it.

They are skipped, with the reason, where no daemon can be had. `dockerd.build` makes an image in a second: no registry is asked.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docker.daemon import Dockerd

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.docker)


@pytest.fixture(scope="session")
def dockerd() -> Iterator[Dockerd]:
    """A running daemon. A test that stops it starts it again."""
    if why := Dockerd.lacks():
        pytest.skip(why)
    daemon = Dockerd()
    try:
        daemon.start()
    except OSError as error:
        daemon.close()
        pytest.skip(str(error))
    try:
        yield daemon
    finally:
        daemon.close()


@pytest.fixture(scope="session")
def busybox(dockerd: Dockerd) -> str:
    """The id of an image with busybox alone: a shell, nc, httpd."""
    binary = shutil.which("busybox")
    if binary is None:
        pytest.skip("busybox is not installed (apt install busybox-static)")
    return dockerd.build({"/bin/busybox": Path(binary)}, 'RUN ["/bin/busybox", "--install", "-s", "/bin"]')
