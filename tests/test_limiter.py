"""Collecting and sampling wait for each other, over processes: beside a model, with processes that die."""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import arrowrb
from arrowrb import SampleToInsertRatio, kernels
from arrowrb.engine import limiter_file
from arrowrb.engine.limiter_file import SLOTS, LimiterFile
from arrowrb.errors import CorruptError, LockedError, OptionError, UsageError, WaitError
from arrowrb.limiter import Rule
from arrowrb.store import Store

SCHEMA = arrowrb.Schema.from_spaces(gym.spaces.Box(-np.inf, np.inf, (2,), np.float64), gym.spaces.Discrete(5))
LONG = 60.0  # seconds that nothing here takes


def rows(count: int) -> dict[str, Any]:
    return {
        "observation": np.zeros((count, 2)),
        "next_observation": np.ones((count, 2)),
        "action": np.zeros(count, np.int64),
        "reward": np.ones(count),
        "terminated": np.ones(count, np.bool_),
        "truncated": np.zeros(count, np.bool_),
    }


def limiter_of(store: Store) -> arrowrb.LimiterInfo:
    told = store.info().limiter
    assert told is not None
    return told


def until(what: Any, seconds: float = LONG) -> None:
    stop = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < stop, "it does not come to pass"
        time.sleep(0.005)


def again(what: Any, times: int = 100) -> None:
    for _ in range(times):
        what()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store"


# -- the rule ----------------------------------------------------------------------------------------------------


class Model:
    """The rule in words: what there was since the balance began, as exact fractions of what is owed."""

    def __init__(self, ratio: int, size: int, tolerance: int, inserts: int) -> None:
        self.ratio, self.size, self.tolerance = ratio, size, tolerance
        self.inserts, self.start, self.sampled = inserts, max(size, inserts), 0

    def balance(self) -> int:
        return (self.inserts - self.start) * self.ratio - self.sampled

    def waits(self) -> tuple[bool, bool]:
        if self.inserts < self.size:
            return False, True
        return self.balance() > self.tolerance, self.balance() < -self.tolerance


@settings(max_examples=200, deadline=None)
@given(
    ratio=st.integers(1, 20),
    size=st.integers(1, 50),
    tolerance=st.integers(0, 300),
    before=st.integers(0, 100),
    steps=st.lists(st.tuples(st.booleans(), st.integers(1, 400)), max_size=80),
)
def test_never_do_both_sides_wait(
    ratio: int, size: int, tolerance: int, before: int, steps: list[tuple[bool, int]]
) -> None:
    """Whatever the sizes of commits and batches: each step that is allowed leaves somebody who may go on."""
    model = Model(ratio, size, tolerance, before)
    rule = Rule.begin(SampleToInsertRatio(ratio, size, tolerance), before, 7)
    largest = {True: 0, False: 0}
    for commits, count in steps:
        told = (
            rule.collecting_waits(model.inserts, 7 + model.sampled),
            rule.sampling_waits(model.inserts, 7 + model.sampled),
        )
        assert told == model.waits()
        assert not all(told)
        if told[0 if commits else 1]:
            continue
        largest[commits] = max(largest[commits], count)
        if commits:
            model.inserts += count
        else:
            model.sampled += count
        owed = rule.owed(model.inserts, 7 + model.sampled)
        assert owed == model.balance()
        assert owed <= tolerance + ratio * (largest[True] + size)
        assert owed >= -tolerance - largest[False] or model.inserts < size


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"samples_per_insert": 0}, "samples_per_insert"),
        ({"samples_per_insert": math.nan}, "samples_per_insert"),
        ({"samples_per_insert": True}, "samples_per_insert"),
        ({"samples_per_insert": 1, "min_size": 0}, "min_size"),
        ({"samples_per_insert": 1, "min_size": 2.5}, "min_size"),
        ({"samples_per_insert": 1, "tolerance": -1}, "tolerance"),
        ({"samples_per_insert": 1, "tolerance": math.inf}, "tolerance"),
        ({"samples_per_insert": 1, "patience": 0}, "patience"),
    ],
)
def test_options_are_checked(options: dict[str, Any], what: str) -> None:
    with pytest.raises(OptionError, match=what):
        SampleToInsertRatio(**options)


def test_tolerance_by_default() -> None:
    assert SampleToInsertRatio(8).margin == 800
    assert SampleToInsertRatio(0.5, 10_000).margin == 500
    assert SampleToInsertRatio(np.float32(2), np.int64(5), tolerance=0).margin == 0


