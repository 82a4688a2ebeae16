"""A bound on the time that an input may take, in proportion to its bytes."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from types import FrameType
from typing import NoReturn

__all__ = ["TooSlow", "within_bounds"]

ALWAYS = 3.0
"""Seconds of processor time that any input may take."""
A_BYTE = 15e-6
"""And for each byte: 1 MiB may take 16 seconds more, under the slowness of a fuzzer."""


class TooSlow(AssertionError):
    """An input takes more time than its bytes allow."""


def within_bounds(function: Callable[[], object], size: int) -> None:
    """Run a function that is given an input of ``size`` bytes.

    Raises:
        TooSlow: it took too long; it is stopped then.
    """
    limit = ALWAYS + A_BYTE * size
    started = time.process_time()

    def stop(number: int, frame: FrameType | None) -> NoReturn:
        raise TooSlow(f"{size} bytes took {time.process_time() - started:.1f} s of processor time, allowed are {limit:.1f}")

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, limit)
    try:
        function()
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
