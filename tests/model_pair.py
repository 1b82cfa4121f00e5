"""A store and its model, side by side: random writing, and checks of all that can be read."""

from __future__ import annotations

import shutil
import zlib
from pathlib import Path

import numpy as np
import pytest

from arrowrb.engine import Engine, WriterOptions, create_store, tables
from arrowrb.errors import RowError
from arrowrb.events import BEGIN, CONTINUE, Events
from arrowrb.loader import Loader
from arrowrb.manifest import FileEntry
from arrowrb.retention import Limits
from arrowrb.samplers import ROW, Reading, generator_state
from arrowrb.store import Store
from tests.lanes import draw_lanes
from tests.model import (
    CONTINUED,
    CUT,
    FINAL,
    OUTCOME,
    SCHEMA,
    TRANSITION,
    Model,
    Row,
    as_batch,
    committed,
    of_batch,
    random_observations,
    random_outcomes,
    read_raw,
    read_segments,
    row_bytes,
)


class Pair:
    """A store, its model, and the row ids that the store gave for the model's transitions."""

    def __init__(self, path: Path, seed: int, num_lanes: int, limits: Limits | None = None) -> None:
        self.path = path
        self.limits = limits or Limits()
        self.rng = np.random.default_rng(seed)
        self.num_lanes = num_lanes
        self.model = Model()
        self.row_ids: list[int] = []
        self.held: list[tuple] = []
        create_store(path, SCHEMA)
        self.store = self._open()
        self.reader = Store.open(path)

    def _open(self) -> Store:
        """With limits that users may not set so low."""
        return Store(Engine(self.path, writable=True, options=WriterOptions(None, True, self.limits)))

    # -- writing

    def extend(self, count: int, *, ids: bool, contiguous: bool, how: str) -> None:
        rng, model = self.rng, self.model
        lanes = draw_lanes(rng, self.num_lanes, count)
        observation, outcome = random_observations(rng, count), random_outcomes(rng, count)
        following = random_observations(rng, count)
        last = {lane: now.observation for lane, now in model.running.items()}
        for i, lane in enumerate(lanes.tolist()):  # most rows go on where their lane is
            if lane in last and rng.random() < 0.8:
                _set(observation, i, last[lane])
            last.pop(lane, None)
            if not (outcome[0][i] or outcome[1][i]):
                last[lane] = row_bytes(following, i)
        episode = step = None
        if ids:
            episode, step = self._ids(lanes, outcome)
        self.external(observation, following, outcome, lanes, episode, step, contiguous=contiguous, how=how)

    def external(self, observation, following, outcome, lanes, episode, step, *, contiguous=True, how="extend"):
        """The same rows into the store and into the model."""
        count = len(lanes)
        batch = as_batch(observation, following, outcome)
        if episode is not None:
            batch |= {"episode_id": episode, "step": step}
        if how == "add":
            one = {name: _take(value, 0) for name, value in batch.items()}
            got = [self.store.add(**one, lane=int(lanes[0]), contiguous=contiguous)]
        else:
            got = self.store.extend(batch, lane=lanes, contiguous=contiguous).tolist()
        self.row_ids += got
        for i in range(count):
            self.model.external(
                int(lanes[i]),
                row_bytes(observation, i),
                row_bytes(following, i),
                row_bytes(outcome, i),
                bool(outcome[0][i] or outcome[1][i]),
                episode=None if episode is None else int(episode[i]),
                step=None if step is None else int(step[i]),
                contiguous=contiguous,
            )

    def _ids(self, lanes, outcome):
        """Ids that mostly say what is so, and sometimes start something else."""
        now = {lane: (each.episode, each.step) for lane, each in self.model.running.items()}
        fresh = self.model.next_episode
        episode, step = np.empty(len(lanes), np.int64), np.empty(len(lanes), np.int64)
        for i, lane in enumerate(lanes.tolist()):
            if lane not in now or self.rng.random() < 0.1:
                fresh += int(self.rng.integers(0, 3))
                now[lane] = (fresh, int(self.rng.integers(0, 3)))
            episode[i], step[i] = now[lane]
            now[lane] = (episode[i], step[i] + 1)
            if outcome[0][i] or outcome[1][i]:
                del now[lane]
        return episode, step

    def record(self, num_steps: int) -> None:
        """Steps of a vector of lanes, handed over as recorders do: arrived observations [T+1, L], finals aside."""
        rng, model = self.rng, self.model
        lanes = np.flatnonzero(rng.random(self.num_lanes) < 0.7)
        if lanes.size == 0:
            return
        arrived = random_observations(rng, (num_steps + 1) * lanes.size)
        outcome = random_outcomes(rng, num_steps * lanes.size)
        n = num_steps * lanes.size
        final = random_observations(rng, n)
        index = np.arange(n)
        ended = (outcome[0] | outcome[1]).astype(bool)
        begin = np.full(n, CONTINUE, np.uint8)
        for i, lane in enumerate(lanes.tolist()):
            if lane not in model.running or rng.random() < 0.5:
                begin[i] = BEGIN
        begin[lanes.size :][ended[: n - lanes.size]] = BEGIN
        following = np.where(ended, ~index, index + lanes.size)
        events = Events(
            lane=np.tile(lanes, num_steps).astype(np.int64),
            begin=begin,
            observation=index.copy(),
            next_observation=following,
            row=index.copy(),
            episode_id=np.full(n, -1, np.int64),
            step=np.full(n, -1, np.int64),
            time=np.full(n, 7, np.int64),
            policy_version=np.zeros(n, np.int64),
            arrived=tuple(arrived),
            final=tuple(final),
            outcome=tuple(outcome),
        )
        self.row_ids += self.store._engine.ingest(events).tolist()
        first = len(model.transitions)
        for i in range(n):
            lane = int(events.lane[i])
            if begin[i] == BEGIN:
                model.begin(lane, row_bytes(arrived, i))
            source, at = (final, i) if ended[i] else (arrived, i + lanes.size)
            model.step(lane, row_bytes(source, at), row_bytes(outcome, i), bool(ended[i]))
        made = model.transitions[first:]
        assert events.episode_id.tolist() == [row.episode for row in made]
        assert events.step.tolist() == [row.step for row in made]

    def fail(self, at: int, kind: type[BaseException]) -> None:
        """A commit that breaks when it asks for its n-th segment leaves nothing behind."""
        shard = self.store._engine.writer_shard
        need, calls = shard.writer._need_segment, []

        def breaking(*arguments):
            calls.append(arguments)
            if len(calls) == at:
                raise kind("as asked for")
            return need(*arguments)

        shard.writer._need_segment = breaking
        rng, count = self.rng, min(60 * self.num_lanes, 200)
        batch = as_batch(random_observations(rng, count), random_observations(rng, count), random_outcomes(rng, count))
        with pytest.raises(kind, match="as asked for"):  # noqa: PT012
            for _ in range(40):
                lanes = draw_lanes(rng, self.num_lanes, count)
                got = self.store.extend(batch, lane=lanes, contiguous=False)
                self._independent(batch, lanes, got)
        shard.writer._need_segment = need

    def _independent(self, batch, lanes, got) -> None:
        observation = [batch["observation"]["a"], batch["observation"]["b"], batch["legal"]]
        following = [batch["next_observation"]["a"], batch["next_observation"]["b"], batch["next_legal"]]
        outcome = [batch[name] for name in OUTCOME]
        self.row_ids += got.tolist()
        for i, lane in enumerate(lanes.tolist()):
            ended = bool(outcome[0][i] or outcome[1][i])
            rows = [row_bytes(columns, i) for columns in (observation, following, outcome)]
            self.model.external(lane, *rows, ended, contiguous=False)

    def hold(self) -> None:
        """Keep a snapshot, and what it shows, across all that follows."""
        for store in (self.store, self.reader):
            self.held.append((store._engine.snapshot(), store.schema, len(self.row_ids)))

    def check_held(self) -> None:
        """Held snapshots show what they showed, also when rows and segments came and the store was closed."""
        for snapshot, schema, count in self.held:
            assert snapshot.num_transitions == count
            ids = np.array(self.row_ids[:count], np.int64)
            batch = Loader(schema).load(snapshot, Reading({ROW: snapshot.locate(ids)}))
            expected = self.model.transitions[:count]
            assert of_batch(batch) == [(row.observation, row.outcome, row.following) for row in expected]
            if len(self.row_ids) > count:
                with pytest.raises(RowError):
                    snapshot.locate(np.array(self.row_ids[count : count + 1], np.int64))
            if count:
                drawn = snapshot.draw_uniform(generator_state(1), 64)
                assert set(drawn.row_ids.tolist()) <= set(ids.tolist())

    def reopen(self) -> None:
        self.store.close()
        self.model.cut()
        self.store = self._open()

    def crash(self) -> None:
        """Go on with what a writer that died would have left."""
        self.settle()
        left = self.path.with_name(f"{self.path.name}+")
        shutil.copytree(self.path, left, ignore=shutil.ignore_patterns("lock", "writer.json"))
        self.close()
        self.path = left
        self.model.cut()
        self.store, self.reader = self._open(), Store.open(left)

    def settle(self) -> None:
        """Wait for the writer's threads."""
        writer = self.store._engine.writer_shard
        writer.wait_for_threads()

    def close(self) -> None:
        self.store.close()
        self.reader.close()

    # -- checking

    def check(self, *, deep: bool) -> None:
        expected = self.model.transitions
        assert len(set(self.row_ids)) == len(self.row_ids) == len(expected)
        chosen = int(self.rng.integers(2))  # of one of the two all the rest, unless both are looked at whole
        for number, store in enumerate((self.store, self.reader)):
            assert len(store) == len(expected)
            if not deep and number != chosen:
                continue
            info = store.info()
            assert (info.num_episodes, info.num_breaks) == (self.model.num_episodes, self.model.num_breaks)
            self.check_rows(store, None if deep else 40)
            if expected:
                drawn = store.sample(32)
                known = dict(zip(self.row_ids, expected, strict=True))
                rows = [known[row_id] for row_id in drawn["row_id"].tolist()]
                assert of_batch(drawn) == [(row.observation, row.outcome, row.following) for row in rows]
        if deep:
            check_files(self)

    def check_rows(self, store: Store, most: int | None) -> None:
        expected = self.model.transitions
        chosen = np.arange(len(expected))
        if most is not None and chosen.size > most:
            chosen = self.rng.choice(chosen, most, replace=False)
        ids = np.array(self.row_ids, np.int64)[chosen]
        names = ["observation", "legal", "next_observation", "next_legal", *OUTCOME]
        batch = store.gather(ids, columns=[*names, "episode_id", "step", "lane"])
        system = {name: batch.pop(name) for name in ("episode_id", "step", "lane")}
        rows = [expected[place] for place in chosen.tolist()]
        assert of_batch(batch) == [(row.observation, row.outcome, row.following) for row in rows]
        assert system["episode_id"].tolist() == [row.episode for row in rows]
        assert system["step"].tolist() == [row.step for row in rows]
        assert system["lane"].tolist() == [row.lane for row in rows]


