"""The command line: what it reads from a schema, what it prints, which code it ends with, and the host it starts and stops."""

from __future__ import annotations

import asyncio
import io
import json
import os
import pty
import shlex
import signal
import socket
import subprocess
import sys
import termios
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from aima_lib.errors import InvalidArgument
from aima_lib.infra.home import Home
from aima_lib.redact import secrets_in
from aima_lib.registry import definitions
from aima_mcp.faces.cli import DOTTED, UnitCommand, arguments, command_line, definition, output
from aima_mcp.faces.cli.parts import PartLines, Tree
from aima_mcp.faces.cli.watching import Tokens
from aima_mcp.main import run
from tests.hub import Fault, Hub
from tests.tiny import write_tiny_gguf
from tests.world import ROOTS, environment, until

ROOT = Path(__file__).parents[2]
CALLABLE = [unit for unit in definitions() if unit["kind"] in ("command", "query")]
EXAMPLES = [(unit, example["input"]) for unit in CALLABLE for example in unit["examples"]]


def read(name: str, *line: str) -> dict[str, Any]:
    """The arguments a command line means."""
    found = definition(name)
    assert found is not None
    command = UnitCommand(found)
    context = command.make_context(command.name, list(line))
    return arguments.gather(found["inputSchema"], context.params, context.meta[DOTTED])


