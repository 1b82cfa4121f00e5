"""How many bytes does a HalfCheetah-sized transition take, in arrowrb's files and in the peers' buffers?"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

import peers
from common import fill_store, halfcheetah_schema, halfcheetah_transitions, show


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    options = parser.parse_args(arguments)
    transitions = halfcheetah_transitions(options.rows)
    rows: list[tuple[object, ...]] = []
    with tempfile.TemporaryDirectory() as folder:
        with fill_store(Path(folder) / "store", transitions, halfcheetah_schema()) as store:
            written, allocated = store.sql("SELECT sum(num_rows), sum(rows) FROM segments").fetchall()[0]
            size = sum(file.stat().st_blocks * 512 for file in store.path.rglob("*") if file.is_file())
            row_bytes = sum(column.item_bytes for column in store.schema.columns)
            used = written * row_bytes / options.rows
            rows.append(
                ("arrowrb, rows written", f"{used:.1f}", f"{row_bytes} bytes a row, {written:,} rows with tails")
            )
            rows.append(
                (
                    "arrowrb, files on disk",
                    f"{size / options.rows:.1f}",
                    f"{allocated:,} rows allocated, and the next segment prepared",
                )
            )
        built, missing = peers.build(transitions, Path(folder) / "peers")
        yardstick = peers.numpy_arrays(transitions, Path(folder))
        rows += [(peer.name, f"{peer.num_bytes / options.rows:.1f}", peer.note) for peer in (yardstick, *built)]
        rows += [(name, "not installed", "") for name in missing]
    show(
        f"Bytes a transition: {options.rows:,} transitions, observation float32[17], action float32[6]",
        ("", "bytes", ""),
        rows,
        [
            "arrowrb stores each observation once, and beside it what the peers do not keep: arrival number, time,",
            "episode, lane, step, policy version and kind (37 bytes). The larger the observation, the nearer to half.",
        ],
    )


if __name__ == "__main__":
    main()
