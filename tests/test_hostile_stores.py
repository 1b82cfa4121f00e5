"""Stores that somebody made to do harm, with checksums that are right: an error of ours, in little time and memory.

And what opening a store does at all: it runs no code that is in it, and opens no file outside.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import struct
import subprocess
import sys
import textwrap
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import arrowrb
from arrowrb import commits, files
from arrowrb.errors import ArrowRBError
from arrowrb.rows import Kind
from tests.plain_store import plain_schema
from tests.test_damage import SEGMENTS, SHARD, whole
from tests.test_tiers import small_segments

__all__ = ["small_segments", "whole"]  # fixtures

_MOST_SECONDS, _MOST_BYTES = 20, 500 << 20
Change = Callable[[Any], object]


def _manifest(change: Change) -> Callable[[Path], None]:
    """Another manifest, whose checksum is right."""

    def do(store: Path) -> None:
        path = store / SHARD / "manifest.json"
        header, body = (json.loads(line) for line in path.read_bytes().split(b"\n")[:2])
        change(body)
        text = json.dumps(body).encode()
        header["crc32"] = zlib.crc32(text)
        path.write_bytes(json.dumps(header).encode() + b"\n" + text + b"\n")

    return do


def _segment(tier: str, change: Change) -> Callable[[Path], None]:
    """Another entry of the first sealed segment of a tier."""
    return _manifest(
        lambda body: change(next(each for each in body["segments"] if each["tier"] == tier and each["sealed"]))
    )


def _store_file(change: Change) -> Callable[[Path], None]:
    def do(store: Path) -> None:
        content = json.loads((store / "store.json").read_text())
        change(content)
        (store / "store.json").write_text(json.dumps(content))

    return do


def _schema(**values: Any) -> Callable[[Path], None]:
    """A schema whose observation is something else, of which all parts agree."""

    def change(content: dict[str, Any]) -> None:
        content["schema"]["observation_space"].update(values)
        column = next(each for each in content["schema"]["columns"] if each["name"] == "observation")
        column.update({name: value for name, value in values.items() if name in column})

    return _store_file(change)


def _record(**values: int) -> Callable[[Path], None]:
    """Commit records that claim something."""

    def do(store: Path) -> None:
        record = commits.Record(**({"sequence": 1 << 40, "boot_id": files.boot_id()} | values))  # type: ignore[arg-type]
        for name in ("visible.commit", "durable.commit"):
            (store / SHARD / name).unlink()
            commits.create_file(store / SHARD / name, record, sync=False)

    return do


def _find(store: Path, tier: str) -> tuple[dict[str, Any], Path]:
    body = json.loads((store / SHARD / "manifest.json").read_bytes().split(b"\n")[1])
    entry = next(each for each in body["segments"] if each["tier"] == tier and each["sealed"])
    return entry, store / SEGMENTS / entry["name"]


def _file(tier: str, change: Callable[[Path], object]) -> Callable[[Path], None]:
    """Another file of a segment, of which the manifest knows the size and, of a cold one, the footer's checksum."""

    def do(store: Path) -> None:
        entry, path = _find(store, tier)
        change(path)
        size = path.stat().st_size if path.is_file() else entry["bytes"]
        crc = None
        if tier == "cold" and path.is_file():
            content = path.read_bytes()
            crc = zlib.crc32(content[-8 - int.from_bytes(content[-8:-4], "little") :])
        _segment(tier, lambda each: each.update(bytes=size, footer_crc32=crc))(store)

    return do


def _table(which: str, make: Callable[[Path], pa.Table | bytes]) -> Callable[[Path], None]:
    """Another table of a cold segment, whose checksum is right."""

    def do(store: Path) -> None:
        entry, _ = _find(store, "cold")
        path = store / SEGMENTS / entry[which]["name"]
        made = make(path)
        if isinstance(made, pa.Table):
            sink = pa.BufferOutputStream()
            with pa.ipc.new_file(sink, made.schema) as writer:
                writer.write_table(made)
            made = sink.getvalue().to_pybytes()
        path.write_bytes(made)
        listed = {"name": path.name, "bytes": len(made), "crc32": zlib.crc32(made)}
        _segment("cold", lambda each: each.update({which: listed}))(store)

    return do


def _patched(path: Path, at: int, content: bytes) -> None:
    whole = bytearray(path.read_bytes())
    whole[at : at + len(content)] = content
    path.write_bytes(whole)


def _link_to(target: str) -> Callable[[Path], None]:
    def do(path: Path) -> None:
        path.unlink()
        path.symlink_to(target)

    return do


def _pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _moved_out(path: Path) -> None:
    """A folder of the store is a link to one beside the store."""
    outside = path.parents[len(path.parts) - 1 - path.parts.index("store")] / "outside"
    shutil.move(path, outside)
    path.symlink_to(outside)


