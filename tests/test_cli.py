"""The command line: formats, exit codes, errors of one line, Ctrl-C, and an answer at once."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import arrowrb
from arrowrb.cli import app

COMMAND = [sys.executable, "-m", "arrowrb"]
NUM_FRAMES = 1500


def run(*arguments: str | Path, text: str | None = None) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command in this process."""
    result = CliRunner().invoke(app, [str(each) for each in arguments], input=text)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stdout, result.stderr


def fail(*arguments: str | Path, text: str | None = None) -> str:
    """The one line of a command that ends in an error of ours."""
    code, out, err = run(*arguments, text=text)
    assert (code, out) == (1, "")
    assert re.fullmatch(r"error: [^\n]+\n", err), err
    return err.removeprefix("error: ").strip()


def read_csv(text: str) -> list[list[str]]:
    return list(csv.reader(io.StringIO(text)))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("cli") / "store"
    code, out, err = run("collect", "CartPole-v1", path, "--frames", str(NUM_FRAMES), "--num-envs", "2", "--seed", "3")
    assert (code, err) == (0, "")
    assert re.fullmatch(
        rf"Collected 1,500 transitions in [\d.]+ s, [\d,]+ a second. {re.escape(str(path))} now holds "
        r"1,500 transitions of \d+ episodes.\n",
        out,
    )
    return path


# -- info ----------------------------------------------------------------------------------------------------------


def test_info_as_a_table(store: Path) -> None:
    code, out, err = run("info", store)
    assert (code, err) == (0, "")
    assert re.search(r"^ transitions +1,500", out, re.MULTILINE)
    assert str(store) in out
    assert "\x1b" not in out


def test_info_as_json(store: Path) -> None:
    code, out, _ = run("info", store, "--format", "json")
    assert code == 0
    found = json.loads(out)
    assert out.count("\n") == 1
    assert found["num_transitions"] == NUM_FRAMES
    assert found["env_id"] == "CartPole-v1"
    assert found["path"] == str(store)
    assert found["writer_pid"] is None
    with arrowrb.Store.open(store) as opened:
        assert found["num_episodes"] == opened.info().num_episodes


def test_info_as_csv(store: Path) -> None:
    code, out, _ = run("info", store, "-f", "csv")
    assert code == 0
    header, values = read_csv(out)
    assert dict(zip(header, values, strict=True))["num_transitions"] == str(NUM_FRAMES)
    assert dict(zip(header, values, strict=True))["writer_pid"] == ""


@pytest.mark.parametrize("form", ["table", "json", "csv"])
def test_info_of_the_schema(store: Path, form: str) -> None:
    code, out, _ = run("info", store, "--schema", "--format", form)
    assert code == 0
    if form == "json":
        columns = {each["name"]: each for each in json.loads(out)}
        assert columns["observation"] == {"name": "observation", "dtype": "float32", "shape": [4]}
    elif form == "csv":
        assert ["observation", "float32", "[4]"] in read_csv(out)
    else:
        assert re.search(r"observation +float32 +\(4,\)", out)


def test_info_of_no_store(tmp_path: Path) -> None:
    assert "is no store" in fail("info", tmp_path)
    assert "is no store" in fail("info", tmp_path / "missing")


def test_info_of_a_damaged_store(tmp_path: Path) -> None:
    (tmp_path / "store.json").write_text('{"format": 1')
    assert "is damaged" in fail("info", tmp_path)


# -- sql -----------------------------------------------------------------------------------------------------------


