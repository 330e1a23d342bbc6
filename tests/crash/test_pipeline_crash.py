"""Pipelines whose host is killed at random moments: every run ends, what is on record is not done again, what comes out is the same."""

from __future__ import annotations

import json
import os
import random
import sqlite3
import subprocess
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.toys import done, lines
from tests.world import environment

pytestmark = pytest.mark.crash
KILLS = int(os.environ.get("AIMA_KILLS", "12"))
SEED = int(os.environ.get("AIMA_SEED", str(KILLS)))
BATCH = 8  # pipelines at the same time
LIFE_SECONDS = 0.8  # a host lives no longer than this
AGAIN = ("toy.look", "toy.again", "toy.ask", "toy.long")  # what a call is made of that was cut off and may be made again
FINAL = ("succeeded", "failed", "skipped", "cancelled", "unknown")
SCRIPT = Path(__file__).with_name("flow_host.py")


def random_document(chance: random.Random, name: str, kind: str) -> dict[str, Any]:
    """A pipeline of 10 to 50 steps. kind: same (ends as if nothing had happened), once (some calls may not be made twice), undone (its
    last step fails and all is undone)."""
    steps: list[dict[str, Any]] = []
    many: set[str] = set()
    for place in range(chance.randint(10, 50)):
        id = f"s{place}"
        needs = chance.sample([step["id"] for step in steps], min(len(steps), chance.choice((0, 1, 1, 2, 3))))
        type = "toy.once" if kind == "once" and chance.random() < 0.3 else chance.choice(AGAIN)
        values = [f"${{steps.{need}[*].value.id}}" if need in many else f'${{steps.{need}.value.id ?? "none"}}' for need in needs]
        given = {"word": f"{name}.{id}", "value": {"id": id, "of": values}, "seconds": round(chance.random() * 0.2, 3)}
        step: dict[str, Any] = {"id": id, "type": type, "input": given}
        if chance.random() < 0.15:
            given |= {"fail": "unavailable", "times": chance.randint(1, 2)}
            step["retry"] = {"attempts": 5, "backoff_seconds": 0.01}
        elif chance.random() < 0.1:
            step["for_each"] = {"items": ["x", "y", "z"], "max_parallel": chance.randint(1, 3)}
            given |= {"word": f"{name}.{id}.${{item}}", "value": {"id": f"{id}${{item}}", "of": values}}
            many.add(id)
        elif chance.random() < 0.08:
            step["if"] = chance.choice(("run.id == null", "run.id != null"))
        if kind == "undone":
            item = ".${item}" if id in many else ""
            step["compensate"] = {
                "type": chance.choice(("toy.again", "toy.once", "toy.long")),
                "input": {"word": f"{name}.undo.{id}{item}"},
            }
        steps.append(step)
    if kind == "undone":
        bad = {"word": f"{name}.bad", "fail": "not_found"}
        steps.append({"id": "bad", "type": "toy.look", "depends_on": [step["id"] for step in steps], "input": bad})
    output = {step["id"]: f"${{steps.{step['id']}}}" for step in steps}
    return {"name": name, "steps": steps, "output": {id: text for id, text in output.items() if id != "bad"}, "config": {"max_parallel": 4}}


