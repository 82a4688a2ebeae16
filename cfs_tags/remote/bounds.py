"""Answers over HTTP that end whatever the other side does: every byte is counted, those that are no body among them.

The standard library skips ``100 Continue`` without end, takes a trailer of any length, and waits anew for each byte: a limit on
what a body gives is none for a head that trickles.
"""

from __future__ import annotations

import http.client
import io
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from collections.abc import Callable


class BoundedResponse(http.client.HTTPResponse):
    """An answer whose bytes are counted as they come.

    Args:
        sock, more: as the library gives them.
        check: is called before each read with the bytes that came so far, and raises OSError to end it.
    """

    def __init__(self, sock: Any, *more: Any, check: Callable[[int], None], **options: Any) -> None:
        super().__init__(sock, *more, **options)
        self.fp = io.BufferedReader(_Counted(self.fp.detach(), check))


class _Counted(io.RawIOBase):
    def __init__(self, raw: io.RawIOBase, check: Callable[[int], None]) -> None:
        super().__init__()
        self._raw = raw
        self._check = check
        self._total = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        self._check(self._total)
        count = cast("int | None", self._raw.readinto(buffer))
        self._total += count or 0
        return count

    def fileno(self) -> int:
        return self._raw.fileno()

    def close(self) -> None:
        if not self.closed:
            self._raw.close()
        super().close()