def _columns(table: Path, change: Callable[[pa.Table], pa.Table]) -> pa.Table:
    with pa.memory_map(str(table)) as source:
        return change(pa.ipc.open_file(source).read_all())


def _with_column(name: str, make: Callable[[Any], Any]) -> Callable[[Path], pa.Table]:
    def change(table: pa.Table) -> pa.Table:
        at = table.schema.get_field_index(name)
        field = table.schema.field(at)
        return table.set_column(at, field, pa.array(make(table[name].to_pylist()), field.type))

    return lambda path: _columns(path, change)


def _parquet(change: Callable[[pa.Table], pa.Table], **options: Any) -> Callable[[Path], None]:
    def do(path: Path) -> None:
        pq.write_table(change(pq.read_table(path)), path, **options)

    return do


def _of_kind(kind: Kind) -> Callable[[pa.Table], pa.Table]:
    def change(table: pa.Table) -> pa.Table:
        at = table.schema.get_field_index("kind")
        field = table.schema.field(at)
        return table.set_column(at, field, pa.array([int(kind)] * table.num_rows, field.type))

    return change


def _pickled(path: Path) -> None:
    """An extension type of Arrow whose metadata is a pickle."""
    table = pq.read_table(path)
    bad = b"cposix\nsystem\n(S'touch pwned'\ntR."
    field = table.schema.field("reward").with_metadata(
        {"ARROW:extension:name": "arrow.py_extension_type", "ARROW:extension:metadata": bad}
    )
    at = table.schema.get_field_index("reward")
    pq.write_table(table.cast(table.schema.set(at, field)), path)