@dataclass
class Host:
    """Hosts of one home, one after the other, and what they leave behind."""

    python: Path
    home: Path
    folder: Path
    kills: int = 0
    recorded: set[tuple[str, str, int, int]] = field(default_factory=set)
    seen: int = 0

    def spawn(self) -> subprocess.Popen[str]:
        command = [str(self.python), str(SCRIPT), str(self.home), str(self.folder)]
        around = environment(self.home) | {"AIMA_TOYS": str(self.folder)}
        with (self.folder / "host.log").open("ab") as log:
            return subprocess.Popen(command, env=around, stdout=subprocess.PIPE, stderr=log, text=True)

    def ended(self) -> Mapping[str, Any]:
        """The runs, as the host that lived to their end tells them."""
        process = self.spawn()
        said, _ = process.communicate(timeout=120)
        assert process.returncode == 0, (self.folder / "host.log").read_text()[-3000:]
        found: Mapping[str, Any] = json.loads(said.splitlines()[-1])
        return found

    def killed(self, chance: random.Random) -> bool:
        """Start a host and kill it at a random moment; False when it had ended before."""
        process = self.spawn()
        assert process.stdout is not None
        if chance.random() < 0.9:  # some while they start
            process.stdout.readline()
        try:
            process.wait(chance.uniform(0, LIFE_SECONDS))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            self.kills += 1
            self.judge()
            return True
        finally:
            process.stdout.close()
        assert process.returncode == 0, (self.folder / "host.log").read_text()[-3000:]
        return False

    def judge(self) -> None:
        """What was on record when the host before this one died has not begun again since."""
        written = lines(self.folder)
        begun = Counter(line.removesuffix(" begin") for line in written[self.seen :] if line.endswith(" begin"))
        for name, step, item, undo in self.recorded:
            word = f"{name}.undo.{step}" if undo else f"{name}.{step}"
            word += f".{'xyz'[item]}" if item >= 0 else ""
            assert not begun[word], f"{word} is on record and began again"
        self.seen = len(written)
        self.recorded = {row for row in self.rows() if row[0]}

    def judge_events(self, runs: int) -> None:
        """Each run has one beginning, one end, and one event of each step and each compensation."""
        each = "type, subject, json_extract(payload, '$.step'), json_extract(payload, '$.compensation')"
        with sqlite3.connect(self.home / "aima.db") as db:
            sql = f"SELECT {each}, count(*) FROM events WHERE type LIKE 'pipeline.%' AND type <> 'pipeline.created' GROUP BY {each}"
            found = db.execute(sql).fetchall()
        db.close()
        twice = [row for row in found if row[-1] > 1]
        assert not twice, twice
        ends = Counter(row[0] for row in found)
        assert (ends["pipeline.started"], ends["pipeline.completed"] + ends["pipeline.failed"]) == (runs, runs), ends

    def left(self) -> list[str]:
        """The runs that have not ended."""
        with sqlite3.connect(self.home / "aima.db") as db:
            sql = "SELECT id FROM documents WHERE kind = 'run' AND json_extract(body, '$.status') = 'running'"
            found = [row[0] for row in db.execute(sql)]
        db.close()
        return found

    def rows(self) -> Iterator[tuple[str, str, int, int]]:
        """Every call that has ended, by pipeline, step, item and whether it is a compensation."""
        if not (self.home / "aima.db").exists():
            return
        marks = ",".join("?" * len(FINAL))
        sql = f"SELECT pipeline_id, step, item, undo FROM steps JOIN flows ON seq = flow WHERE status IN ({marks})"
        with sqlite3.connect(self.home / "aima.db") as db:
            try:
                yield from db.execute(sql, FINAL).fetchall()
            except sqlite3.OperationalError:
                return  # the first host died before it had made the tables
        db.close()


def jobs(folder: Path, documents: list[dict[str, Any]], **more: Any) -> None:
    folder.mkdir()
    listed = [{"document": one, "key": one["name"], **{key: value() for key, value in more.items()}} for one in documents]
    (folder / "jobs.json").write_text(json.dumps(listed), encoding="utf-8")


def test_pipelines_outlive_kills(python: Path, tmp_path: Path) -> None:
    chance, kills, batch, began = random.Random(SEED), 0, 0, time.monotonic()
    totals: Counter[str] = Counter()
    while kills < KILLS:
        kinds = [chance.choice(("same", "same", "once", "undone")) for _ in range(BATCH)]
        documents = [random_document(chance, f"p{batch}-{place}", kind) for place, kind in enumerate(kinds)]
        calm, rough = tmp_path / f"calm{batch}", tmp_path / f"rough{batch}"
        jobs(calm, documents)
        jobs(rough, documents)
        undisturbed = Host(python, tmp_path / f"calm-home{batch}", calm).ended()
        host = Host(python, tmp_path / f"rough-home{batch}", rough)
        while kills + host.kills < KILLS and host.killed(chance):
            pass
        ended = host.ended()
        host.judge()
        host.judge_events(BATCH)
        for kind, document in zip(kinds, documents, strict=True):
            totals[compared(kind, document, undisturbed[document["name"]], ended[document["name"]], rough)] += 1
        kills, batch = kills + host.kills, batch + 1
    print(f"\n{kills} kills over {batch * BATCH} pipelines in {time.monotonic() - began:.0f} s: {dict(totals)}")