def aima(home: Home, *line: str, stdin: str = "", seconds: float = 60) -> subprocess.CompletedProcess[str]:
    """One command in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "aima_mcp.main", *line],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=seconds,
        env=around(home),
        check=False,
    )


def around(home: Home) -> dict[str, str]:
    return environment(home.path) | {"PYTHONPATH": str(ROOT)}


@pytest.fixture
def stopped_after(home: Home) -> Iterator[Home]:
    """A home on a free port, whose host is gone when the test is over."""
    (home.path / "config.toml").write_text(f"[server]\nport = 0\n{ROOTS}", encoding="utf-8")
    yield home
    assert aima(home, "stop").returncode == 0
    assert home.host() is None


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    """A home that a host in the background has, with the model `tiny`, for tests that leave it as it is."""
    home = Home(tmp_path_factory.mktemp("up") / "home")
    home.make()
    (home.path / "config.toml").write_text(f"[server]\nport = 0\n{ROOTS}", encoding="utf-8")
    assert aima(home, "start").returncode == 0
    weights = write_tiny_gguf(home.path / "tiny.gguf")
    assert aima(home, "model", "import", str(weights), "--name", "tiny", "--idempotency-key", "once").returncode == 0
    yield home
    assert aima(home, "stop").returncode == 0


# Reading


@pytest.mark.parametrize(("unit", "given"), EXAMPLES, ids=lambda value: value["name"] if "name" in value and "kind" in value else "")
def test_every_example_survives_its_own_command_line(unit: dict[str, Any], given: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    words = shlex.split(command_line(unit["name"], given))
    for key in secrets_in(unit["inputSchema"]):
        assert given[key] not in words
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(given[key].encode())))
    assert words[:3] == ["aima", *unit["name"].split(".")]
    assert read(unit["name"], *words[3:]) == given


@pytest.mark.parametrize("words", [[], ["model"]])
def test_who_says_too_little_is_shown_what_there_is(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(words) == InvalidArgument.exit_code
    shown = capsys.readouterr().err
    assert shown.startswith("Usage: aima") and "hint" not in shown


def test_a_word_too_many_is_told_which_options_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["model", "estimate-resources", "tiny"]) == InvalidArgument.exit_code
    assert "hint: it takes --model-id, --repo" in capsys.readouterr().err


def test_the_first_required_text_needs_no_option() -> None:
    assert read("run.get", "a") == read("run.get", "--run-id", "a") == read("run.get", "--run-id=a") == {"run_id": "a"}


def test_what_was_not_given_is_left_out() -> None:
    assert read("run.list") == {}


def test_options_go_over_the_base(tmp_path: Path) -> None:
    base = tmp_path / "base.json"
    base.write_text('{"limit": 1, "offset": 2}', encoding="utf-8")
    assert read("run.list", "--input", f"@{base}", "--limit", "5") == {"limit": 5, "offset": 2}


def test_parts_of_an_object_are_in_the_help_and_may_be_spelled_like_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert read("service.create", "tiny", "--options.context-length", "512", "--options.context_length=256") == {
        "model_id": "tiny",
        "options": {"context_length": 256},
    }
    assert run(["service", "create", "--help"]) == 0
    assert "--options.context-length INTEGER" in capsys.readouterr().out


def test_parts_of_an_object_are_set_one_by_one() -> None:
    line = ("m", "--options", '{"threads": 2}', "--options.context_length", "4096", "--options.chat_template=qwen")
    assert read("service.create", *line)["options"] == {"threads": 2, "context_length": 4096, "chat_template": "qwen"}


def test_a_part_may_be_a_files(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("hé\n", encoding="utf-8")
    (tmp_path / "sound").write_bytes(b"RIFF\0\1")
    parts = ["--input.text", f"@{tmp_path / 'text'}", f"--input.sound=@{tmp_path / 'sound'}", "--input.name", "@@home"]
    assert read("pipeline.run", "p", *parts)["input"] == {"text": "hé\n", "sound": "UklGRgAB", "name": "@home"}
    (tmp_path / "p.yaml").write_text("name: p\n", encoding="utf-8")
    assert read("pipeline.create", "--definition", f"@{tmp_path / 'p.yaml'}") == {"definition": "name: p\n"}
    with pytest.raises(InvalidArgument, match=r"--input\.text: cannot read /nowhere"):
        read("pipeline.run", "p", "--input.text", "@/nowhere")


def test_work_of_parts_is_drawn_part_by_part(capsys: pytest.CaptureFixture[str]) -> None:
    def item(first: str, second: str, **more: Any) -> dict[str, Any]:
        parts = [{"id": "first", "status": first, "message": None}, {"id": "second", "status": second, "message": None, **more}]
        return {"phase": "running", "message": "", "completed": 0, "total": 2, "parts": parts}

    lines = PartLines()
    for state in (
        item("running", "pending"),
        item("running", "pending"),
        item("succeeded", "running"),
        item("succeeded", "failed", message="why"),
    ):
        lines.show(state)
    assert capsys.readouterr().err.splitlines() == ["first: running", "first: succeeded", "second: running", "second: failed, why"]
    tree = Tree()
    tree.show(item("succeeded", "running", completed=1, total=4))
    tree.close()
    drawn = [line.split() for line in capsys.readouterr().err.splitlines()]
    assert drawn == [["✓", "first", "succeeded"], ["▸", "second", "running,", "1", "of", "4"]]


def test_a_value_that_is_no_number_reaches_the_gateway_as_it_is() -> None:
    assert read("run.list", "--limit", "many") == {"limit": "many"}
    assert read("run.list", "--limit", "1e1") == {"limit": 10.0}
    assert read("run.list", "--limit", "NaN") == {"limit": "NaN"}


def test_a_relative_path_means_the_folder_of_who_types(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("here.gguf").touch()
    assert read("model.import", "here.gguf") == {"path": str(tmp_path / "here.gguf")}


# Answers and refusals


@pytest.mark.parametrize(
    "line",
    [
        ["run", "list", "--no-such-option"],
        ["run", "list", "--input", "{"],
        ["run", "list", "--input", '{"limit": 1, "limit": 1}'],
        ["run", "list", "--input", "[]"],
        ["run", "list", "--input", "@/no/such/file"],
        ["run", "get", "a", "--run-id", "b"],
        ["run", "get", "a", "b"],
        ["run", "fly"],
        ["serve", "--port", "much"],
    ],
    ids=shlex.join,
)
def test_a_wrong_command_line_is_an_invalid_argument(line: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*line, "--json"]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert json.loads(said.err)["code"] == "invalid_argument"


def test_the_gateway_judges_values_and_codes_follow_the_error(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    at = ["--home", str(home.path)]
    assert run([*at, "device", "metrics", "--window-seconds", "long"]) == 2
    assert "invalid_argument: device.metrics: window_seconds" in capsys.readouterr().err
    assert run([*at, "run", "get", "nothing-1", "--json"]) == 5
    said = capsys.readouterr()
    assert said.out == "" and json.loads(said.err)["code"] == "not_found"
    assert run([*at, "run", "list", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"runs": [], "total": 0}


def test_an_error_names_the_commands_that_may_mend_it(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--home", str(home.path), "run", "get", "nothing-1"]) == 5
    assert "try:  aima run list" in capsys.readouterr().err


def test_what_the_gateway_refuses_starts_no_host(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--home", str(home.path), "model", "pull", "--json"]) == 2
    assert json.loads(capsys.readouterr().err)["code"] == "invalid_argument"
    assert home.host() is None


def test_the_help_imports_nothing_heavy() -> None:
    code = "import sys; from aima_mcp.main import run; code = run(['--help']); sys.exit(code or ' '.join(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    heavy = {
        "anyio",
        "asyncio",
        "httpx",
        "jsonschema",
        "jsonschema_rs",
        "mcp",
        "psutil",
        "rich",
        "starlette",
        "uvicorn",
        "yaml",
        "apsw",
        "aiohttp",
    }
    assert "Units:" in done.stdout
    assert heavy.isdisjoint(done.stderr.split()), heavy & set(done.stderr.split())


def test_a_command_with_a_host_imports_no_event_loop(stopped_after: Home) -> None:
    home = stopped_after
    assert aima(home, "start").returncode == 0
    for words, more in ((["model", "list", "--json"], {"rich", "yaml"}), (["model", "list"], {"yaml"}), (["service", "list"], set())):
        code = f"import sys; from aima_mcp.main import run; code = run({words}); sys.exit(code or ' '.join(sorted(sys.modules)))"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT, env=around(home))
        heavy = {"anyio", "asyncio", "httpx", "jsonschema_rs", "psutil", "ssl", "apsw", "aima_lib.gateway", "http.client"} | more
        assert done.stdout and heavy.isdisjoint(done.stderr.split()), heavy & set(done.stderr.split())


@pytest.mark.parametrize("unit", CALLABLE, ids=lambda unit: unit["name"])
def test_help_says_what_comes_out_and_how_it_fails(unit: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*unit["name"].split("."), "--help"]) == 0
    said = capsys.readouterr().out
    assert "Output:" in said and "Examples:" in said
    assert all(f"--{key.replace('_', '-')}" in said for key in unit["inputSchema"]["properties"])
    assert all(code in said for code in unit["errors"])


def test_the_client_configuration_starts_this_aima(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--home", str(home.path), "mcp", "config"]) == 0
    server = json.loads(capsys.readouterr().out)["mcpServers"]["aima"]
    assert Path(server["command"]).is_absolute() and server["args"][-1] == "mcp"
    assert server["env"] == {"AIMA_HOME": str(home.path)}


@pytest.mark.parametrize(
    ("line", "near"),
    [(["modl"], "model"), (["model", "lst"], "list"), (["stat"], "status"), (["run", "list", "--limt", "3"], "--limit")],
    ids=lambda value: value if isinstance(value, str) else shlex.join(value),
)
def test_a_typo_is_told_what_is_near(line: list[str], near: str, home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--home", str(home.path), *line]) == 2
    said = capsys.readouterr().err
    assert "id you mean" in said and near in said
    assert run(["--home", str(home.path), "xyzzy"]) == 2 and "mean" not in capsys.readouterr().err


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_a_script(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["completion", shell]) == 0
    assert "_AIMA_COMPLETE" in capsys.readouterr().out


def test_nobody_hosts_and_status_says_so(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--home", str(home.path), "status"]) == 0
    assert "no host runs" in capsys.readouterr().out
    assert run(["--home", str(home.path), "stop", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"stopped": False, "pid": None}


@pytest.mark.parametrize("word", ["show", "create", "list", "revoke"])
def test_keys_are_units_and_the_owners_is_shown(word: str, home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["key", word, "--help"]) == 0
    assert run(["key", "--help"]) == 0
    assert word in capsys.readouterr().out
    assert run(["--home", str(home.path), "key", "show", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"key": home.key(), "path": str(home.path / "key")}


# Forms

OWN = [["status"], ["doctor"], ["events", "--after", "0"], ["key", "show"], ["quickstart", "--list"], ["unit", "search", "model"]]
ALONE = [["status"], ["stop"], ["unit", "search", "model"]]


@pytest.mark.parametrize("unit", CALLABLE, ids=lambda unit: unit["name"])
def test_every_unit_answers_in_every_form(unit: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*unit["name"].split("."), "--help"]) == 0
    said = capsys.readouterr().out
    assert "--json" in said and "--output" in said
    found = definition(unit["name"])
    assert found is not None
    for line, form in ((["--json"], "json"), (["-o", "yaml"], "yaml"), (["--output=json"], "json"), ([], "table")):
        if line == ["--output=json"] and "output" in found["inputSchema"]["properties"]:
            continue  # it is the unit's own
        command = UnitCommand(found)
        assert output.form_in(command.make_context(command.name, list(line)).params) == form == output.form_of(line)


@pytest.mark.parametrize("line", ALONE, ids=shlex.join)
def test_json_and_yaml_say_the_same_and_nothing_else(line: list[str], home: Home) -> None:
    (home.path / "config.toml").write_text("[server]\nport = 0\n", encoding="utf-8")
    said_alike(line, home)


@pytest.mark.parametrize("line", OWN, ids=shlex.join)
def test_json_and_yaml_say_the_same_through_a_host(line: list[str], up: Home) -> None:
    said_alike(line, up)


def said_alike(line: list[str], home: Home) -> None:
    as_json, as_yaml, plain = (aima(home, *line, *form) for form in (["--json"], ["-o", "yaml"], []))
    assert as_json.returncode == as_yaml.returncode == plain.returncode == 0, as_yaml.stderr
    assert "\x1b" not in plain.stdout + plain.stderr + as_yaml.stdout, "no colour in a pipe"
    if line[0] == "events":
        read_json, read_yaml = [json.loads(text) for text in as_json.stdout.splitlines()], [*yaml.safe_load_all(as_yaml.stdout)]
        assert read_json and [event["type"] for event in read_yaml[: len(read_json)]] == [event["type"] for event in read_json]
        return
    read_json, read_yaml = json.loads(as_json.stdout), yaml.safe_load(as_yaml.stdout)
    assert list(read_json) == list(read_yaml)
    if line[0] not in ("status", "doctor"):
        assert read_json == read_yaml


def test_errors_come_in_the_form_that_was_asked_for(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    at = ["--home", str(home.path)]
    for line, code in ((["run", "get", "nothing-1", "-o", "yaml"], "not_found"), (["run", "fly", "--output=yaml"], "invalid_argument")):
        assert run([*at, *line]) != 0
        said = capsys.readouterr()
        assert said.out == "" and yaml.safe_load(said.err)["code"] == code
    assert run([*at, "run", "list", "-o", "xml"]) == 2 and "'table', 'json', 'yaml'" in capsys.readouterr().err
    assert run([*at, "run", "list", "--json", "-o", "yaml"]) == 2 and "two forms" in capsys.readouterr().err


def test_yaml_means_the_same_to_every_reader(capsys: pytest.CaptureFixture[str]) -> None:
    same = {"a": 1}
    value = {
        "b": "1e3",
        "a": ["no", "0x1F", "012", "ü", "\u2028", "a: b", "", "~", "-", "two\nlines"],
        "c": [same, same],
        "d": None,
        "e": "\udc80",
    }
    output.show_data(value, "yaml")
    said = capsys.readouterr().out
    assert yaml.safe_load(said) == value and list(yaml.safe_load(said)) == ["b", "a", "c", "d", "e"]
    assert "'1e3'" in said and "ü" in said and "&" not in said


def on_terminal(home: Home, *line: str, **more: str) -> str:
    """What a command writes to a terminal of 100 columns."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (40, 100))
    variables = {key: value for key, value in around(home).items() if key not in ("NO_COLOR", "FORCE_COLOR")}
    variables |= {"TERM": "xterm-256color", **more}
    with subprocess.Popen([sys.executable, "-m", "aima_mcp.main", *line], stdin=theirs, stdout=theirs, stderr=theirs, env=variables):
        os.close(theirs)
        return drained(ours)


