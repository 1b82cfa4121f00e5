"""`arrowrb collect --workers`: what is stored, what it says, how it ends."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest

import arrowrb
from tests.test_cli import COMMAND, fail, run
from tests.test_workers import alive, within

FAILING = """
    import gymnasium as gym

    class Failing(gym.Env):
        observation_space = gym.spaces.Box(-1, 1, (1,))
        action_space = gym.spaces.Discrete(2)
        taken = 0

        def __init__(self, error="zero"):
            self.error = error

        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)
            return self.observation_space.low, {}

        def step(self, action):
            self.taken += 1
            if self.taken > 50:
                break_down(self.error)
            return self.observation_space.low, 1.0, self.taken % 7 == 0, False, {}

    class Unsendable(Exception):
        def __init__(self, *, where):
            super().__init__(f"broken {where}")

    def break_down(error):
        raise ZeroDivisionError("the motor is gone") if error == "zero" else Unsendable(where="arm")

    gym.register("Failing-v0", entry_point=Failing, disable_env_checker=True)
"""


def shards(path: Path) -> dict[str, int]:
    with arrowrb.Store.open(path) as store:
        return {each.name: each.num_transitions for each in store.info().writers}


@pytest.mark.filterwarnings("ignore:.*is out of date")
def test_workers_collect_and_go_on(tmp_path: Path) -> None:
    path = tmp_path / "store"
    options = ("--frames", "2000", "--num-envs", "2", "--workers", "2", "--frames-per-batch", "200")
    code, out, err = run("collect", "CartPole-v1", path, *options)
    assert (code, err) == (0, "")
    assert re.match(r"Collected 2,000 transitions in .* now holds 2,000 transitions of ", out)
    assert shards(path) == {"main": 0, "worker-0": 1000, "worker-1": 1000}
    # Another process may write beside workers, to the shard of its own.
    with arrowrb.Store.open(path, mode="a"):
        code, out, _ = run("collect", "CartPole-v1", path, *options, "--async", "--append")
    assert code == 0
    assert "now holds 4,000 transitions" in out
    assert sum(shards(path).values()) == 4000
    assert arrowrb.verify(path)
    assert "holds 'CartPole-v1'" in fail("collect", "CartPole-v0", path, *options, "--append")


@pytest.mark.parametrize("options", [("--async",), ("--restart-workers", "2"), ("--workers", "-1")])
def test_options_that_are_about_workers(options: tuple[str, ...], tmp_path: Path) -> None:
    assert run("collect", "CartPole-v1", tmp_path / "store", *options)[0] == 2
    assert not (tmp_path / "store").exists()


def start(tmp_path: Path, *arguments: str) -> Any:
    (tmp_path / "worn_out.py").write_text(textwrap.dedent(FAILING))
    known = os.environ.get("PYTHONPATH", "")
    paths = [str(tmp_path), str(Path(arrowrb.__file__).parents[1]), known]
    return subprocess.Popen(
        [*COMMAND, "collect", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
        start_new_session=True,
    )


@pytest.mark.parametrize("error", ["zero", "unsendable"])
def test_a_worker_that_fails(error: str, tmp_path: Path) -> None:
    """Its traceback, and none of ours; the last line says it all."""
    path = tmp_path / "store"
    options = ("--workers", "2", "--frames-per-batch", "40", "--env-kwargs", json.dumps({"error": error}))
    with start(tmp_path, "worn_out:Failing-v0", str(path), *options) as process:
        out, err = process.communicate(timeout=120)
    assert (process.returncode, out) == (1, "")
    what = "ZeroDivisionError: the motor is gone" if error == "zero" else "worn_out.Unsendable: broken arm"
    *before, last = err.splitlines()
    assert last == f"error: worn_out:Failing-v0 failed in a worker: {what}"
    assert err.count("Traceback") == 1
    assert "in break_down" in err
    assert "collecting.py" not in err
    ended = re.fullmatch(r"Ended early after ([\d,]+) transitions in .*", before[-1])
    assert ended is not None, err
    assert sum(shards(path).values()) == int(ended[1]) >= 50


def test_workers_that_fail_are_started_again(tmp_path: Path) -> None:
    path = tmp_path / "store"
    options = ("--workers", "1", "--frames", "120", "--frames-per-batch", "40", "--restart-workers", "2")
    with start(tmp_path, "worn_out:Failing-v0", str(path), *options) as process:
        out, err = process.communicate(timeout=120)
    assert process.returncode == 0
    assert err.count("Traceback") == err.count("It is started again.") == 2
    assert "Workers were started again 2 times." in out
    assert shards(path) == {"main": 0, "worker-0": 120}


def test_ctrl_c(tmp_path: Path) -> None:
    """While it runs, `top` and `info` name the workers; then all is stored that is told, and nobody is left."""
    path = tmp_path / "store"
    with start(tmp_path, "CartPole-v1", str(path), "--frames", "-1", "--workers", "2", "--async") as process:
        try:
            assert within(60, path.joinpath("shards", "00002").exists)
            assert within(60, lambda: min(list(shards(path).values())[1:]) > 2000)
            code, out, _ = run("top", path, "--once", "--interval", "0.2", "--format", "json")
            assert code == 0
            for _ in range(5):  # somebody is impatient
                os.killpg(process.pid, signal.SIGINT)
                time.sleep(0.02)
            out_at_end, err = process.communicate(timeout=60)
        finally:
            process.kill()
    seen = json.loads(out)
    workers = [shard for shard in seen["shards"] if shard["name"].startswith("worker-")]
    assert [shard["name"] for shard in workers] == ["worker-0", "worker-1"]
    assert all(shard["alive"] for shard in workers), workers
    assert all(shard["num_lanes"] <= 1 for shard in workers), workers  # none between two segments
    assert (process.returncode, out_at_end) == (130, "")
    said = re.fullmatch(r"Ended early after ([\d,]+) transitions in .* now holds ([\d,]+) transitions of .*\n", err)
    assert said is not None, err
    assert said[1] == said[2]
    assert sum(shards(path).values()) == int(said[1].replace(",", "")) > 4000
    assert not any(alive(shard["pid"]) for shard in workers)
    with arrowrb.Store.open(path) as store:
        assert store.sql("SELECT count(*) FROM episodes WHERE ended_by = 'running'").fetchall() == [(0,)]
        assert time.time() - max(each.last_write or 0 for each in store.info().writers) < 600
