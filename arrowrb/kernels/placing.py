"""Placing transitions: one pass over a commit's events that fills the mapped columns in place.

The order within a commit is columns, then ``kind``, then ``ordinal``; the caller then fences and writes the commit
record. Nothing here is visible before that, because readers pass over ordinals beyond the watermark.

A commit that needs a block when none is free returns `NEED_SEGMENT` with nothing done for the event at hand; the caller
adds a segment and calls again. Lanes are saved in ``undo`` before they are first touched in a commit, so that a
commit that fails half-way can be taken back.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .memory import (
    address_of,
    copy_item,
    inline,
    kernel,
    load_i32,
    load_i64,
    load_u8,
    same_bytes,
    store_i32,
    store_i64,
    store_u8,
)

# Fields of a lane.
SLOT, CURSOR, STOP, RUNNING, EPISODE, STEP, EPOCH = range(7)
LANE_FIELDS = 8
# Fields of an open segment.
NUM_BLOCKS, NEXT_BLOCK, BLOCK_ROWS, OPEN_BLOCKS, FILLS, ROW_BASE, TRANSITIONS, LAST_ORDINAL = range(8)
# Fields of the commit at hand.
EVENT, CURRENT, ORDINAL, NUM_TRANSITIONS, NUM_EPISODES, NEXT_EPISODE, BREAKS, NUM_UNDO, BATCH, NUM_SLOTS = range(10)
# Fields of a column: bytes of an item, then address and stride of its two sources.
ITEM, X_ADDRESS, X_STRIDE, Y_ADDRESS, Y_STRIDE = range(5)
LANE_BYTES, SEGMENT_BYTES, COLUMN_BYTES, UNDO_BYTES = 64, 64, 40, 72
# The system columns, in the order of the schema.
C_ORDINAL, C_TIME, C_EPISODE, C_LANE, C_STEP, C_POLICY, C_KIND, C_TERMINATED, C_TRUNCATED = range(9)
FIRST_OBSERVATION = 9
# How an event relates to its lane's running episode.
CONTINUE, BEGIN, DECIDE, INDEPENDENT = range(4)
# Results.
DONE, NEED_SEGMENT, NOT_RUNNING = range(3)


@inline
def _read(table: int, field: int) -> int:
    return load_i64(table + (field << 3))


@inline
def _write(table: int, field: int, value: int) -> None:
    store_i64(table + (field << 3), value)


@inline
def _add(table: int, field: int, value: int) -> None:
    store_i64(table + (field << 3), load_i64(table + (field << 3)) + value)


@inline
def _save(state: int, lane: int, commit: int, undo: int) -> None:
    if _read(state, EPOCH) != _read(commit, BATCH):
        entry = undo + _read(commit, NUM_UNDO) * UNDO_BYTES
        _write(entry, 0, lane)
        for f in range(LANE_FIELDS):
            _write(entry, 1 + f, _read(state, f))
        _add(commit, NUM_UNDO, 1)
        _write(state, EPOCH, _read(commit, BATCH))


@inline
def _find_block(segments: int, commit: int) -> bool:
    """Make CURRENT an open segment with a free block."""
    while _read(commit, CURRENT) < _read(commit, NUM_SLOTS):
        segment = segments + _read(commit, CURRENT) * SEGMENT_BYTES
        if _read(segment, NEXT_BLOCK) < _read(segment, NUM_BLOCKS):
            return True
        _add(commit, CURRENT, 1)
    return False


@inline
def _leave_block(state: int, segments: int) -> None:
    slot = _read(state, SLOT)
    if slot >= 0:
        _add(segments + slot * SEGMENT_BYTES, OPEN_BLOCKS, -1)
        _write(state, SLOT, -1)
        _write(state, CURSOR, 0)
        _write(state, STOP, 0)


@inline
def _take_block(state: int, segments: int, commit: int) -> None:
    """Move a lane to a free block; `_find_block` has found one."""
    _leave_block(state, segments)
    slot = _read(commit, CURRENT)
    segment = segments + slot * SEGMENT_BYTES
    block = _read(segment, NEXT_BLOCK)
    _write(segment, NEXT_BLOCK, block + 1)
    _add(segment, OPEN_BLOCKS, 1)
    _write(state, SLOT, slot)
    _write(state, CURSOR, block * _read(segment, BLOCK_ROWS))
    _write(state, STOP, (block + 1) * _read(segment, BLOCK_ROWS))


@inline
def _commit_row(
    state: int, kind: int, lane: int, time: int, policy: int, segments: int, addresses: int, commit: int
) -> None:
    """Write the system columns of the row at a lane's cursor, kind and ordinal last, and move the cursor on."""
    slot, position = _read(state, SLOT), _read(state, CURSOR)
    segment = segments + slot * SEGMENT_BYTES
    store_i64(_read(addresses, C_TIME) + position * 8, time)
    store_i64(_read(addresses, C_EPISODE) + position * 8, _read(state, EPISODE))
    store_i32(_read(addresses, C_LANE) + position * 4, lane)
    store_i32(_read(addresses, C_STEP) + position * 4, _read(state, STEP))
    store_i32(_read(addresses, C_POLICY) + position * 4, policy)
    store_u8(_read(addresses, C_KIND) + position, kind)
    ordinal = _read(commit, ORDINAL) + 1
    _write(commit, ORDINAL, ordinal)
    store_i64(_read(addresses, C_ORDINAL) + position * 8, ordinal)
    # Unsigned 32 bits divide several times faster than Python's floor of 64.
    fill = _read(segment, FILLS) + np.int64(np.uint32(position) // np.uint32(_read(segment, BLOCK_ROWS))) * 4
    store_i32(fill, load_i32(fill) + 1)
    _write(segment, LAST_ORDINAL, ordinal)
    _write(state, CURSOR, position + 1)


@inline
def _source(column: int, index: int) -> int:
    """Where a column's value of an index lies: in ``arrived`` from 0 on, in ``final`` below."""
    if index >= 0:
        return int(_read(column, X_ADDRESS) + index * _read(column, X_STRIDE))
    return int(_read(column, Y_ADDRESS) + (-1 - index) * _read(column, Y_STRIDE))


@inline
def _put(columns: int, first: int, stop: int, index: int, addresses: int, position: int) -> None:
    """Copy the values of an index into a row of these columns."""
    for c in range(first, stop):
        column = columns + c * COLUMN_BYTES
        size = _read(column, ITEM)
        copy_item(_read(addresses, c) + position * size, _source(column, index), size)


@inline
def _agrees(columns: int, stop: int, index: int, addresses: int, position: int) -> bool:
    for c in range(FIRST_OBSERVATION, stop):
        column = columns + c * COLUMN_BYTES
        size = _read(column, ITEM)
        if not same_bytes(_read(addresses, c) + position * size, _source(column, index), size):
            return False
    return True


@inline
def _next_block(
    state: int,
    lane: int,
    time: int,
    policy: int,
    columns: int,
    stop: int,
    segments: int,
    addresses: int,
    row_bytes: int,
    commit: int,
) -> None:
    """Carry a running episode into a new block: the waiting observation becomes a tail and is copied there.

    The copy waits under its lane, episode and step, by which recovery and sealing find it, and kind 0.
    """
    old, old_position = addresses + _read(state, SLOT) * row_bytes, _read(state, CURSOR)
    _commit_row(state, 3, lane, time, policy, segments, old, commit)
    _take_block(state, segments, commit)
    new, position = addresses + _read(state, SLOT) * row_bytes, _read(state, CURSOR)
    for c in range(FIRST_OBSERVATION, stop):
        size = _read(columns + c * COLUMN_BYTES, ITEM)
        copy_item(_read(new, c) + position * size, _read(old, c) + old_position * size, size)
    store_i64(_read(new, C_EPISODE) + position * 8, _read(state, EPISODE))
    store_i32(_read(new, C_LANE) + position * 4, lane)
    store_i32(_read(new, C_STEP) + position * 4, _read(state, STEP))


@inline
def _continues(how: int, state: int, episode: int, step: int, agrees: bool, commit: int) -> bool:
    if how == BEGIN or how == INDEPENDENT or _read(state, RUNNING) == 0:
        return False
    if how == CONTINUE:
        return True
    if (episode >= 0 and episode != _read(state, EPISODE)) or (step >= 0 and step != _read(state, STEP)):
        return False
    if not agrees:
        _add(commit, BREAKS, 1)
    return agrees


@inline
def _begin_episode(state: int, given: int, step: int, commit: int) -> None:
    episode = given if given >= 0 else _read(commit, NEXT_EPISODE)
    if episode >= _read(commit, NEXT_EPISODE):
        _write(commit, NEXT_EPISODE, episode + 1)
    _add(commit, NUM_EPISODES, 1)
    _write(state, EPISODE, episode)
    _write(state, STEP, max(step, 0))
    _write(state, RUNNING, 1)


@kernel(
    "int64(int64[::1], uint8[::1], int64[::1], int64[::1], int64[::1], int64[::1], int64[::1], int64[::1], int64[::1],"
    " int64[::1], int64[::1], int64[:, ::1], int64, int64[:, ::1], int64[:, ::1], int64[:, ::1], int64[::1],"
    " int64[:, ::1])"
)
def ingest(
    lane_of: Any,
    begin: Any,
    observation: Any,
    next_observation: Any,
    row: Any,
    episode_id: Any,
    step_of: Any,
    time: Any,
    cut_time: Any,
    policy: Any,
    row_ids: Any,
    column_table: Any,
    stop_observation: int,
    lane_table: Any,
    segment_table: Any,
    address_table: Any,
    commit_table: Any,
    undo_table: Any,
) -> int:
    """Place the events from ``commit[EVENT]`` on. Fills row_ids, and episode_id and step where they were -1.

    Tables are read by address: handing arrays to inner functions costs an atomic count each, more than the work.
    """
    columns, lanes = address_of(column_table), address_of(lane_table)
    segments, all_addresses = address_of(segment_table), address_of(address_table)
    commit, undo = address_of(commit_table), address_of(undo_table)
    num_columns = column_table.shape[0]
    row_bytes = num_columns * 8
    terminated, truncated = columns + C_TERMINATED * COLUMN_BYTES, columns + C_TRUNCATED * COLUMN_BYTES
    for e in range(_read(commit, EVENT), lane_of.shape[0]):
        lane = lane_of[e]
        state = lanes + lane * LANE_BYTES
        running = _read(state, RUNNING)
        how = begin[e]
        if how == CONTINUE and running == 0:
            _write(commit, EVENT, e)
            return NOT_RUNNING
        addresses = all_addresses + _read(state, SLOT) * row_bytes
        agrees = False
        if how == DECIDE and running == 1:
            agrees = _agrees(columns, stop_observation, observation[e], addresses, _read(state, CURSOR))
        breaks = _read(commit, BREAKS)
        goes_on = _continues(how, state, episode_id[e], step_of[e], agrees, commit)
        room = _read(state, STOP) - _read(state, CURSOR) - (0 if goes_on else running)
        if room < 2 and not _find_block(segments, commit):
            _write(commit, EVENT, e)
            _write(commit, BREAKS, breaks)
            return NEED_SEGMENT
        _save(state, lane, commit, undo)
        if goes_on:
            if room < 2:
                _next_block(
                    state,
                    lane,
                    time[e],
                    policy[e],
                    columns,
                    stop_observation,
                    segments,
                    all_addresses,
                    row_bytes,
                    commit,
                )
                addresses = all_addresses + _read(state, SLOT) * row_bytes
        else:
            if running == 1:
                _commit_row(state, 4, lane, cut_time[e], policy[e], segments, addresses, commit)
            if room < 2:
                _take_block(state, segments, commit)
                addresses = all_addresses + _read(state, SLOT) * row_bytes
            _begin_episode(state, episode_id[e], step_of[e], commit)
            _put(columns, FIRST_OBSERVATION, stop_observation, observation[e], addresses, _read(state, CURSOR))
        position, k = _read(state, CURSOR), row[e]
        segment = segments + _read(state, SLOT) * SEGMENT_BYTES
        _put(columns, FIRST_OBSERVATION, stop_observation, next_observation[e], addresses, position + 1)
        _put(columns, stop_observation, num_columns, k, addresses, position)
        ends, stops = load_u8(_source(terminated, k)), load_u8(_source(truncated, k))
        store_u8(_read(addresses, C_TERMINATED) + position, ends)
        store_u8(_read(addresses, C_TRUNCATED) + position, stops)
        episode_id[e] = _read(state, EPISODE)
        step_of[e] = _read(state, STEP)
        row_ids[e] = _read(segment, ROW_BASE) + position
        _commit_row(state, 1, lane, time[e], policy[e], segments, addresses, commit)
        _add(commit, NUM_TRANSITIONS, 1)
        _add(segment, TRANSITIONS, 1)
        _add(state, STEP, 1)
        ended = (ends | stops) != 0
        if ended or how == INDEPENDENT:
            _commit_row(state, 2 if ended else 4, lane, time[e], policy[e], segments, addresses, commit)
            _write(state, RUNNING, 0)
    _write(commit, EVENT, lane_of.shape[0])
    return DONE


@kernel("int64(int64[::1], int64, int64, int64[:, ::1], int64[:, ::1], int64[:, ::1], int64[::1], int64[:, ::1])")
def cut(
    which: Any,
    time: int,
    policy: int,
    lane_table: Any,
    segment_table: Any,
    address_table: Any,
    commit_table: Any,
    undo_table: Any,
) -> int:
    """The running episodes of these lanes are abandoned: their waiting observations become cut tails."""
    lanes, segments = address_of(lane_table), address_of(segment_table)
    all_addresses = address_of(address_table)
    commit, undo = address_of(commit_table), address_of(undo_table)
    row_bytes = address_table.shape[1] * 8
    count = 0
    for i in range(which.shape[0]):
        lane = which[i]
        state = lanes + lane * LANE_BYTES
        if _read(state, RUNNING) == 1:
            _save(state, lane, commit, undo)
            addresses = all_addresses + _read(state, SLOT) * row_bytes
            _commit_row(state, 4, lane, time, policy, segments, addresses, commit)
            _write(state, RUNNING, 0)
            count += 1
    return count


@kernel(
    "int64(int64, int64, int64, int64[:, ::1], int64, int64[:, ::1], int64[:, ::1], int64[:, ::1], int64[::1],"
    " int64[:, ::1])"
)
def evacuate(
    slot: int,
    time: int,
    policy: int,
    column_table: Any,
    stop_observation: int,
    lane_table: Any,
    segment_table: Any,
    address_table: Any,
    commit_table: Any,
    undo_table: Any,
) -> int:
    """Move every lane out of a segment that slow lanes hold open; their episodes go on in new blocks."""
    columns, lanes = address_of(column_table), address_of(lane_table)
    segments, all_addresses = address_of(segment_table), address_of(address_table)
    commit, undo = address_of(commit_table), address_of(undo_table)
    row_bytes = address_table.shape[1] * 8
    for lane in range(lane_table.shape[0]):
        state = lanes + lane * LANE_BYTES
        if _read(state, SLOT) != slot:
            continue
        if _read(state, RUNNING) == 1:
            if not _find_block(segments, commit):
                return NEED_SEGMENT
            _save(state, lane, commit, undo)
            _next_block(
                state, lane, time, policy, columns, stop_observation, segments, all_addresses, row_bytes, commit
            )
        else:
            _save(state, lane, commit, undo)
            _leave_block(state, segments)
    return DONE