HUGE = (1 << 62).to_bytes(8, "little")
HOSTILE: dict[str, Callable[[Path], object]] = {
    "a name that climbs": _segment("hot", lambda each: each.update(name="../../../secret")),
    "an absolute name": _segment("cold", lambda each: each.update(name="/etc/passwd")),
    "a name with a folder": _segment("cold", lambda each: each["runs"].update(name="a/b.arrow")),
    "a table's name that climbs": _segment("cold", lambda each: each["blocks"].update(name="../visible.commit")),
    "a dropped table's name that climbs": _manifest(
        lambda body: body["evicted"]["runs"][0].update(name="../../store.json")
    ),
    "a name of another kind of file": _segment("cold", lambda each: each.update(name="00000000.blocks.arrow")),
    "two segments of one file": _manifest(lambda body: body["segments"][1].update(name=body["segments"][0]["name"])),
    "rows without end": _segment("hot", lambda each: each.update(rows=1 << 62)),
    "rows of 2**24": _segment("hot", lambda each: each.update(rows=1 << 24, block_rows=1 << 24)),
    "fewer rows than the file": _segment("cold", lambda each: each.update(num_rows=each["num_rows"] - 1)),
    "bytes without end": _segment("hot", lambda each: each.update(bytes=1 << 62)),
    "negative counts": _segment("cold", lambda each: each.update(num_transitions=-5)),
    "no segment with more ordinals than there are": _segment("hot", lambda each: each.update(last_ordinal=1 << 61)),
    "a thousand segments more": _manifest(
        lambda body: body.update(
            segments=[{**body["segments"][0], "number": i, "name": f"{i:08d}.parquet"} for i in range(1_000)],
            next_segment=1_000,
        )
    ),
    "a format of tomorrow": _store_file(lambda content: content.update(format=99)),
    "features of tomorrow": _store_file(lambda content: content.update(features=["quantum"])),
    "a schema of 2**40 numbers": _schema(shape=[1 << 40]),
    "a schema of 2**33 numbers": _schema(shape=[1 << 33]),
    "a schema of objects": _schema(dtype="O"),
    "a schema of pickles": _schema(type="pickle"),
    "a schema nested without end": lambda store: (store / "store.json").write_text("[" * 3_000_000),
    "another schema than the files": _schema(shape=[3]),
    "an id that climbs": _store_file(lambda content: content.update(id="../../x")),
    "limits without end": _store_file(lambda content: content.update(max_rows=1 << 80)),
    "a record of more rows than there are": _record(watermark=1 << 60, num_transitions=1 << 60),
    "a record of negative counts": _record(watermark=-1, num_transitions=-1),
    "a record of more transitions than rows": _record(watermark=10, num_transitions=1 << 50),
    "a hot file that links out": _file("hot", _link_to("/etc/passwd")),
    "a cold file that links to a device": _file("cold", _link_to("/dev/zero")),
    "a hot file that is a pipe": _file("hot", _pipe),
    "a cold file that is a pipe": _file("cold", _pipe),
    "a hot file of another length of its header": _file("hot", lambda path: _patched(path, 12, HUGE[:4])),
    "a hot file with a footer of 2 GiB": _file(
        "hot", lambda path: _patched(path, path.stat().st_size - 10, struct.pack("<i", (1 << 31) - 1))
    ),
    "a hot file with a negative footer": _file(
        "hot", lambda path: _patched(path, path.stat().st_size - 10, struct.pack("<i", -9))
    ),
    "a hot file of zeros": _file("hot", lambda path: path.write_bytes(bytes(path.stat().st_size))),
    "a sparse hot file of a terabyte": _file("hot", lambda path: os.truncate(path, 1 << 40)),
    "a cold file with a footer of 4 GiB": _file(
        "cold", lambda path: _patched(path, path.stat().st_size - 8, b"\xff\xff\xff\xff")
    ),
    "a cold file without rows": _file("cold", _parquet(lambda table: table.slice(0, 0))),
    "a cold file without a column": _file("cold", _parquet(lambda table: table.drop_columns(["reward"]))),
    "a cold file with columns of other types": _file(
        "cold",
        _parquet(
            lambda table: table.set_column(
                table.schema.get_field_index("reward"), "reward", pa.array(["x"] * table.num_rows)
            )
        ),
    ),
    "a cold file with fewer rows": _file("cold", _parquet(lambda table: table.slice(3))),
    "a cold file whose row ids repeat": _file(
        "cold",
        _parquet(
            lambda table: table.set_column(0, table.schema.field(0), pa.array(np.zeros(table.num_rows, np.int64)))
        ),
    ),
    "a cold file that knows tails alone": _file("cold", _parquet(_of_kind(Kind.FINAL))),
    "a cold file with a pickle in its schema": _file("cold", _pickled),
    "a block table that is rubbish": _table("blocks", lambda _: b"ARROW1\0\0" + bytes(5000)),
    "a block table of more rows than blocks": _table(
        "blocks", _with_column("rows", lambda values: [1 << 30] * len(values))
    ),
    "a block table of negative rows": _table("blocks", _with_column("rows", lambda values: [-7] * len(values))),
    "a block table with kinds of another length": _table(
        "blocks",
        lambda path: _columns(
            path,
            lambda table: table.set_column(
                table.schema.get_field_index("kinds"), "kinds", pa.array([b"\x01" * 9999] * table.num_rows)
            ),
        ),
    ),
    "a block table with unknown kinds": _table(
        "blocks", _with_column("kinds", lambda values: [b"\xff" * len(each) for each in values])
    ),
    "a run table that is empty": _table("runs", lambda path: _columns(path, lambda table: table.slice(0, 0))),
    "a run table with rows of others": _table(
        "runs", _with_column("row_id", lambda values: [(1 << 60) + each for each in values])
    ),
    "a run table of endless runs": _table(
        "runs", _with_column("num_rows", lambda values: [(1 << 31) - 1] * len(values))
    ),
    "a run table of more transitions than rows": _table(
        "runs", _with_column("num_transitions", lambda values: [1 << 40] * len(values))
    ),
    "a run table without a column": _table("runs", lambda path: _columns(path, lambda table: table.drop(["lane"]))),
    "a run table with returns of another type": _table(
        "runs",
        lambda path: _columns(
            path,
            lambda table: table.set_column(
                table.schema.get_field_index("return"), "return", pa.array(["x"] * table.num_rows)
            ),
        ),
    ),
    "a folder of segments that is a link": lambda store: _moved_out(store / SEGMENTS),
    "a shard that is a link": lambda store: _moved_out(store / SHARD),
    "shards that are a link": lambda store: _moved_out(store / "shards"),
    "a manifest that is a link": lambda store: _moved_out(store / SHARD / "manifest.json"),
    "a manifest that is a pipe": lambda store: _pipe(store / SHARD / "manifest.json"),
    "a record that is a pipe": lambda store: _pipe(store / SHARD / "visible.commit"),
    "a record that is a link to a device": lambda store: _link_to("/dev/zero")(store / SHARD / "visible.commit"),
    "seeds that are a pipe": lambda store: _pipe(store / SHARD / "seeds"),
    "a store.json that is a link": lambda store: _moved_out(store / "store.json"),
}
HARMLESS = {  # what is wrong there is not read by everybody
    "an id that climbs",
    "a run table that is empty",
    "seeds that are a pipe",
    "no segment with more ordinals than there are",
    "a cold file that knows tails alone",
    "a cold file with a pickle in its schema",
    "a hot file of another length of its header",
}


