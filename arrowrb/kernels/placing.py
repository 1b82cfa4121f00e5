"""Placing transitions: one pass over a commit's events that fills the mapped columns in place.

The order within a commit is columns, then ``kind``, then ``ordinal``; the caller then fences and writes the commit
record. Nothing here is visible before that, because readers pass over ordinals beyond the watermark.

A commit that needs a block when none is free returns `NEED_SEGMENT` with nothing done for the event at hand; the caller
adds a segment and calls again. Lanes are saved in ``undo`` before they are first touched in a commit, so that a
commit that fails half-way can be taken back.
"""

from __future__ import annotations

from typing import Any

from .memory import copy, inline, kernel, load_i32, load_u8, same_bytes, store_i32, store_i64, store_u8

# Fields of a lane.
SLOT, CURSOR, STOP, RUNNING, EPISODE, STEP, EPOCH = range(7)
LANE_FIELDS = 8
# Fields of an open segment.
NUM_BLOCKS, NEXT_BLOCK, BLOCK_ROWS, OPEN_BLOCKS, FILLS, ROW_BASE, TRANSITIONS, LAST_ORDINAL = range(8)
SEGMENT_FIELDS = 8
# Fields of the commit at hand.
EVENT, CURRENT, ORDINAL, NUM_TRANSITIONS, NUM_EPISODES, NEXT_EPISODE, BREAKS, NUM_UNDO, BATCH, NUM_SLOTS = range(10)
COMMIT_FIELDS = 16
# Fields of a column: bytes of an item, then address and stride of its two sources.
ITEM, X_ADDRESS, X_STRIDE, Y_ADDRESS, Y_STRIDE = range(5)
COLUMN_FIELDS = 5
# The system columns, in the order of the schema.
C_ORDINAL, C_TIME, C_EPISODE, C_LANE, C_STEP, C_POLICY, C_KIND, C_TERMINATED, C_TRUNCATED = range(9)
FIRST_OBSERVATION = 9
# How an event relates to its lane's running episode.
CONTINUE, BEGIN, DECIDE, INDEPENDENT = range(4)
# Results.
DONE, NEED_SEGMENT, NOT_RUNNING = range(3)


@inline
def _save(lanes: Any, lane: int, commit: Any, undo: Any) -> None:
    if lanes[lane, EPOCH] != commit[BATCH]:
        k = commit[NUM_UNDO]
        undo[k, 0] = lane
        for f in range(LANE_FIELDS):
            undo[k, 1 + f] = lanes[lane, f]
        commit[NUM_UNDO] = k + 1
        lanes[lane, EPOCH] = commit[BATCH]


@inline
def _find_block(segments: Any, commit: Any) -> bool:
    """Make CURRENT an open segment with a free block."""
    while commit[CURRENT] < commit[NUM_SLOTS]:
        slot = commit[CURRENT]
        if segments[slot, NEXT_BLOCK] < segments[slot, NUM_BLOCKS]:
            return True
        commit[CURRENT] = slot + 1
    return False


@inline
def _leave_block(lanes: Any, lane: int, segments: Any) -> None:
    slot = lanes[lane, SLOT]
    if slot >= 0:
        segments[slot, OPEN_BLOCKS] -= 1
        lanes[lane, SLOT] = -1
        lanes[lane, CURSOR] = 0
        lanes[lane, STOP] = 0


@inline
def _take_block(lanes: Any, lane: int, segments: Any, commit: Any) -> None:
    """Move a lane to a free block; `_find_block` has found one."""
    _leave_block(lanes, lane, segments)
    slot = commit[CURRENT]
    block = segments[slot, NEXT_BLOCK]
    segments[slot, NEXT_BLOCK] = block + 1
    segments[slot, OPEN_BLOCKS] += 1
    lanes[lane, SLOT] = slot
    lanes[lane, CURSOR] = block * segments[slot, BLOCK_ROWS]
    lanes[lane, STOP] = lanes[lane, CURSOR] + segments[slot, BLOCK_ROWS]


