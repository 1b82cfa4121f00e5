"""What an import refuses, because rows would be joined that do not belong together, or would vanish."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from gymnasium import spaces
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import arrowrb
from arrowrb.errors import ArrowRBError, ColumnError, OptionError, StoreError
from arrowrb.importing import filling
from arrowrb.importing.order import Order
from arrowrb.store import Store

EVERYTHING = "SELECT episode_id, observation, next_observation FROM transitions ORDER BY ordinal"


def rows(
    observation: list[int],
    *,
    ids: list[int] | None = None,
    step: list[int] | None = None,
    done: list[bool | None] | None = None,
    reward: list[float | None] | None = None,
    lane: list[int] | None = None,
) -> pa.Table:
    count = len(observation)
    given = {"episode_id": ids, "step": step, "terminated": done, "lane": lane}
    return pa.table(
        {
            "observation": pa.array(observation, pa.int64()),
            "action": pa.array([0.0] * count),
            "reward": pa.array([0.0] * count if reward is None else reward, pa.float64()),
            **{name: pa.array(values) for name, values in given.items() if values is not None},
        }
    )


def import_files(tmp_path: Path, *tables: pa.Table, **options: Any) -> tuple[int, list[tuple[Any, ...]]]:
    """How many were left out, and what the store holds: (episode, observation, next)."""
    (tmp_path / "data").mkdir(exist_ok=True)
    for number, table in enumerate(tables):
        pq.write_table(table, tmp_path / f"data/{number}.parquet")
    done = arrowrb.import_parquet(tmp_path / "data", tmp_path / "store", **options)
    with Store.open(tmp_path / "store") as store:
        return done.num_left_out, store.sql(EVERYTHING).fetchall()


def refused(tmp_path: Path, text: str, *tables: pa.Table, **options: Any) -> None:
    with pytest.raises(ColumnError, match=text):
        import_files(tmp_path, *tables, **options)
    assert os.listdir(tmp_path) == ["data"]


def test_ids_that_start_anew_in_each_file(tmp_path: Path) -> None:
    refused(tmp_path, r"Row 0 of .*1\.parquet: episode 0 is that of the last row of", *[rows([1, 2], ids=[0, 0])] * 2)
    refused(tmp_path, "episode 0 comes again", *[rows([1, 2], ids=[0, 1])] * 2)
    refused(tmp_path, "back to 0", *[rows([1, 2], ids=[0, 0], step=[0, 1])] * 2)
    refused(tmp_path, "goes on after its end", *[rows([1, 2], ids=[0, 0], done=[False, True])] * 2)
    refused(tmp_path, "goes on after a row whose reward", *[rows([1, 2], ids=[0, 0], reward=[1.0, None])] * 2)
    # One by one they are kept apart; an episode that goes on in the next file is one where steps say so.
    for file in sorted((tmp_path / "data").iterdir()):
        target: Any = (
            tmp_path / "store" if not (tmp_path / "store").exists() else Store.open(tmp_path / "store", mode="a")
        )
        arrowrb.import_parquet(file, target)
        if isinstance(target, Store):
            assert target.sql(EVERYTHING).fetchall() == [(0, 1, 2), (1, 1, 2)]
            target.close()


def test_an_episode_goes_on_in_the_next_file_where_steps_say_so(tmp_path: Path) -> None:
    first, second = rows([1, 2], ids=[0, 0], step=[0, 1]), rows([3, 4], ids=[0, 0], step=[2, 3])
    assert import_files(tmp_path, first, second) == (1, [(0, 1, 2), (0, 2, 3), (0, 3, 4)])


def test_files_end_episodes_where_nothing_numbers_them(tmp_path: Path) -> None:
    tables = [rows([1, 2], done=[False, False]), rows([3, 4], done=[False, True])]
    assert import_files(tmp_path, *tables) == (2, [(0, 1, 2), (1, 3, 4)])
    whole = [
        table.append_column("next_observation", pa.array(behind))
        for table, behind in zip(tables, ([2, 3], [4, 5]), strict=True)
    ]
    for number, table in enumerate(whole):
        pq.write_table(table, tmp_path / f"data/{number}.parquet")
    arrowrb.import_parquet(tmp_path / "data", tmp_path / "transitions")
    with Store.open(tmp_path / "transitions") as store:
        assert store.sql("SELECT episode_id, count(*) FROM transitions GROUP BY 1 ORDER BY 1").fetchall() == [
            (0, 2),
            (1, 2),
        ]


def test_numbered_steps_tell_episodes_apart_that_nothing_else_does(tmp_path: Path) -> None:
    table = rows([1, 2, 3, 4], step=[0, 1, 0, 1], done=[False, False, False, False])
    assert import_files(tmp_path, table) == (2, [(0, 1, 2), (1, 3, 4)])


def test_rows_that_are_not_in_order(tmp_path: Path) -> None:
    refused(tmp_path, "episode 0 comes again", rows([1, 5, 2, 6], ids=[0, 1, 0, 1]))
    refused(tmp_path, "from step 1 back to 0", rows([2, 1], ids=[0, 0], step=[1, 0]))
    refused(tmp_path, "from step 0 back to 0", rows([1, 1], ids=[0, 0], step=[0, 0]))
    refused(tmp_path, "goes from step 0 to 4.*leave them out", rows([1, 2, 3], ids=[0, 0, 0], step=[0, 4, 8]))
    refused(tmp_path, "Is episode_id the right column", rows([1, 2, 3], ids=[0, 1, 2]))
    refused(tmp_path, "in lane 1, and in lane 0 too", rows([1, 2], ids=[0, 0], lane=[0, 1]))
    for lane in (-1, 65_536):
        refused(tmp_path, f"'lane' has the value {lane}", rows([1, 2], ids=[0, 1], lane=[0, lane]))
    refused(tmp_path, "'step' has the value -1", rows([1, 2], ids=[0, 1], step=[0, -1]))
    # A column that is not to be taken; a step that is missing in between is counted.
    table = rows([1, 2, 3], ids=[0, 0, 0], step=[0, 4, 8])
    assert import_files(tmp_path, table, columns={"step": None}) == (1, [(0, 1, 2), (0, 2, 3)])
    os.rename(tmp_path / "store", tmp_path / "other")
    table = rows([1, 2, 4, 5], ids=[0, 0, 0, 0], step=[0, 1, 3, 4])
    assert import_files(tmp_path, table) == (2, [(0, 1, 2), (0, 4, 5)])


def test_rewards_that_lie_one_row_late(tmp_path: Path) -> None:
    late: list[float | None] = [None, 1.0, 2.0]
    text = "goes on after a row whose reward"
    refused(tmp_path, text, rows([1, 2, 3], ids=[0, 0, 0], reward=late))
    refused(tmp_path, text, rows([1, 2, 3], ids=[0, 0, 0], reward=[1.0, None, 2.0]))
    done: list[bool | None] = [False, False, True]
    refused(tmp_path, "no final observation", rows([1, 2, 3], done=done, reward=late))
    refused(tmp_path, "no final observation", rows([1, 2, 3, 4], done=[*done, None], reward=[1.0, None, None, 2.0]))
    table = rows([1, 2, 3], done=[False, True, None], reward=[1.0, 2.0, None])
    assert import_files(tmp_path, table) == (0, [(0, 1, 2), (0, 2, 3)])


@given(data=st.data())
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_order_against_a_model(data: Any) -> None:
    """Whether rows are refused does not depend on how they are cut into tables, and agrees with plain Python."""
    numbered, stepped = data.draw(st.booleans()), data.draw(st.booleans())
    record = st.tuples(st.integers(0, 1), st.integers(0, 2), st.integers(0, 3), st.booleans(), st.booleans())
    drawn = data.draw(st.lists(record, max_size=7))
    file = sorted(data.draw(st.lists(st.integers(0, 1), min_size=len(drawn), max_size=len(drawn))))

    def has_error() -> bool:
        last: dict[int, int] = {}
        begun: dict[int, int] = {}
        for at, (lane, episode, step, _, final) in enumerate(drawn):
            before = last.get(lane)
            last[lane] = at
            if not numbered:
                apart = before is None or file[before] != file[at]
                if final and (apart or drawn[before][4]):  # type: ignore[index]
                    return True
            elif before is None or drawn[before][1] != episode:
                if episode in begun:
                    return True
                begun[episode] = lane
            else:
                over = (drawn[before][3] and not final) or drawn[before][4]
                if over or (step <= drawn[before][2] if stepped else file[before] != file[at]):
                    return True
        return False

    order, refused, at = Order(follows=True, trusted=False), False, 0
    while at < len(drawn) and not refused:
        most = len([each for each in file[at:] if each == file[at]])
        size = data.draw(st.integers(1, most))
        part = drawn[at : at + size]
        table = rows(
            [0] * len(part),
            ids=[each[1] for each in part] if numbered else None,
            step=[each[2] for each in part] if stepped else None,
            done=[each[3] for each in part],
            reward=[None if each[4] else 1.0 for each in part],
            lane=[each[0] for each in part],
        )
        try:
            order.check(table, Path(str(file[at])))
        except ColumnError:
            refused = True
        at += size
    assert refused == has_error()


def test_numbers_that_a_vector_does_not_hold(tmp_path: Path) -> None:
    table = rows([1, 2, 3], ids=[0, 0, 0]).append_column("big", pa.array([1, 2, 2**53 + 1]))
    columns = {"observation": ["reward", "big"]}
    refused(tmp_path, "does not hold all", table, columns=columns)
    table = table.set_column(table.num_columns - 1, "big", pa.array([1, 2, 2**63 + 5], pa.uint64()))
    refused(tmp_path, "does not hold all", table, columns={"observation": ["observation", "big"]})
    table = table.set_column(table.num_columns - 1, "big", pa.array([1, 2, 2**53]))
    import_files(tmp_path, table, columns=columns)
    with Store.open(tmp_path / "store") as store:
        assert store.schema.observation_space.shape == (2,)
    arrowrb.import_parquet(tmp_path / "data", tmp_path / "one", columns={"observation": ["big"]})
    with Store.open(tmp_path / "one") as store:
        assert store.schema.observation_space == spaces.Box(-(2**63), 2**63 - 1, (1,), np.int64)


def test_wrong_options(tmp_path: Path) -> None:
    pq.write_table(rows([1, 2, 3], ids=[0, 0, 0]), tmp_path / "data.parquet")
    with pytest.raises(OptionError, match="source is empty"):
        arrowrb.import_parquet("", tmp_path / "store")
    arrowrb.import_parquet(tmp_path / "data.parquet", tmp_path / "store")
    with Store.open(tmp_path / "store", mode="a") as store:
        with pytest.raises(OptionError, match="extras has 'lane'"):
            arrowrb.import_parquet(tmp_path / "data.parquet", store, extras=["lane"])
        store.export(tmp_path / "out")
        with pytest.raises(OptionError, match="extras has 'lane'"):
            arrowrb.import_parquet(tmp_path / "out", tmp_path / "new", extras=["lane"])
        with pytest.raises(OptionError, match="extras has 'lane'"):
            arrowrb.import_parquet(tmp_path / "data.parquet", tmp_path / "new", extras=["lane"], schema=store.schema)
        for target in (5, None, np.zeros(2), "\0"):
            with pytest.raises(OptionError, match="target is"):
                arrowrb.merge([store], target)  # type: ignore[arg-type]
    for sources in (b"path", np.zeros(2), {}):
        with pytest.raises(OptionError, match="sources is"):
            arrowrb.merge(sources, tmp_path / "new")
    table = rows([1, 2], ids=[0, 0]).rename_columns(["observation.a", "action", "reward", "episode_id"])
    pq.write_table(table.append_column("observation.a.b", pa.array([1, 2])), tmp_path / "data.parquet")
    with pytest.raises(ColumnError, match="one is within the other"):
        arrowrb.import_parquet(tmp_path / "data.parquet", tmp_path / "new")
    os.mkfifo(tmp_path / "pipe")
    failed: list[BaseException] = []

    def import_pipe() -> None:
        try:
            arrowrb.import_parquet(tmp_path / "pipe", tmp_path / "new")
        except StoreError as error:
            failed.append(error)

    thread = threading.Thread(target=import_pipe, daemon=True)
    thread.start()
    thread.join(20)
    assert len(failed) == 1
    assert "a pipe or a device" in str(failed[0])


def test_ids_that_do_not_fit_behind_those_of_the_store(tmp_path: Path) -> None:
    pq.write_table(rows([1, 2, 3], ids=[2**62 - 1] * 3), tmp_path / "data.parquet")
    arrowrb.import_parquet(tmp_path / "data.parquet", tmp_path / "store")
    with (
        Store.open(tmp_path / "store", mode="a") as store,
        pytest.raises(ColumnError, match="behind which these come"),
    ):
        arrowrb.import_parquet(tmp_path / "data.parquet", store)


def test_a_refused_import_leaves_no_folders(tmp_path: Path) -> None:
    pq.write_table(rows([1, 2], ids=[0, 0], step=[1, 0]), tmp_path / "data.parquet")
    (tmp_path / "there").mkdir()
    with pytest.raises(ColumnError):
        arrowrb.import_parquet(tmp_path / "data.parquet", tmp_path / "there/a/b/store")
    assert os.listdir(tmp_path / "there") == []


def test_a_full_disk_says_that_nothing_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fill(*arguments: object, **options: object) -> None:
        raise arrowrb.FullError(28, "No room left. Nothing committed is lost", "x")

    pq.write_table(rows([1, 2], ids=[0, 0]), tmp_path / "data.parquet")
    monkeypatch.setattr(filling.Filler, "add", fill)
    with pytest.raises(arrowrb.FullError, match="Nothing of it is kept") as caught:
        arrowrb.import_parquet(tmp_path / "data.parquet", tmp_path / "store")
    assert isinstance(caught.value, ArrowRBError)
    assert os.listdir(tmp_path) == ["data.parquet"]
