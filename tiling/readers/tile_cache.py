"""Decoded tiles that are likely to be wanted again, so that neighbouring windows decode none of them twice."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from typing import Any, Final

from numpy.typing import NDArray

LIMIT: Final = 64 * 2**20
"""Bytes of decoded tiles that one image keeps, or its largest tile."""

_Tile = NDArray[Any] | None
_limit = LIMIT


def limit_caches(size: int) -> None:
    """Bytes that each image that is opened from now on in this process keeps; LIMIT unless it was said."""
    global _limit
    _limit = size


class TileCache:
    """The least recently used tiles go first; the newest one always stays. Two threads never decode one tile twice."""

    def __init__(self, limit: int | None = None) -> None:
        """`limit` in bytes; None takes what `limit_caches` said, or LIMIT."""
        self._limit = _limit if limit is None else limit
        self._lock = threading.Lock()
        self._tiles: OrderedDict[Hashable, _Tile] = OrderedDict()
        self._held = 0
        self._pending: dict[Hashable, Future[_Tile]] = {}

    def get(self, key: Hashable, decode: Callable[[], _Tile]) -> _Tile:
        """The tile of that name, decoded now unless it is here or under way. What `decode` raises is raised."""
        with self._lock:
            if key in self._tiles:
                self._tiles.move_to_end(key)
                return self._tiles[key]
            under_way = self._pending.get(key)
            if under_way is None:
                mine = self._pending[key] = Future()
        if under_way is not None:
            return under_way.result()
        try:
            tile = decode()
        except BaseException as error:
            self._settle(key)
            mine.set_exception(error)
            raise
        self._settle(key, tile)
        mine.set_result(tile)
        return tile

    def clear(self) -> None:
        """Forgets every tile."""
        with self._lock:
            self._tiles.clear()
            self._held = 0

    def _settle(self, key: Hashable, tile: _Tile = None) -> None:
        with self._lock:
            del self._pending[key]
            if tile is None:
                return
            self._tiles[key] = tile
            self._held += tile.nbytes
            while self._held > self._limit and len(self._tiles) > 1:
                _, oldest = self._tiles.popitem(last=False)
                self._held -= oldest.nbytes if oldest is not None else 0