def _set(columns, index, content: bytes) -> None:
    place = 0
    for column in columns:
        size = column[index].nbytes
        column[index] = np.frombuffer(content[place : place + size], column.dtype).reshape(column[index].shape)
        place += size


def _take(value, index):
    if isinstance(value, dict):
        return {name: _take(each, index) for name, each in value.items()}
    return value[index]


def check_files(pair: Pair) -> None:
    """The hot files by bare pyarrow: kinds, order, blocks, continuations, and the tables of sealed segments."""
    pair.settle()
    watermark = pair.store.info().num_rows
    segments = read_segments(pair.path)
    rows = committed(segments, watermark)
    assert [ordinal for ordinal, _, _ in rows] == list(range(1, watermark + 1))
    found, lanes_of_blocks, newest, waiting = [], {}, {}, {}
    for _, segment, position in rows:
        system = segment.system
        lane = int(system["lane"][position])
        block = (segment.base, position // segment.block_rows)
        assert lanes_of_blocks.setdefault(block, lane) == lane
        kind = int(system["kind"][position])
        episode, step = int(system["episode_id"][position]), int(system["step"][position])
        observation = segment.observation[position]
        if lane in waiting:  # behind a tail of kind 3: its copy in another block
            before, told = waiting.pop(lane)
            assert before != block
            assert told == (episode, step, observation)
            assert position % segment.block_rows == 0
        elif position % segment.block_rows:
            assert newest[block] == position - 1  # a block fills from its start
        newest[block] = position
        if kind == CONTINUED:
            waiting[lane] = (block, (episode, step, observation))
            continue
        outcome = following = None
        if kind == TRANSITION:
            outcome = segment.outcome[position]
            assert (position + 1) // segment.block_rows == block[1]
            following = segment.observation[position + 1]
        assert kind in (TRANSITION, FINAL, CUT)
        found.append(Row(kind, lane, episode, step, observation, outcome, following))
    assert found == pair.model.rows
    ids = [seg.base + p for _, seg, p in rows if seg.system["kind"][p] == TRANSITION]
    assert ids == pair.row_ids
    for segment in segments:
        outside = (segment.system["ordinal"] < 1) | (segment.system["ordinal"] > watermark)
        assert not segment.system["kind"][outside].any()
        if segment.entry["sealed"]:
            check_sealed(pair.path, segment, rows)


def check_blocks(blocks, segment, path) -> None:
    """Lanes, kinds and checksums of the blocks: every byte of every column, zeros where nothing is."""
    rows = segment.block_rows
    assert b"".join(blocks["kinds"].to_pylist()) == segment.system["kind"].tobytes()
    lanes = [segment.system["lane"][i * rows] if n else -1 for i, n in enumerate(blocks["rows"].to_pylist())]
    assert blocks["lane"].to_pylist() == lanes
    raw = read_raw(path, segment.entry)
    kinds = raw["kind"][:, 0]
    for name, values in raw.items():
        values[(kinds != TRANSITION) if name in OUTCOME else (kinds == 0)] = 0
        found = [zlib.crc32(values[i : i + rows].tobytes()) for i in range(0, len(values), rows)]
        assert blocks["crc32." + name].to_pylist() == found


def check_sealed(store: Path, segment, rows) -> None:
    """Block and run tables of a sealed segment against its rows."""
    entry, system = segment.entry, segment.system
    kinds, block_rows = system["kind"], segment.block_rows
    used = np.flatnonzero(kinds)
    assert entry["num_rows"] == used.size
    assert entry["num_transitions"] == int((kinds == TRANSITION).sum())
    assert entry["first_ordinal"] == system["ordinal"][used].min()
    assert entry["last_ordinal"] == system["ordinal"][used].max()
    folder = store / "shards" / "00000" / "segments"
    listed = [FileEntry(**entry[name]) for name in ("runs", "blocks")]
    runs, blocks = (tables.read_table(folder / file.name, file) for file in listed)
    following = {}
    last = {}
    for _, other, position in rows:
        lane = int(other.system["lane"][position])
        if lane in last:
            following[last[lane]] = other.base + position
        last[lane] = other.base + position
    assert blocks["rows"].to_pylist() == (kinds.reshape(-1, block_rows) != 0).sum(axis=1).tolist()
    check_blocks(blocks, segment, folder / entry["name"])
    covered = []
    for run in runs.to_pylist():
        first = run["row_id"] - segment.base
        places = range(first, first + run["num_rows"])
        covered += places
        assert len({int(system["episode_id"][p]) for p in places} | {run["episode_id"]}) == 1
        steps = range(run["first_step"], run["first_step"] + len(places))
        assert [int(system["step"][p]) for p in places] == list(steps)
        rewards = [np.frombuffer(segment.outcome[p], "<f8", 1, 10)[0] for p in places if kinds[p] == TRANSITION]
        assert len(rewards) == run["num_transitions"]
        np.testing.assert_allclose(run["return"], sum(rewards), rtol=1e-9, atol=1e-9)
        end = int(kinds[places[-1]])
        goes_on = following.get(run["row_id"] + run["num_rows"] - 1, -1) if end == CONTINUED else -1
        if goes_on >= 0 or end != CONTINUED:
            assert run["continuation"] == goes_on
            if end == CONTINUED:
                assert blocks["next_block"][first // block_rows].as_py() == goes_on
        flags = segment.outcome[places[-2]][:2] if end == FINAL else b""
        assert run["end"] == {CONTINUED: 5, CUT: 4, FINAL: sum(flags[i] << i for i in range(len(flags))), 1: 0}[end]
    assert covered == used.tolist()
