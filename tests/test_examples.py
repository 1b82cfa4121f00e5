"""The examples and benchmarks run as a user runs them, on little work.

Most of them are forked by `Scripts`, for which what takes long to import has been imported before.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import arrowrb
from tests.scripts import ROOT, Scripts

_SECONDS = 240
_scripts: list[Scripts] = []


@pytest.fixture(scope="module", autouse=True)
def scripts() -> Iterator[None]:
    """For `run`, which starts it."""
    yield
    while _scripts:
        _scripts.pop().close()


def run(script: str, *arguments: object, status: int = 0) -> str:
    if not _scripts:
        _scripts.append(Scripts())
    ended, said, errors = _scripts[0].run(ROOT / script, *map(str, arguments), seconds=_SECONDS)
    return checked(ended, said, errors, status)


def start(script: str, *arguments: object, status: int = 0) -> str:
    """The same in a process that begins from nothing."""
    command = [sys.executable, str(ROOT / script), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False, cwd=ROOT)
    return checked(done.returncode, done.stdout, done.stderr, status)


def checked(ended: int, said: str, errors: str, status: int) -> str:
    assert ended == status, said + errors
    assert "Traceback" not in errors
    return said


def test_dqn_trains_draws_and_goes_on(tmp_path: Path) -> None:
    store, plot = tmp_path / "dqn", tmp_path / "curve.png"
    said = run("examples/dqn_cartpole.py", "--store", store, "--total-frames", 1_536, "--no-target", "--plot", plot)
    assert "1,024 frames" in said
    assert plot.read_bytes()[:4] == b"\x89PNG"
    said = run("examples/dqn_cartpole.py", "--store", store, "--total-frames", 256, "--no-target")
    assert "Going on from" in said
    assert "1,536 transitions, 384 updates" in said
    assert (tmp_path / "dqn.png").exists()
    assert [path.name for path in tmp_path.glob("*.tmp")] == []
    with arrowrb.Store.open(store) as opened:
        assert len(opened) == 1_792
        (versions,) = opened.sql(
            "SELECT list(DISTINCT policy_version ORDER BY policy_version) FROM transitions"
        ).fetchone()
        assert versions == [0, 128, 256, 384]  # updates before each phase; the last is the second run's


def test_dqn_says_when_it_is_not_solved(tmp_path: Path) -> None:
    said = run("examples/dqn_cartpole.py", "--store", tmp_path / "dqn", "--total-frames", 512, status=1)
    assert "Not solved" in said


def test_dqn_that_is_solved_already_stops(tmp_path: Path) -> None:
    path = tmp_path / "dqn"
    easy = ("examples/dqn_cartpole.py", "--store", path, "--target-return", 1)
    assert "Solved" in run(*easy, "--total-frames", 512)
    assert "solved already" in run(*easy)
    with arrowrb.Store.open(path) as store:
        assert len(store) == 512


@pytest.mark.parametrize("arguments", [("--total-frames", "0"), ("--seed", "-1"), ("--nonsense",)])
def test_dqn_refuses_bad_options(arguments: tuple[str, ...], tmp_path: Path) -> None:
    start("examples/dqn_cartpole.py", "--store", tmp_path / "dqn", *arguments, status=2)


def test_rainbow_goes_on_with_its_priorities(tmp_path: Path) -> None:
    command = ("examples/rainbow_cartpole.py", "--store", tmp_path / "store", "--total-frames", 1_280)
    assert "256 updates" in run(*command, "--target-return", 600, status=1)
    said = run(*command, "--target-return", 1)
    assert "Going on from" in said
    assert "Solved" in said
    assert list((tmp_path / "store" / "samplers" / "agent").glob("*.priorities"))


def test_sac_is_killed_and_goes_on() -> None:
    said = run("examples/sac_halfcheetah.py", "--short-steps", 2_400)
    assert "Killed. The store has" in said
    assert "nothing is damaged" in said
    assert "steps is lost: True" in said
    assert "3 greedy episodes return" in said


def test_pong_draws_stacks_of_frames_that_are_stored_once(tmp_path: Path) -> None:
    command = ("examples/dqn_pong.py", "--store", tmp_path / "store", "--frames")
    assert "two stacks of 4 frames would take 51,200" in run(*command, 1_152)
    assert "Going on from" in run(*command, 64)


def test_recurrent_trains() -> None:
    assert "Not solved: 640 frames" in run("examples/recurrent.py", "--frames", 640, status=1)


def test_own_loop(tmp_path: Path) -> None:
    said = start("examples/own_loop.py", "--store", tmp_path / "store", "--steps", 200)
    assert "next_observation torch.float32  (256, 4)" in said
    with arrowrb.Store.open(tmp_path / "store") as store:
        assert 1_300 < len(store) < 1_600


@pytest.mark.parametrize(("env_id", "frames"), [("HalfCheetah-v5", 3_000), ("ALE/Pong-v5", 1_300)])
def test_two_tiers_checks_all_the_way(env_id: str, frames: int) -> None:
    said = run("examples/two_tiers.py", "--env", env_id, "--frames", frames)
    assert "all counts and rows agree" in said


@pytest.mark.parametrize(
    ("script", "arguments", "said"),
    [
        ("uniform", ("--rows", 5_000, "--rounds", 2, "--batch-sizes", 64, "--no-peers"), "arrowrb, reader"),
        ("pixels", ("--rows", 1_000, "--rounds", 1, "--batch-size", 8), "bytes a row"),
        ("strategies", ("--rows", 20_000, "--rounds", 1, "--steps", 20), "PrioritizedSequences"),
        ("extending", ("--rows", 5_000), "arrowrb, extend"),
        ("opening", ("--rows", 5_000, "--rounds", 1), 'mode="a"'),
        ("durability", ("--rows", 5_000, "--rounds", 1), "The dial of durability"),
        ("footprint", ("--rows", 5_000), "NumPy arrays in RAM"),
        ("tiers", ("--only", "exporting", "--export-rows", 5_000, "--export-frames", 200), "Exports to Parquet"),
    ],
)
def test_benchmarks_print_a_table(script: str, arguments: tuple[object, ...], said: str) -> None:
    assert said in run(f"benchmarks/{script}.py", *arguments)


def test_scale_checks_what_it_wrote(tmp_path: Path) -> None:
    said = run("benchmarks/scale.py", "--path", tmp_path / "store", "--rows", 30_000, "--lanes", 24)
    assert "all counts agree" in said
    assert not (tmp_path / "store").exists()


def test_own_actors_go_on(tmp_path: Path) -> None:
    store, counts = tmp_path / "actors", []
    for actors in (2, 3):
        said = run("examples/own_actors.py", "--store", store, "--frames", 400, "--actors", actors)
        assert f"transitions by {actors} actors" in said
        with arrowrb.Store.open(store) as opened:
            shards = opened.sql("SELECT row_id >> 48, count(*) FROM transitions GROUP BY 1 ORDER BY 1").fetchall()
            counts.append(dict(shards))
    assert [set(each) for each in counts] == [{1, 2}, {1, 2, 3}]
    assert all(counts[1][shard] > counts[0][shard] > 300 for shard in counts[0])


@pytest.mark.parametrize(("env_id", "times"), [("CartPole-v1", 2), ("InvertedPendulum-v5", 1)])
def test_ppo_collects_with_workers_and_goes_on(env_id: str, times: int, tmp_path: Path) -> None:
    store, newest = tmp_path / "ppo", []
    for again in range(times):
        said = run("examples/ppo.py", "--env", env_id, "--total-frames", 2_048, "--store", store, status=1)
        assert "2,048 frames" in said
        assert "Not solved" in said
        assert ("Going on with 2,048 transitions, and the agent" in said) == (again > 0)
        with arrowrb.Store.open(store) as opened:
            assert len(opened) == 2_048 * (again + 1)
            shards = opened.sql("SELECT count(DISTINCT row_id >> 48), count(log_prob) FROM transitions").fetchall()
            assert shards == [(2, len(opened))]
            newest += versions_after(opened, newest)
            assert opened.checkpoints()[-1].num_transitions == len(opened)


def versions_after(store: arrowrb.Store, before: list[int]) -> list[int]:
    """Versions of the policy that are new in a store: they go on above those that it had."""
    told = store.sql("SELECT DISTINCT policy_version FROM transitions ORDER BY 1").fetchall()
    found = [version for (version,) in told]
    assert found[: len(before)] == before
    assert len(found) > len(before)
    return found[len(before) :]


def test_sac_learns_while_workers_collect(tmp_path: Path) -> None:
    plot, path = tmp_path / "curve.png", tmp_path / "sac"
    said = run("examples/async_sac.py", "--total-frames", 1_400, "--plot", plot, "--store", path, status=1)
    assert "Not solved" in said
    assert plot.read_bytes()[:4] == b"\x89PNG"
    with arrowrb.Store.open(path) as store:
        assert len(store) == 1_400
        versions = versions_after(store, [])
        assert versions[-1] > 0
        inserts, samples = store.sql("SELECT inserts, samples FROM limiter").fetchall()[0]
        assert inserts == 1_400
        assert 0 < samples <= (1_400 - 1_000 + 100 + 50) * 128 + 128
    said = run("examples/async_sac.py", "--total-frames", 200, "--plot", plot, "--store", path, status=1)
    assert f"Going on with 1,400 transitions, {samples // 128:,} updates." in said
    with arrowrb.Store.open(path) as store:
        assert len(store) == 1_600
        versions_after(store, versions)
