"""Make the tiny store of this version, with a note of what is in it, into `store-VERSION.zip`."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch

import arrowrb
from arrowrb.engine import segments
from arrowrb.sizing import SegmentShape
from arrowrb.store import Store
from tests.test_sql import rich_schema, write_rich
from tests.test_tiers import create, reopen, settle

HERE = Path(__file__).parent
SEGMENT_ROWS, BLOCK_ROWS = 64, 8


def make(path: Path) -> None:
    """Every type of column, in open, sealed, cold and dropped segments, with seeds, and points; closed in order."""
    rng = np.random.default_rng(0)
    segments.shape_segment = lambda **_: SegmentShape(SEGMENT_ROWS, BLOCK_ROWS)
    with create(path, rich_schema(), max_rows=500, hot_rows=1) as store:
        for number in range(14):
            write_rich(store, rng, 50, lane=number % 3)
            settle(store)
    with reopen(path, hot_rows=1) as store:
        _record(store)
        sampler = store.sampler(batch_size=4, seed=1, name="main")
        next(sampler)
        tensors = {"weight": np.arange(6, dtype=np.float32)}
        store.checkpoint("kept", tensors=tensors, state={"steps": (1, 2)}, keep=True)
        write_rich(store, rng, 50, lane=1)
        settle(store)


class _Spaces(gymnasium.Env[Any, Any]):
    observation_space = rich_schema().observation_space
    action_space = rich_schema().action_space


def _record(store: Store) -> None:
    """An episode that was reset with a seed."""
    space = _Spaces.observation_space
    space.seed(3)
    recorder = store.recorder(_Spaces())
    brain = {"brain": torch.ones((), dtype=torch.bfloat16)}
    recorder.reset(space.sample(), {}, seed=77, extras=brain)
    extras: dict[str, Any] = {"flag": True, "flags": np.ones(3, np.bool_), "big": 5, **brain}
    extras["wide"] = torch.ones(2, 2, dtype=torch.bfloat16)
    recorder.step(_Spaces.action_space.sample(), space.sample(), 1.0, True, False, {}, extras)


def describe(store: Store) -> dict[str, Any]:
    """What is in it: a digest of every column of every row, episodes, and points."""
    ids = store.sql("SELECT row_id FROM transitions ORDER BY row_id").arrow()["row_id"].to_numpy()
    columns = list(store.gather(ids[:1], columns=_leaves(store)))
    batch = store.gather(ids, columns=columns)
    digests = {name: hashlib.sha256(_bytes(batch[name])).hexdigest() for name in columns}
    episodes = "SELECT episode_id, lane, seed, length, ended_by, complete FROM episodes ORDER BY episode_id"
    return {
        "num_transitions": len(store),
        "row_ids": hashlib.sha256(ids.astype(np.int64).tobytes()).hexdigest(),
        "columns": digests,
        "episodes": [list(row) for row in store.sql(episodes).fetchall()],
        "points": [[point.name, point.num_transitions, point.keep] for point in store.checkpoints()],
        "segments": store.info().num_segments,
    }


def _leaves(store: Store) -> list[str]:
    schema = store.schema
    names = [column.name for column in schema.columns if column.name not in ("ordinal", "time", "kind")]
    return [*names, *(f"next_{column.name}" for column in schema.observation_columns)]


def _bytes(tensor: Any) -> bytes:
    return bytes(tensor.contiguous().view(torch.uint8).numpy().tobytes())


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "whole").mkdir()
        make(Path(folder) / "whole" / "store")
        for name in ("lock", "reserve"):
            (Path(folder) / "whole/store/shards/00000" / name).unlink(missing_ok=True)
        with arrowrb.Store.open(Path(folder) / "whole" / "store") as store:
            text = json.dumps(describe(store), indent=1)
        (Path(folder) / "whole" / "holds.json").write_text(text)
        made = shutil.make_archive(os.fspath(HERE / f"store-{arrowrb.__version__}"), "zip", Path(folder) / "whole")
    print(f"{made}: {Path(made).stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
