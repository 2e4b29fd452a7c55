"""Every command: its help is true, programs can read its outcome, its errors are one line, its page is complete."""

import csv
import json
import math
import os
import pty
import re
import shlex
import signal
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from common import cli
from common.cli import EXIT_CODES, Parser, did_you_mean, run_command, tell
from common.errors import UsageError
from model import evaluate, export, pipeline, train
from service import __main__ as server
from service import calibrate, keys, ray_app
from service.score import command as score
from tests.conftest import tiny_table
from tests.test_pipeline import RECIPE
from tests.test_server import free_port

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "commands.md").read_text()
MODULES = [train, export, pipeline, evaluate, server, ray_app, score, calibrate, keys]
PARSERS = {parser.prog: parser for parser in (module.parser() for module in MODULES)}
GENERAL = {"--help", "--version"}  # which the page names once, for all


def options_of(parser: Parser) -> set[str]:
    return {text for action in parser._actions for text in action.option_strings if text.startswith("--")} - GENERAL


def section(prog: str) -> str:
    return PAGE.partition(f"\n## {prog}\n")[2].partition("\n## ")[0]


def arguments_of(example: str, prog: str) -> list[str] | None:
    """What a line of a shell gives to a command; None where it is not of that command."""
    words = shlex.split(example.partition(">")[0])
    name = prog.removeprefix("python ").split()
    starts = [i for i in range(len(words)) if words[i : i + len(name)] == name]
    return words[starts[0] + len(name) :] if starts else None


def test_the_page_has_every_command_of_the_code() -> None:
    for path in [*(ROOT / "model").rglob("*.py"), *(ROOT / "service").rglob("*.py")]:
        if "run_command(main)" in path.read_text():
            module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__main__")
            prog = {"service.score": "glow-score"}.get(module, f"python -m {module}")
            assert prog in PARSERS, module
            assert section(prog), prog
    for path in [*(ROOT / "benchmarks").rglob("*.py"), *(ROOT / "reliability").rglob("*.py")]:
        server = path.parent.name == "peers" or path.name == "launcher.py"  # to be measured or broken
        if '__name__ == "__main__"' in path.read_text() and not server:
            module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__main__")
            assert f"| `python -m {module}` |" in PAGE, module
            assert "run_command(main)" in path.read_text(), module


@pytest.mark.parametrize("prog", PARSERS)
def test_the_page_names_the_options_and_fields_that_there_are(prog: str) -> None:
    parser, text = PARSERS[prog], section(prog)
    assert set(re.findall(r"^\| `(--[\w-]+)", text, re.MULTILINE)) == options_of(parser)
    assert set(re.findall(r"--[a-z][\w-]*", text)) <= options_of(parser) | {"--logdir"}  # of tensorboard
    rows = re.findall(r"^\| (`\w+`.*?) \|", text, re.MULTILINE)
    named = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    assert named == set(parser.outcome_fields)


@pytest.mark.parametrize("prog", PARSERS)
def test_help_says_what_for_and_its_examples_and_those_of_the_page_parse(prog: str) -> None:
    parser = PARSERS[prog]
    assert parser.description
    assert 2 <= len(parser.examples) <= 4
    for example in parser.examples:
        arguments = arguments_of(example, prog)
        assert arguments is not None, example
        parser.parse_args(arguments)
        assert f"\n  {example}\n" in parser.format_help()
    blocks = "\n".join(re.findall(r"```bash\n(.*?)```", section(prog), re.DOTALL))
    shown = [found for line in blocks.splitlines() if (found := arguments_of(line, prog)) is not None]
    assert shown
    for arguments in shown:
        parser.parse_args(arguments)
    for action in parser._actions:
        assert action.help or action.metavar == "ARTIFACT", action


