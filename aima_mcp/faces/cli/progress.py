"""Progress of a run: a bar on a terminal, lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from aima_lib.wording import plain, size
from aima_mcp.faces.cli.parts import PartLines, Tree
from aima_mcp.faces.cli.render import err

if TYPE_CHECKING:
    from rich.progress import TaskID

LINE_EVERY_SECONDS = 5.0
# Progress does not say what it counts; nobody counts files or layers by the ten thousand.
FEWEST_BYTES = 10_000


def bar_or_lines() -> Bar | Lines:
    """What standard error can show."""
    return Bar() if err().is_terminal else Lines()


class Lines:
    """A line for each step, and for a long step one every few seconds."""

    def __init__(self) -> None:
        self._phase, self._told = "", 0.0
        self._parts = PartLines()

    async def send(self, item: Mapping[str, Any]) -> None:
        if "parts" in item:
            self._parts.show(item)
            return
        moment = time.monotonic()
        if item["phase"] == self._phase and moment - self._told < LINE_EVERY_SECONDS:
            return
        self._phase, self._told = item["phase"], moment
        done, total = item.get("completed"), item.get("total")
        share = f" ({done / total:.0%})" if done is not None and total else ""
        step = "" if item["message"].startswith(item["phase"]) else f"{item['phase']}: "
        err().print(plain(f"{step}{item['message']}{share}"), soft_wrap=True)

    def close(self, done: bool) -> None:
        """Nothing is left to say."""


class Bar:
    """One bar a step: how much, how fast, how long still."""

    def __init__(self) -> None:
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

        self._progress = Progress(
            SpinnerColumn(), TextColumn("{task.description}"), BarColumn(bar_width=30), TextColumn("{task.fields[amount]}"),
            TimeRemainingColumn(compact=True), console=err(),
        )  # fmt: skip
        self._phase, self._began, self._first = "", 0.0, 0.0
        self._task: TaskID | None = None
        self._tree: Tree | None = None

    async def send(self, item: Mapping[str, Any]) -> None:
        if "parts" in item:
            self._tree = self._tree or Tree()
            self._tree.show(item)
            return
        if item["phase"] != self._phase or self._task is None:
            self._next(item)
        assert self._task is not None
        done, spent = item.get("completed"), time.monotonic() - self._began
        speed = f" {size((done - self._first) / spent)}/s" if done and spent > 1 and _is_bytes(item) and done > self._first else ""
        # What is counted is on the bar already.
        text = item["phase"] if done is not None else f"{item['phase']}: {_shortened(item['message'])}"
        self._progress.update(self._task, description=text, completed=done or 0, total=item.get("total"), amount=amount(item) + speed)

    def close(self, done: bool) -> None:
        """Leave the last state on the screen."""
        self._finish(done)
        self._progress.stop()
        if self._tree is not None:
            self._tree.close()

    def _next(self, item: Mapping[str, Any]) -> None:
        self._finish(True)
        self._progress.start()
        self._phase, self._began, self._first = item["phase"], time.monotonic(), item.get("completed") or 0
        self._task = self._progress.add_task(item["phase"], total=None, amount="")

    def _finish(self, done: bool) -> None:
        """A step whose call goes on, or ended well, was done whole, whatever its last item said."""
        if self._task is None:
            return
        task = next(task for task in self._progress.tasks if task.id == self._task)
        if done:
            whole = amount({"completed": task.total, "total": task.total}) if task.total else ""
            self._progress.update(self._task, total=task.total or 1, completed=task.total or 1, amount=whole)
        self._progress.stop_task(self._task)
        self._task = None


def amount(item: Mapping[str, Any]) -> str:
    """How much of how much, in a few characters."""
    done, total = item.get("completed"), item.get("total")
    if done is None:
        return ""
    if not _is_bytes(item):
        return f"{done:g}" if total is None else f"{done:g} of {total:g}"
    return size(done) if not total else f"{done / total:.0%} of {size(total)}"


def _is_bytes(item: Mapping[str, Any]) -> bool:
    return max(item.get("total") or 0, item.get("completed") or 0) >= FEWEST_BYTES


def _shortened(text: str) -> str:
    text = plain(text)
    return text if len(text) <= 48 else text[:47] + "…"
