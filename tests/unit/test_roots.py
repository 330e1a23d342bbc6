"""Files that a caller names: beneath the roots and nowhere else, by the kernel's way and by our own."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from aima_lib.errors import FailedPrecondition, InvalidArgument, PermissionDenied
from aima_lib.infra import roots as beneath
from aima_lib.infra.roots import Absent, Roots, by_kernel, by_walking
from tests.hub import sha256_of
from tests.tiny import write_tiny_gguf
from tests.unit.test_model import shop

OPENS = 2000
SECRET = "secret"


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(params=[by_kernel, by_walking], ids=lambda way: way.__name__)
def way(request: pytest.FixtureRequest) -> beneath.Descend:
    if request.param is by_kernel and beneath.best() is not by_kernel:
        pytest.skip("this kernel has no openat2")
    chosen: beneath.Descend = request.param
    return chosen


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """root/ with files and links of every kind, beside it outside/."""
    root, outside = tmp_path / "root", tmp_path / "outside"
    (root / "sub/deep").mkdir(parents=True)
    outside.mkdir()
    (root / "file").write_text("inside", encoding="utf-8")
    (root / "sub/file").write_text("inside", encoding="utf-8")
    (outside / "file").write_text(SECRET, encoding="utf-8")
    links = {
        "relative": "sub/file", "sub/deep/up": "../../file", "chain": "relative", "folder": "sub", "absolute": root / "file",
        "out": outside / "file", "out-relative": "../outside/file", "out-folder": "../outside", "out-of-there": "sub/../../outside/file",
        "out-and-back": "../root/file", "dangling": "nothing", "dangling-out": "../outside/nothing", "loop": "loop",
        "magic": "/proc/self/cwd",
    }  # fmt: skip
    for name, target in links.items():
        (root / name).symlink_to(target)
    os.mkfifo(root / "pipe")
    return tmp_path


def roots_of(tree: Path, way: beneath.Descend | None = None) -> Roots:
    return Roots({"it": str(tree / "root")}, tree / "own", way)


def content(roots: Roots, path: object) -> str:
    with roots.open(str(path)) as opened:
        return opened.file.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "name",
    [
        "file", "sub/file", "relative", "chain", "folder/file", "sub/deep/up", "sub/deep/../file", "./file", "sub//file", "sub/../../root/file",
        "absolute", "out-and-back",
    ],
)  # fmt: skip
def test_what_lies_beneath_is_opened_through_whatever_links(tree: Path, way: beneath.Descend, name: str) -> None:
    assert content(roots_of(tree, way), tree / "root" / name) == "inside"


@pytest.mark.parametrize(
    "name",
    [
        "root/out", "root/out-relative", "root/out-folder/file", "root/out-of-there", "root/dangling-out", "root/../outside/file",
        "root/sub/../../outside/file", "outside/file", "outside/nothing", "outside", "", "root2/file", "nothing/at/all", "root/magic",
    ],
)  # fmt: skip
def test_what_leads_out_is_refused_alike_whether_it_is_there_or_not(tree: Path, way: beneath.Descend, name: str) -> None:
    with pytest.raises(PermissionDenied) as caught:
        roots_of(tree, way).open(str(tree / name))
    assert str(caught.value) == f"{tree / name} is not beneath a folder that files may be read from"
    assert "[files] roots" in str(caught.value.hint) and SECRET not in str(caught.value.as_dict())


@pytest.mark.parametrize("name", ["nothing", "file/below", "dangling", "pipe", "out-folder/../nothing", "x" * 300])
def test_what_is_not_there_or_no_file_is_said_of_the_roots_alone(tree: Path, way: beneath.Descend, name: str) -> None:
    with pytest.raises(InvalidArgument):
        roots_of(tree, way).open(str(tree / "root" / name))


@pytest.mark.parametrize("path", ["a\0b", "~nobody-of-this-name/x", "\ud800"])
def test_what_is_no_path_is_said_so(tree: Path, path: str) -> None:
    with pytest.raises(InvalidArgument, match="is not a path"):
        roots_of(tree).open(path)


def test_nothing_stays_open(tree: Path, way: beneath.Descend) -> None:
    roots, before = roots_of(tree, way), len(os.listdir("/dev/fd"))
    for name in ("file", "sub/deep/up", "sub", "out", "out-of-there", "nothing", "pipe", "loop", "absolute", "."):
        try:
            with roots.open(str(tree / "root" / name)):
                pass
        except (PermissionDenied, InvalidArgument):
            pass
    assert len(os.listdir("/dev/fd")) == before


def test_a_link_from_one_root_to_another_is_a_link_beneath_both(tree: Path, way: beneath.Descend) -> None:
    roots = Roots({"it": str(tree / "root"), "disk": str(tree / "outside")}, tree / "own", way)
    assert content(roots, tree / "root/out") == content(roots, tree / "outside/file") == SECRET


def test_a_root_may_be_a_link_itself_and_is_known_by_both_names(tree: Path, way: beneath.Descend) -> None:
    (tree / "alias").symlink_to("root")
    for named in ("alias", "root"):
        roots = Roots({"it": str(tree / named)}, tree / "own", way)
        assert content(roots, tree / "alias/file") == content(roots, tree / "root/sub/file") == "inside"


def test_the_home_of_the_user_is_the_default_and_a_relative_root_is_none(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tree / "root"))
    roots = Roots({"home": "~"}, tree / "own")
    assert content(roots, "~/file") == content(roots, tree / "root/file") == "inside"
    monkeypatch.chdir(tree / "root")
    assert content(roots, "sub/file") == "inside"
    with pytest.raises(InvalidArgument, match=r"\[files\] roots: odd"):
        Roots({"odd": "some/folder"}, tree / "own")


def test_without_openat2_our_own_way_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(top: int, path: str) -> int:
        raise OSError(errno.ENOSYS, "no such call")

    monkeypatch.setattr(beneath, "by_kernel", absent)
    beneath.best.cache_clear()
    try:
        assert beneath.best() is by_walking
    finally:
        beneath.best.cache_clear()


# The race: looking at a path and opening it later would lose it. Another process swaps as fast as it can.

SWAPS = {
    "file": """