def test_what_is_no_limiter_is_refused(path: Path) -> None:
    wrong: Any = 4.0
    with pytest.raises(OptionError, match=r"limiter is 4\.0"):
        Store.create(path, SCHEMA, limiter=wrong)
    assert not path.exists()
    Store.create(path, SCHEMA).close()
    with pytest.raises(OptionError, match='mode is "r"'):
        Store.open(path, limiter=SampleToInsertRatio(1))
    with Store.open(path) as store, pytest.raises(OptionError, match="limited is 1"):
        store.sampler(batch_size=1, limited=1)  # type: ignore[arg-type]


# -- one process -------------------------------------------------------------------------------------------------


def test_a_loop_of_one_thread(path: Path) -> None:
    """It goes on as long as it keeps to the ratio; where only it could release itself it is told so at once."""
    ratio = SampleToInsertRatio(4, min_size=50, tolerance=200, patience=LONG)
    with Store.create(path, SCHEMA, limiter=ratio) as store:
        sampler = store.sampler(batch_size=32, seed=0, name="learner")
        for step in range(400):
            store.extend(rows(1))
            if step >= 50 and step % 8 == 0:
                next(sampler)
        told = limiter_of(store)
        assert (told.inserts, told.samples, told.state) == (400, 43 * 32, "open")
        assert abs(told.owed) <= 200
        assert told.ratio == pytest.approx(43 * 32 / 350)
        begin = time.monotonic()
        with pytest.raises(WaitError, match=r"only the thread that waits here samples.*tolerance"):
            again(lambda: store.extend(rows(1)))
        assert time.monotonic() - begin < LONG / 2
        told = limiter_of(store)
        assert told.state == "collecting waits"
        assert told.owed == 204
        assert len(store) == told.inserts
        with pytest.raises(WaitError, match="only the thread that waits here collects"):
            again(lambda: next(sampler))
        told = limiter_of(store)
        assert told.state == "sampling waits"
        assert -232 <= told.owed < -200
        assert 0 < sampler.info().limiter_seconds < LONG
        assert "for the limiter" in str(sampler.info())


def test_sampling_waits_for_the_first_rows() -> None:
    with Store.temporary(SCHEMA, limiter=SampleToInsertRatio(1, min_size=100, patience=0.3)) as store:
        sampler = store.sampler(batch_size=8)
        with pytest.raises(WaitError, match=r"0 transitions are committed, and min_size is 100\. Nobody collects now"):
            next(sampler)
        store.extend(rows(99))
        with pytest.raises(WaitError, match="99 transitions are committed"):
            sampler.sample()
        store.extend(rows(1))
        next(sampler)
        assert limiter_of(store).samples == 8


def test_threads_release_each_other() -> None:
    """A thread that samples releases one that commits, and the other way round, and checkpoints go on meanwhile."""
    ratio = SampleToInsertRatio(2, min_size=100, tolerance=400, patience=LONG)
    with Store.temporary(SCHEMA, limiter=ratio) as store:
        sampler = store.sampler(batch_size=64, seed=0, name="learner", prefetch=2)
        errors: list[BaseException] = []

        def learn() -> None:
            try:
                for _ in range(200):
                    next(sampler)
            except BaseException as error:
                errors.append(error)

        thread = threading.Thread(target=learn)
        thread.start()
        while limiter_of(store).samples == 0 and not errors:
            store.extend(rows(10))
        while thread.is_alive():
            store.extend(rows(50))
            store.checkpoint("now")
            assert limiter_of(store).owed <= 400 + 2 * 50
        thread.join()
        assert not errors
        told = limiter_of(store)
        assert told.samples == 200 * 64
        assert told.owed >= -400 - 64


def test_a_checkpoint_does_not_wait_for_a_sampler_that_does() -> None:
    with Store.temporary(SCHEMA, limiter=SampleToInsertRatio(1, min_size=100, patience=LONG)) as store:
        sampler = store.sampler(batch_size=8, name="learner", seed=0)
        batches: list[Any] = []
        thread = threading.Thread(target=lambda: batches.append(next(sampler)))
        thread.start()
        until(lambda: any(each.waits_for for each in limiter_of(store).participants))
        store.checkpoint("meanwhile")
        (waiting,) = limiter_of(store).participants
        assert (waiting.side, waiting.name, waiting.pid, waiting.alive) == ("sampling", "learner", os.getpid(), True)
        assert waiting.waits_for == "too few transitions for the first batch"
        assert waiting.waiting_seconds is not None
        store.extend(rows(100))
        thread.join(LONG)
        assert len(batches) == 1