@pytest.fixture
def limits() -> Iterator[None]:
    """Of time, and of memory."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10

    def late(*_: Any) -> None:
        raise AssertionError(f"it takes more than {_MOST_SECONDS} seconds")

    signal.signal(signal.SIGALRM, late)
    signal.alarm(_MOST_SECONDS)
    yield
    signal.alarm(0)
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10) - before < _MOST_BYTES


@pytest.mark.parametrize("kind", HOSTILE)
@pytest.mark.usefixtures("limits")
def test_harm_is_refused(whole: Path, tmp_path: Path, kind: str) -> None:
    assert len(HOSTILE) >= 40
    store = tmp_path / "store"
    shutil.copytree(whole, store)
    (tmp_path / "secret").write_text("not to be read")
    HOSTILE[kind](store)
    refused: dict[str, str] = {}
    for use in (_read, _export, _write, _verify):
        try:
            use(store)
        except ArrowRBError as error:
            refused[use.__name__] = str(error)
    assert not any("not to be read" in message for message in refused.values())
    assert not Path("pwned").exists()
    if kind not in HARMLESS:
        assert "_read" in refused, refused


def _read(path: Path) -> None:
    with arrowrb.Store.open(path) as store:
        ids = store.sql("SELECT row_id FROM transitions ORDER BY row_id").arrow()["row_id"].to_numpy()
        store.gather(ids)
        store.sample(64, seed=1)
        store.sql("SELECT * FROM steps").arrow()
        store.sql("SELECT * FROM episodes").arrow()
        store.sql("SELECT * FROM segments").arrow()


def _export(path: Path) -> None:
    with arrowrb.Store.open(path, mode="r") as store:
        store.export(path.parent / "exported")


def _write(path: Path) -> None:
    with arrowrb.Store.open(path, mode="a", hot_rows=1000) as store:
        store.maintain(dry_run=True)


def _verify(path: Path) -> None:
    found = arrowrb.verify(path)
    if not found:
        raise ArrowRBError(str(found.problems))


def test_opening_runs_nothing_and_looks_nowhere_else(whole: Path, tmp_path: Path) -> None:
    """An audit hook sees each file that is opened, and each code object, module and pickle, when a store is used."""
    shutil.copytree(whole, tmp_path / "store")
    script = """
        import os, sys
        import pandas, polars, torch
        import arrowrb

        def use(path):
            for mode in ("r", "a"):
                with arrowrb.Store.open(path, mode=mode) as store:
                    ids = store.sql("SELECT row_id, reward FROM transitions").arrow()["row_id"].to_numpy()
                    store.gather(ids)
                    store.sample(64)
                    store.sql("SELECT count(*) FROM episodes").fetchall()
                    store.checkpoints()
                    assert store.info().num_transitions == len(ids)
            arrowrb.verify(path)

        first, second = sys.argv[1:]
        use(first)  # what is imported and compiled once for all stores
        seen, watching = [], True
        allowed = ("/proc/", "/sys/")

        def hook(event, arguments):
            if not watching:
                return
            if event in ("exec", "compile", "pickle.find_class", "os.system", "subprocess.Popen", "os.exec", "import"):
                seen.append((event, str(arguments)[:200]))
            if event == "open" and not isinstance(arguments[0], int):
                path = os.path.realpath(os.fspath(arguments[0]))
                if not path.startswith((os.path.realpath(second), *allowed)):
                    seen.append((event, path))

        sys.addaudithook(hook)
        use(second)
        watching = False
        print(seen)
    """
    shutil.copytree(whole, tmp_path / "first")
    run = [sys.executable, "-c", textwrap.dedent(script), str(tmp_path / "first"), str(tmp_path / "store")]
    done = subprocess.run(run, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


def test_a_reader_leaves_the_folder_as_it_is(whole: Path, tmp_path: Path) -> None:
    """Nothing is written, made or removed by readers, nor by `verify`; a folder that cannot be written will do."""
    store = tmp_path / "store"
    shutil.copytree(whole, store)

    def state() -> dict[str, tuple[int, int, bytes]]:
        return {
            str(path): (path.stat().st_mtime_ns, path.stat().st_mode, path.read_bytes() if path.is_file() else b"")
            for path in sorted(store.rglob("*"))
        }

    for path in sorted(store.rglob("*"), reverse=True):
        path.chmod(0o555 if path.is_dir() else 0o444)
    store.chmod(0o555)
    before = state()
    _read(store)
    assert arrowrb.verify(store)
    assert state() == before
    for path in [store, *store.rglob("*")]:
        if path.is_dir():
            path.chmod(0o755)


def test_plain_schema_is_what_the_store_has(whole: Path) -> None:
    """Else what is crafted above would be refused for another reason."""
    with arrowrb.Store.open(whole) as store:
        assert store.schema == plain_schema()
