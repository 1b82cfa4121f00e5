"""The README's code runs: its blocks, in order, in one namespace and an empty folder."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import arrowrb
from arrowrb.cli import app

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def read_blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def test_python_blocks_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {"__name__": "__main__"}  # as in a script
    blocks = read_blocks("python")
    assert len(blocks) >= 6
    for block in blocks:
        # Padded by empty lines, so that a traceback names the README's own lines.
        line = README[: README.index(block)].count("\n")
        exec(compile("\n" * line + block, str(ROOT / "README.md"), "exec"), namespace)
    assert namespace["hard"]["observation"].shape[0] > 0
    assert (abs(namespace["hard"]["observation"][:, 2]) > 0.2).all()
    assert namespace["store"].closed
    with arrowrb.Store.open("runs/async") as store:  # the learner that is run again
        versions = store.sql("SELECT list(policy_version ORDER BY time, row_id) FROM transitions").fetchall()
        assert len(versions[0][0]) == 2_000
        assert max(versions[0][0][:1_500]) < min(versions[0][0][1_500:])


def test_commands_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    commands = [
        shlex.split(line, comments=True)[1:]
        for block in read_blocks("sh")
        for line in block.splitlines()
        if line.startswith("arrowrb ")
    ]
    names = ["collect", "info", "top", "sql", "export", "import", "merge", "maintain", "verify", "repair", "backup"]
    assert [command[0] for command in commands] == names
    for command in commands:
        arguments = ["2000" if each == "100000" else each for each in command]
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 0, result.output


def test_make_has_the_targets() -> None:
    makefile = (ROOT / "Makefile").read_text()
    lines = [line for block in read_blocks("sh") for line in block.splitlines()]
    targets = {
        match[1] for text in [*lines, *re.findall(r"`([^`\n]+)`", README)] if (match := re.match(r"make (\w+)", text))
    }
    assert {"demo", "test", "bench"} <= targets
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_the_map_names_what_is_there() -> None:
    for path in re.findall(r"^(arrowrb/\S+)", README, re.MULTILINE):
        assert (ROOT / path).exists(), path
    for name in re.findall(r"\w+\.py", "".join(re.findall(r"^examples/ .*$", README, re.MULTILINE))):
        assert (ROOT / "examples" / name).exists(), name


def test_promises_name_tests() -> None:
    table = README[README.index("| promise |") : README.index("Not promised")]
    named = set(re.findall(r"`((?:torture/|test_)\w+\.py)`", table))
    assert len(named) > 15
    assert all((ROOT / "tests" / name).is_file() for name in named)