@pytest.mark.parametrize("whose", ["sampler", "store"])
def test_closing_ends_waits(whose: str) -> None:
    with Store.temporary(SCHEMA, limiter=SampleToInsertRatio(1, min_size=100, patience=LONG)) as store:
        sampler = store.sampler(batch_size=8)
        errors: list[BaseException] = []

        def wait() -> None:
            try:
                next(sampler)
            except UsageError as error:
                errors.append(error)

        thread = threading.Thread(target=wait)
        thread.start()
        until(lambda: any(each.waits_for for each in limiter_of(store).participants))
        (sampler if whose == "sampler" else store).close()
        thread.join(LONG)
        assert "closed" in str(errors[0])


def test_what_does_not_count() -> None:
    with Store.temporary(SCHEMA, limiter=SampleToInsertRatio(1, min_size=10, tolerance=0, patience=0.2)) as store:
        free = store.sampler(batch_size=8, limited=False)
        store.extend(rows(10))
        store.sample(100)
        store.latest(5)
        for _ in range(3):
            next(free)
        assert limiter_of(store).samples == 0
        assert [each.side for each in limiter_of(store).participants] == ["collecting"]
        with store.sampler(batch_size=4) as one:
            next(one)
            assert [each.side for each in limiter_of(store).participants] == ["collecting", "sampling"]
        assert [each.side for each in limiter_of(store).participants] == ["collecting"]
        assert limiter_of(store).samples == 4


def test_rows_drawn_ahead_count_when_they_are_handed_out() -> None:
    with Store.temporary(SCHEMA, limiter=SampleToInsertRatio(1, min_size=10, tolerance=1000)) as store:
        store.extend(rows(10))
        sampler = store.sampler(batch_size=4, prefetch=7, seed=0, name="ahead", log=True)
        next(sampler)
        assert limiter_of(store).samples == 4
        whole = store.sampler(arrowrb.Shuffled(epochs=1), batch_size=4)
        assert sum(len(batch["row_id"]) for batch in whole) == 10
        assert limiter_of(store).samples == 14


def test_a_mixture_waits_and_counts_by_part(path: Path) -> None:
    with (
        Store.create(path, SCHEMA) as offline,
        Store.temporary(SCHEMA, limiter=SampleToInsertRatio(1, min_size=20, tolerance=30, patience=0.2)) as online,
    ):
        offline.extend(rows(10))
        parts = [(offline.sampler(batch_size=1), 0.25), (online.sampler(batch_size=1), 0.75)]
        mixture = arrowrb.Mixture(parts, batch_size=16)
        with pytest.raises(WaitError):
            next(mixture)
        online.extend(rows(20))
        for _ in range(3):
            next(mixture)
        assert limiter_of(online).samples == 36
        assert offline.info().limiter is None
        with pytest.raises(WaitError, match="sampling is ahead by 36 rows"):
            next(mixture)
        assert limiter_of(online).samples == 36


def test_recorders_and_collectors_wait() -> None:
    env = gym.make("CartPole-v1")
    schema = arrowrb.Schema.from_env(env)
    ratio = SampleToInsertRatio(1, min_size=10, tolerance=5, patience=0.2)
    with Store.temporary(schema, limiter=ratio) as store:
        with store.recorder(env) as recorder:
            observation, info = env.reset(seed=0)
            recorder.reset(observation, info)
            for _ in range(100):
                action = env.action_space.sample()
                observation, reward, terminated, truncated, info = env.step(action)
                step = (action, observation, reward, terminated, truncated, info)
                if limiter_of(store).state == "collecting waits":
                    with pytest.raises(WaitError, match="Nobody samples now"):
                        recorder.step(*step)
                    break
                recorder.step(*step)
                if terminated or truncated:
                    recorder.reset(*env.reset())
            assert len(store) == 16
            sampler = store.sampler(batch_size=6)
            next(sampler)
            recorder.step(*step)  # the same step once more
            assert len(store) == 17
        collector = arrowrb.Collector("CartPole-v1", num_envs=2, frames_per_batch=20, store=store, seed=0)
        next(collector)
        with pytest.raises(WaitError):
            next(collector)
        collector.close()
        told = limiter_of(store)
        assert told.inserts == len(store) >= 57  # what was collected is kept