def drained(terminal: int) -> str:
    said = b""
    try:
        while piece := os.read(terminal, 65536):
            said += piece
    except OSError:  # the other side is closed
        pass
    os.close(terminal)
    return said.decode()


@pytest.mark.parametrize("line", [["run", "get", "nothing-1"], ["doctor"], ["device", "info"], ["quickstart", "--list"]], ids=shlex.join)
def test_colour_is_for_terminals_that_want_it(line: list[str], up: Home) -> None:
    assert "\x1b[" in on_terminal(up, *line)
    for refused in ({"NO_COLOR": "1"}, {"TERM": "dumb"}):
        assert "\x1b[" not in on_terminal(up, *line, **refused)
    for form in ("json", "yaml"):
        assert "\x1b[" not in on_terminal(up, *line, "-o", form)


def test_a_terminal_is_told_nothing_that_it_obeys(stopped_after: Home, tmp_path: Path) -> None:
    home = stopped_after
    evil = "fine\x1b]52;c;ZXZpbA==\x07\x1b[2J\x9b31m\u202eright\rover"
    weights = write_tiny_gguf(tmp_path / "tiny.gguf", license=evil)
    assert aima(home, "model", "import", str(weights), "--name", "tiny").returncode == 0
    for line in (["model", "get", "tiny"], ["model", "get", "tiny", "-o", "yaml"], ["model", "get", "tiny", "--json"], ["run", "list"]):
        said = on_terminal(home, *line, NO_COLOR="1")
        assert not [one for one in ("\x1b", "\x9b", "\u202e", "\x07", "\rover") if one in said], said
    for form, load in (("json", json.loads), ("yaml", yaml.safe_load)):
        told = load(aima(home, "model", "get", "tiny", "-o", form).stdout)
        assert told["model"]["license"] == evil, "a program gets all of it"


