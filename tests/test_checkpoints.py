"""Checkpoints: one point of rows, samplers and tensors, which is there whole, can be seen again, and gone on from."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from typer.testing import CliRunner

import arrowrb
from arrowrb import checkpoints, files, nested
from arrowrb.cli import app
from arrowrb.errors import (
    CorruptError,
    FullError,
    OptionError,
    ReadOnlyError,
    StoreNotFoundError,
)
from arrowrb.store import Store
from tests.plain_store import plain_batch, plain_schema
from tests.test_sql import rich_schema, write_rich
from tests.test_tiers import create, fill, reopen, settle, small_segments, tiers_of

__all__ = ["small_segments"]  # a fixture

VIEWS = ("transitions", "steps", "episodes")


def shown(store: Store) -> dict[str, list[str]]:
    """All that the views show, as text, in which NaN equals NaN."""
    return {
        view: [repr(row) for row in store.sql(f"SELECT * FROM {view} ORDER BY row_id").fetchall()] for view in VIEWS
    }


# -- values ----------------------------------------------------------------------------------------------------------

keys = st.text(max_size=4) | st.integers(-5, 5)
plain = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
numbers = st.sampled_from(["bool", "int8", "uint16", "int64", "uint64", "float16", "float32", "float64"])
arrays = st.builds(
    lambda shape, dtype: np.arange(np.prod(shape)).reshape(shape).astype(dtype),
    st.lists(st.integers(0, 3), max_size=2),
    numbers,
)
tensors = arrays.map(torch.from_numpy) | st.just(torch.full((2, 2), 1.5, dtype=torch.bfloat16).t())
values = st.recursive(
    plain | arrays | tensors | numbers.map(lambda dtype: np.dtype(dtype).type(1)),
    lambda each: (
        st.lists(each, max_size=3) | st.lists(each, max_size=3).map(tuple) | st.dictionaries(keys, each, max_size=3)
    ),
    max_leaves=12,
)


class Pair(NamedTuple):
    first: int
    second: int


def same(left: Any, right: Any) -> bool:
    if type(left) is not type(right):
        return False
    if isinstance(left, dict):
        return list(left) == list(right) and all(same(left[key], right[key]) for key in left)
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, torch.Tensor):
        return left.dtype == right.dtype and torch.equal(left, right)
    if isinstance(left, np.ndarray | np.generic):
        return left.dtype == right.dtype and np.array_equal(left, right)
    return bool(left == right or (left != left and right != right))


@given(value=values)
@settings(max_examples=200, deadline=None)
def test_nested_values_come_back_as_they_were(value: Any) -> None:
    held: dict[str, Any] = {}
    text = json.dumps(nested.encode(value, "value", held), allow_nan=False)
    assert same(nested.decode(json.loads(text), held), value)


def test_batches_that_are_drawn_ahead_are_kept_by_their_rows(tmp_path: Path) -> None:
    with create(tmp_path / "store") as store:
        fill(store, 100)
        sampler = store.sampler(batch_size=8, prefetch=3, device="cpu", name="learner")
        sampler.sample()
        store.checkpoint("a")
        with store._named.held() as states:
            kept = states()["learner"]["ahead"].tolist()
        assert kept == torch.cat([sampler.sample()["row_id"] for _ in range(3)]).tolist()


def test_what_cannot_be_kept(tmp_path: Path) -> None:
    ring: list[Any] = []
    ring.append(ring)
    with create(tmp_path / "store") as store:
        for wrong, text in (
            ({"a": {"b": object()}}, r"state\.a\.b is a object"),
            ({"a": {1.5: 2}}, r"state\.a has the key 1\.5"),
            ({"a": {"x", "y"}}, r"state\.a is a set"),
            (np.array(["a"]), "array of <U1"),
            (torch.eye(2).to_sparse(), "layout"),
            (torch.zeros(2, dtype=torch.complex128), "expected complex64"),
            (np.zeros(2, np.complex128), "only complex64"),
            (np.arange(3, dtype=">i4"), "byte order"),
            ({"a": [Pair(1, 2)]}, r"state\.a\.0 is a named tuple"),
            (ring, "holds itself"),
        ):
            with pytest.raises(OptionError, match=text):
                store.checkpoint("a", state=wrong)
        for name in ("", ".a", "a/b", "../a", "a" * 101, 5, None, "a\n"):
            with pytest.raises(OptionError, match="name is"):
                store.checkpoint(name)  # type: ignore[arg-type]
        assert store.checkpoints() == []
        with pytest.raises(StoreNotFoundError, match=r"no checkpoint 'a'. There are: none"):
            store.restore("a")
        with pytest.raises(StoreNotFoundError, match=r"no checkpoint\. Make one"):
            store.restore()


def test_an_agent_goes_on_exactly(tmp_path: Path) -> None:
    """Weights, moments, counters and generators; the next updates are the same ones, bit for bit."""

    def make() -> tuple[torch.nn.Module, torch.optim.Optimizer, np.random.Generator]:
        torch.manual_seed(0)
        network = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 1))
        return network, torch.optim.Adam(network.parameters()), np.random.default_rng(1)

    def train(network: torch.nn.Module, optimizer: torch.optim.Optimizer, random: Any, batches: Any, count: int) -> Any:
        for batch, _ in zip(batches, range(count), strict=False):
            loss = (network(batch["observation"] * random.normal()) - batch["reward"].float()[:, None]).pow(2).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return {name: value.clone() for name, value in network.state_dict().items()}

    with create(tmp_path / "store", hot_rows=1) as store:
        fill(store, 1000)
        network, optimizer, random = make()
        sampler = store.sampler(batch_size=32, seed=5, name="learner", prefetch=3)
        train(network, optimizer, random, sampler, 10)
        made = store.checkpoint(
            "step-10",
            tensors={"network": network.state_dict(), "optimizer": optimizer.state_dict()},
            state={"frames": 1000, "random": random.bit_generator.state, "torch": torch.get_rng_state()},
        )
        assert (made.name, made.num_transitions, made.keep) == ("step-10", 1000, False)
        expected = train(network, optimizer, random, sampler, 10)
    with safe_open(store.path / "checkpoints/step-10.safetensors", framework="pt") as file:
        assert "network.0.weight" in file.keys()  # noqa: SIM118
        assert "optimizer.state.0.exp_avg" in file.keys()  # noqa: SIM118
    for mode in ("r", "a"):
        with Store.open(store.path, mode=mode) as again:
            network, optimizer, random = make()
            weights, state = again.restore()
            network.load_state_dict(weights["network"])
            optimizer.load_state_dict(weights["optimizer"])
            random.bit_generator.state = state["random"]
            assert state["frames"] == 1000
            assert torch.equal(state["torch"], torch.get_rng_state()) or state["torch"].dtype == torch.uint8
            found = train(network, optimizer, random, again.sampler(batch_size=32, name="learner", prefetch=3), 10)
            assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("prefetch", [0, 1, 5])
def test_samplers_go_on_where_they_stood(tmp_path: Path, prefetch: int) -> None:
    def draw(sampler: Any, count: int) -> list[list[int]]:
        return [sampler.sample()["row_id"].tolist() for _ in range(count)]

    with create(tmp_path / "store", hot_rows=1) as store:
        fill(store, 500)
        sampler = store.sampler(batch_size=16, seed=1, name="a", prefetch=prefetch)
        draw(sampler, 7)
        store.checkpoint("x")
        expected = draw(sampler, 20)
        store.restore("x")  # the live one goes back
        assert draw(sampler, 20) == expected
        store.restore("x")
        store.checkpoint("y")  # before it has drawn what was drawn ahead
        with pytest.raises(OptionError, match="another sampler of this store has"):
            store.sampler(batch_size=16, name="a")
    with Store.open(store.path) as again:
        again.restore("y")
        with pytest.raises(OptionError, match="batch_size is 8"):
            again.sampler(batch_size=8, name="a")
        assert draw(again.sampler(batch_size=16, seed=99, name="a", prefetch=prefetch), 20) == expected
        assert draw(again.sampler(batch_size=16, seed=1, name="b"), 1) != expected[:1]


# -- rows ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hot_rows", [None, 1])
def test_a_point_is_seen_again(tmp_path: Path, hot_rows: int | None) -> None:
    """Whatever came later, and wherever the rows lie by then; beside a live writer and after it."""
    store = create(tmp_path / "store", rich_schema(), hot_rows=hot_rows)
    rng, expected, lengths = np.random.default_rng(1), {}, {}
    for number, lanes in enumerate([(), (0,), (3, 1, 0), (2, 2), (0, 3), (5,) * 9]):
        for lane in lanes:
            write_rich(store, rng, 37, lane)
        name = f"point-{number}"
        made = store.checkpoint(name)
        expected[name], lengths[name] = shown(store), len(store)
        assert made.num_transitions == len(store)

    def check() -> None:
        for name in expected:
            with Store.open(store.path, at=name) as past:
                assert len(past) == lengths[name], name
                for view, rows in shown(past).items():
                    assert rows == expected[name][view], (name, view)
                ids = past.sql("SELECT row_id FROM transitions").arrow()["row_id"].to_numpy()
                if ids.size:
                    past.gather(ids)
                    assert set(past.sample(200)["row_id"].tolist()) <= set(ids.tolist())
                    past.export(tmp_path / "out" / name, rows="steps")
                info = past.info()
                assert info.num_rows == past._engine.snapshot().records[0].watermark

    for lane in (0, 1, 5, 5):
        write_rich(store, rng, 37, lane)
    settle(store)
    check()
    newest = shown(store)
    store.close()
    os.rename(tmp_path / "out", tmp_path / "before")
    check()
    with reopen(store.path, hot_rows=1) as again:
        assert tiers_of(again)["cold"] > 3
        os.rename(tmp_path / "out", tmp_path / "middle")
        check()
        assert len(shown(again)["transitions"]) == len(newest["transitions"])
        assert [each.name for each in again.checkpoints()] == sorted(expected)
    with pytest.raises(OptionError, match="at is given"):
        Store.open(store.path, mode="a", at="point-1")
    with pytest.raises(StoreNotFoundError, match="There are: 'point-0'"):
        Store.open(store.path, at="point-9")


def test_a_point_follows_what_happens_to_its_rows(tmp_path: Path) -> None:
    """Held open while rows move and go."""
    with create(tmp_path / "store", hot_rows=1, max_rows=1000) as store:
        ids = fill(store, 500)
        store.checkpoint("x")
        with Store.open(store.path, at="x") as past:
            held = past.sql("SELECT count(*) FROM transitions")
            later = fill(store, 2000, seed=1)
            settle(store)
            assert 0 <= len(past) < 500
            assert held.fetchall() == [(500,)]
            assert past.sql("SELECT count(*) FROM transitions").fetchall() == [(len(past),)]
            assert past.sql("SELECT count(*) FROM transitions WHERE row_id > ?", [int(ids[-1])]).fetchall() == [(0,)]
            assert past.info().num_evicted == 500 - len(past)
        assert later[-1] > ids[-1]


@pytest.mark.parametrize("hot_rows", [None, 1])
def test_rows_are_kept(tmp_path: Path, hot_rows: int | None) -> None:
    store = create(tmp_path / "store", hot_rows=hot_rows, max_rows=1000)
    fill(store, 300)
    store.checkpoint("kept", keep=True)
    expected = shown(store)
    for seed in range(1, 5):
        fill(store, 1000, seed)
    settle(store)
    assert 1300 - 2 * 64 < len(store) <= 1300 + 64

    def check() -> None:
        with Store.open(store.path, at="kept") as past:
            for view in ("transitions", "steps"):
                assert shown(past)[view] == expected[view]
        assert arrowrb.verify(store.path)  # though what they lead to was dropped

    check()
    store.close()
    with reopen(store.path, hot_rows=hot_rows) as again:
        fill(again, 2000, 9)
        settle(again)
        check()
        assert again.maintain(dry_run=True) == []
        again.checkpoint("kept")  # replaced by one that does not keep
        fill(again, 1000, 10)
        settle(again)
        assert len(again) <= 1000
        again.checkpoint("more", keep=True)
        fill(again, 3000, 11)
        assert len(again) > 1500
        again.remove_checkpoint("more")
        fill(again, 100, 12)
        settle(again)
        assert len(again) <= 1000
        assert [each.name for each in again.checkpoints()] == ["kept"]
        assert again.verify()


# -- what goes wrong -------------------------------------------------------------------------------------------------


def test_one_is_replaced_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with create(tmp_path / "store") as store:
        fill(store, 100)
        store.checkpoint("a", tensors={"w": torch.ones(3)}, state=1)
        with monkeypatch.context() as patch:

            def full(path: Path, *arguments: Any, **options: Any) -> None:
                if path.suffix == ".safetensors":
                    raise FullError(28, "No room left", "x")
                publish(path, *arguments, **options)

            publish = files.publish
            patch.setattr(files, "publish", full)
            with pytest.raises(FullError):
                store.checkpoint("a", state=2, keep=True)
        assert store.restore("a")[1] == 1
        assert store._engine.writer_shard is not None
        assert store._engine.writer_shard.segments.limits.keep_below == 0
        store.checkpoint("a", state=2)
        assert store.restore("a") == (None, 2)
        (store.path / "checkpoints/.a.safetensors.0123456789ab.tmp").write_bytes(b"x")
    with Store.open(store.path) as reader:
        with pytest.raises(ReadOnlyError):
            reader.checkpoint("b")
        with pytest.raises(ReadOnlyError):
            reader.remove_checkpoint("a")
        assert reader.restore() == (None, 2)
    with Store.open(store.path, mode="a"):
        assert os.listdir(store.path / "checkpoints") == ["a.safetensors"]


def test_damaged_ones(tmp_path: Path) -> None:
    with create(tmp_path / "store") as store, create(tmp_path / "other") as other:
        fill(store, 100)
        expected = {"w": torch.arange(6.0).reshape(2, 3), "v": torch.arange(6).reshape(3, 2)}
        store.checkpoint("a", tensors=expected, state={"x": [1, (2, 3.5)]})
        path = store.path / "checkpoints/a.safetensors"
        whole = path.read_bytes()
        rng = np.random.default_rng(0)
        damaged = [whole[:size] for size in (0, 1, 8, 100, len(whole) // 2, len(whole) - 1)]
        damaged += [b"\xff" * 8 + whole[8:], whole + b"x", b"{}" * 100]
        for place in rng.integers(0, len(whole), 400).tolist():
            flipped = bytearray(whole)
            flipped[place] ^= 1 << int(rng.integers(8))
            damaged.append(bytes(flipped))
        refused = 0
        for content in damaged:
            path.write_bytes(content)
            try:
                weights, state = store.restore("a")
            except CorruptError as error:
                refused += "a.safetensors" in str(error)
            else:  # a space of its header's padding, or within the order of its keys
                assert state == {"x": [1, (2, 3.5)]}
                assert all(torch.equal(weights[name], expected[name]) for name in expected)
        assert refused > len(damaged) * 0.9
        path.write_bytes(whole)
        os.makedirs(other.path / "checkpoints")
        (other.path / "checkpoints/a.safetensors").write_bytes(whole)
        with pytest.raises(CorruptError, match="belongs to another store"):
            other.restore("a")
        os.rename(path, path.with_name("b.safetensors"))
        with pytest.raises(CorruptError, match="has another name"):
            store.restore("b")
        path.symlink_to(path.with_name("b.safetensors"))
        with pytest.raises(OSError, match=r"a\.safetensors"):
            store.restore("a")
        path.unlink()
        os.mkfifo(path)
        with pytest.raises(CorruptError, match="no regular file"):
            store.restore("a")


def test_a_mark_is_checked(tmp_path: Path) -> None:
    with create(tmp_path / "store") as store:
        fill(store, 10)
        good = store.checkpoint("a").marks[0]
        store_id = store._engine.file.store_id
        content = checkpoints.Content({}, None, None)
        for wrong in ({"watermark": -1}, {"shard": 1 << 20}, {"next_segment": 1 << 62}):
            mark = checkpoints.Mark(**{**{name: getattr(good, name) for name in good.__slots__}, **wrong})
            checkpoints.write(store.path, store_id, "a", (mark,), False, content)
            with pytest.raises(CorruptError, match=next(iter(wrong))):
                store.restore("a")


def test_older_rows_than_the_point_after_power_loss(tmp_path: Path) -> None:
    """The newest rows there are, where the store has fewer than the checkpoint speaks of."""
    with Store.create(tmp_path / "store", plain_schema()) as store:
        store.extend(plain_batch(50))
        mark = store.checkpoint("a").marks[0]
        marks = (checkpoints.Mark(0, mark.watermark + 1000, mark.num_transitions + 900, 500, 500, 0, 9),)
        checkpoints.write(store.path, store._engine.file.store_id, "b", marks, False, checkpoints.Content({}, 0, 0))
        with Store.open(store.path, at="b") as past:
            assert len(past) == 50
            assert shown(past) == shown(store)


def test_the_command_line_lists_them(tmp_path: Path) -> None:
    with create(tmp_path / "store") as store:
        fill(store, 100)
        store.checkpoint("a")
        fill(store, 50, 1)
        store.checkpoint("b", keep=True)

    def run(*arguments: str) -> str:
        result = CliRunner().invoke(app, ["info", str(store.path), *arguments])
        assert result.exit_code == 0, result.output
        return result.output

    assert "a: 100 transitions, 50 later" in run()
    assert "b: 150 transitions, 0 later, kept" in run()
    points = json.loads(run("--format", "json"))["checkpoints"]
    assert [(point["name"], point["num_transitions"], point["keep"]) for point in points] == [
        ("a", 100, False),
        ("b", 150, True),
    ]
    assert "a b" in run("--format", "csv")