@pytest.mark.usefixtures("no_garbage")
def test_ctrl_c_ends_a_wait_at_once() -> None:
    ratio = SampleToInsertRatio(1, min_size=10, tolerance=0, patience=LONG)
    with Store.temporary(SCHEMA, limiter=ratio) as store:
        shuffled = store.sampler(arrowrb.Shuffled(), batch_size=4)  # whose draws Ctrl-C does not tear
        for wait in (lambda: next(shuffled), lambda: store.extend(rows(1))):
            begin = time.monotonic()
            timer = threading.Timer(0.2, lambda: os.kill(os.getpid(), signal.SIGINT))
            timer.start()
            with pytest.raises(KeyboardInterrupt):
                wait()
            timer.join()
            assert time.monotonic() - begin < LONG / 2
            assert not any(each.waits_for for each in limiter_of(store).participants)
            if len(store) == 0:
                store.extend(rows(11))
                shuffled.close()
        assert len(store) == 11


@pytest.mark.usefixtures("no_garbage")
def test_ctrl_c_in_a_collector_keeps_its_steps() -> None:
    ratio = SampleToInsertRatio(1, tolerance=0, patience=LONG)
    with Store.temporary(arrowrb.Schema.from_env(gym.make("CartPole-v1")), limiter=ratio) as store:
        with arrowrb.Collector("CartPole-v1", frames_per_batch=20, store=store, seed=0) as collector:
            next(collector)
            timer = threading.Timer(0.5, lambda: os.kill(os.getpid(), signal.SIGINT))
            timer.start()
            with pytest.raises(KeyboardInterrupt):
                next(collector)
            timer.join()
        assert len(store) == 40


# -- the limiter of a store --------------------------------------------------------------------------------------


def test_counts_go_on_when_a_run_is_resumed(path: Path) -> None:
    ratio = SampleToInsertRatio(4, min_size=10, tolerance=100)
    with Store.create(path, SCHEMA, limiter=ratio) as store:
        store.extend(rows(30))
        next(store.sampler(batch_size=16))
    for limiter in (None, ratio, SampleToInsertRatio(4, min_size=10, tolerance=50)):
        with Store.open(path, mode="a", limiter=limiter) as store:
            told = limiter_of(store)
            assert (told.inserts, told.samples, told.owed) == (30, 16, 64)
            assert told.tolerance == (100 if limiter in (None, ratio) else 50)
            assert told.participants == ()
    with Store.open(path) as reader:
        next(reader.sampler(batch_size=4))  # readers count, too
        assert limiter_of(reader).samples == 20


def test_another_ratio_begins_anew(path: Path) -> None:
    with Store.create(path, SCHEMA) as store:
        store.extend(rows(1000))
        assert store.info().limiter is None
        assert store.sql("SELECT * FROM limiter").fetchall() == []
    with Store.open(path, mode="a", limiter=SampleToInsertRatio(8, min_size=10)) as store:
        told = limiter_of(store)
        assert (told.inserts, told.samples, told.owed, told.state) == (1000, 0, 0, "open")
        next(store.sampler(batch_size=100))
        with Store.open(path, mode="a", shard="other", limiter=SampleToInsertRatio(2, min_size=10)) as other:
            assert limiter_of(store).samples_per_insert == 2  # at once, in all
            assert (limiter_of(other).samples, limiter_of(other).owed) == (100, 0)
            other.extend(rows(10))
            assert (limiter_of(store).inserts, limiter_of(store).owed) == (1010, 20)
    with Store.open(path, mode="a", limiter=SampleToInsertRatio(2, min_size=5000)) as store:
        told = limiter_of(store)
        assert (told.owed, told.ratio, told.state) == (0, None, "sampling waits")


def test_it_is_taken_off_and_put_on_again(path: Path) -> None:
    with Store.create(path, SCHEMA, limiter=SampleToInsertRatio(1, tolerance=0, patience=0.2)) as store:
        store.extend(rows(5))
        with pytest.raises(WaitError):
            store.extend(rows(5))
        with Store.open(path, mode="a", shard="other", limiter=False):
            store.extend(rows(5))
            assert limiter_of(store).state == "off"
        with Store.open(path, mode="a", shard="other", limiter=SampleToInsertRatio(1, tolerance=0, patience=0.2)):
            assert limiter_of(store).owed == 0
            store.extend(rows(5))
            with pytest.raises(WaitError):
                store.extend(rows(5))
    Store.create(path.with_name("never"), SCHEMA, limiter=False).close()
    with Store.open(path.with_name("never"), mode="a", limiter=False) as store:
        assert store.info().limiter is None