while True:
    os.symlink("../../outside/file", "link"), os.rename("link", "d/file")
    pathlib.Path("new").write_text("inside"), os.rename("new", "d/file")
""",
    "folder": """
while True:
    os.rename("d", "held"), os.symlink("../outside", "d")
    os.unlink("d"), os.rename("held", "d")
""",
}


@pytest.fixture(params=sorted(SWAPS))
def swapping(request: pytest.FixtureRequest, tree: Path) -> Iterator[Path]:
    (tree / "root/d").mkdir()
    (tree / "root/d/file").write_text("inside", encoding="utf-8")
    code = "import os, pathlib\nprint('up', flush=True)" + SWAPS[request.param]
    with subprocess.Popen([sys.executable, "-c", code], cwd=tree / "root", stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"up\n"
        yield tree / "root/d/file"
        process.kill()


def test_a_swap_between_look_and_use_gains_nothing(tree: Path, swapping: Path, way: beneath.Descend) -> None:
    roots, seen = roots_of(tree, way), dict.fromkeys(("inside", SECRET, "refused", "absent"), 0)
    for number in range(50 * OPENS):
        if number >= OPENS and seen["inside"] and seen["refused"]:
            break
        try:
            with roots.open(str(swapping)) as opened:
                seen[opened.file.read_text(encoding="utf-8") or "inside"] += 1  # empty: just being written anew
        except PermissionDenied:
            seen["refused"] += 1
        except Absent:
            seen["absent"] += 1
    assert seen[SECRET] == 0 and seen["inside"] and seen["refused"], seen


# What follows uses the descriptor


def test_an_open_file_stays_what_it_was(tree: Path, way: beneath.Descend) -> None:
    path = tree / "root/file"
    with roots_of(tree, way).open(str(path)) as opened:
        path.unlink()
        path.symlink_to(tree / "outside/file")
        assert [opened.file.read_text(encoding="utf-8") for _ in range(2)] == ["inside", "inside"] and opened.size == 6


@pytest.mark.anyio
@pytest.mark.parametrize("mode", ["link", "copy"])
async def test_an_import_takes_the_file_it_looked_at(tmp_path: Path, mode: str) -> None:
    """The path is swapped when the file has been read and not yet taken."""
    path, other = write_tiny_gguf(tmp_path / "m.gguf"), write_tiny_gguf(tmp_path / "other.gguf", seed=1)
    digest = sha256_of(path)

    async def swap(item: object) -> None:
        other.replace(path) if other.exists() else None

    async with shop(tmp_path / "home") as here:
        (model,), _ = await here.models.import_all(str(path), mode=mode, send=swap)
        assert not other.exists() and model["digest"] == f"sha256:{digest}"
        assert sha256_of(here.models.path(model)) == digest


@pytest.mark.anyio
async def test_a_hub_cache_with_its_relative_links_is_imported_and_linked(tmp_path: Path) -> None:
    """snapshots/<commit>/<file> → ../../blobs/<sha256>, as Hugging Face's library lays models out."""
    blobs, snapshot = tmp_path / "models--a--m/blobs", tmp_path / "models--a--m/snapshots/0123"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    blob = write_tiny_gguf(blobs / "x").rename(blobs / "f00")
    (snapshot / "m-F32.gguf").symlink_to("../../blobs/f00")
    async with shop(tmp_path / "home") as here:
        for given in (snapshot / "m-F32.gguf", snapshot):
            (model,), _ = await here.models.import_all(str(given), name="m")
            assert here.models.path(model).samefile(blob)
        registered = await here.models.create("there", "llm", str(snapshot))
        assert here.models.path(registered) == snapshot / "m-F32.gguf"
        assert await here.models.verify("there") == (True, [])


@pytest.mark.anyio
async def test_registered_weights_are_looked_at_again_when_they_are_used(tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "m.gguf")
    async with shop(tmp_path / "home") as here:
        model = await here.models.create("m", "llm", str(path))
        assert here.models.path(model) == path
        path.rename(tmp_path / "elsewhere")
        with pytest.raises(FailedPrecondition, match=r"m\.gguf is not a file"):
            here.models.path(model)
        assert (await here.models.verify("m"))[1][0]["code"] == "missing"
        path.symlink_to("/etc/hostname")
        for use in (lambda: here.models.verify("m"), lambda: here.models.verify("m", "0" * 64)):
            with pytest.raises(PermissionDenied, match="not beneath"):
                await use()
        with pytest.raises(PermissionDenied, match="not beneath"):
            here.models.path(model)