@inline
def _commit_row(
    slot: int,
    position: int,
    kind: int,
    lane: int,
    episode: int,
    step: int,
    time: int,
    policy: int,
    segments: Any,
    addresses: Any,
    commit: Any,
) -> None:
    """Write the system columns of a row: kind and ordinal last."""
    store_i64(addresses[slot, C_TIME] + position * 8, time)
    store_i64(addresses[slot, C_EPISODE] + position * 8, episode)
    store_i32(addresses[slot, C_LANE] + position * 4, lane)
    store_i32(addresses[slot, C_STEP] + position * 4, step)
    store_i32(addresses[slot, C_POLICY] + position * 4, policy)
    store_u8(addresses[slot, C_KIND] + position, kind)
    ordinal = commit[ORDINAL] + 1
    commit[ORDINAL] = ordinal
    store_i64(addresses[slot, C_ORDINAL] + position * 8, ordinal)
    fill = segments[slot, FILLS] + (position // segments[slot, BLOCK_ROWS]) * 4
    store_i32(fill, load_i32(fill) + 1)
    segments[slot, LAST_ORDINAL] = ordinal


@inline
def _commit_tail(
    lanes: Any,
    lane: int,
    kind: int,
    time: int,
    policy: int,
    segments: Any,
    addresses: Any,
    commit: Any,
) -> None:
    """The lane's waiting observation becomes a tail."""
    state = lanes[lane]
    _commit_row(
        state[SLOT],
        state[CURSOR],
        kind,
        lane,
        state[EPISODE],
        state[STEP],
        time,
        policy,
        segments,
        addresses,
        commit,
    )
    lanes[lane, CURSOR] += 1


@inline
def _put(columns: Any, column: int, index: int, addresses: Any, slot: int, position: int) -> None:
    size = columns[column, ITEM]
    if index >= 0:
        source = columns[column, X_ADDRESS] + index * columns[column, X_STRIDE]
    else:
        source = columns[column, Y_ADDRESS] + (-1 - index) * columns[column, Y_STRIDE]
    copy(addresses[slot, column] + position * size, source, size)


@inline
def _agrees(columns: Any, stop: int, index: int, addresses: Any, slot: int, position: int) -> bool:
    for column in range(FIRST_OBSERVATION, stop):
        size = columns[column, ITEM]
        if index >= 0:
            source = columns[column, X_ADDRESS] + index * columns[column, X_STRIDE]
        else:
            source = columns[column, Y_ADDRESS] + (-1 - index) * columns[column, Y_STRIDE]
        if not same_bytes(addresses[slot, column] + position * size, source, size):
            return False
    return True


@inline
def _next_block(
    lanes: Any, lane: int, time: int, policy: int, columns: Any, stop: int, segments: Any, addresses: Any, commit: Any
) -> None:
    """Carry a running episode into a new block: the waiting observation becomes a tail and is copied there.

    The copy waits under its lane, episode and step, by which recovery and sealing find it, and kind 0.
    """
    old_slot, old_position = lanes[lane, SLOT], lanes[lane, CURSOR]
    _commit_tail(lanes, lane, 3, time, policy, segments, addresses, commit)
    _take_block(lanes, lane, segments, commit)
    slot, position = lanes[lane, SLOT], lanes[lane, CURSOR]
    for column in range(FIRST_OBSERVATION, stop):
        size = columns[column, ITEM]
        copy(addresses[slot, column] + position * size, addresses[old_slot, column] + old_position * size, size)
    store_i64(addresses[slot, C_EPISODE] + position * 8, lanes[lane, EPISODE])
    store_i32(addresses[slot, C_LANE] + position * 4, lane)
    store_i32(addresses[slot, C_STEP] + position * 4, lanes[lane, STEP])


@inline
def _continues(
    how: int, running: int, state: Any, episode: int, step: int, agrees: bool, commit: Any
) -> bool:
    if how == BEGIN or how == INDEPENDENT or running == 0:
        return False
    if how == CONTINUE:
        return True
    if (episode >= 0 and episode != state[EPISODE]) or (step >= 0 and step != state[STEP]):
        return False
    if not agrees:
        commit[BREAKS] += 1
    return agrees


@inline
def _flag(columns: Any, column: int, k: int) -> bool:
    address = columns[column, X_ADDRESS] + k * columns[column, X_STRIDE]
    return bool(load_u8(address) != 0)


@kernel(
    "int64(int64[::1], uint8[::1], int64[::1], int64[::1], int64[::1], int64[::1], int64[::1], int64[::1], int64[::1],"
    " int64[::1], int64[:, ::1], int64, int64[:, ::1], int64[:, ::1], int64[:, ::1], int64[::1], int64[:, ::1])"
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
    policy: Any,
    row_ids: Any,
    columns: Any,
    stop_observation: int,
    lanes: Any,
    segments: Any,
    addresses: Any,
    commit: Any,
    undo: Any,
) -> int:
    """Place the events from ``commit[EVENT]`` on. Fills row_ids, and episode_id and step where they were -1."""
    num_columns = columns.shape[0]
    for e in range(commit[EVENT], lane_of.shape[0]):
        lane = lane_of[e]
        state = lanes[lane]
        running = state[RUNNING]
        how = begin[e]
        if how == CONTINUE and running == 0:
            commit[EVENT] = e
            return NOT_RUNNING
        agrees = False
        if how == DECIDE and running == 1:
            agrees = _agrees(columns, stop_observation, observation[e], addresses, state[SLOT], state[CURSOR])
        breaks = commit[BREAKS]
        goes_on = _continues(how, running, state, episode_id[e], step_of[e], agrees, commit)
        room = state[STOP] - state[CURSOR] - (0 if goes_on else running)
        if room < 2 and not _find_block(segments, commit):
            commit[EVENT] = e
            commit[BREAKS] = breaks
            return NEED_SEGMENT
        _save(lanes, lane, commit, undo)
        if goes_on:
            if room < 2:
                _next_block(
                    lanes, lane, time[e], policy[e], columns, stop_observation, segments, addresses, commit
                )
        else:
            if running == 1:
                _commit_tail(lanes, lane, 4, time[e], policy[e], segments, addresses, commit)
            if room < 2:
                _take_block(lanes, lane, segments, commit)
            given = episode_id[e]
            if given < 0:
                given = commit[NEXT_EPISODE]
            if given >= commit[NEXT_EPISODE]:
                commit[NEXT_EPISODE] = given + 1
            commit[NUM_EPISODES] += 1
            lanes[lane, EPISODE] = given
            lanes[lane, STEP] = max(step_of[e], 0)
            lanes[lane, RUNNING] = 1
            for column in range(FIRST_OBSERVATION, stop_observation):
                _put(columns, column, observation[e], addresses, lanes[lane, SLOT], lanes[lane, CURSOR])
        slot, position, k = lanes[lane, SLOT], lanes[lane, CURSOR], row[e]
        for column in range(FIRST_OBSERVATION, stop_observation):
            _put(columns, column, next_observation[e], addresses, slot, position + 1)
        for column in range(stop_observation, num_columns):
            _put(columns, column, k, addresses, slot, position)
        _put(columns, C_TERMINATED, k, addresses, slot, position)
        _put(columns, C_TRUNCATED, k, addresses, slot, position)
        episode_id[e] = lanes[lane, EPISODE]
        step_of[e] = lanes[lane, STEP]
        row_ids[e] = segments[slot, ROW_BASE] + position
        _commit_row(
            slot, position, 1, lane, episode_id[e], step_of[e], time[e], policy[e], segments, addresses, commit
        )
        commit[NUM_TRANSITIONS] += 1
        segments[slot, TRANSITIONS] += 1
        lanes[lane, CURSOR] = position + 1
        lanes[lane, STEP] += 1
        ended = _flag(columns, C_TERMINATED, k) or _flag(columns, C_TRUNCATED, k)
        if ended or how == INDEPENDENT:
            _commit_tail(lanes, lane, 2 if ended else 4, time[e], policy[e], segments, addresses, commit)
            lanes[lane, RUNNING] = 0
    commit[EVENT] = lane_of.shape[0]
    return DONE


@kernel("int64(int64[::1], int64, int64, int64[:, ::1], int64[:, ::1], int64[:, ::1], int64[::1], int64[:, ::1])")
def cut(
    which: Any, time: int, policy: int, lanes: Any, segments: Any, addresses: Any, commit: Any, undo: Any
) -> int:
    """The running episodes of these lanes are abandoned: their waiting observations become cut tails."""
    count = 0
    for i in range(which.shape[0]):
        lane = which[i]
        if lanes[lane, RUNNING] == 1:
            _save(lanes, lane, commit, undo)
            _commit_tail(lanes, lane, 4, time, policy, segments, addresses, commit)
            lanes[lane, RUNNING] = 0
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
    columns: Any,
    stop_observation: int,
    lanes: Any,
    segments: Any,
    addresses: Any,
    commit: Any,
    undo: Any,
) -> int:
    """Move every lane out of a segment that slow lanes hold open; their episodes go on in new blocks."""
    for lane in range(lanes.shape[0]):
        if lanes[lane, SLOT] != slot:
            continue
        if lanes[lane, RUNNING] == 1:
            if not _find_block(segments, commit):
                return NEED_SEGMENT
            _save(lanes, lane, commit, undo)
            _next_block(lanes, lane, time, policy, columns, stop_observation, segments, addresses, commit)
        else:
            _save(lanes, lane, commit, undo)
            _leave_block(lanes, lane, segments)
    return DONE