def test_retention_does_not_take_anybody_back(path: Path) -> None:
    ratio = SampleToInsertRatio(1, min_size=2000, tolerance=1e9)
    with Store.create(path, SCHEMA, max_rows=1000, limiter=ratio) as store:
        for _ in range(30):
            store.extend(rows(100))
        assert len(store) < 2000
        next(store.sampler(batch_size=8))
        assert limiter_of(store).inserts == 3000


def test_sql_and_info_show_it(path: Path) -> None:
    with Store.create(path, SCHEMA, limiter=SampleToInsertRatio(2, min_size=10, tolerance=50)) as store:
        store.extend(rows(30))
        sampler = store.sampler(batch_size=16, name="learner")
        next(sampler)
        (told,) = store.sql("SELECT * FROM limiter").arrow().to_pylist()
        names = "samples_per_insert min_size tolerance patience inserts samples owed ratio state"
        assert told == dict(zip(names.split(), (2, 10, 50, 60, 30, 16, 24, 0.8, "open"), strict=True))
        query = "SELECT side, name, pid, alive, num_rows, num_waits, waits_for FROM participants ORDER BY side"
        assert store.sql(query).fetchall() == [
            ("collecting", "main", os.getpid(), True, 30, 0, None),
            ("sampling", "learner", os.getpid(), True, 16, 0, None),
        ]
        ages = store.sql("SELECT epoch_us(now()) - active_at, active_at - joined_at FROM participants").fetchall()
        assert all(0 <= each < 1e6 * LONG for row in ages for each in row)
        lines = dict(store.info().rows())
        assert lines["limiter"] == "2 samples an insert, from 10 on, within 50"
        assert lines["balance"] == "open: 30 inserts, 16 samples, 24 owed"
        assert lines["sampling"] == f"process {os.getpid()} (learner): 16 rows"


@pytest.mark.parametrize("form", ["table", "json", "csv"])
def test_the_command_line_shows_it(path: Path, form: str) -> None:
    with Store.create(path, SCHEMA, limiter=SampleToInsertRatio(2, min_size=10)) as store:
        store.extend(rows(30))
        command = [sys.executable, "-m", "arrowrb", "info", str(path), "--format", form]
        shown = subprocess.run(command, capture_output=True, text=True, check=True, timeout=LONG).stdout
    if form == "json":
        told = json.loads(shown)["limiter"]
        assert (told["inserts"], told["state"], told["participants"][0]["side"]) == (30, "open", "collecting")
    elif form == "csv":
        names, values = (line.split(",") for line in shown.splitlines())
        assert dict(zip(names, values, strict=True))["limiter_inserts"] == "30"
    else:
        assert "2 samples an insert" in shown


