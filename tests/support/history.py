"""Histories of registers, and whether one order of their operations explains all that was seen.

A register is one ref, or several that only change together.  An operation took effect at one instant between its call and
its return; :func:`explain` looks for instants that fit (the algorithm of Wing and Gong, with the memory of Lowe's variant:
a set of operations that led to a value once need not be tried again).

Operations of programs that were killed, and of our own commands that failed because a peer was faster, may have taken
effect, and may have been taken back: those are :attr:`Kind.MAYBE` and :attr:`Kind.BACK`.  What one of them would have put
there need not be known: :data:`ANY`.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Hashable, Iterator, Sequence
from typing import NamedTuple

__all__ = ["ABSENT", "Kind", "Operation", "explain"]

ABSENT = "absent"
ANY = "any"
"""A value that is not known before it is seen."""
Value = Hashable


class Kind(enum.Enum):
    """What an operation does to a register.

    ======  ===================================================  =========
    READ    has found ``new``                                    has to be
    LOOK    the same, and never what a command did that failed   has to be
    SWAP    has found ``old`` and put ``new`` in its place       has to be
    WRITE   has put ``new`` in place of anything                 has to be
    REMOVE  has removed a value, whatever it was                 has to be
    MAYBE   may have put ``new`` in place of anything            may be
    BACK    may have put back what MAYBE number ``of`` replaced  may be
    ======  ===================================================  =========
    """

    READ = "read"
    LOOK = "look"
    SWAP = "swap"
    WRITE = "write"
    REMOVE = "remove"
    MAYBE = "maybe"
    BACK = "back"


class Operation(NamedTuple):
    """An operation on one register: called and returned at these instants (nanoseconds; infinite where it was killed)."""

    called: float
    returned: float
    kind: Kind
    new: Value = ABSENT
    old: Value = ABSENT
    of: int = -1
    """The ``mark`` of the MAYBE that a BACK takes back."""
    mark: int = -1
    who: str = ""
    """For people: process and command."""


class _State(NamedTuple):
    """The value, and where it is a MAYBE's that has not been taken back: its mark, what it replaced, until when it may be."""

    value: Value
    mark: int = -1
    replaced: Value = ABSENT
    until: float = math.inf


class Unexplained(NamedTuple):
    """No order fits: the longest that does, and the operations none of which can come next."""

    explained: int
    value: Value
    stuck: tuple[Operation, ...]


def explain(operations: Sequence[Operation], start: Value = ABSENT, limit: int = 3_000_000) -> Unexplained | None:
    """None where an order explains the history of a register; else where the best one ends.

    Args:
        operations: in any order.
        start: the value before all of them.
        limit: so many steps are tried.

    Raises:
        RuntimeError: not decided within the limit.
    """
    ordered = sorted(operations, key=lambda one: (one.called, one.returned))
    wanted = sum(one.kind not in (Kind.MAYBE, Kind.BACK) for one in ordered)
    pending = [(0, 0, _State(start), -math.inf, 0)]
    seen = set()
    best = Unexplained(-1, start, ())
    while pending:
        done, first, state, latest, count = pending.pop()
        if count == wanted:
            return None
        limit -= 1
        if limit < 0:
            raise RuntimeError("not decided")
        possible = list(_possible(ordered, done, first, latest))
        if count > best.explained:
            best = Unexplained(count, state.value, tuple(ordered[index] for index in possible))
        for index in reversed(possible):
            operation = ordered[index]
            after = _apply(operation, state)
            if after is None:
                continue
            now = done | 1 << index
            if (now, after) in seen:
                continue
            seen.add((now, after))
            start_of = first
            while start_of < len(ordered) and now >> start_of & 1:
                start_of += 1
            needed = operation.kind not in (Kind.MAYBE, Kind.BACK)
            pending.append((now, start_of, after, max(latest, operation.called), count + needed))
    return best


def _possible(ordered: Sequence[Operation], done: int, first: int, latest: float) -> Iterator[int]:
    """Operations that can be the next: none that has to be has returned before they were called."""
    bound = math.inf
    for index in range(first, len(ordered)):
        operation = ordered[index]
        if operation.called > bound:
            return
        if done >> index & 1:
            continue
        if operation.kind not in (Kind.MAYBE, Kind.BACK):
            bound = min(bound, operation.returned)
        if operation.returned >= latest:
            yield index


def _apply(operation: Operation, state: _State) -> _State | None:
    """The state after an operation; None where it could not have come to what it came to."""
    if operation.called > state.until:
        return None  # a command that failed has left its value
    match operation.kind:
        case Kind.LOOK if state.mark != -1 and state.until != math.inf:
            return None
        case Kind.READ | Kind.LOOK:
            return state._replace(value=operation.new) if state.value in (operation.new, ANY) else None
        case Kind.SWAP:
            return _State(operation.new) if state.value in (operation.old, ANY) else None
        case Kind.WRITE:
            return _State(operation.new)
        case Kind.REMOVE:
            return _State(ABSENT) if state.value != ABSENT else None
        case Kind.MAYBE:
            return _State(operation.new, operation.mark, state.value, operation.returned)
        case Kind.BACK:
            return _State(state.replaced) if state.mark == operation.of != -1 else None