def ask(store: Path, query: str) -> Any:
    code, out, err = run("sql", store, query, "--format", "json")
    assert (code, err) == (0, "")
    return json.loads(out, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


def test_sql_as_json(store: Path) -> None:
    assert ask(store, "SELECT count(*) AS n FROM transitions") == [{"n": NUM_FRAMES}]
    assert ask(store, "SELECT 1 AS n WHERE false") == []
    rows = ask(store, "SELECT row_id, observation, next_observation FROM transitions ORDER BY ordinal LIMIT 5")
    with arrowrb.Store.open(store) as opened:
        batch = opened.gather([row["row_id"] for row in rows])
    for name in ("observation", "next_observation"):
        np.testing.assert_array_equal(np.array([row[name] for row in rows], np.float32), batch[name].numpy())


def test_sql_json_says_what_json_cannot(store: Path) -> None:
    query = (
        "SELECT 'nan'::DOUBLE AS a, '-inf'::FLOAT AS b, NULL AS c, ['nan'::DOUBLE, 1.5] AS d, "
        "{'x': 'inf'::DOUBLE} AS e, 12::HUGEINT AS f, TIMESTAMP '2020-01-02 03:04:05' AS g, 'ab'::BLOB AS h, true AS i"
    )
    assert ask(store, query) == [
        {
            "a": None,
            "b": None,
            "c": None,
            "d": [None, 1.5],
            "e": {"x": None},
            "f": 12,
            "g": "2020-01-02T03:04:05",
            "h": "YWI=",
            "i": True,
        }
    ]


def test_sql_keeps_columns_of_one_name(store: Path) -> None:
    (row,) = ask(store, "SELECT 1 AS x, 2 AS x")
    assert list(row.values()) == [1, 2]


def test_sql_as_csv(store: Path) -> None:
    query = "SELECT 0.1::DOUBLE + 0.2 AS a, 'x,\"y' AS b, NULL AS c, [1, 2] AS d, false AS e, 'nan'::DOUBLE AS f"
    code, out, _ = run("sql", store, query, "--format", "csv")
    assert code == 0
    assert read_csv(out) == [list("abcdef"), [repr(0.1 + 0.2), 'x,"y', "", "[1, 2]", "false", "nan"]]
    _, out, _ = run("sql", store, "SELECT row_id FROM transitions", "--format", "csv")
    assert len(read_csv(out)) == NUM_FRAMES + 1


def test_sql_as_a_table(store: Path) -> None:
    code, out, err = run("sql", store, "SELECT ordinal, NULL AS nothing FROM transitions ORDER BY 1", "--limit", "3")
    assert code == 0
    assert err == "3 of 1,500 rows are shown; --limit 0 shows all.\n"
    assert re.findall(r"^ +(\d+) +NULL", out, re.MULTILINE) == ["1", "2", "3"]
    _, out, err = run("sql", store, "SELECT 'a [bold]b[/bold]' AS x", "--limit", "0")
    assert "a [bold]b[/bold]" in out
    assert err == ""


def test_sql_from_standard_input(store: Path) -> None:
    code, out, _ = run("sql", store, "-", "--format", "csv", "--threads", "1", text="SELECT 41 + 1 AS x\n")
    assert (code, out) == (0, "x\n42\n")


@pytest.mark.parametrize("query", ["SELEC 1", "SELECT nothing FROM transitions", "DROP TABLE transitions", ""])
def test_sql_that_is_wrong(store: Path, query: str) -> None:
    fail("sql", store, query)
    assert ask(store, "SELECT count(*) AS n FROM transitions") == [{"n": NUM_FRAMES}]


# -- collect -------------------------------------------------------------------------------------------------------


def test_collect_refuses_a_store_and_appends_to_it(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "store"
    assert run("collect", "Pendulum-v1", path, "--frames", "100", "--float64", "float32", "--append")[0] == 0
    before = {each: each.read_bytes() for each in path.rglob("*") if each.is_file()}
    assert "is a store already. Add --append" in fail("collect", "Pendulum-v1", path)
    assert {each: each.read_bytes() for each in path.rglob("*") if each.is_file()} == before
    code, out, _ = run("collect", "Pendulum-v1", path, "--frames", "50", "--append")
    assert code == 0
    assert "now holds 150 transitions of" in out
    assert "was created with float32" in fail("collect", "Pendulum-v1", path, "--append", "--float64", "keep")
    assert "observation" in fail("collect", "CartPole-v1", path, "--append")
    with arrowrb.Store.open(path) as opened:
        assert len(opened) == 150
        assert opened.schema.float64 == "float32"


@pytest.mark.filterwarnings("ignore:.*is out of date")
def test_collect_from_an_environment_of_another_id(store: Path) -> None:
    assert "holds 'CartPole-v1'" in fail("collect", "CartPole-v0", store, "--append")


def test_collect_is_repeatable(tmp_path: Path) -> None:
    options = ("--frames", "300", "--seed", "5", "--num-envs", "2")
    query = "SELECT lane, step, observation, action, reward FROM transitions ORDER BY lane, ordinal"
    found = []
    for name, more in (("a", ()), ("b", ("--frames-per-batch", "7"))):
        assert run("collect", "CartPole-v1", tmp_path / name, *options, *more)[0] == 0
        found.append(ask(tmp_path / name, query))
    assert found[0] == found[1]


def test_collect_gives_the_environment_its_options(tmp_path: Path) -> None:
    code, _, _ = run(
        "collect", "FrozenLake-v1", tmp_path / "s", "--frames", "50", "--env-kwargs", '{"map_name": "8x8"}'
    )
    assert code == 0
    with arrowrb.Store.open(tmp_path / "s") as opened:
        assert opened.schema.observation_space.n == 64


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("Nothing-v1",), "cannot be made"),
        (("CartPole-v1", "--env-kwargs", '{"foo": 1}'), "unexpected keyword argument 'foo'"),
        (("Blackjack-v1", "--vectorization-mode", "vector_entry_point"), "cannot be made"),
    ],
)
def test_collect_makes_no_store_for_an_environment_that_does_not_work(
    tmp_path: Path, arguments: Sequence[str], message: str
) -> None:
    env_id, *options = arguments
    assert message in fail("collect", env_id, tmp_path / "s", *options)
    assert not (tmp_path / "s").exists()


