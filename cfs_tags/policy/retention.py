"""Which of some dated things stay: the rules of ``restic forget``.

The rules are ORed: what any of them keeps stays.  ``last`` counts things; the others count periods, of which the newest thing
stays.  Only periods that have something count.  While a rule has counts left the oldest thing stays, too, so that history grows
as long as the rule allows.  ``within`` looks back from the newest thing, and not from now: a host that was switched off
for a year, or whose clock is wrong, drops nothing for that.  (restic, ``snapshot_policy.go`` and
``doc/060_forget.rst``.)

What is dated in the future stays, and counts for no rule; with restic it counts.

Everything here is pure.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, NamedTuple, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime, timedelta

T = TypeVar("T")

ALL = -1
"""The count of a rule that keeps every period."""


class Counts(NamedTuple):
    """How many things of each period stay: 0 says nothing of them, :data:`ALL` keeps every one.

    ``within`` keeps what is not older than that, seen from the newest.
    """

    last: int = 0
    hourly: int = 0
    daily: int = 0
    weekly: int = 0
    monthly: int = 0
    yearly: int = 0
    within: timedelta | None = None

    @property
    def numbers(self) -> tuple[int, int, int, int, int, int]:
        """All but ``within``."""
        return self[:6]

    @property
    def says_nothing(self) -> bool:
        """Whether nothing would be kept by them."""
        return not any(self.numbers) and self.within is None


class Dated(NamedTuple, Generic[T]):
    """Something and its time, which knows its zone."""

    thing: T
    time: datetime


class Verdict(NamedTuple, Generic[T]):
    """Whether a thing stays: the rules that keep it, none where it goes."""

    thing: T
    time: datetime
    reasons: tuple[str, ...]


def verdicts(things: Sequence[Dated[T]], counts: Counts, now: datetime) -> list[Verdict[T]]:
    """Apply rules to things; those of the same time stay in their order.

    Args:
        things: in any order.
        counts: the rules.
        now: the time that it is, with its zone.

    Returns:
        All of them, the newest first.
    """
    ordered = sorted(things, key=lambda each: each.time, reverse=True)
    periods = [_Period(*each) for each in zip(_NAMES, counts.numbers, _BUCKETS, strict=True) if each[1]]
    made = [Verdict(each.thing, each.time, ("future",)) for each in ordered if each.time > now]
    past = ordered[len(made) :]
    for number, each in enumerate(past):
        reasons = []
        if counts.within is not None and past[0].time - each.time < counts.within:
            reasons.append("within")
        is_oldest = number == len(past) - 1
        reasons += [period.name for period in periods if period.keeps(number, each.time, is_oldest=is_oldest)]
        made.append(Verdict(each.thing, each.time, tuple(reasons)))
    return made


class _Period:
    """A rule with a count, while things pass by it from the newest to the oldest."""

    def __init__(self, name: str, count: int, bucket: Callable[[int, datetime], tuple[int, ...]]) -> None:
        self.name = name
        self._left = count
        self._bucket = bucket
        self._last: tuple[int, ...] | None = None

    def keeps(self, number: int, time: datetime, *, is_oldest: bool) -> bool:
        if not self._left:
            return False
        bucket = self._bucket(number, time)
        if bucket == self._last and not is_oldest:
            return False
        self._last = bucket
        if self._left != ALL:
            self._left -= 1
        return True


_NAMES = ("last", "hourly", "daily", "weekly", "monthly", "yearly")
_BUCKETS: tuple[Callable[[int, datetime], tuple[int, ...]], ...] = (
    lambda number, time: (number,),
    lambda number, time: (time.year, time.month, time.day, time.hour),
    lambda number, time: (time.year, time.month, time.day),
    lambda number, time: time.isocalendar()[:2],
    lambda number, time: (time.year, time.month),
    lambda number, time: (time.year,),
)
