"""In which order tags move, so that nothing that stays wanted is without a tag for a moment.  Pure.

A registry collects what has no tag.  When a host booted what was staged, ``booted`` leaves a manifest that ``rollback`` has to
have first; when it went back, the two change places, and a third tag holds one of them meanwhile.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cfs_tags.values import Digest


class Key(NamedTuple):
    """A tag in a repository."""

    repository: str
    tag: str


class Move(NamedTuple):
    """A tag that gets a digest, or is deleted: None."""

    key: Key
    digest: Digest | None


def next_move(now: Mapping[Key, Digest], wanted: Mapping[Key, Digest], spare: str) -> Move | None:
    """What to do next; None where all is as it is wanted.

    Args:
        now: the tags that are there.
        wanted: those that are to be there, and no others.
        spare: a tag that is not wanted, for what would have none meanwhile.
    """
    needed = {(key.repository, digest) for key, digest in wanted.items()}
    waiting = [key for key, digest in wanted.items() if now.get(key) != digest]
    for key in waiting:
        old = now.get(key)
        if old is None or (key.repository, old) not in needed or _is_held(now, key, old):
            return Move(key, wanted[key])
    if waiting:  # each of them is the only one that holds what another one waits for
        first = waiting[0]
        return Move(Key(first.repository, spare), now[first])
    gone = next((key for key in now if key not in wanted), None)
    return Move(gone, None) if gone is not None else None


def _is_held(now: Mapping[Key, Digest], key: Key, digest: Digest) -> bool:
    """Whether another tag of the repository has it, too."""
    return any(one != key and one.repository == key.repository and held == digest for one, held in now.items())