def test_collect_into_a_folder_of_other_things(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    assert "holds other files" in fail("collect", "CartPole-v1", tmp_path)
    assert [each.name for each in tmp_path.iterdir()] == ["thesis.txt"]


def test_collect_while_another_writes(tmp_path: Path) -> None:
    assert run("collect", "CartPole-v1", tmp_path / "s", "--frames", "10")[0] == 0
    path = str(tmp_path / "s")
    code = f"import arrowrb; store = arrowrb.Store.open({path!r}, mode='a'); print('open', flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as writer:
        assert writer.stdout is not None
        writer.stdout.readline()
        assert str(writer.pid) in fail("collect", "CartPole-v1", tmp_path / "s", "--append")
        writer.communicate("\n", timeout=30)


# -- wrong usage ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        ("nothing",),
        ("info",),
        ("info", "x", "--format", "xml"),
        ("info", "x", "--nothing"),
        ("sql", "x"),
        ("sql", "x", "SELECT 1", "--threads", "0"),
        ("sql", "x", "SELECT 1", "--limit", "-1"),
        ("collect", "CartPole-v1"),
        ("collect", "CartPole-v1", "x", "--frames", "-5"),
        ("collect", "CartPole-v1", "x", "--frames", "many"),
        ("collect", "CartPole-v1", "x", "--num-envs", "0"),
        ("collect", "CartPole-v1", "x", "--seed", "-1"),
        ("collect", "CartPole-v1", "x", "--float64", "half"),
        ("collect", "CartPole-v1", "x", "--vectorization-mode", "fast"),
        ("collect", "CartPole-v1", "x", "--env-kwargs", "{"),
        ("collect", "CartPole-v1", "x", "--env-kwargs", "[1]"),
    ],
)
def test_wrong_usage(arguments: Sequence[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert "Usage:" in err
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


def test_version_and_help() -> None:
    assert run("--version") == (0, f"arrowrb {arrowrb.__version__}\n", "")
    code, out, _ = run("--help")
    assert code == 0
    assert all(name in out for name in ("collect", "info", "top", "sql"))
    for name in ("collect", "info", "top", "sql"):
        assert run(name, "--help")[0] == 0


# -- real processes ------------------------------------------------------------------------------------------------


def test_errors_have_no_traceback(tmp_path: Path) -> None:
    done = subprocess.run([*COMMAND, "info", str(tmp_path)], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert done.stderr.startswith("error: ")


def test_help_and_info_answer_at_once(store: Path) -> None:
    """No timing: what takes the time is what is imported."""
    program = "import sys\nfrom arrowrb.cli import main\ntry: main()\nfinally: print(*sys.modules, file=sys.stderr)"
    for arguments, absent in (
        (["--help"], {"torch", "numba", "duckdb", "gymnasium", "pandas", "pyarrow", "numpy"}),
        (["info", str(store)], {"torch", "numba", "duckdb", "gymnasium", "pandas", "pyarrow.dataset"}),
    ):
        done = subprocess.run(
            [sys.executable, "-c", program, *arguments], capture_output=True, text=True, timeout=60, check=True
        )
        assert absent.isdisjoint(done.stderr.split())


def test_nobody_reads(store: Path) -> None:
    with subprocess.Popen(
        [*COMMAND, "sql", str(store), "SELECT * FROM transitions", "--format", "csv"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(60) == 141


def test_ctrl_c_keeps_what_happened(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with subprocess.Popen(
        [*COMMAND, "collect", "CartPole-v1", str(path), "--frames", "-1", "--num-envs", "2"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            stop = time.monotonic() + 60
            while time.monotonic() < stop:
                if (path / "store.json").exists():
                    with arrowrb.Store.open(path) as opened:
                        if len(opened) > 2000:
                            break
                time.sleep(0.05)
            following = subprocess.run(
                [*COMMAND, "info", str(path), "--format", "json"], capture_output=True, timeout=60, check=True
            )
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=60)
        finally:
            process.kill()
    assert json.loads(following.stdout)["writer_pid"] == process.pid
    assert (process.returncode, out) == (130, "")
    said = re.fullmatch(
        r"Ended early after ([\d,]+) transitions in .* now holds ([\d,]+) transitions of [\d,]+ episodes.\n", err
    )
    assert said is not None, err
    assert said[1] == said[2]
    with arrowrb.Store.open(path) as opened:
        assert len(opened) == int(said[1].replace(",", "")) > 2000
        assert opened.info().writer_pid is None
        running = opened.sql("SELECT count(*) FROM episodes WHERE ended_by = 'running'").fetchall()
    assert running == [(0,)]


def test_follow_ends_with_ctrl_c(store: Path) -> None:
    with subprocess.Popen(
        [*COMMAND, "info", str(store), "--follow", "--format", "json", "--interval", "0.05"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        first = json.loads(process.stdout.readline())
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert first["num_transitions"] == NUM_FRAMES
    assert (process.returncode, out, err) == (130, "", "")


def test_the_script_is_installed() -> None:
    script = Path(sys.executable).parent / "arrowrb"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [script, "--version"], capture_output=True, text=True, timeout=60, check=True, env=environment
    )
    assert done.stdout == f"arrowrb {arrowrb.__version__}\n"


@pytest.mark.parametrize("query", ["SELECT 'infinity'::timestamp AS t", "SELECT '290000-01-01'::date AS t"])
@pytest.mark.parametrize("form", ["table", "json", "csv"])
def test_values_that_python_cannot_hold(store: Path, query: str, form: str) -> None:
    code, out, err = run("sql", store, query, "--format", form)
    assert (code, err) == (0, "")
    assert re.search(r"\d{6}", out)


def test_plans_are_shown_whole(store: Path) -> None:
    code, out, _ = run("sql", store, "EXPLAIN SELECT count(*) FROM transitions")
    assert code == 0
    assert "Aggregate" in out
    assert len(out.splitlines()) > 8


def test_encodings_and_streams_that_lack_something(store: Path) -> None:
    """ASCII terminals, a closed stdout, and readers that leave."""
    query = [*COMMAND, "sql", str(store), "SELECT 'grün' AS colour"]
    done = subprocess.run(query, capture_output=True, env={**os.environ, "PYTHONIOENCODING": "ascii"}, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"gr\\xfcn" in done.stdout
    for command in (["info", str(store)], ["sql", str(store), "SELECT * FROM transitions", "--limit", "0"]):
        text = " ".join([*COMMAND, *(f"'{each}'" for each in command)])
        closed = subprocess.run(f"{text} >&-", shell=True, capture_output=True, text=True, check=False)
        assert closed.returncode == 0, closed.stderr
        left = subprocess.run(f"{text} | true", shell=True, capture_output=True, text=True, check=False)
        assert "Traceback" not in left.stderr


def test_limits_of_a_new_store(tmp_path: Path) -> None:
    path = tmp_path / "store"
    options = ["--frames", "6000", "--hot-rows", "1000", "--max-rows", "4000", "--frames-per-batch", "250"]
    code, _, err = run("collect", "CartPole-v1", path, *options)
    assert (code, err) == (0, "")
    with arrowrb.Store.open(path) as store:
        assert 3700 <= len(store) <= 4000
        assert store.info().num_segments["cold"] > 0
    assert "--max-rows is fixed" in fail("collect", "CartPole-v1", path, "--append", "--max-rows", "5000")
