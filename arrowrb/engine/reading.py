"""Reading rows of both tiers into a batch, through a bounded cache of decoded row groups.

Rows whose row groups are all in the cache are gathered by one kernel, as hot rows are. Otherwise each row group that a
batch needs is decoded once, all its rows are copied to their places, and it goes into the cache, from which others
leave. A batch may stand for many that were drawn ahead: then one decoding serves all of them.
"""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict, deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .. import kernels
from ..tiers.cold import ColdSegment

if TYPE_CHECKING:
    from .snapshot import Layout, Located

_COLUMN, _SHIFT = 0, 1
_FILE_ROW, _PLACE_FIELDS = 4, 5  # see the kernels
_Key = tuple[int, int, int]


class GroupCache:
    """Decoded columns of row groups, at most ``limit`` bytes; the least lately used leave first. Thread-safe.

    Whoever holds ``guard`` may read the addresses in `ColdSegment.decoded`: nothing leaves meanwhile. Segments are not
    kept alive; what was decoded of one that is gone goes when the cache is next used.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.num_bytes = 0
        self.num_hits = 0  # rows that were read of row groups in the cache
        self.num_misses = 0  # likewise, of others
        self.guard = threading.Lock()
        self._held: OrderedDict[_Key, tuple[weakref.ref[ColdSegment], NDArray[Any]]] = OrderedDict()
        self._known: dict[int, weakref.ref[ColdSegment]] = {}
        self._gone: deque[int] = deque()  # appended to wherever a segment is collected, without a lock

    def read(self, segment: ColdSegment, group: int, places: Sequence[int]) -> list[NDArray[Any]]:
        """Columns of a row group: from the cache, or decoded now."""
        owner = segment.serial
        with self.guard:
            self._sweep()
            found = {place: self._held.get((owner, group, place)) for place in places}
            for place, entry in found.items():
                if entry is not None:
                    self._held.move_to_end((owner, group, place))
        missing = [place for place, entry in found.items() if entry is None]
        fresh = dict(zip(missing, segment.decode(group, missing), strict=True)) if missing else {}
        if fresh:
            with self.guard:
                for place, values in fresh.items():
                    self._hold(segment, group, place, values)
        return [fresh[place] if (entry := found[place]) is None else entry[1] for place in places]

    def _hold(self, segment: ColdSegment, group: int, place: int, values: NDArray[Any]) -> None:
        key = (segment.serial, group, place)
        if key in self._held or values.nbytes > self.limit:
            return
        known = self._known.get(segment.serial)
        if known is None:
            serial, gone = segment.serial, self._gone
            known = self._known[serial] = weakref.ref(segment, lambda _: gone.append(serial))
        self._held[key] = known, values
        self.num_bytes += values.nbytes
        segment.decoded[group, place] = values.__array_interface__["data"][0]
        spared = 0
        while self.num_bytes > self.limit:
            key, (owner, array) = self._held.popitem(last=False)
            other = owner()
            if other is not None and other.used[key[1]] and spared < len(self._held):
                other.used[key[1]] = 0  # read since it was last looked at: a second chance
                self._held[key] = owner, array
                spared += 1
                continue
            if other is not None:
                other.decoded[key[1], key[2]] = 0
            self.num_bytes -= array.nbytes

    def _sweep(self) -> None:
        """Let go of what belongs to segments that are gone."""
        if not self._gone:
            return
        gone = {self._gone.popleft() for _ in range(len(self._gone))}
        for key in [key for key in self._held if key[0] in gone]:
            self.num_bytes -= self._held.pop(key)[1].nbytes
        for serial in gone:
            self._known.pop(serial, None)


def gather(layout: Layout, located: Located, outputs: NDArray[np.int64], cache: GroupCache) -> None:
    """Copy rows of a layout with cold segments to where ``outputs`` (see the gather kernel) says."""
    slots, positions = located.slots, located.positions
    found = np.empty((slots.size, _PLACE_FIELDS), np.int64)
    num_cold = kernels.find_places(slots, positions, layout.cold_table, layout.addresses, found)
    if num_cold == 0:
        kernels.gather(slots, positions, layout.addresses, outputs)
        return
    with cache.guard:
        missing = kernels.count_missing(found, outputs)
        cache.num_hits += num_cold - missing
        cache.num_misses += missing
        if missing == 0:
            kernels.gather_found(found, outputs)
            return
    rows = np.ascontiguousarray(found[:, _FILE_ROW])
    hot = np.flatnonzero(rows < 0)
    if hot.size:
        kernels.gather_places(slots[hot], positions[hot], hot, layout.addresses, outputs)
    _gather_groups(layout, slots, rows, outputs, cache)


def _gather_groups(
    layout: Layout, slots: NDArray[np.int64], rows: NDArray[np.int64], outputs: NDArray[np.int64], cache: GroupCache
) -> None:
    """Copy the cold rows, row group by row group; next observations may lie in the group behind."""
    cold = np.flatnonzero(rows >= 0)
    passes = []  # outputs with the same shift, and the rows sorted by the group that they read
    for shift in np.unique(outputs[:, _SHIFT]).tolist():
        chosen = outputs[outputs[:, _SHIFT] == shift].copy()
        chosen[:, _SHIFT] = 0
        at = rows[cold] + shift
        keys = slots[cold] << 32 | at >> layout.cold_table[slots[cold], 2]
        order = np.argsort(keys, kind="stable")
        keys = keys[order]
        first = np.flatnonzero(np.diff(keys, prepend=-1))
        stop = np.append(first, keys.size)[1:]
        spans = {key: span for key, *span in zip(keys[first].tolist(), first.tolist(), stop.tolist(), strict=True)}
        passes.append((chosen, np.unique(chosen[:, _COLUMN]), cold[order], at[order], spans))
    addresses = np.zeros((1, layout.addresses.shape[1]), np.int64)
    for key in sorted({key for *_, spans in passes for key in spans}):
        slot, group = key >> 32, key & 0xFFFFFFFF
        segment = layout.cold[slot]
        wanted = sorted({int(place) for _, columns, _, _, spans in passes if key in spans for place in columns})
        arrays = cache.read(segment, group, wanted)
        for place, values in zip(wanted, arrays, strict=True):
            addresses[0, place] = values.__array_interface__["data"][0]
        for chosen, _, places, at, spans in passes:
            if key not in spans:
                continue
            first, stop = spans[key]
            offsets = at[first:stop] - (group << segment.group_shift)
            kernels.gather_places(np.zeros(offsets.size, np.int64), offsets, places[first:stop], addresses, chosen)
