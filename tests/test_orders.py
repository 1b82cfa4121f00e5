"""The file by which a shard is told what it may hold: torn, lost, repeated and foreign ones do no harm."""

from __future__ import annotations

from pathlib import Path

import pytest

from arrowrb.engine.orders import FILE_BYTES, OrdersFile, lay_out
from arrowrb.errors import StoreError
from arrowrb.sharing import Orders


@pytest.fixture
def path(tmp_path: Path) -> Path:
    lay_out(tmp_path / "orders")
    return tmp_path / "orders"


def test_what_is_written_is_read(path: Path) -> None:
    reader, writer = OrdersFile(path), OrdersFile(path, writable=True)
    assert reader.read() is None
    for number in range(5):
        orders = Orders(number, 10 * number, None, None if number % 2 else 5, 1 << 40)
        writer.write(orders)
        assert reader.read() == orders
        assert reader.read() is reader.read()
        content = path.read_bytes()
        writer.write(orders)
        assert path.read_bytes() == content  # nothing new
    assert OrdersFile(path).read() == orders  # whoever comes later
    lay_out(path)
    assert OrdersFile(path).read() == orders
    with pytest.raises((StoreError, TypeError, ValueError)):
        reader.write(Orders())


def test_another_coordinator_goes_on(path: Path) -> None:
    OrdersFile(path, writable=True).write(Orders(3, 100))
    again = OrdersFile(path, writable=True)
    again.write(Orders(4, 50))
    reader = OrdersFile(path)
    assert reader.read() == Orders(4, 50)
    again.write(Orders(2, 70))  # segments that were told to go stay so
    assert reader.read() == Orders(4, 70)


def test_a_crash_while_a_slot_is_written(path: Path) -> None:
    """At each byte: what was said before stays in force."""
    writer = OrdersFile(path, writable=True)
    writer.write(Orders(1, 100))
    before = path.read_bytes()
    writer.write(Orders(2, 200))
    after = path.read_bytes()
    changed = [place for place in range(FILE_BYTES) if before[place] != after[place]]
    for stop in changed[1:]:
        path.write_bytes(after[:stop] + before[stop:])
        assert OrdersFile(path).read() == Orders(1, 100)
    path.write_bytes(after)
    assert OrdersFile(path).read() == Orders(2, 200)


@pytest.mark.parametrize("content", [bytes(FILE_BYTES), b"\xff" * FILE_BYTES, b"ARBORD01" * 512])
def test_what_is_none_says_nothing(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    assert OrdersFile(path).read() is None
    OrdersFile(path, writable=True).write(Orders(5))
    assert OrdersFile(path).read() == Orders(5)


def test_a_file_of_another_size_is_made_anew(path: Path) -> None:
    path.write_bytes(b"short")
    with pytest.raises(StoreError):
        OrdersFile(path)
    lay_out(path)
    assert OrdersFile(path).read() is None
    path.unlink()
    path.symlink_to("elsewhere")
    lay_out(path)
    assert not path.is_symlink()
    made = OrdersFile(path)
    assert made.is_at(path)
    path.unlink()
    assert not made.is_at(path)