def test_tokens_are_shown_and_not_obeyed(capsys: pytest.CaptureFixture[str]) -> None:
    tokens = Tokens()
    for piece in ("a\x1b", "]0;title\x07b", "\r", "\n"):
        asyncio.run(tokens.send({"delta": {"content": piece}}))
    assert capsys.readouterr().out == "a]0;titleb\n"


# With a host


def offered(home: Home, shell: str, *words: str) -> set[str]:
    """What Tab offers after these words, as the shell's script asks for it."""
    variables = {"_AIMA_COMPLETE": f"{shell}_complete", "COMP_WORDS": shlex.join(["aima", *words[:-1]]) + f" {words[-1]}"}
    variables["COMP_CWORD"] = words[-1] if shell == "fish" else str(len(words))
    command = [sys.executable, "-c", "from aima_mcp.main import main; main()"]
    done = subprocess.run(command, env=around(home) | variables, capture_output=True, text=True, check=False)
    lines = [line for line in done.stdout.splitlines() if line]
    return set(lines[1::3]) if shell == "zsh" else {line.partition(",")[2].partition("\t")[0] for line in lines}


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_tab_offers_what_lives(shell: str, up: Home, tmp_path: Path) -> None:
    nobody, home = Home(tmp_path), up
    assert "model" in offered(nobody, shell, "mo") and "verify" in offered(nobody, shell, "model", "ver")
    assert offered(nobody, shell, "model", "get", "") == set(), "nobody hosts: nothing, and at once"
    assert offered(home, shell, "model", "get", "") == {"tiny"} == offered(home, shell, "service", "create", "--model-id", "t")
    assert offered(home, shell, "run", "get", "model-imp") == {"model-import-once"}
    if shell != "bash":
        return
    assert offered(home, shell, "chat", "") == {"tiny"}
    assert "llamacpp" in offered(home, shell, "engine", "start", "")
    assert offered(home, shell, "model", "import", "x", "--name", "") == set(), "a name of one's own to choose"
    assert "model.pull" in offered(home, shell, "unit", "describe", "model.p") & offered(home, shell, "run", "list", "--unit", "model.p")
    assert "model.created" in offered(home, shell, "events", "--types", "model.c")
    assert offered(home, shell, "key", "create", "guest", "--scopes", "inf") == {"inference"}
    assert aima(home, "approve", "--json").stdout == "[]\n" and offered(home, shell, "approve", "") == set()