def test_the_page_has_the_exit_codes() -> None:
    assert {int(code): what for code, what in re.findall(r"^\| (\d+) \| (.*) \|$", PAGE, re.MULTILINE)} == EXIT_CODES


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a recipe and its data, to be in."""
    monkeypatch.chdir(tmp_path)
    np.save("rows.npy", np.random.default_rng(0).normal(size=(400, 3)))
    Path("tiny.toml").write_text(RECIPE)
    return tmp_path


def test_what_a_program_reads_is_one_object_and_nothing_else(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def outcome(main: Callable[[list[str]], None], prog: str, *arguments: str) -> dict[str, object]:
        main([*arguments, "--json"])
        line = capsys.readouterr().out
        assert line.endswith("\n")
        found: dict[str, object] = json.loads(line)
        assert list(found) == PARSERS[prog].outcome_fields
        return found

    trained = outcome(train.main, "python -m model.train", "tiny.toml")
    assert (trained["state"], trained["step"]) == ("finished", 6)
    command = shlex.split(str(trained["next"]))
    assert command[:3] == ["python", "-m", "model.export"]
    exported = outcome(export.main, "python -m model.export", *command[3:])
    assert exported["bytes"] == Path("tiny.pt").stat().st_size
    measured = outcome(evaluate.main, "python -m model.evaluate", "tiny.pt", "rows.npy", "--draws=10")
    assert (measured["rows"], measured["finite_draws"], measured["unit"]) == (400, 10, "nats")
    calibrated = outcome(calibrate.main, "python -m service.calibrate", "tiny.pt", "rows.npy", "mine.pt")
    assert (calibrated["rows"], calibrated["alpha"]) == (400, 0.01)
    scored = outcome(score.main, "glow-score", "mine.pt", "rows.npy", "scores.csv", "--reproducible")
    assert (scored["scored"], scored["rejected"], scored["resumed_at"]) == (400, 0, 0)
    key = outcome(keys.main, "python -m service.keys", "me")
    assert (key["id"], key["rows_per_second"], len(str(key["key"]))) == ("me", None, 43)
    both = outcome(pipeline.main, "python -m model.pipeline", "tiny.toml")
    assert both["artifact"] == {**exported, "version": both["artifact"]["version"], "bytes": both["artifact"]["bytes"]}  # type: ignore[index]


def test_a_figure_that_is_not_finite_is_null_to_a_program(capsys: pytest.CaptureFixture[str]) -> None:
    @dataclass(frozen=True)
    class Outcome:
        worst: float
        figures: list[float]

    tell(Outcome(math.nan, [1.5, math.inf]), as_json=True)
    assert capsys.readouterr().out == '{"worst": null, "figures": [1.5, null]}\n'


def test_a_person_is_told_the_next_command(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = project / "elsewhere"
    folder.mkdir()
    Path("rows.npy").rename(folder / "rows.npy")
    train.main(["tiny.toml", "--data-dir", str(folder)])
    told = capsys.readouterr().out
    assert "checkpoint  runs/tiny/best.pt\nreport      runs/tiny/report.md\nnext        python -m model.export " in told
    export.main(shlex.split(told.rpartition("model.export ")[2]))  # which knows where the data are
    assert "next: python -m service --models tiny.pt\n  or: glow-score tiny.pt " in capsys.readouterr().out


def ending(main: Callable[[list[str]], None], monkeypatch: pytest.MonkeyPatch, *arguments: str) -> object:
    monkeypatch.setattr(sys, "argv", ["command", *arguments])
    with pytest.raises(SystemExit) as caught:
        run_command(main)
    return caught.value.code


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (UsageError("a\nb"), 2, "error: a b\n"),
        (FileNotFoundError(2, "No such file or directory", "x.csv"), 2, "error: x.csv: No such file or directory\n"),
        (MemoryError(), 2, "error: MemoryError\n"),
        (KeyboardInterrupt(), 130, ""),
        (BrokenPipeError(32, "Broken pipe"), 141, ""),
        (SystemExit(3), 3, ""),
    ],
)
def test_what_a_user_can_cause_is_one_line_and_an_exit_code(
    error: BaseException, code: int, line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def main(_: list[str]) -> None:
        raise error

    assert ending(main, monkeypatch) == code
    assert code in EXIT_CODES
    assert capsys.readouterr().err == line


@pytest.mark.parametrize(
    ("command", "extra"),
    [
        ("-m model.train", "train"),
        ("-m service.keys", "serve"),
        ("-c 'from service.score.__main__ import run; run()'", "serve"),
    ],
)
def test_a_command_that_is_not_installed_says_how_to_install_it(command: str, extra: str) -> None:
    arguments = [sys.executable, "-S", *shlex.split(command)]  # without site-packages, as a bare interpreter has none
    environment = {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(arguments, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)
    install = f"pip install 'glow-service[{extra}]', or -e '.[{extra}]' in a checkout"
    assert done.returncode == 2
    assert done.stderr == f"error: this command needs torch, which is not installed: {install}\n"


def test_a_program_that_imports_the_packages_is_no_command_of_theirs(tmp_path: Path) -> None:
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "__init__.py").write_text("import model, service")
    (tmp_path / "app" / "main.py").touch()
    arguments = [sys.executable, "-S", "-m", "app.main", "service", "model.train"]
    subprocess.run(arguments, env={"PYTHONPATH": f"{ROOT}:{tmp_path}"}, check=True, timeout=60)


def test_defects_keep_their_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def main(_: list[str]) -> None:
        raise AssertionError("ours")

    monkeypatch.setattr(sys, "argv", ["command"])
    with pytest.raises(AssertionError, match="ours"):
        run_command(main)


@pytest.mark.parametrize(
    ("output", "code", "line"),
    [("> /dev/full", 2, "error: standard output: No space left on device\n"), ("| true", 141, "")],
)
def test_an_output_that_takes_nothing_ends_a_command_without_a_traceback(output: str, code: int, line: str) -> None:
    script = "from common.cli import run_command; run_command(lambda _: print('x' * 100_000))"
    done = subprocess.run(
        ["bash", "-c", f"{sys.executable} -c {shlex.quote(script)} {output}; exit ${{PIPESTATUS[0]}}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stderr) == (code, line)


def test_a_typo_of_a_name_is_answered_with_the_name(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], models_dir: Path
) -> None:
    def line(main: Callable[[list[str]], None], *arguments: str) -> str:
        assert ending(main, monkeypatch, *arguments) == 2
        (text,) = capsys.readouterr().err.splitlines()
        return text

    typo = Path("typo.toml")
    typo.write_text(RECIPE.replace("[training]", "[trainning]"))
    assert line(train.main, "typo.toml") == "error: typo.toml: unknown key 'trainning'; did you mean 'training'?"
    text = line(train.main, "tiny.toml", "--set=model.num_step=3")
    assert text.endswith("unknown key 'model.num_step'; did you mean 'model.num_steps'?")
    text = line(evaluate.main, "tiny.pt", "rows.npy", "--drawz", "3")
    assert text == "error: unrecognized arguments: --drawz 3; did you mean '--draws'? (--help tells more)"
    assert line(server.main, "") == "error: unrecognized arguments: (--help tells more)"
    monkeypatch.setenv("GLOW_POTR", "9000")
    assert line(server.main) == "error: GLOW_POTR: no such setting; did you mean 'GLOW_PORT'?"
    monkeypatch.delenv("GLOW_POTR")
    with open("typo.csv", "w", newline="") as file:
        csv.writer(file).writerows([["a", "b", "cuont"], *tiny_table().test.x[:3].tolist()])  # type: ignore[union-attr]
    artifact = str(models_dir / "tiny-table.pt")
    text = line(score.main, artifact, "typo.csv", "out.csv")
    assert text.endswith("has no column 'count'; tiny-table takes a, b, count; is it the file's 'cuont'?")
    text = line(evaluate.main, artifact, "typo.csv")
    assert text.endswith("no column 'count'; it has a, b, cuont; did you mean 'cuont'?")
    assert did_you_mean("weight", ["colour"]) == ""


def test_on_a_terminal_the_server_says_where_it_is_and_how_to_stop_it(models_dir: Path) -> None:
    master, terminal = pty.openpty()
    termios.tcsetwinsize(terminal, (24, 100))
    port = free_port()
    command = [sys.executable, "-m", "service", "--models", str(models_dir / "tiny-table.pt"), "--port", str(port)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "GLOW_THREADS": "1", "NO_COLOR": "1"}
    process = subprocess.Popen(command, env=environment, stderr=terminal, start_new_session=True)
    os.close(terminal)
    shown, deadline = "", time.monotonic() + 60
    try:
        while "ready after" not in shown and time.monotonic() < deadline:
            shown += os.read(master, 4096).decode()
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(timeout=60)
        os.close(master)
    for text in (f"http://localhost:{port}/\r\n", f"http://localhost:{port}/docs", "tiny-table (default)", "Ctrl-C"):
        assert text in shown
    assert "measuring how models run fastest here" in shown  # a bar, which goes away
    assert "\x1b[3" not in shown  # no colours
    assert process.returncode == 0


def test_a_bar_is_shown_on_a_terminal_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with cli.Progress("scored", 10) as progress:
        progress.update(10)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with cli.Progress("scored", 10) as progress:
        progress.update(10, "all is well")
    assert "scored" in capsys.readouterr().err


def test_an_address_without_its_scheme_is_told_from_a_file() -> None:
    with pytest.raises(UsageError, match="localhost:8000: is no file; the address of a service begins with http://"):
        score.main(["localhost:8000", "rows.csv", "scores.csv"])


def test_what_answers_at_an_address_and_is_no_service_is_told_so() -> None:
    class Other(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(404)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Other) as other:
        threading.Thread(target=other.serve_forever, daemon=True).start()
        with pytest.raises(UsageError, match="this is no Glow service, or not the address of its root"):
            score.main([f"http://127.0.0.1:{other.server_port}", "rows.csv", "scores.csv"])
        other.shutdown()
