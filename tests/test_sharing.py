"""What is decided over all shards: pure, held against what it promises."""

from __future__ import annotations

import heapq
import itertools

from hypothesis import given
from hypothesis import strategies as st

from arrowrb.retention import Limits, Piece
from arrowrb.sharing import SHARE_BELOW, SHARE_BEYOND, Holding, Orders, Stock, is_spacious, narrower, plan_orders

ROWS, ROW_BYTES = 100, 10


def piece(number: int, time: int, transitions: int, *, sealed: bool = True, tier: str = "hot") -> Piece:
    return Piece(number, tier, sealed, sealed, ROWS, ROWS * ROW_BYTES, transitions if sealed else 0, time)


@st.composite
def holdings(draw: st.DrawFn) -> list[Holding]:
    made = []
    for shard in range(draw(st.integers(2, 5))):
        count = draw(st.integers(0, 12))
        sealed = draw(st.integers(0, count))
        times = sorted(draw(st.lists(st.integers(0, 1000), min_size=count, max_size=count)))
        held = draw(st.lists(st.integers(0, ROWS), min_size=count, max_size=count))
        pieces = tuple(
            piece(
                number, times[number], held[number], sealed=number < sealed, tier=draw(st.sampled_from(["hot", "cold"]))
            )
            if number < sealed
            else piece(number, 0, 0, sealed=False)
            for number in range(count)
        )
        keep_below, told = draw(st.integers(0, count)), draw(st.integers(0, sealed))
        stock = Stock(shard, pieces, keep_below, told)
        made.append(Holding(stock, sum(held), draw(st.integers(0, 500)), draw(st.booleans())))
    return made


limits = st.builds(
    Limits,
    hot_rows=st.one_of(st.none(), st.integers(100, 5000)),
    hot_bytes=st.one_of(st.none(), st.integers(1000, 50_000)),
    max_rows=st.one_of(st.none(), st.integers(100, 5000)),
    max_bytes=st.one_of(st.none(), st.integers(1000, 50_000)),
)


@given(holdings(), limits)
def test_orders(shards: list[Holding], bounds: Limits) -> None:
    orders = plan_orders(shards, bounds)
    assert orders.keys() == {each.stock.shard for each in shards}
    going, staying = {}, {}
    for each in shards:
        stock, told = each.stock, orders[each.stock.shard]
        assert told.evict_below >= stock.evict_below
        if not each.follows:
            assert told.evict_below == stock.evict_below
        spare = [one for one in stock.pieces if one.number >= stock.keep_below]
        going[stock.shard] = [one for one in spare if stock.evict_below <= one.number < told.evict_below]
        assert all(one.sealed for one in going[stock.shard])
        rest = itertools.takewhile(lambda one: one.sealed, [one for one in spare if one.number >= told.evict_below])
        staying[stock.shard] = list(rest) if each.follows else []
    gone = [one for pieces in going.values() for one in pieces]
    heads = [pieces[0] for pieces in staying.values() if pieces]
    # Oldest first over all shards: nothing that could go is older than what goes.
    assert not gone or all(head.last_time >= max(one.last_time for one in gone) for head in heads)

    def left(count: str, total: int) -> int:
        due = [one for each in shards if each.follows for one in each.stock.due]
        return total - sum(getattr(one, count) for one in (*due, *gone))

    rows = left("num_transitions", sum(each.live for each in shards))
    num_bytes = left("num_bytes", sum(each.stock.num_bytes for each in shards))
    over = [
        limit is not None and count > limit - limit // SHARE_BELOW
        for limit, count in ((bounds.max_rows, rows), (bounds.max_bytes, num_bytes))
    ]
    assert not any(over) or not heads
    if gone:  # and nothing goes that need not: the last one to go was one too many
        last = max(gone, key=lambda one: one.last_time)
        candidates = [one for one in gone if one.last_time == last.last_time]
        assert any(
            limit is not None and count + more > limit - limit // SHARE_BELOW
            for one in candidates
            for limit, count, more in (
                (bounds.max_rows, rows, one.num_transitions),
                (bounds.max_bytes, num_bytes, one.num_bytes),
            )
        )


@given(holdings(), limits)
def test_bounds(shards: list[Holding], bounds: Limits) -> None:
    orders = [plan_orders(shards, bounds)[each.stock.shard] for each in shards]
    for limit, held, allowed in (
        (bounds.max_rows, [each.live for each in shards], [each.max_rows for each in orders]),
        (bounds.max_bytes, [each.stock.num_bytes for each in shards], [each.max_bytes for each in orders]),
    ):
        if limit is None:
            assert set(allowed) == {None}
            continue
        counts = [each for each in allowed if each is not None]
        assert all(count >= had for count, had in zip(counts, held, strict=True))  # nothing is lost by being told so
        assert sum(counts) <= max(limit + limit // SHARE_BEYOND, sum(held))
    for limit, used, shares in (
        (bounds.hot_rows, [each.stock.hot_rows for each in shards], [each.hot_rows for each in orders]),
        (bounds.hot_bytes, [each.stock.hot_bytes for each in shards], [each.hot_bytes for each in orders]),
    ):
        if limit is None:
            assert set(shares) == {None}
            continue
        parts = [each for each in shares if each is not None]
        assert sum(parts) <= limit
        assert all(part >= min(2 * use, limit // len(shards)) for part, use in zip(parts, used, strict=True))


@given(st.lists(st.integers(1, 20), min_size=2, max_size=5))
def test_a_fast_and_a_slow_shard_age_alike(paces: list[int]) -> None:
    """Against a list of all segments in order of time."""
    arrivals = sorted(
        (number * 1000 // pace, shard, number) for shard, pace in enumerate(paces) for number in range(30)
    )
    stocks = [
        Stock(shard, tuple(piece(number, number * 1000 // pace, ROWS) for number in range(30)))
        for shard, pace in enumerate(paces)
    ]
    bounds = Limits(max_rows=len(paces) * 1500)
    orders = plan_orders([Holding(stock, 3000) for stock in stocks], bounds)
    count = sum(each.evict_below for each in orders.values())
    assert 3000 * len(paces) - count * ROWS <= bounds.max_rows
    expected = heapq.nsmallest(count, arrivals)
    assert {shard: each.evict_below for shard, each in orders.items()} == {
        shard: sum(1 for _, owner, _ in expected if owner == shard) for shard in range(len(paces))
    }


def test_a_writer_goes_by_the_narrower_bound() -> None:
    own = Limits(hot_rows=1000, max_rows=50, keep_below=3)
    assert narrower(own, None) == own
    assert narrower(own, Orders(7, 20, None, 2000, 500)) == Limits(1000, 500, 20, None, 3)
    assert narrower(Limits(), Orders(7, 20, None, 2000, 500)) == Limits(2000, 500, 20)


def test_what_is_spacious() -> None:
    """Half of each limit is free, and more than comes between two looks that are far apart."""
    one = [Holding(Stock(0, tuple(piece(number, 1, ROWS) for number in range(6000))), 6000 * ROWS)]
    assert is_spacious(one, Limits())
    assert is_spacious(one, Limits(max_rows=1_200_000))
    assert not is_spacious(one, Limits(max_rows=1_190_000))
    assert not is_spacious([], Limits(max_rows=10_000))  # nothing is there, but could be at the next look
    assert not is_spacious(one, Limits(max_rows=10**9, hot_rows=700_000))
    assert not is_spacious(one, Limits(hot_bytes=500_000_000))
    assert is_spacious(one, Limits(hot_bytes=10**9))