def test_bash_itself_takes_the_script(stopped_after: Home) -> None:
    home = stopped_after
    program = home.path / "aima"
    program.write_text(f"#!{sys.executable}\nfrom aima_mcp.main import main\nmain()\n", encoding="utf-8")
    program.chmod(0o755)
    script = f'eval "$({program} completion bash)"; COMP_WORDS=({program} model ver); COMP_CWORD=2; _aima_completion {program}; echo "${{COMPREPLY[@]}}"'
    done = subprocess.run(["bash", "-c", script], env=around(home), capture_output=True, text=True, check=False)
    assert done.stdout == "verify\n", done


def test_top_shows_one_look_where_nobody_watches(up: Home, home: Home) -> None:
    none = aima(home, "top", "--json")
    assert none.returncode == 7 and json.loads(none.stderr)["code"] == "failed_precondition", none
    home = up
    plain, once = aima(home, "top"), aima(home, "top", "--once", "-o", "yaml")
    for part in ("devices", "services", "runs", "none", "cpu"):
        assert part in plain.stdout
    assert "\x1b" not in plain.stdout
    assert {"host", "devices", "services", "runs"} <= set(yaml.safe_load(once.stdout))
    assert json.loads(aima(home, "top", "--json").stdout)["devices"][0]["device_id"]


