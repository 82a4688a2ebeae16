"""Documents of many hosts in memory: what several of them say is there once, and all of them have a limit.

Hosts of one version use the same manifests and have the same layers; what is a host's own is its name, times and space.
"""

from __future__ import annotations

from collections import defaultdict
from sys import getsizeof
from threading import Lock
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from cfs_tags.fleet.hosts import Host

_MAX_SHARED = 512 << 20
"""Bytes of memory for all documents: honest hosts take some 5,000 each, a hostile one can have a million."""
_PART = 100
"""Bytes that it takes to find a part again."""
_OWN = 400
"""Bytes of a host and of what is its own, but for its history."""

_Part = TypeVar("_Part")


class Shared:
    """Hosts whose equal parts are in memory once.  For several threads.

    Args:
        limit: bytes that all may take.
    """

    def __init__(self, limit: int = _MAX_SHARED) -> None:
        self._left = limit
        self._parts: defaultdict[type, dict[Any, Any]] = defaultdict(dict)  # a text is equal to a digest, and is none
        self._lock = Lock()

    def take(self, host: Host) -> Host | None:
        """The same host, which shares what others have said; None where there is no room for it."""
        with self._lock:
            if self._left <= 0:
                return None
            self._left -= _OWN + sum(getsizeof(booted) + getsizeof(booted.time) for booted in host.history)
            return host._replace(
                program=self._one(host.program),
                platform=self._one(host.platform),
                uses=self._one(host.uses),
                layers=self._one(host.layers),
                history=tuple(
                    booted._replace(manifest=self._one(booted.manifest), version=self._one(booted.version))
                    for booted in host.history
                ),
            )

    def _one(self, part: _Part) -> _Part:
        known = self._parts[type(part)]
        found: _Part | None = known.get(part)
        if found is None and part is not None:
            found = part
            if isinstance(part, tuple):
                inner = map(self._one, part)
                found = part._make(inner) if hasattr(part, "_make") else tuple(inner)  # type: ignore[assignment]
            self._left -= _PART + getsizeof(found)
            known[found] = found
        return found  # type: ignore[return-value]