def test_a_cancel_outlives_kills(python: Path, tmp_path: Path) -> None:
    chance, kills, batch = random.Random(-SEED), 0, 0
    totals: Counter[str] = Counter()
    while kills < max(KILLS // 3, 1):
        documents = [random_document(chance, f"c{batch}-{place}", "undone") for place in range(BATCH)]
        folder = tmp_path / f"cancelled{batch}"
        jobs(folder, documents, cancel=lambda: chance.uniform(0, 0.5))
        host = Host(python, tmp_path / f"home{batch}", folder)
        while kills + host.kills < max(KILLS // 3, 1) and host.killed(chance):
            pass
        for name, run in host.ended().items():
            document = next(document for document in documents if document["name"] == name)
            assert run["status"] in ("cancelled", "failed"), run  # failed: its last step came before the cancel
            judge_undone(document, run, folder)
            totals[run["status"]] += 1
        host.judge()
        host.judge_events(BATCH)
        assert host.left() == []
        kills, batch = kills + host.kills, batch + 1
    print(f"\n{kills} kills over {batch * BATCH} pipelines that were cancelled: {dict(totals)}")


def compared(kind: str, document: Mapping[str, Any], calm: Mapping[str, Any], rough: Mapping[str, Any], folder: Path) -> str:
    """Judge one run against the one that nobody disturbed; says how it ended."""
    name = document["name"]
    written = Counter(line for line in lines(folder) if line.startswith(f"{name}."))
    for line, count in written.items():
        word = line.removesuffix(" begin")
        if line.endswith(" begin") and is_once(document, word):
            assert count <= written[f"{word} failed"] + 1, f"{word} may not be done twice, and began {count} times"
    if kind == "undone":
        assert (calm["status"], rough["status"]) == ("failed", "failed")
        judge_undone(document, rough, folder)
        return "undone"
    assert calm["status"] == "succeeded", calm
    if kind == "once" and rough["status"] == "failed":
        assert rough["error"]["code"] == "failed_precondition", rough["error"]
        assert "was cut off: whether it was done is unknown" in rough["error"]["message"], rough["error"]
        return "unknown"
    assert rough["status"] == "succeeded", rough
    assert without_company(rough["result"]["output"]) == without_company(calm["result"]["output"])
    return "same"


def without_company(output: Any) -> Any:
    """The output less what tells who else was at work."""
    if isinstance(output, Mapping):
        return {key: without_company(value) for key, value in output.items() if key != "others"}
    return [without_company(item) for item in output] if isinstance(output, list) else output


def is_once(document: Mapping[str, Any], word: str) -> bool:
    """Whether this word is said by a unit that may not be called twice."""
    parts = word.split(".")[1:]
    undo = parts[0] == "undo"
    step = next(step for step in document["steps"] if step["id"] == parts[1 if undo else 0])
    return bool((step["compensate"] if undo else step)["type"] == "toy.once")


def judge_undone(document: Mapping[str, Any], run: Mapping[str, Any], folder: Path) -> None:
    """Each call that was done is undone, the last one first."""
    name = document["name"]
    first = list(dict.fromkeys(word for word in done(folder) if word.startswith(f"{name}.undo.")))
    undone = [word.removeprefix(f"{name}.undo.") for word in first]
    made = {word.removeprefix(f"{name}.") for word in done(folder) if word.startswith(f"{name}.s")}
    doubtful = run["error"]["details"].get("not_undone", [])
    assert made - set(undone) <= {word for word in made if word.split(".")[0] in doubtful}, "something was not undone"
    after = {
        step["id"]: {need.split(".")[1].split("[")[0].split(" ")[0] for need in step["input"]["value"]["of"]}
        for step in document["steps"][:-1]
    }
    at = {word.split(".")[0]: place for place, word in enumerate(undone)}
    for step, needs in after.items():
        for need in {need.removesuffix("}") for need in needs} & set(at):
            if step in at:
                assert at[step] < at[need], f"{need} was undone before {step}, which came after it"