def test_where_it_cannot_be_written_nothing_waits(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever runs the tests as root may write anywhere, so the refusal is made up."""
    with Store.create(path, SCHEMA, limiter=SampleToInsertRatio(1, min_size=100, patience=LONG)) as store:
        store.extend(rows(10))
        store.checkpoint("point")
    mapping = limiter_file.files.Mapping

    def refuse(path: Path, **options: Any) -> Any:
        if options.pop("writable", False) and path.name == "limiter":
            raise arrowrb.StoreError(30, "Read-only file system", str(path))
        return mapping(path, **options)

    monkeypatch.setattr(limiter_file.files, "Mapping", refuse)
    with Store.open(path) as reader:
        next(reader.sampler(batch_size=4))
        told = limiter_of(reader)
        assert (told.samples, told.state) == (0, "sampling waits")
    monkeypatch.undo()
    with Store.open(path, at="point") as past:
        next(past.sampler(batch_size=4))
        assert past.info().limiter is None


# -- its file ----------------------------------------------------------------------------------------------------


def test_a_backup_has_it(path: Path) -> None:
    with Store.create(path, SCHEMA, limiter=SampleToInsertRatio(2, min_size=10)) as store:
        with Store.open(path, mode="a", shard="other") as other:
            store.extend(rows(30))
            other.extend(rows(7))
            next(store.sampler(batch_size=16))
            store.backup(path.with_name("copy"))
        assert not arrowrb.verify(path).problems
    assert not arrowrb.verify(path.with_name("copy")).problems
    with Store.open(path.with_name("copy"), mode="a") as copy:
        told = limiter_of(copy)
        assert (told.inserts, told.samples, told.owed, told.participants) == (37, 16, 38, ())
        copy.extend(rows(1))
    with Store.open(path) as store:
        assert limiter_of(store).inserts == 37


@pytest.mark.parametrize("how", ["header", "rule", "counts", "shorter", "another", "link"])
def test_a_damaged_file_is_named_and_set_aside(path: Path, how: str) -> None:
    ratio = SampleToInsertRatio(1, min_size=10)
    with Store.create(path, SCHEMA, limiter=ratio) as store:
        store.extend(rows(30))
    file = path / "limiter"
    content = bytearray(file.read_bytes())
    if how == "another":
        Store.create(path.with_name("other"), SCHEMA, limiter=ratio).close()
        content = bytearray((path.with_name("other") / "limiter").read_bytes())
    elif how == "shorter":
        del content[1000:]
    elif how == "counts":
        content[2048 + 15] = 0x80
    elif how != "link":
        content[{"header": 20, "rule": 1030}[how]] ^= 4
    file.unlink()
    if how == "link":
        os.symlink("/dev/null", file)
    else:
        file.write_bytes(content)
    assert [each.file for each in arrowrb.verify(path).problems] == ["limiter"]
    for mode in ("r", "a"):
        with pytest.raises(arrowrb.StoreError):
            Store.open(path, mode=mode)
    repaired = arrowrb.repair(path)
    assert repaired.after
    assert repaired.num_transitions_lost == 0
    with Store.open(path, mode="a", limiter=ratio) as store:
        assert limiter_of(store).inserts == len(store) == 30


def test_any_damage_is_harmless_or_named(path: Path) -> None:
    with Store.create(path, SCHEMA, limiter=SampleToInsertRatio(1, min_size=10, patience=0.05)) as store:
        store.extend(rows(30))
        next(store.sampler(batch_size=4, name="learner"))
    file, rng = path / "limiter", np.random.default_rng(0)
    content = file.read_bytes()
    for _ in range(100):
        damaged = bytearray(content)
        for at in rng.integers(0, rng.choice([2048, 2112, 8192, len(content)]), 3).tolist():
            damaged[at] ^= 1 << int(rng.integers(8))
        file.unlink()
        file.write_bytes(damaged)
        found = arrowrb.verify(path).problems
        try:
            with Store.open(path) as reader:
                assert len(reader) == 30
                reader.sql("SELECT * FROM limiter, participants").fetchall()
                reader.info().rows()
                with contextlib.suppress(WaitError):
                    next(reader.sampler(batch_size=4))
        except CorruptError:
            assert found
    file.write_bytes(content)


def unmake(path: Path) -> None:
    """Leave what there is of a store before anybody has opened it."""
    for name in ("00000/lock", "00000/reserve", "00000/seeds", "00000/orders", "coordinator", "keeping"):
        (path / "shards" / name).unlink(missing_ok=True)
    (path / "store.json").unlink()


def test_a_half_made_create_is_completed(path: Path) -> None:
    """With the limiter of the second one."""
    Store.create(path, SCHEMA, limiter=SampleToInsertRatio(1)).close()
    unmake(path)
    with Store.create(path, SCHEMA, limiter=SampleToInsertRatio(2)) as store:
        assert limiter_of(store).samples_per_insert == 2
    unmake(path)
    with Store.create(path, SCHEMA) as store:
        assert store.info().limiter is None


def test_a_limiter_that_cannot_be_changed_leaves_no_lock(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limiter_file, "_PATIENCE_SECONDS", 0.1)
    Store.create(path, SCHEMA, limiter=SampleToInsertRatio(1)).close()
    lock = limiter_file.files.Lock(path / "shards/lock", path / "shards/maker.json", what="Made", remedy="Wait.")
    with pytest.raises(LockedError, match="being changed"):
        Store.open(path, mode="a", limiter=SampleToInsertRatio(2))
    lock.release()
    with Store.open(path, mode="a", limiter=SampleToInsertRatio(2)) as store:
        assert limiter_of(store).samples_per_insert == 2


def test_a_crash_while_the_rule_changes_leaves_the_one_before(path: Path) -> None:
    with Store.create(path, SCHEMA, limiter=SampleToInsertRatio(1)) as store:
        store_id = store._engine.file.store_id
    limiter_file.change(path, store_id, SampleToInsertRatio(2), durable=False)
    whole = (path / "limiter").read_bytes()
    torn = bytearray(whole)
    torn[512 + 20 : 1024] = bytes(492)  # the slot of the second rule
    (path / "limiter").write_bytes(torn)
    assert LimiterFile(path, store_id).rule.samples_per_insert == 1
    limiter_file.change(path, store_id, SampleToInsertRatio(3), durable=False)
    assert LimiterFile(path, store_id).rule.samples_per_insert == 3
    assert not list(limiter_file.find_damaged(path, store_id))


# -- processes ---------------------------------------------------------------------------------------------------

CHILD = """
import signal, sys, time
import numpy as np
from arrowrb.store import Store
from tests.test_limiter import rows
path, what, pause, size, count = sys.argv[1], sys.argv[2], float(sys.argv[3]), int(sys.argv[4]), int(sys.argv[5])
if what == "sample":
    with Store.open(path) as store, store.sampler(batch_size=size, seed=0, name="learner") as sampler:
        print("ready", flush=True)
        for _ in range(count):
            next(sampler)
            time.sleep(pause)
else:
    with Store.open(path, mode="a", shard=what) as store:
        print("ready", flush=True)
        for _ in range(count):
            store.extend(rows(size))
            time.sleep(pause)
"""


def child(path: Path, what: str, *, pause: float = 0.0, size: int = 16, count: int = 10**9) -> Any:
    """A process that samples, or writes a shard of this name; it has opened the store when this returns."""
    arguments = [sys.executable, "-c", CHILD, str(path), what, str(pause), str(size), str(count)]
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    if process.stdout.readline() != "ready\n":
        process.kill()
        raise AssertionError(process.communicate()[1])
    return process


@pytest.fixture
def ending() -> Iterator[list[Any]]:
    """Processes that are killed in the end, whatever happens."""
    processes: list[Any] = []
    yield processes
    for process in processes:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("slow", ["sampler", "writers"])
def test_processes_keep_to_the_ratio(path: Path, ending: list[Any], slow: str) -> None:
    """Whichever side is slower, and whoever comes first: the other one keeps its pace."""
    ratio = SampleToInsertRatio(4, min_size=200, tolerance=400, patience=LONG)
    Store.create(path, SCHEMA, limiter=ratio).close()
    write, sample = (0.0, 0.02) if slow == "sampler" else (0.02, 0.0)
    ending += [child(path, name, pause=write, size=10) for name in ("one", "two")]
    ending.append(child(path, "sample", pause=sample, size=32))
    with Store.open(path) as store:
        until(lambda: limiter_of(store).samples > 3000)
        for _ in range(20):
            told = limiter_of(store)
            assert -400 - 32 <= told.owed <= 400 + 2 * 4 * 10
            time.sleep(0.02)
        told = limiter_of(store)
        waits = {each.side: 0 for each in told.participants}
        for each in told.participants:
            assert each.alive
            waits[each.side] += each.num_waits
        assert len(told.participants) == 3
        assert told.ratio == pytest.approx(4, abs=450 * 4 / (told.inserts - 200))
        # Each side waited at first; then the fast one did, again and again.
        assert waits["collecting" if slow == "sampler" else "sampling"] > 5
        assert len(store) >= told.inserts


def test_who_waits_for_a_dead_sampler_is_told(path: Path, ending: list[Any]) -> None:
    ratio = SampleToInsertRatio(4, min_size=10, tolerance=100, patience=2.0)
    with Store.create(path, SCHEMA, limiter=ratio) as store:
        ending.append(child(path, "sample", pause=0.05, size=8))
        pid = ending[0].pid
        for _ in range(10):
            store.extend(rows(10))
        begin, told = time.monotonic(), ""
        killer = threading.Timer(0.5, ending[0].kill)
        killer.start()
        while not told and time.monotonic() - begin < LONG:
            try:
                store.extend(rows(10))
            except WaitError as error:
                told = str(error)
        assert f"Nobody samples now: process {pid} (learner) died" in told
        killer.join()
        ending[0].wait()
        (dead,) = [each for each in limiter_of(store).participants if not each.alive]
        assert (dead.side, dead.name, dead.pid, dead.waits_for) == ("sampling", "learner", pid, None)
        assert dead.num_rows == limiter_of(store).samples
        # Whoever comes in its place takes its place, and the counts go on.
        ending.append(child(path, "sample", size=8))
        store.extend(rows(10))
        assert all(each.alive for each in limiter_of(store).participants)


def test_who_waits_for_a_dead_writer_is_told(path: Path, ending: list[Any]) -> None:
    Store.create(path, SCHEMA, limiter=SampleToInsertRatio(1, min_size=10, tolerance=50, patience=2.0)).close()
    ending.append(child(path, "worker", pause=0.02, size=5))
    with Store.open(path) as store:
        sampler = store.sampler(batch_size=8)
        next(sampler)
        ending[0].kill()
        ending[0].wait()
        with pytest.raises(WaitError, match=rf"Nobody collects now: process {ending[0].pid} \(worker\) died"):
            again(lambda: next(sampler))
    with Store.open(path, mode="a", shard="worker") as store:  # knows all that was committed
        assert limiter_of(store).inserts == len(store)


def test_who_waits_for_one_that_does_nothing_is_told(path: Path, ending: list[Any]) -> None:
    Store.create(path, SCHEMA, limiter=SampleToInsertRatio(1, min_size=10, tolerance=50, patience=0.5)).close()
    ending.append(child(path, "worker", pause=LONG, size=20))
    with Store.open(path) as store:
        sampler = store.sampler(batch_size=40)
        until(lambda: limiter_of(store).inserts >= 10)
        next(sampler)
        next(sampler)
        with pytest.raises(WaitError, match=rf"Of 1 who could change that: process {ending[0].pid} \(worker\), last"):
            next(sampler)


def test_two_loops_of_one_thread_each_do_not_wait_for_each_other(path: Path) -> None:
    """Both would wait to commit, and nobody would sample."""
    ratio = SampleToInsertRatio(1, min_size=10, tolerance=20, patience=LONG)
    errors: list[str] = []
    together = threading.Barrier(2)

    def loop(store: Store) -> None:
        sampler = store.sampler(batch_size=1)
        store.extend(rows(10))
        next(sampler)
        together.wait(LONG)
        try:
            for _ in range(10):
                store.extend(rows(10))
        except WaitError as error:
            errors.append(str(error))

    with (
        Store.create(path, SCHEMA, limiter=ratio) as one,
        Store.open(path, mode="a", shard="other") as other,
    ):
        threads = [threading.Thread(target=loop, args=(store,)) for store in (one, other)]
        begin = time.monotonic()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(LONG)
        assert time.monotonic() - begin < LONG / 2
        assert errors
        assert all("or others that wait as it does" in each for each in errors)


def test_counts_survive_kills(path: Path, ending: list[Any]) -> None:
    """Samplers that are killed at any moment: what was handed out is counted, but for the batch of that moment."""
    Store.create(path, SCHEMA, limiter=SampleToInsertRatio(1000, tolerance=1e9)).close()
    with Store.open(path, mode="a") as store:
        store.extend(rows(100))
        last = 0
        for _ in range(4):
            process = child(path, "sample", size=16)
            ending.append(process)
            until(lambda least=last + 100: limiter_of(store).samples > least)
            process.kill()
            process.wait()
            told = limiter_of(store)
            (dead,) = [each for each in told.participants if each.side == "sampling"]
            assert not dead.alive
            assert 0 <= told.samples - last - dead.num_rows <= 16
            last = told.samples
        assert last % 16 == 0


def test_places_run_out(path: Path) -> None:
    """Who finds none counts and obeys all the same."""
    with Store.create(path, SCHEMA, limiter=SampleToInsertRatio(1, tolerance=1e9)) as store:
        store.extend(rows(10))
        samplers = [store.sampler(batch_size=1) for _ in range(SLOTS + 5)]
        for sampler in samplers:
            next(sampler)
        told = limiter_of(store)
        assert (told.samples, len(told.participants)) == (SLOTS + 5, SLOTS)
        for sampler in samplers:
            sampler.close()
        assert [each.side for each in limiter_of(store).participants] == ["collecting"]
        del sampler, samplers
        next(store.sampler(batch_size=1))


def test_a_forked_child_samples_in_its_own_name(path: Path) -> None:
    with Store.create(path, SCHEMA, limiter=SampleToInsertRatio(1, tolerance=1e9)) as store:
        store.extend(rows(10))
        sampler = store.sampler(batch_size=4)
        next(sampler)
        pid = os.fork()
        if pid == 0:
            try:
                next(sampler)
                names = {each.pid for each in limiter_of(store).participants if each.side == "sampling"}
                os._exit(0 if names == {os.getpid(), os.getppid()} else 1)
            finally:
                os._exit(2)
        assert os.waitpid(pid, 0)[1] == 0
        told = limiter_of(store)
        assert told.samples == 8
        assert {each.num_rows for each in told.participants if each.side == "sampling"} == {4}


def test_single_instructions() -> None:
    cell = np.zeros(2, np.int64)
    address = cell.ctypes.data + 8

    def add() -> None:
        for _ in range(20_000):
            kernels.add_to(address, 3)

    threads = [threading.Thread(target=add) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert cell.tolist() == [0, 240_000]
    kernels.raise_to(address, 5)
    kernels.raise_to(address, 250_000)
    assert not kernels.take_over(address, 0, 7)
    assert kernels.take_over(address, 250_000, 7)
    assert cell[1] == 7