@pytest.mark.parametrize("way", [b"q", signal.SIGINT], ids=["q", "ctrl-c"])
def test_top_looks_again_until_it_is_left(way: bytes | signal.Signals, up: Home) -> None:
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (40, 100))
    before = termios.tcgetattr(theirs)
    command = [sys.executable, "-m", "aima_mcp.main", "top", "--interval", "0.2"]
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=around(up) | {"TERM": "xterm"}) as process:
        said = b""
        while said.count(b"devices") < 3:
            said += os.read(ours, 65536)
        if isinstance(way, bytes):
            os.write(ours, way)
        else:
            process.send_signal(way)
        assert process.wait(20) == 0
        assert termios.tcgetattr(theirs) == before, "the terminal is as it was"
        os.close(theirs)
        assert "\x1b[?1049l" in drained(ours)


def test_a_key_of_the_environment_is_shown_instead_of_the_owners(stopped_after: Home) -> None:
    home = stopped_after
    url = json.loads(aima(home, "start", "--json").stdout)["url"]
    secret = json.loads(aima(home, "key", "create", "guest", "--scopes", "inference", "--json", "--yes").stdout)["secret"]

    def as_guest(*line: str, stdin: str = "", **more: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "aima_mcp.main", *line]
        around_it = around(home) | {"AIMA_KEY": secret} | more
        return subprocess.run(command, input=stdin, env=around_it, capture_output=True, text=True, timeout=60, check=False)

    elsewhere = {"AIMA_URL": url, "AIMA_HOME": str(home.path / "nobody-is-here")}
    for more in ({}, elsewhere):
        denied = as_guest("model", "list", "--json", **more)
        assert denied.returncode == 4 and json.loads(denied.stderr)["details"] == {"scope": "read"}
        said = as_guest("--help", **more).stdout
        assert "complete" in said and "estimate_resources" not in said, "the help shows what the key may call"
        assert "No such command" not in as_guest("model", "--help", **more).stderr
    assert as_guest("--home", str(home.path), "model", "list", "--json").returncode == 0, "who names a home is its owner"
    away = as_guest("model", "list", "--json", AIMA_URL="http://127.0.0.1:9")
    assert away.returncode == 11 and "AIMA_URL" in json.loads(away.stderr)["hint"]
    assert aima(home, "system", "info").returncode == 0
    hello = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "test", "version": "1"}}
    lines = [
        {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": hello},
        {"jsonrpc": "2.0", "method": "notifications/initialized"},
        {"jsonrpc": "2.0", "id": 2, "method": "tools/list"},
    ]
    said = as_guest("mcp", stdin="".join(json.dumps(line) + "\n" for line in lines), **elsewhere)
    tools = {tool["name"] for tool in json.loads(said.stdout.splitlines()[-1])["result"]["tools"]}
    assert "inference_chat" in tools and "model_list" not in tools


def test_a_host_is_started_once_seen_and_stopped(stopped_after: Home) -> None:
    home = stopped_after
    first, again = (json.loads(aima(home, "start", "--json").stdout) for _ in range(2))
    assert first["started"] and not again["started"] and first["pid"] == again["pid"]
    assert json.loads(aima(home, "status", "--json").stdout)["host"]["pid"] == first["pid"]
    assert json.loads(aima(home, "system", "info", "--json").stdout)["pid"] == first["pid"], "a command goes through the host"
    seen = [json.loads(line)["type"] for line in aima(home, "events", "--types", "device.*", "--after", "0", "--json").stdout.splitlines()]
    assert seen and set(seen) == {"device.detected"}
    assert aima(home, "key", "show").stdout.strip() == home.key()
    assert aima(home, "doctor").returncode == 0
    offered = subprocess.run(
        [sys.executable, "-m", "aima_mcp.main"],
        env=around(home) | {"_AIMA_COMPLETE": "bash_complete", "COMP_WORDS": "aima device info --device-id ", "COMP_CWORD": "4"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "plain,cpu" in offered.stdout, "ids are asked of the host"


def test_a_taken_port_is_no_reason_not_to_start(home: Home) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        (home.path / "config.toml").write_text(f"[server]\nport = {taken.getsockname()[1]}\n", encoding="utf-8")
        assert aima(home, "start").returncode == 0
        refused = aima(home, "serve")
        assert refused.returncode == 7 and "is hosted by process" in refused.stderr
        assert aima(home, "stop").returncode == 0


def test_a_host_that_cannot_start_shows_the_end_of_its_log(home: Home) -> None:
    (home.path / "config.toml").write_text("[no_such_section]\n", encoding="utf-8")
    done = aima(home, "model", "verify", "anything")
    assert done.returncode == 2 and "no_such_section" in done.stderr
    (home.path / "config.toml").write_text("", encoding="utf-8")
    (home.path / "aima.db").write_bytes(b"not a database, whatever its name says" * 100)
    done = aima(home, "start")
    assert done.returncode == 11 and "aima.db" in done.stderr and "host.log" in done.stderr


def test_interrupting_a_pull_leaves_it_to_the_host(stopped_after: Home, tmp_path: Path) -> None:
    home = stopped_after
    with Hub(tmp_path / "hub") as hub:
        (tmp_path / "hub").mkdir(exist_ok=True)
        hub.add_repo("a/slow", {"slow.gguf": bytes(2_000_000)})
        hub.faults = {"slow.gguf": Fault(bytes_per_second=100_000)}
        with (home.path / "config.toml").open("a", encoding="utf-8") as config:
            config.write(hub.config)
        words = [sys.executable, "-m", "aima_mcp.main", "model", "pull", "a/slow"]
        with subprocess.Popen(words, env=around(home), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as pull:
            until(lambda: sum(hub.counts.values()) > 0, 30, "the first bytes")
            pull.send_signal(signal.SIGINT)
            out, err = pull.communicate(timeout=30)
        assert (pull.returncode, out) == (130, "")
        [going] = json.loads(aima(home, "run", "list", "--status", "running", "--json").stdout)["runs"]
        assert f"aima run wait {going['id']}" in err and f"aima run cancel {going['id']}" in err
        late = aima(home, "model", "pull", "a/slow", "--timeout", "0.3", "--json")
        assert late.returncode == 10 and "goes on" in late.stderr
        assert json.loads(aima(home, "run", "cancel", going["id"], "--json").stdout)["run"]["status"] == "cancelled"


def test_a_run_can_be_left_to_the_host_and_waited_for(stopped_after: Home, tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF\3\0\0\0")
    begun = [aima(stopped_after, "model", "import", str(broken), "--no-wait", "--idempotency-key", "once", "--json") for _ in range(2)]
    first, second = (json.loads(done.stdout)["run"]["id"] for done in begun)
    assert first == second
    waited = json.loads(aima(stopped_after, "run", "wait", first, "--json").stdout)["run"]
    assert waited["status"] == "failed" and waited["error"]["code"]


def test_events_are_followed_until_interrupted(up: Home) -> None:
    home = up
    words = [sys.executable, "-m", "aima_mcp.main", "events", "--follow", "--json", "--types", "device.detected"]
    with subprocess.Popen(words, env=around(home), stdout=subprocess.PIPE, text=True) as follower:
        assert follower.stdout is not None
        first = json.loads(follower.stdout.readline())
        assert aima(home, "device", "detect", "--json").returncode == 0
        assert json.loads(follower.stdout.readline())["seq"] > first["seq"]
        follower.send_signal(signal.SIGINT)
        assert follower.wait(20) == 0
