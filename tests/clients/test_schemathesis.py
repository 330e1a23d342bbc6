"""Schemathesis over the OpenAPI document of a live host: what it says is what happens, for the owner and for who may only read."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hub import Hub
from tests.tiny import write_tiny_gguf
from tests.world import ROOT, HostProcess, agreed_to

pytestmark = pytest.mark.engine
HERE = Path(__file__).parent
# What ends the host, never ends itself, or would have every later command refused.
LEFT_OUT = ["--exclude-path", "/shutdown", "--exclude-path", "/events", "--exclude-path-regex", "system/(freeze|thaw)"]
BOUNDED = ["--max-examples", "2", "--request-timeout", "30", "--max-failures", "20", "--warnings", "off", "--no-color"]


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[HostProcess, dict[str, str]]]:
    """A host that serves `tiny`, beside a hub of this machine; and two keys to it."""
    folder = tmp_path_factory.mktemp("schemathesis")
    weights = write_tiny_gguf(folder / "tiny.gguf")
    with Hub(folder / "hub") as hub:
        process = HostProcess(Path(sys.executable), folder / "home", ROOT, hub.config).start()
        with process.client() as client:
            client.post("/units/model/import", json={"path": str(weights), "name": "tiny"}).raise_for_status()
            client.post("/units/service/create", json={"model_id": "tiny", "name": "tiny", "engine": "llamacpp"}).raise_for_status()
            reader = agreed_to(client, "key/create", {"name": "reader", "scopes": ["read"]})["secret"]
        yield process, {"owner": process.home.key(), "reader": reader}
        process.stop()


# What a schema allows at its edges is tried of queries, by the owner, to whom more is allowed than a refusal. What commands refuse there,
# the contract's malformed calls try on every face.
RUNS = {
    "owner": ["--phases", "examples,fuzzing,stateful"],
    "owner, at the edges": ["--phases", "coverage", "--include-method", "GET"],
    "reader": ["--phases", "examples,fuzzing"],
}


@pytest.mark.parametrize("run", [*RUNS])
def test_what_the_document_says_is_what_happens(keys: tuple[HostProcess, dict[str, str]], run: str) -> None:
    host, key = keys[0], keys[1][run.partition(",")[0]]
    command = [sys.executable, "-m", "schemathesis.cli", "--config-file", str(HERE / "schemathesis.toml"), "run"]
    command += [f"{host.url}/openapi.json", "--header", f"Authorization: Bearer {key}", *LEFT_OUT, *BOUNDED, *RUNS[run]]
    around = os.environ | {"SCHEMATHESIS_HOOKS": "tests.clients.schemathesis_hooks", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=around, cwd=host.home.path.parent, timeout=300, check=False)
    said = "\n".join(line[:600] for line in done.stdout.partition(" FAILURES ")[2].splitlines() if line.strip())
    assert done.returncode == 0 and " passed" in done.stdout, said + done.stderr[-2000:]
